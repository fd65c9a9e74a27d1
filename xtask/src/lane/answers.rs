//! What the command line answers, in JSON: 64-bit numbers are strings, and keys are in base64.

use std::time::Duration;

use anyhow::{Context, Result};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::Value;

use crate::process;

/// Asks, with a rest between, until the answer is the one that is waited for. What cannot be asked any more
/// ends it; an answer that fails is asked for again.
pub fn until(
    what: &str,
    rest: Duration,
    deadline: Duration,
    mut ask: impl FnMut() -> Result<Result<Value>>,
    mut is: impl FnMut(&Value) -> bool,
) -> Result<Value> {
    let mut last = String::from("nothing");
    let found = process::until_every(rest, deadline, || {
        Ok(match ask()? {
            Ok(answer) if is(&answer) => Some(answer),
            Ok(answer) => {
                last = answer.to_string();
                None
            }
            Err(error) => {
                last = format!("{error:#}");
                None
            }
        })
    })?;
    found.with_context(|| format!("{what}: not within {deadline:?}; the last answer was {last}"))
}

/// The members of a status.
pub fn members(status: &Value) -> impl Iterator<Item = &Value> {
    status["members"].as_array().into_iter().flatten()
}

/// The name of who leads, as a status has it.
pub fn leader(status: &Value) -> Option<&str> {
    let id = number(&status["leader_id"]);
    let leader = members(status).find(|one| id != 0 && number(&one["member"]["id"]) == id);
    leader.and_then(|one| one["member"]["name"].as_str())
}

/// A 64-bit number, which JSON holds as a string.
pub fn number(value: &Value) -> u64 {
    let text = value.as_str().and_then(|text| text.parse().ok());
    text.or_else(|| value.as_u64()).unwrap_or_default()
}

/// The keys of an answer to a get, which JSON holds in base64.
pub fn keys(answer: &Value) -> Vec<String> {
    let kvs = answer["kvs"].as_array().into_iter().flatten();
    kvs.filter_map(|kv| decoded(kv["key"].as_str()?)).collect()
}

/// A text that is in base64.
pub fn decoded(base64: &str) -> Option<String> {
    String::from_utf8(BASE64_STANDARD.decode(base64).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_of_an_answer_are_decoded() {
        let answer = json!({ "kvs": [{ "key": "L3Byb29mLzE=" }, { "key": "YWI=" }] });
        assert_eq!(keys(&answer), ["/proof/1", "ab"]);
        assert_eq!(decoded("****"), None);
    }

    #[test]
    fn the_leader_is_told_by_name() {
        let status = json!({ "leader_id": "7", "members": [
            { "member": { "id": "5", "name": "a" } },
            { "member": { "id": "7", "name": "b" } },
        ] });
        assert_eq!(leader(&status), Some("b"));
        assert_eq!(leader(&json!({ "leader_id": "0", "members": [] })), None);
    }

    #[test]
    fn numbers_of_64_bits_are_strings() {
        assert_eq!(number(&json!("18446744073709551615")), u64::MAX);
        assert_eq!(number(&json!(null)), 0);
    }
}
