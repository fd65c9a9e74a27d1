//! `ultractl bucket`: LightningStor's buckets, over a node's API.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Subcommand;
use control_kit::client::{Options, connected};
use lightningstor_api::v1::buckets_client::BucketsClient;
use lightningstor_api::v1::{
    Bucket, CreateBucketRequest, DeleteBucketRequest, GetBucketRequest, ListBucketsRequest,
};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::failure::{Exit, Failure};
use crate::output::{Format, show, table};

/// Buckets of one page that is asked for.
const PAGE: u32 = 1000;

/// Where and as whom.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The node's admin endpoint.
    #[arg(
        long,
        global = true,
        env = "ULTRACTL_ENDPOINT",
        default_value = "http://127.0.0.1:9001"
    )]
    endpoint: String,
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
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes a bucket that belongs to the token's user.
    Create {
        /// Its name.
        name: String,
    },
    /// Lists buckets by name: the user's own, or another's for root.
    List {
        /// The id of the user whose buckets are listed.
        #[arg(long, conflicts_with = "all")]
        owner: Option<String>,
        /// Everybody's.
        #[arg(long)]
        all: bool,
    },
    /// Shows a bucket.
    Get {
        /// Its name.
        name: String,
    },
    /// Removes a bucket that holds no objects.
    Delete {
        /// Its name.
        name: String,
    },
}

/// Shows the token with each request.
#[derive(Clone)]
struct WithToken(MetadataValue<Ascii>);

impl Interceptor for WithToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let token = self.0.clone();
        request.metadata_mut().insert("authorization", token);
        Ok(request)
    }
}

type Client = BucketsClient<InterceptedService<Channel, WithToken>>;

/// Runs a command.
pub async fn run(args: Args, format: Format) -> Result<()> {
    let token = token(&args)?;
    let mut authorization: MetadataValue<Ascii> = format!("Bearer {token}")
        .parse()
        .context("the token is not printable text")?;
    authorization.set_sensitive(true);
    let channel = connected(&args.endpoint, None, Options::default()).await;
    let channel = channel.map_err(|error| {
        Failure::new(Exit::Unavailable, "unavailable", format!("{error:#}"))
            .object(&args.endpoint)
            .next("see that the node runs, and name its admin endpoint by --endpoint")
    })?;
    let mut client = BucketsClient::with_interceptor(channel, WithToken(authorization));
    match args.command {
        Command::Create { name } => {
            let made = client.create_bucket(CreateBucketRequest { name }).await;
            let made = made.map_err(Failure::from)?.into_inner();
            show(format, &made, |made| format!("made {}\n", described(made)))
        }
        Command::List { owner, all } => {
            let buckets = list(&mut client, owner.unwrap_or_default(), all).await?;
            show(format, &buckets, |buckets| {
                let row = |one: &Bucket| vec![one.name.clone(), one.owner.clone(), at(one)];
                let rows: Vec<_> = buckets.iter().map(row).collect();
                table(&["NAME", "OWNER", "CREATED"], &rows)
            })
        }
        Command::Get { name } => {
            let found = client.get_bucket(GetBucketRequest { name }).await;
            let found = found.map_err(Failure::from)?.into_inner();
            show(format, &found, |found| described(found) + "\n")
        }
        Command::Delete { name } => {
            let request = DeleteBucketRequest { name: name.clone() };
            client.delete_bucket(request).await.map_err(Failure::from)?;
            let removed = json!({ "removed": name });
            show(format, &removed, |_| format!("removed bucket {name}\n"))
        }
    }
}

fn token(args: &Args) -> Result<String> {
    match (&args.token, &args.token_file) {
        (Some(token), _) => Ok(token.clone()),
        (None, Some(file)) => {
            let text = std::fs::read_to_string(file);
            let text = text.with_context(|| format!("cannot read the token in {}", file.display()));
            Ok(text?.trim().to_owned())
        }
        (None, None) => {
            let next = "give --token-file, as DATA_DIR/root-token of the node, or --token, or set \
                        ULTRACTL_TOKEN_FILE or ULTRACTL_TOKEN";
            Err(Failure::usage("no token").next(next).into())
        }
    }
}

/// All pages.
async fn list(client: &mut Client, owner: String, all_owners: bool) -> Result<Vec<Bucket>> {
    let mut buckets = Vec::new();
    let mut after = String::new();
    loop {
        let request = ListBucketsRequest {
            owner: owner.clone(),
            all_owners,
            limit: PAGE,
            after,
        };
        let page = client.list_buckets(request).await.map_err(Failure::from)?;
        let page = page.into_inner();
        buckets.extend(page.buckets);
        if page.next.is_empty() {
            return Ok(buckets);
        }
        after = page.next;
    }
}

fn described(bucket: &Bucket) -> String {
    let Bucket { name, owner, .. } = bucket;
    format!("bucket {name} of {owner}, made {}", at(bucket))
}

/// As 2026-11-26T10:00:00Z.
fn at(bucket: &Bucket) -> String {
    let seconds = bucket.created_unix_ms.div_euclid(1000);
    let at = OffsetDateTime::from_unix_timestamp(seconds).map(|at| at.format(&Rfc3339));
    match at {
        Ok(Ok(text)) => text,
        // Past the year 9999.
        _ => format!("{seconds} s after 1970"),
    }
}
