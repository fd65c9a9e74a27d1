//! `ultractl volume import` and `export`: disk images to volumes and back, over an NBD attachment that ends with
//! the command.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use bytesize::ByteSize;
use clap::ValueEnum;
use coronafs_api::v1;
use indicatif::{ProgressBar, ProgressStyle};
use nbd_client::image::{self, Format as ImageFormat, From, Phase, Progress, Summary, To};
use nbd_client::{Address, Client as Nbd, Options, Target};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::{Client, size};
use crate::failure::{Exit, Failure};
use crate::output::{Format, show};

const BAR: &str = "{msg} [{bar:24}] {bytes}/{total_bytes} {bytes_per_sec} ({eta})";
/// Volumes are a multiple of this.
const UNIT: u64 = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    Raw,
    Qcow2,
}

impl std::convert::From<FormatArg> for ImageFormat {
    fn from(format: FormatArg) -> ImageFormat {
        match format {
            FormatArg::Raw => ImageFormat::Raw,
            FormatArg::Qcow2 => ImageFormat::Qcow2,
        }
    }
}

/// What is imported.
#[derive(Debug, clap::Args)]
pub struct Import {
    /// The image; `-` is standard input, as a raw image.
    file: PathBuf,
    /// The new volume's name.
    name: String,
    /// The image's format [default: as its first bytes say].
    #[arg(long, value_enum)]
    image_format: Option<FormatArg>,
    /// The volume's size, if it is to be larger than the image's disk; needed for standard input.
    #[arg(long)]
    size: Option<ByteSize>,
    /// The file that a qcow2 image is based on. What the image itself names is not opened.
    #[arg(long, value_name = "FILE")]
    backing: Option<PathBuf>,
    /// Encrypts the volume's blocks on disk, by a key of its own.
    #[arg(long)]
    encrypted: bool,
    /// Does not read the volume back.
    #[arg(long)]
    no_verify: bool,
}

/// What is exported.
#[derive(Debug, clap::Args)]
pub struct Export {
    /// The volume's name.
    name: String,
    /// The file, which appears when it is whole; `-` is standard output, as a raw image.
    file: PathBuf,
    /// The image's format.
    #[arg(long, value_enum, default_value_t = FormatArg::Raw)]
    image_format: FormatArg,
    /// This snapshot of it, by way of a clone that ends with the command; needed while the volume is attached
    /// for writing.
    #[arg(long)]
    snapshot: Option<String>,
    /// Replaces a file that is there.
    #[arg(long)]
    overwrite: bool,
    /// Does not read the file back.
    #[arg(long)]
    no_verify: bool,
}

/// Makes a volume, and fills it.
pub async fn import(
    client: &mut Client,
    owner: String,
    import: Import,
    format: Format,
) -> Result<()> {
    let is_stream = import.file.as_os_str() == "-";
    let bytes = match (import.size, is_stream) {
        (Some(size), _) => size.as_u64(),
        (None, false) => {
            let info = image::inspect(&import.file)?;
            info.bytes.next_multiple_of(UNIT)
        }
        (None, true) => {
            let what = "the size of what comes from standard input is not known";
            return Err(Failure::usage(what).next("give it by --size").into());
        }
    };
    let request = v1::CreateVolumeRequest {
        name: import.name.clone(),
        owner: owner.clone(),
        bytes,
        encrypted: import.encrypted,
        ..v1::CreateVolumeRequest::default()
    };
    client.create_volume(request).await.map_err(Failure::from)?;
    let job = image::Import {
        from: if is_stream {
            From::Stdin
        } else {
            From::File(import.file)
        },
        format: import.image_format.map(Into::into),
        backing: import.backing,
        target_is_zero: true,
        verify: !import.no_verify,
    };
    let name = import.name;
    let done = with_export(client, &owner, &name, "exclusive", async |nbd| {
        let bar = bar(format, bytes);
        let done = image::import(nbd, &job, &mut |progress| tell(&bar, progress)).await;
        bar.finish_and_clear();
        Ok(done?)
    })
    .await;
    if done.is_err() {
        // Half of an image is nobody's volume.
        let request = v1::DeleteVolumeRequest {
            name: name.clone(),
            owner,
        };
        if let Err(error) = client.delete_volume(request).await {
            eprintln!("volume {name} is left, without all of the image: {error}");
        }
    }
    told(format, "imported", &name, &done?)
}

/// Writes a volume into a file.
pub async fn export(
    client: &mut Client,
    owner: String,
    export: Export,
    format: Format,
) -> Result<()> {
    let to_stdout = export.file.as_os_str() == "-";
    let job = image::Export {
        to: if to_stdout {
            To::Stdout
        } else {
            To::File {
                path: export.file,
                overwrite: export.overwrite,
            }
        },
        format: export.image_format.into(),
        verify: !export.no_verify && !to_stdout,
    };
    let name = match &export.snapshot {
        Some(snapshot) => clone_of(client, &owner, &export.name, snapshot).await?,
        None => check_quiet(client, &owner, &export.name).await?,
    };
    let done = with_export(client, &owner, &name, "read-only", async |nbd| {
        let bar = bar(format, nbd.bytes());
        let done = image::export(nbd, &job, &mut |progress| tell(&bar, progress)).await;
        bar.finish_and_clear();
        Ok(done?)
    })
    .await;
    if export.snapshot.is_some() {
        let request = v1::DeleteVolumeRequest { name, owner };
        if let Err(error) = client.delete_volume(request.clone()).await {
            eprintln!("the clone {} is left: {error}", request.name);
        }
    }
    let done = done?;
    if to_stdout {
        return Ok(());
    }
    told(format, "exported", &export.name, &done)
}

/// What is written while it is copied would be a mix of old and new.
async fn check_quiet(client: &mut Client, owner: &str, name: &str) -> Result<String> {
    let request = v1::GetVolumeRequest {
        name: name.to_owned(),
        owner: owner.to_owned(),
    };
    let volume = client.get_volume(request).await.map_err(Failure::from)?;
    let attachments = volume.into_inner().attachments;
    if attachments.iter().any(|one| one.access != "read-only") {
        let what = format!("volume {name} is attached for writing");
        let next = "export one of its snapshots, by --snapshot";
        return Err(Failure::new(Exit::Refused, "attached", what)
            .next(next)
            .into());
    }
    Ok(name.to_owned())
}

/// The name of a volume that holds what a snapshot holds.
async fn clone_of(
    client: &mut Client,
    owner: &str,
    volume: &str,
    snapshot: &str,
) -> Result<String> {
    let name = format!("export-{}-{snapshot}", std::process::id());
    let request = v1::CreateVolumeRequest {
        name: name.chars().take(128).collect(),
        owner: owner.to_owned(),
        from_volume: volume.to_owned(),
        from_snapshot: snapshot.to_owned(),
        ..v1::CreateVolumeRequest::default()
    };
    let made = client.create_volume(request).await.map_err(Failure::from)?;
    Ok(made.into_inner().name)
}

/// Attaches a volume by NBD for as long as the work goes on.
async fn with_export(
    client: &mut Client,
    owner: &str,
    name: &str,
    access: &str,
    work: impl AsyncFnOnce(&Nbd) -> Result<Summary>,
) -> Result<Summary> {
    let request = v1::AttachVolumeRequest {
        volume: name.to_owned(),
        owner: owner.to_owned(),
        access: access.to_owned(),
        kind: "nbd".to_owned(),
        ..v1::AttachVolumeRequest::default()
    };
    let made = client.attach_volume(request).await;
    let made = made.map_err(Failure::from)?.into_inner();
    let done = async {
        let target = Target::new(Address::Unix(made.socket.clone().into()), "");
        let connected = Nbd::connect(&target, Options::default()).await;
        let nbd = connected.map_err(|error| {
            let what = format!("{}: {error}", made.socket);
            let next = "run this on the node's own machine, as a user who may enter its directory of sockets";
            Failure::new(Exit::Unavailable, "unavailable", what).next(next)
        })?;
        // Whoever is told to end detaches first.
        let done = tokio::select! {
            done = work(&nbd) => done,
            interrupted = interruption()? => Err(interrupted),
        };
        nbd.close().await;
        done
    }
    .await;
    let request = v1::DetachVolumeRequest {
        volume: name.to_owned(),
        owner: owner.to_owned(),
        id: made.id,
    };
    // What was written is durable when this has returned.
    let detached = client.detach_volume(request).await;
    let done = done?;
    detached.map_err(Failure::from)?;
    Ok(done)
}

/// Ends when the process is told to.
fn interruption() -> Result<impl Future<Output = anyhow::Error>> {
    let unheard = "cannot listen for signals";
    let mut terminate = signal(SignalKind::terminate()).context(unheard)?;
    let mut interrupt = signal(SignalKind::interrupt()).context(unheard)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Failure::new(Exit::Failed, "interrupted", "told to end").into()
    })
}

/// How far bytes are, where a person looks on.
pub(super) fn bar(format: Format, bytes: u64) -> ProgressBar {
    if format.is_structured() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(BAR);
    // It draws where a person looks on, and nowhere else.
    ProgressBar::new(bytes).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn tell(bar: &ProgressBar, progress: Progress) {
    bar.set_message(match progress.phase {
        Phase::Copy => "copying",
        Phase::Verify => "verifying",
    });
    if let Some(total) = progress.total {
        bar.set_length(total);
    }
    bar.set_position(progress.done);
}

fn told(format: Format, what: &str, name: &str, done: &Summary) -> Result<()> {
    let answer = json!({
        "volume": name,
        "bytes": done.bytes,
        "data_bytes": done.data_bytes,
        "content_digest": done.digest,
        "verified": done.verified,
    });
    show(format, &answer, |_| {
        let verified = if done.verified {
            ", read back and equal"
        } else {
            ""
        };
        let (bytes, data) = (size(done.bytes), size(done.data_bytes));
        format!("{what} volume {name}: {bytes}, {data} of data{verified}\n")
    })
}
