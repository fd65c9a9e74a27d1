//! What the clients of one run asked and were answered, key by key, under one logical clock.
//!
//! Bodies and ETags are numbers here. An ETag is known before anything is written under it, so one
//! that nobody wrote is found at once, and a body is compared with every byte that its ETag stands
//! for. A call without an answer may happen until its server's life ends: what a crash or a stop has
//! not left on the disk never happens afterwards.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::rc::Rc;

use md5::{Digest, Md5};
use s3_wire::Etag;

use super::http::Exchange;
use super::linear::{Call, Violation, check};
use super::object::{Key, Object, Op};

/// Keys of the run's bucket, in S3's order.
pub const KEYS: [&str; 7] = ["a", "d/1", "d/2", "d/3/x", "e", "f/1", "g"];

/// How a call ended.
#[derive(Clone, Copy, Debug)]
enum End {
    Answered(u64),
    /// Nobody heard; it was asked of this life of the server.
    Open(usize),
}

#[derive(Clone, Debug)]
struct Entry {
    op: Op,
    began: u64,
    end: End,
}

/// A common prefix that was listed: one of these keys had an object.
#[derive(Clone, Debug)]
struct Rolled {
    keys: Vec<usize>,
    began: u64,
    ended: u64,
}

struct KnownTag {
    text: String,
    body: u32,
}

#[derive(Default)]
pub struct History {
    clock: u64,
    calls: [Vec<Entry>; KEYS.len()],
    latest: [Option<u32>; KEYS.len()],
    /// The last life that refused writes to a key, and since when.
    failed: [Option<(usize, u64)>; KEYS.len()],
    rolled: Vec<Rolled>,
    /// When each life of the server ended.
    lives: Vec<u64>,
    bodies: Vec<Rc<[u8]>>,
    etags: Vec<KnownTag>,
    by_etag: BTreeMap<String, u32>,
    tags: u64,
}

impl History {
    pub fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The server's life that goes on.
    pub fn life(&self) -> usize {
        self.lives.len()
    }

    /// Nothing that was asked of the server so far can happen any more.
    pub fn end_life(&mut self) {
        let now = self.tick();
        self.lives.push(now);
    }

    /// A number that no other write has.
    pub fn new_tag(&mut self) -> u64 {
        self.tags += 1;
        self.tags
    }

    /// The ETags of a body, sent at once and, with several parts, as those; both number it.
    pub fn know(&mut self, parts: &[Rc<[u8]>], multipart: bool) -> Object {
        let whole: Rc<[u8]> = match parts {
            [one] => Rc::clone(one),
            _ => parts.concat().into(),
        };
        let single = Etag::single(Md5::digest(&whole).into());
        let body = if let Some(etag) = self.by_etag.get(single.text().as_str()) {
            self.etags[*etag as usize].body
        } else {
            self.bodies.push(whole);
            self.bodies.len() as u32 - 1
        };
        let etag = self.know_etag(&single, body);
        if !multipart {
            return Object {
                body: Some(body),
                etag: Some(etag),
                tag: None,
            };
        }
        let tags: Vec<Etag> = parts
            .iter()
            .map(|part| Etag::single(Md5::digest(part).into()))
            .collect();
        let tag = Etag::multipart(&tags).expect("an upload has few parts");
        Object {
            body: Some(body),
            etag: Some(self.know_etag(&tag, body)),
            tag: None,
        }
    }

    fn know_etag(&mut self, etag: &Etag, body: u32) -> u32 {
        let text = etag.text().as_str().to_owned();
        let next = self.etags.len() as u32;
        let number = *self.by_etag.entry(text.clone()).or_insert(next);
        if number == next {
            self.etags.push(KnownTag { text, body });
        }
        number
    }

    /// The object that a server names by this ETag, with its quotes.
    ///
    /// # Panics
    /// When nobody ever wrote such a body.
    pub fn named(&self, etag: &str) -> Object {
        let number = self.by_etag.get(etag.trim_matches('"'));
        self.numbered(*number.unwrap_or_else(|| panic!("nobody wrote the ETag {etag}")))
    }

    pub fn etag_text(&self, etag: u32) -> String {
        format!("\"{}\"", self.etags[etag as usize].text)
    }

    /// The bytes of a body that is known.
    pub fn bytes(&self, object: Object) -> Rc<[u8]> {
        let body = object.body.expect("an object with an ETag has a body");
        Rc::clone(&self.bodies[body as usize])
    }

    /// How many ETags are known.
    pub fn etags(&self) -> u32 {
        self.etags.len() as u32
    }

    /// The object of this ETag's number.
    pub fn numbered(&self, etag: u32) -> Object {
        Object {
            body: Some(self.etags[etag as usize].body),
            etag: Some(etag),
            tag: None,
        }
    }

    /// The ETag of the write of a key that was answered last.
    pub fn latest(&self, key: usize) -> Option<u32> {
        self.latest[key]
    }

    /// A call that was answered.
    pub fn answered(&mut self, key: usize, op: Op, began: u64, ended: u64) {
        if let Op::Write(_, object) = op {
            self.latest[key] = object.etag;
        }
        let end = End::Answered(ended);
        self.calls[key].push(Entry { op, began, end });
    }

    /// A call that was asked of a life of the server and may have happened.
    pub fn open(&mut self, key: usize, op: Op, began: u64, life: usize) {
        let end = End::Open(life);
        self.calls[key].push(Entry { op, began, end });
    }

    /// A call that the server answered with a failure of its own. What fails so takes no writes until
    /// the restart: it may have happened only if it began before the first such answer.
    pub fn failed(&mut self, key: usize, op: Op, done: &Exchange) {
        let (life, since) = *self.failed[key].get_or_insert((done.life, done.ended));
        if life != done.life {
            self.failed[key] = Some((done.life, done.ended));
        } else if done.began > since {
            return;
        }
        self.open(key, op, done.began, done.life);
    }

    /// One of these keys had an object.
    pub fn rolled(&mut self, keys: Vec<usize>, began: u64, ended: u64) {
        self.rolled.push(Rolled { keys, began, ended });
    }

    pub fn len(&self) -> usize {
        self.calls.iter().map(Vec::len).sum()
    }

    fn calls(&self, key: usize) -> Vec<Call<Op>> {
        let call = |entry: &Entry| {
            let (ended, certain) = match entry.end {
                End::Answered(at) => (at, true),
                End::Open(life) => (self.lives.get(life).copied().unwrap_or(u64::MAX), false),
            };
            Call {
                op: entry.op,
                began: entry.began,
                // An answer from a life may be read after it.
                ended: ended.max(entry.began),
                certain,
            }
        };
        self.calls[key].iter().map(call).collect()
    }

    /// Checks every key, and every common prefix.
    ///
    /// # Errors
    /// The offending key's history in words.
    pub fn check(&self) -> Result<(), String> {
        for (key, name) in KEYS.iter().enumerate() {
            let calls = self.calls(key);
            if let Err(violation) = check::<Key>(None, &calls) {
                return Err(self.describe(name, &calls, &violation));
            }
        }
        for rolled in &self.rolled {
            let explained = rolled.keys.iter().any(|key| {
                let mut calls = self.calls(*key);
                calls.push(Call {
                    op: Op::Saw(Object::default()),
                    began: rolled.began,
                    ended: rolled.ended,
                    certain: true,
                });
                check::<Key>(None, &calls).is_ok()
            });
            if !explained {
                let names: Vec<_> = rolled.keys.iter().map(|key| KEYS[*key]).collect();
                return Err(format!(
                    "a prefix was listed between {} and {} while none of {names:?} had an object",
                    rolled.began, rolled.ended
                ));
            }
        }
        Ok(())
    }

    fn describe(
        &self,
        name: &str,
        calls: &[Call<Op>],
        violation: &Violation<Option<Object>>,
    ) -> String {
        let mut text = format!("the history of {name:?} is not linearizable\n");
        let mut order: Vec<usize> = (0..calls.len()).collect();
        order.sort_by_key(|at| calls[*at].began);
        for at in order {
            let Call {
                op,
                began,
                ended,
                certain,
            } = &calls[at];
            let end = match (certain, ended) {
                (true, at) => format!("{at}"),
                (false, &u64::MAX) => "?".to_owned(),
                (false, at) => format!("?{at}"),
            };
            let mark = if at == violation.call { ">" } else { " " };
            let _ = writeln!(text, "{mark} {began:>6} to {end:<7} {op:?}");
        }
        let _ = writeln!(text, "server lives ended at {:?}", self.lives);
        let _ = write!(
            text,
            "right before the marked call's end the key held one of "
        );
        let _ = write!(text, "{:?}", violation.states);
        text
    }
}
