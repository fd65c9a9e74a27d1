//! Objects: writes, reads, copies, deletes, and the conditions on them.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use s3_wire::checksum::{Algorithm, Checksummer};
use s3_wire::uri;

use super::{AFTER, BEFORE, Dice, History, NO_TAG, Stored};
use crate::plan::{Op, Plan};
use crate::support::{Payload, noise};

/// Algorithms that the oracle can compute without libraries of its own.
const SUMS: [Algorithm; 3] = [Algorithm::Crc32, Algorithm::Sha1, Algorithm::Sha256];

pub fn put(history: &mut History) -> Plan {
    let (bucket, key) = history.place();
    let known = history.buckets.iter().find(|known| known.name == bucket);
    let stored = known.and_then(|known| known.objects.get(&key).cloned());
    let dice = &mut history.dice;
    let sizes = [0, 1, 10, 100, 1000, 5000, 70_000];
    let count = if dice.one_in(6) { 7 } else { 6 };
    let size = sizes[dice.below(count)];
    let body = noise(dice.below(1000) as u64, size);
    let mut plan = Plan::new(Op::Put, "PUT", &bucket, &key).body(body);
    plan = with_metadata(dice, plan);
    plan = with_digest(dice, plan);
    if dice.one_in(4) {
        plan = with_write_condition(dice, plan, stored.as_ref());
    }
    plan.payload = match dice.below(6) {
        0 => Payload::Sha256,
        1 => Payload::SignedChunks,
        2 => Payload::UnsignedTrailer,
        _ => Payload::Unsigned,
    };
    plan
}

/// Headers that are kept with an object.
pub fn with_metadata(dice: &mut Dice, mut plan: Plan) -> Plan {
    for (name, values) in [
        ("content-type", ["text/plain; charset=utf-8", "image/png"]),
        ("cache-control", ["no-store", "max-age=60, public"]),
        (
            "content-disposition",
            ["inline", "attachment; filename=\"a b\""],
        ),
        ("content-encoding", ["gzip", "identity"]),
        ("content-language", ["de", "en, fr"]),
        ("expires", [AFTER, BEFORE]),
        ("x-amz-meta-color", ["blue", "dark red"]),
        ("x-amz-meta-shape-2", ["round", "a=b; c=d"]),
    ] {
        if dice.one_in(5) {
            plan = plan.header(name, dice.pick(&values));
        }
    }
    if dice.one_in(12) {
        let classes = ["STANDARD", "REDUCED_REDUNDANCY", "STANDARD_IA", "BOGUS"];
        plan = plan.header("x-amz-storage-class", dice.pick(&classes));
    }
    plan
}

/// Sometimes a digest of the body, of which some are wrong.
fn with_digest(dice: &mut Dice, plan: Plan) -> Plan {
    let wrong = dice.one_in(5);
    match dice.below(10) {
        0 | 1 => {
            let algorithm = SUMS[dice.below(SUMS.len())];
            let mut sum = Checksummer::new(algorithm);
            sum.update(&plan.body);
            if wrong {
                sum.update(b"more");
            }
            plan.header("x-amz-sdk-checksum-algorithm", algorithm.as_str())
                .header(algorithm.header(), sum.finish().to_base64())
        }
        2 if wrong => plan.header("content-md5", "not base64 of 16 bytes"),
        2 | 3 => {
            let digest = if wrong { [7; 16] } else { md5(&plan.body) };
            plan.header("content-md5", BASE64_STANDARD.encode(digest))
        }
        _ => plan,
    }
}

fn md5(bytes: &[u8]) -> [u8; 16] {
    use md5::Digest;
    md5::Md5::digest(bytes).into()
}

fn with_write_condition(dice: &mut Dice, plan: Plan, stored: Option<&Stored>) -> Plan {
    let etag = stored.map_or(NO_TAG, |stored| &stored.etag);
    match dice.below(5) {
        0 | 1 => plan.header("if-none-match", "*"),
        2 | 3 => plan.header("if-match", etag),
        _ => plan.header("if-match", NO_TAG),
    }
}

fn with_read_condition(dice: &mut Dice, plan: Plan, front: &str, stored: Option<&Stored>) -> Plan {
    let etag = stored.map_or(NO_TAG, |stored| &stored.etag);
    let (name, value) = match dice.below(9) {
        0 | 1 => ("if-match", etag),
        2 => ("if-match", NO_TAG),
        3 => ("if-none-match", etag),
        4 => ("if-none-match", NO_TAG),
        5 => ("if-modified-since", BEFORE),
        6 => ("if-modified-since", AFTER),
        7 => ("if-unmodified-since", BEFORE),
        _ => ("if-unmodified-since", AFTER),
    };
    // A date that lies in the future is one that servers may ignore: never for If-Modified-Since.
    if (name, value) == ("if-modified-since", AFTER) {
        return plan.header(format!("{front}if-none-match"), etag);
    }
    plan.header(format!("{front}{name}"), value)
}

pub fn get(history: &mut History) -> Plan {
    read(history, Op::Get, "GET")
}

pub fn head(history: &mut History) -> Plan {
    read(history, Op::Head, "HEAD")
}

fn read(history: &mut History, op: Op, method: &'static str) -> Plan {
    let (bucket, key, stored) = history.object();
    let dice = &mut history.dice;
    let mut plan = Plan::new(op, method, &bucket, &key);
    if dice.one_in(3) {
        let size = stored.as_ref().map_or(0, |stored| stored.size);
        plan = plan.header("range", range(dice, size));
    }
    if dice.one_in(4) {
        plan = with_read_condition(dice, plan, "", stored.as_ref());
    }
    if dice.one_in(6) {
        plan = plan.header("x-amz-checksum-mode", "ENABLED");
    }
    for (name, value) in [
        ("response-content-type", "application/x"),
        ("response-cache-control", "max-age=1"),
        (
            "response-content-disposition",
            "attachment; filename=\"x y\"",
        ),
        ("response-content-language", "fr"),
        ("response-content-encoding", "br"),
        ("response-expires", AFTER),
    ] {
        if dice.one_in(25) {
            plan = plan.with(name, value);
        }
    }
    plan
}

/// Forms of a range around the bounds of an object.
fn range(dice: &mut Dice, size: usize) -> String {
    let at = dice.below(size + 2);
    match dice.below(12) {
        0 => "bytes=0-0".into(),
        1 | 2 => format!("bytes={at}-"),
        3 | 4 => format!("bytes={at}-{}", at + dice.below(20)),
        5 => format!("bytes=-{}", dice.below(size + 2)),
        6 => format!("bytes=0-{}", size + 100),
        7 => format!("bytes={size}-"),
        8 => format!("bytes={}-", size.saturating_sub(1)),
        9 => "bytes=5-2".into(),
        10 => "bytes=a-b".into(),
        _ => "lines=1-2".into(),
    }
}

pub fn delete(history: &mut History) -> Plan {
    let (bucket, key, _) = history.object();
    Plan::new(Op::Delete, "DELETE", &bucket, &key)
}

pub fn delete_many(history: &mut History) -> Plan {
    let (bucket, _, _) = history.object();
    let dice = &mut history.dice;
    let objects: Vec<String> = (0..=dice.below(4))
        .map(|_| {
            let key = dice.pick(&super::KEYS);
            let key = key.replace('&', "&amp;").replace('<', "&lt;");
            let key = key.replace('>', "&gt;").replace('"', "&quot;");
            format!("<Object><Key>{key}</Key></Object>")
        })
        .collect();
    let objects = objects.concat();
    let quiet = if dice.one_in(3) {
        "<Quiet>true</Quiet>"
    } else {
        ""
    };
    let body = match dice.below(8) {
        0 => "<Delete></Delete>".to_owned(),
        1 => "<Delete><Object>".to_owned(),
        _ => format!("<Delete>{quiet}{objects}</Delete>"),
    };
    let digest = BASE64_STANDARD.encode(md5(body.as_bytes()));
    Plan::new(Op::DeleteMany, "POST", &bucket, "")
        .with("delete", "")
        .header("content-md5", digest)
        .body(body)
}

pub fn copy(history: &mut History) -> Plan {
    let (bucket, key) = history.place();
    let mut plan = Plan::new(Op::Copy, "PUT", &bucket, &key);
    let stored = with_source(history, &mut plan);
    let dice = &mut history.dice;
    if dice.one_in(3) {
        let directives = ["COPY", "REPLACE", "REPLACE", "BOGUS"];
        let count = if dice.one_in(6) { 4 } else { 3 };
        let directive = directives[dice.below(count)];
        plan = plan.header("x-amz-metadata-directive", directive);
        if directive == "REPLACE" {
            plan = with_metadata(dice, plan);
        }
    }
    if dice.one_in(4) {
        plan = with_read_condition(dice, plan, "x-amz-copy-source-", stored.as_ref());
    }
    plan
}

/// Names the source of a copy: mostly an object that is there.
pub fn with_source(history: &mut History, plan: &mut Plan) -> Option<Stored> {
    let (bucket, key, stored) = history.object();
    let slash = if history.dice.one_in(2) { "/" } else { "" };
    let mut source = Vec::new();
    uri::encode_path(&mut source, &format!("{slash}{bucket}/{key}"));
    let mut source = String::from_utf8(source).unwrap();
    if history.dice.one_in(40) {
        source = "no-slash".into();
    }
    plan.headers.push(("x-amz-copy-source".into(), source));
    stored
}
