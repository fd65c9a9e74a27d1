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

/// What etcdctl shows differently.
pub const COMMANDS: &[Rule] = &[
    rule("hash-at-the-compacted-revision", |d| {
        d.asked.starts_with("endpoint hashkv --rev=")
            && d.ours.starts_with("Some(0)")
            && d.theirs.contains("required revision has been compacted")
    }),
    rule("a-learner-stays-one", |d| {
        // The two agree but for whether the member that was updated learns.
        let learns = |text: &str| text.contains("\"isLearner\":true") || text.contains(" true");
        let without = |text: &str| {
            let json = without_revision(text).replace("\"isLearner\":true,", "");
            json.replace(", true", ", false")
        };
        d.asked.starts_with("member ")
            && learns(&d.ours)
            && !learns(&d.theirs)
            && without(&d.ours) == without(&d.theirs)
    }),
    rule("learners-are-not-counted", |d| {
        d.asked.contains("third")
            && (d.theirs.contains("too many learner members") || d.theirs.contains("bad member ID"))
    }),
    rule("revision-in-heads-of-members", |d| {
        d.asked.contains("member ") && without_revision(&d.ours) == d.theirs
    }),
    rule("heads-of-alarms", |d| {
        d.asked.ends_with("alarm list") && d.ours.contains("\"header\"") && d.theirs.contains("{}")
    }),
    rule("head-of-a-transfer", |d| {
        d.asked.starts_with("move-leader ")
            && d.ours.contains("\"header\"")
            && d.theirs.contains("{}")
    }),
    rule("authority-with-a-scheme", |d| {
        d.asked.ends_with("--cluster") && d.ours.contains("PROTOCOL_ERROR")
    }),
    rule("password-of-a-user-without", |d| {
        d.ours.contains("invalid user ID or password")
            && d.theirs.contains("password was given for no password user")
    }),
];

/// An answer's JSON without the revision of its head.
fn without_revision(text: &str) -> String {
    let Some((before, after)) = text.split_once(",\"revision\":") else {
        return text.to_owned();
    };
    let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
    format!("{before}{after}")
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
