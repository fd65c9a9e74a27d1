//! What the services need of consensus, and nothing more: the seam between gRPC and Raft.
//!
//! [`raft`](crate::raft) is what stands behind it in a node.

use std::sync::Arc;

use chainfire_store::View;
use etcd_wire::chainfire::{Command, LeaseTime, outcome};
use tonic::Status;

/// A member of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Never given to another member.
    pub id: u64,
    /// For people; empty until it has started.
    pub name: String,
    /// Where the other members reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty until it has started.
    pub client_urls: Vec<String>,
    /// Whether it only learns, without a vote.
    pub is_learner: bool,
}

/// How a member stands to the leader; known to the leader alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The member.
    pub id: u64,
    /// The newest entry that it is known to have.
    pub matched_index: u64,
    /// Milliseconds since its last answer; `None` without one.
    pub last_contact_ms: Option<u64>,
    /// Whether it answers.
    pub reachable: bool,
}

/// Where this member stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The cluster.
    pub cluster_id: u64,
    /// This member.
    pub member_id: u64,
    /// Its term.
    pub term: u64,
    /// Who leads; 0 when nobody is known to.
    pub leader_id: u64,
    /// The log's end.
    pub last_log_index: u64,
    /// The newest entry known to be committed.
    pub committed_index: u64,
    /// The newest entry applied here.
    pub applied_index: u64,
    /// The newest entry that the last snapshot holds.
    pub snapshot_index: u64,
    /// The newest entry that the log has given up.
    pub purged_index: u64,
    /// All members.
    pub members: Vec<Member>,
    /// The voter sets in force: one, or two while a joint change is under way.
    pub voters: Vec<Vec<u64>>,
    /// How the others stand; empty unless this member leads.
    pub progress: Vec<Progress>,
    /// Why the members cannot be changed now, if so.
    pub change_refused: Option<String>,
    /// Why this member serves no more, if so.
    pub failed: Option<String>,
}

impl Standing {
    /// Whether this member leads.
    pub fn leads(&self) -> bool {
        self.leader_id != 0 && self.leader_id == self.member_id
    }

    /// Whether this member has no vote.
    pub fn is_learner(&self) -> bool {
        let own = self
            .members
            .iter()
            .find(|member| member.id == self.member_id);
        own.is_some_and(|member| member.is_learner)
    }
}

/// A change of the members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// One more, a learner or a voter.
    Add(Member),
    /// One less.
    Remove(u64),
    /// A learner becomes a voter.
    Promote(u64),
    /// Other endpoints or another name: what is empty stays.
    Update(Member),
    /// Another set of voters, in one step.
    Replace {
        /// The voters after it.
        voters: Vec<u64>,
        /// Members that are new.
        added: Vec<Member>,
        /// Voters that leave stay as learners.
        retain: bool,
    },
}

/// Consensus, as the services see it.
#[tonic::async_trait]
pub trait Consensus: Send + Sync + 'static {
    /// The cluster.
    fn cluster_id(&self) -> u64;

    /// This member.
    fn member_id(&self) -> u64;

    /// This member's term, as of lately; costs nothing.
    fn term(&self) -> u64;

    /// Replicates a command; its answer once it was applied here.
    ///
    /// # Errors
    /// etcd's error that the command was answered with, or why there is no answer.
    async fn propose(&self, command: Command) -> Result<outcome::Result, Status>;

    /// As [`Consensus::propose`], but only while this member leads in `term`.
    ///
    /// # Errors
    /// As [`Consensus::propose`]; `NotLeader`: nothing was done.
    async fn propose_leading(&self, term: u64, command: Command)
    -> Result<outcome::Result, Status>;

    /// Returns once everything that was committed before the call was applied here.
    async fn barrier(&self) -> Result<(), Status>;

    /// The state, as of now.
    fn view(&self) -> Arc<View>;

    /// Where this member stands.
    fn standing(&self) -> Standing;

    /// Changes the members; those after it.
    async fn change(&self, change: Change) -> Result<Vec<Member>, Status>;

    /// Hands leadership to a member; to the most advanced one for 0. Who leads then.
    async fn transfer(&self, to: u64) -> Result<u64, Status>;

    /// Asks the leader for a lease's time, and renews it unless `peek`. `None`: no such lease.
    async fn lease_time(&self, id: i64, peek: bool) -> Result<Option<LeaseTime>, Status>;
}
