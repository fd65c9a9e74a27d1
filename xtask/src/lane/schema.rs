//! The schema of `result.json`, which is checked when a lane writes one.

use anyhow::{Context, Result, bail};
use serde_json::Value;

const SCHEMA: &str = include_str!("../../../docs/schema/lane-result.json");

/// Whether a result is one.
///
/// # Errors
/// Naming each place that is not as the schema has it.
pub fn check(result: &Value) -> Result<()> {
    let schema: Value = serde_json::from_str(SCHEMA).context("the schema is not JSON")?;
    let validator = jsonschema::validator_for(&schema);
    let validator = validator.map_err(|error| anyhow::anyhow!("the schema is none: {error}"))?;
    let wrong: Vec<String> = validator
        .iter_errors(result)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    if !wrong.is_empty() {
        bail!("result.json is not to its schema: {}", wrong.join("; "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proof::LaneResult;
    use serde_json::json;

    use super::*;

    const GOOD: &str = include_str!("fixtures/success.json");
    const FAILED: &str = include_str!("fixtures/failure.json");

    fn parse(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn fixtures_are_to_the_schema_and_are_read_as_they_were_written() {
        for text in [GOOD, FAILED] {
            let value = parse(text);
            check(&value).unwrap();
            let result: LaneResult = serde_json::from_value(value.clone()).unwrap();
            assert_eq!(serde_json::to_value(result).unwrap(), value);
        }
    }

    #[test]
    fn each_field_is_asked_for() {
        let good = parse(GOOD);
        let fields: Vec<String> = good.as_object().unwrap().keys().cloned().collect();
        let facts = ["methods"];
        for field in fields
            .iter()
            .filter(|field| !facts.contains(&field.as_str()))
        {
            let mut without = good.clone();
            without.as_object_mut().unwrap().remove(field);
            let error = check(&without).unwrap_err().to_string();
            assert!(
                error.contains(&format!("\"{field}\" is a required")),
                "{error}"
            );
        }
    }

    #[test]
    fn what_claims_too_much_is_refused() {
        for (place, value) in [
            ("/success", json!(false)),
            ("/error", json!("why")),
            ("/steps/0/success", json!(false)),
            ("/steps", json!([])),
            ("/not_shown/0/verified_here", json!(true)),
            ("/not_shown/0/reason", json!("")),
            ("/vm_accelerator_mode", json!("fast")),
            ("/stamp", json!("1764148500")),
            ("/contracts", json!([])),
            ("/contracts/0", json!("membership")),
            ("/scope_files", json!([])),
            ("/scope_files/0", json!("notes.txt")),
            ("/command", json!("make proof")),
            ("/versions/rustc", json!("")),
            ("/started", json!("2026-11-26T09:15:00+01:00")),
        ] {
            let mut wrong = parse(GOOD);
            *wrong.pointer_mut(place).unwrap() = value;
            assert!(check(&wrong).is_err(), "{place}");
        }
        let mut wrong = parse(FAILED);
        wrong["error"] = Value::Null;
        assert!(check(&wrong).is_err(), "a failure says why");
        let mut wrong = parse(GOOD);
        wrong["Other"] = json!(1);
        assert!(check(&wrong).is_err(), "a fact has a name like the others");
    }
}
