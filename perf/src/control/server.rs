//! Servers of one call that does nothing: the control kit's, and the bare ones that it is beside.
#![forbid(unsafe_code)]

use std::sync::Arc;

use anyhow::{Context, Result};
use axum::extract::Path;
use axum::routing::get;
use axum::{Json, Router};
use clap::{Args, ValueEnum};
use control_api::FILE_DESCRIPTOR_SET;
use control_api::operations::v1::operations_server::{Operations, OperationsServer};
use control_api::operations::v1::{
    ForceDeleteOperationRequest, GetOperationRequest, ListAuditEventsRequest,
    ListAuditEventsResponse, ListOperationsRequest, ListOperationsResponse, Operation,
    RetryOperationRequest, WaitOperationRequest,
};
use control_kit::api::{Api, Call, Front, Limits, Verb};
use control_kit::api_error::ApiError;
use control_kit::auth::{Principal, Tokens};
use control_kit::health::Health;
use control_kit::logging::{self, LogFormat};
use control_kit::metrics::Registry;
use control_kit::server::{self, Port};
use control_kit::stop;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

/// The caller's token, where one is asked for.
pub const TOKEN: &str = "perf-token";

/// Options of `perf control-server`.
#[derive(Args)]
pub struct ServerArgs {
    /// Who serves.
    #[arg(value_enum)]
    kind: Kind,
}

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// The control kit, both fronts, with authentication.
    Kit,
    /// tonic alone.
    Tonic,
    /// axum alone.
    Axum,
}

impl Kind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kit => "kit",
            Self::Tonic => "tonic",
            Self::Axum => "axum",
        }
    }
}

/// Serves until it is killed, and says where.
pub fn run(args: &ServerArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the server's runtime")?;
    runtime.block_on(async {
        match args.kind {
            Kind::Kit => kit().await,
            Kind::Tonic => tonic().await,
            Kind::Axum => axum().await,
        }
    })
}

fn answer(id: String) -> Operation {
    Operation {
        id,
        state: "done".to_owned(),
        seq: 7,
        ..Operation::default()
    }
}

async fn kit() -> Result<()> {
    // As services of the kit do.
    logging::start(LogFormat::Text);
    let (health, registry) = (Health::default(), Registry::default());
    let principal = Principal {
        name: "perf".into(),
        tenant: "perf".into(),
        is_operator: false,
    };
    let tokens = Arc::new(Tokens::default().token(TOKEN, principal));
    let front = Front::new(tokens, Limits::default(), &registry);
    let service = "ultracloud.operations.v1.Operations";
    let api = Api::new(service, FILE_DESCRIPTOR_SET, Arc::new(()), &front).verb(
        Verb::get("GetOperation", "/v1/operations/{id}", "Does nothing"),
        |_: Arc<()>, call: Call<GetOperationRequest>| async move {
            Ok::<_, ApiError>(answer(call.message.id))
        },
    );
    let any = "127.0.0.1:0".parse().context("an address")?;
    let port = Port::bind(any, None, server::Limits::default()).await?;
    println!("serving on {}", port.addr());
    let (_stopper, stop) = stop::pair();
    port.serve(api.router(health, registry), stop).await;
    Ok(())
}

async fn listen() -> Result<TcpListener> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("listen")?;
    println!(
        "serving on {}",
        listener.local_addr().context("ask for the port")?
    );
    Ok(listener)
}

async fn axum() -> Result<()> {
    let noop = async |Path(id): Path<String>| Json(answer(id));
    let router = Router::new().route("/v1/operations/{id}", get(noop));
    let listener = listen().await?;
    axum::serve(
        axum::serve::ListenerExt::tap_io(listener, |stream| {
            // As the kit does, and as small answers need.
            let _ = stream.set_nodelay(true);
        }),
        router,
    )
    .await
    .context("serve")
}

async fn tonic() -> Result<()> {
    let incoming = tonic::transport::server::TcpIncoming::from(listen().await?);
    let incoming = incoming.with_nodelay(Some(true));
    let server = tonic::transport::Server::builder().add_service(OperationsServer::new(Bare));
    server.serve_with_incoming(incoming).await.context("serve")
}

struct Bare;

fn unused<T>() -> Result<Response<T>, Status> {
    Err(Status::permission_denied(
        "this server answers GetOperation alone",
    ))
}

#[tonic::async_trait]
impl Operations for Bare {
    async fn get_operation(
        &self,
        request: Request<GetOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        Ok(Response::new(answer(request.into_inner().id)))
    }

    async fn list_operations(
        &self,
        _: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        unused()
    }

    async fn wait_operation(
        &self,
        _: Request<WaitOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        unused()
    }

    async fn retry_operation(
        &self,
        _: Request<RetryOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        unused()
    }

    async fn force_delete_operation(
        &self,
        _: Request<ForceDeleteOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        unused()
    }

    async fn list_audit_events(
        &self,
        _: Request<ListAuditEventsRequest>,
    ) -> Result<Response<ListAuditEventsResponse>, Status> {
        unused()
    }
}
