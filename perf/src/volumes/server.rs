//! `perf volume-server`: a backend in a process of its own, for `perf volumes` to measure.
//!
//! One shard, one device, one socket. A volume is filled before its socket is there, and every block of
//! it begins with its own number, so that whoever reads can tell that the right one came.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use coronafs::{Access, Attach, Attachment, MasterKey, NewVolume, Partition, VolumeConfig};
use engine::{Engine, EngineConfig, GuestIov, GuestList, GuestMem, SchedGroup, ShardId};
use shards::block::BlockDevice;
use shards::placement::PartitionId;
use vhost_blk::devices::NullDevice;
use vhost_blk::{Export, ExportConfig, Polling};

use super::front::{BLOCK, stamp};

/// Bytes that are written at once to fill a volume.
const PIECE: usize = 1 << 20;

/// Options of `perf volume-server`.
#[derive(Args)]
pub struct ServerArgs {
    /// The socket to listen at.
    #[arg(long)]
    socket: PathBuf,
    /// Size of the device.
    #[arg(long)]
    bytes: u64,
    /// The partition's directory; without it the device is the null device.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Snapshots that are taken before, with a write between each two.
    #[arg(long, default_value_t = 0)]
    snapshots: u64,
    /// Blocks are encrypted on disk, by a key of the volume's own.
    #[arg(long)]
    encrypted: bool,
    /// Rings are not polled.
    #[arg(long)]
    sleeps: bool,
}

/// Serves until it is killed.
pub fn run(args: ServerArgs) -> Result<()> {
    let engine = Engine::start(EngineConfig::unpinned(1)).context("start an engine")?;
    let served = engine.handle().call_blocking(ShardId(0), move |_| {
        Box::pin(async move { export(args).await })
    });
    served.context("reach the shard")??;
    loop {
        std::thread::park();
    }
}

async fn export(args: ServerArgs) -> Result<()> {
    let mut config = ExportConfig::listen(&args.socket, "bench");
    if args.sleeps {
        config.polling = Polling {
            window_max: Duration::ZERO,
            ..Polling::default()
        };
    }
    let export = match &args.dir {
        None => Export::start(Rc::new(NullDevice::new(args.bytes)), config)?,
        Some(dir) => {
            let volumes = VolumeConfig {
                master_key: args.encrypted.then(|| MasterKey::new([7; 32])),
                ..VolumeConfig::default()
            };
            let store = Partition::open(dir, PartitionId(0), &volumes).await?;
            let device = filled(&store, &args).await?;
            Export::start(Rc::new(device), config)?
        }
    };
    let held = async move {
        let _export = export;
        std::future::pending::<()>().await;
    };
    engine::spawn_local(SchedGroup::FOREGROUND, held).detach();
    Ok(())
}

/// A volume in which every block has data, and that many snapshots.
async fn filled(store: &Partition, args: &ServerArgs) -> Result<Attachment> {
    let (bytes, snapshots) = (args.bytes, args.snapshots);
    let new = NewVolume {
        owner: "bench".into(),
        name: "volume".into(),
        bytes,
        encrypted: args.encrypted,
        ..NewVolume::default()
    };
    let volume = store.create(new).await?.id;
    let writer = Attach {
        access: Access::Exclusive,
        take_over: false,
    };
    let device = store.attach(volume, writer).await?;
    let mem = GuestMem::anonymous(PIECE)?;
    for at in (0..bytes).step_by(PIECE) {
        write(&device, &mem, at, PIECE).await?;
    }
    device.flush().await?;
    for number in 0..snapshots {
        store.snapshot(volume, format!("s{number}")).await?;
        let block = engine::random() % (bytes / BLOCK as u64);
        write(&device, &mem, block * BLOCK as u64, BLOCK).await?;
    }
    device.flush().await?;
    Ok(device)
}

async fn write(device: &Attachment, mem: &GuestMem, at: u64, len: usize) -> Result<()> {
    for offset in (0..len).step_by(BLOCK) {
        mem.copy_in(offset as u64, &stamp(at + offset as u64))?;
    }
    let mut list = GuestList::new();
    let len = len as u32;
    list.push(mem, GuestIov { offset: 0, len })?;
    Ok(device.write(at, list, false).await?)
}
