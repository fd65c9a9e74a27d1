//! Markers of unfinished work, switched-off tests and tests that sleep.
//!
//! The markers are put together from halves, so that this file does not find itself.

use super::tree::{Finding, SourceFile, Tree};

/// Found everywhere, as whole words.
const WORDS: [&str; 4] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("HA", "CK"),
];

/// Found everywhere, whatever stands around them.
const PHRASES: [&str; 4] = [
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("best", "-effort"),
    concat!("#[ig", "nore"),
];

/// Found inside tests: waiting for time instead of for a state.
const SLEEPS: [&str; 2] = [concat!("thread::", "sleep"), concat!("time::", "sleep")];

/// The engine's own clock; under the simulator its sleep takes no time.
const VIRTUAL: &str = concat!("engine::time::", "sleep");

/// Files that hold other people's words.
const NOT_OURS: [&str; 3] = ["Cargo.lock", "docs/LICENSE-APACHE", "docs/LICENSE-MIT"];

/// Every marker, at its line.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let ours = tree
        .files()
        .iter()
        .filter(|file| !NOT_OURS.contains(&file.path.as_str()));
    ours.flat_map(in_file).collect()
}

fn in_file(file: &SourceFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in file.lines() {
        let is_test = file.rust.as_ref().is_some_and(|rust| rust.is_test(number));
        if let Some(marker) = marker(line) {
            findings.push(Finding::new(
                &file.path,
                number,
                format!("unfinished: {marker}"),
            ));
        }
        if is_test && sleeps(line) {
            findings.push(Finding::new(
                &file.path,
                number,
                "a test waits on state, not on time",
            ));
        }
    }
    findings
}

fn marker(line: &str) -> Option<&'static str> {
    let folded = line.to_lowercase();
    let word = WORDS.into_iter().find(|word| has_word(line, word));
    word.or_else(|| PHRASES.into_iter().find(|phrase| folded.contains(phrase)))
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(start, _)| {
        let joins = |c: char| c.is_alphanumeric() || c == '_';
        let before = line[..start].chars().next_back();
        let after = line[start + word.len()..].chars().next();
        !before.is_some_and(joins) && !after.is_some_and(joins)
    })
}

fn sleeps(line: &str) -> bool {
    SLEEPS
        .iter()
        .any(|sleep| line.replace(VIRTUAL, "").contains(sleep))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_found_in_any_text() {
        for text in WORDS.iter().chain(&PHRASES) {
            let line = format!("// a {text} b\n");
            assert_eq!(
                check(&Tree::of(&[("a/src/b.rs", &line)])).len(),
                1,
                "{text}"
            );
            assert_eq!(check(&Tree::of(&[("docs/b.md", &line)])).len(), 1, "{text}");
            assert_eq!(check(&Tree::of(&[("Cargo.lock", &line)])), []);
        }
        let folded = PHRASES[2].to_uppercase();
        assert_eq!(check(&Tree::of(&[("docs/b.md", &folded)])).len(), 1);
    }

    #[test]
    fn a_word_inside_a_word_is_no_marker() {
        for word in WORDS {
            let inside = format!("a{word}b {word}_key");
            assert_eq!(check(&Tree::of(&[("docs/b.md", &inside)])), []);
        }
    }

    #[test]
    fn only_tests_must_not_sleep_and_virtual_time_is_free() {
        let real = format!("{}(s);", SLEEPS[0]);
        let code = format!("fn a() {{ {real} }}\n#[cfg(test)]\nmod t {{\n{real}\n}}\n");
        let found = check(&Tree::of(&[(
            "a/src/b.rs",
            &format!("{code}mod c {{ {real} }}"),
        )]));
        assert!(
            found.is_empty(),
            "a file that does not parse is not judged by its tests"
        );
        let code = code.replace(&format!("\n{real}\n"), &format!("\nfn b() {{ {real} }}\n"));
        let found = check(&Tree::of(&[("a/src/b.rs", &code)]));
        assert_eq!(
            found.iter().map(|found| found.line).collect::<Vec<_>>(),
            [4]
        );
        let virtual_time = format!("fn a() {{ {VIRTUAL}(s); }}");
        assert_eq!(check(&Tree::of(&[("a/tests/b.rs", &virtual_time)])), []);
    }
}
