//! `ultractl audit`: who did what, as services have noted it.

use anyhow::Result;
use clap::Subcommand;
use control_api::operations::v1::operations_client::OperationsClient;
use control_api::operations::v1::{AuditEvent, ListAuditEventsRequest};

use crate::api::Access;
use crate::context::Choice;
use crate::failure::Failure;
use crate::output::{Format, moment, show, table};

/// Events of one page that is asked for.
const PAGE: u32 = 1000;

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
    /// Lists what is kept, the oldest first: the tenant's own, or everybody's for an operator.
    List,
}

/// Runs a command.
pub async fn run(args: Args, choice: &Choice, format: Format) -> Result<()> {
    let mut client = OperationsClient::new(args.access.open(choice).await?);
    let Command::List = args.command;
    let mut events = Vec::new();
    let mut after = String::new();
    loop {
        let request = ListAuditEventsRequest { limit: PAGE, after };
        let page = client.list_audit_events(request).await;
        let page = page.map_err(Failure::from)?.into_inner();
        events.extend(page.events);
        if page.next.is_empty() {
            break;
        }
        after = page.next;
    }
    show(format, &events, |events| listed(events, format))
}

fn listed(events: &[AuditEvent], format: Format) -> String {
    let mut heads = vec!["AT", "PRINCIPAL", "ACTION", "OBJECT", "OUTCOME"];
    if format == Format::Wide {
        heads.extend(["TENANT", "REQUEST", "DETAIL"]);
    }
    let row = |one: &AuditEvent| {
        let mut row = vec![
            moment(one.at_unix_ms),
            one.principal.clone(),
            one.action.clone(),
            one.object.clone(),
            one.outcome.clone(),
        ];
        if format == Format::Wide {
            let more = [&one.tenant, &one.request_id, &one.detail];
            row.extend(more.map(Clone::clone));
        }
        row
    };
    table(&heads, &events.iter().map(row).collect::<Vec<_>>())
}
