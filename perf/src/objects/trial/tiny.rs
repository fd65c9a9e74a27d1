//! Many tiny objects: keys of 30 bytes under folders, bodies of 16 to 64 bytes.
//!
//! Numbers reach the server scattered, so that no key is written beside its neighbours.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};

use super::Lab;
use crate::objects::body;
use crate::objects::fill::{Fill, Method};
use crate::objects::site::Endpoint;

const BUCKET: &str = "/perf-tiny";
/// Objects of one folder.
const FOLDER_KEYS: u64 = 1000;
/// Prime, and above every number of keys: multiplying by it visits each key once.
const STRIDE: u64 = 982_451_653;
/// Objects that a check compares.
const SAMPLES: u32 = 200;

/// The objects of a trial.
#[derive(Clone, Copy)]
pub(super) struct Tiny {
    /// How many.
    pub(super) count: u32,
}

impl Tiny {
    /// The object that is written at this turn.
    fn scattered(self, turn: u32) -> u64 {
        u64::from(turn) * STRIDE % u64::from(self.count)
    }

    /// The path of the object that is written at this turn.
    pub(super) fn path(self, turn: u32) -> String {
        let number = self.scattered(turn);
        format!(
            "{BUCKET}/folder-{:05}/object-{number:010}",
            number / FOLDER_KEYS
        )
    }

    /// Its body, which differs from that of other rounds.
    pub(super) fn body(turn: u32, round: u32) -> Vec<u8> {
        let bytes = 16 + turn as usize % 49;
        body::stored(u64::from(turn) | u64::from(round) << 32, bytes)
    }

    pub(super) fn make_bucket(endpoint: &Endpoint) -> Result<()> {
        endpoint.ask("PUT", BUCKET, "").map(drop)
    }

    /// Writes the objects of the first `count` turns.
    pub(super) fn fill(self, endpoint: &Endpoint, count: u32, round: u32) -> Result<()> {
        let fill = Fill {
            method: Method::Put,
            count,
            path: &|turn| self.path(turn),
            body: &|turn| Self::body(turn, round),
        };
        fill.run(endpoint)
    }

    /// Compares objects that were written in `round`, among the first `count` turns.
    pub(super) fn check(self, endpoint: &Endpoint, count: u32, round: u32) -> Result<()> {
        let mut client = endpoint.client()?;
        let step = (count / SAMPLES).max(1) as usize;
        for turn in (0..count).step_by(step).chain([count - 1]) {
            let path = self.path(turn);
            let target = endpoint.target("GET", &path, "")?;
            let got = client.request("GET", &target, b"")?.ok();
            let got = got.with_context(|| format!("GET {path}"))?;
            ensure!(
                got == Self::body(turn, round),
                "GET {path}: {} bytes that are not what round {round} has put",
                got.len()
            );
        }
        Ok(())
    }

    /// Writes a file of GET targets all over the keys.
    pub(super) fn targets(
        self,
        lab: &Lab<'_>,
        endpoint: &Endpoint,
        count: u32,
    ) -> Result<std::path::PathBuf> {
        let turns = (0..count.min(self.count)).map(|at| {
            let turn = u64::from(at) * u64::from(self.count) / u64::from(count.min(self.count));
            endpoint.target("GET", &self.path(turn as u32), "")
        });
        lab.targets("tiny", turns)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_object_is_written_once_and_not_beside_its_neighbours() {
        for count in [1000, 65_536, 99_999] {
            let tiny = Tiny { count };
            let numbers: BTreeSet<_> = (0..count).map(|turn| tiny.scattered(turn)).collect();
            assert_eq!(numbers.len(), count as usize);
            assert!(tiny.scattered(1).abs_diff(tiny.scattered(0)) > 1);
        }
    }

    #[test]
    fn keys_have_30_bytes_and_bodies_16_to_64_that_differ_by_round() {
        let tiny = Tiny { count: 10_000_000 };
        let key = tiny.path(9_999_999).split_off(BUCKET.len() + 1);
        assert_eq!(key.len(), 30, "{key}");
        let lengths: BTreeSet<_> = (0..100).map(|turn| Tiny::body(turn, 0).len()).collect();
        assert_eq!((lengths.first(), lengths.last()), (Some(&16), Some(&64)));
        assert_ne!(Tiny::body(5, 0), Tiny::body(5, 1));
    }
}
