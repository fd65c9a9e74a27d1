//! Calls of one kind to one member: a stream that stays open, each request numbered, answers in any order.
//!
//! A request is written to at most one stream, once. So a call whose stream ended before its answer
//! may or may not have reached the other member, and is never sent again from here.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chainfire_core::TransportError;
use etcd_wire::chainfire::{PeerRequest, PeerResponse};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use super::transport::failed;

/// Requests on their way to the connection.
const REQUESTS_WAITING_MAX: usize = 64;

type Answer = Result<Bytes, TransportError>;

/// The requests that a stream is opened with.
pub(super) type Requests = ReceiverStream<PeerRequest>;

/// A stream of calls. Dropping it ends the stream.
pub(super) struct Calls {
    requests: mpsc::Sender<PeerRequest>,
    waiting: Arc<Waiting>,
    reader: AbortHandle,
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Calls {
    /// Opens a stream; calls may begin at once.
    pub(super) fn open<F>(open: impl FnOnce(Requests) -> F) -> Calls
    where
        F: Future<Output = Result<Response<Streaming<PeerResponse>>, Status>> + Send + 'static,
    {
        let (requests, receiver) = mpsc::channel(REQUESTS_WAITING_MAX);
        let waiting = Arc::new(Waiting::new());
        let reading = read(open(ReceiverStream::new(receiver)), Arc::clone(&waiting));
        let reader = tokio::spawn(reading).abort_handle();
        Calls {
            requests,
            waiting,
            reader,
        }
    }

    /// Whether it takes no more calls.
    pub(super) fn has_ended(&self) -> bool {
        self.waiting.lock().ended.is_some()
    }

    /// Makes one call.
    pub(super) async fn call(&self, mut request: PeerRequest, deadline: Duration) -> Answer {
        let (registered, answer) = self.waiting.register()?;
        request.number = registered.number;
        let asked = async {
            // A stream that ended meanwhile says why to all who wait.
            let _ = self.requests.send(request).await;
            answer.await
        };
        let answered = tokio::time::timeout(deadline, asked).await;
        let answered = answered.map_err(|_| TransportError::Timeout)?;
        answered.unwrap_or_else(|_| Err(ended("the call was given up")))
    }
}

fn ended(why: &str) -> TransportError {
    TransportError::Failed(why.to_owned())
}

/// Reads answers until the stream ends, and tells all who still wait why it did.
async fn read(
    opening: impl Future<Output = Result<Response<Streaming<PeerResponse>>, Status>>,
    waiting: Arc<Waiting>,
) {
    let why = match opening.await {
        Ok(response) => answers(response.into_inner(), &waiting).await,
        Err(status) => failed(&status),
    };
    waiting.end(&why);
}

async fn answers(mut stream: Streaming<PeerResponse>, waiting: &Waiting) -> TransportError {
    loop {
        match stream.message().await {
            Ok(Some(answer)) => waiting.answer(answer),
            Ok(None) => return ended("the other member ended the stream"),
            Err(status) => return failed(&status),
        }
    }
}

/// Who waits for which answer.
struct Waiting(Mutex<State>);

struct State {
    next: u64,
    calls: HashMap<u64, oneshot::Sender<Answer>>,
    ended: Option<TransportError>,
}

/// A call's place; it is free again when this is dropped.
struct Registered {
    waiting: Arc<Waiting>,
    number: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.waiting.lock().calls.remove(&self.number);
    }
}

impl Waiting {
    fn new() -> Waiting {
        Waiting(Mutex::new(State {
            next: 1,
            calls: HashMap::new(),
            ended: None,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(
        self: &Arc<Self>,
    ) -> Result<(Registered, oneshot::Receiver<Answer>), TransportError> {
        let mut state = self.lock();
        if let Some(why) = &state.ended {
            return Err(TransportError::Unreachable(why.to_string()));
        }
        let number = state.next;
        state.next += 1;
        let (sender, answer) = oneshot::channel();
        state.calls.insert(number, sender);
        let registered = Registered {
            waiting: Arc::clone(self),
            number,
        };
        Ok((registered, answer))
    }

    fn answer(&self, answer: PeerResponse) {
        let mut state = self.lock();
        let Some(sender) = state.calls.remove(&answer.number) else {
            // Whoever asked has given up.
            return;
        };
        let told = if answer.failed.is_empty() {
            Ok(answer.body)
        } else {
            Err(TransportError::Failed(answer.failed))
        };
        let _ = sender.send(told);
    }

    fn end(&self, why: &TransportError) {
        let mut state = self.lock();
        state.ended.get_or_insert_with(|| why.clone());
        for (_, sender) in state.calls.drain() {
            let _ = sender.send(Err(why.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(number: u64, body: &'static [u8]) -> PeerResponse {
        PeerResponse {
            body: Bytes::from_static(body),
            number,
            failed: String::new(),
        }
    }

    #[tokio::test]
    async fn answers_find_their_calls_in_any_order() {
        let waiting = Arc::new(Waiting::new());
        let (first, first_answer) = waiting.register().unwrap();
        let (second, second_answer) = waiting.register().unwrap();
        waiting.answer(answer(second.number, b"two"));
        waiting.answer(answer(999, b"nobody asked"));
        waiting.answer(answer(first.number, b"one"));
        assert_eq!(first_answer.await.unwrap(), Ok(Bytes::from_static(b"one")));
        assert_eq!(second_answer.await.unwrap(), Ok(Bytes::from_static(b"two")));
        drop((first, second));
        assert!(waiting.lock().calls.is_empty());
    }

    #[tokio::test]
    async fn a_failure_is_told_to_its_call_alone() {
        let waiting = Arc::new(Waiting::new());
        let (call, told) = waiting.register().unwrap();
        let mut failure = answer(call.number, b"");
        failure.failed = "no disk".to_owned();
        waiting.answer(failure);
        assert_eq!(told.await.unwrap(), Err(ended("no disk")));
        assert!(waiting.lock().ended.is_none());
    }

    #[tokio::test]
    async fn the_end_is_told_to_all_and_takes_no_more_calls() {
        let waiting = Arc::new(Waiting::new());
        let (call, told) = waiting.register().unwrap();
        waiting.end(&ended("the connection broke"));
        let told = told.await.unwrap();
        assert!(matches!(told, Err(TransportError::Failed(_))), "{told:?}");
        drop(call);
        // What was not sent is told apart from what may have been.
        let refused = waiting.register().map(drop);
        assert!(matches!(refused, Err(TransportError::Unreachable(_))));
    }
}
