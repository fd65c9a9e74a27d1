//! `ultractl volume attach` and `detach`.

use anyhow::Result;
use clap::ValueEnum;
use coronafs_api::v1;
use serde_json::{Value, json};

use super::Client;
use crate::failure::{Exit, Failure};
use crate::output::{Format, show};

/// How a volume is attached.
#[derive(Debug, clap::Args)]
pub struct Attach {
    /// The volume's name.
    name: String,
    /// As a vhost-user-blk device at a unix socket of the node's, for a guest there; the default.
    #[arg(long)]
    vhost_user: bool,
    /// As an NBD export, for tools and other hosts, at a unix socket of the node's.
    #[arg(long, conflicts_with = "vhost_user")]
    nbd: bool,
    /// The NBD export at this address and port of the node's instead; port 0 is any free one.
    #[arg(long, requires = "nbd", value_name = "ADDR")]
    listen: Option<std::net::SocketAddr>,
    /// What the guest may do, and beside whom.
    #[arg(long, value_enum, default_value_t = AccessArg::Exclusive)]
    access: AccessArg,
    /// Ends attachments that stand in the way: what they had acknowledged is there, what comes later fails.
    #[arg(long)]
    take_over: bool,
    /// Rings offered to the guest, 1 to 16; as many as it has CPUs is right.
    #[arg(long, default_value_t = 1)]
    queues: u32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AccessArg {
    /// Writes, and nobody else does.
    Exclusive,
    /// Writes, beside others that said so too, as the two sides of a migration.
    Shared,
    /// Only reads, beside anybody.
    ReadOnly,
}

impl AccessArg {
    fn name(self) -> &'static str {
        match self {
            AccessArg::Exclusive => "exclusive",
            AccessArg::Shared => "shared",
            AccessArg::ReadOnly => "read-only",
        }
    }
}

/// Attaches, and says how QEMU gets the disk.
pub async fn attach(
    client: &mut Client,
    owner: String,
    attach: Attach,
    format: Format,
) -> Result<()> {
    let request = v1::AttachVolumeRequest {
        volume: attach.name,
        owner,
        access: attach.access.name().to_owned(),
        take_over: attach.take_over,
        queues: attach.queues,
        kind: if attach.nbd { "nbd" } else { "vhost-user" }.to_owned(),
        listen: attach
            .listen
            .map_or_else(String::new, |addr| addr.to_string()),
    };
    let made = client.attach_volume(request).await;
    let made = made.map_err(Failure::from)?.into_inner();
    if attach.nbd {
        return show(format, &json!({ "attachment": made }), |_| {
            let (volume, uri, id) = (&made.volume, &made.uri, made.id);
            format!(
                "volume {volume} is served at {uri} (attachment {id})\n\
                 as to: qemu-img info '{uri}', nbdcopy '{uri}' disk.raw\n"
            )
        });
    }
    let flags = qemu_flags(&made.socket, made.queues);
    let answer = json!({ "attachment": made, "qemu": flags });
    show(format, &answer, |_| {
        let (volume, socket, id) = (&made.volume, &made.socket, made.id);
        let how = qemu_text(&flags);
        format!("volume {volume} is served at {socket} (attachment {id})\n{how}")
    })
}

/// What QEMU wants for the disk; the memory's size is the guest's affair.
pub fn qemu_flags(socket: &str, queues: u32) -> Vec<String> {
    let socket = socket.replace(',', ",,");
    vec![
        "-object memory-backend-memfd,id=mem,size=1G,share=on".to_owned(),
        "-machine q35,memory-backend=mem -m 1G".to_owned(),
        format!("-chardev 'socket,id=vol0,path={socket},reconnect=1'"),
        format!("-device vhost-user-blk-pci,chardev=vol0,num-queues={queues}"),
    ]
}

/// The same for people.
pub fn qemu_text(flags: &[String]) -> String {
    let flags = flags.join(" \\\n  ");
    format!(
        "QEMU gets it by these options; the memory has to be the guest's whole and shared, its size that of \
         -m, and hugetlb=on makes large transfers cheaper where the host has huge pages:\n  {flags}\n"
    )
}

/// Ends the attachment of a number, or the only one.
pub async fn detach(
    client: &mut Client,
    owner: String,
    name: String,
    id: Option<u64>,
    format: Format,
) -> Result<()> {
    let id = match id {
        Some(id) => id,
        None => only_one(client, &owner, &name).await?,
    };
    let request = v1::DetachVolumeRequest {
        volume: name.clone(),
        owner,
        id,
    };
    client.detach_volume(request).await.map_err(Failure::from)?;
    let ended: Value = json!({ "volume": name, "detached": id });
    show(format, &ended, |_| {
        format!("ended attachment {id} of volume {name}\n")
    })
}

async fn only_one(client: &mut Client, owner: &str, name: &str) -> Result<u64> {
    let request = v1::GetVolumeRequest {
        name: name.to_owned(),
        owner: owner.to_owned(),
    };
    let volume = client.get_volume(request).await.map_err(Failure::from)?;
    let attachments = volume.into_inner().attachments;
    match attachments.as_slice() {
        [one] => Ok(one.id),
        [] => {
            let what = format!("volume {name} is not attached");
            Err(Failure::new(Exit::NotFound, "not-attached", what).into())
        }
        several => {
            let ids: Vec<String> = several.iter().map(|one| one.id.to_string()).collect();
            let what = format!("volume {name} has several attachments: {}", ids.join(", "));
            Err(Failure::usage(what).next("choose one by --id").into())
        }
    }
}

/// An attachment in a line.
pub fn described(attachment: &v1::Attachment) -> String {
    let state = if attachment.serving {
        String::new()
    } else {
        format!(", NOT SERVED: {}", attachment.why)
    };
    let place = match attachment.uri.as_str() {
        "" => format!("{}, {} rings", attachment.socket, attachment.queues),
        uri => uri.to_owned(),
    };
    let (id, access) = (attachment.id, &attachment.access);
    format!("{id} {access} at {place}{state}")
}
