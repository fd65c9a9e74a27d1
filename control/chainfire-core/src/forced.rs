//! A new cluster from one survivor, after a quorum was lost for good.
//!
//! The survivor's log gets one more entry: a membership of itself alone, in a term after all it has
//! voted in. When it starts it is its own quorum: it elects itself and commits the whole log, also
//! entries that were never acknowledged. What the lost members alone had acknowledged is lost, so
//! take the survivor with the longest log. The other old members must not start again with their
//! old disks: give them empty ones and add them anew.

use std::collections::{BTreeMap, BTreeSet};

use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::machine::{Standing, parse_standing};
use crate::types::{Entry, LogId, Member, Membership, NodeId, Payload, Vote};
use crate::wal::{self, Opened, WalOptions, position};

/// Makes the stopped member `id`, whose log is on `disk` and whose state machine stands at
/// `standing`, the only member of its cluster. Returns who was given up.
///
/// # Errors
/// [`ErrorKind::NotFound`] where the member is not in the membership that its log ends with; a
/// disk that fails or is damaged. Then nothing has changed.
pub fn force_new_cluster<D: Disk>(
    disk: D,
    options: WalOptions,
    standing: &Standing,
    id: NodeId,
) -> Result<BTreeMap<NodeId, Member>> {
    let failed = |error| Error::storage("making a new cluster of one survivor", error);
    let mut opened = wal::open(disk, options)?;
    let (applied, stored) = parse_standing(standing).map_err(failed)?;
    let newest = newest_membership(&opened)?.unwrap_or_else(|| stored.membership().clone());
    let member = newest.get_node(&id).cloned().ok_or_else(|| {
        let what = format!("member {id:x} is not in the membership that its log ends with");
        Error::new(ErrorKind::NotFound, what)
    })?;
    let last = opened.wal.bounds().1.max(applied);
    let vote_term = opened.wal.vote().map_or(0, |vote| vote.leader_id().term);
    let last_term = last.map_or(0, |id| **id.committed_leader_id());
    let term = vote_term.max(last_term) + 1;
    let alone = BTreeMap::from([(
        id,
        Member {
            becomes_voter: false,
            ..member
        },
    )]);
    let membership = Membership::new(vec![BTreeSet::from([id])], alone)
        .map_err(|error| Error::caused(ErrorKind::Invalid, "a membership of one", error))?;
    let entry = Entry {
        log_id: position(term, last.map_or(0, |id| id.index() + 1)),
        payload: Payload::Membership(membership),
    };
    opened
        .write_now(applied, Vote::new(term, id), entry)
        .map_err(failed)?;
    let others = newest.nodes().filter(|(other, _)| **other != id);
    Ok(others
        .map(|(&other, member)| (other, member.clone()))
        .collect())
}

/// The last membership in the log, committed or not.
fn newest_membership<D: Disk>(opened: &Opened<D>) -> Result<Option<Membership>> {
    let next = |id: Option<LogId>| id.map_or(0, |id| id.index() + 1);
    let (purged, last) = opened.wal.bounds();
    let (first, mut from) = (next(purged), next(last));
    while from > first {
        let start = from.saturating_sub(1024).max(first);
        let entries = opened
            .wal
            .read(start..from)
            .map_err(|error| Error::storage("reading the log's memberships", error))?;
        let found = entries
            .into_iter()
            .rev()
            .find_map(|entry| match entry.payload {
                Payload::Membership(membership) => Some(membership),
                _ => None,
            });
        if found.is_some() {
            return Ok(found);
        }
        from = start;
    }
    Ok(None)
}
