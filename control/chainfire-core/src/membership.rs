//! The rules of changing the membership: what a leader may do now, and what it refuses, saying why.
//!
//! One change at a time, and by the sequential verbs one voter at a time, written as one entry; any
//! other change of voters is [`Change::Joint`], which goes through a joint membership. A change is
//! refused where the members that answer now would not be a quorum after it. A new voter first
//! catches up as a learner.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;

use crate::codec::{DecodeError, MemberMessage, decode};
use crate::error::{Error, ErrorKind, Result};
use crate::types::{Member, Membership, NodeId, StoredMembership};

/// How many entries a learner may lack and still count as caught up.
pub const CAUGHT_UP_ENTRIES: u64 = 256;

/// A change of membership or of leadership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Adds a member that learns; with [`Member::becomes_voter`] the leader makes it a voter by
    /// itself once it has caught up.
    Add {
        /// Its identity, never used before.
        id: NodeId,
        /// Where it is.
        member: Member,
    },
    /// Makes a learner that has caught up a voter.
    Promote {
        /// The learner.
        id: NodeId,
    },
    /// Removes a member; the leader itself hands leadership on.
    Remove {
        /// The member.
        id: NodeId,
    },
    /// Replaces what is known of a member: its name and endpoints. The leader fills in the rest, so
    /// that a member with an old view undoes nothing.
    Update {
        /// The member.
        id: NodeId,
        /// What replaces it; what is empty stays.
        member: Member,
    },
    /// Replaces the whole set of voters in one step, through a joint membership.
    Joint {
        /// The voters after it.
        voters: BTreeSet<NodeId>,
        /// Members among them that are not in the cluster yet.
        members: BTreeMap<NodeId, Member>,
        /// Whether voters that leave stay as learners.
        retain: bool,
    },
    /// Hands leadership to a voter; to the one that has most of the log where none is named.
    Transfer {
        /// The voter.
        to: Option<NodeId>,
    },
}

/// What a leader knows when it judges a change.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    /// The leader.
    pub(crate) leader: NodeId,
    /// The newest membership, and whether it is committed.
    pub(crate) membership: StoredMembership,
    pub(crate) committed: bool,
    pub(crate) last_index: u64,
    /// How much of the log each other member has.
    pub(crate) matched: BTreeMap<NodeId, u64>,
    /// Who answered lately; the leader itself counts.
    pub(crate) reachable: BTreeSet<NodeId>,
}

/// What to do for a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Write this membership, which differs by at most one voter.
    Append(Membership),
    /// Replace what is known of members.
    Set(BTreeMap<NodeId, Member>),
    /// Go to these voters through a joint membership.
    Joint {
        voters: BTreeSet<NodeId>,
        members: BTreeMap<NodeId, Member>,
        /// Voters that stay as learners.
        demoted: BTreeMap<NodeId, Member>,
        retain: bool,
    },
    /// Hand leadership over.
    Transfer(NodeId),
}

fn refused(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Refused, what)
}

fn quorum(voters: &BTreeSet<NodeId>) -> usize {
    voters.len() / 2 + 1
}

fn append(voters: BTreeSet<NodeId>, members: BTreeMap<NodeId, Member>) -> Result<Plan> {
    let membership = Membership::new(vec![voters], members);
    let membership =
        membership.map_err(|error| Error::caused(ErrorKind::Invalid, "the membership", error))?;
    Ok(Plan::Append(membership))
}

impl Known {
    fn voters(&self) -> &BTreeSet<NodeId> {
        static NONE: BTreeSet<NodeId> = BTreeSet::new();
        self.membership.get_joint_config().last().unwrap_or(&NONE)
    }

    fn members(&self) -> BTreeMap<NodeId, Member> {
        self.membership
            .nodes()
            .map(|(&id, member)| (id, member.clone()))
            .collect()
    }

    /// Whether `id` has nearly all of the log.
    pub(crate) fn caught_up(&self, id: NodeId) -> bool {
        let matched = self.matched.get(&id).copied();
        id == self.leader
            || matched.is_some_and(|matched| matched + CAUGHT_UP_ENTRIES >= self.last_index)
    }

    /// Why no change may begin now, if so.
    pub(crate) fn under_way(&self) -> Option<String> {
        if self.committed && self.membership.get_joint_config().len() == 1 {
            return None;
        }
        let at = self.membership.log_id().map_or(0, |id| id.index());
        Some(format!(
            "a change of the membership (entry {at}) is under way; wait until it is committed"
        ))
    }

    fn require_settled(&self) -> Result<()> {
        self.under_way().map_or(Ok(()), |why| Err(refused(why)))
    }

    fn require_member(&self, id: NodeId) -> Result<Member> {
        let member = self.membership.get_node(&id).cloned();
        member.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no member {id:x}")))
    }

    fn require_quorum(&self, voters: &BTreeSet<NodeId>) -> Result<()> {
        let answering = voters.intersection(&self.reachable).count();
        if answering >= quorum(voters) {
            return Ok(());
        }
        let silent: Vec<String> = voters
            .difference(&self.reachable)
            .map(|id| format!("{id:x}"))
            .collect();
        Err(refused(format!(
            "only {answering} of the {} voters after it answer, {} are needed; first repair or \
             remove {}",
            voters.len(),
            quorum(voters),
            silent.join(", "),
        )))
    }

    fn require_free_urls(&self, id: NodeId, urls: &[String]) -> Result<()> {
        for (&other, member) in self.membership.nodes() {
            if let Some(url) = member.peer_urls.iter().find(|url| urls.contains(url))
                && other != id
            {
                let what = format!("member {other:x} already has the peer URL {url}");
                return Err(Error::new(ErrorKind::Exists, what));
            }
        }
        Ok(())
    }
}

/// What to do for `change`, or why it is refused.
pub(crate) fn plan(known: &Known, change: &Change) -> Result<Plan> {
    if !matches!(change, Change::Transfer { .. }) {
        known.require_settled()?;
    }
    match change {
        Change::Add { id, member } => {
            if known.membership.get_node(id).is_some() {
                return Err(Error::new(
                    ErrorKind::Exists,
                    format!("member {id:x} exists"),
                ));
            }
            known.require_free_urls(*id, &member.peer_urls)?;
            let mut members = known.members();
            members.insert(*id, member.clone());
            append(known.voters().clone(), members)
        }
        Change::Promote { id } => promote(known, *id),
        Change::Remove { id } => {
            known.require_member(*id)?;
            let mut voters = known.voters().clone();
            if voters.remove(id) {
                if voters.is_empty() {
                    return Err(refused(format!("member {id:x} is the last voter")));
                }
                known.require_quorum(&voters)?;
            }
            let mut members = known.members();
            members.remove(id);
            append(voters, members)
        }
        Change::Update { id, member } => {
            let before = known.require_member(*id)?;
            known.require_free_urls(*id, &member.peer_urls)?;
            Ok(Plan::Set(BTreeMap::from([(*id, updated(before, member))])))
        }
        Change::Joint {
            voters,
            members,
            retain,
        } => joint(known, voters, members, *retain),
        Change::Transfer { to } => transfer(known, *to),
    }
}

/// A member with what a change says of it; what it leaves empty stays.
fn updated(before: Member, change: &Member) -> Member {
    let mut member = before;
    if !change.name.is_empty() {
        member.name.clone_from(&change.name);
    }
    if !change.peer_urls.is_empty() {
        member.peer_urls.clone_from(&change.peer_urls);
    }
    if !change.client_urls.is_empty() {
        member.client_urls.clone_from(&change.client_urls);
    }
    member
}

fn promote(known: &Known, id: NodeId) -> Result<Plan> {
    known.require_member(id)?;
    let mut voters = known.voters().clone();
    if !voters.insert(id) {
        return Err(refused(format!(
            "member {id:x} is a voter already, not a learner"
        )));
    }
    if !known.caught_up(id) {
        let matched = known.matched.get(&id).copied().unwrap_or(0);
        return Err(refused(format!(
            "learner {id:x} has entries up to {matched} of {}; promote it when it has caught up",
            known.last_index
        )));
    }
    known.require_quorum(&voters)?;
    append(voters, known.members())
}

fn joint(
    known: &Known,
    voters: &BTreeSet<NodeId>,
    members: &BTreeMap<NodeId, Member>,
    retain: bool,
) -> Result<Plan> {
    if voters.is_empty() {
        return Err(Error::new(ErrorKind::Invalid, "a cluster needs a voter"));
    }
    for (id, member) in members {
        if known.membership.get_node(id).is_some() {
            return Err(Error::new(
                ErrorKind::Exists,
                format!("member {id:x} exists"),
            ));
        }
        known.require_free_urls(*id, &member.peer_urls)?;
    }
    for id in voters {
        if !members.contains_key(id) {
            known.require_member(*id)?;
        }
    }
    // New members begin empty: those that have the log now must be a quorum by themselves.
    let ready: BTreeSet<NodeId> = known
        .reachable
        .iter()
        .copied()
        .filter(|&id| known.voters().contains(&id) || known.caught_up(id))
        .collect();
    let known = Known {
        reachable: ready,
        ..known.clone()
    };
    known.require_quorum(voters)?;
    // Who is voted out on purpose is not made a voter again.
    let demoted = known.voters().difference(voters).filter_map(|id| {
        let member = known.membership.get_node(id)?;
        let becomes_voter = false;
        Some((
            *id,
            Member {
                becomes_voter,
                ..member.clone()
            },
        ))
    });
    Ok(Plan::Joint {
        voters: voters.clone(),
        members: members.clone(),
        demoted: if retain {
            demoted.collect()
        } else {
            BTreeMap::new()
        },
        retain,
    })
}

fn transfer(known: &Known, to: Option<NodeId>) -> Result<Plan> {
    let candidates = known
        .voters()
        .iter()
        .copied()
        .filter(|&id| id != known.leader);
    let to = match to {
        Some(id) if id == known.leader => return Ok(Plan::Transfer(id)),
        Some(id) => id,
        None => candidates
            .filter(|id| known.reachable.contains(id))
            .max_by_key(|id| known.matched.get(id).copied())
            .ok_or_else(|| refused("no other voter answers"))?,
    };
    known.require_member(to)?;
    if !known.voters().contains(&to) {
        return Err(refused(format!(
            "member {to:x} is a learner and cannot lead"
        )));
    }
    if !known.reachable.contains(&to) {
        return Err(refused(format!(
            "member {to:x} does not answer and cannot lead now"
        )));
    }
    Ok(Plan::Transfer(to))
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct ChangeMessage {
    #[prost(enumeration = "Verb", tag = "1")]
    verb: i32,
    #[prost(uint64, tag = "2")]
    id: u64,
    #[prost(message, repeated, tag = "3")]
    members: Vec<MemberMessage>,
    #[prost(uint64, repeated, tag = "4")]
    voters: Vec<u64>,
    #[prost(bool, tag = "5")]
    retain: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum Verb {
    Unspecified = 0,
    Add = 1,
    Promote = 2,
    Remove = 3,
    Update = 4,
    Joint = 5,
    Transfer = 6,
}

pub(crate) fn encode_change(change: &Change) -> bytes::Bytes {
    let mut message = ChangeMessage::default();
    match change {
        Change::Add { id, member } => {
            message.set_verb(Verb::Add);
            message.members = vec![MemberMessage::new(*id, member)];
        }
        Change::Promote { id } => {
            message.set_verb(Verb::Promote);
            message.id = *id;
        }
        Change::Remove { id } => {
            message.set_verb(Verb::Remove);
            message.id = *id;
        }
        Change::Update { id, member } => {
            message.set_verb(Verb::Update);
            message.members = vec![MemberMessage::new(*id, member)];
        }
        Change::Joint {
            voters,
            members,
            retain,
        } => {
            message.set_verb(Verb::Joint);
            message.voters = voters.iter().copied().collect();
            message.members = members
                .iter()
                .map(|(&id, member)| MemberMessage::new(id, member))
                .collect();
            message.retain = *retain;
        }
        Change::Transfer { to } => {
            message.set_verb(Verb::Transfer);
            message.voters = to.iter().copied().collect();
        }
    }
    message.encode_to_vec().into()
}

pub(crate) fn decode_change(bytes: bytes::Bytes) -> std::result::Result<Change, DecodeError> {
    const OBJECT: &str = "membership change";
    let message: ChangeMessage = decode(OBJECT, bytes)?;
    let verb = message.verb();
    let mut members: BTreeMap<NodeId, Member> = message
        .members
        .into_iter()
        .map(MemberMessage::into_parts)
        .collect();
    let mut one = || {
        members
            .pop_first()
            .ok_or_else(|| DecodeError::new(OBJECT, "no member"))
    };
    Ok(match verb {
        Verb::Add => {
            let (id, member) = one()?;
            Change::Add { id, member }
        }
        Verb::Update => {
            let (id, member) = one()?;
            Change::Update { id, member }
        }
        Verb::Promote => Change::Promote { id: message.id },
        Verb::Remove => Change::Remove { id: message.id },
        Verb::Joint => Change::Joint {
            voters: message.voters.into_iter().collect(),
            members,
            retain: message.retain,
        },
        Verb::Transfer => Change::Transfer {
            to: message.voters.first().copied(),
        },
        Verb::Unspecified => return Err(DecodeError::new(OBJECT, "no verb")),
    })
}
