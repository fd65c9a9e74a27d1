//! Heads: every Rust file opens with `//!` and says what it owns.

use super::tree::{Finding, Tree};

/// Rust files whose first line is something else.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let headless = |text: &str| !text.starts_with("//! ");
    tree.rust_files()
        .filter(|(file, _)| headless(&file.text))
        .map(|(file, _)| Finding::new(&file.path, 1, "the file does not open with `//!`"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_the_first_line_also_in_tests() {
        assert_eq!(
            check(&Tree::of(&[
                ("a/src/b.rs", "//! Owns b.\n"),
                ("a.md", "# A")
            ])),
            []
        );
        for (path, text) in [
            ("a/tests/b.rs", "use a;\n"),
            ("a/benches/b.rs", ""),
            ("a/b.rs", "\n//! Late.\n"),
        ] {
            assert_eq!(check(&Tree::of(&[(path, text)])).len(), 1, "{path}");
        }
    }
}
