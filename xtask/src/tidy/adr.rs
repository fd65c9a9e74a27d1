//! The dependency record: every dependency from outside the workspace has a line in its ADR.

use toml::{Table, Value};

use super::layers::line_of;
use super::tree::{Finding, Tree};

const MANIFEST: &str = "Cargo.toml";
const RECORD: &str = "docs/adr/0002-dependencies.md";

/// Entries of `[workspace.dependencies]`, but for our own crates, that the record does not name.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let manifest = tree.text(MANIFEST).unwrap_or_default();
    let record = tree.text(RECORD).unwrap_or_default();
    let Ok(table) = manifest.parse::<Table>() else {
        return Vec::new();
    };
    let entries = table
        .get("workspace")
        .and_then(|workspace| workspace.get("dependencies"))
        .and_then(Value::as_table);
    let outside = entries
        .into_iter()
        .flatten()
        .filter(|(_, entry)| entry.get("path").is_none());
    outside
        .map(|(name, _)| name)
        .filter(|name| !record.contains(&format!("`{name}`")))
        .map(|name| {
            let what = format!("{RECORD} does not say why `{name}` is here");
            Finding::new(MANIFEST, line_of(manifest, name), what)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_without_a_reason_is_found() {
        let manifest = "[workspace.dependencies]\nlibc = \"0.2\"\nsyn = \"3\"\nengine = { path = \"engine\" }\n";
        let record = "| `libc` | system calls |";
        let found = check(&Tree::of(&[(MANIFEST, manifest), (RECORD, record)]));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].line, 3);
        let record = format!("{record}\n| `syn` | tidy |");
        assert_eq!(
            check(&Tree::of(&[(MANIFEST, manifest), (RECORD, &record)])),
            []
        );
    }
}
