//! The API of control services: where it is, as whom it is asked, and the channel for calls.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use control_kit::client::{Options, connected};
use control_kit::tls::{ClientTls, TlsFiles};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::context::{Choice, Login, Target};
use crate::failure::{Exit, Failure};

/// Where the API is when nothing says where.
const ENDPOINT: &str = "http://127.0.0.1:9001";

/// Where and as whom. What is given here wins over the context.
#[derive(Debug, clap::Args)]
pub struct Access {
    /// The API's URL, as a node's admin endpoint [default: the context's, else http://127.0.0.1:9001].
    #[arg(long, global = true, env = "ULTRACTL_ENDPOINT", value_name = "URL")]
    endpoint: Option<String>,
    /// Token of a user.
    #[arg(
        long,
        global = true,
        env = "ULTRACTL_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    token: Option<String>,
    /// File that holds the token, as the node's `root-token`.
    #[arg(long, global = true, env = "ULTRACTL_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// PEM certificate to show.
    #[arg(
        long,
        global = true,
        env = "ULTRACTL_CERT",
        value_name = "FILE",
        requires_all = ["tls_key", "cacert"]
    )]
    cert: Option<PathBuf>,
    /// PEM private key of the certificate.
    #[arg(
        long = "key",
        global = true,
        env = "ULTRACTL_KEY",
        value_name = "FILE",
        requires = "cert"
    )]
    tls_key: Option<PathBuf>,
    /// PEM certificates of those who may sign the servers' certificates.
    #[arg(
        long,
        global = true,
        env = "ULTRACTL_CACERT",
        value_name = "FILE",
        requires = "cert"
    )]
    cacert: Option<PathBuf>,
}

/// Shows the token, where there is one, with each request.
#[derive(Clone)]
pub struct WithToken(Option<MetadataValue<Ascii>>);

impl Interceptor for WithToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// A connection to the API, for the client of any of its services.
pub type Api = InterceptedService<Channel, WithToken>;

impl Access {
    /// Connects.
    pub async fn open(&self, choice: &Choice) -> Result<Api> {
        let target = self.target(choice)?;
        let token = WithToken(authorization(&target)?);
        let tls = target.tls.map(ClientTls::open).transpose();
        let tls =
            tls.map_err(|error| Failure::usage(format!("{:#}", anyhow::Error::new(error))))?;
        let mut silent = Vec::new();
        for endpoint in &target.endpoints {
            match connected(endpoint, tls.as_ref(), Options::default()).await {
                Ok(channel) => return Ok(InterceptedService::new(channel, token)),
                Err(error) => silent.push(format!("{:#}", anyhow::Error::new(error))),
            }
        }
        let next = "see that the node runs, and name its admin endpoint by --endpoint, \
                    ULTRACTL_ENDPOINT or a context";
        let failure = Failure::new(Exit::Unavailable, "unavailable", silent.join("; "));
        Err(failure.object(target.endpoints.join(",")).next(next).into())
    }

    /// What is given, and for the rest what the context says.
    fn target(&self, choice: &Choice) -> Result<Target> {
        let said = choice.chosen()?.and_then(|(_, context)| context.api);
        let mut target = said.unwrap_or_else(|| Target {
            endpoints: vec![ENDPOINT.to_owned()],
            ..Target::default()
        });
        if let Some(endpoint) = &self.endpoint {
            target.endpoints = vec![endpoint.clone()];
        }
        match (&self.token, &self.token_file) {
            (Some(token), _) => target.login = Login::Token(token.clone()),
            (None, Some(file)) => target.login = Login::Token(token_in(file)?),
            (None, None) => {}
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.tls_key) {
            target.tls = Some(TlsFiles {
                cert: cert.clone(),
                key: key.clone(),
                ca: self.cacert.clone(),
            });
        }
        if target.login == Login::None && target.tls.is_none() {
            let next = "give --token-file, as DATA_DIR/root-token of the node, or --token, or set \
                        ULTRACTL_TOKEN_FILE or ULTRACTL_TOKEN\n\
                        `ultractl context set NAME api --endpoints URL --token -` keeps one";
            return Err(Failure::usage("no token").next(next).into());
        }
        Ok(target)
    }
}

fn token_in(file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file);
    let text = text.with_context(|| format!("cannot read the token in {}", file.display()));
    Ok(text?.trim().to_owned())
}

/// The header that shows the token. Nobody gives the API a password: the context's file refuses that.
fn authorization(target: &Target) -> Result<Option<MetadataValue<Ascii>>> {
    let Login::Token(token) = &target.login else {
        return Ok(None);
    };
    let header = format!("Bearer {token}").parse();
    let mut header: MetadataValue<Ascii> = header.context("the token is not printable text")?;
    header.set_sensitive(true);
    Ok(Some(header))
}
