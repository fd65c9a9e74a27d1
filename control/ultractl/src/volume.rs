//! `ultractl volume`: CoronaFS's volumes, over a node's API.

mod attachment;
mod create;
mod flatten;
mod image;
mod remote;
mod snapshot;

use std::fmt::Write as _;

use anyhow::Result;
use bytesize::ByteSize;
use clap::Subcommand;
use coronafs_api::v1;
use coronafs_api::v1::volumes_client::VolumesClient;
use serde_json::json;

use crate::api::{Access, Api};
use crate::context::Choice;
use crate::failure::{Exit, Failure};
use crate::output::{Format, moment, show, table};

/// Volumes and snapshots of one page that is asked for.
const PAGE: u32 = 1000;

type Client = VolumesClient<Api>;

/// What is done, where, and whose volumes.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    access: Access,
    /// The id of the user whose volumes are meant; another's only for root [default: the token's user].
    #[arg(long, global = true, value_name = "USER")]
    owner: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes a volume: empty, or one that holds an image, at once.
    Create(create::Create),
    /// Makes a volume that holds what a snapshot holds, at once, whatever its size.
    Clone {
        /// The volume whose snapshot it is.
        volume: String,
        /// The snapshot.
        snapshot: String,
        /// The new volume's name.
        name: String,
        /// Its size, if it is to be larger than the snapshot.
        #[arg(long)]
        size: Option<ByteSize>,
        #[command(flatten)]
        limits: Limits,
    },
    /// Lists volumes by name.
    List {
        /// Everybody's.
        #[arg(long, conflicts_with = "owner")]
        all: bool,
    },
    /// Shows a volume with its attachments.
    Stat {
        /// Its name.
        name: String,
    },
    /// Fills a volume from its image, and waits until it needs that no more.
    Flatten {
        /// Its name.
        name: String,
    },
    /// Compares a volume's blocks, and its snapshots', with their checksums.
    Scrub {
        /// Its name.
        name: String,
        /// Bytes a second, as 100MiB [default: as fast as others leave].
        #[arg(long)]
        bandwidth: Option<ByteSize>,
    },
    /// Gives a volume another name.
    Rename {
        /// Its name.
        name: String,
        /// The name that it is to have.
        new_name: String,
    },
    /// Gives a volume another size, also while a guest uses it; never cuts off data.
    Resize {
        /// Its name.
        name: String,
        /// The size that it is to have, as 20GiB.
        size: ByteSize,
    },
    /// Limits what a volume may do in a second; without an option there is no limit any more.
    Qos {
        /// Its name.
        name: String,
        #[command(flatten)]
        limits: Limits,
    },
    /// Removes a volume that is not attached and has no snapshots.
    Delete {
        /// Its name.
        name: String,
    },
    /// Snapshots of a volume: create, list, delete.
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Volumes of other nodes that this one serves to its guests: attach, list, detach.
    #[command(subcommand)]
    Remote(remote::Command),
    /// Makes a detached volume hold what one of its snapshots holds.
    Rollback {
        /// Its name.
        name: String,
        /// The snapshot.
        snapshot: String,
    },
    /// Lists the ranges in which a snapshot differs from an older one.
    Diff {
        /// The volume's name.
        volume: String,
        /// The newer snapshot.
        snapshot: String,
        /// The older snapshot; without it, everything that the newer one holds.
        #[arg(long)]
        since: Option<String>,
    },
    /// Makes a volume of a disk image, raw or qcow2; on the node's own machine.
    Import(image::Import),
    /// Writes a volume as a disk image, raw or qcow2; on the node's own machine.
    Export(image::Export),
    /// Serves a volume as a disk of a virtual machine, and prints how QEMU gets it.
    Attach(attachment::Attach),
    /// Ends an attachment, when what it wrote is durable.
    Detach {
        /// The volume's name.
        name: String,
        /// Which of its attachments, if it has several.
        #[arg(long)]
        id: Option<u64>,
    },
}

/// What a volume may do in a second.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Limits {
    /// Operations a second.
    #[arg(long, default_value_t = 0)]
    iops: u64,
    /// Bytes a second, as 100MiB, read and written together.
    #[arg(long)]
    bandwidth: Option<ByteSize>,
    /// How much of it a volume at rest may use at once, in milliseconds, up to 60000.
    #[arg(long, default_value_t = 0)]
    burst_ms: u32,
    /// Its part of a disk that several volumes keep busy, beside theirs, up to 10000 [default: 100].
    #[arg(long)]
    shares: Option<u32>,
}

impl From<Limits> for v1::Limits {
    fn from(limits: Limits) -> v1::Limits {
        v1::Limits {
            ops_per_s: limits.iops,
            bytes_per_s: limits.bandwidth.map_or(0, |bandwidth| bandwidth.as_u64()),
            burst_ms: limits.burst_ms,
            shares: limits.shares.unwrap_or(0),
        }
    }
}

/// Runs a command.
pub async fn run(args: Args, choice: &Choice, format: Format) -> Result<()> {
    let mut client = VolumesClient::new(args.access.open(choice).await?);
    let owner = args.owner.unwrap_or_default();
    match args.command {
        Command::Snapshot(command) => snapshot::run(&mut client, owner, command, format).await,
        Command::Remote(command) => remote::run(&mut client, command, format).await,
        Command::Import(import) => image::import(&mut client, owner, import, format).await,
        Command::Export(export) => image::export(&mut client, owner, export, format).await,
        Command::Attach(attach) => attachment::attach(&mut client, owner, attach, format).await,
        Command::Flatten { name } => flatten::run(&mut client, owner, name, format).await,
        Command::Scrub { name, bandwidth } => {
            let request = v1::ScrubVolumeRequest {
                name,
                owner,
                bytes_per_s: bandwidth.map_or(0, |bandwidth| bandwidth.as_u64()),
            };
            scrub(&mut client, request, format).await
        }
        Command::Detach { name, id } => {
            attachment::detach(&mut client, owner, name, id, format).await
        }
        Command::Diff {
            volume,
            snapshot,
            since,
        } => {
            let request = v1::ListChangesRequest {
                volume,
                owner,
                snapshot,
                since: since.unwrap_or_default(),
                from: 0,
            };
            snapshot::diff(&mut client, request, format).await
        }
        Command::List { all } => {
            let volumes = list(&mut client, owner, all).await?;
            show(format, &volumes, |volumes| {
                let rows: Vec<_> = volumes.iter().map(row).collect();
                let heads = ["NAME", "OWNER", "SIZE", "USED", "SNAPSHOTS", "ATTACHED"];
                table(&heads, &rows)
            })
        }
        Command::Delete { name } => {
            let request = v1::DeleteVolumeRequest {
                name: name.clone(),
                owner,
            };
            let deleted = client.delete_volume(request).await;
            deleted.map_err(Failure::from)?;
            let removed = json!({ "removed": name });
            show(format, &removed, |_| format!("removed volume {name}\n"))
        }
        other => change(&mut client, owner, other, format).await,
    }
}

/// The commands that answer with the volume.
async fn change(
    client: &mut Client,
    owner: String,
    command: Command,
    format: Format,
) -> Result<()> {
    let answer = match command {
        Command::Create(new) => client.create_volume(new.request(owner)).await,
        Command::Clone {
            volume,
            snapshot,
            name,
            size,
            limits,
        } => {
            let request = v1::CreateVolumeRequest {
                name,
                owner,
                bytes: size.map_or(0, |size| size.as_u64()),
                from_volume: volume,
                from_snapshot: snapshot,
                limits: Some(limits.into()),
                ..v1::CreateVolumeRequest::default()
            };
            client.create_volume(request).await
        }
        Command::Stat { name } => {
            client
                .get_volume(v1::GetVolumeRequest { name, owner })
                .await
        }
        Command::Rename { name, new_name } => {
            let request = v1::RenameVolumeRequest {
                name,
                owner,
                new_name,
            };
            client.rename_volume(request).await
        }
        Command::Resize { name, size } => {
            let request = v1::ResizeVolumeRequest {
                name,
                owner,
                bytes: size.as_u64(),
            };
            client.resize_volume(request).await
        }
        Command::Qos { name, limits } => {
            let request = v1::SetVolumeLimitsRequest {
                name,
                owner,
                limits: Some(limits.into()),
            };
            client.set_volume_limits(request).await
        }
        Command::Rollback { name, snapshot } => {
            let request = v1::RollbackVolumeRequest {
                name,
                owner,
                snapshot,
            };
            client.rollback_volume(request).await
        }
        _ => unreachable!("`run` has done the others"),
    };
    let volume = answer.map_err(Failure::from)?.into_inner();
    show(format, &volume, described)
}

/// Damaged blocks are told, and are a failure.
async fn scrub(client: &mut Client, request: v1::ScrubVolumeRequest, format: Format) -> Result<()> {
    let name = request.name.clone();
    let scrubbed = client.scrub_volume(request).await.map_err(Failure::from)?;
    let scrubbed = scrubbed.into_inner();
    show(format, &scrubbed, |scrubbed| {
        let bytes = size(scrubbed.bytes);
        let mut text = format!("{bytes} compared, {} blocks damaged\n", scrubbed.errors);
        for block in &scrubbed.damaged {
            let _ = write!(text, "  the block at byte {}", block.offset);
            if !block.snapshot.is_empty() {
                let _ = write!(text, " of snapshot {}", block.snapshot);
            }
            text.push('\n');
        }
        text
    })?;
    if scrubbed.errors == 0 {
        return Ok(());
    }
    let what = format!("volume {name} has damaged blocks: {}", scrubbed.errors);
    let next = "write them anew from a backup, and look at the disk";
    Err(Failure::new(Exit::Failed, "damaged", what)
        .next(next)
        .into())
}

/// All pages.
async fn list(client: &mut Client, owner: String, all_owners: bool) -> Result<Vec<v1::Volume>> {
    let mut volumes = Vec::new();
    let mut after = String::new();
    loop {
        let request = v1::ListVolumesRequest {
            owner: owner.clone(),
            all_owners,
            limit: PAGE,
            after,
        };
        let page = client.list_volumes(request).await.map_err(Failure::from)?;
        let page = page.into_inner();
        volumes.extend(page.volumes);
        if page.next.is_empty() {
            return Ok(volumes);
        }
        after = page.next;
    }
}

/// A size for people.
fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

fn row(volume: &v1::Volume) -> Vec<String> {
    vec![
        volume.name.clone(),
        volume.owner.clone(),
        size(volume.bytes),
        size(volume.mapped_bytes),
        volume.snapshots.to_string(),
        volume.attachments.len().to_string(),
    ]
}

fn described(volume: &v1::Volume) -> String {
    let mut text = format!(
        "volume {} of {}, made {}\n  id         {}\n  size       {} ({} bytes), {} used\n  snapshots  {}\n",
        volume.name,
        volume.owner,
        moment(volume.created_unix_ms),
        volume.id,
        size(volume.bytes),
        volume.bytes,
        size(volume.mapped_bytes),
        volume.snapshots,
    );
    if volume.checksums {
        text += "  checksums  CRC32C of each block\n";
    }
    if volume.encrypted {
        text += "  encrypted  AES-256-XTS\n";
    }
    // Writing to a String cannot fail.
    if let Some(image) = &volume.image {
        let (filled, total) = (size(image.filled_bytes), size(image.total_bytes));
        let verified = if image.verified { ", verified" } else { "" };
        let (identity, phase) = (&image.identity, &image.phase);
        let _ = writeln!(
            text,
            "  image      {identity}: {phase}, {filled} of {total}{verified}"
        );
        if !image.error.is_empty() {
            let _ = writeln!(text, "  image says {}", image.error);
        }
    }
    if !volume.origin.is_empty() {
        let _ = writeln!(text, "  made of    snapshot {}", volume.origin);
    }
    if let Some(limits) = volume.limits.filter(|l| *l != v1::Limits::default()) {
        let or_none = |value: u64, shown: String| match value {
            0 => "any".to_owned(),
            _ => shown,
        };
        let ops = or_none(limits.ops_per_s, limits.ops_per_s.to_string());
        let bytes = or_none(limits.bytes_per_s, size(limits.bytes_per_s));
        let burst = limits.burst_ms;
        let _ = writeln!(
            text,
            "  limits     {ops} operations/s, {bytes}/s, burst {burst} ms"
        );
        if limits.shares > 0 {
            let _ = writeln!(text, "  shares     {}", limits.shares);
        }
    }
    for attachment in &volume.attachments {
        let _ = writeln!(text, "  attached   {}", attachment::described(attachment));
    }
    text
}
