//! The command line: the service, and its verb.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser};
use control_api::operations::v1::WaitOperationRequest;
use control_api::operations::v1::operations_client::OperationsClient;
use control_kit::auth::{Principal, Tokens};
use control_kit::client;
use control_kit::logging::{self, LogFormat};
use creditservice::{Ledger, Quota, TransferId};
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};

use crate::v1::CreateWidgetRequest;
use crate::v1::widgets_client::WidgetsClient;

/// A service of widgets.
#[derive(Parser)]
pub enum Command {
    /// Serves widgets.
    Serve(Serve),
    /// Makes a widget, and waits until it is there.
    Create(Create),
}

impl Command {
    pub async fn run(self) -> Result<()> {
        match self {
            Command::Serve(args) => {
                logging::start(LogFormat::Text);
                crate::serve(args).await
            }
            Command::Create(args) => create(args).await,
        }
    }
}

#[derive(Args)]
pub struct Serve {
    /// Where.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// ChainFire's client URLs.
    #[arg(long, value_delimiter = ',', required = true)]
    pub store: Vec<String>,
    /// Where the widgets' files are.
    #[arg(long)]
    pub dir: PathBuf,
    /// Whose widgets.
    #[arg(long, default_value = "blue")]
    tenant: String,
    /// The tenant's quota, in bytes.
    #[arg(long, default_value_t = 1000)]
    limit: u64,
    /// How long this process may be silent before another ends what it began, in seconds.
    #[arg(long, default_value_t = 10)]
    lease_s: u64,
    /// The tenant's token.
    #[arg(long, default_value = "blue-token")]
    token: String,
    /// The operator's.
    #[arg(long, default_value = "operator-token")]
    operator_token: String,
}

impl Serve {
    /// How long others wait for it.
    pub fn lease(&self) -> Duration {
        Duration::from_secs(self.lease_s)
    }

    /// Sets the tenant's quota.
    pub async fn limit(&self, ledger: &Ledger) -> Result<()> {
        let (tenant, limit) = (self.tenant.clone(), self.limit);
        let quota = Quota {
            tenant: tenant.parse()?,
            unit: "widget-bytes".parse()?,
        };
        let id = TransferId::derive(["limit".to_owned(), tenant, limit.to_string()]);
        Ok(ledger.set_limit(id, &quota, limit).await?)
    }

    /// Who may call.
    pub fn tokens(&self) -> Tokens {
        let principal = |name: &str, tenant: &str, is_operator| Principal {
            name: name.into(),
            tenant: tenant.into(),
            is_operator,
        };
        Tokens::default()
            .token(&self.token, principal("ann", &self.tenant, false))
            .token(&self.operator_token, principal("op", "operators", true))
    }
}

#[derive(Args)]
pub struct Create {
    /// Of the service.
    #[arg(long)]
    url: String,
    #[arg(long, default_value = "blue-token")]
    token: String,
    /// The same for each try of what is wanted once.
    #[arg(long)]
    idempotency_key: Option<String>,
    /// The widget's name.
    name: String,
    /// Its bytes.
    size: u64,
}

/// Makes a widget, and waits until it is there.
async fn create(args: Create) -> Result<()> {
    let channel = client::connected(&args.url, None, client::Options::default()).await?;
    let bearer: MetadataValue<Ascii> = format!("Bearer {}", args.token).parse()?;
    let mut request = Request::new(CreateWidgetRequest {
        name: args.name.clone(),
        size: args.size,
    });
    let metadata = request.metadata_mut();
    metadata.insert("authorization", bearer.clone());
    if let Some(key) = &args.idempotency_key {
        metadata.insert("idempotency-key", key.parse()?);
    }
    let made = WidgetsClient::new(channel.clone())
        .create_widget(request)
        .await;
    let widget = made
        .map_err(|status| anyhow::anyhow!("{}", status.message()))?
        .into_inner();
    let mut operations = OperationsClient::new(channel);
    loop {
        let mut wait = Request::new(WaitOperationRequest {
            id: widget.operation.clone(),
            until_settled: true,
            ..WaitOperationRequest::default()
        });
        wait.metadata_mut().insert("authorization", bearer.clone());
        wait.set_timeout(Duration::from_secs(20));
        let operation = operations
            .wait_operation(wait)
            .await
            .context("cannot wait")?
            .into_inner();
        match operation.state.as_str() {
            "done" => {
                println!("{} is ready", args.name);
                return Ok(());
            }
            "running" | "undoing" => {}
            state => bail!(
                "{}: the operation is {state}: {}",
                args.name,
                operation.trouble
            ),
        }
    }
}
