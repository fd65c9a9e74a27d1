//! Who did what to which object, and how it ended.
//!
//! An event is written in the transaction that makes the change, so that there is none without the other,
//! and is a line of the log too, at target `audit`. Refusals are lines of the log alone.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::api::Caller;
use crate::store::{LeaseId, Write};

/// Keys of events begin so; they sort by time.
pub const PREFIX: &str = "audit/";

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// For which tenant.
    pub tenant: String,
    /// Who.
    pub principal: String,
    /// By which request.
    pub request_id: String,
    /// Did what, as `volume-create`.
    pub action: String,
    /// To what.
    pub object: String,
    /// How it went, as `begun`, `done`, `undone`, `refused`.
    pub outcome: String,
    /// Why, when there is something to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl Event {
    /// The event as a write of the change's own transaction.
    ///
    /// # Panics
    /// Never: an event is plain text and numbers.
    pub fn write(&self, lease: LeaseId) -> Write {
        let value = serde_json::to_vec(self).expect("plain text and numbers are JSON");
        Write::leased(format!("{PREFIX}{}", Uuid::now_v7()), value, lease)
    }

    /// The event as a line of the log.
    pub fn log(&self) {
        tracing::info!(
            target: "audit",
            tenant = self.tenant,
            principal = self.principal,
            request = self.request_id,
            action = self.action,
            object = self.object,
            outcome = self.outcome,
            detail = self.detail,
        );
    }
}

/// A change that was made, as a line of the log.
pub fn log_done(caller: &Caller, action: &str, object: String) {
    let at = SystemTime::now().duration_since(UNIX_EPOCH);
    let event = Event {
        at_unix_ms: at.map_or(0, |at| at.as_millis() as u64),
        tenant: caller.principal.tenant.to_string(),
        principal: caller.principal.name.to_string(),
        request_id: caller.request_id.as_str().to_owned(),
        action: action.to_owned(),
        object,
        outcome: "done".to_owned(),
        detail: String::new(),
    };
    event.log();
}
