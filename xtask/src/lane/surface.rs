//! The lane `supported-surface-guard` (contracts SSG-1, GEN-10, GEN-6): what ships is finished, what its
//! services promise is there, and what was archived has not come back.
//!
//! It reads sources, those that git knows, and runs nothing. Each guard is a pure function from the tree to
//! findings, as the checks of `cargo xtask tidy` are, whose check of markers is one of them. A finding
//! fails the lane; `surface.json` has all findings and what was looked at.

mod archived;
mod services;
mod wording;

use anyhow::{Result, bail};
use proof::Accelerator;
use serde_json::{Value, json};

use super::artifacts::{About, Artifacts, Part, Scope};
use crate::tidy::{Finding, Tree, markers};
use crate::workspace::Workspace;

/// What the lane is about.
pub const ABOUT: About = About {
    lane: "supported-surface-guard",
    contracts: &["SSG-1", "GEN-10", "GEN-6"],
    scopes: &[Scope {
        name: "surface",
        words: "Sources and documents are read as they are in the tree; nothing is built or run. That a \
                service answers every method is seen from its code, not from a call.",
    }],
    not_shown: &[
        Part {
            what: "what the servers answer",
            reason: "sources are read, nothing is run: the tests of each service call it",
        },
        Part {
            what: "outputs of the flake",
            reason: "there is no Nix code yet; archived names are looked for in all files but documents",
        },
    ],
    clients: &[],
    accelerator: Accelerator::None,
};

/// Where the code of shipped programs is; tools, measuring and documents are beside it.
const SHIPPED: [&str; 7] = [
    "control/", "engine/", "netdp/", "proto/", "shards/", "storage/", "vmm/",
];

type Guard = fn(&Tree) -> Vec<Finding>;

const GUARDS: [(&str, Guard); 5] = [
    ("unfinished-markers", markers::check),
    ("unfinished-wording", wording::check),
    ("api-stubs", services::stubs),
    ("api-completeness", services::completeness),
    ("archived-names", archived::check),
];

/// Runs every guard; each is a step.
pub fn run(workspace: &Workspace, out: &mut Artifacts) -> Result<()> {
    let tree = out.step("read-the-tree", |_| Tree::load(workspace))?;
    let outcomes: Vec<(&str, Result<()>)> = GUARDS
        .into_iter()
        .map(|(name, guard)| (name, out.step(name, |_| judge(&guard(&tree)))))
        .collect();
    let services = services::described(&tree);
    let methods: usize = services.iter().map(|service| service.methods.len()).sum();
    out.fact("files", tree.files().len());
    out.fact("services", services.len());
    out.fact("methods", methods);
    let said = |outcome: &Result<()>| match outcome {
        Ok(()) => Value::Null,
        Err(error) => json!(format!("{error:#}")),
    };
    let guards = outcomes.iter().map(|(name, outcome)| {
        json!({ "guard": name, "passed": outcome.is_ok(), "findings": said(outcome) })
    });
    let looked_at = json!({
        "guards": guards.collect::<Vec<_>>(),
        "shipped": SHIPPED,
        "services": services.iter().map(services::Service::as_json).collect::<Vec<_>>(),
        "archived": archived::NAMES,
    });
    out.keep("surface", &looked_at)?;
    outcomes.into_iter().try_for_each(|(_, outcome)| outcome)
}

fn judge(findings: &[Finding]) -> Result<()> {
    if findings.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    bail!("{} findings:\n{}", lines.len(), lines.join("\n"))
}

/// Whether a file is code of a shipped program, tests apart.
fn is_shipped(path: &str) -> bool {
    SHIPPED.iter().any(|dir| path.starts_with(dir))
}
