//! `result.json`: how a run ended, what it shows and what it does not. Its schema, by which it is checked
//! when it is written, is docs/schema/lane-result.json.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The file's name in a run's directory.
pub(crate) const FILE: &str = "result.json";

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaneResult {
    /// The lane's name.
    pub lane: String,
    /// The run's name.
    pub stamp: String,
    /// Whether every step did what it is for.
    pub success: bool,
    /// Why not.
    pub error: Option<String>,
    /// What runs it again.
    pub command: String,
    /// What of the tree was run.
    pub build: Build,
    /// The tree, as `git describe --always --dirty` names it.
    pub commit: String,
    /// Ids of the contracts that the lane is about; `not_shown` says what of them is open.
    pub contracts: Vec<String>,
    /// What virtual machines ran on. No contract that asks for KVM is shown without it.
    pub vm_accelerator_mode: Accelerator,
    /// Files beside this one that say in plain words what the run is about.
    pub scope_files: Vec<String>,
    /// What belongs to the lane's contracts and is not shown by this run.
    pub not_shown: Vec<NotShown>,
    /// What it ran on and with.
    pub versions: Versions,
    /// When it began, RFC 3339 in UTC.
    pub started: String,
    /// How long it took.
    pub seconds: f64,
    /// In the order in which they ran.
    pub steps: Vec<Step>,
    /// Other files beside this one.
    pub artifacts: Vec<String>,
    /// What a lane's contract wants to read here besides.
    #[serde(flatten)]
    pub facts: BTreeMap<String, Value>,
}

/// What of the tree a run used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Build {
    /// Development builds.
    Development,
    /// Release builds.
    Release,
    /// Its sources alone.
    Sources,
}

/// What virtual machines ran on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    /// There were none.
    None,
    /// QEMU's interpreter.
    Tcg,
    /// The hardware, by KVM.
    Kvm,
}

/// A part of a contract that a run does not show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotShown {
    /// The part.
    pub what: String,
    /// Always false: what was shown is no entry here.
    pub verified_here: bool,
    /// Why.
    pub reason: String,
}

/// What a run used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Versions {
    /// The compiler.
    pub rustc: String,
    /// The kernel's release.
    pub kernel: String,
    /// Programs that are not ours, by name.
    pub clients: BTreeMap<String, String>,
}

/// A step of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Its name.
    pub step: String,
    /// Whether it did what it is for.
    pub success: bool,
    /// How long it took.
    pub seconds: f64,
}

/// Why a run has no result that can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// There is none.
    #[error("no result.json: the run goes on, or it died")]
    Missing,
    /// It is there and says nothing.
    #[error("result.json is broken: {0}")]
    Broken(String),
}

impl LaneResult {
    /// Reads a run's result.
    ///
    /// # Errors
    /// When there is none, or one that is not whole.
    pub fn read(run: &Path) -> Result<LaneResult, Unusable> {
        let text = match fs::read_to_string(run.join(FILE)) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(Unusable::Missing),
            Err(error) => return Err(Unusable::Broken(error.to_string())),
        };
        serde_json::from_str(&text).map_err(|error| Unusable::Broken(error.to_string()))
    }
}
