//! A server under load: its process, where it answers, and how requests to it are written.
//!
//! Targets are presigned once, before any window, so that the load generator signs nothing.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use s3_wire::sigv4::{RequestToSign, Signer, presign};

use super::cell::Job;
use super::client::Client;
use crate::proc;
use crate::process::Process;

/// The region of every signature.
pub const REGION: &str = "us-east-1";
/// How long targets stay valid: a day, more than any run takes.
const EXPIRES_S: u32 = 86_400;

/// An access key and its secret.
#[derive(Clone)]
pub struct Keys {
    /// The access key.
    pub access: String,
    /// Its secret.
    pub secret: String,
}

/// How objects get into a server.
#[derive(Clone)]
pub enum Access {
    /// By requests under this signature.
    Signed(Keys),
    /// As files below this directory; requests are not signed, and only GET is served.
    Files(PathBuf),
}

/// Where a server answers, and as whom it is asked.
#[derive(Clone)]
pub struct Endpoint {
    /// Where it answers.
    pub address: SocketAddr,
    /// How it is filled and asked.
    pub access: Access,
}

/// A running contender.
pub struct Site {
    /// Its name in the report.
    pub name: &'static str,
    /// What its binary says it is.
    pub version: String,
    /// Where it answers, and as whom it is asked.
    pub endpoint: Endpoint,
    /// The most keys of a bucket that it is asked to list.
    pub list_keys_max: u32,
    /// The server; killed when the site is dropped.
    pub process: Process,
}

impl Site {
    /// Whether it takes part in a job.
    pub fn serves(&self, job: Job) -> bool {
        match (job, &self.endpoint.access) {
            (Job::Put(_) | Job::List(_) | Job::Roll(_), Access::Files(_)) => false,
            (Job::Get(_), _) | (Job::Put(_), Access::Signed(_)) => true,
            (Job::List(keys) | Job::Roll(keys), Access::Signed(_)) => keys <= self.list_keys_max,
        }
    }

    /// CPU that its process and everything below it has used.
    pub fn cpu(&self) -> Result<Duration> {
        proc::tree_cpu(self.process.id())
            .with_context(|| format!("read the CPU of {}{}", self.name, self.process.tail()))
    }
}

impl Endpoint {
    /// The same server, asked by somebody else.
    pub fn signed_by(&self, keys: &Keys) -> Self {
        Self {
            address: self.address,
            access: Access::Signed(keys.clone()),
        }
    }

    /// The request target for a path and a query, signed where the server wants it.
    pub fn target(&self, method: &str, path: &str, query: &str) -> Result<String> {
        match &self.access {
            Access::Files(_) => Ok(path.to_owned()),
            Access::Signed(keys) => {
                let host = self.address.to_string();
                Ok(format!(
                    "{path}?{}",
                    signed(keys, &host, method, path, query)?
                ))
            }
        }
    }

    /// A new connection to it.
    pub fn client(&self) -> Result<Client> {
        Client::connect(self.address)
    }

    /// One whole request: its answer must be 200 and is given.
    pub fn ask(&self, method: &str, path: &str, query: &str) -> Result<Vec<u8>> {
        let target = self.target(method, path, query)?;
        self.client()?.request(method, &target, b"")?.ok()
    }
}

fn signed(keys: &Keys, host: &str, method: &str, path: &str, query: &str) -> Result<String> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let signer = Signer {
        access_key: &keys.access,
        secret: &keys.secret,
        session_token: None,
        region: REGION,
        unix_s: now.context("the clock is before 1970")?.as_secs() as i64,
    };
    let request = RequestToSign {
        method,
        path,
        query,
        headers: &[("host", host)],
    };
    presign(&signer, &request, EXPIRES_S).with_context(|| format!("presign {method} {path}"))
}

/// A loopback address on which nothing listens now.
pub fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on loopback")?;
    listener.local_addr().context("find a free port")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_presigned_target_keeps_its_query_and_names_host_and_key() {
        let keys = Keys {
            access: "AKEXAMPLE".into(),
            secret: "secret".into(),
        };
        let query = signed(&keys, "127.0.0.1:9", "GET", "/b", "list-type=2").unwrap();
        assert!(query.starts_with("list-type=2&X-Amz-Algorithm=AWS4-HMAC-SHA256"));
        assert!(query.contains("X-Amz-Credential=AKEXAMPLE%2F"));
        assert!(query.contains("X-Amz-SignedHeaders=host&X-Amz-Signature="));
        let other = signed(&keys, "127.0.0.1:10", "GET", "/b", "list-type=2").unwrap();
        assert_ne!(query, other);
    }
}
