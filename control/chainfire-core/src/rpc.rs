//! The messages between members, as bytes: what a transport carries without looking inside.

use bytes::Bytes;
use openraft::async_runtime::AsyncRuntime;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use prost::Message;

use crate::codec::{
    DecodeError, EntryMessage, LogIdMessage, ProposalMessage, SnapshotMetaMessage, VoteMessage,
    decode, optional, required,
};
use crate::error::{Error, ErrorKind};
use crate::types::{LogId, NodeId, Proposal, SnapshotMeta, TypeConfig, Vote};

/// What one member asks another for. The names are those of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// A vote for the caller.
    Vote,
    /// Whether a vote would be given.
    PreVote,
    /// Entries, or a heartbeat.
    AppendEntries,
    /// To begin an election at once.
    TimeoutNow,
    /// To write a proposal to the log, as the leader.
    Propose,
    /// Up to where a read must have applied, from the leader.
    ReadIndex,
    /// A change of membership or of leadership, from the leader.
    Change,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct VoteRequestMessage {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteMessage>,
    #[prost(message, optional, tag = "2")]
    last: Option<LogIdMessage>,
    #[prost(bool, tag = "3")]
    transfer: bool,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct VoteResponseMessage {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteMessage>,
    #[prost(message, optional, tag = "2")]
    last: Option<LogIdMessage>,
    #[prost(bool, tag = "3")]
    granted: bool,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct AppendRequestMessage {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteMessage>,
    #[prost(message, optional, tag = "2")]
    previous: Option<LogIdMessage>,
    #[prost(message, optional, tag = "3")]
    commit: Option<LogIdMessage>,
    #[prost(message, repeated, tag = "4")]
    entries: Vec<EntryMessage>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct AppendResponseMessage {
    #[prost(enumeration = "Appended", tag = "1")]
    result: i32,
    #[prost(message, optional, tag = "2")]
    matched: Option<LogIdMessage>,
    #[prost(message, optional, tag = "3")]
    vote: Option<VoteMessage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum Appended {
    Unspecified = 0,
    Success = 1,
    Partial = 2,
    Conflict = 3,
    HigherVote = 4,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct TransferMessage {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteMessage>,
    #[prost(uint64, tag = "2")]
    to: u64,
    #[prost(message, optional, tag = "3")]
    last: Option<LogIdMessage>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct SnapshotHeadMessage {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteMessage>,
    #[prost(message, optional, tag = "2")]
    meta: Option<SnapshotMetaMessage>,
}

pub(crate) fn encode_vote_request<R: AsyncRuntime + 'static>(
    request: &VoteRequest<TypeConfig<R>>,
) -> Bytes {
    let message = VoteRequestMessage {
        vote: Some(request.vote.into()),
        last: request.last_log_id.map(Into::into),
        transfer: request.leadership_transfer,
    };
    message.encode_to_vec().into()
}

pub(crate) fn decode_vote_request<R: AsyncRuntime + 'static>(
    bytes: Bytes,
) -> Result<VoteRequest<TypeConfig<R>>, DecodeError> {
    const OBJECT: &str = "vote request";
    let message: VoteRequestMessage = decode(OBJECT, bytes)?;
    let vote = required(OBJECT, message.vote)?.try_into()?;
    let mut request = VoteRequest::new(vote, optional(message.last)?);
    request.leadership_transfer = message.transfer;
    Ok(request)
}

pub(crate) fn encode_vote_response<R: AsyncRuntime + 'static>(
    response: &VoteResponse<TypeConfig<R>>,
) -> Bytes {
    let message = VoteResponseMessage {
        vote: Some(response.vote.into()),
        last: response.last_log_id.map(Into::into),
        granted: response.vote_granted,
    };
    message.encode_to_vec().into()
}

pub(crate) fn decode_vote_response<R: AsyncRuntime + 'static>(
    bytes: Bytes,
) -> Result<VoteResponse<TypeConfig<R>>, DecodeError> {
    const OBJECT: &str = "vote response";
    let message: VoteResponseMessage = decode(OBJECT, bytes)?;
    let vote: Vote = required(OBJECT, message.vote)?.try_into()?;
    Ok(VoteResponse::new(
        vote,
        optional(message.last)?,
        message.granted,
    ))
}

pub(crate) fn encode_append_request<R: AsyncRuntime + 'static>(
    request: &AppendEntriesRequest<TypeConfig<R>>,
) -> Bytes {
    let message = AppendRequestMessage {
        vote: Some(request.vote.into()),
        previous: request.prev_log_id.map(Into::into),
        commit: request.leader_commit.map(Into::into),
        entries: request.entries.iter().map(Into::into).collect(),
    };
    message.encode_to_vec().into()
}

pub(crate) fn decode_append_request<R: AsyncRuntime + 'static>(
    bytes: Bytes,
) -> Result<AppendEntriesRequest<TypeConfig<R>>, DecodeError> {
    const OBJECT: &str = "append request";
    let message: AppendRequestMessage = decode(OBJECT, bytes)?;
    let entries = message.entries.into_iter().map(TryInto::try_into);
    Ok(AppendEntriesRequest {
        vote: required(OBJECT, message.vote)?.try_into()?,
        prev_log_id: optional(message.previous)?,
        leader_commit: optional(message.commit)?,
        entries: entries.collect::<Result<_, DecodeError>>()?,
    })
}

pub(crate) fn encode_append_response<R: AsyncRuntime + 'static>(
    response: &AppendEntriesResponse<TypeConfig<R>>,
) -> Bytes {
    let mut message = AppendResponseMessage::default();
    match response {
        AppendEntriesResponse::Success => message.set_result(Appended::Success),
        AppendEntriesResponse::PartialSuccess(matched) => {
            message.set_result(Appended::Partial);
            message.matched = matched.map(Into::into);
        }
        AppendEntriesResponse::Conflict => message.set_result(Appended::Conflict),
        AppendEntriesResponse::HigherVote(vote) => {
            message.set_result(Appended::HigherVote);
            message.vote = Some((*vote).into());
        }
    }
    message.encode_to_vec().into()
}

pub(crate) fn decode_append_response<R: AsyncRuntime + 'static>(
    bytes: Bytes,
) -> Result<AppendEntriesResponse<TypeConfig<R>>, DecodeError> {
    const OBJECT: &str = "append response";
    let message: AppendResponseMessage = decode(OBJECT, bytes)?;
    Ok(match message.result() {
        Appended::Success => AppendEntriesResponse::Success,
        Appended::Partial => AppendEntriesResponse::PartialSuccess(optional(message.matched)?),
        Appended::Conflict => AppendEntriesResponse::Conflict,
        Appended::HigherVote => {
            AppendEntriesResponse::HigherVote(required(OBJECT, message.vote)?.try_into()?)
        }
        Appended::Unspecified => return Err(DecodeError::new(OBJECT, "no result")),
    })
}

pub(crate) fn encode_transfer<R: AsyncRuntime + 'static>(
    request: &TransferLeaderRequest<TypeConfig<R>>,
) -> Bytes {
    let message = TransferMessage {
        vote: Some((*request.from_leader()).into()),
        to: *request.to_node_id(),
        last: request.last_log_id().map(|id| (*id).into()),
    };
    message.encode_to_vec().into()
}

pub(crate) fn decode_transfer<R: AsyncRuntime + 'static>(
    bytes: Bytes,
) -> Result<TransferLeaderRequest<TypeConfig<R>>, DecodeError> {
    const OBJECT: &str = "transfer request";
    let message: TransferMessage = decode(OBJECT, bytes)?;
    let vote = required(OBJECT, message.vote)?.try_into()?;
    Ok(TransferLeaderRequest::new(
        vote,
        message.to,
        optional(message.last)?,
    ))
}

pub(crate) fn encode_snapshot_head(vote: Vote, meta: &SnapshotMeta) -> Bytes {
    let message = SnapshotHeadMessage {
        vote: Some(vote.into()),
        meta: Some(meta.into()),
    };
    message.encode_to_vec().into()
}

pub(crate) fn decode_snapshot_head(bytes: Bytes) -> Result<(Vote, SnapshotMeta), DecodeError> {
    const OBJECT: &str = "snapshot head";
    let message: SnapshotHeadMessage = decode(OBJECT, bytes)?;
    let vote = required(OBJECT, message.vote)?.try_into()?;
    Ok((vote, required(OBJECT, message.meta)?.try_into()?))
}

pub(crate) fn encode_vote(vote: Vote) -> Bytes {
    VoteMessage::from(vote).encode_to_vec().into()
}

pub(crate) fn decode_vote(bytes: Bytes) -> Result<Vote, DecodeError> {
    decode::<VoteMessage>("vote", bytes)?.try_into()
}

pub(crate) fn encode_position(position: Option<LogId>) -> Bytes {
    crate::codec::encode_log_id(position).into()
}

pub(crate) fn decode_position(bytes: &Bytes) -> Result<Option<LogId>, DecodeError> {
    crate::codec::decode_log_id(bytes)
}

pub(crate) fn encode_proposal(proposal: &Proposal) -> Bytes {
    ProposalMessage::from(proposal).encode_to_vec().into()
}

pub(crate) fn decode_proposal(bytes: Bytes) -> Result<Proposal, DecodeError> {
    Ok(decode::<ProposalMessage>("proposal", bytes)?.into())
}

#[derive(Clone, PartialEq, Eq, Message)]
struct ReplyMessage {
    #[prost(uint32, tag = "1")]
    error: u32,
    #[prost(string, tag = "2")]
    what: String,
    #[prost(uint64, optional, tag = "3")]
    leader: Option<NodeId>,
    #[prost(bytes = "bytes", tag = "4")]
    body: Bytes,
}

/// The answer to what only a leader does: a body, or this crate's error.
pub(crate) fn encode_reply(reply: Result<Bytes, Error>) -> Bytes {
    let message = match reply {
        Ok(body) => ReplyMessage {
            body,
            ..Default::default()
        },
        Err(error) => {
            let (code, leader) = match error.kind() {
                ErrorKind::NotLeader(leader) => (1, leader),
                ErrorKind::Timeout => (2, None),
                ErrorKind::Unknown => (3, None),
                ErrorKind::Refused => (4, None),
                ErrorKind::NotFound => (5, None),
                ErrorKind::Exists => (6, None),
                ErrorKind::Invalid => (7, None),
                ErrorKind::Stopped => (8, None),
                ErrorKind::Unavailable => (9, None),
                ErrorKind::Corrupt | ErrorKind::Storage => (10, None),
            };
            ReplyMessage {
                error: code,
                what: error.to_string(),
                leader,
                body: Bytes::new(),
            }
        }
    };
    message.encode_to_vec().into()
}

pub(crate) fn decode_reply(bytes: Bytes) -> Result<Bytes, Error> {
    let message: ReplyMessage = decode("reply", bytes)
        .map_err(|error| Error::caused(ErrorKind::Unknown, "the leader's answer", error))?;
    let kind = match message.error {
        0 => return Ok(message.body),
        1 => ErrorKind::NotLeader(message.leader),
        2 => ErrorKind::Timeout,
        4 => ErrorKind::Refused,
        5 => ErrorKind::NotFound,
        6 => ErrorKind::Exists,
        7 => ErrorKind::Invalid,
        9 => ErrorKind::Unavailable,
        // A leader that stopped or failed meanwhile may have written the proposal before.
        _ => ErrorKind::Unknown,
    };
    Err(Error::new(kind, message.what))
}
