//! The clients that come from PyPI, of S3 and of etcd, and an S3 to compare with, in a venv of the
//! cache, at pinned versions; and Patroni in one of its own, for a lane.
//!
//! Debian's own are too old to send the checksums that every SDK sends by default since 2025.
//! A stamp beside a venv holds the pins and the interpreter: when they differ, it is rebuilt.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Report, State, version_of};
use crate::process;

struct Client {
    name: &'static str,
    /// What pip is asked for beyond the package itself.
    extras: &'static str,
    version: &'static str,
    why: &'static str,
}

/// Clients that live together.
pub struct Venv {
    /// Its directory in the cache.
    dir: &'static str,
    clients: &'static [Client],
}

/// What tests and the quickstart drive.
pub const CLIENTS: Venv = Venv {
    dir: "clients",
    clients: &CLIENT_PACKAGES,
};

/// What `patroni-failover` drives.
pub const PATRONI: Venv = Venv {
    dir: "patroni",
    clients: &[Client {
        name: "patroni",
        extras: "[etcd3,psycopg3]",
        version: "4.1.5",
        why: "fails PostgreSQL over, with its leader key in ChainFire",
    }],
};

const CLIENT_PACKAGES: [Client; 7] = [
    Client {
        name: "boto3",
        extras: "",
        version: "1.44.8",
        why: "the SDK for Python",
    },
    Client {
        name: "awscli",
        extras: "",
        version: "1.46.3",
        why: "Amazon's command line (aws)",
    },
    Client {
        name: "s3cmd",
        extras: "",
        version: "2.4.0",
        why: "an S3 client with code of its own",
    },
    Client {
        name: "moto",
        extras: "[server]",
        version: "5.2.5",
        why: "an S3 of other authors, the oracle of tests",
    },
    Client {
        name: "etcd3gw",
        extras: "",
        version: "2.7.0",
        why: "etcd's JSON gateway from Python",
    },
    Client {
        name: "grpcio-reflection",
        extras: "",
        version: "1.85.1",
        why: "gRPC from Python, of services that it asks what they are",
    },
    Client {
        name: "schemathesis",
        extras: "",
        version: "4.32.5",
        why: "generates requests from an OpenAPI document and judges the answers",
    },
];

impl Venv {
    /// Its programs.
    pub fn bin(&self, cache: &Path) -> PathBuf {
        self.path(cache).join("bin")
    }

    fn path(&self, cache: &Path) -> PathBuf {
        cache.join(self.dir)
    }

    /// Builds it where the stamp differs; then runs each client to learn its version.
    pub fn ensure(&self, cache: &Path, report: &mut Report) -> Result<()> {
        let interpreter = process::capture(Command::new("python3").arg("--version"))?;
        let stamp = self.stamp(&interpreter);
        let stamp_path = self.path(cache).join("ultracloud-stamp");
        let stamped = std::fs::read_to_string(&stamp_path).is_ok_and(|found| found == stamp);
        let found = if stamped { self.versions(cache) } else { None };
        let (state, versions) = if let Some(found) = found {
            (State::Found, found)
        } else {
            self.build(cache)?;
            let built = self.versions(cache);
            let built = built.context("a Python client was installed but does not run")?;
            std::fs::write(&stamp_path, stamp)?;
            (State::Installed, built)
        };
        for (client, version) in self.clients.iter().zip(versions) {
            ensure!(
                version == client.version,
                "{} is {version} but {} is pinned: remove {} and run `cargo xtask setup` again",
                client.name,
                client.version,
                self.path(cache).display()
            );
            report.line(state, client.name, &version, client.why)?;
        }
        Ok(())
    }

    /// The version of each client, in their order; `None` when one does not run.
    fn versions(&self, cache: &Path) -> Option<Vec<String>> {
        let bin = self.bin(cache);
        let versions = self.clients.iter().map(|client| installed(&bin, client));
        versions.collect()
    }

    fn build(&self, cache: &Path) -> Result<()> {
        let venv = self.path(cache);
        eprintln!("installing Python packages into {}", venv.display());
        process::run_as_progress(
            Command::new("python3")
                .args(["-m", "venv", "--clear"])
                .arg(&venv),
        )
        .context("python3 cannot make a venv (Debian: python3-venv)")?;
        let mut pip = Command::new(venv.join("bin/python"));
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]);
        pip.args(self.clients.iter().map(requirement));
        process::run_as_progress(&mut pip)
    }

    fn stamp(&self, interpreter: &str) -> String {
        let requirements: Vec<String> = self.clients.iter().map(requirement).collect();
        format!("{interpreter}\n{}\n", requirements.join("\n"))
    }
}

fn requirement(client: &Client) -> String {
    format!("{}{}=={}", client.name, client.extras, client.version)
}

/// The version that a client itself reports; `None` when it does not run.
fn installed(bin: &Path, client: &Client) -> Option<String> {
    let mut command = match client.name {
        "boto3" | "moto" | "etcd3gw" | "grpcio-reflection" => Command::new(bin.join("python")),
        "awscli" => Command::new(bin.join("aws")),
        name => Command::new(bin.join(name)),
    };
    match client.name {
        name @ ("boto3" | "moto" | "etcd3gw" | "grpcio-reflection") => {
            let version = "from importlib.metadata import version";
            let module = name.replace("grpcio-", "grpc_");
            command.args([
                "-c",
                &format!("import {module}; {version}; print(version('{name}'))"),
            ])
        }
        _ => command.arg("--version"),
    };
    version_of(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stamp_changes_with_the_interpreter_and_holds_every_pin() {
        assert_ne!(
            CLIENTS.stamp("Python 3.11.2"),
            CLIENTS.stamp("Python 3.13.1")
        );
        for client in CLIENTS.clients {
            let stamp = CLIENTS.stamp("Python 3.11.2");
            assert!(stamp.contains(&requirement(client)));
        }
    }

    #[test]
    fn a_client_that_is_not_there_has_no_version() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(CLIENTS.versions(empty.path()), None);
        assert_eq!(PATRONI.versions(empty.path()), None);
    }
}
