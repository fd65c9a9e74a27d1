//! `ultractl volume snapshot` and `diff`.

use anyhow::Result;
use clap::Subcommand;
use coronafs_api::v1;
use serde_json::json;

use super::{Client, PAGE, size};
use crate::failure::Failure;
use crate::output::{Format, moment, show, table};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Takes a snapshot, also while a guest writes: it holds what had been written when it was asked for.
    Create {
        /// The volume's name.
        volume: String,
        /// The snapshot's name.
        name: String,
    },
    /// Lists a volume's snapshots, oldest first.
    List {
        /// The volume's name.
        volume: String,
    },
    /// Removes a snapshot; what others share with it stays.
    Delete {
        /// The volume's name.
        volume: String,
        /// The snapshot's name.
        name: String,
    },
}

/// Runs a command.
pub async fn run(
    client: &mut Client,
    owner: String,
    command: Command,
    format: Format,
) -> Result<()> {
    match command {
        Command::Create { volume, name } => {
            let request = v1::CreateSnapshotRequest {
                volume,
                owner,
                name,
            };
            let taken = client.create_snapshot(request).await;
            let taken = taken.map_err(Failure::from)?.into_inner();
            show(format, &taken, |taken| {
                let (name, volume) = (&taken.name, &taken.volume);
                format!("took snapshot {name} of volume {volume}\n")
            })
        }
        Command::List { volume } => {
            let snapshots = list(client, owner, volume).await?;
            show(format, &snapshots, |snapshots| {
                let rows: Vec<_> = snapshots.iter().map(row).collect();
                table(&["NAME", "SIZE", "USED", "TAKEN"], &rows)
            })
        }
        Command::Delete { volume, name } => {
            let request = v1::DeleteSnapshotRequest {
                volume: volume.clone(),
                owner,
                name: name.clone(),
            };
            let deleted = client.delete_snapshot(request).await;
            deleted.map_err(Failure::from)?;
            let removed = json!({ "removed": name, "volume": volume });
            show(format, &removed, |_| {
                format!("removed snapshot {name} of volume {volume}\n")
            })
        }
    }
}

fn row(snapshot: &v1::Snapshot) -> Vec<String> {
    vec![
        snapshot.name.clone(),
        size(snapshot.bytes),
        size(snapshot.mapped_bytes),
        moment(snapshot.created_unix_ms),
    ]
}

/// All pages.
async fn list(client: &mut Client, owner: String, volume: String) -> Result<Vec<v1::Snapshot>> {
    let mut snapshots = Vec::new();
    let mut after = String::new();
    loop {
        let request = v1::ListSnapshotsRequest {
            volume: volume.clone(),
            owner: owner.clone(),
            limit: PAGE,
            after,
        };
        let page = client.list_snapshots(request).await;
        let page = page.map_err(Failure::from)?.into_inner();
        snapshots.extend(page.snapshots);
        if page.next.is_empty() {
            return Ok(snapshots);
        }
        after = page.next;
    }
}

/// All pages of changed ranges.
pub async fn diff(
    client: &mut Client,
    mut request: v1::ListChangesRequest,
    format: Format,
) -> Result<()> {
    let mut changes = Vec::new();
    loop {
        let page = client.list_changes(request.clone()).await;
        let page = page.map_err(Failure::from)?.into_inner();
        changes.extend(page.changes);
        if page.next == 0 {
            break;
        }
        request.from = page.next;
    }
    show(format, &changes, |changes| {
        let row = |change: &v1::Change| {
            let now = if change.zero { "zeros" } else { "data" };
            vec![
                change.offset.to_string(),
                change.bytes.to_string(),
                now.to_owned(),
            ]
        };
        let rows: Vec<_> = changes.iter().map(row).collect();
        table(&["OFFSET", "BYTES", "NOW"], &rows)
    })
}
