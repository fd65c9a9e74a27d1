//! QMP, QEMU's control protocol: JSON lines over a unix socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

const ANSWER_LIMIT: Duration = Duration::from_mins(2);

/// A connection to one QEMU.
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// Events that came while something else was waited for.
    events: Vec<Value>,
}

impl Qmp {
    pub(crate) fn connect(path: &Path) -> Result<Qmp> {
        let stream = UnixStream::connect(path);
        let stream = stream.with_context(|| format!("cannot reach QEMU at {}", path.display()))?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        let mut qmp = Qmp {
            stream: BufReader::new(stream),
            events: Vec::new(),
        };
        let greeting = qmp.read()?;
        if greeting["QMP"].is_null() {
            bail!("QEMU greets with {greeting}");
        }
        qmp.run("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs a command; what it returned.
    ///
    /// # Errors
    /// What QEMU says of it.
    pub fn run(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes())?;
        loop {
            let mut answer = self.read()?;
            if !answer["event"].is_null() {
                self.events.push(answer);
            } else if answer["return"].is_null() {
                bail!("{command}: {answer}");
            } else {
                return Ok(answer["return"].take());
            }
        }
    }

    /// Waits for an event whose data is wanted; the data.
    ///
    /// # Errors
    /// When it does not come.
    pub fn event(&mut self, name: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let is_it = |event: &Value| event["event"] == name && wanted(&event["data"]);
        loop {
            if let Some(at) = self.events.iter().position(is_it) {
                return Ok(self.events.remove(at)["data"].take());
            }
            let next = self.read().with_context(|| format!("waiting for {name}"))?;
            self.events.push(next);
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        let count = self.stream.read_line(&mut line)?;
        if count == 0 {
            bail!("QEMU closed the connection");
        }
        Ok(serde_json::from_str(&line)?)
    }
}
