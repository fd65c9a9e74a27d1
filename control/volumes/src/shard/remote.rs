//! Volumes of other nodes on a shard: devices that are NBD clients, exported to guests.

use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{join_all, select};
use nbd_export::{ConnectError, Known, LinkState, RemoteConfig, RemoteDevice, fresh_token};
use nbd_wire::session::Token;
use shards::block::BlockDevice as _;
use vhost_blk::{Export, ExportConfig};

use super::{VolumesShard, in_task};
use crate::metrics::{Counts, ExportMetrics, RemoteMetrics, Source, Vhost};

/// How long what is in progress may take when an attachment ends.
const END_MAX: Duration = Duration::from_secs(10);

/// Why a volume of another node is not served.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RemoteError {
    /// Nobody serves it now.
    #[error("{0}")]
    Absent(String),
    /// It is not what a guest that was at work had.
    #[error(
        "{0}: the guest must not go on; detach it here, restart the guest, and attach it again"
    )]
    Lost(String),
    /// It cannot be served here.
    #[error("{0}")]
    Export(String),
    /// What the guest wrote last may not be durable.
    #[error("what was written last is not known to be durable: {0}")]
    NotFlushed(String),
    /// The shard ends.
    #[error("the node is shutting down")]
    Gone,
}

/// What is to be served.
#[derive(Clone, Debug)]
pub struct WantedRemote {
    /// Which export. Its session is another one, unless it was served before.
    pub config: RemoteConfig,
    /// Rings offered.
    pub queues: u16,
    /// What it was before a restart.
    pub again: Option<RemoteBefore>,
}

/// What a remote volume was before a restart.
#[derive(Clone, Debug)]
pub struct RemoteBefore {
    /// The guest's socket.
    pub socket: PathBuf,
    /// In which life of the machine.
    pub boot: Token,
    /// What was known of the export.
    pub known: Known,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct MadeRemote {
    /// The guest's socket.
    pub socket: PathBuf,
    /// The device's session.
    pub session: Token,
    /// The life of the machine.
    pub boot: Token,
    /// What is known of the export.
    pub known: Known,
}

/// How a remote volume fares.
#[derive(Clone, Debug)]
pub struct RemoteShown {
    /// Its name.
    pub name: String,
    /// Its connection.
    pub state: LinkState,
    /// Its size.
    pub bytes: u64,
}

/// A remote volume that is served.
pub(super) struct ServedRemote {
    device: Rc<RemoteDevice>,
    export: Export,
    queues: u16,
}

impl ServedRemote {
    /// Ends it. Requests that the other node does not answer in time fail.
    async fn end(self) -> Result<(), RemoteError> {
        let ServedRemote { device, export, .. } = self;
        let ending = async {
            export.stop().await;
            device.flush().await
        };
        let late = async {
            engine::sleep(END_MAX).await;
            device.give_up("it was detached");
            std::future::pending::<()>().await;
        };
        if let LinkState::Lost(_) = device.state() {
            ending.await.ok();
            return Ok(());
        }
        match select(pin!(ending), pin!(late)).await {
            futures_util::future::Either::Left((flushed, _)) => {
                flushed.map_err(|error| RemoteError::NotFlushed(error.to_string()))
            }
            futures_util::future::Either::Right(((), _)) => Ok(()),
        }
    }

    /// Ends it for a restart: what is not answered in time is not answered at all, so that the guest hands it
    /// to the next process.
    async fn leave(self) {
        let ServedRemote { device, export, .. } = self;
        if engine::timeout(END_MAX, export.stop()).await.is_none() {
            tracing::warn!(
                state = ?device.state(),
                "requests of a remote volume are left to the next start"
            );
        }
    }
}

impl VolumesShard {
    /// Connects to a volume of another node and exports it. Runs to its end when the caller goes away.
    ///
    /// # Errors
    /// [`RemoteError`]; then nothing is served.
    pub async fn attach_remote(
        self: Rc<Self>,
        wanted: WantedRemote,
    ) -> Result<MadeRemote, RemoteError> {
        let shard = Rc::clone(&self);
        let made = in_task(async move { shard.attach_remote_now(wanted).await }).await;
        made.unwrap_or(Err(RemoteError::Gone))
    }

    async fn attach_remote_now(&self, wanted: WantedRemote) -> Result<MadeRemote, RemoteError> {
        let failed = |error: std::io::Error| RemoteError::Export(error.to_string());
        let boot = engine::fs::boot_id().await.map_err(failed)?;
        let boot = Token(u128::from_le_bytes(boot));
        let mut config = wanted.config;
        if wanted.again.is_none() {
            config.session = fresh_token().map_err(failed)?;
        }
        let (name, session) = (config.name.clone(), config.session);
        // A guest of another life of the machine is not at work any more: it minds nothing.
        let guest = wanted.again.as_ref().filter(|again| again.boot == boot);
        let connected = RemoteDevice::connect(config, guest.map(|again| &again.known)).await;
        let device = connected.map(Rc::new).map_err(|error| match error {
            ConnectError::Absent(why) => RemoteError::Absent(why),
            ConnectError::Lost(why) => RemoteError::Lost(why),
        })?;
        if self.draining.get() {
            return Err(RemoteError::Gone);
        }
        let socket = wanted.again.map_or_else(
            || {
                let file = format!("r-{:016x}.sock", session.0 as u64);
                self.config.sockets.join(file)
            },
            |again| again.socket,
        );
        let known = device.known();
        let config = ExportConfig {
            queues: wanted.queues,
            ..ExportConfig::listen(&socket, format!("remote volume {name}"))
        };
        let export = Export::start(Rc::clone(&device), config).map_err(failed)?;
        let served = ServedRemote {
            device,
            export,
            queues: wanted.queues,
        };
        let older = self.remotes.borrow_mut().insert(name, served);
        assert!(older.is_none(), "the service attaches a name once");
        Ok(MadeRemote {
            socket,
            session,
            boot,
            known,
        })
    }

    /// Ends one; what it wrote is durable then. Nothing when it is not served. Runs to its end when the
    /// caller goes away.
    ///
    /// # Errors
    /// When something is not known to be durable: it has ended all the same.
    pub async fn detach_remote(self: Rc<Self>, name: String) -> Result<(), RemoteError> {
        let served = self.remotes.borrow_mut().remove(&name);
        let Some(served) = served else { return Ok(()) };
        let ended = in_task(served.end()).await;
        ended.unwrap_or(Err(RemoteError::Gone))
    }

    /// Those that are served, and how they fare.
    pub fn remotes(&self) -> Vec<RemoteShown> {
        let remotes = self.remotes.borrow();
        let shown = remotes.iter().map(|(name, served)| RemoteShown {
            name: name.clone(),
            state: served.device.state(),
            bytes: served.device.geometry().bytes,
        });
        shown.collect()
    }

    pub(super) async fn leave_remotes(&self) {
        let remotes = self.remotes.take().into_values();
        join_all(remotes.map(ServedRemote::leave)).await;
    }

    pub(super) fn remote_metrics(&self) -> (Vec<ExportMetrics>, Vec<RemoteMetrics>) {
        let remotes = self.remotes.borrow();
        let each = remotes.iter().map(|(name, served)| {
            let ServedRemote { device, export, .. } = served;
            let of_export = ExportMetrics {
                source: Source::Remote(name.clone()),
                counts: Counts::Vhost(Box::new(Vhost {
                    stats: export.stats(),
                    latencies: export.latencies(),
                    queues: served.queues,
                    depths: export.depths(),
                })),
            };
            let of_link = RemoteMetrics {
                name: name.clone(),
                state: device.state(),
                stats: device.stats(),
            };
            (of_export, of_link)
        });
        each.unzip()
    }
}
