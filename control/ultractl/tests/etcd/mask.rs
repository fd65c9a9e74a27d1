//! What of an answer must differ between two clusters, made equal: ids, terms, places in the log, sizes,
//! versions, addresses, times. What is hidden still shows whether it is there.

use serde_json::Value;

/// Fields of JSON whose values are the cluster's own.
const OWN: &[&str] = &[
    "ID",
    "Hash",
    "cluster_id",
    "dbSize",
    "dbSizeInUse",
    "hash",
    "id",
    "leader",
    "lease",
    "memberID",
    "member_id",
    "raftAppliedIndex",
    "raftIndex",
    "raftTerm",
    "raft_term",
    "took",
    "totalSize",
    "version",
    "watch_id",
];
/// Seconds of a lease that were granted in the script, and how many of them may be over.
const TTL_S: u64 = 600;
const TTL_OVER_S: u64 = 60;

/// A line of what a command printed.
pub fn line(text: &str) -> String {
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(fields)) if fields.contains_key("level") => log(&Value::Object(fields)),
        Ok(mut value @ (Value::Object(_) | Value::Array(_))) => {
            json(&mut value);
            value.to_string()
        }
        _ => words(text),
    }
}

/// Of a line of the client's log, what went wrong.
fn log(line: &Value) -> String {
    let error = line["error"].as_str().unwrap_or_default();
    format!("log: {}", words(error))
}

fn json(value: &mut Value) {
    match value {
        Value::Array(values) => {
            values.iter_mut().for_each(json);
            // Members come in the order of their ids.
            if values.iter().all(|value| value.get("peerURLs").is_some()) {
                values.sort_by_key(ToString::to_string);
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                let is_nothing = value.as_u64() == Some(0) || value.as_str() == Some("");
                if OWN.contains(&name.as_str()) && !value.is_object() && !is_nothing {
                    // A key-value has a version, too, which is the history's.
                    if name != "version" || value.is_string() {
                        *value = Value::from("*");
                    }
                } else {
                    json(value);
                }
                // Those of a lease, which etcd holds in a map without an order.
                if let ("keys", Value::Array(keys)) = (name.as_str(), value) {
                    keys.sort_by_key(ToString::to_string);
                }
            }
        }
        Value::Number(number) => {
            if number.as_u64().is_some_and(is_ttl) {
                *value = Value::from("ttl");
            }
        }
        Value::String(text) => *text = words(text),
        Value::Bool(_) | Value::Null => {}
    }
}

fn is_ttl(number: u64) -> bool {
    (TTL_S - TTL_OVER_S..=TTL_S).contains(&number)
}

/// Hides ids, addresses and times in a text.
fn words(text: &str) -> String {
    if text.starts_with("Snapshot saved at ") {
        return "Snapshot saved".to_owned();
    }
    if let Some(members) = text.strip_prefix("ETCD_INITIAL_CLUSTER=\"") {
        let mut members: Vec<String> = members.trim_matches('"').split(',').map(words).collect();
        members.sort();
        return format!("ETCD_INITIAL_CLUSTER {members:?}");
    }
    if let Some((before, keys)) = text.split_once("attached keys([") {
        let mut keys: Vec<&str> = keys.trim_end_matches("])").split(' ').collect();
        keys.sort_unstable();
        return format!("{}attached keys {keys:?}", words(before));
    }
    // etcd makes a new member's id of its URLs and the second: it says either of the same command.
    if let Some((before, after)) = text.split_once("member ID already exist") {
        return format!("{}Peer URLs already exists{}", words(before), words(after));
    }
    if let Some((before, _)) = text.split_once("took = ") {
        return format!("{}took", words(before));
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == ':';
        let end = if is_part(first) {
            rest.find(|c| !is_part(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        let (word, after) = rest.split_at(end);
        let word = masked(word);
        if word == "<id>" && out.ends_with("  ") {
            // An id that begins with zeros is padded.
            out.truncate(out.trim_end().len() + 1);
        }
        out.push_str(&word);
        rest = after;
    }
    out
}

fn masked(word: &str) -> String {
    let is_id = word.len() >= 11 && word.chars().all(|c| c.is_ascii_hexdigit());
    let bare = word.trim_start_matches("http:");
    if bare.starts_with("127.") && bare.contains(':') {
        return "<address>".to_owned();
    }
    if is_id {
        return "<id>".to_owned();
    }
    let seconds = word.strip_suffix('s').unwrap_or(word);
    if seconds.parse().is_ok_and(is_ttl) {
        return "<ttl>".to_owned();
    }
    word.to_owned()
}
