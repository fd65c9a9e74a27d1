//! Votes, log positions, entries and memberships as bytes: one encoding for the log, the snapshot
//! and the wire.
//!
//! Protocol buffers, so that a later version can add fields. Decoding checks everything that the
//! types promise; bytes that break a promise are a [`DecodeError`], never a panic.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use prost::Message;

use crate::types::{
    CommittedLeaderId, Entry, LogId, Member, Membership, Payload, Proposal, RequestId,
    SnapshotMeta, StoredMembership, Vote,
};

/// Bytes that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {what}")]
pub struct DecodeError {
    /// What was being decoded.
    pub object: &'static str,
    /// What is wrong with it.
    pub what: String,
}

impl DecodeError {
    pub(crate) fn new(object: &'static str, what: impl fmt::Display) -> Self {
        Self {
            object,
            what: what.to_string(),
        }
    }
}

/// Decodes a message, naming it in the error.
pub(crate) fn decode<M: Message + Default>(
    object: &'static str,
    bytes: impl bytes::Buf,
) -> Result<M, DecodeError> {
    M::decode(bytes).map_err(|error| DecodeError::new(object, error))
}

/// Terms and indexes are below this, as whoever holds one counts on from it.
const NUMBER_END: u64 = 1 << 63;

fn number(object: &'static str, number: u64) -> Result<u64, DecodeError> {
    if number < NUMBER_END {
        return Ok(number);
    }
    Err(DecodeError::new(
        object,
        format!("terms and indexes below 2^63 are expected, not {number}"),
    ))
}

/// A field that may be there.
pub(crate) fn optional<M, T>(field: Option<M>) -> Result<Option<T>, DecodeError>
where
    T: TryFrom<M, Error = DecodeError>,
{
    field.map(TryInto::try_into).transpose()
}

/// A field that must be there.
pub(crate) fn required<T>(object: &'static str, field: Option<T>) -> Result<T, DecodeError> {
    field.ok_or_else(|| DecodeError::new(object, "a required field is missing"))
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct LogIdMessage {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    index: u64,
}

impl From<LogId> for LogIdMessage {
    fn from(id: LogId) -> Self {
        Self {
            term: **id.committed_leader_id(),
            index: id.index(),
        }
    }
}

impl TryFrom<LogIdMessage> for LogId {
    type Error = DecodeError;

    fn try_from(message: LogIdMessage) -> Result<Self, DecodeError> {
        const OBJECT: &str = "log position";
        let term = number(OBJECT, message.term)?;
        let index = number(OBJECT, message.index)?;
        Ok(LogId::new(CommittedLeaderId::new(term), index))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct VoteMessage {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    node: u64,
    #[prost(bool, tag = "3")]
    committed: bool,
}

impl From<Vote> for VoteMessage {
    fn from(vote: Vote) -> Self {
        let leader = vote.leader_id();
        Self {
            term: leader.term,
            node: leader.voted_for,
            committed: vote.is_committed(),
        }
    }
}

impl TryFrom<VoteMessage> for Vote {
    type Error = DecodeError;

    fn try_from(message: VoteMessage) -> Result<Self, DecodeError> {
        let term = number("vote", message.term)?;
        Ok(if message.committed {
            Vote::new_committed(term, message.node)
        } else {
            Vote::new(term, message.node)
        })
    }
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct MemberMessage {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, repeated, tag = "3")]
    peer_urls: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    client_urls: Vec<String>,
    #[prost(bool, tag = "5")]
    becomes_voter: bool,
}

impl MemberMessage {
    pub(crate) fn new(id: u64, member: &Member) -> Self {
        let Member {
            name,
            peer_urls,
            client_urls,
            becomes_voter,
        } = member.clone();
        Self {
            id,
            name,
            peer_urls,
            client_urls,
            becomes_voter,
        }
    }

    pub(crate) fn into_parts(self) -> (u64, Member) {
        let Self {
            id,
            name,
            peer_urls,
            client_urls,
            becomes_voter,
        } = self;
        (
            id,
            Member {
                name,
                peer_urls,
                client_urls,
                becomes_voter,
            },
        )
    }
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct VoterSetMessage {
    #[prost(uint64, repeated, tag = "1")]
    voters: Vec<u64>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct MembershipMessage {
    #[prost(message, repeated, tag = "1")]
    configs: Vec<VoterSetMessage>,
    #[prost(message, repeated, tag = "2")]
    members: Vec<MemberMessage>,
}

impl From<&Membership> for MembershipMessage {
    fn from(membership: &Membership) -> Self {
        let configs = membership.get_joint_config().iter();
        Self {
            configs: configs
                .map(|set| VoterSetMessage {
                    voters: set.iter().copied().collect(),
                })
                .collect(),
            members: membership
                .nodes()
                .map(|(&id, member)| MemberMessage::new(id, member))
                .collect(),
        }
    }
}

impl TryFrom<MembershipMessage> for Membership {
    type Error = DecodeError;

    fn try_from(message: MembershipMessage) -> Result<Self, DecodeError> {
        let configs: Vec<BTreeSet<u64>> = message
            .configs
            .into_iter()
            .map(|set| set.voters.into_iter().collect())
            .collect();
        let members: BTreeMap<u64, Member> = message
            .members
            .into_iter()
            .map(MemberMessage::into_parts)
            .collect();
        if configs.is_empty() && members.is_empty() {
            return Ok(Membership::default());
        }
        Membership::new(configs, members).map_err(|error| DecodeError::new("membership", error))
    }
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct StoredMembershipMessage {
    #[prost(message, optional, tag = "1")]
    log_id: Option<LogIdMessage>,
    #[prost(message, optional, tag = "2")]
    membership: Option<MembershipMessage>,
}

impl From<&StoredMembership> for StoredMembershipMessage {
    fn from(stored: &StoredMembership) -> Self {
        Self {
            log_id: (*stored.log_id()).map(Into::into),
            membership: Some(stored.membership().into()),
        }
    }
}

impl TryFrom<StoredMembershipMessage> for StoredMembership {
    type Error = DecodeError;

    fn try_from(message: StoredMembershipMessage) -> Result<Self, DecodeError> {
        let membership = message.membership.unwrap_or_default();
        Ok(Self::new(optional(message.log_id)?, membership.try_into()?))
    }
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct SnapshotMetaMessage {
    #[prost(message, optional, tag = "1")]
    last_log_id: Option<LogIdMessage>,
    #[prost(message, optional, tag = "2")]
    membership: Option<StoredMembershipMessage>,
}

impl From<&SnapshotMeta> for SnapshotMetaMessage {
    fn from(meta: &SnapshotMeta) -> Self {
        Self {
            last_log_id: meta.last_log_id.map(Into::into),
            membership: Some((&meta.last_membership).into()),
        }
    }
}

impl TryFrom<SnapshotMetaMessage> for SnapshotMeta {
    type Error = DecodeError;

    fn try_from(message: SnapshotMetaMessage) -> Result<Self, DecodeError> {
        Ok(Self {
            last_log_id: optional(message.last_log_id)?,
            last_membership: message.membership.unwrap_or_default().try_into()?,
        })
    }
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ProposalMessage {
    #[prost(uint64, tag = "1")]
    node: u64,
    #[prost(uint64, tag = "2")]
    boot: u64,
    #[prost(uint64, tag = "3")]
    number: u64,
    #[prost(bytes = "bytes", tag = "4")]
    command: Bytes,
}

impl From<&Proposal> for ProposalMessage {
    fn from(proposal: &Proposal) -> Self {
        let RequestId { node, boot, number } = proposal.request;
        Self {
            node,
            boot,
            number,
            command: proposal.command.clone(),
        }
    }
}

impl From<ProposalMessage> for Proposal {
    fn from(message: ProposalMessage) -> Self {
        let ProposalMessage {
            node,
            boot,
            number,
            command,
        } = message;
        Self {
            request: RequestId { node, boot, number },
            command,
        }
    }
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
enum PayloadMessage {
    #[prost(message, tag = "2")]
    Proposal(ProposalMessage),
    #[prost(message, tag = "3")]
    Membership(MembershipMessage),
}

/// An entry; without a payload it is a blank one.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct EntryMessage {
    #[prost(message, optional, tag = "1")]
    log_id: Option<LogIdMessage>,
    #[prost(oneof = "PayloadMessage", tags = "2, 3")]
    payload: Option<PayloadMessage>,
}

impl From<&Entry> for EntryMessage {
    fn from(entry: &Entry) -> Self {
        let payload = match &entry.payload {
            Payload::Blank => None,
            Payload::Normal(proposal) => Some(PayloadMessage::Proposal(proposal.into())),
            Payload::Membership(membership) => Some(PayloadMessage::Membership(membership.into())),
        };
        Self {
            log_id: Some(entry.log_id.into()),
            payload,
        }
    }
}

impl TryFrom<EntryMessage> for Entry {
    type Error = DecodeError;

    fn try_from(message: EntryMessage) -> Result<Self, DecodeError> {
        let payload = match message.payload {
            None => Payload::Blank,
            Some(PayloadMessage::Proposal(proposal)) => Payload::Normal(proposal.into()),
            Some(PayloadMessage::Membership(membership)) => {
                Payload::Membership(membership.try_into()?)
            }
        };
        Ok(Entry {
            log_id: required("entry", message.log_id)?.try_into()?,
            payload,
        })
    }
}

/// A stored membership as the state machine keeps it.
pub(crate) fn encode_membership(membership: &StoredMembership) -> Vec<u8> {
    StoredMembershipMessage::from(membership).encode_to_vec()
}

/// The inverse of [`encode_membership`]; no bytes are no membership.
pub(crate) fn decode_membership(bytes: &[u8]) -> Result<StoredMembership, DecodeError> {
    decode::<StoredMembershipMessage>("stored membership", bytes)?.try_into()
}

/// A log position as the state machine keeps it; none is no bytes.
pub(crate) fn encode_log_id(log_id: Option<LogId>) -> Vec<u8> {
    log_id.map_or_else(Vec::new, |id| {
        LogIdMessage::from(id).encode_length_delimited_to_vec()
    })
}

/// The inverse of [`encode_log_id`].
pub(crate) fn decode_log_id(bytes: &[u8]) -> Result<Option<LogId>, DecodeError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let message = LogIdMessage::decode_length_delimited(bytes)
        .map_err(|error| DecodeError::new("log position", error))?;
    Ok(Some(message.try_into()?))
}
