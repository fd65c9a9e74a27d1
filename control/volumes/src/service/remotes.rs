//! Volumes of other nodes: attached, listed, ended, and served again after a restart.

use std::net::SocketAddr;
use std::sync::Weak;
use std::time::Duration;

use control_kit::api::Caller;
use control_kit::api_error::ApiError;
use control_kit::audit;
use coronafs_api::v1;
use engine::ShardId;
use engine::net::Addr;
use nbd_export::{LinkState, RemoteConfig, RemoteTls};
use nbd_wire::session::Token;
use rustls::pki_types::ServerName;
use shard_bridge::{Failure, Target};
use shards::resource_hash;
use tonic::Code;

use super::attach::queues;
use super::{Inner, ROOT, VolumeService, in_task};
use crate::error::{denied, invalid};
use crate::metrics::described;
use crate::remotes::{Endpoint, RemoteAttached, RemoteEntry, RemoteFault};
use crate::shard::{
    MadeRemote, RemoteBefore, RemoteError, RemoteShown, VolumesShard, WantedRemote,
};

/// Most volumes of other nodes that a node serves: each has threads and descriptors.
const REMOTES_MAX: usize = 256;
const NAME_BYTES_MAX: usize = 128;
/// Between two tries to serve one again.
const RETRY: Duration = Duration::from_secs(1);

fn object(name: &str) -> String {
    format!("remote volume {name}")
}

impl VolumeService {
    /// Serves a volume of another node at a socket.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn attach_remote(
        &self,
        caller: &Caller,
        request: v1::AttachRemoteVolumeRequest,
    ) -> Result<v1::RemoteVolume, ApiError> {
        root_alone(caller)?;
        let endpoint = checked(&request)?;
        let service = self.clone();
        in_task(caller, |caller| async move {
            service.attach_remote_now(&caller, request, endpoint).await
        })
        .await
    }

    async fn attach_remote_now(
        &self,
        caller: &Caller,
        request: v1::AttachRemoteVolumeRequest,
        endpoint: Endpoint,
    ) -> Result<v1::RemoteVolume, ApiError> {
        let _turn = self.inner.remotes.lock().await;
        let listed = self.attachments().remotes();
        let name = request.name;
        if listed.iter().any(|entry| entry.attached.name == name) {
            let what = "a remote volume of that name is attached";
            return Err(ApiError::new(Code::AlreadyExists, "name-taken", what)
                .object(object(&name))
                .next("choose another name, or detach it first"));
        }
        if listed.len() >= REMOTES_MAX {
            let what = format!("a node has at most {REMOTES_MAX} remote volumes");
            let code = "too-many-attachments";
            return Err(ApiError::new(Code::ResourceExhausted, code, what)
                .object(object(&name))
                .next("detach those that nobody uses"));
        }
        let read_only = request.access == "read-only";
        let config = self
            .remote_config(&name, &endpoint, &request.export, request.tls)
            .await;
        let config = config.map_err(|error| told(Failure::Service(error), &name))?;
        let wanted = WantedRemote {
            config: RemoteConfig {
                read_only,
                ..config
            },
            queues: queues(request.queues)?,
            again: None,
        };
        let rings = wanted.queues;
        let made = self.attach_on_shard(&name, wanted).await;
        let made = made.map_err(|failure| told(failure, &name))?;
        let attached = RemoteAttached {
            name: name.clone(),
            endpoint,
            export: request.export,
            tls: request.tls,
            read_only,
            queues: rings,
            socket: made.socket,
            session: made.session,
            boot: made.boot,
            known: made.known.into(),
        };
        let entry = RemoteEntry {
            attached,
            state: Ok(()),
        };
        let written = self.attachments().change_remote("", Some(entry.clone()));
        if let Err(error) = written.await {
            let detached = self.detach_on_shard(&name).await;
            if let Err(error) = detached {
                tracing::warn!(%error, name, "a remote volume may be left");
            }
            return Err(not_written(&name, &error));
        }
        audit::log_done(caller, "remote-volume-attach", object(&name));
        let shown = RemoteShown {
            name,
            state: LinkState::Connected,
            bytes: made.known.bytes,
        };
        Ok(shown_remote(&entry, Some(&shown)))
    }

    /// Those that are served, and those that should be.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn list_remotes(
        &self,
        caller: &Caller,
        _request: v1::ListRemoteVolumesRequest,
    ) -> Result<v1::ListRemoteVolumesResponse, ApiError> {
        root_alone(caller)?;
        let live = self.on_all(caller, VolumesShard::remotes).await;
        let live = live.map_err(|failure| crate::error::told(failure, "remote volumes"))?;
        let live: Vec<RemoteShown> = live.into_iter().flatten().collect();
        let shown = |entry: &RemoteEntry| {
            let found = live.iter().find(|live| live.name == entry.attached.name);
            shown_remote(entry, found)
        };
        Ok(v1::ListRemoteVolumesResponse {
            volumes: self.attachments().remotes().iter().map(shown).collect(),
        })
    }

    /// Ends one.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn detach_remote(
        &self,
        caller: &Caller,
        request: v1::DetachRemoteVolumeRequest,
    ) -> Result<v1::DetachRemoteVolumeResponse, ApiError> {
        root_alone(caller)?;
        let service = self.clone();
        in_task(caller, |caller| async move {
            service.detach_remote_now(&caller, request.name).await
        })
        .await
    }

    async fn detach_remote_now(
        &self,
        caller: &Caller,
        name: String,
    ) -> Result<v1::DetachRemoteVolumeResponse, ApiError> {
        let _turn = self.inner.remotes.lock().await;
        let listed = self.attachments().remotes();
        let found = listed.iter().find(|entry| entry.attached.name == name);
        if found.is_some() {
            let written = self.attachments().change_remote(&name, None).await;
            written.map_err(|error| not_written(&name, &error))?;
        }
        // Also when it is not listed: an earlier try may have come this far.
        let ended = self.detach_on_shard(&name).await;
        ended.map_err(|failure| told(failure, &name))?;
        let Some(entry) = found else {
            let what = "there is no such remote volume";
            return Err(ApiError::new(Code::NotFound, "no-such-attachment", what)
                .object(object(&name))
                .next("list the remote volumes"));
        };
        // A process that was killed has left it.
        let _ = tokio::fs::remove_file(&entry.attached.socket).await;
        super::attach::forget_lock(&entry.attached.socket).await;
        audit::log_done(caller, "remote-volume-detach", object(&name));
        Ok(v1::DetachRemoteVolumeResponse {})
    }

    /// Remote volumes that are not connected, and why.
    pub async fn remotes_not_connected(&self) -> Vec<(String, String)> {
        let mut failed = Vec::new();
        for entry in self.attachments().remotes() {
            if let Err(RemoteFault::Connecting(why) | RemoteFault::Lost(why)) = entry.state {
                failed.push((entry.attached.name, why));
            }
        }
        for shard in self.inner.node.metrics().await {
            for remote in shard.remotes {
                let (_, why) = described(&remote.state);
                if remote.state != LinkState::Connected {
                    failed.push((remote.name, why.to_owned()));
                }
            }
        }
        failed
    }

    /// Begins to serve those again that were served when the node ended; each when its node is there.
    pub(super) fn restore_remotes(&self) {
        for entry in self.attachments().remotes() {
            let (name, inner) = (entry.attached.name, std::sync::Arc::downgrade(&self.inner));
            tokio::spawn(restore(inner, name));
        }
    }

    /// Tries to serve one again; false when there is nothing more to try.
    async fn restore_one(&self, name: &str) -> bool {
        let _turn = self.inner.remotes.lock().await;
        let listed = self.attachments().remotes();
        let found = listed
            .into_iter()
            .find(|entry| entry.attached.name == name && entry.state.is_err());
        let Some(RemoteEntry { mut attached, .. }) = found else {
            return false;
        };
        let made = match self.wanted_again(&attached).await {
            Ok(wanted) => self.attach_on_shard(name, wanted).await,
            Err(error) => Err(Failure::Service(error)),
        };
        let fault = match made {
            Ok(made) => {
                (attached.boot, attached.known) = (made.boot, made.known.into());
                let state = Ok(());
                let entry = RemoteEntry { attached, state };
                let written = self.attachments().change_remote(name, Some(entry)).await;
                let Err(error) = written else { return false };
                // What is not written down must not be served: the next start would believe what is.
                let _ = self.detach_on_shard(name).await;
                RemoteFault::Connecting(error.to_string())
            }
            Err(Failure::Service(RemoteError::Gone)) => return false,
            Err(Failure::Service(error @ RemoteError::Lost(_))) => {
                let why = error.to_string();
                tracing::error!(name, why, "a remote volume is not served again");
                RemoteFault::Lost(why)
            }
            Err(Failure::Service(error)) => RemoteFault::Connecting(error.to_string()),
            Err(Failure::Bridge(error)) => RemoteFault::Connecting(error.to_string()),
        };
        let again = matches!(fault, RemoteFault::Connecting(_));
        self.attachments().note_remote(name, Err(fault)).await;
        again
    }

    async fn wanted_again(&self, attached: &RemoteAttached) -> Result<WantedRemote, RemoteError> {
        let (endpoint, export) = (&attached.endpoint, &attached.export);
        let config = self.remote_config(&attached.name, endpoint, export, attached.tls);
        Ok(WantedRemote {
            config: RemoteConfig {
                session: attached.session,
                read_only: attached.read_only,
                ..config.await?
            },
            queues: attached.queues,
            again: Some(RemoteBefore {
                socket: attached.socket.clone(),
                boot: attached.boot,
                known: attached.known.clone().into(),
            }),
        })
    }

    /// Where it is, and how it is spoken with.
    async fn remote_config(
        &self,
        name: &str,
        endpoint: &Endpoint,
        export: &str,
        tls: bool,
    ) -> Result<RemoteConfig, RemoteError> {
        let (addr, secured) = match endpoint {
            Endpoint::Unix(path) => (Addr::Unix(path.clone()), None),
            Endpoint::Tcp { host, port } => {
                let addr = look_up(host, *port).await?;
                let wants = tls || !addr.ip().is_loopback();
                (Addr::Inet(addr), wants.then_some(host))
            }
        };
        let tls = match secured {
            None => None,
            Some(host) => Some(self.remote_tls(host)?),
        };
        Ok(RemoteConfig {
            name: name.to_owned(),
            tls,
            ..RemoteConfig::new(addr, export, Token(0))
        })
    }

    fn remote_tls(&self, host: &str) -> Result<RemoteTls, RemoteError> {
        let refused = |why: &str| RemoteError::Export(why.to_owned());
        let tls = self.inner.node.remote_tls().ok_or_else(|| {
            refused("an address that others reach wants coronafs.remote_tls in the node's config")
        })?;
        let server_name = ServerName::try_from(host.to_owned());
        Ok(RemoteTls {
            config: tls.current(),
            server_name: server_name.map_err(|_| refused("the host is no name for TLS"))?,
        })
    }

    fn shard_of_remote(&self, name: &str) -> Target<VolumesShard> {
        let values = self.inner.node.values();
        let shard = resource_hash(&[name.as_bytes()]) as usize % values.shards();
        Target::Shard(values.clone(), ShardId(shard as u16))
    }

    async fn attach_on_shard(
        &self,
        name: &str,
        wanted: WantedRemote,
    ) -> Result<MadeRemote, Failure<RemoteError>> {
        let context = self.own_context();
        let target = || self.shard_of_remote(name);
        let attach = move |shard: std::rc::Rc<VolumesShard>| shard.attach_remote(wanted.clone());
        self.own_call_at(&context, target, attach).await
    }

    async fn detach_on_shard(&self, name: &str) -> Result<(), Failure<RemoteError>> {
        let context = self.own_context();
        let (target, name) = (|| self.shard_of_remote(name), name.to_owned());
        let detach = move |shard: std::rc::Rc<VolumesShard>| shard.detach_remote(name.clone());
        self.own_call_at(&context, target, detach).await
    }
}

async fn restore(inner: Weak<Inner>, name: String) {
    while let Some(inner) = inner.upgrade() {
        let service = VolumeService { inner };
        if !service.restore_one(&name).await {
            return;
        }
        drop(service);
        tokio::time::sleep(RETRY).await;
    }
}

async fn look_up(host: &str, port: u16) -> Result<SocketAddr, RemoteError> {
    let absent = |why: String| RemoteError::Absent(format!("{host}:{port}: {why}"));
    let found = tokio::net::lookup_host((host, port)).await;
    let mut found = found.map_err(|error| absent(error.to_string()))?;
    found
        .next()
        .ok_or_else(|| absent("it has no address".to_owned()))
}

/// # Errors
/// For anybody else: the node connects wherever it is told, also to what others may not reach.
fn root_alone(caller: &Caller) -> Result<(), ApiError> {
    if &*caller.principal.tenant == ROOT {
        return Ok(());
    }
    Err(denied("the remote volumes of the node".to_owned()))
}

fn checked(request: &v1::AttachRemoteVolumeRequest) -> Result<Endpoint, ApiError> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let name = &request.name;
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_allowed) {
        let next = "give 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-'";
        return Err(invalid("name", format!("{name:?} is no name"), next));
    }
    if !["", "shared", "read-only"].contains(&request.access.as_str()) {
        let what = format!("there is no access {:?} to a remote volume", request.access);
        return Err(invalid("access", what, "give shared or read-only"));
    }
    if request.export.len() > 256 || request.export.contains('\0') {
        let what = "the name of an export has up to 256 bytes";
        return Err(invalid("export", what, "leave it out for a volume's own"));
    }
    Endpoint::parse(&request.endpoint).map_err(|why| {
        let what = format!("{:?} is no endpoint: {why}", request.endpoint);
        invalid("endpoint", what, "give unix:PATH or HOST:PORT")
    })
}

fn shown_remote(entry: &RemoteEntry, live: Option<&RemoteShown>) -> v1::RemoteVolume {
    let attached = &entry.attached;
    let (state, why) = match (live, &entry.state) {
        (Some(live), _) => described(&live.state),
        (None, Err(RemoteFault::Lost(why))) => ("lost", why.as_str()),
        (None, Err(RemoteFault::Connecting(why))) => ("connecting", why.as_str()),
        (None, Ok(())) => ("connecting", "it is being attached or detached"),
    };
    v1::RemoteVolume {
        name: attached.name.clone(),
        endpoint: attached.endpoint.to_string(),
        export: attached.export.clone(),
        tls: attached.tls,
        access: if attached.read_only {
            "read-only".to_owned()
        } else {
            "shared".to_owned()
        },
        queues: u32::from(attached.queues),
        socket: attached.socket.display().to_string(),
        bytes: live.map_or(0, |live| live.bytes),
        state: state.to_owned(),
        why: why.to_owned(),
    }
}

fn told(failure: Failure<RemoteError>, name: &str) -> ApiError {
    failure.into_api_error(|error| {
        let (code, word, next) = match &error {
            RemoteError::Absent(_) => (
                Code::Unavailable,
                "remote-absent",
                "see that the other node serves it there by NBD, and that this one reaches it",
            ),
            RemoteError::Lost(_) => (
                Code::FailedPrecondition,
                "writes-lost",
                "detach it, restart the guest, and attach it again",
            ),
            RemoteError::Export(_) => (
                Code::FailedPrecondition,
                "not-served-there",
                "give another place, or see to the node's config",
            ),
            RemoteError::NotFlushed(_) => (
                Code::Aborted,
                "not-flushed",
                "it is detached; flush the volume on its own node, if that is there",
            ),
            RemoteError::Gone => (
                Code::Unavailable,
                "shutting-down",
                "retry when /readyz answers 200 again",
            ),
        };
        ApiError::new(code, word, error.to_string())
            .object(object(name))
            .next(next)
    })
}

fn not_written(name: &str, error: &std::io::Error) -> ApiError {
    tracing::error!(%error, name, "the list of attachments cannot be written");
    let what = format!("the list of attachments cannot be written: {error}");
    ApiError::new(Code::Internal, "attachments-not-written", what)
        .object(object(name))
        .next("see that the node's disk has room and works")
}
