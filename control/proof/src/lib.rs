//! The work root: what proof lanes leave, and how it is read, measured and pruned.
//!
//! ```text
//! ROOT/LANE/STAMP/result.json    how a run ended: a LaneResult, docs/schema/lane-result.json
//! ROOT/LANE/STAMP/*-scope.txt    in plain words, what a run is about and what it is not
//! ROOT/LANE/STAMP/...            what the run kept
//! ROOT/LANE/latest               a link to the newest STAMP
//! ```
//!
//! ROOT is what `ULTRACLOUD_WORK_ROOT` names, else `work` below a directory of the caller's. A stamp is
//! the run's start in UTC, so that the order of names is the order of runs. A run that died has a stamp
//! and no `result.json`; that is told, never passed over. Nothing outside of the root is ever removed, and
//! no link is followed.

#![forbid(unsafe_code)]

mod budget;
mod error;
mod prune;
mod result;
mod root;
mod stamp;

pub use budget::{BUDGET_GIB_VARIABLE, Budget, LaneUsage, Usage};
pub use error::{Error, ErrorKind};
pub use prune::Pruned;
pub use result::{Accelerator, Build, LaneResult, NotShown, Step, Unusable, Versions};
pub use root::{Proof, ROOT_VARIABLE, RunDir, WorkRoot};
pub use stamp::Stamp;
