//! A client that does what comes to its mind: requests at random, each recorded with its answer.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use engine::Rng;

use super::history::{History, KEYS};
use super::http::{Connection, Exchange, Outcome, Request, Response, element};
use super::object::{Guard, Object, Op};

pub const BUCKET: &str = "/model";
/// How long a client waits for an answer, unless it is in a hurry.
const PATIENCE: Duration = Duration::from_millis(60);
/// One request in so many is given up soon.
const HURRY_ONE_IN: u64 = 24;
/// How often a client asks for what it has to be told.
pub const TRIES_MAX: u32 = 100;
/// Wait before the next try of a client that finds no server.
const RETRY: Duration = Duration::from_micros(700);

/// What all clients of a run share.
#[derive(Clone)]
pub struct Shared {
    pub server: SocketAddr,
    pub history: Rc<RefCell<History>>,
    /// Whether clients go on.
    pub running: Rc<Cell<bool>>,
    /// Whether the disk was broken on purpose, so that errors of the server are no surprise.
    pub broken: Rc<Cell<bool>>,
}

pub struct Client {
    pub(super) shared: Shared,
    connection: Connection,
    pub(super) rng: Rng,
    number: u64,
    made: u64,
}

/// An answer other than success.
pub enum Refusal {
    /// The condition of the request did not hold.
    Precondition,
    /// There is no such key, or no such upload.
    Missing,
    /// The server had no room; nothing happened.
    Nothing,
    /// The server failed; something may have happened.
    Unknown,
}

impl Client {
    pub fn new(shared: Shared, rng: Rng, number: u64) -> Client {
        let connection = Connection::new(shared.server, Rc::clone(&shared.history));
        Client {
            shared,
            connection,
            rng,
            number,
            made: 0,
        }
    }

    /// Goes on until it is told to stop.
    pub async fn run(mut self) {
        while self.shared.running.get() {
            let key = self.any_key();
            match self.rng.below(100) {
                0..21 => self.put(key).await,
                21..46 => self.get(key).await,
                46..50 => self.head(key).await,
                50..62 => self.delete(key).await,
                62..66 => self.delete_many().await,
                66..77 => self.copy(key).await,
                77..86 => self.upload(key).await,
                _ => self.list().await,
            }
        }
    }

    pub(super) fn any_key(&mut self) -> usize {
        self.rng.below(KEYS.len() as u64) as usize
    }

    /// Asks with the patience of the moment; client 0 is always patient.
    pub(super) async fn ask(&mut self, request: Request) -> Exchange {
        let hurry = self.number != 0 && self.rng.once_in(HURRY_ONE_IN);
        let patience = if hurry {
            Duration::from_micros(self.rng.below(4_000))
        } else {
            PATIENCE
        };
        let done = self.connection.ask(&request, patience).await;
        if matches!(done.outcome, Outcome::NotSent) {
            engine::sleep(RETRY).await;
        }
        done
    }

    /// Makes the run's bucket.
    pub async fn create_bucket(&mut self) {
        let request = Request {
            method: "PUT",
            path: BUCKET.into(),
            ..Request::default()
        };
        for _ in 0..TRIES_MAX {
            let done = self.ask(request.clone()).await;
            // 409 tells that an earlier try has made it.
            if matches!(done.outcome, Outcome::Answered(r) if matches!(r.status, 200 | 409)) {
                return;
            }
        }
        panic!("the bucket cannot be made");
    }

    pub(super) fn history(&self) -> std::cell::RefMut<'_, History> {
        self.shared.history.borrow_mut()
    }

    /// What an answer that is no success means.
    pub(super) fn refusal(&self, response: &Response) -> Refusal {
        match (response.status, response.code()) {
            (412, _) => Refusal::Precondition,
            (404, "NoSuchKey" | "NoSuchUpload" | "") => Refusal::Missing,
            (503, "SlowDown") => Refusal::Nothing,
            (500 | 503, _) if self.shared.broken.get() => Refusal::Unknown,
            _ => panic!("an answer out of place: {response:?} {}", response.code()),
        }
    }

    /// A body: short, long inside its record, or in extents. Some have been there before.
    pub(super) fn body(&mut self) -> Rc<[u8]> {
        let repeated = self.rng.once_in(8);
        self.made += u64::from(!repeated);
        let number = self.number << 32 | self.made;
        let len = match Rng::new(number).below(16) {
            0 => 0,
            1..10 => Rng::new(number).below(3_000),
            10..14 => 4_096 + Rng::new(number).below(61_000),
            _ => 65_537 + Rng::new(number).below(90_000),
        };
        noise(number, len as usize)
    }

    fn put_request(&mut self, key: usize) -> (Request, Object) {
        let body = self.body();
        let mut object = self.history().know(&[Rc::clone(&body)], false);
        let tag = self.history().new_tag();
        object.tag = Some(tag);
        let request = Request {
            method: "PUT",
            path: path(key),
            headers: vec![("x-amz-meta-tag", tag.to_string())],
            body,
            ..Request::default()
        };
        (request, object)
    }

    /// A condition on what the key should hold, more often none.
    pub(super) fn guard(&mut self, key: usize) -> Guard {
        match self.rng.below(10) {
            0 | 1 => Guard::Absent,
            2 => Guard::Present,
            3..6 => {
                let history = self.shared.history.borrow();
                let known = history.latest(key).filter(|_| !self.rng.once_in(4));
                let any = (history.etags() > 0)
                    .then(|| self.rng.below(u64::from(history.etags().max(1))) as u32);
                known.or(any).map_or(Guard::None, Guard::Etag)
            }
            _ => Guard::None,
        }
    }

    pub(super) fn add_guard(&self, request: &mut Request, guard: Guard) {
        match guard {
            Guard::None => {}
            Guard::Absent => request.headers.push(("if-none-match", "*".into())),
            Guard::Present => request.headers.push(("if-match", "*".into())),
            Guard::Etag(etag) => {
                let text = self.history().etag_text(etag);
                request.headers.push(("if-match", text));
            }
        }
    }

    async fn put(&mut self, key: usize) {
        let (mut request, object) = self.put_request(key);
        let guard = self.guard(key);
        self.add_guard(&mut request, guard);
        let done = self.ask(request).await;
        if let Outcome::Answered(response) = &done.outcome
            && response.status == 200
        {
            let etag = response
                .header("ETag")
                .expect("a PUT is answered with an ETag");
            assert_eq!(self.history().named(etag).etag, object.etag);
        }
        self.settle(&done, key, guard, Op::Write(guard, object));
    }

    async fn delete(&mut self, key: usize) {
        let guard = match self.guard(key) {
            Guard::Absent => Guard::None,
            guard => guard,
        };
        let mut request = Request {
            method: "DELETE",
            path: path(key),
            ..Request::default()
        };
        self.add_guard(&mut request, guard);
        let done = self.ask(request).await;
        self.settle(&done, key, guard, Op::Remove(guard));
    }

    /// Records a change of one key.
    pub(super) fn settle(&mut self, done: &Exchange, key: usize, guard: Guard, change: Op) {
        let (began, ended) = (done.began, done.ended);
        let response = match &done.outcome {
            Outcome::NotSent => return,
            Outcome::Silent => return self.history().open(key, change, began, done.life),
            Outcome::Answered(response) => response,
        };
        if response.status < 300 {
            return self.history().answered(key, change, began, ended);
        }
        match (self.refusal(response), guard) {
            (Refusal::Nothing, _) => {}
            (Refusal::Unknown, _) => self.history().failed(key, change, done),
            (Refusal::Precondition, Guard::Absent) => {
                let seen = Op::Saw(Object::default());
                self.history().answered(key, seen, began, ended);
            }
            (Refusal::Precondition, Guard::Etag(etag)) => {
                self.history()
                    .answered(key, Op::SawOther(etag), began, ended);
            }
            (Refusal::Missing, Guard::Present | Guard::Etag(_)) => {
                self.history().answered(key, Op::SawNone, began, ended);
            }
            (Refusal::Precondition | Refusal::Missing, guard) => {
                panic!("{guard:?} was answered with {response:?}")
            }
        }
    }

    async fn delete_many(&mut self) {
        let first = self.any_key();
        let keys: Vec<usize> = (first..KEYS.len()).step_by(2).take(3).collect();
        let objects = keys.iter();
        let objects = objects.map(|key| format!("<Object><Key>{}</Key></Object>", KEYS[*key]));
        let body = format!("<Delete>{}</Delete>", objects.collect::<Vec<_>>().concat());
        let request = Request {
            method: "POST",
            path: BUCKET.into(),
            query: "delete=".into(),
            body: body.into_bytes().into(),
            ..Request::default()
        };
        let done = self.ask(request).await;
        let failed = match &done.outcome {
            Outcome::Answered(response) if response.status == 200 => {
                response.text().contains("<Error>")
            }
            _ => false,
        };
        if failed {
            let Outcome::Answered(response) = &done.outcome else {
                return;
            };
            let busy = element(response.text(), "Code") == Some("SlowDown");
            assert!(busy || self.shared.broken.get(), "{}", response.text());
            for key in keys {
                let op = Op::Remove(Guard::None);
                self.history().open(key, op, done.began, done.life);
            }
            return;
        }
        for key in keys {
            self.settle(&done, key, Guard::None, Op::Remove(Guard::None));
        }
    }
}

pub fn path(key: usize) -> String {
    format!("{BUCKET}/{}", KEYS[key])
}

/// Bytes that no other number gives.
pub fn noise(number: u64, len: usize) -> Rc<[u8]> {
    let mut rng = Rng::new(number);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&rng.next_u64().to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}
