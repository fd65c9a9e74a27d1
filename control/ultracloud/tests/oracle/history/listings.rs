//! Listings of objects, uploads and parts. Their next pages are asked for by the history.

use super::{History, uploads};
use crate::plan::{Op, Plan};

const PREFIXES: [&str; 9] = [
    "a",
    "a/",
    "a/b",
    "b/",
    "photos/",
    "photos/2026/",
    "ä",
    "日",
    "none",
];
const DELIMITERS: [&str; 5] = ["/", "/", "/", "b", "o"];

pub fn objects(history: &mut History) -> Plan {
    let (bucket, _) = history.place();
    let is_v2 = !history.dice.one_in(3);
    let op = if is_v2 { Op::ListV2 } else { Op::ListV1 };
    let mut plan = Plan::new(op, "GET", &bucket, "");
    if is_v2 {
        plan = plan.with("list-type", "2");
    }
    plan = framed(history, plan, "max-keys");
    let dice = &mut history.dice;
    if dice.one_in(4) {
        let after = dice.pick(&super::KEYS);
        plan = plan.with(if is_v2 { "start-after" } else { "marker" }, after);
    }
    if is_v2 && dice.one_in(8) {
        plan = plan.with("fetch-owner", "true");
    }
    plan
}

/// What all listings of keys have.
fn framed(history: &mut History, mut plan: Plan, page: &'static str) -> Plan {
    let dice = &mut history.dice;
    if dice.one_in(3) {
        plan = plan.with("prefix", dice.pick(&PREFIXES));
    }
    if dice.one_in(2) {
        plan = plan.with("delimiter", dice.pick(&DELIMITERS));
    }
    if dice.one_in(2) {
        let sizes = ["1", "2", "3", "5", "7", "0", "1000", "5000"];
        plan = plan.with(page, dice.pick(&sizes));
    }
    if dice.one_in(4) {
        plan = plan.with("encoding-type", "url");
    }
    plan
}

/// Of uploads, or of the parts of one.
pub fn of_uploads(history: &mut History) -> Plan {
    if history.dice.one_in(2) {
        let plan = uploads::list_parts(history);
        if plan.op == Op::ListParts && history.dice.one_in(2) {
            let sizes = ["1", "2", "1000"];
            return plan.with("max-parts", history.dice.pick(&sizes));
        }
        return plan;
    }
    let at = history.a_bucket();
    let name = history.buckets[at].name.clone();
    let plan = Plan::new(Op::ListUploads, "GET", &name, "").with("uploads", "");
    let mut plan = framed(history, plan, "max-uploads");
    if history.dice.one_in(5) {
        plan = plan.with("key-marker", history.dice.pick(&super::KEYS));
    }
    plan
}
