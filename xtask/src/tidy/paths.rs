//! Machine paths: nothing in the tree names a directory of one person's machine.

use super::tree::{Finding, Tree};

/// Beginnings of such paths. The last is followed by a name.
const ROOTS: [&str; 3] = [
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
];

/// Every such path, at its line.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files() {
        for (number, line) in file.lines() {
            if let Some(root) = ROOTS.into_iter().find(|root| names(line, root)) {
                let what = format!("names a path of one machine under {root}");
                findings.push(Finding::new(&file.path, number, what));
            }
        }
    }
    findings
}

/// Whether an absolute path under `root` stands in the line: not as the middle of a longer path,
/// and with something after it.
fn names(line: &str, root: &str) -> bool {
    line.match_indices(root).any(|(start, _)| {
        let continues = |c: char| c.is_alphanumeric() || "_-.~*>})]$".contains(c);
        let before = line[..start].chars().next_back();
        let after = line[start + root.len()..].chars().next();
        !before.is_some_and(continues) && after.is_some_and(|c| c.is_alphanumeric() || c == '.')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_paths_are_found_and_relative_ones_are_not() {
        for root in ROOTS {
            let bad = format!("see `{root}main/README.md`\n");
            assert_eq!(check(&Tree::of(&[("docs/a.md", &bad)])).len(), 1, "{root}");
            for fine in [
                format!(".{root}lane"),
                format!("$HOME{root}x"),
                format!("https://a.b{root}c"),
            ] {
                assert_eq!(check(&Tree::of(&[("docs/a.md", &fine)])), [], "{fine}");
            }
        }
    }
}
