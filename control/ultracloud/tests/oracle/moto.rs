//! The other side: a `moto_server` process on loopback.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;

use crate::plan::Side;
use crate::support::{ACCESS_KEY, Client, SECRET_KEY};

/// A running moto; ended when dropped.
pub struct Moto {
    child: Child,
    addr: SocketAddr,
    /// Reads away what it logs about each request, so that it is never held up.
    log: Option<thread::JoinHandle<()>>,
}

impl Moto {
    /// Starts it from the directory that `ULTRACLOUD_CLIENTS` names, or the PATH when that is unset.
    /// `None` without either.
    pub fn start() -> Option<Moto> {
        let dir = std::env::var_os("ULTRACLOUD_CLIENTS").map(PathBuf::from);
        let named = dir.as_ref().map(|dir| dir.join("moto_server"));
        let program = named.unwrap_or_else(|| PathBuf::from("moto_server"));
        let spawned = Command::new(&program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => {
                assert!(dir.is_none(), "{}: {error}", program.display());
                eprintln!("moto_server is not installed: not compared here");
                return None;
            }
        };
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = lines.by_ref().map_while(Result::ok);
        let addr = said
            .find_map(|line| line.split("http://").nth(1).map(|at| at.trim().to_owned()))
            .unwrap_or_else(|| panic!("moto ended before it listened: {:?}", child.wait()));
        let log = thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Some(Moto {
            child,
            addr: addr.parse().unwrap(),
            log: Some(log),
        })
    }

    pub fn side(&self) -> Side {
        Side::new(Client::new(self.addr, ACCESS_KEY, SECRET_KEY))
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(log) = self.log.take() {
            let _ = log.join();
        }
    }
}
