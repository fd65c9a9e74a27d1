//! GET, HEAD and COPY: every byte and every header of an object is compared with what its ETag
//! stands for.

use super::client::{BUCKET, Client, Refusal, TRIES_MAX, path};
use super::history::KEYS;
use super::http::{Exchange, Outcome, Request, Response, element};
use super::object::{Guard, Object, Op};

/// What a read asked for besides the object.
#[derive(Clone, Copy, Debug)]
enum Ask {
    Whole,
    /// Bytes from one to another, both included.
    Range(usize, usize),
    /// Only if the ETag is another one.
    UnlessEtag(u32),
    /// Only if the ETag is this one.
    IfEtag(u32),
}

impl Client {
    pub(super) async fn get(&mut self, key: usize) {
        let known = self.history().latest(key);
        let asked = match (self.rng.below(8), known) {
            (0, Some(etag)) => Ask::UnlessEtag(etag),
            (1, Some(etag)) => Ask::IfEtag(etag),
            (2 | 3, _) => {
                let from = self.rng.below(2_000) as usize;
                Ask::Range(from, from + self.rng.below(70_000) as usize)
            }
            _ => Ask::Whole,
        };
        let mut request = Request {
            method: "GET",
            path: path(key),
            ..Request::default()
        };
        let header = match asked {
            Ask::Whole => None,
            Ask::Range(from, to) => Some(("range", format!("bytes={from}-{to}"))),
            Ask::UnlessEtag(etag) => Some(("if-none-match", self.history().etag_text(etag))),
            Ask::IfEtag(etag) => Some(("if-match", self.history().etag_text(etag))),
        };
        request.headers.extend(header);
        let done = self.ask(request).await;
        self.read(key, asked, &done);
    }

    /// Reads a key until the server tells what it holds.
    pub async fn get_at_last(&mut self, key: usize) {
        let request = Request {
            method: "GET",
            path: path(key),
            ..Request::default()
        };
        for _ in 0..TRIES_MAX {
            let done = self.ask(request.clone()).await;
            if self.read(key, Ask::Whole, &done) {
                return;
            }
        }
        panic!("{:?} cannot be read", KEYS[key]);
    }

    /// Records what a read was answered; false when that is nothing.
    fn read(&mut self, key: usize, asked: Ask, done: &Exchange) -> bool {
        let Outcome::Answered(response) = &done.outcome else {
            return false;
        };
        let op = match (response.status, asked) {
            (200, Ask::Whole | Ask::UnlessEtag(_) | Ask::IfEtag(_)) | (206, Ask::Range(..)) => {
                let object = self.seen(response);
                let bytes = self.history().bytes(object);
                let expected = match asked {
                    Ask::Range(from, to) => &bytes[from..bytes.len().min(to + 1)],
                    _ => &bytes[..],
                };
                assert!(
                    response.body == expected,
                    "{} bytes of {:?} are not those of {:?}: {asked:?}",
                    response.body.len(),
                    KEYS[key],
                    response.header("ETag")
                );
                match asked {
                    Ask::UnlessEtag(etag) => assert_ne!(object.etag, Some(etag)),
                    Ask::IfEtag(etag) => assert_eq!(object.etag, Some(etag)),
                    Ask::Whole | Ask::Range(..) => {}
                }
                Op::Saw(object)
            }
            (304, Ask::UnlessEtag(etag)) => {
                let object = self.history().numbered(etag);
                Op::Saw(object)
            }
            // The range lies behind the end of a short object, of which nothing else is told.
            (416, Ask::Range(..)) => Op::Saw(Object::default()),
            _ => match (self.refusal(response), asked) {
                (Refusal::Precondition, Ask::IfEtag(etag)) => Op::SawOther(etag),
                (Refusal::Missing, _) => Op::SawNone,
                (Refusal::Nothing | Refusal::Unknown, _) => return false,
                (Refusal::Precondition, _) => panic!("{asked:?} was answered with {response:?}"),
            },
        };
        self.history().answered(key, op, done.began, done.ended);
        true
    }

    pub(super) async fn head(&mut self, key: usize) {
        let request = Request {
            method: "HEAD",
            path: path(key),
            ..Request::default()
        };
        let done = self.ask(request).await;
        let Outcome::Answered(response) = &done.outcome else {
            return;
        };
        let op = if response.status == 200 {
            let object = self.seen(response);
            let length = self.history().bytes(object).len().to_string();
            assert_eq!(response.header("Content-Length"), Some(length.as_str()));
            Op::Saw(object)
        } else {
            match self.refusal(response) {
                Refusal::Missing => Op::SawNone,
                Refusal::Nothing | Refusal::Unknown => return,
                Refusal::Precondition => panic!("{response:?}"),
            }
        };
        self.history().answered(key, op, done.began, done.ended);
    }

    /// The object that an answer's head describes.
    fn seen(&self, response: &Response) -> Object {
        let etag = response.header("ETag").expect("an object has an ETag");
        let tag = response.header("x-amz-meta-tag");
        let tag = tag.expect("every object of this run has a tag");
        Object {
            tag: Some(tag.parse().expect("a tag is a number")),
            ..self.history().named(etag)
        }
    }

    pub(super) async fn copy(&mut self, to: usize) {
        let from = self.any_key();
        // A copy onto itself has to change something.
        let replace = from == to || self.rng.once_in(2);
        let tag = self.history().new_tag();
        let mut request = Request {
            method: "PUT",
            path: path(to),
            headers: vec![("x-amz-copy-source", format!("{BUCKET}/{}", KEYS[from]))],
            ..Request::default()
        };
        if replace {
            request
                .headers
                .push(("x-amz-metadata-directive", "REPLACE".into()));
            request.headers.push(("x-amz-meta-tag", tag.to_string()));
        }
        // If-Match would make a 404 mean either key.
        let guard = match self.guard(to) {
            Guard::Absent => Guard::Absent,
            _ => Guard::None,
        };
        self.add_guard(&mut request, guard);
        let done = self.ask(request).await;
        let written = Object {
            tag: replace.then_some(tag),
            ..Object::default()
        };
        let Outcome::Answered(response) = &done.outcome else {
            return self.settle(&done, to, guard, Op::Write(guard, written));
        };
        let (began, ended) = (done.began, done.ended);
        if response.status == 404 {
            return self.history().answered(from, Op::SawNone, began, ended);
        }
        let written = if response.status == 200 {
            let etag = element(response.text(), "ETag").expect("a copy is answered with an ETag");
            let named = self.history().named(&etag.replace("&quot;", ""));
            // The source has these bytes; its ETag may be another, of parts.
            let source = Object {
                body: named.body,
                ..Object::default()
            };
            self.history().answered(from, Op::Saw(source), began, ended);
            Object {
                tag: written.tag,
                ..named
            }
        } else {
            written
        };
        self.settle(&done, to, guard, Op::Write(guard, written));
    }
}
