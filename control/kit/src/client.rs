//! Connections to other services: gRPC channels, plain or TLS.
//!
//! A channel connects when it is first used, and again after it broke. Each connection is made with
//! the certificates that are then in the files.

use std::io;
use std::time::Duration;

use axum::http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::Service;

use crate::Error;
use crate::corked::Corked;
use crate::link::Link;
use crate::tls::ClientTls;

/// Bytes that the other side may send ahead, on a call and on all of a connection.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// How a channel behaves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long an answer to a ping may take before the connection counts as broken.
    pub ping_timeout: Duration,
    /// How often a connection is pinged.
    pub ping_interval: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            connect_timeout: Duration::from_secs(5),
            ping_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(10),
        }
    }
}

/// A channel to a URL, `http://host:port` or, with TLS, `https://host:port`, which connects when it is first
/// used.
///
/// # Errors
/// When the URL is none, or asks for TLS and none is given.
pub fn channel(url: &str, tls: Option<&ClientTls>, options: Options) -> Result<Channel, Error> {
    let (endpoint, tls) = endpoint(url, tls, options)?;
    Ok(endpoint.connect_with_connector_lazy(connector(tls)))
}

/// A [`channel`] that has connected.
///
/// # Errors
/// As of [`channel`], or when nobody can be connected to there.
pub async fn connected(
    url: &str,
    tls: Option<&ClientTls>,
    options: Options,
) -> Result<Channel, Error> {
    let (endpoint, tls) = endpoint(url, tls, options)?;
    let channel = endpoint.connect_with_connector(connector(tls)).await;
    channel.map_err(|error| not_usable(url, error.into()))
}

fn not_usable(url: &str, why: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::address(format!("cannot connect to {url}"), why)
}

fn endpoint(
    url: &str,
    tls: Option<&ClientTls>,
    options: Options,
) -> Result<(Endpoint, Option<ClientTls>), Error> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|error| not_usable(url, error.into()))?
        .tcp_nodelay(true)
        .connect_timeout(options.connect_timeout)
        .http2_keep_alive_interval(options.ping_interval)
        .keep_alive_timeout(options.ping_timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    let tls = match endpoint.uri().scheme_str() {
        Some("http") => None,
        Some("https") => match tls {
            Some(tls) => Some(tls.clone()),
            None => return Err(not_usable(url, "an https URL needs certificates".into())),
        },
        _ => return Err(not_usable(url, "expected http:// or https://".into())),
    };
    Ok((endpoint, tls))
}

fn connector(
    tls: Option<ClientTls>,
) -> impl Service<Uri, Response = TokioIo<Corked<Link>>, Error = io::Error, Future: Send> + Send {
    tower::service_fn(move |uri: Uri| connect(uri, tls.clone()))
}

async fn connect(uri: Uri, tls: Option<ClientTls>) -> io::Result<TokioIo<Corked<Link>>> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
    let host = uri.host().ok_or_else(|| invalid("the URL has no host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let default = if tls.is_some() { 443 } else { 80 };
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(default))).await?;
    stream.set_nodelay(true)?;
    let Some(tls) = tls else {
        return Ok(TokioIo::new(Corked::of_client(Link::Plain(stream))));
    };
    let name = ServerName::try_from(host.to_owned()).map_err(|_| invalid("not a host's name"))?;
    let connector = TlsConnector::from(tls.current());
    let stream = connector.connect(name, stream).await?;
    Ok(TokioIo::new(Corked::of_client(Link::Tls(Box::new(stream)))))
}
