//! The program in the kernel, loaded; [`crate::attach`] puts it before interfaces.
//!
//! With a directory of bpffs to pin to, maps outlive the process. The next one opens the pinned maps and loads
//! its own program over them, so no flow is forgotten.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::links::PinnedLink;
use aya::programs::{ProgramError, TestRun, TestRunOptions, TestRunResult, Xdp};
use aya::{Ebpf, EbpfLoader};
use fiberlb_abi::{Config, LAYOUT, LINES_PER_FLOW, WAYS, map, program};

use crate::error::{Error, ErrorKind, Result};
use crate::kernel::{KernelTables, take};

/// How to load.
#[derive(Clone, Debug)]
pub struct Options {
    /// Entries that the table holds for IPv4 and for IPv6 each; a flow by DNAT takes two. Memory for them
    /// is taken at once: 128 bytes for one of IPv4, as many for one of IPv6.
    pub flows_max: u32,
    /// A directory of a bpffs, made when it is missing; without one nothing outlives this process.
    pub pins: Option<PathBuf>,
}

/// Which of the programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    /// The load balancer.
    Balance,
    /// The far end of tunnels.
    Decapsulate,
    /// The load balancer behind what makes each packet another flow's; in objects for measuring alone,
    /// and loaded by [`FiberLb::load_for_measuring`].
    MeasureWalk,
    /// What comes before it, alone.
    MeasureRefill,
    /// Sends packets of many flows; in objects for measuring alone, as the next one.
    MeasureSend,
    /// Counts packets and drops them.
    MeasureReceive,
}

/// What the programs that measure are told, and tell.
pub struct Measuring {
    /// Over how many flows they walk.
    pub walk: Array<MapData, u32>,
    /// The interface by which they send.
    pub send_by: Array<MapData, u32>,
    /// How many packets they received.
    pub received: PerCpuArray<MapData, u64>,
}

/// The programs in the kernel. Dropping it detaches what is not pinned.
#[derive(Debug)]
pub struct FiberLb {
    pub(crate) ebpf: Ebpf,
    pub(crate) pins: Option<PathBuf>,
    /// Attachments that are pinned, by interface: held so that they can be ended.
    pub(crate) pinned: BTreeMap<u32, PinnedLink>,
}

/// 64 GiB.
const LINES_MAX: u32 = 1 << 30;

/// Names of the maps that are pinned.
pub const MAPS: [&str; 25] = [
    map::VIP_SLOTS,
    map::VIP_PREFIXES,
    map::VIPS,
    map::RINGS,
    map::REALS,
    map::ACTIVE,
    map::FLOWS_V4,
    map::SHAPE,
    map::LOCKS,
    map::FLOWS_V6,
    map::SOURCES,
    map::QUIC_IDS,
    map::CONFIG,
    map::INSERTS,
    map::TURNS,
    map::VIP_STATS,
    map::REAL_STATS,
    map::EVENTS,
    map::TUNNEL_ENDS,
    map::PROVED_INSERTS,
    map::ANSWER_RULES,
    map::TELLINGS,
    map::GATES,
    map::PROVED,
    map::ANSWER_STATS,
];

impl Program {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Balance => program::BALANCE,
            Self::Decapsulate => program::DECAPSULATE,
            Self::MeasureWalk => program::MEASURE_WALK,
            Self::MeasureRefill => program::MEASURE_REFILL,
            Self::MeasureSend => program::MEASURE_SEND,
            Self::MeasureReceive => program::MEASURE_RECEIVE,
        }
    }
}

impl FiberLb {
    /// Loads the programs of an object (see [`crate::object::read`]), over pinned maps where there are.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Object`], [`ErrorKind::Kernel`] and [`ErrorKind::Pinned`].
    pub fn load(object: &[u8], options: &Options) -> Result<(Self, KernelTables)> {
        let mut loader = EbpfLoader::new();
        let lines = options.flows_max.saturating_mul(LINES_PER_FLOW);
        let lines = lines.clamp(WAYS, LINES_MAX).next_power_of_two();
        loader.map_max_entries(map::FLOWS_V4, lines);
        loader.map_max_entries(map::FLOWS_V6, options.flows_max);
        if let Some(dir) = &options.pins {
            std::fs::create_dir_all(dir).map_err(|error| {
                let what = format!("cannot make {} for pins", dir.display());
                Error::with(ErrorKind::Pinned, what, error)
            })?;
            check_layout(dir)?;
            for name in MAPS {
                loader.map_pin_path(name, dir.join(name));
            }
        }
        let mut ebpf = loader.load(object).map_err(|error| {
            let what = "cannot make the maps of FiberLB's program";
            Error::with(ErrorKind::Object, what, error)
        })?;
        load_programs(&mut ebpf, &[Program::Balance, Program::Decapsulate])?;
        let tables = KernelTables::take(&mut ebpf)?;
        let loaded = Self {
            ebpf,
            pins: options.pins.clone(),
            pinned: BTreeMap::new(),
        };
        Ok((loaded, tables))
    }

    /// Loads the programs that measure.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Object`] when the object was not built for it, and [`ErrorKind::Kernel`].
    pub fn load_for_measuring(&mut self) -> Result<Measuring> {
        let programs = [
            Program::MeasureWalk,
            Program::MeasureRefill,
            Program::MeasureSend,
            Program::MeasureReceive,
        ];
        load_programs(&mut self.ebpf, &programs)?;
        Ok(Measuring {
            walk: take(&mut self.ebpf, map::WALK)?,
            send_by: take(&mut self.ebpf, map::SEND_BY)?,
            received: take(&mut self.ebpf, map::RECEIVED)?,
        })
    }

    /// Runs a program on a frame without any interface (`BPF_PROG_TEST_RUN`).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Kernel`].
    pub fn test_run(&self, program: Program, options: TestRunOptions<'_>) -> Result<TestRunResult> {
        let xdp: &Xdp = self
            .ebpf
            .program(program.name())
            .ok_or_else(|| missing(program))?
            .try_into()
            .map_err(|error| kernel("it is not XDP's", error))?;
        xdp.test_run(options)
            .map_err(|error| kernel("cannot run a program on a frame", error))
    }

    /// As [`FiberLb::test_run`], of the load balancer for traffic control.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Kernel`], also when the kernel refuses the program.
    pub fn test_run_tc(&mut self, options: TestRunOptions<'_>) -> Result<TestRunResult> {
        let ran = self.tc()?.test_run(options);
        ran.map_err(|error| kernel("cannot run a program on a frame", error))
    }
}

/// Refuses maps that another version pinned: what they hold cannot be read as what it should be.
fn check_layout(dir: &Path) -> Result<()> {
    let pin = dir.join(map::CONFIG);
    if !pin.exists() {
        return Ok(());
    }
    let failed = |error| {
        let what = format!("cannot open the pinned map {}", pin.display());
        Error::with(ErrorKind::Pinned, what, error)
    };
    let config = MapData::from_pin(&pin).map_err(failed)?;
    let bytes = config.info().map_err(failed)?.value_size();
    let found = if bytes as usize == size_of::<Config>() {
        let config: Array<_, Config> =
            Array::try_from(aya::maps::Map::Array(config)).map_err(failed)?;
        config.get(&0, 0).map_err(failed)?.layout
    } else {
        1
    };
    // 0: whoever made the maps ended before it wrote to them.
    if found == 0 || found == LAYOUT {
        return Ok(());
    }
    let what = format!(
        "the maps in {} have layout {found}, this version has {LAYOUT}: remove the directory, which \
         ends the flows that they hold, or give this version another one",
        dir.display()
    );
    Err(Error::new(ErrorKind::Pinned, what))
}

fn load_programs(ebpf: &mut Ebpf, programs: &[Program]) -> Result<()> {
    for program in programs {
        let what = format!("the kernel refuses FiberLB's program {}", program.name());
        let loaded = xdp_mut(ebpf, *program)?.load();
        loaded.map_err(|error| Error::with(ErrorKind::Kernel, what, error))?;
    }
    Ok(())
}

pub(crate) fn missing(program: Program) -> Error {
    let what = format!("the object has no program {}", program.name());
    Error::new(ErrorKind::Object, what)
}

pub(crate) fn kernel(what: &str, error: ProgramError) -> Error {
    Error::with(ErrorKind::Kernel, what, error)
}

pub(crate) fn xdp_mut(ebpf: &mut Ebpf, program: Program) -> Result<&mut Xdp> {
    let found = ebpf
        .program_mut(program.name())
        .ok_or_else(|| missing(program))?;
    found
        .try_into()
        .map_err(|error| kernel("it is not XDP's", error))
}
