//! From the name of a resource to the shard that owns it, by way of a partition.
//!
//! The hash and the step from hash to partition are part of the on-disk contract: data lives in
//! the directory of its partition, so neither may ever change, and a data directory keeps the
//! number of partitions that it was made with. Which shard owns a partition is not on disk: a
//! restart with another number of shards moves ownership, never data.

use engine::ShardId;

/// A fixed fraction of all resources, the unit in which ownership moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId(pub u16);

impl PartitionId {
    /// The number as an index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

const FNV_OFFSET: u64 = 0xCBF2_9CE4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01B3;

/// The hash of a resource's name, the same for ever and on every machine.
///
/// 64-bit FNV-1a (Fowler, Noll, Vo) over each part's length as eight little-endian bytes and then
/// the part itself, finished with the 64-bit mix of `MurmurHash3` (Appleby), because FNV's high
/// bits, which choose the partition, know little of the last bytes. Not for secrets and not
/// against an adversary: who chooses names chooses partitions.
pub fn resource_hash(parts: &[&[u8]]) -> u64 {
    let mut hash = FNV_OFFSET;
    for part in parts {
        hash = fnv(hash, &(part.len() as u64).to_le_bytes());
        hash = fnv(hash, part);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    hash ^ (hash >> 33)
}

fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME)
    })
}

/// Which shard owns which partition, as of one version. The control layer makes a new map with a
/// higher version for each change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementMap {
    version: u64,
    /// By partition; never empty.
    partitions: Vec<ShardId>,
}

impl PlacementMap {
    /// Version 1: partition `p` on shard `p % shards`.
    ///
    /// # Panics
    /// When either number is 0.
    pub fn spread(partitions: u16, shards: u16) -> PlacementMap {
        assert!(partitions > 0, "a map has partitions");
        assert!(shards > 0, "a map has shards");
        let partitions = (0..partitions).map(|p| ShardId(p % shards)).collect();
        PlacementMap {
            version: 1,
            partitions,
        }
    }

    /// The map's version; versions only grow.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Number of partitions.
    pub fn partitions(&self) -> u16 {
        self.partitions.len() as u16
    }

    /// All partitions with their owners.
    pub fn owners(&self) -> impl Iterator<Item = (PartitionId, ShardId)> + '_ {
        self.partitions
            .iter()
            .enumerate()
            .map(|(p, shard)| (PartitionId(p as u16), *shard))
    }

    /// The partitions of one shard.
    pub fn owned_by(&self, shard: ShardId) -> impl Iterator<Item = PartitionId> + '_ {
        self.owners()
            .filter(move |(_, owner)| *owner == shard)
            .map(|(partition, _)| partition)
    }

    /// The partition of a resource: the hash as a fraction of 2^64, times the number of
    /// partitions.
    pub fn partition_of(&self, hash: u64) -> PartitionId {
        let scaled = u128::from(hash) * self.partitions.len() as u128;
        PartitionId((scaled >> 64) as u16)
    }

    /// The owner of a partition.
    ///
    /// # Panics
    /// When the map has no such partition.
    pub fn shard_of(&self, partition: PartitionId) -> ShardId {
        self.partitions[partition.index()]
    }

    /// The next version, in which one partition has another owner.
    ///
    /// # Panics
    /// When the map has no such partition.
    pub fn moved(&self, partition: PartitionId, to: ShardId) -> PlacementMap {
        let mut next = self.clone();
        next.version += 1;
        next.partitions[partition.index()] = to;
        next
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Computed by an independent program; a change here loses every stored object.
    #[test]
    fn the_hash_and_the_partition_are_what_disks_were_written_with() {
        let every_byte: Vec<u8> = (0..=255).collect();
        let map = PlacementMap::spread(1024, 3);
        let golden: [(&[&[u8]], u64, u16); 7] = [
            (&[], 0xEFD0_1F60_BA99_2926, 959),
            (&[b""], 0x7BD3_144F_29C0_CC9E, 495),
            (&[b"a"], 0xDEA1_3A43_1626_96B9, 890),
            (&[b"a", b"bc"], 0x028D_4ABA_4BF9_93B3, 10),
            (&[b"ab", b"c"], 0x0495_F5D6_4226_8DE7, 18),
            (&[b"bucket", b"path/to/key"], 0xEA6F_C52F_43AA_84AA, 937),
            (&[&every_byte], 0xC37B_22A1_203F_6AB0, 781),
        ];
        for (parts, hash, partition) in golden {
            assert_eq!(resource_hash(parts), hash, "{parts:?}");
            assert_eq!(map.partition_of(hash), PartitionId(partition), "{parts:?}");
        }
    }

    #[test]
    fn the_ends_of_the_hash_are_the_first_and_the_last_partition() {
        for partitions in [1, 2, 1000, u16::MAX] {
            let map = PlacementMap::spread(partitions, 1);
            assert_eq!(map.partition_of(0), PartitionId(0));
            assert_eq!(map.partition_of(u64::MAX), PartitionId(partitions - 1));
        }
    }

    #[test]
    fn similar_names_spread_evenly() {
        let map = PlacementMap::spread(64, 4);
        let mut counts = [0_u32; 64];
        for n in 0..64_000_u32 {
            let key = format!("logs/2026/11/{n:08}");
            counts[map
                .partition_of(resource_hash(&[b"bucket", key.as_bytes()]))
                .index()] += 1;
        }
        // 1,000 each; a binomial spread strays by 6 x 32 once in 10^9.
        assert!(counts.iter().all(|c| (810..1190).contains(c)), "{counts:?}");
    }

    #[test]
    fn a_move_changes_one_owner_and_the_version() {
        let map = PlacementMap::spread(8, 2);
        let next = map.moved(PartitionId(3), ShardId(0));
        assert_eq!((map.version(), next.version()), (1, 2));
        let changed: Vec<_> = map
            .owners()
            .zip(next.owners())
            .filter(|(a, b)| a != b)
            .collect();
        assert_eq!(
            changed,
            [((PartitionId(3), ShardId(1)), (PartitionId(3), ShardId(0)))]
        );
        assert_eq!(next.owned_by(ShardId(1)).count(), 3);
    }

    proptest! {
        #[test]
        fn the_number_of_shards_never_moves_a_resource_to_another_partition(
            hash: u64, partitions in 1..=u16::MAX, shards in 1_u16..64, others in 1_u16..64,
        ) {
            let map = PlacementMap::spread(partitions, shards);
            let partition = map.partition_of(hash);
            prop_assert!(partition.0 < partitions);
            prop_assert!(map.shard_of(partition).0 < shards);
            prop_assert_eq!(partition, PlacementMap::spread(partitions, others).partition_of(hash));
        }

        #[test]
        fn where_the_parts_are_cut_matters(name in "[a-z]{2,20}", a in 0_usize..20, b in 0_usize..20) {
            let (a, b) = (a % name.len(), b % name.len());
            let hash = |at: usize| {
                let (head, tail) = name.split_at(at);
                resource_hash(&[head.as_bytes(), tail.as_bytes()])
            };
            prop_assert_eq!(hash(a) == hash(b), a == b);
        }
    }
}
