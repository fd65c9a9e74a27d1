//! What an apply changes, object by object and field by field.

use std::collections::{BTreeMap, BTreeSet};

use fiberlb_api::v1;
use serde_json::Value;

use crate::spec::Balancer;

/// Fields of an object, by name.
type Fields = BTreeMap<String, String>;

/// Objects by name, as `web/pool web/backend b1`.
type Objects = BTreeMap<String, Fields>;

/// Changes from one set of balancers to another, by object.
pub fn changes<'a>(
    before: impl Iterator<Item = &'a Balancer>,
    after: impl Iterator<Item = &'a Balancer>,
) -> Vec<v1::BalancerChange> {
    let (before, after) = (objects(before), objects(after));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let mut changes = Vec::new();
    for name in names {
        match (before.get(name), after.get(name)) {
            (None, Some(_)) => changes.push(whole("add", name)),
            (Some(_), None) => changes.push(whole("remove", name)),
            (Some(before), Some(after)) => fields(name, before, after, &mut changes),
            (None, None) => {}
        }
    }
    changes
}

fn whole(action: &str, object: &str) -> v1::BalancerChange {
    v1::BalancerChange {
        action: action.to_owned(),
        object: object.to_owned(),
        ..v1::BalancerChange::default()
    }
}

fn fields(object: &str, before: &Fields, after: &Fields, changes: &mut Vec<v1::BalancerChange>) {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for name in names {
        let value = |fields: &Fields| fields.get(name).cloned().unwrap_or_default();
        let (before, after) = (value(before), value(after));
        if before != after {
            changes.push(v1::BalancerChange {
                action: "change".to_owned(),
                object: object.to_owned(),
                field: name.clone(),
                before,
                after,
            });
        }
    }
}

fn objects<'a>(balancers: impl Iterator<Item = &'a Balancer>) -> Objects {
    let mut all = Objects::new();
    for balancer in balancers {
        let written = &balancer.written;
        let name = &written.name;
        all.insert(name.clone(), Fields::new());
        for listener in &written.listeners {
            let object = format!("{name}/listener {}", listener.name);
            all.insert(object, of_message(listener, &[]));
        }
        for pool in &written.pools {
            let object = format!("{name}/pool {}", pool.name);
            for backend in &pool.backends {
                let object = format!("{object}/backend {}", backend.name);
                all.insert(object, of_message(backend, &[]));
            }
            all.insert(object, of_message(pool, &["backends"]));
        }
    }
    all
}

/// A message's fields as texts, those of messages within by a dotted name.
fn of_message<T: serde::Serialize>(message: &T, without: &[&str]) -> Fields {
    let mut fields = Fields::new();
    let Ok(Value::Object(all)) = serde_json::to_value(message) else {
        return fields;
    };
    for (name, value) in all {
        if without.contains(&&*name) || name == "name" {
            continue;
        }
        match value {
            Value::Null => {}
            Value::Object(within) => {
                for (below, value) in within {
                    fields.insert(format!("{name}.{below}"), shown(&value));
                }
            }
            other => {
                fields.insert(name, shown(&other));
            }
        }
    }
    fields
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(shown).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}
