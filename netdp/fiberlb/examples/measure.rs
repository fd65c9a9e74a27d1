//! What a packet and a change of a ring cost: `cargo run --release -p fiberlb --example measure`, as root,
//! with `ULTRACLOUD_FIBERLB_OBJECT` naming the object that `cargo xtask bpf --measure` built.
//!
//! The kernel times the program itself (`BPF_PROG_TEST_RUN`), so nothing but the program is in the
//! numbers. A program before the load balancer makes each packet another flow's; what it costs alone is
//! taken off. Each number is the best of many short runs: the machine may be busy.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use aya::maps::{Array, MapData};
use aya::programs::TestRunOptions;
use fiberlb::apply::{Apply, SLICE};
use fiberlb::desired::{
    Algorithm, Backend, BackendState, Desired, FlowTable, Fragments, Mode, Prefix, Proto, RingSize,
    Sources, Vip, VipAt,
};
use fiberlb::kernel::KernelTables;
use fiberlb::object;
use fiberlb::program::{FiberLb, Options, Program};
use fiberlb::tables::Mirror;
use fiberlb_abi::{Config, FLOWS_MAX, Hop};

const BACKENDS: u8 = 100;
const PACKETS: u32 = 50_000;
const RUNS: u32 = 200;

struct Lab {
    lb: FiberLb,
    tables: KernelTables,
    mirror: Mirror,
    walk: Array<MapData, u32>,
}

fn vip(mode: Mode, flows: FlowTable) -> Vip {
    let backends = (1..=BACKENDS).map(|at| Backend {
        addr: Ipv4Addr::new(10, 1, 0, at).into(),
        port: (mode == Mode::Dnat).then_some(5353),
        weight: 1 + u32::from(at) % 3,
        state: BackendState::Up,
        hop: Some(Hop::new([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1], 7)),
        mtu: None,
        quic_server: None,
    });
    let prefix = |addr| Prefix {
        addr: Ipv4Addr::from_octets(addr).into(),
        len: 24,
    };
    Vip {
        at: VipAt::Port(Ipv4Addr::new(192, 0, 2, 1).into(), 53),
        proto: Proto::Udp,
        algorithm: Algorithm::FiveTuple,
        ring: RingSize::Large,
        mode,
        sources: Sources {
            allow: vec![prefix([10, 9, 0, 0])],
            deny: vec![prefix([10, 8, 0, 0])],
            deny_others: false,
        },
        flows,
        fragments: Fragments::Forward,
        quic: false,
        backends: backends.collect(),
    }
}

/// A frame of 64 bytes; addresses and ports are filled in by the program.
fn frame() -> [u8; 64] {
    let mut frame = [0; 64];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 8, 0]);
    frame[14..24].copy_from_slice(&[0x45, 0, 0, 50, 0, 0, 0x40, 0, 64, 17]);
    frame[38..42].copy_from_slice(&[0, 30, 0x12, 0x34]);
    frame
}

impl Lab {
    fn new() -> fiberlb::Result<Self> {
        let object = object::read(None)?;
        let options = Options {
            flows_max: FLOWS_MAX,
            pins: None,
        };
        let (mut lb, mut tables) = FiberLb::load(&object, &options)?;
        let walk = lb.load_for_measuring()?;
        tables.set_config(&Config {
            insert_cost_ns: 1,
            insert_burst_ns: 1 << 32,
            sample_mask: 0xffff,
            gue_port: 6080_u16.to_be(),
            ..Config::default()
        })?;
        Ok(Self {
            lb,
            tables,
            mirror: Mirror::default(),
            walk,
        })
    }

    fn apply(&mut self, vip: Vip) -> fiberlb::Result<Vec<Duration>> {
        let desired = Desired {
            generation: 1,
            vips: vec![vip],
        };
        let mut apply = Apply::new(desired, &self.mirror)?;
        let mut parts = Vec::new();
        loop {
            let began = Instant::now();
            let done = apply.advance(&mut self.mirror, &mut self.tables, SLICE)?;
            parts.push(began.elapsed());
            if done {
                return Ok(parts);
            }
        }
    }

    fn run(&self, program: Program) -> fiberlb::Result<f64> {
        let frame = frame();
        let mut best = Duration::MAX;
        for _ in 0..RUNS {
            let options = TestRunOptions {
                data_in: Some(&frame),
                repeat: PACKETS,
                ..TestRunOptions::default()
            };
            best = best.min(self.lb.test_run(program, options)?.duration);
        }
        // The kernel gives the mean of a packet, in whole nanoseconds.
        Ok(best.as_nanos() as f64)
    }

    /// Mean time of the load balancer over packets that walk over so many flows.
    fn walk(&mut self, flows: u32) -> Result<f64, Box<dyn std::error::Error>> {
        self.walk.set(0, flows, 0)?;
        Ok(self.run(Program::MeasureWalk)? - self.run(Program::MeasureRefill)?)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut lab = Lab::new()?;
    lab.walk.set(0, 4096, 0)?;
    let refill = lab.run(Program::MeasureRefill)?;
    println!("what the measurement costs, taken off below: {refill} ns");
    for (name, mode, flows) in [
        ("DNAT, flow hit", Mode::Dnat, FlowTable::Kept),
        ("direct, flow hit", Mode::Direct, FlowTable::Kept),
        ("direct, no flow table", Mode::Direct, FlowTable::None),
    ] {
        lab.apply(vip(mode, flows))?;
        for flows in [1, 4096, 32_768, 1_000_000] {
            println!("{name}, {flows} flows: {} ns", lab.walk(flows)?);
        }
        // Entries of this mode must not be hit in the next.
        lab = Lab::new()?;
    }
    let mut changed = vip(Mode::Direct, FlowTable::Kept);
    for turn in 0..5 {
        changed.backends[0].weight = 2 + turn;
        let parts = lab.apply(changed.clone())?;
        let total: Duration = parts.iter().sum();
        let most = parts.iter().max().copied().unwrap_or_default();
        println!(
            "ring of 65,537 for {BACKENDS} backends: {total:?} in {} parts, the longest {most:?}",
            parts.len()
        );
    }
    Ok(())
}
