//! Filling a server fast: many connections, each with a batch of requests on its way.
//!
//! A durable server commits its PUTs in groups, so it is filled at its own pace only when many wait
//! at a time. Every answer is looked at; one refusal ends the fill. Which key has which number, and
//! what it holds, is the caller's word.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow};

use super::site::Endpoint;
use crate::machine;
use crate::process::LOAD_CPU;

/// Connections that fill a server.
const LANES: u32 = 64;
/// Most requests of a batch: their answers fit into any socket's buffer.
const BATCH_REQUESTS_MAX: usize = 16;
/// Bytes of bodies after which a batch is sent.
const BATCH_BYTES: usize = 64 << 10;
/// Fills of so many requests tell how far they are.
const TOLD_FROM: u32 = 500_000;
/// How often they do.
const TOLD_PARTS: u32 = 5;

/// One request for each number below `count`.
pub struct Fill<'a> {
    /// What happens to each key.
    pub method: Method,
    /// How many.
    pub count: u32,
    /// The path of a number.
    pub path: &'a (dyn Fn(u32) -> String + Sync),
    /// The body of a number; a DELETE has none.
    pub body: &'a (dyn Fn(u32) -> Vec<u8> + Sync),
}

/// What a fill does to each key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Writes it.
    Put,
    /// Removes it.
    Delete,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Self::Put => "PUT",
            Self::Delete => "DELETE",
        }
    }

    fn status(self) -> u16 {
        match self {
            Self::Put => 200,
            Self::Delete => 204,
        }
    }
}

/// Removes have no body.
pub fn no_body(_: u32) -> Vec<u8> {
    Vec::new()
}

impl Fill<'_> {
    /// Sends everything and waits for the last answer.
    pub fn run(&self, endpoint: &Endpoint) -> Result<()> {
        let (next, done) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            let lanes: Vec<_> = (0..LANES.min(self.count))
                .map(|_| scope.spawn(|| self.lane(endpoint, &next, &done)))
                .collect();
            lanes.into_iter().try_for_each(|lane| {
                let outcome = lane.join();
                outcome.map_err(|_| anyhow!("a thread that fills a server panicked"))?
            })
        })
    }

    /// One connection, which takes the next numbers until none is left.
    fn lane(&self, endpoint: &Endpoint, next: &AtomicU32, done: &AtomicU32) -> Result<()> {
        machine::pin(LOAD_CPU)?;
        let mut client = endpoint.client()?;
        let (mut batch, mut in_batch) = (Vec::new(), 0);
        loop {
            // Past the end by at most one for each lane.
            let number = next.fetch_add(1, Ordering::Relaxed);
            let is_last = number >= self.count;
            if !is_last {
                let path = (self.path)(number);
                let target = endpoint.target(self.method.name(), &path, "")?;
                let body = (self.body)(number);
                client.write_request(&mut batch, self.method.name(), &target, &body);
                in_batch += 1;
            }
            let is_full = in_batch == BATCH_REQUESTS_MAX || batch.len() >= BATCH_BYTES;
            if in_batch > 0 && (is_full || is_last) {
                let what = self.method.name();
                let sent = client.send_batch(&batch, in_batch, self.method.status());
                sent.with_context(|| format!("{what} up to number {number}"))?;
                self.tell(done, in_batch as u32);
                batch.clear();
                in_batch = 0;
            }
            if is_last {
                return Ok(());
            }
        }
    }

    fn tell(&self, done: &AtomicU32, more: u32) {
        let before = done.fetch_add(more, Ordering::Relaxed);
        let step = self.count / TOLD_PARTS;
        if self.count >= TOLD_FROM && before / step != (before + more) / step {
            eprintln!(
                "  {} of {} {}s answered",
                before + more,
                self.count,
                self.method.name()
            );
        }
    }
}
