//! QEMU's monitor: one JSON object a line, each way.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use crate::{GuestError, PATIENCE};

/// A connection; QEMU has one at a time.
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// Events that came before an answer.
    events: Vec<Value>,
}

impl Qmp {
    /// Connects to a socket that QEMU may still be about to make.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn connect(socket: &Path) -> Result<Qmp, GuestError> {
        let end = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > end => {
                    return Err(GuestError::io("connect to QEMU's monitor")(error));
                }
                Err(_) => std::thread::yield_now(),
            }
        };
        let limited = stream.set_read_timeout(Some(PATIENCE));
        limited.map_err(GuestError::io("set up QEMU's monitor"))?;
        let mut qmp = Qmp {
            stream: BufReader::new(stream),
            events: Vec::new(),
        };
        qmp.read()?;
        qmp.run("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    fn read(&mut self) -> Result<Value, GuestError> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line);
        read.map_err(GuestError::io("read from QEMU's monitor"))?;
        serde_json::from_str(&line).map_err(|error| GuestError::Qmp {
            command: "read".to_owned(),
            answer: format!("{error}: {line:?}"),
        })
    }

    /// Has QEMU do something; what it returns.
    ///
    /// # Errors
    /// When it refuses.
    pub fn run(&mut self, command: &str, arguments: &Value) -> Result<Value, GuestError> {
        let message = json!({"execute": command, "arguments": arguments});
        let told = self
            .stream
            .get_mut()
            .write_all(format!("{message}\n").as_bytes());
        told.map_err(GuestError::io("write to QEMU's monitor"))?;
        loop {
            let mut answer = self.read()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if answer.get("error").is_some() {
                return Err(GuestError::Qmp {
                    command: message.to_string(),
                    answer: answer["error"].to_string(),
                });
            }
            self.events.push(answer);
        }
    }

    /// Waits for an event, also one that has come already.
    ///
    /// # Errors
    /// When it does not come.
    pub fn event(
        &mut self,
        name: &str,
        is_it: impl Fn(&Value) -> bool,
    ) -> Result<Value, GuestError> {
        let wanted = |event: &Value| event["event"] == name && is_it(&event["data"]);
        if let Some(place) = self.events.iter().position(&wanted) {
            return Ok(self.events.remove(place));
        }
        loop {
            let event = self.read()?;
            if wanted(&event) {
                return Ok(event);
            }
            self.events.push(event);
        }
    }
}
