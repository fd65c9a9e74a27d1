//! What tasks may count on.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};

use engine::{Engine, EngineConfig, ShardId};

struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A set of futures polls those alone that its own wakers name.
#[test]
fn a_yield_wakes_whoever_polls_it() {
    let engine = Engine::start(EngineConfig::unpinned(1)).unwrap();
    let yielded = engine.handle().call_blocking(ShardId(0), |_| {
        Box::pin(async {
            let count = Arc::new(Count(AtomicUsize::new(0)));
            let waker = Waker::from(Arc::clone(&count));
            let mut cx = Context::from_waker(&waker);
            let mut yields = pin!(engine::yield_now());
            assert!(yields.as_mut().poll(&mut cx).is_pending());
            assert_eq!(count.0.load(Ordering::Relaxed), 1);
            assert!(yields.as_mut().poll(&mut cx).is_ready());
        })
    });
    yielded.unwrap();
    engine.shutdown().unwrap();
}
