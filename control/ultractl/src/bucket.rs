//! `ultractl bucket`: LightningStor's buckets, over a node's API.

use anyhow::Result;
use clap::Subcommand;
use lightningstor_api::v1::buckets_client::BucketsClient;
use lightningstor_api::v1::{
    Bucket, CreateBucketRequest, DeleteBucketRequest, GetBucketRequest, ListBucketsRequest,
};
use serde_json::json;

use crate::api::{Access, Api};
use crate::context::Choice;
use crate::failure::Failure;
use crate::output::{Format, moment, show, table};

/// Buckets of one page that is asked for.
const PAGE: u32 = 1000;

/// What is done, and where.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    access: Access,
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

/// Runs a command.
pub async fn run(args: Args, choice: &Choice, format: Format) -> Result<()> {
    let mut client = BucketsClient::new(args.access.open(choice).await?);
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

/// All pages.
async fn list(
    client: &mut BucketsClient<Api>,
    owner: String,
    all_owners: bool,
) -> Result<Vec<Bucket>> {
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

fn at(bucket: &Bucket) -> String {
    moment(bucket.created_unix_ms)
}
