//! Links: every relative link of a Markdown file leads to a file or directory of the tree.

use super::tree::{Finding, SourceFile, Tree};

/// Links that lead nowhere.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let pages = tree
        .files()
        .iter()
        .filter(|file| file.path.rsplit('.').next() == Some("md"));
    pages.flat_map(|page| dead_links(tree, page)).collect()
}

fn dead_links(tree: &Tree, page: &SourceFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut in_code = false;
    for (number, line) in page.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for target in targets(line) {
            if !resolve(&page.path, target).is_some_and(|path| tree.contains(&path)) {
                findings.push(Finding::new(
                    &page.path,
                    number,
                    format!("{target} leads nowhere"),
                ));
            }
        }
    }
    findings
}

/// The relative targets of a line's `[text](target)`.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("](").filter_map(|(start, open)| {
        let rest = &line[start + open.len()..];
        let target = rest.split([')', ' ']).next()?;
        let path = target.split('#').next()?;
        let elsewhere = target.contains("://") || target.starts_with("mailto:");
        (!elsewhere && !path.is_empty()).then_some(path)
    })
}

/// The path from the root that a page's link means; `None` when it leaves the tree.
fn resolve(page: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_files_directories_and_the_web_resolve() {
        let page = "[a](../README.md#top) [b](adr/) [c](https://a.b/c) [d](#here) `x](y`\n\
                    ```\n[e](absent)\n```\n[f](./adr/0001.md \"title\")";
        let page = page.replace("`x](y`", "");
        let tree = Tree::of(&[
            ("README.md", ""),
            ("docs/adr/0001.md", ""),
            ("docs/a.md", &page),
        ]);
        assert_eq!(check(&tree), []);
    }

    #[test]
    fn links_to_nothing_and_out_of_the_tree_are_found() {
        let tree = Tree::of(&[("docs/a.md", "x\n[a](absent.md) [b](../../etc)")]);
        let found = check(&tree);
        assert_eq!(
            found.iter().map(|found| found.line).collect::<Vec<_>>(),
            [2, 2]
        );
    }
}
