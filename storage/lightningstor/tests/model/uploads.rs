//! Multipart uploads. The answer to a completion may be lost: then it is asked for again, and an
//! upload that is gone by then was completed, once.

use std::rc::Rc;

use super::client::{BUCKET, Client, Refusal, path};
use super::history::KEYS;
use super::http::{Exchange, Outcome, Request, element};
use super::object::{Guard, Object, Op};

/// Smallest part but the last that the run's store takes.
pub const PART_BYTES_MIN: u64 = 1_000;
/// How often a completion is asked for.
const COMPLETIONS_MAX: usize = 4;

impl Client {
    pub(super) async fn upload(&mut self, key: usize) {
        let tag = self.history().new_tag();
        let Some(id) = self.create(key, tag).await else {
            return;
        };
        let mut parts = Vec::new();
        for number in 1..=1 + self.rng.below(3) {
            let Some(part) = self.part(key, &id, number).await else {
                return;
            };
            parts.push(part);
        }
        let small = |part: &Rc<[u8]>| (part.len() as u64) < PART_BYTES_MIN;
        if self.rng.once_in(6) || parts.iter().rev().skip(1).any(small) {
            return self.abort(key, &id).await;
        }
        let guard = match self.guard(key) {
            Guard::Absent => Guard::Absent,
            _ => Guard::None,
        };
        self.complete(key, &id, (&parts, tag), guard).await;
    }

    /// Makes an object of one part without a byte.
    pub async fn upload_nothing(&mut self, key: usize) {
        let tag = self.history().new_tag();
        let id = self.create(key, tag).await.expect("the node is well");
        let parts = [Rc::from([])];
        let put = part_request(key, &id, 1);
        let done = self.ask(put).await;
        self.success(&done).expect("the node is well");
        self.complete(key, &id, (&parts, tag), Guard::None).await;
    }

    async fn create(&mut self, key: usize, tag: u64) -> Option<String> {
        let create = Request {
            method: "POST",
            path: path(key),
            query: "uploads=".into(),
            headers: vec![("x-amz-meta-tag", tag.to_string())],
            ..Request::default()
        };
        let done = self.ask(create).await;
        let created = self.success(&done)?;
        let id = element(&created, "UploadId");
        Some(id.expect("an upload has an id").to_owned())
    }

    /// The text of a success.
    fn success(&self, done: &Exchange) -> Option<String> {
        let Outcome::Answered(response) = &done.outcome else {
            return None;
        };
        if response.status < 300 {
            return Some(response.text().to_owned());
        }
        match self.refusal(response) {
            Refusal::Nothing | Refusal::Unknown => None,
            Refusal::Precondition | Refusal::Missing => panic!("{response:?}"),
        }
    }

    /// Sends a part, or has it copied from an object.
    async fn part(&mut self, key: usize, id: &str, number: u64) -> Option<Rc<[u8]>> {
        let mut request = part_request(key, id, number);
        if !self.rng.once_in(4) {
            request.body = self.body();
            let body = Rc::clone(&request.body);
            let done = self.ask(request).await;
            return self.success(&done).map(|_| body);
        }
        let from = self.any_key();
        let source = format!("{BUCKET}/{}", KEYS[from]);
        request.headers.push(("x-amz-copy-source", source));
        let done = self.ask(request).await;
        if let Outcome::Answered(response) = &done.outcome
            && response.code() == "NoSuchKey"
        {
            self.history()
                .answered(from, Op::SawNone, done.began, done.ended);
            return None;
        }
        let text = self.success(&done)?;
        let etag = element(&text, "ETag").expect("a part has an ETag");
        let named = self.history().named(&etag.replace("&quot;", ""));
        let source = Object {
            body: named.body,
            ..Object::default()
        };
        self.history()
            .answered(from, Op::Saw(source), done.began, done.ended);
        let bytes = self.history().bytes(named);
        Some(bytes)
    }

    async fn abort(&mut self, key: usize, id: &str) {
        let request = Request {
            method: "DELETE",
            path: path(key),
            query: format!("uploadId={id}"),
            ..Request::default()
        };
        let done = self.ask(request).await;
        self.success(&done);
    }

    /// Makes parts an object with a tag.
    async fn complete(
        &mut self,
        key: usize,
        id: &str,
        (parts, tag): (&[Rc<[u8]>], u64),
        guard: Guard,
    ) {
        let mut object = self.history().know(parts, true);
        object.tag = Some(tag);
        let request = self.completion(key, id, parts, guard);
        let change = Op::Write(guard, object);
        // When it may first have happened, and the last life that may still do it.
        let mut tried: Option<(u64, usize)> = None;
        for _ in 0..COMPLETIONS_MAX {
            let done = self.ask(request.clone()).await;
            let began = tried.map_or(done.began, |(first, _)| first);
            let response = match &done.outcome {
                Outcome::NotSent => continue,
                Outcome::Silent => {
                    tried = Some((began, done.life));
                    continue;
                }
                Outcome::Answered(response) => response,
            };
            if response.status == 200 {
                let etag = element(response.text(), "ETag").expect("an object has an ETag");
                let named = self.history().named(&etag.replace("&quot;", ""));
                assert_eq!(named.etag, object.etag);
                return self.history().answered(key, change, began, done.ended);
            }
            match self.refusal(response) {
                // Nobody else ends this upload: an earlier try did.
                Refusal::Missing => {
                    assert!(tried.is_some(), "an upload is gone that nobody ended");
                    return self.history().answered(key, change, began, done.ended);
                }
                Refusal::Precondition => {
                    assert_eq!(guard, Guard::Absent);
                    let seen = Op::Saw(Object::default());
                    self.history().answered(key, seen, done.began, done.ended);
                    break;
                }
                Refusal::Nothing => {}
                Refusal::Unknown => tried = Some((began, done.life)),
            }
        }
        if let Some((began, life)) = tried {
            self.history().open(key, change, began, life);
        }
    }

    fn completion(&self, key: usize, id: &str, parts: &[Rc<[u8]>], guard: Guard) -> Request {
        let parts = (1..).zip(parts).map(|(number, part)| {
            let etag = self.history().know(&[Rc::clone(part)], false).etag;
            let etag = self.history().etag_text(etag.expect("a part has an ETag"));
            format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>")
        });
        let parts = parts.collect::<Vec<_>>().concat();
        let body = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
        let mut request = Request {
            method: "POST",
            path: path(key),
            query: format!("uploadId={id}"),
            body: body.into_bytes().into(),
            ..Request::default()
        };
        self.add_guard(&mut request, guard);
        request
    }
}

fn part_request(key: usize, id: &str, number: u64) -> Request {
    Request {
        method: "PUT",
        path: path(key),
        query: format!("partNumber={number}&uploadId={id}"),
        ..Request::default()
    }
}
