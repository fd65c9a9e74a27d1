//! One operation, from where it stands to its end.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use serde_json::Value;

use super::executor::Inner;
use super::journal::{Tracked, Written};
use super::record::{Record, STEPS_CHANGED, State, Trouble, UNDO_FAILED};
use super::{Definition, Step, StepContext, StepError};
use crate::backoff::Backoff;
use crate::clock::millis;
use crate::lease::Fence;
use crate::stop::Stop;
use crate::store::Txn;

/// Works on an operation until it ends, fails, is somebody else's, or the end of the process is asked for.
pub async fn drive(inner: Arc<Inner>, fence: Fence, mut tracked: Tracked, stop: Stop) {
    let Some(definition) = inner.definitions.get(tracked.record.kind.as_str()) else {
        return;
    };
    while tracked.record.state.is_open() && !stop.is_requested() {
        let now = inner.config.clock.unix_ms();
        let pause = tracked.record.retry_unix_ms.saturating_sub(now);
        if pause > 0 {
            tokio::select! {
                biased;
                () = stop.requested() => return,
                () = tokio::time::sleep(Duration::from_millis(pause)) => {}
            }
        }
        let (mut next, mut staged) = advance(&inner, definition, &tracked.record).await;
        let mod_revision = loop {
            match write(&inner, &fence, &tracked, &next, staged).await {
                Written::At(revision) => break revision,
                Written::Lost => return,
                // What the step requires does not hold: that was a try, and it is done again.
                Written::Conflict => {
                    next = tracked.record.clone();
                    let step = definition.current(&next).map_or("", |step| step.name);
                    let error = StepError::Retry("a condition no longer holds".into());
                    not_well(&inner, &mut next, step, &error);
                    staged = Txn::default();
                }
            }
        };
        tracked = Tracked {
            record: next,
            mod_revision,
        };
    }
}

/// Writes until it is known how that ended.
async fn write(
    inner: &Inner,
    fence: &Fence,
    tracked: &Tracked,
    next: &Record,
    staged: Txn,
) -> Written {
    let mut backoff = Backoff::new(inner.config.retry_first, inner.config.retry_longest);
    loop {
        let before = tracked.mod_revision;
        let written = inner.journal.write(fence, before, next, staged.clone());
        match written.await {
            Ok(written) => return written,
            Err(error) => {
                tracing::warn!(id = %next.id, %error, "the end of a step cannot be written yet");
                inner.metrics.write_failures.increment();
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }
}

/// Does, or undoes, the step under way once.
async fn advance(inner: &Inner, definition: &Definition, record: &Record) -> (Record, Txn) {
    let mut next = record.clone();
    let now = || inner.config.clock.unix_ms();
    if !definition.fits(record) {
        let trouble = inner.trouble("", "another version began it, with other steps");
        next.fail(STEPS_CHANGED, Some(trouble), now());
        return (next, Txn::default());
    }
    let Some(step) = definition.current(record) else {
        let trouble = inner.trouble("", "no step is left, and it has not ended");
        next.fail(STEPS_CHANGED, Some(trouble), now());
        return (next, Txn::default());
    };
    if record.attempt >= inner.config.attempts_max {
        // Processes died of it, one after the other.
        let error = StepError::Fatal(format!("given up after {} tries", record.attempt));
        not_well(inner, &mut next, step.name, &error);
        return (next, Txn::default());
    }
    let context = StepContext::new(record.clone(), step.name);
    match attempt(inner, step, record.state, context.clone()).await {
        Ok(output) if record.state == State::Running => {
            let last = record.done.len() + 1 == definition.steps.len();
            next.step_done(step.name, output, last, now());
            (next, context.staged())
        }
        Ok(_) => {
            next.step_undone(now());
            (next, context.staged())
        }
        Err(error) => {
            not_well(inner, &mut next, step.name, &error);
            (next, Txn::default())
        }
    }
}

async fn attempt(
    inner: &Inner,
    step: &Step,
    state: State,
    context: StepContext,
) -> Result<Value, StepError> {
    inner.metrics.steps.increment();
    let run = if state == State::Running {
        &step.run
    } else {
        &step.undo
    };
    let running = AssertUnwindSafe(run(context)).catch_unwind();
    match tokio::time::timeout(inner.config.step_limit, running).await {
        Ok(Ok(ended)) => ended,
        Ok(Err(_)) => Err(StepError::Retry("the step panicked; see the log".into())),
        Err(_) => {
            let limit = inner.config.step_limit;
            Err(StepError::Retry(format!("no end within {limit:?}")))
        }
    }
}

/// What becomes of an operation whose step did not end well.
fn not_well(inner: &Inner, next: &mut Record, step: &str, error: &StepError) {
    let trouble = inner.trouble(step, &error.to_string());
    let now = trouble.at_unix_ms;
    let undoing = next.state == State::Undoing;
    let late = !undoing && now > next.deadline_unix_ms;
    let last = next.attempt + 1 >= inner.config.attempts_max;
    if matches!(error, StepError::Retry(_)) && !late && !last {
        let backoff = Backoff::new(inner.config.retry_first, inner.config.retry_longest);
        let pause = backoff.before(next.attempt + 1);
        next.try_again(trouble, now + millis(pause));
    } else if undoing {
        next.fail(UNDO_FAILED, Some(trouble), now);
    } else {
        next.turn_back(trouble);
    }
}

impl Definition {
    /// The step under way.
    fn current(&self, record: &Record) -> Option<&Step> {
        let name = record.current(self.steps())?;
        self.steps.iter().find(|step| step.name == name)
    }
}

impl Inner {
    fn trouble(&self, step: &str, message: &str) -> Trouble {
        Trouble {
            step: step.to_owned(),
            message: message.to_owned(),
            at_unix_ms: self.config.clock.unix_ms(),
        }
    }
}
