//! Layering: a crate depends on crates of a lower rank only, tests and build scripts included.
//!
//! The rank is the directory's. Storage, vmm and netdp share one, so they never see each other.
//! Crates of the control layer may use each other; perf and xtask may use everything, and nothing
//! uses them.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::tree::{Finding, SourceFile, Tree};

/// Edges between crates of one rank-3 area: (from, to).
const SIBLINGS: [(&str, &str); 6] = [
    ("coronafs", "segment-log"),
    ("coronafs", "xts"),
    ("fiberlb", "fiberlb-abi"),
    ("fiberlb-bpf", "fiberlb-abi"),
    ("lightningstor", "segment-log"),
    ("vhost-blk", "guest"),
];

const DEPENDENCY_TABLES: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rank {
    /// Below the layers: what build scripts of API crates share.
    Build,
    Layer(u8),
    /// Beside the layers: perf and xtask.
    Outside,
}

const CONTROL: Rank = Rank::Layer(4);

struct Crate<'a> {
    manifest: &'a SourceFile,
    name: String,
    rank: Rank,
    uses: Vec<String>,
}

/// Every edge between two crates of the workspace that goes the wrong way.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut crates = Vec::new();
    for manifest in manifests(tree) {
        match read(manifest) {
            Ok(Some(found)) => crates.push(found),
            Ok(None) => {}
            Err(finding) => findings.push(finding),
        }
    }
    let ranks: BTreeMap<&str, Rank> = crates
        .iter()
        .map(|found| (found.name.as_str(), found.rank))
        .collect();
    for from in &crates {
        for to in &from.uses {
            let Some(rank) = ranks.get(to.as_str()) else {
                continue;
            };
            if !allowed(from, (to, *rank)) {
                let line = line_of(&from.manifest.text, to);
                let what = format!(
                    "{} must not depend on {to}: edges go to a lower rank",
                    from.name
                );
                findings.push(Finding::new(&from.manifest.path, line, what));
            }
        }
    }
    findings
}

/// The manifests of the tree, the root's included.
pub fn manifests(tree: &Tree) -> impl Iterator<Item = &SourceFile> {
    tree.files()
        .iter()
        .filter(|file| file.path.rsplit('/').next() == Some("Cargo.toml"))
}

/// The names of all dependencies that a manifest declares, for every kind and target.
pub fn dependencies(manifest: &Table) -> Vec<String> {
    let mut tables = vec![manifest];
    if let Some(Value::Table(targets)) = manifest.get("target") {
        tables.extend(targets.values().filter_map(Value::as_table));
    }
    let mut names = Vec::new();
    for table in tables {
        for kind in DEPENDENCY_TABLES {
            let Some(Value::Table(entries)) = table.get(kind) else {
                continue;
            };
            for (key, entry) in entries {
                let renamed = entry.get("package").and_then(Value::as_str);
                names.push(renamed.unwrap_or(key).to_owned());
            }
        }
    }
    names
}

/// The line on which a manifest names a dependency, 1 when it cannot be told.
pub fn line_of(text: &str, name: &str) -> usize {
    let names = |line: &str| {
        line.trim_start()
            .strip_prefix(name)
            .is_some_and(|rest| rest.starts_with([' ', '.', '=']))
    };
    text.lines().position(names).map_or(1, |index| index + 1)
}

fn read(manifest: &SourceFile) -> Result<Option<Crate<'_>>, Finding> {
    let table: Table = manifest
        .text
        .parse()
        .map_err(|error| Finding::new(&manifest.path, 1, format!("does not parse: {error}")))?;
    let Some(name) = table.get("package").and_then(|package| package.get("name")) else {
        return Ok(None);
    };
    let name = name.as_str().unwrap_or_default().to_owned();
    let Some(rank) = rank(&manifest.path) else {
        return Err(Finding::new(
            &manifest.path,
            1,
            format!("{name} is in a directory of no rank"),
        ));
    };
    Ok(Some(Crate {
        manifest,
        name,
        rank,
        uses: dependencies(&table),
    }))
}

fn rank(path: &str) -> Option<Rank> {
    if path.starts_with("proto/build/") {
        return Some(Rank::Build);
    }
    Some(match path.split('/').next()? {
        "proto" => Rank::Layer(0),
        "engine" => Rank::Layer(1),
        "shards" => Rank::Layer(2),
        "storage" | "vmm" | "netdp" => Rank::Layer(3),
        "control" => CONTROL,
        "perf" | "xtask" => Rank::Outside,
        _ => return None,
    })
}

fn allowed(from: &Crate, (to, to_rank): (&str, Rank)) -> bool {
    match (from.rank, to_rank) {
        // A crate names itself only to switch features on for its own tests.
        _ if from.name == to => true,
        (_, Rank::Outside) | (Rank::Build, _) => false,
        (Rank::Outside, _) | (CONTROL, CONTROL) | (_, Rank::Build) => true,
        (Rank::Layer(own), Rank::Layer(other)) if own == other => {
            SIBLINGS.contains(&(from.name.as_str(), to))
        }
        (Rank::Layer(own), Rank::Layer(other)) => other < own,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str, rest: &str) -> String {
        format!("[package]\nname = \"{name}\"\n\n[dependencies]\n{rest}\n")
    }

    /// The findings of a tree with every rank, where `path` gets the dependencies `rest`.
    fn findings(path: &str, rest: &str) -> Vec<Finding> {
        let crates = [
            ("proto/build", "api-build"),
            ("proto/s3", "s3-wire"),
            ("engine", "engine"),
            ("shards", "shards"),
            ("storage/log", "segment-log"),
            ("storage/lightningstor", "lightningstor"),
            ("netdp/fiberlb", "fiberlb"),
            ("control/iam", "iam"),
            ("control/ultracloud", "ultracloud"),
            ("perf", "perf"),
            ("xtask", "xtask"),
        ];
        let files: Vec<(String, String)> = crates
            .iter()
            .map(|(dir, name)| {
                let text = manifest(name, if *dir == path { rest } else { "" });
                (format!("{dir}/Cargo.toml"), text)
            })
            .collect();
        let files: Vec<(&str, &str)> = files
            .iter()
            .map(|(path, text)| (path.as_str(), text.as_str()))
            .collect();
        check(&Tree::of(&files))
    }

    #[test]
    fn edges_downwards_and_inside_control_are_fine() {
        for (path, uses) in [
            ("engine", "s3-wire.workspace = true"),
            ("proto/s3", "api-build.workspace = true"),
            ("shards", "engine.workspace = true"),
            (
                "storage/lightningstor",
                "shards.workspace = true\nsegment-log.workspace = true",
            ),
            (
                "control/ultracloud",
                "iam.workspace = true\nlightningstor.workspace = true",
            ),
            (
                "perf",
                "engine.workspace = true\nultracloud.workspace = true",
            ),
            ("engine", "serde.workspace = true"),
        ] {
            assert_eq!(findings(path, uses), [], "{path}");
        }
    }

    #[test]
    fn edges_upwards_and_sideways_are_found_with_their_line() {
        for (path, uses) in [
            ("proto/s3", "engine.workspace = true"),
            ("proto/build", "s3-wire.workspace = true"),
            ("engine", "shards = { path = \"../shards\" }"),
            ("storage/log", "lightningstor.workspace = true"),
            ("netdp/fiberlb", "segment-log.workspace = true"),
            ("storage/log", "x = { package = \"fiberlb\", path = \"p\" }"),
            ("control/iam", "perf.workspace = true"),
            ("perf", "xtask.workspace = true"),
            ("engine", "\n[dev-dependencies]\nshards.workspace = true"),
            (
                "engine",
                "\n[target.'cfg(loom)'.dev-dependencies]\nshards.workspace = true",
            ),
        ] {
            let found = findings(path, uses);
            assert_eq!(found.len(), 1, "{path}: {uses}");
            assert_eq!(found[0].path, format!("{path}/Cargo.toml"));
        }
        assert_eq!(findings("proto/s3", "engine.workspace = true")[0].line, 5);
    }

    #[test]
    fn a_crate_in_a_directory_of_no_rank_is_found() {
        let tree = Tree::of(&[("misc/Cargo.toml", &manifest("misc", ""))]);
        assert!(check(&tree)[0].what.contains("no rank"));
    }
}
