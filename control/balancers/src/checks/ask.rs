//! One check: over TCP, TLS, HTTP or gRPC.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use control_kit::link::Link;
use fiberlb::with_causes;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::http::Uri;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::spec::{CheckKind, Tls};

/// Asks one backend.
pub struct Asker {
    to: SocketAddr,
    kind: CheckKind,
    /// The host that is asked for, as requests name it.
    authority: String,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// Why nothing can be asked.
    unable: Option<String>,
}

impl Asker {
    /// Makes ready what every check of this backend needs.
    pub fn new(addr: IpAddr, port: u16, kind: &CheckKind) -> Asker {
        let to = SocketAddr::new(addr, port);
        let (host, tls, alpn): (&str, Option<&Tls>, &[u8]) = match kind {
            CheckKind::Tcp => ("", None, b""),
            CheckKind::Http { host, tls, .. } => (host, tls.as_ref(), b"http/1.1"),
            CheckKind::Grpc { host, tls, .. } => (host, tls.as_ref(), b"h2"),
        };
        let authority = if host.is_empty() {
            to.to_string()
        } else {
            host.to_owned()
        };
        let made = tls.map(|tls| {
            let name = server_name(tls, host, addr)?;
            Ok((Arc::new(config(tls, alpn)?), name))
        });
        let (tls, unable) = match made.transpose() {
            Ok(tls) => (tls, None),
            Err(why) => (None, Some(why)),
        };
        Asker {
            to,
            kind: kind.clone(),
            authority,
            tls,
            unable,
        }
    }

    /// Asks once; the caller holds the deadline.
    pub async fn ask(&self) -> Result<(), String> {
        if let Some(why) = &self.unable {
            return Err(why.clone());
        }
        let connected = TcpStream::connect(self.to).await;
        let stream = connected.map_err(|error| format!("cannot connect: {error}"))?;
        let link = match &self.tls {
            None => Link::Plain(stream),
            Some((config, name)) => {
                let connector = TlsConnector::from(Arc::clone(config));
                let secured = connector.connect(name.clone(), stream).await;
                let secured = secured.map_err(|error| format!("TLS: {error}"))?;
                Link::Tls(Box::new(secured))
            }
        };
        match &self.kind {
            CheckKind::Tcp => Ok(()),
            CheckKind::Http { path, statuses, .. } => {
                let status = self.http(link, path).await?;
                if statuses.has(status) {
                    return Ok(());
                }
                Err(format!("status {status}"))
            }
            CheckKind::Grpc { service, .. } => self.grpc(link, service).await,
        }
    }

    async fn http(&self, link: Link, path: &str) -> Result<u16, String> {
        let failed = |error: hyper::Error| format!("HTTP: {}", with_causes(&error));
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(link)).await.map_err(failed)?;
        let request = hyper::Request::get(path)
            .header("host", &self.authority)
            .header("user-agent", "ultracloud-fiberlb")
            .header("connection", "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| format!("no request can be made: {error}"))?;
        let mut asked = std::pin::pin!(sender.send_request(request));
        // The connection works while it is awaited; its end is that of the check.
        let answer = tokio::select! {
            biased;
            answer = &mut asked => answer,
            ended = connection => {
                ended.map_err(failed)?;
                // It may have ended just behind the answer.
                asked.await
            }
        };
        answer
            .map(|answer| answer.status().as_u16())
            .map_err(failed)
    }

    async fn grpc(&self, link: Link, service: &str) -> Result<(), String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let uri = format!("{scheme}://{}", self.authority);
        let endpoint = Endpoint::from_shared(uri).map_err(|error| format!("gRPC: {error}"))?;
        let mut once = Some(TokioIo::new(link));
        let connector = tower::service_fn(move |_: Uri| {
            let link = once.take().ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotConnected, "the connection has ended")
            });
            std::future::ready(link)
        });
        let channel = endpoint.connect_with_connector(connector).await;
        let channel = channel.map_err(|error| format!("gRPC: {}", with_causes(&error)))?;
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = HealthClient::new(channel).check(request).await;
        let answer =
            answer.map_err(|status| format!("gRPC: {:?} {}", status.code(), status.message()))?;
        match answer.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            other => Err(format!("gRPC: {}", other.as_str_name())),
        }
    }
}

fn server_name(tls: &Tls, host: &str, addr: IpAddr) -> Result<ServerName<'static>, String> {
    let host = match (&*tls.server_name, host) {
        ("", "") => return Ok(ServerName::from(addr)),
        ("", host) => match host.parse::<hyper::http::uri::Authority>() {
            Ok(authority) => authority.host().trim_matches(['[', ']']).to_owned(),
            Err(error) => return Err(format!("{host} is no host: {error}")),
        },
        (name, _) => name.to_owned(),
    };
    ServerName::try_from(host.clone()).map_err(|error| format!("{host} is no name: {error}"))
}

fn config(tls: &Tls, alpn: &[u8]) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("no TLS version suits: {error}"))?;
    let mut config = if let Some(trusted) = &tls.trusted {
        let mut roots = RootCertStore::empty();
        for certificate in trusted {
            let added = roots.add(certificate.clone());
            added.map_err(|error| format!("not a CA's certificate: {error}"))?;
        }
        versions.with_root_certificates(roots).with_no_client_auth()
    } else {
        versions
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            .with_no_client_auth()
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

/// Takes any certificate, for checks that say `skip_verify`; signatures are verified all the same.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
