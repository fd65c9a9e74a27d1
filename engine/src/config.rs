//! How an engine is set up, checked once: [`EngineConfig::validate`] is the only way to a
//! [`ValidConfig`].

use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::sched::{DiskDepth, GroupSpec, SchedGroup, default_groups};
use crate::sharded::ServiceGroup;

/// When an idle shard stops looking for messages and sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpinPolicy {
    /// Sleep at once.
    Park,
    /// Look for up to the budget, then sleep.
    Always(Duration),
    /// Look for up to the budget while an answer from another shard is due or a message came
    /// within the budget; else sleep at once.
    Adaptive(Duration),
}

/// Which shards run where, and their limits. The defaults suit one node on its own machine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The CPU of each shard; its length is the number of shards, 1 to 64. `None` as an entry
    /// leaves the shard unpinned.
    pub cpus: Vec<Option<usize>>,
    /// Entries of the submission queue, a power of two from 64 to 32,768. The completion queue
    /// has four times as many.
    pub ring_entries: u32,
    /// Most operations in flight on a shard, 64 to 1,048,576.
    pub ops_max: usize,
    /// Bytes of a shard's buffer pool, 2 MiB to 64 GiB.
    pub pool_bytes: usize,
    /// Buffers of 4 KiB in a shard's receive ring, a power of two from 8 to 32,768.
    pub recv_buffers: u16,
    /// What an idle shard does.
    pub spin: SpinPolicy,
    /// How long tasks run before I/O is looked at again.
    pub task_quota: Duration,
    /// A poll longer than this is counted as a stall.
    pub stall_limit: Duration,
    /// Most disk operations in flight on a shard.
    pub disk_ops_max: usize,
    /// Most disk bytes in flight on a shard.
    pub disk_bytes_max: u64,
    /// Messages that fit between two shards, a power of two from 16 to 65,536.
    pub mailbox: usize,
    /// Seed of the shards' random numbers (the simulator uses its own).
    pub seed: u64,
    /// Scheduling groups; the first three are [`SchedGroup`]'s constants. Add by
    /// [`EngineConfig::add_group`].
    pub groups: Vec<GroupSpec>,
    /// Service groups. Add by [`EngineConfig::add_service`].
    pub services: Vec<ServiceGroup>,
}

impl Default for EngineConfig {
    fn default() -> EngineConfig {
        EngineConfig {
            cpus: vec![Some(0)],
            ring_entries: 1024,
            ops_max: 65_536,
            pool_bytes: 32 << 20,
            recv_buffers: 256,
            spin: SpinPolicy::Adaptive(Duration::from_micros(50)),
            task_quota: Duration::from_micros(100),
            stall_limit: Duration::from_micros(500),
            disk_ops_max: 256,
            disk_bytes_max: 64 << 20,
            mailbox: 1024,
            seed: 0x5EED,
            groups: default_groups(),
            services: Vec::new(),
        }
    }
}

impl EngineConfig {
    /// `count` shards, pinned to the first CPUs that the process may use, one each.
    pub fn with_shards(count: usize) -> EngineConfig {
        let allowed = crate::affinity::allowed_cpus();
        let cpus = (0..count).map(|i| allowed.get(i).copied()).collect();
        EngineConfig {
            cpus,
            ..EngineConfig::default()
        }
    }

    /// `count` shards without pinning; for tests and simulations.
    pub fn unpinned(count: usize) -> EngineConfig {
        EngineConfig {
            cpus: vec![None; count],
            ..EngineConfig::default()
        }
    }

    /// Declares a scheduling group beside the three that exist.
    ///
    /// # Panics
    /// When there are 256 groups already.
    pub fn add_group(&mut self, spec: GroupSpec) -> SchedGroup {
        let number = u8::try_from(self.groups.len()).expect("at most 256 groups are declared");
        self.groups.push(spec);
        SchedGroup(number)
    }

    /// Declares a group of cross-shard calls. See [`ServiceGroup`].
    pub fn add_service(
        &mut self,
        name: &'static str,
        level: u8,
        in_flight_max: u32,
        deadline: Duration,
    ) -> ServiceGroup {
        let group = ServiceGroup {
            index: self.services.len() as u16,
            name,
            level,
            in_flight_max,
            deadline,
            sched: SchedGroup::FOREGROUND,
        };
        self.services.push(group);
        group
    }

    /// Checks every limit.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] naming the field, its value and what is allowed.
    pub fn validate(self) -> Result<ValidConfig, Error> {
        let bad = |field: &str, value: String, allowed: &str| {
            Err(Error::new(
                ErrorKind::Config,
                format!("{field} is {value}; allowed: {allowed}"),
            ))
        };
        if self.cpus.is_empty() || self.cpus.len() > 64 {
            return bad("cpus", format!("{} entries", self.cpus.len()), "1 to 64");
        }
        let pinned: Vec<usize> = self.cpus.iter().flatten().copied().collect();
        if let Some(cpu) = pinned
            .iter()
            .find(|c| pinned.iter().filter(|d| d == c).count() > 1)
        {
            return bad("cpus", format!("CPU {cpu} twice"), "one shard a CPU");
        }
        let power =
            |n: usize, low: usize, high: usize| n.is_power_of_two() && (low..=high).contains(&n);
        if !power(self.ring_entries as usize, 64, 32_768) {
            return bad(
                "ring_entries",
                self.ring_entries.to_string(),
                "a power of two, 64 to 32768",
            );
        }
        if !(64..=1 << 20).contains(&self.ops_max) {
            return bad("ops_max", self.ops_max.to_string(), "64 to 1048576");
        }
        if !(2 << 20..=64 << 30).contains(&self.pool_bytes) {
            return bad("pool_bytes", self.pool_bytes.to_string(), "2 MiB to 64 GiB");
        }
        if !power(usize::from(self.recv_buffers), 8, 32_768) {
            return bad(
                "recv_buffers",
                self.recv_buffers.to_string(),
                "a power of two, 8 to 32768",
            );
        }
        if !power(self.mailbox, 16, 65_536) {
            return bad(
                "mailbox",
                self.mailbox.to_string(),
                "a power of two, 16 to 65536",
            );
        }
        if self.disk_ops_max == 0 || self.disk_bytes_max == 0 {
            return bad("disk depth", "0".into(), "at least 1");
        }
        for group in &self.groups {
            for shares in [group.cpu_shares, group.io_shares] {
                if !(1..=10_000).contains(&shares) {
                    return bad(group.name, format!("{shares} shares"), "1 to 10000");
                }
            }
        }
        if let Some(group) = self
            .services
            .iter()
            .find(|s| s.level == 0 || s.in_flight_max == 0)
        {
            return bad(group.name, "level or limit 0".into(), "at least 1");
        }
        Ok(ValidConfig(self))
    }
}

/// A configuration that passed [`EngineConfig::validate`].
#[derive(Clone, Debug)]
pub struct ValidConfig(EngineConfig);

impl ValidConfig {
    /// Number of shards.
    pub fn shards(&self) -> usize {
        self.0.cpus.len()
    }

    pub(crate) fn raw(&self) -> &EngineConfig {
        &self.0
    }

    pub(crate) fn groups(&self) -> &[GroupSpec] {
        &self.0.groups
    }

    pub(crate) fn services(&self) -> usize {
        self.0.services.len()
    }

    pub(crate) fn disk_depth(&self) -> DiskDepth {
        DiskDepth {
            ops_max: self.0.disk_ops_max,
            bytes_max: self.0.disk_bytes_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_limits_name_their_field() {
        assert!(EngineConfig::default().validate().is_ok());
        let mut config = EngineConfig {
            ring_entries: 100,
            ..EngineConfig::default()
        };
        assert!(
            config
                .clone()
                .validate()
                .unwrap_err()
                .to_string()
                .contains("ring_entries is 100")
        );
        config.ring_entries = 128;
        config.cpus = vec![Some(1), Some(1)];
        assert!(
            config
                .validate()
                .unwrap_err()
                .to_string()
                .contains("CPU 1 twice")
        );
    }
}
