//! A process that works on the ledger until it is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::num::NonZeroU64;
use std::process::{Child, ChildStdout, Command, Stdio};

use creditservice::{Ledger, Options, Refusal, TransferId, Want};
use futures_util::future::join_all;

use super::{certain, store, vcpu};

/// How long a worker's reservations hold.
pub const TIMEOUT_MS: NonZeroU64 = NonZeroU64::new(2000).unwrap();
/// The tasks of a worker.
const TASKS: u64 = 4;
/// A worker that nobody kills ends by itself.
const STEPS: u64 = 10_000;

pub fn want(id: TransferId, amount: u64) -> Want {
    Want {
        quota: vcpu(),
        reservation: id,
        amount,
    }
}

/// Works. Each line of the journal is written before what it announces, or after what it reports.
pub fn work(url: &str) {
    let name = std::env::var("UC_LEDGER_NAME").unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let ledger = Ledger::open(store(url), Options::default()).await.unwrap();
        join_all((0..TASKS).map(|task| steps(&ledger, format!("{name}/{task}")))).await;
    });
}

async fn steps(ledger: &Ledger, name: String) {
    for step in 0..STEPS {
        let id = TransferId::derive([format!("{name}/{step}")]);
        let amount = 1 + step % 3;
        certain(async || ledger.reserve(&[want(id, amount)], TIMEOUT_MS).await)
            .await
            .unwrap();
        if step % 4 == 3 {
            certain(async || ledger.release(&[id]).await).await.unwrap();
            continue;
        }
        say(&format!("committing {id} {amount}"));
        match certain(async || ledger.commit(&[id]).await).await {
            Ok(()) => say(&format!("committed {id}")),
            Err(reason) => assert!(matches!(reason, Refusal::Expired { .. }), "{reason}"),
        }
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\njournal {line}").unwrap();
    out.flush().unwrap();
}

/// What a worker has written.
#[derive(Default)]
pub struct Journal {
    pub committing: BTreeMap<TransferId, u64>,
    pub committed: BTreeSet<TransferId>,
}

impl Journal {
    fn read(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        if words.next() != Some("journal") {
            return;
        }
        // The last line may be cut: then what it announces has not begun.
        let (what, id, amount) = (words.next(), words.next(), words.next());
        let Some(Ok(id)) = id.map(str::parse) else {
            return;
        };
        match (what, amount.map(str::parse)) {
            (Some("committing"), Some(Ok(amount))) => drop(self.committing.insert(id, amount)),
            (Some("committed"), _) => drop(self.committed.insert(id)),
            _ => {}
        }
    }
}

/// A worker's process.
pub struct Worker {
    child: Child,
    lines: BufReader<ChildStdout>,
    journal: Journal,
}

impl Worker {
    pub fn start(url: &str, name: &str) -> Worker {
        let test = std::thread::current().name().unwrap().to_owned();
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", &test, "--nocapture"])
            .env("UC_LEDGER_WORKER", url)
            .env("UC_LEDGER_NAME", name)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Worker {
            child,
            lines,
            journal: Journal::default(),
        }
    }

    /// Waits until it has committed so often.
    pub fn await_commits(&mut self, count: usize) {
        let mut line = String::new();
        while self.journal.committed.len() < count {
            line.clear();
            let read = self.lines.read_line(&mut line).unwrap();
            assert!(read > 0, "it ended: {:?}", self.child.wait());
            self.journal.read(&line);
        }
    }

    /// SIGKILL, and what it had written until then.
    pub fn killed(mut self) -> Journal {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        for line in self.lines.lines() {
            self.journal.read(&line.unwrap());
        }
        self.journal
    }
}
