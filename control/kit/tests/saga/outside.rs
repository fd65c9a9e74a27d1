//! What the operations of these tests work on, outside of the store: it remembers what was done, does each
//! thing once, and refuses whoever comes with an older epoch than it has seen.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use control_kit::saga::{StepContext, StepError};

use crate::process::STEPS;

/// The world outside.
#[derive(Clone, Default)]
pub struct Outside(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Steps done, by object.
    done: BTreeMap<String, Vec<&'static str>>,
    /// The greatest epoch seen, by object.
    epochs: BTreeMap<String, i64>,
    fail_at: Option<&'static str>,
    jammed: bool,
    dice: u64,
    /// Chance of a failure, in a thousand.
    failures: u64,
}

impl Outside {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This step can never be done.
    pub fn fail_at(&self, step: Option<&'static str>) {
        self.state().fail_at = step;
    }

    /// Nothing can be undone.
    pub fn jam(&self, jammed: bool) {
        self.state().jammed = jammed;
    }

    /// Steps fail by chance, in a thousand, from a seed.
    pub fn roll(&self, seed: u64, failures: u64) {
        let mut state = self.state();
        state.dice = seed;
        state.failures = failures;
    }

    /// What is done for an object, in the order of the steps.
    pub fn of(&self, object: &str) -> Vec<&'static str> {
        let state = self.state();
        let done = state.done.get(object).cloned().unwrap_or_default();
        STEPS
            .into_iter()
            .filter(|step| done.contains(step))
            .collect()
    }

    fn chance(state: &mut State) -> bool {
        state.dice = state
            .dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state.dice >> 33) % 1000 < state.failures
    }

    /// Does a step.
    pub fn apply(&self, context: &StepContext, step: &'static str) -> Result<(), StepError> {
        let mut state = self.state();
        Self::fence(&mut state, context)?;
        if state.fail_at == Some(step) {
            return Err(StepError::Fatal("this one never works".into()));
        }
        let (before, after) = (Self::chance(&mut state), Self::chance(&mut state));
        if before {
            return Err(StepError::Retry("nothing happened".into()));
        }
        let done = state
            .done
            .entry(context.record().object.clone())
            .or_default();
        if !done.contains(&step) {
            done.push(step);
        }
        if after {
            return Err(StepError::Retry("it happened, and nobody heard".into()));
        }
        Ok(())
    }

    /// Undoes a step.
    pub fn revert(&self, context: &StepContext, step: &'static str) -> Result<(), StepError> {
        let mut state = self.state();
        Self::fence(&mut state, context)?;
        if state.jammed || Self::chance(&mut state) {
            return Err(StepError::Retry("it does not let go".into()));
        }
        let object = &context.record().object;
        state
            .done
            .entry(object.clone())
            .or_default()
            .retain(|done| *done != step);
        Ok(())
    }

    fn fence(state: &mut State, context: &StepContext) -> Result<(), StepError> {
        let seen = state
            .epochs
            .entry(context.record().object.clone())
            .or_default();
        if context.epoch() < *seen {
            return Err(StepError::Fatal("a later executor was here".into()));
        }
        *seen = context.epoch();
        Ok(())
    }
}
