//! LightningStor beside moto, an S3 of other authors, as an oracle of behaviour. Contract LS-1.
//!
//! A seeded history of requests goes to a node and to a moto process; every answer is compared. A
//! difference is a bug of ours, or it has a rule in `judged` and a row in docs/s3-compatibility.md.
//! Anything else fails, and prints the seed and the request; `UC_SEED=n` replays that history.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod history;
mod judged;
mod moto;
mod plan;
#[path = "../node/support.rs"]
#[allow(dead_code, reason = "each binary of tests uses its part")]
mod support;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::thread;

use history::History;
use moto::Moto;
use plan::{Plan, Side};
use support::Answer;
use view::{Difference, View, differences};

/// Histories of the default run, and the requests of each.
const SEEDS: std::ops::Range<u64> = 1..12;
const REQUESTS: u64 = 300;

/// What a run met.
#[derive(Default)]
struct Tally {
    requests: u64,
    judged: BTreeMap<&'static str, u64>,
    /// Of each kind the first, told in full, and how many there were.
    unjudged: BTreeMap<String, (String, u64)>,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.requests += other.requests;
        for (name, count) in other.judged {
            *self.judged.entry(name).or_default() += count;
        }
        for (kind, (told, count)) in other.unjudged {
            self.unjudged.entry(kind).or_insert((told, 0)).1 += count;
        }
    }
}

/// Runs one history on both sides.
fn compare(seed: u64, mut ours: Side, mut theirs: Side) -> Tally {
    let (mut history, mut tally) = (History::new(seed), Tally::default());
    for step in 0..REQUESTS {
        let plan = history.plan();
        tally.requests += 1;
        let view =
            |answer: &Answer| View::of(answer, plan.method == "HEAD", |name| history.owns(name));
        let answer = ours.send(&plan);
        let (our_view, their_view) = (view(answer), view(theirs.send(&plan)));
        let found = differences(&our_view, &their_view);
        for difference in &found {
            if let Some(rule) = judged::rule_for(&plan, difference) {
                *tally.judged.entry(rule.name).or_default() += 1;
            } else {
                let first = || (told(seed, step, &plan, difference), 0);
                let kind = tally.unjudged.entry(kind(&plan, difference));
                kind.or_insert_with(first).1 += 1;
            }
        }
        let is_done = |view: &View| (200..300).contains(&view.status);
        if is_done(&our_view) == is_done(&their_view) {
            history.learn(&plan, answer);
        } else {
            for plan in history.heal(&plan) {
                ours.send(&plan);
                theirs.send(&plan);
            }
        }
    }
    tally
}

/// What differs, without which of many keys or parts it is.
fn kind(plan: &Plan, difference: &Difference) -> String {
    let at = difference.at.replace(|c: char| c.is_ascii_digit(), "");
    let shown = match &*at {
        "status" | "code" => format!("{:?} {:?}", difference.ours, difference.theirs),
        _ => String::new(),
    };
    format!("{:?} {at} {shown}", plan.op)
}

fn told(seed: u64, step: u64, plan: &Plan, difference: &Difference) -> String {
    let key = shortened(&plan.key);
    let mut out = format!(
        "UC_SEED={seed} step {step}: {:?} {} {}/{key}",
        plan.op, plan.method, plan.bucket
    );
    for (name, value) in &plan.query {
        write!(out, " {name}={value:?}").unwrap();
    }
    for (name, value) in &plan.headers {
        write!(out, " [{name}: {}]", shortened(value)).unwrap();
    }
    let body = match std::str::from_utf8(&plan.body) {
        Ok(text) if text.len() < 300 => text.to_owned(),
        _ => format!("{} bytes", plan.body.len()),
    };
    let Difference {
        at, ours, theirs, ..
    } = difference;
    let payload = plan.payload;
    write!(
        out,
        "\n    body {payload:?}: {body}\n    at {at}: ours {ours:?}, theirs {theirs:?}"
    )
    .unwrap();
    out
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((at, _)) => format!("{}... ({} bytes)", &text[..at], text.len()),
        None => text.to_owned(),
    }
}

#[test]
fn every_difference_to_the_oracle_is_judged() {
    let Some(moto) = Moto::start() else {
        return;
    };
    let (_dir, node) = support::fresh();
    let replayed = std::env::var("UC_SEED").ok();
    let seeds = match &replayed {
        Some(seed) => {
            let seed = seed.parse().expect("UC_SEED is a number");
            seed..seed + 1
        }
        None => SEEDS,
    };
    // Histories take turns waiting for the two servers; they share nothing else.
    let histories: Vec<_> = seeds
        .map(|seed| {
            let (ours, theirs) = (Side::new(node.client()), moto.side());
            thread::spawn(move || compare(seed, ours, theirs))
        })
        .collect();
    let mut tally = Tally::default();
    for history in histories {
        tally.add(history.join().unwrap());
    }
    println!(
        "{} requests compared; judged: {:#?}",
        tally.requests, tally.judged
    );
    let unjudged: Vec<String> = tally
        .unjudged
        .values()
        .map(|(first, count)| format!("{count} x {first}"))
        .collect();
    assert!(
        unjudged.is_empty(),
        "differences that nobody has judged:\n{}",
        unjudged.join("\n")
    );
    if replayed.is_none() {
        let stale: Vec<_> = judged::RULES
            .iter()
            .filter(|rule| !tally.judged.contains_key(rule.name))
            .map(|rule| rule.name)
            .collect();
        assert!(stale.is_empty(), "rules that recognise nothing: {stale:?}");
    }
}

#[test]
fn every_judged_difference_is_explained_in_the_docs() {
    let text = include_str!("../../../../docs/s3-compatibility.md");
    let explained: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name)
        .collect();
    let judged: BTreeSet<&str> = judged::RULES.iter().map(|rule| rule.name).collect();
    assert_eq!(judged, explained);
}
