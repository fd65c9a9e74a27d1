//! One question for all who wait for its answer.
//!
//! Whoever asks while a question is under way waits for the next one: an answer is never older than its
//! question, so what was there when somebody asked is in it.

use std::sync::Weak;

use openraft::async_runtime::AsyncRuntime as _;
use tokio::sync::{mpsc, oneshot};

use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::machine::StateMachine;
use crate::node::{Inner, Node, gather};
use crate::transport::Transport;

/// Who may wait for one question.
const WAITERS_MAX: usize = 16_384;

/// What a question was answered, or the kind and text of its failure.
type Answer<T> = std::result::Result<T, (ErrorKind, String)>;

/// Where to ask.
pub(crate) struct Rounds<T>(mpsc::Sender<oneshot::Sender<Answer<T>>>);

/// Who asked.
pub(crate) struct Waiters<T>(mpsc::Receiver<oneshot::Sender<Answer<T>>>);

pub(crate) fn rounds<T>() -> (Rounds<T>, Waiters<T>) {
    let (sender, receiver) = mpsc::channel(WAITERS_MAX);
    (Rounds(sender), Waiters(receiver))
}

impl<T> Rounds<T> {
    /// The answer of a question that begins after this. Safe to cancel.
    pub(crate) async fn wait(&self) -> Result<T> {
        let stopped = || Error::new(ErrorKind::Stopped, "the member has stopped");
        let (sender, receiver) = oneshot::channel();
        self.0.send(sender).await.map_err(|_| stopped())?;
        let answer = receiver.await.map_err(|_| stopped())?;
        answer.map_err(|(kind, what)| Error::new(kind, what))
    }
}

impl<T: Clone + Send + 'static> Waiters<T> {
    /// Asks by `question` whenever somebody waits, until the member stops. The queue ends with the last
    /// handle on the member, so this holds none while it waits.
    pub(crate) fn serve<E, C, S, F>(
        mut self,
        node: Weak<Inner<E, C, S>>,
        question: impl Fn(Node<E, C, S>) -> F + Send + 'static,
    ) where
        E: Environment,
        C: Transport,
        S: StateMachine,
        F: Future<Output = Result<T>> + Send,
    {
        drop(E::Runtime::spawn(async move {
            let mut waiters = Vec::new();
            while gather(&mut self.0, &mut waiters).await {
                let Some(inner) = node.upgrade() else { return };
                let answer = question(Node { inner })
                    .await
                    .map_err(|error| (error.kind(), error.to_string()));
                for waiter in waiters.drain(..) {
                    // Who has given up needs no answer.
                    let _ = waiter.send(answer.clone());
                }
            }
        }));
    }
}
