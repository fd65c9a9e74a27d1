//! `ultractl lb`: FiberLB's load balancers, over a node's API.

mod document;
mod shown;

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use fiberlb_api::v1;
use fiberlb_api::v1::load_balancers_client::LoadBalancersClient;
use serde_json::json;

use crate::api::{Access, Api};
use crate::context::Choice;
use crate::failure::Failure;
use crate::output::{Format, show, table};

/// Load balancers of one page that is asked for.
const PAGE: u32 = 1000;

type Client = LoadBalancersClient<Api>;

/// What is done, where, and whose load balancers.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    access: Access,
    /// The id of the user whose load balancers are meant; another's only for root [default: the token's user].
    #[arg(long, global = true, value_name = "USER")]
    owner: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes the load balancers of a set be as a document (YAML or JSON) says, and prints what that changes.
    Apply {
        /// The document; `-` is the standard input.
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Only says what it would change.
        #[arg(long)]
        dry_run: bool,
    },
    /// Lists load balancers by name.
    List {
        /// Everybody's.
        #[arg(long, conflicts_with = "owner")]
        all: bool,
    },
    /// Shows what runs: counters, health, open flows.
    Status {
        /// One load balancer's.
        name: Option<String>,
        /// Everybody's.
        #[arg(long, conflicts_with_all = ["owner", "name"])]
        all: bool,
    },
    /// Sends no new flows to a backend, and prints how many it still has.
    Drain {
        /// The load balancer.
        name: String,
        /// The backend, or POOL/NAME.
        backend: String,
        /// After so many seconds its flows are cut off [default: never].
        #[arg(long, value_name = "SECONDS")]
        deadline: Option<u32>,
    },
    /// Takes a drain back.
    Restore {
        /// The load balancer.
        name: String,
        /// The backend, or POOL/NAME.
        backend: String,
    },
    /// Says where a packet goes, and why.
    Explain {
        /// Its source, as 198.51.100.7:40000.
        src: String,
        /// Its destination, as 192.0.2.1:80.
        dst: String,
        /// Its protocol: tcp or udp.
        #[arg(long, default_value = "tcp")]
        protocol: String,
    },
    /// Removes a load balancer.
    Delete {
        /// Its name.
        name: String,
    },
}

/// Runs a command.
pub async fn run(args: Args, choice: &Choice, format: Format) -> Result<()> {
    // A document that cannot be read needs no server to say so.
    let document = match &args.command {
        Command::Apply { file, .. } => Some(document::Document::read(file)?),
        _ => None,
    };
    let mut client = LoadBalancersClient::new(args.access.open(choice).await?);
    let owner = args.owner.unwrap_or_default();
    match args.command {
        Command::Apply { dry_run, .. } => {
            let document = document.expect("it was read above");
            apply(&mut client, owner, &document, dry_run, format).await
        }
        Command::List { all } => {
            let balancers = list(&mut client, owner, all).await?;
            show(format, &balancers, |balancers| {
                let rows: Vec<_> = balancers.iter().map(shown::row).collect();
                table(&["NAME", "OWNER", "SET", "LISTENERS", "BACKENDS"], &rows)
            })
        }
        Command::Status { name, all } => {
            let request = v1::GetStatusRequest {
                name: name.unwrap_or_default(),
                owner,
                all_owners: all,
            };
            let status = client.get_status(request).await.map_err(Failure::from)?;
            show(format, &status.into_inner(), shown::status)
        }
        Command::Drain {
            name,
            backend,
            deadline,
        } => {
            let request = v1::DrainBackendRequest {
                name,
                owner,
                backend,
                deadline_s: deadline.unwrap_or(0),
            };
            let drained = client.drain_backend(request).await.map_err(Failure::from)?;
            show(format, &drained.into_inner(), shown::backend)
        }
        Command::Restore { name, backend } => {
            let request = v1::RestoreBackendRequest {
                name,
                owner,
                backend,
            };
            let restored = client.restore_backend(request).await;
            let restored = restored.map_err(Failure::from)?;
            show(format, &restored.into_inner(), shown::backend)
        }
        other => explain_or_delete(&mut client, owner, other, format).await,
    }
}

async fn explain_or_delete(
    client: &mut Client,
    owner: String,
    command: Command,
    format: Format,
) -> Result<()> {
    match command {
        Command::Explain { src, dst, protocol } => {
            let request = v1::ExplainRequest { src, dst, protocol };
            let explained = client.explain(request).await.map_err(Failure::from)?;
            show(format, &explained.into_inner(), shown::explanation)
        }
        Command::Delete { name } => {
            let request = v1::DeleteLoadBalancerRequest {
                name: name.clone(),
                owner,
            };
            let deleted = client.delete_load_balancer(request).await;
            deleted.map_err(Failure::from)?;
            let removed = json!({ "removed": name });
            show(format, &removed, |_| {
                format!("removed load balancer {name}\n")
            })
        }
        _ => unreachable!("`run` has done the others"),
    }
}

async fn apply(
    client: &mut Client,
    owner: String,
    document: &document::Document,
    dry_run: bool,
    format: Format,
) -> Result<()> {
    let mut request = document.request.clone();
    if !owner.is_empty() {
        request.owner = owner;
    }
    request.dry_run = dry_run;
    let applied = client.apply(request).await;
    let applied = applied.map_err(|status| document.placed(Failure::from(status)))?;
    show(format, &applied.into_inner(), shown::applied)
}

/// All pages.
async fn list(
    client: &mut Client,
    owner: String,
    all_owners: bool,
) -> Result<Vec<v1::LoadBalancer>> {
    let mut balancers = Vec::new();
    let mut after = String::new();
    loop {
        let request = v1::ListLoadBalancersRequest {
            owner: owner.clone(),
            all_owners,
            limit: PAGE,
            after,
        };
        let page = client.list_load_balancers(request).await;
        let page = page.map_err(Failure::from)?.into_inner();
        balancers.extend(page.balancers);
        if page.next.is_empty() {
            return Ok(balancers);
        }
        after = page.next;
    }
}
