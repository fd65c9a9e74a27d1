//! `ultractl operation`: long operations of a service, how they stand, and what to do with those that failed.
//!
//! Which step is under way is the service's journal, so waiting may end, and begin again, at any time: the
//! operation goes on without us.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;
use control_api::operations::v1::operations_client::OperationsClient;
use control_api::operations::v1::{
    ForceDeleteOperationRequest, GetOperationRequest, ListOperationsRequest, Operation,
    RetryOperationRequest, Step, WaitOperationRequest,
};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Request, Status};

use crate::api::{Access, Api};
use crate::context::Choice;
use crate::failure::{Exit, Failure, is_unanswered};
use crate::output::{Format, moment, show, table};
use crate::progress::{Progress, StepState};

/// Operations of one page that is asked for.
const PAGE: u32 = 1000;
/// How long one question after news may take; then it is asked again.
const ASK_FOR: Duration = Duration::from_secs(20);
/// Between questions to a service that does not answer.
const SILENT_PAUSE: Duration = Duration::from_secs(1);
/// How long a service may be silent, as while it is started anew, before nobody waits for it.
const SILENT_MAX: Duration = Duration::from_mins(1);

/// What is done, and where.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    access: Access,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists operations: the tenant's own, or everybody's for an operator.
    List {
        /// Only those that failed and need a verb.
        #[arg(long)]
        failed: bool,
    },
    /// Shows an operation and its steps.
    Get {
        /// Its id.
        id: String,
    },
    /// Waits until an operation has ended or failed, and shows its steps as they go.
    Wait {
        /// Its id.
        id: String,
        #[command(flatten)]
        patience: Patience,
    },
    /// Lets a failed operation go on where it failed.
    Retry {
        /// Its id.
        id: String,
        /// Also waits until it has ended or failed.
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        patience: Patience,
    },
    /// Gives a failed operation up and frees its object; what may be left of it is said. For operators.
    ForceDelete {
        /// Its id.
        id: String,
    },
}

/// How long to wait.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Patience {
    /// Seconds after which nobody waits any more; the operation goes on [default: no limit].
    #[arg(long = "timeout", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    seconds: Option<u64>,
}

type Client = OperationsClient<Api>;

/// Runs a command.
pub async fn run(args: Args, choice: &Choice, format: Format) -> Result<()> {
    let mut client = OperationsClient::new(args.access.open(choice).await?);
    match args.command {
        Command::List { failed } => {
            let mut operations = list(&mut client).await?;
            operations.retain(|one| !failed || one.state == "failed");
            show(format, &operations, |all| listed(all, format))
        }
        Command::Get { id } => {
            let found = get(&mut client, id).await?;
            show(format, &found, described)
        }
        Command::Wait { id, patience } => {
            let operation = get(&mut client, id).await?;
            wait(&mut client, operation, patience, format).await
        }
        Command::Retry { id, wait, patience } => {
            let retried = client.retry_operation(RetryOperationRequest { id }).await;
            let operation = retried.map_err(Failure::from)?.into_inner();
            if wait {
                return self::wait(&mut client, operation, patience, format).await;
            }
            show(format, &operation, described)
        }
        Command::ForceDelete { id } => {
            let request = ForceDeleteOperationRequest { id };
            let ended = client.force_delete_operation(request).await;
            let operation = ended.map_err(Failure::from)?.into_inner();
            show(format, &operation, described)
        }
    }
}

async fn get(client: &mut Client, id: String) -> Result<Operation, Failure> {
    let found = client.get_operation(GetOperationRequest { id }).await;
    Ok(found.map_err(Failure::from)?.into_inner())
}

/// All pages.
async fn list(client: &mut Client) -> Result<Vec<Operation>, Failure> {
    let mut operations = Vec::new();
    let mut after = String::new();
    loop {
        let request = ListOperationsRequest { limit: PAGE, after };
        let page = client.list_operations(request).await;
        let page = page.map_err(Failure::from)?.into_inner();
        operations.extend(page.operations);
        if page.next.is_empty() {
            return Ok(operations);
        }
        after = page.next;
    }
}

/// Waits for the end and shows it; an end that is not the one that was wanted is an error.
async fn wait(
    client: &mut Client,
    operation: Operation,
    patience: Patience,
    format: Format,
) -> Result<()> {
    let settled = follow(client, operation, patience, format).await?;
    if settled.state == "done" {
        return show(format, &settled, described);
    }
    Err(not_done(&settled).into())
}

/// How an operation that is not done ended.
fn not_done(operation: &Operation) -> Failure {
    let Operation { id, state, .. } = operation;
    let mut what = format!("operation {id} is {state}");
    if !operation.failure.is_empty() {
        what = format!("{what} ({})", operation.failure);
    }
    if !operation.trouble.is_empty() {
        let (step, trouble) = (&operation.trouble_step, &operation.trouble);
        what = format!("{what}: {step}: {trouble}");
    }
    let next = match state.as_str() {
        "failed" => format!(
            "mend the cause and `ultractl operation retry {id} --wait`\n\
             or give it up: `ultractl operation force-delete {id}`"
        ),
        "undone" => "nothing is left of it: mend the cause and ask for it anew".to_owned(),
        _ => String::new(),
    };
    Failure::new(Exit::Failed, &format!("operation-{state}"), what)
        .object(operation.object.clone())
        .next(next)
}

/// Shows an operation's steps until it has ended or failed.
async fn follow(
    client: &mut Client,
    mut operation: Operation,
    patience: Patience,
    format: Format,
) -> Result<Operation, Failure> {
    let steps = operation.steps.len() as u64;
    let mut progress = Progress::new(&operation.kind, steps, format);
    let mut shown: Vec<Step> = Vec::new();
    let begun = Instant::now();
    let end = patience.seconds.map(|s| begun + Duration::from_secs(s));
    loop {
        tell(&mut progress, &shown, &operation);
        shown.clone_from(&operation.steps);
        if !matches!(operation.state.as_str(), "running" | "undoing") {
            return Ok(operation);
        }
        let news = next(client, &operation);
        operation = match end {
            None => news.await?,
            Some(end) => match timeout_at(end, news).await {
                Ok(news) => news?,
                Err(_) => return Err(impatient(&operation)),
            },
        };
    }
}

fn impatient(operation: &Operation) -> Failure {
    let Operation { id, state, .. } = operation;
    let what = format!("operation {id} is still {state}");
    Failure::new(Exit::Unavailable, "operation-goes-on", what)
        .object(operation.object.clone())
        .next(format!(
            "it goes on without you: `ultractl operation wait {id}`"
        ))
}

/// The operation once it has gone on, over a service that is started anew meanwhile.
async fn next(client: &mut Client, operation: &Operation) -> Result<Operation, Failure> {
    let mut silent_since = None;
    loop {
        let mut request = Request::new(WaitOperationRequest {
            id: operation.id.clone(),
            seen: operation.seq,
            until_settled: false,
        });
        request.set_timeout(ASK_FOR);
        let status: Status = match client.wait_operation(request).await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => status,
        };
        let since = *silent_since.get_or_insert_with(Instant::now);
        // Nothing is changed by asking, so asking again is safe.
        if !is_unanswered(&status) || since.elapsed() > SILENT_MAX {
            return Err(status.into());
        }
        sleep(SILENT_PAUSE).await;
    }
}

/// Shows the steps that are not as they were shown.
fn tell(progress: &mut Progress, shown: &[Step], operation: &Operation) {
    for (at, step) in operation.steps.iter().enumerate() {
        if shown.get(at).is_some_and(|was| was.state == step.state) {
            continue;
        }
        let is_trouble = operation.state == "failed" && operation.trouble_step == step.name;
        let state = match step.state.as_str() {
            _ if is_trouble => StepState::Failed,
            "running" => StepState::Running,
            "done" => StepState::Done,
            "undoing" => StepState::Undoing,
            "undone" => StepState::Undone,
            // Waiting, or what a later version says: there is nothing to show.
            _ => continue,
        };
        progress.update(&step.name, state);
    }
}

/// The step under way, or the one where it failed.
fn current(operation: &Operation) -> &str {
    let under_way = |step: &&Step| matches!(step.state.as_str(), "running" | "undoing");
    let step = operation.steps.iter().find(under_way);
    step.map_or("-", |step| step.name.as_str())
}

fn listed(operations: &[Operation], format: Format) -> String {
    let mut heads = vec!["ID", "KIND", "OBJECT", "STATE", "STEP", "UPDATED"];
    if format == Format::Wide {
        heads.extend(["TENANT", "PRINCIPAL", "STARTED", "TROUBLE"]);
    }
    let row = |one: &Operation| {
        let mut row = vec![
            one.id.clone(),
            one.kind.clone(),
            one.object.clone(),
            one.state.clone(),
            current(one).to_owned(),
            moment(one.updated_unix_ms),
        ];
        if format == Format::Wide {
            let started = moment(one.started_unix_ms);
            let (tenant, principal) = (one.tenant.clone(), one.principal.clone());
            row.extend([tenant, principal, started, one.trouble.clone()]);
        }
        row
    };
    table(&heads, &operations.iter().map(row).collect::<Vec<_>>())
}

fn described(operation: &Operation) -> String {
    let mut text = format!(
        "operation {}: {} of {} is {}\n",
        operation.id, operation.kind, operation.object, operation.state
    );
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "  begun {} by {} of {}, changed {}, ends by {}",
        moment(operation.started_unix_ms),
        operation.principal,
        operation.tenant,
        moment(operation.updated_unix_ms),
        moment(operation.deadline_unix_ms),
    );
    if !operation.failure.is_empty() {
        let _ = writeln!(text, "  failure: {}", operation.failure);
    }
    if !operation.trouble.is_empty() {
        let (step, trouble) = (&operation.trouble_step, &operation.trouble);
        let _ = writeln!(text, "  trouble in {step}: {trouble}");
    }
    for step in &operation.steps {
        let _ = writeln!(text, "  {:<10} {}", step.state, step.name);
    }
    if !operation.verbs.is_empty() {
        let _ = writeln!(text, "  verbs: {}", operation.verbs.join(", "));
    }
    text
}
