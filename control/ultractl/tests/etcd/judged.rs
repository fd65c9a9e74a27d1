//! The differences to etcd 3.4 that have been judged. docs/etcd-compatibility.md says for each name what
//! differs and why ours stays.
//!
//! A rule recognises its difference and no other; one that recognises nothing in a whole run is stale
//! and fails the test.

/// One command or call that was answered differently.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The command or call.
    pub asked: String,
    pub ours: String,
    pub theirs: String,
}

/// A difference that stays, and how it is recognised.
pub struct Rule {
    pub name: &'static str,
    pub applies: fn(&Difference) -> bool,
}

const fn rule(name: &'static str, applies: fn(&Difference) -> bool) -> Rule {
    Rule { name, applies }
}

/// What a list of differences comes to: those without a rule, and rules without a difference.
pub fn unjudged(rules: &[&Rule], found: &[Difference]) -> Vec<String> {
    let mut told = Vec::new();
    for difference in found {
        if !rules.iter().any(|rule| (rule.applies)(difference)) {
            let Difference {
                asked,
                ours,
                theirs,
            } = difference;
            told.push(format!("{asked}\n--- ours\n{ours}\n--- etcd's\n{theirs}\n"));
        }
    }
    for rule in rules {
        if !found.iter().any(|difference| (rule.applies)(difference)) {
            told.push(format!("the rule {:?} recognises nothing", rule.name));
        }
    }
    told
}

/// What calls answer differently.
pub const CALLS: &[Rule] = &[
    rule("reason-of-a-compacted-watch", |d| {
        d.asked.contains("WatchCreateRequest")
            && d.ours.strip_prefix(&d.theirs).is_some_and(|more| {
                more == "etcdserver: mvcc: required revision has been compacted"
            })
    }),
    rule("hash-at-the-compacted-revision", |d| {
        d.asked.contains("HashKvRequest")
            && d.ours.starts_with("HashKvResponse")
            && d.theirs.ends_with("required revision has been compacted")
    }),
];
