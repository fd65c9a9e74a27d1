//! A service of widgets, as small as one is with the control kit: a widget is a file, and its bytes come out of
//! a quota. gRPC, REST, a CLI verb, operations that always end, and an audit trail, for the kit's tests.
#![forbid(unsafe_code)]

mod cli;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::Parser;
use control_kit::api::{Api, Call, Verb};
use control_kit::api_error::ApiError;
use control_kit::documents::Documents;
use control_kit::saga::{Begin, Definition, Record, Sagas, StepContext, StepError, bound};
use control_kit::service::Base;
use control_kit::store::{Txn, Write};
use creditservice::{Ledger, Options, QuotaSteps, Taken};
use tonic::Code;

use crate::v1::{CreateWidgetRequest, DeleteWidgetRequest, GetWidgetRequest, Widget};

/// The messages of `proto/`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("sample.v1");
}

const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    cli::Command::parse().run().await
}

async fn serve(args: cli::Serve) -> Result<()> {
    let mut base = Base::connect(&args.store, "sample/")?;
    base.saga_config.lease = args.lease();
    let ledger = Ledger::open(Arc::clone(&base.store), Options::default()).await?;
    args.limit(&ledger).await?;
    let quota = Arc::new(QuotaSteps::new(ledger, taken));
    let files = Arc::new(Files(args.dir.clone()));
    let create = Definition::new("widget-create")
        .undoable(
            "reserve",
            bound(&quota, QuotaSteps::reserve),
            bound(&quota, QuotaSteps::release),
        )
        .undoable(
            "make",
            bound(&files, Files::make),
            bound(&files, Files::remove),
        )
        .step("commit", bound(&quota, QuotaSteps::commit))
        .when_done(ready)
        .when_undone(gone)
        .when_forced(gone);
    let delete = Definition::new("widget-delete")
        .step("remove", bound(&files, Files::remove))
        .step("give-back", bound(&quota, QuotaSteps::give_back))
        .when_done(gone)
        .when_forced(gone);
    let sagas = base.sagas(vec![create, delete]);
    let widgets = Arc::new(Widgets {
        sagas,
        documents: Documents::new(Arc::clone(&base.store), "widget"),
    });
    let api = Api::new(
        "sample.v1.Widgets",
        DESCRIPTORS,
        widgets,
        &base.front(args.tokens()),
    )
    .verb(
        Verb::post("CreateWidget", "/v1/widgets", "Makes a widget").accepted(),
        Widgets::create,
    )
    .verb(
        Verb::get("GetWidget", "/v1/widgets/{name}", "A widget"),
        Widgets::get,
    )
    .verb(
        Verb::delete("DeleteWidget", "/v1/widgets/{name}", "Deletes a widget").accepted(),
        Widgets::delete,
    );
    Ok(base.serve(args.listen, None, api).await?)
}

/// What a widget takes of the tenant's quota.
fn taken(record: &Record) -> Result<Taken, StepError> {
    let Widget { size, made_by, .. } = record.read_input()?;
    Taken::by(made_by).of(&record.tenant, "widget-bytes", size)
}

fn ready(record: &Record) -> Vec<Write> {
    let ready = record.read_input().map(|mut widget: Widget| {
        "ready".clone_into(&mut widget.state);
        Documents::put(&record.object, &widget)
    });
    ready.into_iter().collect()
}

fn gone(record: &Record) -> Vec<Write> {
    vec![Write::Delete(record.object.clone())]
}

/// The widgets' files, below a directory.
struct Files(PathBuf);

impl Files {
    fn path(&self, step: &StepContext) -> PathBuf {
        self.0.join(step.record().object.replace('/', "."))
    }

    async fn make(self: Arc<Self>, step: StepContext) -> Result<(), StepError> {
        let bytes = vec![b'w'; step.input::<Widget>()?.size as usize];
        let written = tokio::fs::write(self.path(&step), bytes).await;
        written.map_err(|error| StepError::Retry(format!("cannot write the file: {error}")))
    }

    async fn remove(self: Arc<Self>, step: StepContext) -> Result<(), StepError> {
        match tokio::fs::remove_file(self.path(&step)).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StepError::Retry(format!("cannot remove the file: {error}")))
            }
            _ => Ok(()),
        }
    }
}

struct Widgets {
    sagas: Sagas,
    documents: Documents<Widget>,
}

impl Widgets {
    async fn create(self: Arc<Self>, call: Call<CreateWidgetRequest>) -> Result<Widget, ApiError> {
        let CreateWidgetRequest { name, size } = &call.message;
        let tenant = &call.caller.principal.tenant;
        if !(1..=1_000_000).contains(size) {
            let what = "a widget has 1 to 1000000 bytes";
            return Err(ApiError::new(Code::InvalidArgument, "invalid-size", what).object(name));
        }
        let begin = Begin::of(&call, "widget-create", self.documents.key(tenant, name));
        let mut widget = Widget {
            name: name.clone(),
            size: *size,
            ..Widget::default()
        };
        (widget.state, widget.made_by) = ("creating".into(), begin.id.to_string());
        widget.operation.clone_from(&widget.made_by);
        let created = self.documents.created(tenant, name, &widget)?;
        self.sagas.begin(begin.input(&widget).with(created)).await?;
        Ok(widget)
    }

    async fn get(self: Arc<Self>, call: Call<GetWidgetRequest>) -> Result<Widget, ApiError> {
        let tenant = &call.caller.principal.tenant;
        Ok(self.documents.get(tenant, &call.message.name).await?.value)
    }

    async fn delete(self: Arc<Self>, call: Call<DeleteWidgetRequest>) -> Result<Widget, ApiError> {
        let (tenant, name) = (&call.caller.principal.tenant, &call.message.name);
        let begin = Begin::of(&call, "widget-delete", self.documents.key(tenant, name));
        let mut found = self.documents.get(tenant, name).await?;
        (found.value.state, found.value.operation) = ("deleting".into(), begin.id.to_string());
        let deleting = Txn::when(found.unchanged).then(Documents::put(&begin.object, &found.value));
        self.sagas
            .begin(begin.input(&found.value).with(deleting))
            .await?;
        Ok(found.value)
    }
}
