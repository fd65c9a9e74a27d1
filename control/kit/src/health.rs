//! Health as probes ask for it: `/readyz` says whether requests may come, `/healthz` whether somebody
//! has to act.
//!
//! Each part of a service reports for itself; the answer is the sum, with a line for each part that is
//! not well.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::sync::watch;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{self as grpc, HealthServer};
use tonic_health::server::health_reporter;

/// How a part is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Serves.
    Well,
    /// Takes no requests now and gets well by itself, as at a start or without a leader.
    NotReady(String),
    /// Somebody has to act; the text says what to do.
    Failed(String),
}

/// The conditions of all parts of a service.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    parts: Mutex<BTreeMap<&'static str, Condition>>,
    /// Told of every report.
    reports: watch::Sender<()>,
}

impl Health {
    /// Reports for one part.
    pub fn set(&self, part: &'static str, condition: Condition) {
        self.lock().insert(part, condition);
        self.0.reports.send_replace(());
    }

    /// A line for each part that takes no requests; empty when all do.
    pub fn not_ready(&self) -> Vec<String> {
        self.lines(|condition| match condition {
            Condition::Well => None,
            Condition::NotReady(why) | Condition::Failed(why) => Some(why),
        })
    }

    /// A line for each part that needs somebody; empty without one.
    pub fn failed(&self) -> Vec<String> {
        self.lines(|condition| match condition {
            Condition::Failed(why) => Some(why),
            Condition::Well | Condition::NotReady(_) => None,
        })
    }

    fn lines(&self, why: impl Fn(&Condition) -> Option<&String>) -> Vec<String> {
        let parts = self.lock();
        let line = |(part, condition)| why(condition).map(|why| format!("{part}: {why}"));
        parts.iter().filter_map(line).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, Condition>> {
        self.0.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// gRPC's own health service; it serves when `/readyz` would.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(crate) fn grpc(&self) -> HealthServer<impl grpc::Health + use<>> {
        let (reporter, service) = health_reporter();
        let health = self.clone();
        // Ends with the runtime.
        tokio::spawn(async move {
            let mut reports = health.0.reports.subscribe();
            loop {
                let status = if health.not_ready().is_empty() {
                    ServingStatus::Serving
                } else {
                    ServingStatus::NotServing
                };
                reporter.set_service_status("", status).await;
                if reports.changed().await.is_err() {
                    return;
                }
            }
        });
        service
    }

    /// The two routes.
    pub fn router(self) -> Router {
        Router::new()
            .route("/readyz", get(ready))
            .route("/healthz", get(healthy))
            .with_state(self)
    }
}

async fn ready(State(health): State<Health>) -> (StatusCode, String) {
    answer(&health.not_ready())
}

async fn healthy(State(health): State<Health>) -> (StatusCode, String) {
    answer(&health.failed())
}

fn answer(lines: &[String]) -> (StatusCode, String) {
    if lines.is_empty() {
        return (StatusCode::OK, "ok\n".into());
    }
    (StatusCode::SERVICE_UNAVAILABLE, lines.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_waits_is_not_ready_and_not_failed() {
        let health = Health::default();
        health.set("store", Condition::Well);
        health.set("raft", Condition::NotReady("no leader".into()));
        assert_eq!(health.not_ready(), ["raft: no leader"]);
        assert_eq!(health.failed(), [""; 0]);
        health.set("raft", Condition::Failed("flush failed".into()));
        assert_eq!(health.failed(), ["raft: flush failed"]);
        assert_eq!(answer(&health.failed()).0, StatusCode::SERVICE_UNAVAILABLE);
        health.set("raft", Condition::Well);
        assert_eq!(answer(&health.not_ready()).0, StatusCode::OK);
    }
}
