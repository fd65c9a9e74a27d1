//! TLS from files, read again when they change.
//!
//! The files' stamps are looked at whenever a connection is made, so that a new certificate holds from
//! the next connection on, without a signal or a timer. Files that cannot be used leave the last good
//! ones in force, and say so in the log. Connections that are open keep what they began with.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::Deserialize;

use crate::Error;

/// The files of one side, all PEM; as a block of a config: `cert`, `key` and `ca`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// Certificates, the own one first.
    pub cert: PathBuf,
    /// Private key of the own certificate.
    pub key: PathBuf,
    /// Who may sign the other side's certificate. A server with one refuses clients without.
    pub ca: Option<PathBuf>,
}

type Stamp = Vec<Option<(SystemTime, u64)>>;

impl TlsFiles {
    fn stamp(&self) -> Stamp {
        let files = [Some(&self.cert), Some(&self.key), self.ca.as_ref()];
        let stamp = |file: &PathBuf| {
            let found = fs::metadata(file).ok()?;
            Some((found.modified().ok()?, found.len()))
        };
        files.into_iter().flatten().map(stamp).collect()
    }
}

/// A configuration that follows its files.
struct Followed<T> {
    files: TlsFiles,
    load: fn(&TlsFiles) -> Result<T, Error>,
    current: Mutex<(Stamp, Arc<T>)>,
}

impl<T> Followed<T> {
    fn open(files: TlsFiles, load: fn(&TlsFiles) -> Result<T, Error>) -> Result<Self, Error> {
        // The stamp is older than what is read: a change in between is seen the next time.
        let stamp = files.stamp();
        let current = Mutex::new((stamp, Arc::new(load(&files)?)));
        Ok(Followed {
            files,
            load,
            current,
        })
    }

    fn current(&self) -> Arc<T> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.files.stamp();
        if stamp != current.0 {
            match (self.load)(&self.files) {
                Ok(loaded) => {
                    current.1 = Arc::new(loaded);
                    tracing::info!(cert = %self.files.cert.display(), "certificate read again");
                }
                Err(error) => tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the changed certificate cannot be used; the last one stays in force"
                ),
            }
            current.0 = stamp;
        }
        Arc::clone(&current.1)
    }
}

/// The server's side.
#[derive(Clone)]
pub struct ServerTls(Arc<Followed<ServerConfig>>);

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one is missing or not usable.
    pub fn open(files: TlsFiles) -> Result<ServerTls, Error> {
        Followed::open(files, server_config).map(|followed| ServerTls(Arc::new(followed)))
    }

    /// What the next connection is served with.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.0.current()
    }
}

/// The client's side.
#[derive(Clone)]
pub struct ClientTls(Arc<Followed<ClientConfig>>);

impl ClientTls {
    /// Reads the files. Without a CA no server is trusted.
    ///
    /// # Errors
    /// When one is missing or not usable.
    pub fn open(files: TlsFiles) -> Result<ClientTls, Error> {
        Followed::open(files, client_config).map(|followed| ClientTls(Arc::new(followed)))
    }

    /// What the next connection is made with.
    pub fn current(&self) -> Arc<ClientConfig> {
        self.0.current()
    }
}

fn server_config(files: &TlsFiles) -> Result<ServerConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::certificate("no TLS version suits", &files.cert, error))?;
    let verified = match &files.ca {
        None => versions.with_no_client_auth(),
        Some(ca) => {
            let roots = Arc::new(roots(ca)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                .build()
                .map_err(|error| Error::certificate("cannot verify clients by", ca, error))?;
            versions.with_client_cert_verifier(verifier)
        }
    };
    let mut config = verified
        .with_single_cert(chain(&files.cert)?, key(&files.key)?)
        .map_err(|error| Error::certificate("key does not fit certificate", &files.cert, error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn client_config(files: &TlsFiles) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let trusted = match &files.ca {
        None => RootCertStore::empty(),
        Some(ca) => roots(ca)?,
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::certificate("no TLS version suits", &files.cert, error))?
        .with_root_certificates(trusted)
        .with_client_auth_cert(chain(&files.cert)?, key(&files.key)?)
        .map_err(|error| Error::certificate("key does not fit certificate", &files.cert, error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let chain: Vec<_> =
        read.map_err(|error| Error::certificate("cannot read certificates of", file, error))?;
    if chain.is_empty() {
        let what = "no certificate is in";
        return Err(Error::certificate(what, file, "expected PEM blocks"));
    }
    Ok(chain)
}

fn key(file: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_file(file)
        .map_err(|error| Error::certificate("cannot read the private key", file, error))
}

fn roots(file: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(file)? {
        roots
            .add(certificate)
            .map_err(|error| Error::certificate("not a CA certificate in", file, error))?;
    }
    Ok(roots)
}
