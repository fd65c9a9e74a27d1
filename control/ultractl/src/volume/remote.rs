//! `ultractl volume remote`: volumes of other nodes, as root administers them.

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use coronafs_api::v1;
use serde_json::json;

use super::attachment::{qemu_flags, qemu_text};
use super::{Client, size};
use crate::failure::Failure;
use crate::output::{Format, show, table};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves a volume that another node exports by NBD as a disk of a virtual machine on this node, and prints
    /// how QEMU gets it.
    Attach(Attach),
    /// Lists them by name.
    List,
    /// Ends one, when what it wrote is durable.
    Detach {
        /// Its name here.
        name: String,
    },
}

/// How a volume of another node is attached.
#[derive(Debug, clap::Args)]
pub struct Attach {
    /// What it is to be called here.
    name: String,
    /// Where the other node serves it: HOST:PORT, or unix:PATH.
    #[arg(value_name = "ENDPOINT")]
    served_at: String,
    /// The name of the NBD export; attachments of volumes have the empty one.
    #[arg(long, default_value = "", hide_default_value = true)]
    export: String,
    /// Speaks TLS with a loopback address too; with others it is always spoken.
    #[arg(long)]
    tls: bool,
    /// What the guest may do.
    #[arg(long, value_enum, default_value_t = AccessArg::Shared)]
    access: AccessArg,
    /// Rings offered to the guest, 1 to 16; as many as it has CPUs is right.
    #[arg(long, default_value_t = 1)]
    queues: u32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AccessArg {
    /// Writes, beside others that have attached it so, as the two sides of a migration.
    Shared,
    /// Only reads.
    ReadOnly,
}

/// Runs a command.
pub async fn run(client: &mut Client, command: Command, format: Format) -> Result<()> {
    match command {
        Command::Attach(attach) => self::attach(client, attach, format).await,
        Command::List => {
            let request = v1::ListRemoteVolumesRequest {};
            let listed = client.list_remote_volumes(request).await;
            let volumes = listed.map_err(Failure::from)?.into_inner().volumes;
            show(format, &volumes, |volumes| {
                let rows: Vec<_> = volumes.iter().map(row).collect();
                table(
                    &["NAME", "ENDPOINT", "SIZE", "ACCESS", "STATE", "SOCKET"],
                    &rows,
                )
            })
        }
        Command::Detach { name } => {
            let request = v1::DetachRemoteVolumeRequest { name: name.clone() };
            let detached = client.detach_remote_volume(request).await;
            detached.map_err(Failure::from)?;
            show(format, &json!({ "detached": name }), |_| {
                format!("detached remote volume {name}\n")
            })
        }
    }
}

async fn attach(client: &mut Client, attach: Attach, format: Format) -> Result<()> {
    let request = v1::AttachRemoteVolumeRequest {
        name: attach.name,
        endpoint: attach.served_at,
        export: attach.export,
        tls: attach.tls,
        queues: attach.queues,
        access: match attach.access {
            AccessArg::Shared => "shared",
            AccessArg::ReadOnly => "read-only",
        }
        .to_owned(),
    };
    let made = client.attach_remote_volume(request).await;
    let made = made.map_err(Failure::from)?.into_inner();
    let flags = qemu_flags(&made.socket, made.queues);
    show(format, &json!({ "remote": made, "qemu": flags }), |_| {
        let (name, endpoint, socket) = (&made.name, &made.endpoint, &made.socket);
        let how = qemu_text(&flags);
        format!("remote volume {name}, of {endpoint}, is served at {socket}\n{how}")
    })
}

fn row(volume: &v1::RemoteVolume) -> Vec<String> {
    let state = match volume.why.as_str() {
        "" => volume.state.clone(),
        why => format!("{}: {why}", volume.state),
    };
    vec![
        volume.name.clone(),
        volume.endpoint.clone(),
        size(volume.bytes),
        volume.access.clone(),
        state,
        volume.socket.clone(),
    ]
}
