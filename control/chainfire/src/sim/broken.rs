//! Worlds in which something is broken, to see that the checks find it. What is broken lies between the
//! parts of a member: the parts are those of every other scenario.

use std::sync::Arc;

use chainfire_core::AsyncRuntime as _;
use chainfire_core::sim::runtime::NodeRuntime;
use chainfire_core::sim::seeds;
use chainfire_store::{Op, View};
use etcd_wire::chainfire::{Command, LeaseTime, outcome};
use etcd_wire::etcdserverpb::{LeaseRevokeResponse, PutResponse, ResponseHeader, WatchResponse};
use etcd_wire::mvccpb::Event;
use tokio::sync::mpsc;
use tonic::Status;

use super::scenario;
use crate::consensus::{Change, Consensus, Member, Standing};
use crate::watch::stream::CHANNEL_LENGTH;

/// So many seeds are played at most.
const SEEDS: u64 = 12;

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breakage {
    /// The last event of an answer to a watcher is missing.
    EventLost,
    /// Two events of an answer change places.
    EventsSwapped,
    /// An answer to a watcher comes twice.
    EventTwice,
    /// The events of a revision come in two answers.
    RevisionSplit,
    /// Linearizable reads do not wait for their barrier.
    Barrier,
    /// Puts are acknowledged and not proposed.
    Put,
    /// A lease that is kept alive does not get its time.
    Renewal,
    /// A lease that has ended is not revoked.
    Revocation,
}

type Answer = Result<WatchResponse, Status>;

fn revision(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

impl Breakage {
    /// What a watcher is told instead of an answer.
    fn told(self, mut answer: WatchResponse) -> Vec<WatchResponse> {
        let count = answer.events.len();
        match self {
            Breakage::EventLost if count > 0 => {
                answer.events.pop();
                let rest = !answer.events.is_empty();
                rest.then_some(answer).into_iter().collect()
            }
            Breakage::EventsSwapped if count > 1 => {
                answer.events.swap(0, count - 1);
                vec![answer]
            }
            Breakage::EventTwice if count > 0 => vec![answer.clone(), answer],
            Breakage::RevisionSplit if count > 1 => {
                let (before, last) = (&answer.events[count - 2], &answer.events[count - 1]);
                if revision(before) != revision(last) {
                    return vec![answer];
                }
                let mut rest = answer.clone();
                rest.events = answer.events.split_off(count - 1);
                vec![answer, rest]
            }
            _ => vec![answer],
        }
    }

    /// What comes out of a watch stream instead of `answers`. To be called on the member.
    pub fn between(self, mut answers: mpsc::Receiver<Answer>) -> mpsc::Receiver<Answer> {
        let (outgoing, told) = mpsc::channel(CHANNEL_LENGTH);
        drop(NodeRuntime::spawn(async move {
            while let Some(answer) = answers.recv().await {
                let instead = match answer {
                    Ok(answer) => self.told(answer).into_iter().map(Ok).collect(),
                    Err(status) => vec![Err(status)],
                };
                for answer in instead {
                    if outgoing.send(answer).await.is_err() {
                        return;
                    }
                }
            }
        }));
        told
    }
}

/// Consensus, of which something may be broken.
pub struct Broken<C> {
    pub consensus: Arc<C>,
    pub breakage: Option<Breakage>,
}

impl<C: Consensus> Broken<C> {
    fn is(&self, breakage: Breakage) -> bool {
        self.breakage == Some(breakage)
    }

    /// What would have been answered if a command had been applied now.
    fn header(&self) -> ResponseHeader {
        ResponseHeader {
            revision: self.view().revision() + 1,
            ..ResponseHeader::default()
        }
    }
}

#[tonic::async_trait]
impl<C: Consensus> Consensus for Broken<C> {
    fn cluster_id(&self) -> u64 {
        self.consensus.cluster_id()
    }

    fn member_id(&self) -> u64 {
        self.consensus.member_id()
    }

    fn term(&self) -> u64 {
        self.consensus.term()
    }

    async fn propose(&self, command: Command) -> Result<outcome::Result, Status> {
        if self.is(Breakage::Put) && matches!(command.op, Some(Op::Put(_))) {
            let header = Some(self.header());
            return Ok(outcome::Result::Put(PutResponse {
                header,
                ..PutResponse::default()
            }));
        }
        self.consensus.propose(command).await
    }

    async fn propose_leading(
        &self,
        term: u64,
        command: Command,
    ) -> Result<outcome::Result, Status> {
        if self.is(Breakage::Revocation) && matches!(command.op, Some(Op::LeaseRevoke(_))) {
            let header = Some(self.header());
            return Ok(outcome::Result::LeaseRevoke(LeaseRevokeResponse { header }));
        }
        self.consensus.propose_leading(term, command).await
    }

    async fn barrier(&self) -> Result<(), Status> {
        if self.is(Breakage::Barrier) {
            return Ok(());
        }
        self.consensus.barrier().await
    }

    fn view(&self) -> Arc<View> {
        self.consensus.view()
    }

    fn standing(&self) -> Standing {
        self.consensus.standing()
    }

    async fn change(&self, change: Change) -> Result<Vec<Member>, Status> {
        self.consensus.change(change).await
    }

    async fn transfer(&self, to: u64) -> Result<u64, Status> {
        self.consensus.transfer(to).await
    }

    async fn lease_time(&self, id: i64, peek: bool) -> Result<Option<LeaseTime>, Status> {
        if !self.is(Breakage::Renewal) {
            return self.consensus.lease_time(id, peek).await;
        }
        let time = self.consensus.lease_time(id, true).await?;
        Ok(time.map(|time| LeaseTime {
            ttl: time.granted_ttl,
            ..time
        }))
    }
}

/// Whether some check says one of `expected`.
fn is_found(breakage: Breakage, expected: &[&str]) {
    let play = |seed| scenario::run_with(seed, Some(breakage));
    seeds::find(0..SEEDS, play, expected);
}

/// What the watchers' check says.
const TOLD: &[&str] = &["told a watcher from"];

#[test]
fn a_lost_event_is_found() {
    is_found(Breakage::EventLost, TOLD);
}

#[test]
fn swapped_events_are_found() {
    is_found(Breakage::EventsSwapped, TOLD);
}

#[test]
fn an_event_that_comes_twice_is_found() {
    is_found(Breakage::EventTwice, TOLD);
}

#[test]
fn a_revision_that_comes_in_parts_is_found() {
    is_found(Breakage::RevisionSplit, TOLD);
}

#[test]
fn a_read_without_its_barrier_is_found() {
    let expected = ["an answer is older than", "is not linearizable"];
    is_found(Breakage::Barrier, &expected);
}

#[test]
fn a_put_that_is_acknowledged_and_forgotten_is_found() {
    let expected = ["it was put", "Put {", "an answer is older than"];
    is_found(Breakage::Put, &expected);
}

#[test]
fn a_lease_that_ends_although_it_was_kept_alive_is_found() {
    is_found(Breakage::Renewal, &["a lease ended after"]);
}

#[test]
fn a_lease_that_does_not_end_is_found() {
    let expected = ["all leases end by themselves", "is not linearizable"];
    is_found(Breakage::Revocation, &expected);
}
