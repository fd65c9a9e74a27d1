//! Restart over many keys: from the start of the process to the first signed GET that is answered,
//! after a clean stop, and after kill -9 with a tail of the log that no checkpoint holds.
//!
//! The process is looked at every 20 ms, so a figure may be that much too high. The files' pages are
//! as the stopped node left them; the log is read past the page cache. What was answered before the
//! end must be there after it.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};

use super::tiny::Tiny;
use super::{Lab, row};
use crate::objects::contenders::{Node, Setup};
use crate::report::Row;

/// The most that a restart over a million keys may take: under 5 s, looked at every 20 ms.
const RESTART_S_MAX: f64 = 4.999;
/// From so many keys on the bar is judged.
const KEYS_JUDGED: u32 = 1_000_000;
/// The most keys that are written anew between two ends, and the parts of all that they are.
const REWRITTEN_MAX: u32 = 100_000;

/// A node that was started again.
pub(super) struct Restarted {
    pub(super) node: Node,
    /// Until it said that it is ready.
    pub(super) ready_s: f64,
    /// Until a signed GET was answered.
    pub(super) served_s: f64,
}

/// Starts a node over what is there and asks it for the object of the first turn.
pub(super) fn restart(lab: &Lab<'_>, tiny: Tiny) -> Result<Restarted> {
    let node = lab.node(&Setup::default())?;
    node.site.endpoint.ask("GET", &tiny.path(0), "")?;
    let served_s = node.started.elapsed().as_secs_f64();
    let objects = node.metric("uc_lightningstor_objects")?;
    ensure!(
        objects == u64::from(tiny.count),
        "{objects} objects after the restart, expected {}",
        tiny.count
    );
    Ok(Restarted {
        ready_s: node.ready_after.as_secs_f64(),
        served_s,
        node,
    })
}

/// How a node ended before a restart.
#[derive(Clone, Copy)]
pub(super) enum End {
    /// SIGTERM: it closes its stores.
    Stopped,
    /// SIGKILL.
    Killed,
}

impl End {
    pub(super) fn of(self, node: Node) -> Result<()> {
        match self {
            Self::Stopped => node.stop(),
            Self::Killed => node.kill(),
        }
    }
}

/// Seconds of one kind of restart, round by round.
#[derive(Default)]
struct Times {
    ready_s: Vec<f64>,
    served_s: Vec<f64>,
}

/// Runs the trial.
pub(super) fn run(lab: &Lab<'_>) -> Result<Vec<Row>> {
    let tiny = Tiny {
        count: lab.args.restart_keys,
    };
    let mut node = lab.node(&Setup::default())?;
    Tiny::make_bucket(&node.site.endpoint)?;
    tiny.fill(&node.site.endpoint, tiny.count, 0)?;
    let (mut stopped, mut killed) = (Times::default(), Times::default());
    for round in lab.rounds() {
        for (at, end) in [End::Stopped, End::Killed].into_iter().enumerate() {
            let mark = 2 * round + at as u32 + 1;
            // Tails of different lengths, the longest as long as all rounds allow.
            let part = REWRITTEN_MAX.min(tiny.count) / lab.args.rounds * (round + 1);
            let rewritten = part.max(1);
            tiny.fill(&node.site.endpoint, rewritten, mark)?;
            end.of(node)?;
            let again = restart(lab, tiny)?;
            tiny.check(&again.node.site.endpoint, rewritten, mark)?;
            let times = match end {
                End::Stopped => &mut stopped,
                End::Killed => &mut killed,
            };
            times.ready_s.push(again.ready_s);
            times.served_s.push(again.served_s);
            node = again.node;
        }
    }
    node.stop()?;
    let limit = (tiny.count >= KEYS_JUDGED).then_some(RESTART_S_MAX);
    Ok(vec![
        row("restart/keys", "keys", &[f64::from(tiny.count)], None)?,
        row("restart/clean", "s", &stopped.served_s, limit)?,
        row("restart/clean-ready", "s", &stopped.ready_s, None)?,
        row("restart/killed", "s", &killed.served_s, limit)?,
        row("restart/killed-ready", "s", &killed.ready_s, None)?,
    ])
}
