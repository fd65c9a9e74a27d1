//! Sizes: a file has at most 1,000 lines; files past 600 and functions past 70 only get fewer.
//!
//! `xtask/ratchet.toml` holds the two counts. A count above it is a finding, a count below it a
//! note that asks to lower it. Tests are not measured by function.

use toml::Table;

use super::tree::{Finding, Tree};

const FILE_LINES_MAX: usize = 1000;
const FILE_LINES_WANTED: usize = 600;
const FUNCTION_LINES_WANTED: usize = 70;
const RATCHET: &str = "xtask/ratchet.toml";

struct Long {
    path: String,
    line: usize,
    what: String,
}

/// One count that may only shrink.
struct Count {
    key: &'static str,
    long: Vec<Long>,
}

/// Files that are too long or do not parse, and counts that grew.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, rust) in tree.rust_files() {
        if let Some((line, why)) = &rust.broken {
            findings.push(Finding::new(
                &file.path,
                *line,
                format!("does not parse: {why}"),
            ));
        }
        let lines = file.text.lines().count();
        if lines > FILE_LINES_MAX {
            let what = format!("{lines} lines, the most is {FILE_LINES_MAX}: split it");
            findings.push(Finding::new(&file.path, FILE_LINES_MAX + 1, what));
        }
    }
    for count in counts(tree) {
        match allowed(tree, count.key) {
            Ok(allowed) if count.long.len() > allowed => {
                let what = format!(
                    "{} is {allowed} but the tree has {}",
                    count.key,
                    count.long.len()
                );
                findings.push(Finding::new(RATCHET, 1, what));
            }
            Ok(_) => {}
            Err(what) => findings.push(Finding::new(RATCHET, 1, what)),
        }
    }
    findings
}

/// Everything that is longer than wanted, and counts that could be lowered.
pub fn notes(tree: &Tree) -> Vec<String> {
    let mut notes = Vec::new();
    for count in counts(tree) {
        let lines = count
            .long
            .iter()
            .map(|l| format!("{}:{}: {}", l.path, l.line, l.what));
        notes.extend(lines);
        if allowed(tree, count.key).is_ok_and(|allowed| allowed > count.long.len()) {
            notes.push(format!(
                "{RATCHET}: {} can shrink to {}",
                count.key,
                count.long.len()
            ));
        }
    }
    notes
}

fn counts(tree: &Tree) -> [Count; 2] {
    let (mut files, mut functions) = (Vec::new(), Vec::new());
    for (file, rust) in tree.rust_files() {
        let lines = file.text.lines().count();
        if lines > FILE_LINES_WANTED {
            let what = format!("{lines} lines, wanted are at most {FILE_LINES_WANTED}");
            files.push(Long {
                path: file.path.clone(),
                line: 1,
                what,
            });
        }
        for function in &rust.functions {
            if function.body_lines > FUNCTION_LINES_WANTED {
                let what = format!(
                    "fn {} has {} lines, wanted are at most {FUNCTION_LINES_WANTED}",
                    function.name, function.body_lines
                );
                functions.push(Long {
                    path: file.path.clone(),
                    line: function.line,
                    what,
                });
            }
        }
    }
    [
        Count {
            key: "files_past_600_lines",
            long: files,
        },
        Count {
            key: "functions_past_70_lines",
            long: functions,
        },
    ]
}

fn allowed(tree: &Tree, key: &str) -> Result<usize, String> {
    let table: Table = tree
        .text(RATCHET)
        .ok_or("is missing")?
        .parse()
        .map_err(|error| format!("does not parse: {error}"))?;
    let count = table.get(key).and_then(toml::Value::as_integer);
    count
        .and_then(|count| usize::try_from(count).ok())
        .ok_or_else(|| format!("has no count {key}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE_LONG: &str = "files_past_600_lines = 0\nfunctions_past_70_lines = 0\n";
    const ONE_LONG: &str = "files_past_600_lines = 0\nfunctions_past_70_lines = 1\n";

    fn function(body_lines: usize) -> String {
        format!("fn a() {{\n{}}}\n", "b();\n".repeat(body_lines - 2))
    }

    #[test]
    fn a_function_may_have_seventy_lines_and_no_more() {
        let tree = |lines| Tree::of(&[("a/src/b.rs", &function(lines)), (RATCHET, NONE_LONG)]);
        assert_eq!(check(&tree(70)), []);
        assert_eq!(notes(&tree(70)), [""; 0]);
        assert_eq!(check(&tree(71)).len(), 1);
        assert!(notes(&tree(71))[0].starts_with("a/src/b.rs:1: fn a has 71 lines"));
    }

    #[test]
    fn the_ratchet_holds_what_is_and_asks_to_shrink() {
        let long = Tree::of(&[("a/src/b.rs", &function(71)), (RATCHET, ONE_LONG)]);
        assert_eq!(check(&long), []);
        let short = Tree::of(&[("a/src/b.rs", &function(70)), (RATCHET, ONE_LONG)]);
        assert_eq!(check(&short), []);
        assert_eq!(
            notes(&short),
            ["xtask/ratchet.toml: functions_past_70_lines can shrink to 0"]
        );
    }

    #[test]
    fn tests_may_be_long_but_not_their_file() {
        let test = format!("#[test]\n{}", function(200));
        assert_eq!(
            check(&Tree::of(&[("a/src/b.rs", &test), (RATCHET, NONE_LONG)])),
            []
        );
        let file = "// b\n".repeat(1001);
        let found = check(&Tree::of(&[("a/tests/b.rs", &file), (RATCHET, NONE_LONG)]));
        assert_eq!((found.len(), found[0].line), (2, 1001));
    }

    #[test]
    fn a_missing_ratchet_or_count_is_found() {
        assert_eq!(check(&Tree::of(&[])).len(), 2);
        assert_eq!(
            check(&Tree::of(&[(RATCHET, "files_past_600_lines = 0")])).len(),
            1
        );
    }
}
