//! Attachments: made and ended in tasks of their own, so that what a shard serves and what is written down
//! agree whatever becomes of the caller.

use std::net::SocketAddr;
use std::path::Path;

use control_kit::api::Caller;
use control_kit::api_error::ApiError;
use control_kit::audit;
use coronafs::{Access, Attach, VolumeError};
use coronafs_api::v1;
use shard_bridge::Failure;
use tonic::Code;
use vhost_blk::QUEUES_MAX;

use super::{Found, VolumeService, in_task};
use crate::attachments::{AccessName, Entry, Kind, Place};
use crate::error::{attach_told, invalid, told};
use crate::shard::{AttachError, Wanted};

/// Most attachments of a volume: each has threads and descriptors of the node's.
const ATTACHMENTS_MAX: usize = 16;

impl VolumeService {
    /// Serves a volume at a socket.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn attach(
        &self,
        caller: &Caller,
        request: v1::AttachVolumeRequest,
    ) -> Result<v1::Attachment, ApiError> {
        let of = self.find(caller, &request.owner, &request.volume).await?;
        let wanted = Wanted {
            volume: of.id,
            how: Attach {
                access: access(&request.access)?.into(),
                take_over: request.take_over,
            },
            kind: kind(&request.kind)?,
            queues: queues(request.queues)?,
            listen: listen(&request)?,
            again: None,
            verifier: None,
        };
        let service = self.clone();
        in_task(caller, |caller| async move {
            service.attach_now(&caller, of, wanted).await
        })
        .await
    }

    async fn attach_now(
        &self,
        caller: &Caller,
        of: Found,
        wanted: Wanted,
    ) -> Result<v1::Attachment, ApiError> {
        let attachments = self.attachments();
        let _order = self.order(of.id).await;
        let mut ended = self.absent_in_the_way(&of, wanted.how)?;
        let made = self.on_shard(caller, of.id, move |shard| shard.attach(wanted));
        let done = match made.await {
            Ok(made) => {
                let entry = Entry {
                    attached: made.attached,
                    state: Ok(made.generation),
                };
                let answer = shown_attachment(&entry, &of.name);
                ended.extend(made.ended);
                let written = attachments.change(of.id.0, &ended, Some(entry)).await;
                written
                    .map(|()| answer)
                    .map_err(|error| not_written(&of, &error))
            }
            Err(failure) => {
                if let Failure::Service(AttachError::Export { ended, .. }) = &failure {
                    let written = attachments.change(of.id.0, ended, None).await;
                    if let Err(error) = written {
                        not_written(&of, &error);
                    }
                }
                Err(attach_told(failure, &of.object()))
            }
        };
        if done.is_err() {
            self.clean_up(&of).await;
            return done;
        }
        audit::log_done(caller, "volume-attach", of.object());
        done
    }

    /// Attachments that are listed, do not serve, and stand in the way: nobody on the shard speaks for them.
    ///
    /// # Errors
    /// When they are not to be taken over, or there are too many.
    fn absent_in_the_way(&self, of: &Found, how: Attach) -> Result<Vec<u64>, ApiError> {
        let listed = self.attachments().of(of.id.0);
        if listed.len() >= ATTACHMENTS_MAX {
            let what = format!("a volume has at most {ATTACHMENTS_MAX} attachments");
            let code = "too-many-attachments";
            return Err(ApiError::new(Code::ResourceExhausted, code, what)
                .object(of.object())
                .next("detach those that nobody uses"));
        }
        let in_the_way = |entry: &&Entry| match (how.access, entry.attached.access) {
            (Access::ReadOnly, _) | (_, AccessName::ReadOnly) => false,
            (Access::Shared, access) => access != AccessName::Shared,
            (Access::Exclusive, _) => true,
        };
        let absent = listed.iter().filter(|entry| entry.state.is_err());
        let ids: Vec<u64> = absent
            .filter(in_the_way)
            .map(|entry| entry.attached.id)
            .collect();
        match ids.first() {
            Some(id) if !how.take_over => {
                let attached = VolumeError::Attached(*id);
                Err(told(Failure::Service(attached), &of.object()))
            }
            _ => Ok(ids),
        }
    }

    /// After an attach that failed, or had no answer: what serves is what is listed, or is said not to.
    async fn clean_up(&self, of: &Found) {
        let attachments = self.attachments();
        let (id, listed) = (of.id, attachments.of(of.id.0));
        let kept: Vec<u64> = listed.iter().map(|entry| entry.attached.id).collect();
        let serving = self.own_call(id, move |shard| shard.keep_only(id, kept.clone()));
        match serving.await {
            Ok(serving) => {
                let gone = listed.iter().filter(|entry| entry.state.is_ok());
                let gone = gone.filter(|entry| !serving.contains(&entry.attached.id));
                for entry in gone {
                    let why = "an attachment that failed has taken the volume over";
                    let gone = entry.attached.id;
                    attachments.note(id.0, gone, Err(why.to_owned())).await;
                }
            }
            Err(error) => {
                tracing::warn!(%error, object = of.object(), "an attachment may be left");
            }
        }
    }

    /// Ends an attachment.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn detach(
        &self,
        caller: &Caller,
        request: v1::DetachVolumeRequest,
    ) -> Result<v1::DetachVolumeResponse, ApiError> {
        let of = self.find(caller, &request.owner, &request.volume).await?;
        let service = self.clone();
        in_task(caller, |caller| async move {
            service.detach_now(&caller, of, request.id).await
        })
        .await
    }

    async fn detach_now(
        &self,
        caller: &Caller,
        of: Found,
        id: u64,
    ) -> Result<v1::DetachVolumeResponse, ApiError> {
        let object = format!("attachment {id} of {}", of.object());
        let attachments = self.attachments();
        let _order = self.order(of.id).await;
        let listed = attachments.of(of.id.0);
        let found = listed.iter().find(|entry| entry.attached.id == id);
        if found.is_some() {
            let written = attachments.change(of.id.0, &[id], None).await;
            written.map_err(|error| not_written(&of, &error))?;
        }
        // Also when it is not listed: an earlier try may have come this far.
        let others = listed.iter().map(|entry| entry.attached.id);
        let kept: Vec<u64> = others.filter(|other| *other != id).collect();
        let volume = of.id;
        let ended = self.own_call(volume, move |shard| shard.keep_only(volume, kept.clone()));
        ended.await.map_err(|failure| told(failure, &object))?;
        let Some(entry) = found else {
            let what = "the volume has no such attachment";
            return Err(ApiError::new(Code::NotFound, "no-such-attachment", what)
                .object(object)
                .next("look at the volume's attachments"));
        };
        if let Place::Socket(path) = &entry.attached.place {
            forget_lock(path).await;
        }
        audit::log_done(caller, "volume-detach", object);
        Ok(v1::DetachVolumeResponse {})
    }
}

/// Removes the file that kept others from a socket: no other attachment is ever called so.
pub(super) async fn forget_lock(path: &Path) {
    let mut lock = path.to_owned().into_os_string();
    lock.push(".lock");
    // It may be gone; it is in nobody's way.
    let _ = tokio::fs::remove_file(lock).await;
}

fn not_written(of: &Found, error: &std::io::Error) -> ApiError {
    tracing::error!(%error, object = of.object(), "the list of attachments cannot be written");
    let what = format!("the list of attachments cannot be written: {error}");
    ApiError::new(Code::Internal, "attachments-not-written", what)
        .object(of.object())
        .next("see that the node's disk has room and works")
}

fn access(name: &str) -> Result<AccessName, ApiError> {
    if name.is_empty() {
        return Ok(AccessName::Exclusive);
    }
    let found = AccessName::ALL.iter().find(|(known, _)| *known == name);
    found.map(|(_, access)| *access).ok_or_else(|| {
        let what = format!("there is no access {name:?}");
        invalid("access", what, "give exclusive, shared or read-only")
    })
}

fn kind(name: &str) -> Result<Kind, ApiError> {
    if name.is_empty() {
        return Ok(Kind::VhostUser);
    }
    let found = Kind::ALL.iter().find(|(known, _)| *known == name);
    found.map(|(_, kind)| *kind).ok_or_else(|| {
        let what = format!("there is no kind {name:?}");
        invalid("kind", what, "give vhost-user or nbd")
    })
}

fn listen(request: &v1::AttachVolumeRequest) -> Result<Option<SocketAddr>, ApiError> {
    if request.listen.is_empty() {
        return Ok(None);
    }
    let next = "leave it out, or give an address and port with the kind nbd";
    let address = request.listen.parse();
    let address = address.map_err(|_| {
        let what = format!("{:?} is no address with a port", request.listen);
        invalid("listen", what, next)
    })?;
    if kind(&request.kind)? != Kind::Nbd {
        let what = "only NBD is served at an address";
        return Err(invalid("listen", what, next));
    }
    Ok(Some(address))
}

pub(super) fn queues(count: u32) -> Result<u16, ApiError> {
    let given = u16::try_from(count.max(1)).ok();
    given.filter(|count| *count <= QUEUES_MAX).ok_or_else(|| {
        let what = format!("{count} queues are too many");
        invalid("queues", what, "give 1 to 16")
    })
}

/// An attachment as users see it.
pub(super) fn shown_attachment(entry: &Entry, volume: &str) -> v1::Attachment {
    let attached = &entry.attached;
    v1::Attachment {
        id: attached.id,
        volume: volume.to_owned(),
        access: attached.access.name().to_owned(),
        socket: match &attached.place {
            Place::Socket(path) => path.display().to_string(),
            Place::Address(_) => String::new(),
        },
        queues: match attached.kind {
            Kind::VhostUser => u32::from(attached.queues),
            Kind::Nbd => 0,
        },
        generation: entry.state.as_ref().copied().unwrap_or_default(),
        serving: entry.state.is_ok(),
        why: entry.state.as_ref().err().cloned().unwrap_or_default(),
        kind: attached.kind.name().to_owned(),
        uri: match (&attached.kind, &attached.place) {
            (Kind::VhostUser, _) => String::new(),
            (Kind::Nbd, Place::Socket(path)) => format!("nbd+unix:///?socket={}", path.display()),
            (Kind::Nbd, Place::Address(address)) => format!("nbd://{address}"),
        },
    }
}
