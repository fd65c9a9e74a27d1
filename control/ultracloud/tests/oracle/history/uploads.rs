//! Multipart uploads: their parts, and lists of parts that are right, reordered, wrong or no XML.

use super::{History, NO_TAG, objects};
use crate::plan::{Op, Plan};
use crate::support::noise;

/// Smallest part that is not the last one.
const PART: usize = 5 << 20;

pub fn create(history: &mut History) -> Plan {
    let (bucket, key) = history.place();
    let plan = Plan::new(Op::CreateUpload, "POST", &bucket, &key).with("uploads", "");
    objects::with_metadata(&mut history.dice, plan)
}

/// An upload of the history: mostly one that is not over.
fn an_upload(history: &mut History) -> Option<usize> {
    let live: Vec<usize> = (0..history.uploads.len())
        .filter(|at| history.uploads[*at].live)
        .collect();
    if live.is_empty() || history.dice.one_in(15) {
        let count = history.uploads.len();
        return (count > 0).then(|| history.dice.below(count));
    }
    Some(live[history.dice.below(live.len())])
}

fn on_upload(history: &mut History, op: Op, method: &'static str) -> Option<(Plan, usize)> {
    let slot = an_upload(history)?;
    let upload = &history.uploads[slot];
    let bucket = &history.buckets[upload.bucket].name;
    let plan = Plan::new(op, method, bucket, &upload.key);
    Some((plan, slot))
}

pub fn part(history: &mut History) -> Plan {
    let op = if history.dice.one_in(3) {
        Op::PartCopy
    } else {
        Op::Part
    };
    let Some((plan, slot)) = on_upload(history, op, "PUT") else {
        return create(history);
    };
    let number = match history.dice.below(30) {
        0 => 10_001,
        1 => 0,
        at => 1 + at % 4,
    };
    let mut plan = plan.with("partNumber", number.to_string()).upload(slot);
    if op == Op::Part {
        let seed = history.dice.below(1000) as u64;
        let size = if history.dice.one_in(12) {
            PART
        } else {
            history.dice.below(3000)
        };
        return plan.body(noise(seed, size));
    }
    let stored = objects::with_source(history, &mut plan);
    let size = stored.map_or(0, |stored| stored.size);
    match history.dice.below(6) {
        0 | 1 if size > 0 => {
            let first = history.dice.below(size);
            let last = first + history.dice.below(size - first);
            plan.header("x-amz-copy-source-range", format!("bytes={first}-{last}"))
        }
        2 => plan.header("x-amz-copy-source-range", format!("bytes=0-{}", size + 9)),
        3 if history.dice.one_in(3) => plan.header("x-amz-copy-source-range", "bytes=1-"),
        _ => plan,
    }
}

pub fn complete(history: &mut History) -> Plan {
    let Some((plan, slot)) = on_upload(history, Op::Complete, "POST") else {
        return create(history);
    };
    let parts = &history.uploads[slot].parts;
    let mut list: Vec<(u16, String)> = parts
        .iter()
        .map(|(number, part)| (*number, part.etag.clone()))
        .collect();
    match history.dice.below(10) {
        0 => list.reverse(),
        1 => list.push((9, NO_TAG.into())),
        2 if !list.is_empty() => list[0].1 = NO_TAG.into(),
        3 => list.clear(),
        // One part can be of any size, which most parts here are too small for in company.
        4..=7 => list.truncate(1),
        _ => {}
    }
    let parts: Vec<String> = list
        .iter()
        .map(|(n, tag)| format!("<Part><PartNumber>{n}</PartNumber><ETag>{tag}</ETag></Part>"))
        .collect();
    let parts = parts.concat();
    let body = if history.dice.one_in(20) {
        "<CompleteMultipartUpload><Part>".to_owned()
    } else {
        format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>")
    };
    let mut plan = plan.upload(slot).body(body);
    if history.dice.one_in(6) {
        plan = plan.header("if-none-match", "*");
    }
    plan
}

pub fn abort(history: &mut History) -> Plan {
    match on_upload(history, Op::Abort, "DELETE") {
        Some((plan, slot)) => plan.upload(slot),
        None => create(history),
    }
}

pub fn list_parts(history: &mut History) -> Plan {
    match on_upload(history, Op::ListParts, "GET") {
        Some((plan, slot)) => plan.upload(slot),
        None => create(history),
    }
}
