//! Counters of one shard's S3 front, and their Prometheus form. Shards count alone; the reader adds
//! up.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;

use engine::Nanos;
use hdrhistogram::Histogram;
use s3_wire::{S3Error, S3Op};

/// Longest latency that is told apart, in microseconds; longer ones count as this.
const LATENCY_US_MAX: u64 = 600_000_000;

/// Declares the kinds of requests that are counted apart.
macro_rules! kinds {
    ($($variant:ident $text:literal)*) => {
        /// What a request was, for metrics.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum OpKind { $(#[doc = $text] $variant,)* }

        impl OpKind {
            /// All kinds, in the order of their numbers.
            pub const ALL: &'static [OpKind] = &[$(OpKind::$variant,)*];

            /// Its name in metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(OpKind::$variant => $text,)* }
            }
        }
    };
}

kinds! {
    Refused "refused"
    Bucket "bucket"
    Get "get"
    Head "head"
    Put "put"
    Copy "copy"
    Delete "delete"
    List "list"
    Multipart "multipart"
    Other "other"
}

impl OpKind {
    pub(crate) fn of(op: &S3Op) -> OpKind {
        match op {
            S3Op::CreateBucket(_)
            | S3Op::HeadBucket(_)
            | S3Op::DeleteBucket(_)
            | S3Op::GetBucketLocation(_)
            | S3Op::GetBucketVersioning(_) => OpKind::Bucket,
            S3Op::GetObject(..) => OpKind::Get,
            S3Op::HeadObject(..) | S3Op::GetObjectAttributes(..) => OpKind::Head,
            S3Op::PutObject(_) | S3Op::UploadPart(..) => OpKind::Put,
            S3Op::CopyObject(..) | S3Op::UploadPartCopy(..) => OpKind::Copy,
            S3Op::DeleteObject(_) | S3Op::DeleteObjects(_) => OpKind::Delete,
            S3Op::ListBuckets
            | S3Op::ListObjectsV1(..)
            | S3Op::ListObjectsV2(..)
            | S3Op::ListParts(..)
            | S3Op::ListMultipartUploads(..) => OpKind::List,
            S3Op::CreateMultipartUpload(_)
            | S3Op::CompleteMultipartUpload(..)
            | S3Op::AbortMultipartUpload(..) => OpKind::Multipart,
            S3Op::NotImplemented(_) => OpKind::Other,
        }
    }
}

/// Counters of one kind of request.
#[derive(Clone, Debug)]
pub struct OpStats {
    /// Answered well.
    pub served: u64,
    /// Answered with an error of the client's (below 500).
    pub refused: u64,
    /// Answered with an error of ours.
    pub failed: u64,
    /// From the end of the head to the end of the answer, in microseconds.
    pub latency_us: Histogram<u64>,
}

impl OpStats {
    fn new() -> OpStats {
        let latency_us = Histogram::new_with_bounds(1, LATENCY_US_MAX, 2)
            .expect("the bounds are in order and two digits are allowed");
        OpStats {
            served: 0,
            refused: 0,
            failed: 0,
            latency_us,
        }
    }
}

/// A copy of one shard's counters.
#[derive(Clone, Debug)]
pub struct HttpMetrics {
    /// By kind, in the order of [`OpKind::ALL`].
    pub ops: Vec<OpStats>,
    /// Open connections.
    pub connections: usize,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections turned away because the shard had its most.
    pub turned_away: u64,
    /// Bytes of bodies received.
    pub received_bytes: u64,
    /// Bytes of bodies sent.
    pub sent_bytes: u64,
    /// Bytes of the buffer budget in use.
    pub buffer_bytes: u64,
}

/// The counters while they run.
pub(crate) struct Counters {
    ops: RefCell<Vec<OpStats>>,
    pub(crate) connections: Cell<usize>,
    pub(crate) accepted: Cell<u64>,
    pub(crate) turned_away: Cell<u64>,
    received_bytes: Cell<u64>,
    sent_bytes: Cell<u64>,
}

/// When a request began.
pub(crate) struct Timer(Nanos);

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            ops: RefCell::new(OpKind::ALL.iter().map(|_| OpStats::new()).collect()),
            connections: Cell::new(0),
            accepted: Cell::new(0),
            turned_away: Cell::new(0),
            received_bytes: Cell::new(0),
            sent_bytes: Cell::new(0),
        }
    }
}

impl Timer {
    /// Begins now.
    pub(crate) fn start() -> Timer {
        Timer(engine::now())
    }
}

impl Counters {
    pub(crate) fn end(&self, timer: &Timer, kind: OpKind, error: Option<&S3Error>) {
        let micros = engine::now().since(timer.0).as_micros();
        let micros = u64::try_from(micros).unwrap_or(LATENCY_US_MAX);
        let mut ops = self.ops.borrow_mut();
        let stats = &mut ops[kind as usize];
        match error.map(S3Error::status) {
            None => stats.served += 1,
            Some(status) if status < 500 => stats.refused += 1,
            Some(_) => stats.failed += 1,
        }
        stats.latency_us.saturating_record(micros);
    }

    /// A request whose head could not be read.
    pub(crate) fn refused(&self, error: &S3Error) {
        self.end(&Timer::start(), OpKind::Refused, Some(error));
    }

    pub(crate) fn sent(&self, bytes: u64) {
        self.sent_bytes.set(self.sent_bytes.get() + bytes);
    }

    pub(crate) fn received(&self, bytes: u64) {
        self.received_bytes.set(self.received_bytes.get() + bytes);
    }

    pub(crate) fn copy(&self, buffer_bytes: u64) -> HttpMetrics {
        HttpMetrics {
            ops: self.ops.borrow().clone(),
            connections: self.connections.get(),
            accepted: self.accepted.get(),
            turned_away: self.turned_away.get(),
            received_bytes: self.received_bytes.get(),
            sent_bytes: self.sent_bytes.get(),
            buffer_bytes,
        }
    }
}

type Value = fn(&HttpMetrics) -> u64;

const FAMILIES: [(&str, &str, &str, Value); 6] = [
    (
        "uc_lightningstor_connections_count",
        "gauge",
        "Open connections.",
        |m| m.connections as u64,
    ),
    (
        "uc_lightningstor_connections_total",
        "counter",
        "Connections accepted.",
        |m| m.accepted,
    ),
    (
        "uc_lightningstor_connections_turned_away_total",
        "counter",
        "Connections turned away because the shard had its most.",
        |m| m.turned_away,
    ),
    (
        "uc_lightningstor_received_bytes_total",
        "counter",
        "Bytes of bodies received.",
        |m| m.received_bytes,
    ),
    (
        "uc_lightningstor_sent_bytes_total",
        "counter",
        "Bytes of bodies sent.",
        |m| m.sent_bytes,
    ),
    (
        "uc_lightningstor_buffer_used_bytes",
        "gauge",
        "Bytes of buffers that requests hold.",
        |m| m.buffer_bytes,
    ),
];

/// Prometheus text of all shards' S3 fronts; `shards` are (shard, counters).
pub(crate) fn prometheus(text: &mut String, shards: &[(u16, HttpMetrics)]) {
    for (name, kind, help, value) in FAMILIES {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (shard, metrics) in shards {
            let _ = writeln!(text, "{name}{{shard=\"{shard}\"}} {}", value(metrics));
        }
    }
    let name = "uc_lightningstor_requests_total";
    let _ = writeln!(
        text,
        "# HELP {name} Requests answered.\n# TYPE {name} counter"
    );
    for_each_op(shards, |shard, op, stats| {
        let outcomes = [
            ("served", stats.served),
            ("refused", stats.refused),
            ("failed", stats.failed),
        ];
        for (outcome, count) in outcomes {
            let labels = format!("shard=\"{shard}\",op=\"{op}\",outcome=\"{outcome}\"");
            let _ = writeln!(text, "{name}{{{labels}}} {count}");
        }
    });
    let name = "uc_lightningstor_request_latency_us";
    let help = "From the end of the head to the end of the answer.";
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} summary");
    for_each_op(shards, |shard, op, stats| {
        for quantile in [0.5, 0.99, 0.999] {
            let value = stats.latency_us.value_at_quantile(quantile);
            let labels = format!("shard=\"{shard}\",op=\"{op}\",quantile=\"{quantile}\"");
            let _ = writeln!(text, "{name}{{{labels}}} {value}");
        }
        let count = stats.latency_us.len();
        let _ = writeln!(
            text,
            "{name}_count{{shard=\"{shard}\",op=\"{op}\"}} {count}"
        );
    });
}

fn for_each_op(shards: &[(u16, HttpMetrics)], mut each: impl FnMut(u16, &str, &OpStats)) {
    for (shard, metrics) in shards {
        for (kind, stats) in OpKind::ALL.iter().zip(&metrics.ops) {
            each(*shard, kind.as_str(), stats);
        }
    }
}
