//! The tables in the kernel.
//!
//! Rings are filled through a mapping of memory, not by system calls: a ring of 65,537 slots is 128 KiB
//! to write. What the program counts is read here too.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use aya::maps::lpm_trie::Key;
use aya::maps::{
    Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuValues, RingBuf,
};
use aya::util::nr_cpus;
use aya::{Ebpf, Pod};
use fiberlb_abi::{
    Addr, Config, Event, Flow, FlowKey, LAYOUT, PrefixKey, PrefixVip, QuicKey, REALS_MAX, Real,
    RealStats, RingLine, SourceKey, Vip, VipKey, VipStats, map, vip_flags,
};

use crate::error::{Error, ErrorKind, Result};
use crate::flows::Flows;
pub use crate::flows::Sweep;
use crate::gate::Gates;
use crate::mapping::{Mapping, put_map};
use crate::tables::{Mirror, PrefixAt, SourceAt, Tables, is_used};

/// `BPF_F_MMAPABLE | BPF_F_INNER_MAP`, as the program's own rings have them.
const RING_FLAGS: u32 = (1 << 10) | (1 << 12);
/// How often a blocked caller looks after a swap, which takes milliseconds.
const SWAP_POLL: Duration = Duration::from_micros(100);
/// `BPF_MAP_TYPE_ARRAY`.
const MAP_TYPE_ARRAY: u32 = 2;
/// Bits of the key before the address: the protocol's, or the slot's.
const KEY_BITS: u32 = 32;

/// The maps of a loaded program.
pub struct KernelTables {
    vip_slots: HashMap<MapData, VipKey, u32>,
    vip_prefixes: LpmTrie<MapData, PrefixKey, PrefixVip>,
    vips: Array<MapData, Vip>,
    rings: OwnedFd,
    /// A swap of a ring that is on its way.
    swap: Option<JoinHandle<io::Result<()>>>,
    reals: Array<MapData, Real>,
    active: Mapping,
    flows: Flows,
    sources: LpmTrie<MapData, SourceKey, u32>,
    quic_ids: HashMap<MapData, QuicKey, u32>,
    config: Array<MapData, Config>,
    vip_stats: PerCpuArray<MapData, VipStats>,
    real_stats: PerCpuArray<MapData, RealStats>,
    events: RingBuf<MapData>,
    tunnel_ends: HashMap<MapData, Addr, u32>,
    pub(crate) gates: Gates,
}

/// A ring that is being filled.
#[derive(Debug)]
pub struct KernelRing {
    map: MapData,
    memory: Mapping,
}

pub(crate) fn failed(what: impl Into<String>) -> impl FnOnce(MapError) -> Error {
    let what = what.into();
    move |error| Error::with(ErrorKind::Kernel, what, error)
}

pub(crate) fn failed_io(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::with(ErrorKind::Kernel, what, error)
}

/// One map of the object, as its type.
pub(crate) fn take<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<M> {
    let found = ebpf.take_map(name).ok_or_else(|| {
        let what = format!("FiberLB's program has no map {name}");
        Error::new(ErrorKind::Object, what)
    })?;
    M::try_from(found).map_err(failed(format!("map {name} is not what it should be")))
}

/// The data of a map, for what aya has no call for; the map stays with the object.
pub(crate) fn data<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a MapData> {
    match ebpf.map(name) {
        Some(Map::Array(data) | Map::LruHashMap(data) | Map::ArrayOfMaps(data)) => Ok(data),
        _ => Err(Error::new(
            ErrorKind::Object,
            format!("FiberLB's program has no map {name} of the right kind"),
        )),
    }
}

impl KernelTables {
    /// Takes the maps of a loaded object.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Object`] and [`ErrorKind::Kernel`]; [`ErrorKind::Pinned`] when maps were pinned by a
    /// version with another layout.
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let active = data(ebpf, map::ACTIVE)?;
        let active = Mapping::new(active.fd().as_fd(), REALS_MAX as usize)
            .map_err(failed_io("cannot map the counts of open flows"))?;
        let rings = data(ebpf, map::RINGS)?.fd().as_fd().try_clone_to_owned();
        let rings = rings.map_err(failed_io("cannot open the table of rings again"))?;
        let mut tables = Self {
            vip_slots: take(ebpf, map::VIP_SLOTS)?,
            vip_prefixes: take(ebpf, map::VIP_PREFIXES)?,
            vips: take(ebpf, map::VIPS)?,
            rings,
            swap: None,
            reals: take(ebpf, map::REALS)?,
            active,
            flows: Flows::take(ebpf)?,
            sources: take(ebpf, map::SOURCES)?,
            quic_ids: take(ebpf, map::QUIC_IDS)?,
            config: take(ebpf, map::CONFIG)?,
            vip_stats: take(ebpf, map::VIP_STATS)?,
            real_stats: take(ebpf, map::REAL_STATS)?,
            events: take(ebpf, map::EVENTS)?,
            tunnel_ends: take(ebpf, map::TUNNEL_ENDS)?,
            gates: Gates::take(ebpf)?,
        };
        let found = tables.config()?.layout;
        if found == 0 {
            tables.set_config(&Config::default())?;
        } else if found != LAYOUT {
            return Err(Error::new(
                ErrorKind::Pinned,
                format!("the pinned maps have layout {found}, this version has {LAYOUT}"),
            ));
        }
        tables.fill_rules()?;
        Ok(tables)
    }

    /// Whether the kernel is putting a ring in the place of another: until it has, there is nothing to do.
    pub fn is_swapping(&self) -> bool {
        self.swap.as_ref().is_some_and(|swap| !swap.is_finished())
    }

    /// The program's settings.
    pub fn config(&self) -> Result<Config> {
        self.config
            .get(&0, 0)
            .map_err(failed("cannot read the settings"))
    }

    /// Writes the program's settings; the layout is filled in.
    pub fn set_config(&mut self, config: &Config) -> Result<()> {
        let config = Config {
            layout: LAYOUT,
            ..*config
        };
        self.config
            .set(0, config, 0)
            .map_err(failed("cannot write the settings"))
    }

    /// Sets whether tunnels to an address end here.
    pub fn set_tunnel_end(&mut self, addr: &Addr, ends: bool) -> Result<()> {
        let done = if ends {
            self.tunnel_ends.insert(addr, 1, 0)
        } else {
            absent_is_fine(self.tunnel_ends.remove(addr))
        };
        done.map_err(failed("cannot write the ends of tunnels"))
    }

    /// Sets at which addresses tunnels end here, and nowhere else.
    pub fn set_tunnel_ends(&mut self, addrs: &BTreeSet<Addr>) -> Result<()> {
        let keys = self.tunnel_ends.keys();
        let before = keys.collect::<std::result::Result<Vec<Addr>, _>>();
        let before = before.map_err(failed("cannot read the ends of tunnels"))?;
        for addr in addrs {
            self.set_tunnel_end(addr, true)?;
        }
        for addr in before.iter().filter(|addr| !addrs.contains(addr)) {
            self.set_tunnel_end(addr, false)?;
        }
        Ok(())
    }

    /// Reads back what is in the tables.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Kernel`].
    pub fn read(&self) -> Result<Mirror> {
        fn read<K: Ord, V>(
            what: &'static str,
            entries: impl Iterator<Item = std::result::Result<(K, V), MapError>>,
        ) -> Result<BTreeMap<K, V>> {
            let read: std::result::Result<_, _> = entries.collect();
            read.map_err(failed(format!("cannot read {what}")))
        }
        let numbered = |(at, value)| (at as u16, value);
        let vips = read(
            "VIPs",
            self.vips
                .iter()
                .enumerate()
                .map(|(at, vip)| vip.map(|vip| (at, vip))),
        )?;
        let reals = read(
            "backends",
            self.reals
                .iter()
                .enumerate()
                .map(|(at, real)| real.map(|real| (at, real))),
        )?;
        let slot = |(key, slot): (VipKey, u32)| (key, slot as u16);
        let server = |(key, id): (QuicKey, u32)| (key, id as u16);
        let prefix = |(key, vip): (Key<PrefixKey>, PrefixVip)| {
            ((key.data(), key.prefix_len() - KEY_BITS), vip)
        };
        let source = |(key, action): (Key<SourceKey>, u32)| {
            ((key.data(), key.prefix_len() - KEY_BITS), action)
        };
        let mut mirror = Mirror {
            vips: vips
                .into_iter()
                .filter(|(_, vip)| *vip != Vip::default())
                .map(numbered)
                .collect(),
            reals: reals
                .into_iter()
                .filter(|(_, real)| *real != Real::default())
                .map(|(at, real)| (at as u16, real))
                .collect(),
            keys: read("keys of VIPs", self.vip_slots.iter().map(|at| at.map(slot)))?,
            prefixes: read(
                "prefixes",
                self.vip_prefixes.iter().map(|at| at.map(prefix)),
            )?,
            sources: read("sources", self.sources.iter().map(|at| at.map(source)))?,
            quic: read(
                "QUIC servers",
                self.quic_ids.iter().map(|at| at.map(server)),
            )?,
            ..Mirror::default()
        };
        mirror.index();
        Ok(mirror)
    }

    /// Counters of a VIP, summed over CPUs.
    pub fn vip_stats(&self, slot: u16) -> Result<VipStats> {
        let values = self
            .vip_stats
            .get(&u32::from(slot), 0)
            .map_err(failed("cannot read a VIP's counters"))?;
        Ok(values
            .iter()
            .fold(VipStats::default(), |sum, cpu| VipStats {
                packets: sum.packets + cpu.packets,
                bytes: sum.bytes + cpu.bytes,
                flows: sum.flows + cpu.flows,
                refused: sum.refused + cpu.refused,
                uncached: sum.uncached + cpu.uncached,
                no_backend: sum.no_backend + cpu.no_backend,
                dropped: sum.dropped + cpu.dropped,
                replies: sum.replies + cpu.replies,
            }))
    }

    /// Counters of a backend, summed over CPUs.
    pub fn real_stats(&self, id: u16) -> Result<RealStats> {
        let values = self
            .real_stats
            .get(&u32::from(id), 0)
            .map_err(failed("cannot read a backend's counters"))?;
        Ok(values
            .iter()
            .fold(RealStats::default(), |sum, cpu| RealStats {
                packets: sum.packets + cpu.packets,
                bytes: sum.bytes + cpu.bytes,
                flows: sum.flows + cpu.flows,
            }))
    }

    /// Open flows of a backend, as the program counts them.
    pub fn active(&self, id: u16) -> u64 {
        self.active.entries()[usize::from(id)].load(Ordering::Relaxed)
    }

    /// The next event, if one is there.
    pub fn next_event(&mut self) -> Option<Event> {
        let item = self.events.next()?;
        let bytes: &[u8; size_of::<Event>()] = item.as_ref().try_into().ok()?;
        // SAFETY: Event is Pod and the item has its length; the read does not need alignment.
        Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
    }

    /// Lines of IPv4's flow table that are in use, and the fewest at which a flow may have been put that has
    /// not moved since; see `fiberlb_abi::Line`.
    pub fn flow_lines(&self) -> (u32, u32) {
        self.flows.in_use()
    }

    /// One flow of the table.
    pub fn flow(&self, key: &FlowKey) -> Result<Option<Flow>> {
        self.flows.get(key)
    }
}

impl KernelTables {
    /// Looks at some thousand entries: removes those that no packet touched for `idle_ns` before `now_ns`
    /// of the monotonic clock, counts open ones by backend. True at the end of the table.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Kernel`].
    pub fn sweep(&mut self, sweep: &mut Sweep, now_ns: u64, idle_ns: u64) -> Result<bool> {
        let active = self.active.entries();
        self.flows.sweep(sweep, (now_ns, idle_ns), |real| {
            active[usize::from(real)].fetch_sub(1, Ordering::Relaxed);
        })
    }
}

/// Sets the counters of a number that is given out (again) to zero: they are another's from now on.
pub(crate) fn zero<T: Pod + Default>(
    counters: &mut PerCpuArray<MapData, T>,
    at: u16,
) -> Result<()> {
    let cpus = nr_cpus()
        .map_err(|(what, error)| Error::with(ErrorKind::Kernel, what.to_owned(), error))?;
    let zeros = PerCpuValues::try_from(vec![T::default(); cpus]);
    let zeros = zeros.map_err(failed_io("cannot make counters for each CPU"))?;
    let done = counters.set(u32::from(at), zeros, 0);
    done.map_err(failed("cannot set counters to zero"))
}

/// Removing what is not there is removing it.
pub(crate) fn absent_is_fine(
    done: std::result::Result<(), MapError>,
) -> std::result::Result<(), MapError> {
    match done {
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        Err(MapError::KeyNotFound) => Ok(()),
        other => other,
    }
}

impl Tables for KernelTables {
    type Ring = KernelRing;

    fn set_real(&mut self, id: u16, real: &Real) -> Result<()> {
        let failed_read = failed(format!("cannot read backend {id}"));
        let old = self.reals.get(&u32::from(id), 0).map_err(failed_read)?;
        if !is_used(&old) && is_used(real) {
            zero(&mut self.real_stats, id)?;
        }
        let done = self.reals.set(u32::from(id), real, 0);
        done.map_err(failed(format!("cannot write backend {id}")))
    }

    fn new_ring(&mut self, lines: u32) -> Result<KernelRing> {
        let shape = aya_obj::Map::new_from_params(
            MAP_TYPE_ARRAY,
            size_of::<u32>() as u32,
            size_of::<RingLine>() as u32,
            lines,
            RING_FLAGS,
        );
        let map = MapData::create(shape, "ring", None).map_err(failed("cannot make a ring"))?;
        let memory = Mapping::new(map.fd().as_fd(), lines as usize)
            .map_err(failed_io("cannot map a ring"))?;
        Ok(KernelRing { map, memory })
    }

    fn write_ring(&mut self, ring: &mut KernelRing, at: u32, lines: &[RingLine]) {
        let entries = &ring.memory.entries()[at as usize..][..lines.len()];
        for (entry, line) in entries.iter().zip(lines) {
            let [a, b, c, d] = line.reals.map(u16::to_ne_bytes);
            let bytes = [a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]];
            entry.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
        }
    }

    fn swap_ring(&mut self, slot: u16, ring: KernelRing) -> Result<()> {
        // Of two swaps of one slot, the later one must come last. Only who dropped a state on its way waits.
        self.wait_for_swap();
        self.swap = None;
        let rings = self.rings.try_clone();
        let rings = rings.map_err(failed_io("cannot open the table of rings again"))?;
        // The kernel holds the caller for milliseconds, far longer than a shard may be held.
        let put = move || put_map(rings.as_fd(), u32::from(slot), ring.map.fd().as_fd());
        let thread = std::thread::Builder::new().name("fiberlb-swap".into());
        let thread = thread.spawn(put);
        self.swap = Some(thread.map_err(failed_io("cannot start the swap of a ring"))?);
        Ok(())
    }

    fn swapped(&mut self) -> Result<bool> {
        if self.is_swapping() {
            return Ok(false);
        }
        match self.swap.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => Ok(true),
            Some(Ok(Err(error))) => Err(failed_io("cannot swap the ring of a VIP")(error)),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }

    fn wait_for_swap(&mut self) {
        while self.is_swapping() {
            std::thread::sleep(SWAP_POLL);
        }
    }

    fn set_vip(&mut self, slot: u16, vip: &Vip) -> Result<()> {
        let failed_read = failed(format!("cannot read VIP {slot}"));
        let old = self.vips.get(&u32::from(slot), 0).map_err(failed_read)?;
        if (old.flags ^ vip.flags) & vip.flags & vip_flags::LIVE != 0 {
            zero(&mut self.vip_stats, slot)?;
            self.gates.zero(slot)?;
        }
        let done = self.vips.set(u32::from(slot), vip, 0);
        done.map_err(failed(format!("cannot write VIP {slot}")))
    }

    fn set_key(&mut self, key: &VipKey, slot: Option<u16>) -> Result<()> {
        let done = match slot {
            Some(slot) => self.vip_slots.insert(key, u32::from(slot), 0),
            None => absent_is_fine(self.vip_slots.remove(key)),
        };
        self.flows.vips_changed();
        done.map_err(failed("cannot write the key of a VIP"))
    }

    fn set_prefix(&mut self, (key, len): &PrefixAt, vip: Option<PrefixVip>) -> Result<()> {
        let key = Key::new(KEY_BITS + len, *key);
        let done = match vip {
            Some(vip) => self.vip_prefixes.insert(&key, vip, 0),
            None => absent_is_fine(self.vip_prefixes.remove(&key)),
        };
        self.flows.vips_changed();
        done.map_err(failed("cannot write a prefix of VIPs"))
    }

    fn set_source(&mut self, (key, len): &SourceAt, action: Option<u32>) -> Result<()> {
        let key = Key::new(KEY_BITS + len, *key);
        let done = match action {
            Some(action) => self.sources.insert(&key, action, 0),
            None => absent_is_fine(self.sources.remove(&key)),
        };
        done.map_err(failed("cannot write a rule for sources"))
    }

    fn set_quic(&mut self, key: &QuicKey, id: Option<u16>) -> Result<()> {
        let done = match id {
            Some(id) => self.quic_ids.insert(key, u32::from(id), 0),
            None => absent_is_fine(self.quic_ids.remove(key)),
        };
        done.map_err(failed("cannot write a QUIC server"))
    }
}
