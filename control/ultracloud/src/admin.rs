//! The admin endpoint: health, metrics and what the shards are doing, which change nothing, and the node's
//! API for who shows a token.
//!
//! `/readyz` says whether requests may come: a node that starts or drains wants none. `/healthz` says
//! whether somebody has to act: it also fails while a partition takes no more writes, though the node
//! still serves every read, and the writes of the other partitions.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use control_kit::api::{Api, with_fallbacks};
use control_kit::health::Health;
use engine::metrics::ShardMetrics;
use serde_json::{Value, json};
use shards::placement::PartitionId;

use crate::state::NodeState;

type Shared = State<Arc<NodeState>>;

/// The endpoint's routes, and those of the API if the node has one.
pub fn router(state: Arc<NodeState>, api: Option<Api<NodeState>>) -> Router {
    let api = api.map_or_else(Router::new, |api| api.routes(&Health::default()));
    let own = Router::new()
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/debug/shards", get(shards))
        .route("/debug/volumes", get(volumes))
        .route("/debug/balancers", get(balancers))
        .with_state(state);
    with_fallbacks(own.merge(api))
}

async fn ready(State(state): Shared) -> Response {
    let chainfire = || state.chainfire().and_then(|node| node.not_ready());
    let fiberlb = || state.fiberlb().and_then(|node| node.not_ready());
    let why = state.phase().why_not();
    answer(why.or_else(chainfire).or_else(fiberlb))
}

async fn health(State(state): Shared) -> Response {
    let mut why = state.phase().why_not();
    if let (None, Some(node)) = (&why, state.lightningstor()) {
        why = failed_writes("LightningStor", &node.poisoned().await);
    }
    if let (None, Some(node)) = (&why, state.coronafs()) {
        why = failed_writes("CoronaFS", &node.poisoned().await);
    }
    if let (None, Some(volumes)) = (&why, state.volumes()) {
        why = failed_attachments(&volumes.not_serving());
        if why.is_none() {
            why = failed_remotes(&volumes.remotes_not_connected().await);
        }
    }
    if let (None, Some(node)) = (&why, state.chainfire()) {
        why = node.failed().map(|cause| {
            format!(
                "failed: ChainFire serves no more: {cause}; check the disk, then restart the node"
            )
        });
    }
    answer(why)
}

fn answer(why_not: Option<String>) -> Response {
    match why_not {
        None => (StatusCode::OK, "ok\n".to_owned()).into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

/// What is wrong with poisoned partitions, and what to do; `None` without any.
fn failed_writes(role: &str, poisoned: &[(PartitionId, String)]) -> Option<String> {
    let lines: Vec<String> = poisoned
        .iter()
        .map(|(partition, cause)| {
            format!(
                "failed: partition {} of {role} takes no writes since one failed, and serves reads: {cause}; \
                 check the disk, then restart the node",
                partition.0
            )
        })
        .collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// Attachments that guests wait for in vain, and what to do; `None` without any.
fn failed_attachments(failed: &[(String, String)]) -> Option<String> {
    let lines: Vec<String> = failed
        .iter()
        .map(|(volume, why)| {
            format!(
                "failed: volume {volume} is not served to its guest: {why}; mend that and restart the node, \
                 or detach the volume"
            )
        })
        .collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// Volumes of other nodes that guests wait for, and what to do; `None` without any.
fn failed_remotes(failed: &[(String, String)]) -> Option<String> {
    let lines: Vec<String> = failed
        .iter()
        .map(|(name, why)| {
            format!(
                "failed: remote volume {name} is not connected: {why}; look after the node that it is on, or \
                 detach it here"
            )
        })
        .collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

async fn metrics(State(state): Shared) -> Response {
    let mut text = String::new();
    if let Some(running) = state.running() {
        text = engine::metrics::prometheus(&running.handle.metrics().await);
    }
    if let Some(node) = state.lightningstor() {
        text.push_str(&node.prometheus().await);
    }
    if let Some(node) = state.coronafs() {
        text.push_str(&node.prometheus().await);
    }
    if let Some(service) = state.balancers() {
        text.push_str(&service.prometheus().await);
    }
    if let Some(node) = state.chainfire() {
        text.push_str(&node.prometheus());
    }
    text.push_str(&state.metrics().text());
    let serving = u8::from(state.phase().why_not().is_none());
    text.push_str("# HELP uc_node_serving 1 when the node serves.\n# TYPE uc_node_serving gauge\n");
    // Writing to a String cannot fail.
    let _ = writeln!(text, "uc_node_serving {serving}");
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

async fn shards(State(state): Shared) -> Json<Value> {
    let Some(running) = state.running() else {
        return Json(json!({ "shards": [], "capabilities": null }));
    };
    let granted = &running.capabilities;
    let shards: Vec<Value> = running
        .handle
        .metrics()
        .await
        .iter()
        .map(of_shard)
        .collect();
    Json(json!({
        "capabilities": {
            "registered_buffers": granted.registered_buffers,
            "registered_files": granted.registered_files,
            "buffer_ring": granted.buffer_ring,
            "pinned": granted.pinned,
            "missing": granted.missing,
        },
        "shards": shards,
    }))
}

async fn volumes(State(state): Shared) -> Json<Value> {
    let Some(node) = state.coronafs() else {
        return Json(json!({ "shards": [] }));
    };
    Json(volumes::debug(&node.metrics().await))
}

async fn balancers(State(state): Shared) -> Json<Value> {
    let Some(service) = state.balancers() else {
        return Json(json!({ "status": null }));
    };
    Json(balancers::debug(service).await)
}

fn of_shard(shard: &ShardMetrics) -> Value {
    let groups = shard.groups.iter().map(|(name, stats)| {
        json!({
            "group": name,
            "polls": stats.polls,
            "busy_ns": stats.busy_ns,
            "stalls": stats.stalls,
            "longest_poll_ns": stats.longest_poll_ns,
            "queue_delay_ns": {
                "p50": stats.delay.value_at_quantile(0.5),
                "p99": stats.delay.value_at_quantile(0.99),
                "p999": stats.delay.value_at_quantile(0.999),
            },
        })
    });
    let groups: Vec<Value> = groups.collect();
    json!({
        "shard": shard.shard,
        "tasks": shard.tasks,
        "ops": shard.ops,
        "ops_in_flight": shard.ops_in_flight,
        "disk_ops_waiting": shard.disk_ops_waiting,
        "messages": shard.messages,
        "sleeps": shard.sleeps,
        "enters": shard.enters,
        "cq_overflows": shard.cq_overflows,
        "sq_full": shard.sq_full,
        "pool": {
            "total_bytes": shard.pool.total,
            "used_bytes": shard.pool.used,
            "refused": shard.pool.refused,
            "registered": shard.pool.registered,
        },
        "groups": groups,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poisoned_partition_fails_the_health_check_with_its_cause() {
        assert_eq!(failed_writes("CoronaFS", &[]), None);
        let poisoned = [
            (
                PartitionId(3),
                "write at offset 8 of p003/data: EIO".to_owned(),
            ),
            (PartitionId(5), "sync of p005/log".to_owned()),
        ];
        let said = failed_writes("CoronaFS", &poisoned).unwrap();
        for part in [
            "partition 3 of CoronaFS",
            "p003/data: EIO; check",
            "partition 5",
            "restart",
        ] {
            assert!(said.contains(part), "{part} in {said}");
        }
        assert_eq!(said.lines().count(), 2);
        let answer = answer(Some(said));
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
