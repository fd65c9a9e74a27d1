//! A load balancer without interfaces, with one VIP of 100 backends and rules for sources.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::programs::{TestRunAttrs, TestRunOptions};
use fiberlb::apply::{Apply, SLICE};
use fiberlb::attach::{AttachMode, Attached};
use fiberlb::desired::{
    Algorithm, Backend, BackendState, Desired, FlowTable, Fragments, Mode, Prefix, Proto, RingSize,
    Sources, SynCookies, Vip, VipAt, mapped,
};
use fiberlb::kernel::{KernelTables, Sweep};
use fiberlb::object;
use fiberlb::program::{FiberLb, Measuring, Options, Program};
use fiberlb::tables::{Mirror, Tables as _};
use fiberlb_abi::{Config, Hop};

pub const BACKENDS: u8 = 100;
/// Both directions of the most flows that a cell has.
const FLOWS_MAX: u32 = 1 << 21;
/// Packets of a short run.
const PACKETS: u32 = 50_000;
/// Frames that are sent together, as a card's driver takes them.
const BATCH: u32 = 64;
/// How long walks go on before they count, at most: the table finds its size, and the flows their places in
/// it, those of replies with a packet of the next second.
const WARM_MOST: Duration = Duration::from_secs(20);
/// Parts of a state on its way, at most.
const PARTS_MAX: usize = 100_000;

/// Version of IP.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// What a lab balances.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub mode: Mode,
    pub flows: FlowTable,
    pub family: Family,
}

pub struct Lab {
    shape: Shape,
    vip: Vip,
    lb: FiberLb,
    tables: KernelTables,
    mirror: Mirror,
    measuring: Measuring,
}

fn addr(family: Family, net: [u8; 3], host: u8) -> IpAddr {
    let [a, b, c] = net;
    match family {
        Family::V4 => Ipv4Addr::new(a, b, c, host).into(),
        Family::V6 => {
            let [b, c, host] = [b, c, host].map(u16::from);
            Ipv6Addr::new(0x2001, 0xdb8, u16::from(a), b, c, 0, 0, host).into()
        }
    }
}

fn vip(shape: Shape, hop: Hop) -> Vip {
    let family = shape.family;
    let backends = (1..=BACKENDS).map(|at| Backend {
        addr: addr(family, [10, 1, 0], at),
        port: (shape.mode == Mode::Dnat).then_some(5353),
        weight: 1 + u32::from(at) % 3,
        state: BackendState::Up,
        hop: Some(hop),
        mtu: None,
        quic_server: None,
    });
    let prefix = |net| Prefix {
        addr: addr(family, net, 0),
        len: if family == Family::V4 { 24 } else { 80 },
    };
    let at = match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, 1).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    Vip {
        at: VipAt::Port(at, 53),
        proto: Proto::Udp,
        algorithm: Algorithm::FiveTuple,
        ring: RingSize::Large,
        mode: shape.mode,
        sources: Sources {
            allow: vec![prefix([10, 9, 0])],
            deny: vec![prefix([10, 8, 0])],
            deny_others: false,
        },
        flows: shape.flows,
        fragments: Fragments::Forward,
        quic: false,
        syn_cookies: SynCookies::Auto,
        backends: backends.collect(),
    }
}

/// A frame of 64 bytes, or the shortest of IPv6; addresses and ports are filled in by the program.
fn frame(family: Family) -> Vec<u8> {
    let mut frame = vec![0; 64];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9]);
    match family {
        Family::V4 => {
            frame[12..14].copy_from_slice(&[8, 0]);
            frame[14..24].copy_from_slice(&[0x45, 0, 0, 50, 0, 0, 0x40, 0, 64, 17]);
            frame[38..42].copy_from_slice(&[0, 30, 0x12, 0x34]);
        }
        Family::V6 => {
            frame[12..14].copy_from_slice(&[0x86, 0xdd]);
            frame[14..22].copy_from_slice(&[0x60, 0, 0, 0, 0, 10, 17, 64]);
            frame[58..62].copy_from_slice(&[0, 10, 0x12, 0x34]);
        }
    }
    frame
}

impl Lab {
    /// Loads the program and brings its tables to the VIP. Backends are behind an interface that is not there:
    /// nothing is sent by it.
    pub fn new(shape: Shape) -> Result<Self> {
        Self::with_hop(shape, Hop::new([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1], 7))
    }

    /// As [`Lab::new`], with the way to all backends.
    pub fn with_hop(shape: Shape, hop: Hop) -> Result<Self> {
        let object = object::read(None)?;
        let options = Options {
            flows_max: FLOWS_MAX,
            pins: None,
        };
        let (mut lb, mut tables) = FiberLb::load(&object, &options)?;
        let measuring = lb.load_for_measuring()?;
        tables.set_config(&Config {
            insert_cost_ns: 1,
            insert_burst_ns: 1 << 32,
            sample_mask: 0xffff,
            gue_port: 6080_u16.to_be(),
            tunnel_v4: mapped(addr(Family::V4, [10, 255, 0], 1)),
            tunnel_v6: mapped(addr(Family::V6, [10, 255, 0], 1)),
            ..Config::default()
        })?;
        let mut lab = Self {
            shape,
            vip: vip(shape, hop),
            lb,
            tables,
            mirror: Mirror::default(),
            measuring,
        };
        lab.apply()?;
        Ok(lab)
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Brings the tables to the VIP as it is; gives what each part of the work took.
    fn apply(&mut self) -> Result<Vec<Duration>> {
        let desired = Desired {
            generation: 1,
            vips: vec![self.vip.clone()],
        };
        let mut apply = Apply::new(desired, &self.mirror)?;
        let mut parts = Vec::new();
        while parts.len() < PARTS_MAX {
            let began = Instant::now();
            let done = apply.advance(&mut self.mirror, &mut self.tables, SLICE)?;
            parts.push(began.elapsed());
            if done {
                break;
            }
            // Its owner would go on with other work.
            self.tables.wait_for_swap();
        }
        ensure!(parts.len() < PARTS_MAX, "the tables are not as desired");
        Ok(parts)
    }

    /// Changes a weight, and so the ring; gives what that took, and what each part of the work took.
    pub fn another_ring(&mut self, weight: u32) -> Result<(Duration, Vec<Duration>)> {
        self.vip.backends[0].weight = weight;
        let began = Instant::now();
        let parts = self.apply()?;
        Ok((began.elapsed(), parts))
    }

    fn test(&self, program: Program, packets: u32) -> Result<f64> {
        let frame = frame(self.shape.family);
        let options = TestRunOptions {
            data_in: Some(&frame),
            repeat: packets,
            ..TestRunOptions::default()
        };
        // The kernel gives the mean of a packet, in whole nanoseconds.
        Ok(self.lb.test_run(program, options)?.duration.as_nanos() as f64)
    }

    /// Says how many flows packets are to be of.
    pub fn walk_over(&mut self, flows: u32) -> Result<()> {
        let walk = &mut self.measuring.walk;
        walk.set(0, flows, 0).context("set the walk")
    }

    /// Attaches a program to an interface of the network where the calling thread is.
    pub fn attach(&mut self, program: Program, ifindex: u32) -> Result<()> {
        let attached = self.lb.attach(program, ifindex, AttachMode::Native)?;
        ensure!(
            attached == Attached::Native,
            "interface {ifindex} has no XDP of its own"
        );
        Ok(())
    }

    /// Sends packets of the flows, one after the other, by an interface.
    pub fn send(&mut self, by: u32, packets: u32) -> Result<()> {
        let send_by = &mut self.measuring.send_by;
        send_by.set(0, by, 0).context("set the interface")?;
        let options = TestRunOptions {
            data_in: Some(&frame(Family::V4)),
            repeat: packets,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        self.lb.test_run(Program::MeasureSend, options)?;
        Ok(())
    }

    /// How many packets came to where they are counted.
    pub fn received(&self) -> Result<u64> {
        let counts = self.measuring.received.get(&0, 0);
        Ok(counts.context("read the count")?.iter().sum())
    }

    /// Makes so many flows known.
    pub fn warm(&mut self, flows: u32) -> Result<()> {
        self.walk_over(flows)?;
        let began = Instant::now();
        let mut settled = false;
        while !settled {
            ensure!(
                began.elapsed() < WARM_MOST,
                "flows do not find their places"
            );
            self.test(Program::MeasureWalk, flows.max(PACKETS))?;
            let mut sweep = Sweep::default();
            while !self.tables.sweep(&mut sweep, 0, u64::MAX)? {}
            let (lines, floor) = self.tables.flow_lines();
            settled = lines == floor;
        }
        let stats = self.tables.vip_stats(0)?;
        ensure!(
            stats.packets > 0 && stats.dropped == 0 && stats.no_backend == 0,
            "packets do not arrive: {stats:?}"
        );
        if self.shape.flows == FlowTable::Kept {
            ensure!(
                stats.flows >= u64::from(flows) && stats.uncached == 0,
                "flows are not remembered: {stats:?}"
            );
        }
        Ok(())
    }

    /// What the load balancer takes for a packet of a walk over so many flows. Both runs take turns: the machine's
    /// speed changes from one moment to the next.
    pub fn packet_ns(&mut self, flows: u32, runs: u32) -> Result<f64> {
        self.walk_over(flows)?;
        let (mut both, mut alone) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..runs {
            both = both.min(self.test(Program::MeasureWalk, PACKETS)?);
            alone = alone.min(self.test(Program::MeasureRefill, PACKETS)?);
        }
        Ok(both - alone)
    }
}
