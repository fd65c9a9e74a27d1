//! `ultractl chainfire`: members, keys, backups.

mod backup;
mod keys;
mod member;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use control_kit::client::{Options, channel};
use control_kit::tls::{ClientTls, TlsFiles};
use etcd_wire::etcdserverpb::auth_client::AuthClient;
use etcd_wire::etcdserverpb::maintenance_client::MaintenanceClient;
use etcd_wire::etcdserverpb::{AuthenticateRequest, StatusRequest};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::context::{Choice, Login, Target};
use crate::failure::{Exit, Failure, said};
use crate::output::Format;

/// How long a member may take to say that it is there; then the next one is asked.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Where ChainFire is when nothing says where.
const ENDPOINT: &str = "http://127.0.0.1:2379";

/// Where and as whom. What is given here wins over the context.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Members' client URLs, commas between; the first that answers is asked [default: the context's, else
    /// http://127.0.0.1:2379].
    #[arg(
        long,
        global = true,
        env = "ULTRACTL_CHAINFIRE_ENDPOINTS",
        value_name = "URLS",
        value_delimiter = ','
    )]
    endpoints: Option<Vec<String>>,
    /// User and password, a colon between.
    #[arg(
        long,
        global = true,
        env = "ULTRACTL_CHAINFIRE_USER",
        value_name = "NAME:PASSWORD",
        hide_env_values = true
    )]
    user: Option<String>,
    /// A token that a member has given to a user.
    #[arg(
        long,
        global = true,
        env = "ULTRACTL_CHAINFIRE_TOKEN",
        hide_env_values = true,
        conflicts_with = "user"
    )]
    token: Option<String>,
    /// PEM certificate to show.
    #[arg(
        long,
        global = true,
        env = "ULTRACTL_CHAINFIRE_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    cert: Option<PathBuf>,
    /// PEM private key of the certificate.
    #[arg(
        long = "key",
        global = true,
        env = "ULTRACTL_CHAINFIRE_KEY",
        value_name = "FILE",
        requires = "cert"
    )]
    tls_key: Option<PathBuf>,
    /// PEM certificates of those who may sign the members' certificates.
    #[arg(
        long,
        global = true,
        env = "ULTRACTL_CHAINFIRE_CACERT",
        value_name = "FILE",
        requires = "cert"
    )]
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
pub async fn run(args: Args, choice: &Choice, format: Format) -> Result<()> {
    let target = args.target(choice)?;
    let session = Session::open(&target).await?;
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

impl Args {
    /// What is given, and for the rest what the context says.
    fn target(&self, choice: &Choice) -> Result<Target> {
        let said = match choice.chosen()? {
            None => None,
            Some((name, context)) => match context.chainfire {
                None if self.endpoints.is_none() => {
                    let what = format!("context {name} does not say where ChainFire is");
                    let next = format!("`ultractl context set {name} chainfire --endpoints URL`");
                    return Err(Failure::usage(what).next(next).into());
                }
                said => said,
            },
        };
        let mut target = said.unwrap_or_else(|| Target {
            endpoints: vec![ENDPOINT.to_owned()],
            ..Target::default()
        });
        if let Some(endpoints) = &self.endpoints {
            target.endpoints.clone_from(endpoints);
        }
        if let Some(user) = &self.user {
            let login = Login::user(user);
            target.login = login.ok_or_else(|| Failure::usage("--user is NAME:PASSWORD"))?;
        }
        if let Some(token) = &self.token {
            target.login = Login::Token(token.clone());
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.tls_key) {
            target.tls = Some(TlsFiles {
                cert: cert.clone(),
                key: key.clone(),
                ca: self.cacert.clone(),
            });
        }
        Ok(target)
    }
}

/// A connection to a member, and the token of a user.
struct Session {
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
}

impl Session {
    async fn open(target: &Target) -> Result<Session> {
        let tls = target.tls.clone().map(ClientTls::open).transpose();
        let tls = tls.map_err(wrong_target)?;
        let mut silent = Vec::new();
        for endpoint in &target.endpoints {
            let channel = channel(endpoint, tls.as_ref(), Options::default());
            let channel = channel.map_err(wrong_target)?;
            let mut client = MaintenanceClient::new(channel.clone());
            let status = client.status(StatusRequest {});
            match tokio::time::timeout(ANSWER_TIMEOUT, status).await {
                Ok(Ok(_)) => {
                    let token = token(&channel, &target.login).await?;
                    return Ok(Session { channel, token });
                }
                Ok(Err(status)) => silent.push(format!("{endpoint}: {}", said(&status))),
                Err(_) => silent.push(format!("{endpoint}: no answer within {ANSWER_TIMEOUT:?}")),
            }
        }
        let what = format!("no member answers: {}", silent.join("; "));
        let next =
            "name members that run by --endpoints, ULTRACTL_CHAINFIRE_ENDPOINTS or a context";
        Err(Failure::new(Exit::Unavailable, "no-member-answers", what)
            .next(next)
            .into())
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

/// A certificate or a URL that cannot be used: nobody was asked anything.
fn wrong_target(error: control_kit::Error) -> anyhow::Error {
    let error = anyhow::Error::new(error);
    Failure::usage(format!("{error:#}")).into()
}

async fn token(channel: &Channel, login: &Login) -> Result<Option<MetadataValue<Ascii>>> {
    let (token, whose) = match login {
        Login::None => return Ok(None),
        Login::Token(token) => (token.clone(), "the given token"),
        Login::User(name, password) => {
            let request = AuthenticateRequest {
                name: name.clone(),
                password: password.clone(),
            };
            let answer = AuthClient::new(channel.clone()).authenticate(request).await;
            let answer = answer.map_err(failed)?;
            (answer.into_inner().token, "the token that the member gave")
        }
    };
    let token = token
        .parse()
        .with_context(|| format!("{whose} is no header"))?;
    Ok(Some(token))
}

fn failed(status: Status) -> anyhow::Error {
    Failure::from(status).into()
}
