//! `ultractl chainfire`: members, keys, backups.

mod backup;
mod keys;
mod member;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use control_kit::client::{Options, channel};
use control_kit::tls::{ClientTls, TlsFiles};
use etcd_wire::etcdserverpb::auth_client::AuthClient;
use etcd_wire::etcdserverpb::maintenance_client::MaintenanceClient;
use etcd_wire::etcdserverpb::{AuthenticateRequest, StatusRequest};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::output::Format;

/// How long a member may take to say that it is there; then the next one is asked.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Where and as whom.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Members' client URLs, commas between; the first that answers is asked.
    #[arg(
        long,
        global = true,
        env = "ULTRACTL_CHAINFIRE_ENDPOINTS",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:2379"
    )]
    endpoints: Vec<String>,
    /// User and password, a colon between.
    #[arg(
        long,
        global = true,
        env = "ULTRACTL_CHAINFIRE_USER",
        hide_env_values = true
    )]
    user: Option<String>,
    /// PEM certificate to show.
    #[arg(long, global = true, requires = "tls_key")]
    cert: Option<PathBuf>,
    /// PEM private key of the certificate.
    #[arg(long = "key", global = true, requires = "cert")]
    tls_key: Option<PathBuf>,
    /// PEM certificates of those who may sign the members' certificates.
    #[arg(long, global = true, requires = "cert")]
    cacert: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Members: list, status, add, promote, update, remove, transfer, replace.
    #[command(subcommand)]
    Member(member::Command),
    /// Reads a key, or all keys with a prefix.
    Get(keys::Get),
    /// Writes a key.
    Put(keys::Put),
    /// Deletes a key, or all keys with a prefix.
    Del(keys::Del),
    /// Shows changes of a key, or of all keys with a prefix, as they come.
    Watch(keys::Watch),
    /// Writes all keys, as of one revision, into a file.
    Backup {
        /// The file; it must not be there.
        file: PathBuf,
    },
    /// Puts the keys of a backup, or of a snapshot of etcd, into an empty cluster.
    Restore {
        /// The file, as `backup` or `etcdctl snapshot save` has written it.
        file: PathBuf,
    },
}

/// Runs a command.
pub async fn run(args: Args, format: Format) -> Result<()> {
    let session = Session::open(&args).await?;
    match args.command {
        Command::Member(command) => member::run(&session, command, format).await,
        Command::Get(get) => keys::get(&session, get, format).await,
        Command::Put(put) => keys::put(&session, put, format).await,
        Command::Del(del) => keys::del(&session, del, format).await,
        Command::Watch(watch) => keys::watch(&session, watch, format).await,
        Command::Backup { file } => backup::backup(&session, &file, format).await,
        Command::Restore { file } => backup::restore(&session, &file, format).await,
    }
}

/// A connection to a member, and the token of a user.
struct Session {
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
}

impl Session {
    async fn open(args: &Args) -> Result<Session> {
        let tls = match (&args.cert, &args.tls_key) {
            (Some(cert), Some(key)) => Some(ClientTls::open(TlsFiles {
                cert: cert.clone(),
                key: key.clone(),
                ca: args.cacert.clone(),
            })?),
            _ => None,
        };
        let mut silent = Vec::new();
        for endpoint in &args.endpoints {
            let channel = channel(endpoint, tls.as_ref(), Options::default())?;
            let mut client = MaintenanceClient::new(channel.clone());
            let status = client.status(StatusRequest {});
            match tokio::time::timeout(ANSWER_TIMEOUT, status).await {
                Ok(Ok(_)) => {
                    let token = authenticate(&channel, args.user.as_deref()).await?;
                    return Ok(Session { channel, token });
                }
                Ok(Err(status)) => silent.push(format!("{endpoint}: {}", said(&status))),
                Err(_) => silent.push(format!("{endpoint}: no answer within {ANSWER_TIMEOUT:?}")),
            }
        }
        bail!("no member answers: {}", silent.join("; "))
    }

    /// A request on the user's behalf.
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }
}

async fn authenticate(
    channel: &Channel,
    user: Option<&str>,
) -> Result<Option<MetadataValue<Ascii>>> {
    let Some(user) = user else { return Ok(None) };
    let (name, password) = user.split_once(':').context("--user is NAME:PASSWORD")?;
    let request = AuthenticateRequest {
        name: name.into(),
        password: password.into(),
    };
    let answer = AuthClient::new(channel.clone()).authenticate(request).await;
    let answer = answer.map_err(failed)?;
    let token = answer.into_inner().token;
    Ok(Some(
        token
            .parse()
            .context("the member gave a token that is no header")?,
    ))
}

/// What a member said, without gRPC's own words; what kept it from saying anything, to its first cause.
fn said(status: &Status) -> String {
    let mut text = match status.message() {
        "" => format!("{:?}", status.code()),
        message => message.to_owned(),
    };
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err takes"
)]
fn failed(status: Status) -> anyhow::Error {
    anyhow::anyhow!(said(&status))
}
