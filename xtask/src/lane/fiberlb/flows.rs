//! Established flows under load: connections that ask on and on and never open again, as a process of its own
//! so that it can live in another network namespace.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

const LIMIT: Duration = Duration::from_secs(20);
/// Between two requests of a connection: two CPUs serve both sides and the load balancer.
const PAUSE: Duration = Duration::from_millis(5);

/// What `cargo xtask flows` takes.
#[derive(clap::Args)]
pub struct Options {
    /// Where to
    #[arg(long)]
    to: SocketAddr,
    /// Connections
    #[arg(long)]
    connections: usize,
    /// Made when all are open
    #[arg(long)]
    ready: PathBuf,
    /// They end when this file is there
    #[arg(long)]
    until: PathBuf,
}

/// What became of them.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Outcome {
    /// Answers.
    pub requests: u64,
    /// Connections by who answered their first request.
    pub held: BTreeMap<String, usize>,
    /// Those that broke, the same way.
    pub broken: BTreeMap<String, usize>,
    /// Why some of them broke.
    pub errors: Vec<String>,
}

impl Outcome {
    /// How many broke.
    pub fn broken(&self) -> usize {
        self.broken.values().sum()
    }
}

struct Flow {
    stream: BufReader<TcpStream>,
    backend: String,
}

impl Flow {
    fn open(to: SocketAddr) -> Result<Flow> {
        let stream = TcpStream::connect_timeout(&to, LIMIT).context("cannot connect")?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let mut flow = Flow {
            stream: BufReader::new(stream),
            backend: String::new(),
        };
        flow.backend = flow.ask()?;
        Ok(flow)
    }

    fn ask(&mut self) -> Result<String> {
        let request = b"GET /who HTTP/1.1\r\nHost: lane\r\n\r\n";
        self.stream.get_mut().write_all(request)?;
        let mut length = None;
        for at in 0..64 {
            let mut line = String::new();
            ensure!(
                self.stream.read_line(&mut line)? > 0,
                "the connection has ended"
            );
            let line = line.trim_end();
            ensure!(at > 0 || line.contains(" 200 "), "the answer is {line}");
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = Some(value.trim().parse::<usize>()?);
            }
        }
        let length = length.filter(|length| *length < 1024);
        let mut body = vec![0; length.context("an answer without its length")?];
        self.stream.read_exact(&mut body)?;
        Ok(String::from_utf8_lossy(&body).trim().to_owned())
    }

    /// Asks until the file is there, or an answer is not the first one's sender's.
    fn work(&mut self, until: &Path) -> (u64, Result<()>) {
        let mut requests = 1;
        while !until.exists() {
            match self.ask() {
                Ok(who) if who == self.backend => requests += 1,
                Ok(who) => return (requests, Err(anyhow!("{who} answers a flow of another"))),
                Err(error) => return (requests, Err(error)),
            }
            std::thread::sleep(PAUSE);
        }
        (requests, Ok(()))
    }
}

/// Opens them, keeps them at work, and prints what became of them.
pub fn run(options: &Options) -> Result<()> {
    let opened: Result<Vec<Flow>> = (0..options.connections)
        .map(|_| Flow::open(options.to))
        .collect();
    std::fs::write(&options.ready, "").context("cannot say that all are open")?;
    let mut outcome = Outcome::default();
    let work = |mut flow: Flow| {
        let (requests, ended) = flow.work(&options.until);
        (flow.backend, requests, ended)
    };
    let ended: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = opened?
            .into_iter()
            .map(|flow| scope.spawn(|| work(flow)))
            .collect();
        anyhow::Ok(
            threads
                .into_iter()
                .filter_map(|thread| thread.join().ok())
                .collect(),
        )
    })?;
    ensure!(ended.len() == options.connections, "a thread has died");
    for (backend, requests, ended) in ended {
        outcome.requests += requests;
        *outcome.held.entry(backend.clone()).or_default() += 1;
        if let Err(error) = ended {
            *outcome.broken.entry(backend).or_default() += 1;
            outcome.errors.push(format!("{error:#}"));
        }
    }
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}
