//! What was archived (contract GEN-6): its names appear in documents that say so, and nowhere else.
//!
//! The names are put together from halves, so that this file does not find itself.

use crate::tidy::{Finding, SourceFile, Tree};

/// Programs, outputs, scripts and backends that are out of the supported surface.
pub const NAMES: [&str; 15] = [
    concat!("k8shost-", "cni"),
    concat!("k8shost-", "controllers"),
    concat!("k8shost-", "dataplane"),
    concat!("lightningstor-", "csi"),
    concat!("netboot-", "worker"),
    concat!("netboot-", "base"),
    concat!("pxe-", "server"),
    concat!("vm-smoke-", "target"),
    concat!("baremetal/", "vm-cluster"),
    concat!("legacy/", "manual"),
    concat!("fire", "cracker"),
    concat!("mvi", "sor"),
    concat!("embedded", "cluster"),
    concat!("cluster", "builder"),
    concat!("distributed", "kv"),
];

/// Documents name what is archived, to say that it is.
const DOCUMENTS: &str = "docs/";

/// Every archived name in a path or a text of the tree, whatever its case, `_` and `-` alike.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let files = tree
        .files()
        .iter()
        .filter(|file| !file.path.starts_with(DOCUMENTS));
    files.flat_map(in_file).collect()
}

fn in_file(file: &SourceFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut look = |line: usize, text: &str| {
        if let Some(name) = named(text) {
            let what = format!("{name} is archived: it is not part of what ships (GEN-6)");
            findings.push(Finding::new(&file.path, line, what));
        }
    };
    look(1, &file.path);
    for (number, line) in file.lines() {
        look(number, line);
    }
    findings
}

fn named(text: &str) -> Option<&'static str> {
    let folded = text.to_lowercase().replace('_', "-");
    NAMES.into_iter().find(|name| folded.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_found_in_paths_and_texts_but_not_in_documents() {
        for name in NAMES {
            let text = format!("[package]\nname = \"{name}\"\n");
            let found = check(&Tree::of(&[("control/a/Cargo.toml", &text)]));
            assert_eq!((found.len(), found[0].line), (1, 2), "{name}");
            let path = format!("control/{name}/src/lib.rs");
            assert_eq!(check(&Tree::of(&[(&path, "//! x\n")])).len(), 1, "{name}");
            assert_eq!(check(&Tree::of(&[("docs/a.md", &text)])), [], "{name}");
        }
        let module = format!("mod {};\n", NAMES[1].replace('-', "_"));
        assert_eq!(
            check(&Tree::of(&[("control/a/src/lib.rs", &module)])).len(),
            1
        );
        assert_eq!(
            check(&Tree::of(&[("control/k8shost/src/lib.rs", "//! x\n")])),
            []
        );
    }
}
