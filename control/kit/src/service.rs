//! A service's process: it serves until it is told to end, and then ends in order.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::Error;
use crate::api::{Api, Front, Limits};
use crate::auth::Authenticate;
use crate::health::{Condition, Health};
use crate::metrics::Registry;
use crate::operations;
use crate::saga::{Definition, SagaConfig, Sagas};
use crate::server::{self, Port};
use crate::stop::{self, Signals, Stop, Stopper};
use crate::store::{Client, ClientConfig, SharedStore};
use crate::tls::ServerTls;

/// What a service is built on.
pub struct Base {
    /// Where its state is.
    pub store: SharedStore,
    /// Its metrics.
    pub registry: Registry,
    /// How its parts are.
    pub health: Health,
    /// How its operations run.
    pub saga_config: SagaConfig,
    /// Told when the process is to end.
    pub stop: Stop,
    stopper: Stopper,
    tasks: Vec<JoinHandle<()>>,
    sagas: Option<Sagas>,
}

impl Base {
    /// A service whose state is below a prefix of ChainFire's keys, at members' URLs without TLS.
    ///
    /// # Errors
    /// When a URL cannot be used.
    pub fn connect(urls: &[String], namespace: &str) -> Result<Base, Error> {
        let client = Client::new(ClientConfig {
            endpoints: urls.to_vec(),
            namespace: namespace.to_owned(),
            tls: None,
        })?;
        Ok(Base::on(Arc::new(client)))
    }

    /// A service on a store.
    pub fn on(store: SharedStore) -> Base {
        let (stopper, stop) = stop::pair();
        Base {
            store,
            registry: Registry::default(),
            health: Health::default(),
            saga_config: SagaConfig::default(),
            stop,
            stopper,
            tasks: Vec::new(),
            sagas: None,
        }
    }

    /// Runs operations of these kinds, and takes over those of processes that died. Their verbs, and the audit
    /// events', are served beside the service's own.
    pub fn sagas(&mut self, definitions: Vec<Definition>) -> Sagas {
        let config = self.saga_config.clone();
        let (store, stop) = (&self.store, self.stop.clone());
        let (sagas, running) = Sagas::start(store, config, definitions, &self.registry, stop);
        let (health, watched) = (self.health.clone(), sagas.clone());
        let why = "operations: no lease of the store is held yet";
        health.set("operations", Condition::NotReady(why.to_owned()));
        let ready = tokio::spawn(async move {
            watched.ready().await;
            health.set("operations", Condition::Well);
        });
        self.tasks.extend([running, ready]);
        self.sagas.insert(sagas).clone()
    }

    /// What the verbs share.
    pub fn front(&self, authenticate: impl Authenticate) -> Front {
        Front::new(Arc::new(authenticate), Limits::default(), &self.registry)
    }

    /// Serves until SIGTERM or SIGINT, says where on stdout, and drains; operations under way end their step.
    /// A second signal ends the process at once.
    ///
    /// # Errors
    /// When the address cannot be had, or signals cannot be listened for.
    pub async fn serve<S: Send + Sync + 'static>(
        self,
        listen: SocketAddr,
        tls: Option<ServerTls>,
        api: Api<S>,
    ) -> Result<(), Error> {
        let port = Port::bind(listen, tls, server::Limits::default()).await?;
        let unheard = |error| Error::address("cannot listen for signals".to_owned(), error);
        let mut signals = Signals::new().map_err(unheard)?;
        println!("serving on {}", port.addr());
        let stopper = self.stopper;
        tokio::spawn(async move {
            signals.next().await;
            tracing::info!("draining; a second signal ends the process at once");
            stopper.stop();
            signals.end_at_once().await;
        });
        let (health, registry) = (self.health, self.registry);
        let router = match self.sagas {
            Some(sagas) => operations::serve(api, sagas, self.store).router(health, registry),
            None => api.router(health, registry),
        };
        port.serve(router, self.stop).await;
        for task in self.tasks {
            // One that panicked has said so in the log.
            let _ = task.await;
        }
        Ok(())
    }
}
