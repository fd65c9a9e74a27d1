//! A load balancer without interfaces: frames go in and come out by `BPF_PROG_TEST_RUN`.

use aya::programs::TestRunOptions;
use fiberlb::apply::Apply;
use fiberlb::desired::{
    Algorithm, Backend, BackendState, Desired, FlowTable, Fragments, Mode, Proto, RingSize,
    Sources, SynCookies, Vip, VipAt,
};
use fiberlb::kernel::KernelTables;
use fiberlb::program::{FiberLb, Options, Program};
use fiberlb::tables::Mirror;
use fiberlb_abi::{Config, Hop};

use crate::frame;
use crate::network::tunnels;

/// The interface that test runs come from: the loopback of the namespace.
pub const HERE: u32 = 1;
/// Any other one.
pub const ELSEWHERE: u32 = 7;

/// One row of a table of packets.
pub struct Case {
    pub name: &'static str,
    pub input: &'static str,
    /// `tx`, `redirect`, `pass` or `drop`.
    pub verdict: &'static str,
    /// Empty when the frame stays as it is.
    pub output: &'static str,
}

pub struct Lab {
    pub lb: FiberLb,
    pub tables: KernelTables,
    pub mirror: Mirror,
    pub generation: u32,
}

impl Lab {
    pub fn new() -> Self {
        Self::with_flows(4096)
    }

    pub fn with_flows(flows_max: u32) -> Self {
        let object = fiberlb::object::read(None).unwrap_or_else(|error| panic!("{error}"));
        let options = Options {
            flows_max,
            pins: None,
        };
        let (lb, tables) = FiberLb::load(&object, &options)
            .unwrap_or_else(|error| panic!("{}", fiberlb::with_causes(&error)));
        let mirror = tables.read().unwrap();
        assert_eq!(mirror, Mirror::default());
        let mut lab = Self {
            lb,
            tables,
            mirror,
            generation: 0,
        };
        lab.configure(|_| {});
        lab
    }

    pub fn configure(&mut self, change: impl FnOnce(&mut Config)) {
        let mut config = tunnels();
        change(&mut config);
        self.tables.set_config(&config).unwrap();
    }

    pub fn apply(&mut self, vips: Vec<Vip>) {
        self.generation += 1;
        let desired = Desired {
            generation: self.generation,
            vips,
        };
        Apply::new(desired, &self.mirror)
            .unwrap()
            .finish(&mut self.mirror, &mut self.tables)
            .unwrap();
    }

    /// What is read back is what was written.
    pub fn assert_mirrored(&self) {
        let read = Mirror {
            rings: self.mirror.rings.clone(),
            ..self.tables.read().unwrap()
        };
        assert_eq!(read, self.mirror);
    }

    pub fn run(&self, program: Program, frame: &[u8]) -> (&'static str, Vec<u8>) {
        let mut out = vec![0; frame.len() + 128];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        };
        let result = self.lb.test_run(program, options).unwrap();
        out.truncate(result.data_size_out as usize);
        let verdict = match result.return_value {
            1 => "drop",
            2 => "pass",
            3 => "tx",
            4 => "redirect",
            other => panic!("verdict {other}"),
        };
        (verdict, out)
    }

    /// As [`Lab::check`] for the program of traffic control, to which `redirect` is what XDP's `tx` is too.
    pub fn check_tc(&mut self, cases: &[Case]) {
        for case in cases {
            let input = frame::build(case.input);
            let mut got = vec![0; input.len() + 128];
            let options = TestRunOptions {
                data_in: Some(&input),
                data_out: Some(&mut got),
                ..TestRunOptions::default()
            };
            let result = self
                .lb
                .test_run_tc(options)
                .unwrap_or_else(|error| panic!("{}", fiberlb::with_causes(&error)));
            got.truncate(result.data_size_out as usize);
            let verdict = match result.return_value.cast_signed() {
                -1 => "pass",
                2 => "drop",
                7 => "redirect",
                other => panic!("verdict {other}"),
            };
            assert_eq!(verdict, case.verdict, "{}", case.name);
            let wanted = match case.output {
                "" => input,
                text => frame::build(text),
            };
            let difference = frame::difference(&got, &wanted);
            assert!(got == wanted, "{}: {difference}", case.name);
        }
    }

    pub fn send(&self, text: &str) -> (&'static str, Vec<u8>) {
        self.run(Program::Balance, &frame::build(text))
    }

    pub fn check(&self, program: Program, cases: &[Case]) {
        for case in cases {
            let Case {
                name,
                input,
                verdict,
                output,
            } = *case;
            self.check_one(program, (name, input), verdict, output);
        }
    }

    /// One case, for tables that are computed.
    pub fn check_one(
        &self,
        program: Program,
        (name, input): (&str, &str),
        verdict: &str,
        output: &str,
    ) {
        let input = frame::build(input);
        let (got_verdict, got) = self.run(program, &input);
        assert_eq!(got_verdict, verdict, "{name}");
        let wanted = match output {
            "" => input,
            text => frame::build(text),
        };
        let difference = frame::difference(&got, &wanted);
        assert!(got == wanted, "{name}: {difference}");
    }

    /// Which of the machines named in frames a packet went to.
    pub fn target(&self, text: &str) -> String {
        let (verdict, out) = self.send(text);
        if verdict == "drop" || verdict == "pass" {
            return verdict.to_owned();
        }
        let names = ["client", "router", "r1", "r2", "r3"];
        let found = names.iter().find(|name| frame::mac(name) == out[..6]);
        (*found.unwrap()).to_owned()
    }
}

/// A backend on the far side of another interface, under the MAC address of a name.
pub fn backend(machine: &str, addr: &str) -> Backend {
    Backend {
        addr: addr.parse().unwrap(),
        port: None,
        weight: 1,
        state: BackendState::Up,
        hop: Some(Hop::new(frame::mac(machine), frame::mac("lb"), ELSEWHERE)),
        mtu: None,
        quic_server: None,
    }
}

pub fn vip(proto: Proto, addr: &str, port: u16, mode: Mode, backends: Vec<Backend>) -> Vip {
    Vip {
        at: VipAt::Port(addr.parse().unwrap(), port),
        proto,
        algorithm: Algorithm::FiveTuple,
        ring: RingSize::Small,
        mode,
        sources: Sources::default(),
        flows: FlowTable::Kept,
        fragments: Fragments::Pass,
        quic: false,
        syn_cookies: SynCookies::Auto,
        backends,
    }
}
