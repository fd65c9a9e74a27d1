//! The table of IPv4's flows: it grows, loses none meanwhile, and when it is full the oldest go.

use aya::maps::{Array, Map, MapData};
use fiberlb::desired::{Mode, Proto};
use fiberlb::kernel::Sweep;
use fiberlb::program::{FiberLb, Options};
use fiberlb_abi::{Addr, Config, FlowKey, LAYOUT, LINES_MIN, map};

use crate::lab::{Lab, backend, vip};
use crate::net::{become_router, run};

const MACHINES: [(&str, &str); 3] = [("r1", "10.1.0.1"), ("r2", "10.1.0.2"), ("r3", "10.1.0.3")];

fn lab(mode: Mode, flows_max: u32) -> Lab {
    let mut lab = Lab::with_flows(flows_max);
    let backends = MACHINES.map(|(machine, addr)| backend(machine, addr));
    lab.apply(vec![vip(
        Proto::Udp,
        "192.0.2.1",
        53,
        mode,
        backends.to_vec(),
    )]);
    lab
}

fn query(port: u16) -> String {
    format!("eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | udp {port} > 53")
}

fn key(port: u16) -> FlowKey {
    let addr = |octets| Addr::v4(u32::from_ne_bytes(octets));
    FlowKey {
        src: addr([10, 0, 0, 9]),
        dst: addr([192, 0, 2, 1]),
        sport: port.to_be(),
        dport: 53_u16.to_be(),
        proto: 17,
    }
}

fn sweep(lab: &mut Lab) -> Sweep {
    let mut sweep = Sweep::default();
    while !lab.tables.sweep(&mut sweep, 0, u64::MAX).unwrap() {}
    sweep
}

#[test]
fn a_table_that_grows_keeps_each_flow_both_ways() {
    let mut lab = lab(Mode::Dnat, 1 << 15);
    let ports = 10_000..16_000_u16;
    let before: Vec<String> = ports.clone().map(|port| lab.target(&query(port))).collect();
    let (lines, floor) = lab.tables.flow_lines();
    assert!(lines > 2 * LINES_MIN, "{lines} lines for 12,000 entries");
    assert_eq!(floor, LINES_MIN);
    // Another ring, so that a flow that is not known would show.
    lab.apply(vec![vip(
        Proto::Udp,
        "192.0.2.1",
        53,
        Mode::Dnat,
        MACHINES
            .map(|(machine, addr)| fiberlb::desired::Backend {
                weight: if machine == "r1" { 1 } else { 9 },
                ..backend(machine, addr)
            })
            .to_vec(),
    )]);
    for (port, before) in ports.clone().zip(&before) {
        assert_eq!(lab.target(&query(port)), *before, "{port}");
        let (_, addr) = MACHINES.iter().find(|(name, _)| name == before).unwrap();
        let reply = format!("eth {before} > lb | ip4 {addr} > 10.0.0.9 | udp 53 > {port}");
        assert_eq!(lab.target(&reply), "client", "{port}");
        assert!(lab.tables.flow(&key(port)).unwrap().is_some(), "{port}");
    }
    let stats = lab.tables.vip_stats(0).unwrap();
    assert_eq!(
        (stats.flows, stats.uncached, stats.replies),
        (6000, 0, 6000)
    );
    assert_eq!(lab.tables.flow(&key(9)).unwrap(), None);
    let open: u64 = sweep(&mut lab).open.values().sum();
    assert_eq!(open, 6000);
}

#[test]
fn flows_move_to_where_the_grown_table_has_them_and_the_floor_follows() {
    let mut lab = lab(Mode::Direct, 1 << 15);
    let ports = 10_000..18_000_u16;
    for port in ports.clone() {
        lab.target(&query(port));
    }
    // Flows that are found elsewhere than the table now would have them move at once.
    for port in ports {
        lab.target(&query(port));
    }
    let (lines, _) = lab.tables.flow_lines();
    let open: u64 = sweep(&mut lab).open.values().sum();
    assert_eq!(open, 8000, "no flow is there twice");
    assert_eq!(lab.tables.flow_lines(), (lines, lines));
    assert_eq!(lab.tables.vip_stats(0).unwrap().flows, 8000);
}

#[test]
fn a_full_table_takes_new_flows_in_the_place_of_old_ones() {
    let mut lab = lab(Mode::Direct, 64);
    for port in 10_000..12_000 {
        let target = lab.target(&query(port));
        assert!(target.starts_with('r'), "{target}");
        assert!(lab.tables.flow(&key(port)).unwrap().is_some(), "{port}");
    }
    let stats = lab.tables.vip_stats(0).unwrap();
    assert_eq!((stats.flows, stats.uncached), (2000, 0));
    let open: u64 = sweep(&mut lab).open.values().sum();
    assert!((64..=128).contains(&open), "{open} of 128 lines");
}

#[test]
fn what_is_swept_is_gone_and_its_line_is_taken_again() {
    let mut lab = lab(Mode::Dnat, 64);
    for turn in 0..20_u16 {
        for port in 0..20 {
            let port = 10_000 + turn * 20 + port;
            assert!(lab.target(&query(port)).starts_with('r'));
        }
        let mut sweep = Sweep::default();
        let later = u64::MAX >> 2;
        while !lab.tables.sweep(&mut sweep, later, 1 << 40).unwrap() {}
        assert_eq!(sweep.expired, 40);
        assert_eq!(lab.tables.flow(&key(10_000 + turn * 20)).unwrap(), None);
    }
    let active: u64 = [1, 2, 3].map(|id| lab.tables.active(id)).iter().sum();
    assert_eq!(active, 0);
}

#[test]
fn maps_of_another_layout_are_refused_and_left_alone() {
    become_router();
    let dir = tempfile::tempdir().unwrap();
    run(&format!("mount -t bpf bpf {}", dir.path().display()));
    let object = fiberlb::object::read(None).unwrap();
    let options = Options {
        flows_max: 64,
        pins: Some(dir.path().to_owned()),
    };
    drop(FiberLb::load(&object, &options).unwrap());
    let pin = dir.path().join(map::CONFIG);
    let open = || Array::<_, Config>::try_from(Map::Array(MapData::from_pin(&pin).unwrap()));
    let other = Config {
        layout: LAYOUT + 1,
        ..open().unwrap().get(&0, 0).unwrap()
    };
    open().unwrap().set(0, other, 0).unwrap();
    let refused = FiberLb::load(&object, &options).err().unwrap();
    assert_eq!(refused.kind, fiberlb::ErrorKind::Pinned);
    let said = refused.to_string();
    assert!(
        said.contains("layout 3") && said.contains("remove"),
        "{said}"
    );
    assert_eq!(open().unwrap().get(&0, 0).unwrap(), other);
}
