//! How a service's long operations stand, and who did what, as an API beside the service's own verbs.
//!
//! A tenant sees its own; an operator sees all, and alone gives operations up.

use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use control_api::FILE_DESCRIPTOR_SET;
use control_api::operations::v1::{
    AuditEvent, ForceDeleteOperationRequest, GetOperationRequest, ListAuditEventsRequest,
    ListAuditEventsResponse, ListOperationsRequest, ListOperationsResponse, Operation,
    RetryOperationRequest, Step, WaitOperationRequest,
};
use tokio::time::Instant;
use tonic::Code;

use crate::api::{Api, Call, Caller, Verb};
use crate::api_error::ApiError;
use crate::audit;
use crate::page;
use crate::saga::{Record, SagaId, Sagas, State};
use crate::store::{Range, SharedStore};

/// An answer is sent this long before nobody waits for it any more.
const ANSWER_MARGIN: Duration = Duration::from_millis(500);
/// Keys of one read while looking for a tenant's.
const LOOK_AT: usize = 1000;

/// What the verbs work on.
pub struct Operations {
    sagas: Sagas,
    store: SharedStore,
}

/// Adds the verbs to a service's port.
pub fn serve<S: Send + Sync + 'static>(
    api: Api<S>,
    sagas: Sagas,
    store: SharedStore,
) -> Api<Operations> {
    let operations = Arc::new(Operations { sagas, store });
    api.and(
        "ultracloud.operations.v1.Operations",
        FILE_DESCRIPTOR_SET,
        operations,
    )
    .verb(
        Verb::get("ListOperations", "/v1/operations", "Long operations"),
        list,
    )
    .verb(
        Verb::get("GetOperation", "/v1/operations/{id}", "One operation"),
        get,
    )
    .verb(
        Verb::get(
            "WaitOperation",
            "/v1/operations/{id}/wait",
            "One operation, once it has gone on",
        ),
        wait,
    )
    .verb(
        Verb::post(
            "RetryOperation",
            "/v1/operations/{id}/retry",
            "Lets a failed operation go on where it failed",
        ),
        retry,
    )
    .verb(
        Verb::post(
            "ForceDeleteOperation",
            "/v1/operations/{id}/force-delete",
            "Gives a failed operation up and frees its object",
        ),
        force_delete,
    )
    .verb(
        Verb::get("ListAuditEvents", "/v1/audit-events", "Who did what"),
        audit_events,
    )
}

fn id(text: &str) -> Result<SagaId, ApiError> {
    SagaId::from_str(text).map_err(|error| {
        let what = format!("this is no operation's id: {error}");
        ApiError::new(Code::InvalidArgument, "invalid-operation-id", what)
            .object(text)
            .next("GET /v1/operations lists them")
    })
}

fn sees(caller: &Caller, tenant: &str) -> bool {
    caller.principal.is_operator || *caller.principal.tenant == *tenant
}

fn not_found(record: &Record) -> ApiError {
    ApiError::new(Code::NotFound, "operation-not-found", "no such operation")
        .object(record.id.to_string())
        .next("list operations to see its id")
}

impl Operations {
    /// An operation that the caller may see.
    async fn seen(&self, caller: &Caller, text: &str) -> Result<Record, ApiError> {
        let record = self.sagas.get(id(text)?).await?;
        if sees(caller, &record.tenant) {
            Ok(record)
        } else {
            Err(not_found(&record))
        }
    }

    fn shown(&self, record: &Record) -> Operation {
        let steps = self.sagas.steps(&record.kind);
        shown(record, &steps)
    }
}

/// A record as the API shows it.
fn shown(record: &Record, steps: &[&'static str]) -> Operation {
    let trouble = record.trouble.as_ref();
    Operation {
        id: record.id.to_string(),
        kind: record.kind.clone(),
        object: record.object.clone(),
        tenant: record.tenant.clone(),
        principal: record.principal.clone(),
        request_id: record.request_id.clone(),
        state: record.state.name().to_owned(),
        failure: record.failure.clone().unwrap_or_default(),
        steps: step_states(record, steps),
        attempt: record.attempt,
        trouble: trouble.map_or_else(String::new, |one| one.message.clone()),
        trouble_step: trouble.map_or_else(String::new, |one| one.step.clone()),
        started_unix_ms: record.started_unix_ms as i64,
        updated_unix_ms: record.updated_unix_ms as i64,
        deadline_unix_ms: record.deadline_unix_ms as i64,
        seq: record.seq,
        verbs: match record.state {
            State::Failed => vec!["retry".to_owned(), "force-delete".to_owned()],
            _ => Vec::new(),
        },
    }
}

fn step_states(record: &Record, steps: &[&'static str]) -> Vec<Step> {
    let mut names: Vec<&str> = record.done.iter().map(|done| done.name.as_str()).collect();
    names.extend(steps.get(names.len()..).unwrap_or_default());
    let current = record.current(names.iter().copied());
    let turned = matches!(record.state, State::Undoing | State::Undone);
    let state = |(at, name): (usize, &str)| {
        let is_current = current == Some(name);
        let state = match (at < record.done.len(), is_current, turned) {
            (_, true, true) => "undoing",
            (_, true, false) => "running",
            (true, ..) => "done",
            (false, _, true) => "undone",
            (false, _, false) => "waiting",
        };
        Step {
            name: name.to_owned(),
            state: state.to_owned(),
        }
    };
    names.into_iter().enumerate().map(state).collect()
}

async fn get(
    this: Arc<Operations>,
    call: Call<GetOperationRequest>,
) -> Result<Operation, ApiError> {
    let record = this.seen(&call.caller, &call.message.id).await?;
    Ok(this.shown(&record))
}

async fn list(
    this: Arc<Operations>,
    call: Call<ListOperationsRequest>,
) -> Result<ListOperationsResponse, ApiError> {
    let limit = page::limit(call.message.limit)?;
    let mut after = page::key(&call.message.after)?;
    let mut operations = Vec::new();
    loop {
        let room = limit - operations.len();
        let (records, next) = this.sagas.list(after.as_deref(), room).await?;
        let mine = records.iter().filter(|one| sees(&call.caller, &one.tenant));
        operations.extend(mine.map(|one| this.shown(one)));
        let late = Instant::now() + ANSWER_MARGIN >= call.caller.deadline;
        if next.is_none() || operations.len() >= limit || late {
            return Ok(ListOperationsResponse {
                operations,
                next: page::token(next.as_deref()),
            });
        }
        after = next;
    }
}

async fn wait(
    this: Arc<Operations>,
    call: Call<WaitOperationRequest>,
) -> Result<Operation, ApiError> {
    let record = this.seen(&call.caller, &call.message.id).await?;
    let seen = (!call.message.until_settled).then_some(call.message.seen);
    let left = call
        .caller
        .deadline
        .saturating_duration_since(Instant::now());
    let limit = left.saturating_sub(ANSWER_MARGIN);
    let record = this.sagas.wait(record.id, seen, limit).await?;
    Ok(this.shown(&record))
}

async fn retry(
    this: Arc<Operations>,
    call: Call<RetryOperationRequest>,
) -> Result<Operation, ApiError> {
    let record = this.seen(&call.caller, &call.message.id).await?;
    let record = this.sagas.retry(record.id).await?;
    Ok(this.shown(&record))
}

async fn force_delete(
    this: Arc<Operations>,
    call: Call<ForceDeleteOperationRequest>,
) -> Result<Operation, ApiError> {
    let record = this.seen(&call.caller, &call.message.id).await?;
    if !call.caller.principal.is_operator {
        let what = "only an operator gives an operation up: something may be left of it";
        return Err(
            ApiError::new(Code::PermissionDenied, "not-an-operator", what)
                .object(record.id.to_string())
                .next("retry it, or ask an operator"),
        );
    }
    let record = this.sagas.force_delete(record.id).await?;
    Ok(this.shown(&record))
}

async fn audit_events(
    this: Arc<Operations>,
    call: Call<ListAuditEventsRequest>,
) -> Result<ListAuditEventsResponse, ApiError> {
    let limit = page::limit(call.message.limit)?;
    let mut range = Range::prefix(audit::PREFIX, LOOK_AT);
    if let Some(after) = page::key(&call.message.after)? {
        range = range.after(page::below(audit::PREFIX, &after)?);
    }
    let mut events = Vec::new();
    loop {
        let found = this.store.range(range.clone()).await?;
        let more = found.more;
        let mut last = None;
        for entry in found.entries {
            if events.len() == limit {
                let next = page::token(last.as_deref());
                return Ok(ListAuditEventsResponse { events, next });
            }
            let event: audit::Event = serde_json::from_slice(&entry.value).map_err(|error| {
                let what = format!("an audit event cannot be read: {error}");
                ApiError::new(Code::DataLoss, "broken-audit-event", what).object(&entry.key)
            })?;
            if sees(&call.caller, &event.tenant) {
                events.push(shown_event(event));
            }
            last = Some(entry.key);
        }
        let late = Instant::now() + ANSWER_MARGIN >= call.caller.deadline;
        match last {
            Some(last) if more && !late => range = range.after(&last),
            last => {
                let next = page::token(last.filter(|_| more).as_deref());
                return Ok(ListAuditEventsResponse { events, next });
            }
        }
    }
}

fn shown_event(event: audit::Event) -> AuditEvent {
    AuditEvent {
        at_unix_ms: event.at_unix_ms as i64,
        tenant: event.tenant,
        principal: event.principal,
        request_id: event.request_id,
        action: event.action,
        object: event.object,
        outcome: event.outcome,
        detail: event.detail,
    }
}
