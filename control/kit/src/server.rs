//! One port of a service: HTTP/1.1 and HTTP/2, plain or TLS, gRPC beside REST.
//!
//! Connections are bounded; one more waits in the kernel's queue. The end is orderly: no new
//! connection, no new request on open ones, and what runs may finish until the drain limit. What is
//! left then is cut off.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::Error;
use crate::corked::Corked;
use crate::stop::Stop;
use crate::tls::ServerTls;

/// What a port takes at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections.
    pub connections_max: usize,
    /// Calls at once on one connection.
    pub streams_max: u32,
    /// How long a TLS handshake, and an HTTP/1.1 head, may take.
    pub handshake: Duration,
    /// How often an idle HTTP/2 connection is asked whether it lives.
    pub ping_interval: Duration,
    /// How long requests in flight may take to end.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: 8192,
            streams_max: 65_536,
            handshake: Duration::from_secs(10),
            ping_interval: Duration::from_secs(30),
            drain: Duration::from_secs(10),
        }
    }
}

/// Bytes that a client may send ahead, on a call and on all of a connection. Fixed: finding them out by
/// pings costs more than it brings to small calls.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// How long a connection that was refused is read from, and how much.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 64 << 10;

/// Who is at the other end; an extension of every request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where the connection comes from.
    pub addr: SocketAddr,
    /// The common name in the subject of its verified certificate, empty where that has none; `None`
    /// without a certificate.
    pub common_name: Option<Arc<str>>,
}

fn common_name(certificate: &CertificateDer<'_>) -> Option<Arc<str>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject().iter_common_name();
    let name = names.map(|name| name.as_str().unwrap_or_default()).next();
    Some(name.unwrap_or_default().into())
}

/// A port that is listened on.
pub struct Port {
    listener: TcpListener,
    addr: SocketAddr,
    tls: Option<ServerTls>,
    limits: Limits,
}

impl Port {
    /// Listens. Port 0 lets the kernel choose.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn bind(
        addr: SocketAddr,
        tls: Option<ServerTls>,
        limits: Limits,
    ) -> Result<Port, Error> {
        let failed = |error| Error::address(format!("cannot listen on {addr}"), error);
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        Ok(Port {
            listener,
            addr,
            tls,
            limits,
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until the stop is requested and connections have ended or were cut off.
    pub async fn serve(self, router: Router, stop: Stop) {
        let connections = Arc::new(Semaphore::new(self.limits.connections_max));
        let graceful = GracefulShutdown::new();
        let mut tasks = JoinSet::new();
        loop {
            let permit = Arc::clone(&connections).acquire_owned();
            let accepted = tokio::select! {
                () = stop.requested() => break,
                accepted = async {
                    let permit = permit.await.expect("the semaphore is never closed");
                    (self.listener.accept().await, permit)
                } => accepted,
                // Ended connections leave the set.
                Some(_) = tasks.join_next() => continue,
            };
            let (Ok((stream, addr)), permit) = accepted else {
                // The kernel's cause (a client that left, no descriptors) passes; others are served.
                tokio::task::yield_now().await;
                continue;
            };
            let connection = Connection {
                addr,
                tls: self.tls.clone(),
                limits: self.limits,
                router: router.clone(),
                watcher: graceful.watcher(),
            };
            tasks.spawn(async move {
                connection.run(stream).await;
                drop(permit);
            });
        }
        drop(self.listener);
        if tokio::time::timeout(self.limits.drain, graceful.shutdown())
            .await
            .is_err()
        {
            tracing::warn!(addr = %self.addr, "requests outlasted the drain and are cut off");
        }
        tasks.shutdown().await;
    }
}

/// Reads what the other side still sends, so that it gets to read why it was refused: a connection that
/// is closed with something unread is reset, and what was sent last is lost.
async fn linger(mut stream: TcpStream) {
    let mut unread = [0; 4096];
    let read = async {
        stream.shutdown().await?;
        let mut bytes = 0;
        while bytes < LINGER_BYTES_MAX {
            match stream.read(&mut unread).await? {
                0 => break,
                read => bytes += read,
            }
        }
        Ok::<(), std::io::Error>(())
    };
    // Whether the other side has read it is not known, nor needed.
    let _ = tokio::time::timeout(LINGER, read).await;
}

struct Connection {
    addr: SocketAddr,
    tls: Option<ServerTls>,
    limits: Limits,
    router: Router,
    watcher: Watcher,
}

impl Connection {
    async fn run(self, stream: TcpStream) {
        // Small answers must not wait for acknowledgements of earlier ones.
        let _ = stream.set_nodelay(true);
        let addr = self.addr;
        let Some(tls) = &self.tls else {
            return self.serve(stream, None).await;
        };
        let handshake = TlsAcceptor::from(tls.current()).accept(stream);
        match tokio::time::timeout(self.limits.handshake, handshake.into_fallible()).await {
            Ok(Ok(stream)) => {
                let shown = stream.get_ref().1.peer_certificates();
                let name = shown.and_then(<[_]>::first).and_then(common_name);
                self.serve(stream, name).await;
            }
            Ok(Err((error, stream))) => {
                tracing::debug!(%addr, %error, "TLS handshake refused");
                linger(stream).await;
            }
            Err(_) => tracing::debug!(%addr, "TLS handshake took too long"),
        }
    }

    async fn serve<S>(self, stream: S, common_name: Option<Arc<str>>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let addr = self.addr;
        let peer = Peer { addr, common_name };
        let router = self.router;
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            let router = router.clone();
            async move {
                let answer = router.oneshot(request.map(Body::new)).await;
                Ok::<_, Infallible>(answer.unwrap_or_else(|never| match never {}))
            }
        });
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.handshake);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.limits.streams_max)
            .keep_alive_interval(self.limits.ping_interval)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let serving = builder.serve_connection(TokioIo::new(Corked::of_server(stream)), service);
        if let Err(error) = self.watcher.watch(serving.into_owned()).await {
            tracing::debug!(%addr, error = &*error, "a connection broke");
        }
    }
}
