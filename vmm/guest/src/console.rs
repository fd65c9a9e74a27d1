//! A guest's serial console: a line goes in, what it prints comes out, and a last line with its status.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Instant;

use crate::{GuestError, PATIENCE};

/// How the line begins by which the shell says that it waits; the last command's status follows.
pub(crate) const PROMPT: &str = "@ready";

/// Lines that may wait to be read.
const LINES_MAX: usize = 10_000;

/// See the module's head.
pub struct Console {
    lines: Receiver<String>,
    keys: ChildStdin,
    said: String,
}

impl Console {
    pub(crate) fn new(out: ChildStdout, keys: ChildStdin) -> Result<Console, GuestError> {
        let (send, lines) = sync_channel(LINES_MAX);
        let read = move || {
            let mut out = BufReader::new(out);
            let mut line = Vec::new();
            while out.read_until(b'\n', &mut line).is_ok_and(|got| got > 0) {
                let text = String::from_utf8_lossy(&line).trim().to_owned();
                if send.send(text).is_err() {
                    return;
                }
                line.clear();
            }
        };
        let thread = std::thread::Builder::new().name("console".to_owned());
        let started = thread.spawn(read);
        started.map_err(GuestError::io("start the console's thread"))?;
        Ok(Console {
            lines,
            keys,
            said: String::new(),
        })
    }

    pub(crate) fn silent(&self, what: &str) -> GuestError {
        GuestError::Console {
            what: what.to_owned(),
            said: self.said.clone(),
        }
    }

    pub(crate) fn is_ready(&mut self) -> Result<(), GuestError> {
        self.status("the guest's shell").map(drop)
    }

    pub(crate) fn run(&mut self, line: &str) -> Result<String, GuestError> {
        self.begin(line)?;
        self.finish(line)
    }

    pub(crate) fn begin(&mut self, line: &str) -> Result<(), GuestError> {
        self.said.clear();
        let typed = self.keys.write_all(format!("{line}\n").as_bytes());
        let typed = typed.and_then(|()| self.keys.flush());
        typed.map_err(|error| {
            let last: Vec<String> = self.lines.try_iter().collect();
            self.said = last.join("\n");
            self.silent(&format!("{line}: {error}"))
        })
    }

    pub(crate) fn finish(&mut self, line: &str) -> Result<String, GuestError> {
        let status = self.status(line)?;
        let said = self.said.trim().to_owned();
        if status == 0 {
            return Ok(said);
        }
        Err(GuestError::Failed {
            command: line.to_owned(),
            status,
            said,
        })
    }

    /// Reads up to the next prompt.
    fn status(&mut self, what: &str) -> Result<i32, GuestError> {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.silent(&format!("{what}: no answer in {PATIENCE:?}")));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.silent(&format!("{what}: QEMU has ended")));
                }
            };
            // What was printed may end without a new line.
            if let Some((last, status)) = line.split_once(PROMPT) {
                self.said.push_str(last);
                return Ok(status.trim().parse().unwrap_or(-1));
            }
            self.said.push_str(&line);
            self.said.push('\n');
            if line.contains("Kernel panic") {
                return Err(self.silent(what));
            }
        }
    }
}
