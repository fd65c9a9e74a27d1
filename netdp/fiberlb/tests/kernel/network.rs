//! End to end: a client, the load balancer and backends in network namespaces, with curl and with
//! connections that stay open through rings, drains and restarts.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::lab::vip;
use crate::net::{Machine, become_router, run};
use fiberlb::apply::Apply;
use fiberlb::attach::{AttachMode, Attached};
use fiberlb::desired::{Backend, BackendState, Desired, Mode, Proto, Vip, mapped};
use fiberlb::kernel::KernelTables;
use fiberlb::program::{FiberLb, Options, Program};
use fiberlb::tables::Mirror;
use fiberlb_abi::Config;

pub struct Running {
    pins: PathBuf,
    pub lb: FiberLb,
    pub tables: KernelTables,
    mirror: Mirror,
}

pub fn start(pins: &Path) -> Running {
    let object = fiberlb::object::read(None).unwrap_or_else(|error| panic!("{error}"));
    let options = Options {
        flows_max: 4096,
        pins: Some(pins.to_owned()),
    };
    let (lb, tables) = FiberLb::load(&object, &options)
        .unwrap_or_else(|error| panic!("{}", fiberlb::with_causes(&error)));
    let mirror = tables.read().unwrap();
    Running {
        pins: pins.to_owned(),
        lb,
        tables,
        mirror,
    }
}

impl Running {
    /// Where it pins what it attaches.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    pub fn attach(&mut self, machines: &[&Machine]) -> Vec<Attached> {
        self.attach_as(machines, AttachMode::Auto)
    }

    pub fn attach_as(&mut self, machines: &[&Machine], mode: AttachMode) -> Vec<Attached> {
        let lb = &mut self.lb;
        let attach = |machine: &&Machine| lb.attach(Program::Balance, machine.ifindex(), mode);
        let attached = machines.iter().map(attach).collect::<Result<_, _>>();
        attached.unwrap_or_else(|error| panic!("{}", fiberlb::with_causes(&error)))
    }

    pub fn apply(&mut self, vips: Vec<Vip>) {
        let desired = Desired {
            generation: 1,
            vips,
        };
        Apply::new(desired, &self.mirror)
            .unwrap()
            .finish(&mut self.mirror, &mut self.tables)
            .unwrap();
    }
}

fn backend(machine: &Machine, addr: &str, port: Option<u16>) -> Backend {
    Backend {
        port,
        hop: Some(machine.hop()),
        ..crate::lab::backend("r1", addr)
    }
}

/// A bpffs that goes with this thread's mounts.
pub fn bpffs(dir: &Path) {
    run(&format!("mount -t bpf bpf {}", dir.display()));
}

pub fn answers(client: &Machine, url: &str, times: usize) -> BTreeSet<String> {
    let ask = |_| client.run(&format!("curl -s -S --max-time 10 {url}"));
    (0..times).map(ask).collect()
}

pub fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn connections_outlive_rings_drains_and_restarts() {
    become_router();
    let dir = tempfile::tempdir().unwrap();
    bpffs(dir.path());
    let [client, one, two] = [1, 2, 3].map(Machine::new);
    one.serve("0.0.0.0:8080", "b1");
    two.serve("0.0.0.0:8080", "b2");
    one.serve("[::]:8081", "b1");
    let mut web = vip(
        Proto::Tcp,
        "192.0.2.1",
        80,
        Mode::Dnat,
        vec![
            backend(&one, "10.2.0.2", Some(8080)),
            backend(&two, "10.3.0.2", Some(8080)),
        ],
    );
    let web_v6 = vip(
        Proto::Tcp,
        "2001:db8::1",
        80,
        Mode::Dnat,
        vec![backend(&one, "fd00:2::2", Some(8081))],
    );
    let all = |web: &Vip| vec![web.clone(), web_v6.clone()];
    let mut lb = start(dir.path());
    let attached = lb.attach(&[&client, &one, &two]);
    assert_eq!(attached, [Attached::Native; 3]);
    lb.apply(all(&web));
    assert_eq!(
        answers(&client, "http://192.0.2.1/", 30),
        names(&["b1", "b2"])
    );
    assert_eq!(answers(&client, "http://[2001:db8::1]/", 3), names(&["b1"]));

    let mut open: Vec<_> = (0..16).map(|_| client.connect("192.0.2.1:80")).collect();
    let before: Vec<String> = open.iter_mut().map(crate::net::Client::ask).collect();
    assert_eq!(
        before.iter().cloned().collect::<BTreeSet<_>>(),
        names(&["b1", "b2"])
    );
    let mut same = || -> Vec<String> { open.iter_mut().map(crate::net::Client::ask).collect() };
    for turn in 0..20 {
        web.backends[turn % 2].weight += 1;
        lb.apply(all(&web));
        assert_eq!(same(), before, "after ring {turn}");
    }
    web.backends[0].state = BackendState::Draining;
    lb.apply(all(&web));
    assert_eq!(answers(&client, "http://192.0.2.1/", 20), names(&["b2"]));
    assert_eq!(same(), before, "while one backend drains");

    // The process ends: what it pinned goes on.
    drop(lb);
    assert_eq!(same(), before, "without a process");
    assert_eq!(answers(&client, "http://192.0.2.1/", 5), names(&["b2"]));
    let mut lb = start(dir.path());
    let attached = lb.attach(&[&client, &one, &two]);
    assert_eq!(attached, [Attached::TakenOver; 3]);
    assert_eq!(same(), before, "with the next process");
    web.backends[0].state = BackendState::Up;
    lb.apply(all(&web));
    assert_eq!(same(), before);
    assert_eq!(
        answers(&client, "http://192.0.2.1/", 30),
        names(&["b1", "b2"])
    );
    for machine in [&client, &one, &two] {
        lb.lb.detach(machine.ifindex()).unwrap();
    }
    drop(lb);
    let links = run("ip link show");
    assert!(!links.contains("xdp"), "{links}");
}

/// Where tunnels come from, and the port of GUE.
pub fn tunnels() -> Config {
    Config {
        sample_mask: u32::MAX,
        gue_port: 6080_u16.to_be(),
        tunnel_v4: mapped("10.255.0.1".parse().unwrap()),
        tunnel_v6: mapped("2001:db8:ff::1".parse().unwrap()),
        ..Config::default()
    }
}

/// Ends tunnels to these addresses, in the machine whose thread this is.
pub fn tunnel_end(addrs: &[&str]) -> FiberLb {
    let object = fiberlb::object::read(None).unwrap();
    let options = Options {
        flows_max: 64,
        pins: None,
    };
    let (mut lb, mut tables) = FiberLb::load(&object, &options).unwrap();
    tables.set_config(&tunnels()).unwrap();
    for addr in addrs {
        let addr = mapped(addr.parse().unwrap());
        tables.set_tunnel_end(&addr, true).unwrap();
    }
    let eth0 = run("ip -o link show eth0");
    let index = eth0.split(':').next().unwrap().trim().parse().unwrap();
    let mode = AttachMode::Auto;
    lb.attach(Program::Decapsulate, index, mode).unwrap();
    lb
}

#[test]
fn tunnels_reach_backends_that_answer_clients_themselves() {
    become_router();
    let dir = tempfile::tempdir().unwrap();
    bpffs(dir.path());
    let [client, one, two] = [1, 2, 3].map(Machine::new);
    let mut lb = start(dir.path());
    lb.attach(&[&client]);
    lb.tables.set_config(&tunnels()).unwrap();
    let mut ends = Vec::new();
    for (machine, name, addr) in [(&one, "b1", "10.2.0.2"), (&two, "b2", "10.3.0.2")] {
        machine.run("ip addr add 192.0.2.1/32 dev lo");
        machine.serve("0.0.0.0:80", name);
        let end = machine.spawn(move || tunnel_end(&[addr]));
        ends.push(end.join().unwrap());
    }
    let backends = vec![
        backend(&one, "10.2.0.2", None),
        backend(&two, "10.3.0.2", None),
    ];
    for mode in [Mode::Ipip, Mode::Gue, Mode::Direct] {
        lb.apply(vec![vip(
            Proto::Tcp,
            "192.0.2.1",
            80,
            mode,
            backends.clone(),
        )]);
        let answers = answers(&client, "http://192.0.2.1/", 30);
        assert_eq!(answers, names(&["b1", "b2"]), "{mode:?}");
    }
}
