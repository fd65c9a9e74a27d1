//! The seeded generator. It knows what it has stored so far, so that most of what it asks makes sense,
//! and asks for what does not exist or is not allowed often enough to compare refusals too.

mod listings;
mod objects;
mod uploads;

use std::collections::BTreeMap;

use crate::plan::{Op, Plan, Value};
use crate::support::Answer;

/// Keys that differ in what encodings, orders and delimiters do to them.
const KEYS: [&str; 26] = [
    "a",
    "a/",
    "a/b",
    "a/b/c",
    "a/b/d",
    "a//b",
    "a-b",
    "a b",
    "a+b",
    "a%2Fb",
    "b",
    "b/1",
    "b/2",
    "b/10",
    "c&<d>\"e'",
    "d?e=f#g",
    "photos/2026/jan.jpg",
    "photos/2026/feb.jpg",
    "photos/index",
    "z*(!)@:,;$",
    "~tilde_-.",
    "ärger/ß",
    "日本/東京",
    "😀",
    "Upper/Case",
    "zz/last",
];
/// A date before and one after everything that happens here.
const BEFORE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
const AFTER: &str = "Thu, 01 Jan 2099 00:00:00 GMT";
const NO_TAG: &str = "\"00000000000000000000000000000000\"";

/// The seeded choices.
pub struct Dice(engine::Rng);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(engine::Rng::new(seed))
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0.below(bound as u64) as usize
    }

    pub fn one_in(&mut self, one_in: u64) -> bool {
        self.0.once_in(one_in)
    }

    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

/// What both servers are known to hold.
#[derive(Clone)]
struct Stored {
    etag: String,
    size: usize,
}

#[derive(Default)]
struct Bucket {
    name: String,
    live: bool,
    objects: BTreeMap<String, Stored>,
}

struct Upload {
    bucket: usize,
    key: String,
    live: bool,
    parts: BTreeMap<u16, Stored>,
}

/// The generator and what it knows.
pub struct History {
    dice: Dice,
    buckets: Vec<Bucket>,
    uploads: Vec<Upload>,
    /// The next page of the listing that was just answered.
    next: Option<Plan>,
}

type Planner = fn(&mut History) -> Plan;

/// How often each planner is asked, of the sum of all.
const WEIGHTS: [(u16, Planner); 13] = [
    (20, objects::put),
    (18, objects::get),
    (8, objects::head),
    (6, objects::delete),
    (4, objects::delete_many),
    (9, objects::copy),
    (20, listings::objects),
    (4, uploads::create),
    (9, uploads::part),
    (4, uploads::complete),
    (2, uploads::abort),
    (8, listings::of_uploads),
    (6, buckets),
];

impl History {
    /// Names hold the seed, so that histories share a server without meeting.
    pub fn new(seed: u64) -> History {
        let buckets = ["first", "second", "third"].map(|name| Bucket {
            name: format!("{name}-{seed}"),
            ..Bucket::default()
        });
        History {
            dice: Dice::new(seed),
            buckets: buckets.into(),
            uploads: Vec::new(),
            next: None,
        }
    }

    /// Whether a bucket belongs to this history.
    pub fn owns(&self, name: &str) -> bool {
        self.buckets.iter().any(|bucket| bucket.name == name)
    }

    /// The next request.
    pub fn plan(&mut self) -> Plan {
        if let Some(bucket) = self.buckets[..2].iter().find(|bucket| !bucket.live) {
            return Plan::new(Op::CreateBucket, "PUT", &bucket.name, "");
        }
        if let Some(next) = self.next.take().filter(|_| !self.dice.one_in(4)) {
            return next;
        }
        if self.dice.one_in(25) {
            return self.bad();
        }
        let total: u16 = WEIGHTS.iter().map(|(weight, _)| weight).sum();
        let mut at = self.dice.below(total.into()) as u16;
        for (weight, plan) in WEIGHTS {
            if at < weight {
                return plan(self);
            }
            at -= weight;
        }
        unreachable!("the dice stay below the sum of all weights")
    }

    /// Learns from our answer; called when both sides agree.
    pub fn learn(&mut self, plan: &Plan, answer: &Answer) {
        if !(200..300).contains(&answer.status) {
            if plan.op == Op::CreateUpload {
                self.add_upload(plan, false);
            }
            return;
        }
        let etag = answer.header("etag").unwrap_or_default().to_owned();
        let size = plan.body.len();
        match plan.op {
            Op::CreateBucket => self.set_live(&plan.bucket, true),
            Op::DeleteBucket => self.set_live(&plan.bucket, false),
            Op::Put => self.store(plan, Stored { etag, size }),
            Op::Copy => {
                let size = self.source_size(plan);
                let etag = unescaped(&answer.one("ETag"));
                self.store(plan, Stored { etag, size });
            }
            Op::Complete => {
                let etag = unescaped(&answer.one("ETag"));
                let upload = &mut self.uploads[plan.slot().unwrap()];
                upload.live = false;
                let size = upload.parts.values().map(|part| part.size).sum();
                self.store(plan, Stored { etag, size });
            }
            Op::Delete => self.forget(&plan.bucket, &plan.key),
            Op::DeleteMany => {
                let gone = answer.all("Deleted");
                for key in gone.iter().filter_map(|deleted| key_in(deleted)) {
                    self.forget(&plan.bucket, &unescaped(key));
                }
            }
            Op::CreateUpload => self.add_upload(plan, true),
            Op::Part | Op::PartCopy => {
                let stored = if plan.op == Op::Part {
                    Stored { etag, size }
                } else {
                    let etag = unescaped(&answer.one("ETag"));
                    let size = self.source_size(plan);
                    Stored { etag, size }
                };
                let number = plan.param("partNumber").unwrap().parse().unwrap();
                let upload = &mut self.uploads[plan.slot().unwrap()];
                upload.parts.insert(number, stored);
            }
            Op::Abort => self.uploads[plan.slot().unwrap()].live = false,
            // Uploads are not paged: the oracle gives them all.
            Op::ListV1 | Op::ListV2 | Op::ListParts => {
                self.next = next_page(plan, answer);
            }
            _ => {}
        }
    }

    /// What makes both sides equal again after they differed: requests whose answers do not matter.
    pub fn heal(&mut self, plan: &Plan) -> Vec<Plan> {
        let mut healing = Vec::new();
        if plan.op == Op::CreateUpload {
            self.add_upload(plan, false);
            let slot = self.uploads.len() - 1;
            healing.push(Plan::new(Op::Abort, "DELETE", &plan.bucket, &plan.key).upload(slot));
        } else if let Some(slot) = plan.slot() {
            let upload = &mut self.uploads[slot];
            upload.live = false;
            let bucket = &self.buckets[upload.bucket].name;
            healing.push(Plan::new(Op::Abort, "DELETE", bucket, &upload.key).upload(slot));
        }
        if !plan.key.is_empty() {
            healing.push(Plan::new(Op::Delete, "DELETE", &plan.bucket, &plan.key));
            self.forget(&plan.bucket, &plan.key);
        } else if plan.op == Op::DeleteMany {
            let objects = self
                .bucket_mut(&plan.bucket)
                .map(|b| std::mem::take(&mut b.objects));
            for key in objects.into_iter().flatten().map(|(key, _)| key) {
                healing.push(Plan::new(Op::Delete, "DELETE", &plan.bucket, &key));
            }
        } else if self.buckets.iter().all(|bucket| bucket.name != plan.bucket) {
            healing.push(Plan::new(Op::DeleteBucket, "DELETE", &plan.bucket, ""));
        }
        healing
    }

    fn bucket_mut(&mut self, name: &str) -> Option<&mut Bucket> {
        self.buckets.iter_mut().find(|bucket| bucket.name == name)
    }

    fn set_live(&mut self, name: &str, live: bool) {
        if let Some(bucket) = self.bucket_mut(name) {
            bucket.live = live;
        }
    }

    fn store(&mut self, plan: &Plan, stored: Stored) {
        if let Some(bucket) = self.bucket_mut(&plan.bucket) {
            bucket.objects.insert(plan.key.clone(), stored);
        }
    }

    fn forget(&mut self, bucket: &str, key: &str) {
        if let Some(bucket) = self.bucket_mut(bucket) {
            bucket.objects.remove(key);
        }
    }

    fn add_upload(&mut self, plan: &Plan, live: bool) {
        let bucket = self.buckets.iter().position(|b| b.name == plan.bucket);
        self.uploads.push(Upload {
            bucket: bucket.unwrap_or(0),
            key: plan.key.clone(),
            live,
            parts: BTreeMap::new(),
        });
    }

    fn source_size(&self, plan: &Plan) -> usize {
        if let Some(range) = plan.value_of("x-amz-copy-source-range") {
            let (first, last) = range["bytes=".len()..].split_once('-').unwrap();
            return last.parse::<usize>().unwrap() + 1 - first.parse::<usize>().unwrap();
        }
        let source = plan.value_of("x-amz-copy-source").unwrap();
        let source = s3_wire::uri::decode_path(source).unwrap();
        let (bucket, key) = source.trim_start_matches('/').split_once('/').unwrap();
        let bucket = self.buckets.iter().find(|known| known.name == bucket);
        bucket
            .and_then(|bucket| bucket.objects.get(key))
            .map_or(0, |stored| stored.size)
    }

    /// A bucket that is there.
    fn a_bucket(&mut self) -> usize {
        let live: Vec<usize> = (0..self.buckets.len())
            .filter(|at| self.buckets[*at].live)
            .collect();
        live[self.dice.below(live.len())]
    }

    /// Bucket and key for a write: mostly of a bucket that is there.
    fn place(&mut self) -> (String, String) {
        let bucket = if self.dice.one_in(40) {
            "no-such-bucket".to_owned()
        } else {
            let at = self.a_bucket();
            self.buckets[at].name.clone()
        };
        (bucket, self.dice.pick(&KEYS).to_owned())
    }

    /// An object to read: mostly one that is there.
    fn object(&mut self) -> (String, String, Option<Stored>) {
        let at = self.a_bucket();
        let bucket = &self.buckets[at];
        if bucket.objects.is_empty() || self.dice.one_in(8) {
            let (bucket, key) = self.place();
            let known = self.buckets.iter().find(|known| known.name == bucket);
            let stored = known.and_then(|known| known.objects.get(&key).cloned());
            return (bucket, key, stored);
        }
        let nth = self.dice.below(bucket.objects.len());
        let (key, stored) = bucket.objects.iter().nth(nth).unwrap();
        (bucket.name.clone(), key.clone(), Some(stored.clone()))
    }

    /// Requests that no client library would send.
    fn bad(&mut self) -> Plan {
        let (bucket, key) = self.place();
        let plan = |method| Plan::new(Op::Bad, method, &bucket, &key);
        let on_bucket = |method| Plan::new(Op::Bad, method, &bucket, "");
        match self.dice.below(9) {
            0 => Plan::new(Op::Bad, "PUT", &bucket, &"k".repeat(1025)),
            1 => plan("PUT").header("x-amz-meta-large", "v".repeat(2100)),
            2 => on_bucket("GET")
                .with("list-type", "2")
                .with("max-keys", "-1"),
            3 => on_bucket("GET")
                .with("list-type", "2")
                .with("max-keys", "many"),
            4 => on_bucket("GET").with("encoding-type", "morse"),
            5 => on_bucket("GET")
                .with("list-type", "2")
                .with("continuation-token", ""),
            6 => plan("PUT")
                .with("partNumber", "1")
                .with("uploadId", "no-such-upload"),
            7 => plan("GET").with("uploadId", "no-such-upload"),
            _ => plan("DELETE").with("uploadId", "no-such-upload"),
        }
    }
}

/// Buckets themselves. The third comes and goes.
fn buckets(history: &mut History) -> Plan {
    let third = history.buckets[2].name.clone();
    let live = history.buckets[history.dice.below(2)].name.clone();
    match history.dice.below(10) {
        0 => Plan::new(Op::ListBuckets, "GET", "", ""),
        1 => Plan::new(Op::HeadBucket, "HEAD", &live, ""),
        2 => Plan::new(Op::HeadBucket, "HEAD", "no-such-bucket", ""),
        3 => Plan::new(Op::Location, "GET", &live, "").with("location", ""),
        4 => Plan::new(Op::DeleteBucket, "DELETE", "no-such-bucket", ""),
        5 if !history.buckets[0].objects.is_empty() => {
            let first = &history.buckets[0].name;
            Plan::new(Op::DeleteBucket, "DELETE", first, "")
        }
        6 => {
            let names = [
                "ab",
                "Upper-Case",
                "under_score",
                "-dash",
                "a..b",
                "1.2.3.4",
            ];
            let name = history.dice.pick(&names);
            Plan::new(Op::CreateBucket, "PUT", name, "")
        }
        7 => Plan::new(Op::CreateBucket, "PUT", &live, ""),
        _ if history.buckets[2].live => Plan::new(Op::DeleteBucket, "DELETE", &third, ""),
        _ => Plan::new(Op::CreateBucket, "PUT", &third, ""),
    }
}

/// The same listing from where the answer ended.
fn next_page(plan: &Plan, answer: &Answer) -> Option<Plan> {
    if answer.all("IsTruncated") != ["true"] {
        return None;
    }
    let mut next = plan.clone();
    let places: &[(&'static str, &'static str)] = match plan.op {
        Op::ListV2 => &[("continuation-token", "NextContinuationToken")],
        Op::ListParts => &[("part-number-marker", "NextPartNumberMarker")],
        _ => &[("marker", "NextMarker")],
    };
    next.query
        .retain(|(name, _)| places.iter().all(|(place, _)| place != name));
    let encoded = plan.param("encoding-type").is_some();
    for (name, element) in places {
        let text = answer.all(element).pop();
        let value = match (plan.op, text) {
            (Op::ListV2, _) => Value::Last(element),
            // Without a delimiter V1 goes on from the last key.
            (_, text) => {
                let text = text.or_else(|| answer.all("Key").pop())?;
                let text = unescaped(&text);
                let text = if encoded && *name != "part-number-marker" {
                    s3_wire::uri::decode_path(&text).ok()?.into_owned()
                } else {
                    text
                };
                Value::Text(text)
            }
        };
        next.query.push((name, value));
    }
    Some(next)
}

fn key_in(deleted: &str) -> Option<&str> {
    deleted.split("<Key>").nth(1)?.split("</Key>").next()
}

/// The text of an element of ours.
fn unescaped(text: &str) -> String {
    text.replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&")
}
