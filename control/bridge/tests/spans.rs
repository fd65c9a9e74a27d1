//! What a call's log lines on a shard say: which request of which tenant, and which shard. A test
//! binary of its own, since a process has one subscriber.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::io::{self, Write};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::HeaderMap;
use control_kit::metrics::Registry;
use control_kit::request_id::RequestId;
use engine::{Engine, EngineConfig, ShardId, Sharded};
use serde_json::Value;
use shard_bridge::{Bridge, CallContext, Failure, Limits, Target, Tenant};
use shards::TenantId;
use tokio::time::Instant;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn log_lines_on_the_shard_carry_shard_tenant_and_request() {
    let lines = Lines::default();
    let sink = lines.clone();
    tracing_subscriber::fmt()
        .json()
        .with_writer(move || sink.clone())
        .init();
    let engine = Engine::start(EngineConfig::unpinned(2)).unwrap();
    let handle = engine.handle();
    let values: Sharded<()> = Sharded::new(&handle);
    let set = values.clone();
    let setting = handle.call(ShardId(1), move |_| {
        set.set_local(Rc::new(()));
        Box::pin(async {})
    });
    setting.await.unwrap();
    let bridge = Bridge::new(&handle, Limits::default(), &Registry::default());
    let mut headers = HeaderMap::new();
    headers.insert("x-request-id", "call-7".parse().unwrap());
    let context = CallContext {
        tenant: Tenant::new("ann", TenantId(3)),
        request: RequestId::of(&headers),
        deadline: Instant::now() + Duration::from_mins(1),
    };
    let work = |_: Rc<()>| async {
        tracing::info!("before");
        engine::sleep(Duration::from_millis(1)).await;
        tracing::info!("after");
        Ok::<_, std::convert::Infallible>(())
    };
    let answer = bridge.call(&context, Target::Shard(values, ShardId(1)), work);
    let answer: Result<(), Failure<_>> = answer.await;
    answer.unwrap();
    engine.shutdown().unwrap();
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let said: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &Value| {
            ["before", "after"]
                .map(Value::from)
                .contains(&line["fields"]["message"])
        })
        .collect();
    assert_eq!(said.len(), 2, "{text}");
    for line in said {
        let span = &line["span"];
        assert_eq!(span["name"], "shard_call", "{line}");
        assert_eq!(span["shard"], 1, "{line}");
        assert_eq!(span["tenant"], "ann", "{line}");
        assert_eq!(span["request_id"], "call-7", "{line}");
    }
}
