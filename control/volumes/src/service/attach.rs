//! Attachments: made and ended in tasks of their own, so that what a shard serves and what is written down
//! agree whatever becomes of the caller.

use control_kit::api::Caller;
use control_kit::api_error::ApiError;
use coronafs::Attach;
use coronafs_api::v1;
use tonic::Code;
use vhost_blk::QUEUES_MAX;

use super::{Found, SHUT_DOWN, VolumeService, audit};
use crate::attachments::{AccessName, Entry};
use crate::error::{attach_told, invalid, told};
use crate::shard::Wanted;

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
            queues: queues(request.queues)?,
            again: None,
        };
        let (service, caller) = (self.clone(), caller.clone());
        let attaching = tokio::spawn(async move { service.attach_now(&caller, of, wanted).await });
        attaching.await.unwrap_or_else(|_| Err(shut_down()))
    }

    async fn attach_now(
        &self,
        caller: &Caller,
        of: Found,
        wanted: Wanted,
    ) -> Result<v1::Attachment, ApiError> {
        let mut attachments = self.inner.attachments.lock().await;
        let made = self.on_shard(caller, of.id, move |shard| shard.attach(wanted));
        let made = made.await;
        let done = match made {
            Ok(made) => {
                let entry = Entry {
                    attached: made.attached,
                    state: Ok(made.generation),
                };
                let answer = shown_attachment(&entry, &of.name);
                let written = tokio::task::block_in_place(|| attachments.add(entry, &made.ended));
                written
                    .map(|()| answer)
                    .map_err(|error| not_written(&of, &error))
            }
            Err(failure) => Err(attach_told(failure, &of.object())),
        };
        if done.is_err() {
            // It may serve all the same: there was no answer, or it cannot be written down.
            let kept = attachments
                .of(of.id.0)
                .map(|entry| entry.attached.id)
                .collect();
            let id = of.id;
            let ended = self.own_call(
                id,
                move |shard| async move { shard.keep_only(id, kept).await },
            );
            if let Err(error) = ended.await {
                tracing::warn!(%error, object = of.object(), "an attachment may be left");
            }
        }
        drop(attachments);
        if done.is_ok() {
            audit(caller, "volume-attach", of.object());
        }
        done
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
        let (service, caller) = (self.clone(), caller.clone());
        let detaching =
            tokio::spawn(async move { service.detach_now(&caller, of, request.id).await });
        detaching.await.unwrap_or_else(|_| Err(shut_down()))
    }

    async fn detach_now(
        &self,
        caller: &Caller,
        of: Found,
        id: u64,
    ) -> Result<v1::DetachVolumeResponse, ApiError> {
        let object = format!("attachment {id} of {}", of.object());
        let mut attachments = self.inner.attachments.lock().await;
        let removed = tokio::task::block_in_place(|| attachments.remove(of.id.0, id));
        if !removed.map_err(|error| not_written(&of, &error))? {
            let what = "the volume has no such attachment";
            return Err(ApiError::new(Code::NotFound, "no-such-attachment", what)
                .object(object)
                .next("look at the volume's attachments"));
        }
        let kept = attachments
            .of(of.id.0)
            .map(|entry| entry.attached.id)
            .collect();
        let volume = of.id;
        let ended = self.own_call(volume, move |shard| async move {
            shard.keep_only(volume, kept).await
        });
        ended.await.map_err(|failure| told(failure, &object))?;
        drop(attachments);
        audit(caller, "volume-detach", object);
        Ok(v1::DetachVolumeResponse {})
    }
}

fn not_written(of: &Found, error: &std::io::Error) -> ApiError {
    tracing::error!(%error, object = of.object(), "the list of attachments cannot be written");
    let what = format!("the list of attachments cannot be written: {error}");
    ApiError::new(Code::Internal, "attachments-not-written", what)
        .object(of.object())
        .next("see that the node's disk has room and works")
}

fn shut_down() -> ApiError {
    ApiError::new(Code::Unavailable, "shutting-down", SHUT_DOWN)
        .next("retry when /readyz answers 200 again")
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

fn queues(count: u32) -> Result<u16, ApiError> {
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
        socket: attached.socket.display().to_string(),
        queues: u32::from(attached.queues),
        generation: entry.state.as_ref().copied().unwrap_or_default(),
        serving: entry.state.is_ok(),
        why: entry.state.as_ref().err().cloned().unwrap_or_default(),
    }
}
