//! Fences: tokio only in the control layer, io-uring only in the engine, unsafe only where the
//! kernel, guest memory, BPF or what not every CPU can is touched; perf may use all three. Every other crate forbids
//! unsafe code at its root.

use toml::Table;

use super::layers::{dependencies, line_of, manifests};
use super::tree::{Finding, SourceFile, Tree};

struct Fence {
    what: &'static str,
    dirs: &'static [&'static str],
}

const TOKIO: Fence = Fence {
    what: "tokio",
    dirs: &["control/", "perf/"],
};
const IO_URING: Fence = Fence {
    what: "io-uring",
    dirs: &["engine/", "perf/"],
};
const UNSAFE: Fence = Fence {
    what: "unsafe",
    dirs: &[
        "engine/",
        "storage/xts/",
        "vmm/vhost/",
        "netdp/fiberlb/",
        "netdp/fiberlb-abi/",
        "netdp/fiberlb-bpf/",
        "perf/",
    ],
};

impl Fence {
    fn holds(&self, path: &str) -> bool {
        self.dirs.iter().any(|dir| path.starts_with(dir))
    }

    fn finding(&self, path: &str, line: usize) -> Finding {
        let dirs = self.dirs.join(", ");
        Finding::new(path, line, format!("{} belongs in {dirs} only", self.what))
    }
}

/// Every dependency, keyword and crate root on the wrong side of a fence.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings: Vec<Finding> = manifests(tree).flat_map(fenced_dependencies).collect();
    for (file, rust) in tree.rust_files() {
        if UNSAFE.holds(&file.path) {
            continue;
        }
        findings.extend(
            rust.unsafe_lines
                .iter()
                .map(|line| UNSAFE.finding(&file.path, *line)),
        );
        if is_crate_root(&file.path) && !rust.forbids_unsafe {
            findings.push(Finding::new(
                &file.path,
                1,
                "the crate does not forbid unsafe_code",
            ));
        }
    }
    findings
}

fn fenced_dependencies(manifest: &SourceFile) -> Vec<Finding> {
    let Ok(table) = manifest.text.parse::<Table>() else {
        return Vec::new();
    };
    dependencies(&table)
        .iter()
        .filter_map(|name| Some((name, fence_of(name)?)))
        .filter(|(_, fence)| !fence.holds(&manifest.path))
        .map(|(name, fence)| fence.finding(&manifest.path, line_of(&manifest.text, name)))
        .collect()
}

fn fence_of(name: &str) -> Option<&'static Fence> {
    match name {
        "io-uring" => Some(&IO_URING),
        _ if name == "tokio" || name.starts_with("tokio-") => Some(&TOKIO),
        _ => None,
    }
}

fn is_crate_root(path: &str) -> bool {
    path.ends_with("src/lib.rs") || path.ends_with("src/main.rs") || path.contains("/src/bin/")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORBIDS: &str = "//! x\n#![forbid(unsafe_code)]\n";

    fn places(files: &[(&str, &str)]) -> Vec<(String, usize)> {
        check(&Tree::of(files))
            .into_iter()
            .map(|found| (found.path, found.line))
            .collect()
    }

    #[test]
    fn runtimes_stay_behind_their_fences() {
        let manifest = "[package]\nname = \"x\"\n[dependencies]\nio-uring.workspace = true\n";
        assert_eq!(places(&[("engine/Cargo.toml", manifest)]), []);
        assert_eq!(places(&[("perf/Cargo.toml", manifest)]), []);
        assert_eq!(
            places(&[("shards/Cargo.toml", manifest)]),
            [("shards/Cargo.toml".into(), 4)]
        );
        let manifest = "[package]\nname = \"x\"\n[dev-dependencies]\ntokio-util = \"0.7\"\n";
        assert_eq!(places(&[("control/iam/Cargo.toml", manifest)]), []);
        assert_eq!(
            places(&[("engine/Cargo.toml", manifest)]),
            [("engine/Cargo.toml".into(), 4)]
        );
    }

    #[test]
    fn unsafe_code_stays_behind_its_fence() {
        let code = format!("{FORBIDS}fn a() {{ unsafe {{ b() }} }}\n");
        assert_eq!(
            places(&[("engine/src/ring.rs", &code), ("vmm/vhost/src/x.rs", &code)]),
            []
        );
        assert_eq!(
            places(&[("shards/src/a.rs", &code)]),
            [("shards/src/a.rs".into(), 3)]
        );
        assert_eq!(
            places(&[("shards/tests/a.rs", &code)]),
            [("shards/tests/a.rs".into(), 3)]
        );
    }

    #[test]
    fn a_crate_root_forbids_unsafe_code() {
        let plain = "//! x\n";
        assert_eq!(
            places(&[("shards/src/lib.rs", plain)]),
            [("shards/src/lib.rs".into(), 1)]
        );
        assert_eq!(
            places(&[("shards/src/lib.rs", FORBIDS), ("shards/src/a.rs", plain)]),
            []
        );
        assert_eq!(places(&[("engine/src/lib.rs", plain)]), []);
    }
}
