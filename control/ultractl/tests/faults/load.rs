//! Clients that work while faults happen, and what each of them saw.
//!
//! Half of the clients write and read, and move to the next member when one does not answer in time. The
//! others stay at one member each and read there, whatever happens to it: a member that is cut off must
//! not answer them with what is old. Every value is written once, so that a value names its write.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use control_kit::client::{Options, channel};
use etcd_wire::RpcError;
use etcd_wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use etcd_wire::etcdserverpb::kv_client::KvClient;
use etcd_wire::etcdserverpb::request_op::Request;
use etcd_wire::etcdserverpb::{Compare, PutRequest, RangeRequest, RequestOp, TxnRequest};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::Channel;

use crate::support::DEADLINE;

/// Registers that clients write and read.
pub const KEYS: u8 = 3;
/// The registers, as keys of one range.
pub const FIRST_KEY: &str = "register/0";
pub const END_KEY: &str = "register0";
const WRITERS: u32 = 3;
/// How often a client begins something.
const PACE: Duration = Duration::from_millis(20);
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// A value, and the revision of its write.
pub type Version = (u64, i64);

/// What a client asked for, and what it was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Seen {
    /// A read, and what was there.
    Read(Option<Version>),
    /// A write, and its revision; none when no answer came.
    Put { to: u64, at: Option<i64> },
    /// A write where another value is there, and its revision; none when no answer came.
    Swap { from: u64, to: u64, at: Option<i64> },
    /// The same, where it was answered that another value is there.
    Kept { from: u64 },
}

/// Something that a client saw. Times count in nanoseconds from the load's beginning.
#[derive(Clone, Debug)]
pub struct Record {
    pub client: u32,
    pub key: u8,
    pub call: i64,
    /// The end of time for what was not answered.
    pub returned: i64,
    pub seen: Seen,
}

/// What all clients saw.
#[derive(Debug, Default)]
pub struct History {
    pub records: Vec<Record>,
    /// Values whose writes were answered with that nothing was written.
    pub refused: Vec<u64>,
}

impl Record {
    fn is_acknowledged_write(&self) -> bool {
        let at = match self.seen {
            Seen::Put { at, .. } | Seen::Swap { at, .. } => at,
            Seen::Read(_) | Seen::Kept { .. } => None,
        };
        at.is_some()
    }
}

#[derive(Debug, Default)]
struct Shared {
    history: Mutex<(History, bool)>,
    more: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, (History, bool)> {
        self.history.lock().unwrap()
    }

    fn push(&self, record: Record) {
        self.lock().0.records.push(record);
        self.more.notify_all();
    }

    fn ended(&self) -> bool {
        self.lock().1
    }
}

/// The clients at work.
pub struct Load {
    runtime: Runtime,
    shared: Arc<Shared>,
    began: Instant,
    urls: Vec<String>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts clients that work at these members.
    pub fn start(urls: Vec<String>) -> Load {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let mut load = Load {
            runtime,
            shared: Arc::default(),
            began: Instant::now(),
            urls,
            clients: Vec::new(),
        };
        for id in 0..WRITERS {
            let client = load.client(id, &load.urls);
            load.clients.push(load.runtime.spawn(client.write()));
        }
        for (id, url) in (WRITERS..).zip(load.urls.clone()) {
            let client = load.client(id, &[url]);
            load.clients.push(load.runtime.spawn(client.read()));
        }
        load
    }

    fn client(&self, id: u32, urls: &[String]) -> Client {
        let _inside = self.runtime.enter();
        Client {
            id,
            members: urls.iter().map(|url| member(url)).collect(),
            at: id as usize % urls.len(),
            random: u64::from(id) + 1,
            written: 0,
            known: [0; KEYS as usize],
            shared: Arc::clone(&self.shared),
            began: self.began,
            patience: PATIENCE,
        }
    }

    /// Waits until so many more writes are acknowledged.
    pub fn progress(&self, writes: usize) {
        let begun = self.now();
        self.until(|record| record.returned > begun, writes);
    }

    /// Waits for an acknowledged write that began after `instant`; how long after it the answer came.
    pub fn served_since(&self, instant: Instant) -> Duration {
        let since = nanos(instant - self.began);
        let record = self.until(|record| record.call > since, 1);
        Duration::from_nanos((record.returned - since) as u64)
    }

    fn until(&self, counts: impl Fn(&Record) -> bool, wanted: usize) -> Record {
        let end = Instant::now() + DEADLINE;
        let mut history = self.shared.lock();
        loop {
            let writes = history.0.records.iter();
            let mut writes =
                writes.filter(|record| record.is_acknowledged_write() && counts(record));
            if let Some(last) = writes.nth(wanted - 1) {
                return last.clone();
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "never: {wanted} acknowledged writes");
            history = self.shared.more.wait_timeout(history, left).unwrap().0;
        }
    }

    /// Asks a member for every register, patiently; what it answers is seen when all is joined.
    pub fn ask(&self, place: usize) -> Vec<JoinHandle<()>> {
        let one = |key| {
            let id = WRITERS + MEMBERS_MAX + u32::from(key);
            let mut client = self.client(id, std::slice::from_ref(&self.urls[place]));
            client.patience = DEADLINE;
            self.runtime.spawn(async move { client.get(key).await })
        };
        (0..KEYS).map(one).collect()
    }

    /// Waits for what was asked.
    pub fn join(&self, asked: Vec<JoinHandle<()>>) {
        for one in asked {
            self.runtime.block_on(one).unwrap();
        }
    }

    /// Puts a value of a mebibyte at a member, beside the registers; it may fail.
    pub fn put_large(&self, place: usize) {
        let _inside = self.runtime.enter();
        let mut member = member(&self.urls[place]);
        let request = PutRequest {
            key: "large".into(),
            value: vec![b'x'; 1 << 20].into(),
            ..PutRequest::default()
        };
        let put = async { tokio::time::timeout(PATIENCE, member.put(request)).await };
        // The story is about the disk, not about who answers.
        drop(self.runtime.block_on(put));
    }

    /// Lets the clients end what they are at; what all of them saw.
    pub fn end(mut self) -> History {
        self.shared.lock().1 = true;
        for client in std::mem::take(&mut self.clients) {
            self.runtime.block_on(client).unwrap();
        }
        // What every member answers in the end is part of it.
        for place in 0..self.urls.len() {
            let asked = self.ask(place);
            self.join(asked);
        }
        std::mem::take(&mut self.shared.lock().0)
    }

    fn now(&self) -> i64 {
        nanos(self.began.elapsed())
    }
}

/// The ids of those who read at one member are below writers and this.
const MEMBERS_MAX: u32 = 16;

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap()
}

fn member(url: &str) -> KvClient<Channel> {
    let options = Options {
        connect_timeout: PATIENCE,
        ..Options::default()
    };
    KvClient::new(channel(url, None, options).unwrap())
}

/// One client.
struct Client {
    id: u32,
    members: Vec<KvClient<Channel>>,
    at: usize,
    random: u64,
    written: u64,
    /// The values that it knows to have been in the registers.
    known: [u64; KEYS as usize],
    shared: Arc<Shared>,
    began: Instant,
    patience: Duration,
}

impl Client {
    async fn write(mut self) {
        let mut pace = tokio::time::interval(PACE);
        while !self.shared.ended() {
            pace.tick().await;
            let key = self.below(u64::from(KEYS)) as u8;
            match self.below(4) {
                0 => self.get(key).await,
                1 => self.swap(key).await,
                _ => self.put(key).await,
            }
        }
    }

    async fn read(mut self) {
        let mut pace = tokio::time::interval(PACE);
        while !self.shared.ended() {
            pace.tick().await;
            let key = self.below(u64::from(KEYS)) as u8;
            self.get(key).await;
        }
    }

    async fn get(&mut self, key: u8) {
        let request = RangeRequest {
            key: name(key),
            ..RangeRequest::default()
        };
        let call = self.now();
        let mut member = self.members[self.at].clone();
        let answer = tokio::time::timeout(self.patience, member.range(request)).await;
        let Ok(Ok(answer)) = answer else {
            return self.move_on();
        };
        let kv = answer.into_inner().kvs.pop();
        let version = kv.map(|kv| (number(&kv.value), kv.mod_revision));
        self.known[usize::from(key)] = version.map_or(0, |(value, _)| value);
        self.saw(key, call, Seen::Read(version));
    }

    async fn put(&mut self, key: u8) {
        let to = self.new_value();
        let request = put(key, to);
        let call = self.now();
        let mut member = self.members[self.at].clone();
        let answer = tokio::time::timeout(self.patience, member.put(request)).await;
        match answer {
            Ok(Ok(answer)) => {
                let at = answer.into_inner().header.map(|header| header.revision);
                self.saw(key, call, Seen::Put { to, at });
            }
            failed => self.unanswered(key, call, Seen::Put { to, at: None }, to, failed),
        }
    }

    async fn swap(&mut self, key: u8) {
        let (from, to) = (self.known[usize::from(key)], self.new_value());
        let request = TxnRequest {
            compare: vec![Compare {
                result: CompareResult::Equal.into(),
                target: CompareTarget::Value.into(),
                key: name(key),
                target_union: Some(TargetUnion::Value(from.to_string().into())),
                ..Compare::default()
            }],
            success: vec![RequestOp {
                request: Some(Request::RequestPut(put(key, to))),
            }],
            failure: Vec::new(),
        };
        let call = self.now();
        let mut member = self.members[self.at].clone();
        let answer = tokio::time::timeout(self.patience, member.txn(request)).await;
        match answer {
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                if answer.succeeded {
                    let at = answer.header.map(|header| header.revision);
                    self.saw(key, call, Seen::Swap { from, to, at });
                } else {
                    self.saw(key, call, Seen::Kept { from });
                    self.shared.lock().0.refused.push(to);
                }
            }
            failed => {
                let at = None;
                self.unanswered(key, call, Seen::Swap { from, to, at }, to, failed);
            }
        }
    }

    fn saw(&self, key: u8, call: i64, seen: Seen) {
        let returned = self.now();
        self.record(key, call, returned, seen);
    }

    fn record(&self, key: u8, call: i64, returned: i64, seen: Seen) {
        let client = self.id;
        self.shared.push(Record {
            client,
            key,
            call,
            returned,
            seen,
        });
    }

    /// No answer, or an error: the write may have happened, unless that is ruled out.
    fn unanswered<A>(
        &mut self,
        key: u8,
        call: i64,
        seen: Seen,
        to: u64,
        failed: Result<Result<A, Status>, tokio::time::error::Elapsed>,
    ) {
        match failed {
            Ok(Err(status)) if wrote_nothing(&status) => self.shared.lock().0.refused.push(to),
            _ => self.record(key, call, i64::MAX, seen),
        }
        self.move_on();
    }

    fn move_on(&mut self) {
        self.at = (self.at + 1) % self.members.len();
    }

    fn new_value(&mut self) -> u64 {
        self.written += 1;
        self.written << 8 | u64::from(self.id)
    }

    /// The next number of xorshift, below a bound.
    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % bound
    }

    fn now(&self) -> i64 {
        nanos(self.began.elapsed())
    }
}

/// The request never left, or whoever got it says so.
fn wrote_nothing(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    status.message() == RpcError::NoLeader.text()
}

fn put(key: u8, to: u64) -> PutRequest {
    PutRequest {
        key: name(key),
        value: to.to_string().into(),
        ..PutRequest::default()
    }
}

fn name(key: u8) -> bytes::Bytes {
    format!("register/{key}").into()
}

/// The register that a key names.
pub fn register(key: &[u8]) -> u8 {
    let text = std::str::from_utf8(key).unwrap();
    text.strip_prefix("register/").unwrap().parse().unwrap()
}

/// The value in a register.
pub fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}
