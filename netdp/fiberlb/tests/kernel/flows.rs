//! Flows: which backend a new one gets, and what keeps an old one where it is.

use std::collections::{BTreeMap, BTreeSet};

use crate::lab::{Lab, backend, vip};
use fiberlb::desired::{Algorithm, BackendState, Mode, Proto, RingSize, Vip};
use fiberlb::kernel::Sweep;

const MACHINES: [(&str, &str); 3] = [("r1", "10.1.0.1"), ("r2", "10.1.0.2"), ("r3", "10.1.0.3")];

fn web(algorithm: Algorithm) -> Vip {
    let backends = MACHINES.map(|(machine, addr)| backend(machine, addr));
    Vip {
        algorithm,
        ..vip(Proto::Tcp, "192.0.2.1", 80, Mode::Direct, backends.to_vec())
    }
}

fn tcp(client: &str, port: u32, flags: &str) -> String {
    format!("eth client > lb | ip4 {client} > 192.0.2.1 | tcp {port} > 80 flags {flags}")
}

fn targets(lab: &Lab, flags: &str, ports: std::ops::Range<u32>) -> Vec<String> {
    ports
        .map(|port| lab.target(&tcp("10.0.0.9", port, flags)))
        .collect()
}

fn shares(targets: &[String]) -> BTreeMap<&str, usize> {
    let mut shares = BTreeMap::new();
    for target in targets {
        *shares.entry(target.as_str()).or_default() += 1;
    }
    shares
}

#[test]
fn known_flows_stay_through_a_thousand_rings() {
    let mut lab = Lab::new();
    let mut vip = web(Algorithm::FiveTuple);
    lab.apply(vec![vip.clone()]);
    let before = targets(&lab, "S", 4000..4200);
    assert_eq!(shares(&before).len(), 3);
    for turn in 0..1000 {
        for (at, backend) in vip.backends.iter_mut().enumerate() {
            let drained = turn % 4 == at;
            backend.state = if drained {
                BackendState::Draining
            } else {
                BackendState::Up
            };
            backend.weight = 1 + (turn + at) as u32 % 3;
        }
        lab.apply(vec![vip.clone()]);
        let port = 4000 + turn as u32 % 200;
        let now = lab.target(&tcp("10.0.0.9", port, "A"));
        assert_eq!(now, before[turn % 200], "after ring {turn}");
    }
    assert_eq!(targets(&lab, "A", 4000..4200), before);
    assert_eq!(lab.tables.vip_stats(0).unwrap().flows, 200);
}

#[test]
fn a_draining_backend_keeps_its_flows_and_gets_no_new_ones() {
    let mut lab = Lab::new();
    let mut vip = web(Algorithm::FiveTuple);
    lab.apply(vec![vip.clone()]);
    let before = targets(&lab, "S", 4000..4060);
    vip.backends[0].state = BackendState::Draining;
    lab.apply(vec![vip.clone()]);
    assert_eq!(targets(&lab, "A", 4000..4060), before);
    assert!(!targets(&lab, "S", 5000..5060).contains(&"r1".to_owned()));
    // A connection that begins on the ports of an old one is a new flow.
    assert!(!targets(&lab, "S", 4000..4060).contains(&"r1".to_owned()));
    assert_eq!(lab.tables.active(1), 0);
}

#[test]
fn flows_of_a_backend_that_is_down_go_elsewhere_and_stay_there() {
    let mut lab = Lab::new();
    let mut vip = web(Algorithm::FiveTuple);
    lab.apply(vec![vip.clone()]);
    let before = targets(&lab, "S", 4000..4060);
    vip.backends[0].state = BackendState::Down;
    lab.apply(vec![vip.clone()]);
    let moved = targets(&lab, "A", 4000..4060);
    for (before, now) in before.iter().zip(&moved) {
        assert!(if before == "r1" {
            now != "r1"
        } else {
            now == before
        });
    }
    vip.backends[0].state = BackendState::Up;
    lab.apply(vec![vip.clone()]);
    assert_eq!(targets(&lab, "A", 4000..4060), moved);
    for backend in &mut vip.backends {
        backend.state = BackendState::Down;
    }
    lab.apply(vec![vip]);
    assert_eq!(lab.target(&tcp("10.0.0.9", 4000, "A")), "drop");
    assert_eq!(lab.tables.vip_stats(0).unwrap().no_backend, 1);
}

#[test]
fn an_identifier_that_is_used_again_takes_over_no_flow() {
    let mut lab = Lab::new();
    let only = |machine, addr| {
        let mut vip = web(Algorithm::FiveTuple);
        vip.backends = vec![backend(machine, addr), backend("router", "10.1.0.99")];
        vip
    };
    lab.apply(vec![only("r1", "10.1.0.1")]);
    let before = targets(&lab, "S", 4000..4040);
    lab.apply(vec![only("r2", "10.1.0.2")]);
    lab.apply(vec![only("r3", "10.1.0.3")]);
    let reused = lab
        .mirror
        .reals
        .iter()
        .filter(|(_, real)| real.generation == 2);
    assert_eq!(reused.count(), 1, "the identifier was given out again");
    let after = targets(&lab, "A", 4000..4040);
    let stayed = before
        .iter()
        .zip(&after)
        .filter(|(before, _)| *before == "router");
    assert!(stayed.clone().count() > 5);
    assert!(stayed.into_iter().all(|(_, after)| after == "router"));
    // Had the stale entries matched, all of these would be the newcomer's.
    let others = before
        .iter()
        .zip(&after)
        .filter(|(before, _)| *before == "r1");
    assert!(others.clone().any(|(_, after)| after == "r3"));
    assert_eq!(lab.tables.vip_stats(0).unwrap().no_backend, 0);
}

#[test]
fn a_number_that_is_used_again_counts_from_zero() {
    let mut lab = Lab::new();
    let vip = web(Algorithm::FiveTuple);
    lab.apply(vec![vip.clone()]);
    targets(&lab, "S", 4000..4040);
    let counted = |lab: &Lab| {
        let reals: u64 = [1, 2, 3]
            .map(|id| lab.tables.real_stats(id).unwrap().flows)
            .iter()
            .sum();
        (lab.tables.vip_stats(0).unwrap().flows, reals)
    };
    assert_eq!(counted(&lab), (40, 40));
    lab.apply(vec![vip.clone()]);
    assert_eq!(counted(&lab), (40, 40), "nothing changed");
    lab.apply(Vec::new());
    assert_eq!(
        counted(&lab),
        (40, 40),
        "what they counted last can be read"
    );
    lab.apply(vec![vip]);
    assert_eq!(counted(&lab), (0, 0));
}

#[test]
fn a_vip_that_took_anothers_slot_takes_over_no_flow() {
    let mut lab = Lab::new();
    lab.apply(vec![web(Algorithm::FiveTuple)]);
    targets(&lab, "S", 4000..4010);
    lab.apply(Vec::new());
    assert_eq!(lab.target(&tcp("10.0.0.9", 4000, "A")), "pass");
    let mut other = web(Algorithm::FiveTuple);
    other.at = fiberlb::desired::VipAt::Port("192.0.2.2".parse().unwrap(), 80);
    lab.apply(vec![other]);
    assert_eq!(lab.target(&tcp("10.0.0.9", 4000, "A")), "pass");
}

#[test]
fn open_flows_are_counted_until_they_close() {
    let mut lab = Lab::new();
    let mut vip = web(Algorithm::FiveTuple);
    vip.backends.truncate(1);
    lab.apply(vec![vip]);
    targets(&lab, "S", 4000..4010);
    assert_eq!(lab.tables.active(1), 10);
    targets(&lab, "A", 4000..4010);
    assert_eq!(lab.tables.active(1), 10);
    targets(&lab, "FA", 4000..4003);
    targets(&lab, "FA", 4000..4003);
    assert_eq!(lab.tables.active(1), 7);
    targets(&lab, "R", 4003..4005);
    assert_eq!(lab.tables.active(1), 5);
    targets(&lab, "S", 4000..4001);
    assert_eq!(lab.tables.active(1), 6);
    let mut sweep = Sweep::default();
    while !lab.tables.sweep(&mut sweep, 0, u64::MAX).unwrap() {}
    assert_eq!((sweep.open[&1], sweep.expired), (6, 0));
    let mut sweep = Sweep::default();
    while !lab
        .tables
        .sweep(&mut sweep, u64::MAX >> 2, 1 << 40)
        .unwrap()
    {}
    assert_eq!((sweep.open.len(), sweep.expired), (0, 10));
    assert_eq!(lab.tables.active(1), 0);
}

#[test]
fn round_robin_takes_turns_by_weight() {
    let mut lab = Lab::new();
    let mut vip = web(Algorithm::RoundRobin);
    vip.backends[0].weight = 4;
    vip.backends[1].weight = 2;
    lab.apply(vec![vip]);
    // Turns are a CPU's own, and the kernel may move this test to another one.
    let all = targets(&lab, "S", 4000..4700);
    let shares = shares(&all);
    for (machine, wanted) in [("r1", 400), ("r2", 200), ("r3", 100)] {
        assert!(shares[machine].abs_diff(wanted) <= 16, "{shares:?}");
    }
}

#[test]
fn loads_are_evened_by_open_flows() {
    for (algorithm, most_apart) in [(Algorithm::LeastFlows, 1), (Algorithm::RandomOfTwo, 12)] {
        let mut lab = Lab::new();
        lab.apply(vec![web(algorithm)]);
        let first = targets(&lab, "S", 4000..4300);
        let ended: Vec<u32> = (4000..4300)
            .zip(&first)
            .filter(|(_, target)| *target == "r2")
            .map(|(port, _)| port)
            .collect();
        for port in ended {
            lab.target(&tcp("10.0.0.9", port, "R"));
        }
        targets(&lab, "S", 5000..5400);
        let open = [1, 2, 3].map(|id| lab.tables.active(id));
        let apart = open.iter().max().unwrap() - open.iter().min().unwrap();
        assert!(apart <= most_apart, "{algorithm:?}: {open:?}");
    }
}

#[test]
fn least_flows_weighs_backends() {
    let mut lab = Lab::new();
    let mut vip = web(Algorithm::LeastFlows);
    vip.backends[0].weight = 6;
    vip.backends[1].weight = 3;
    lab.apply(vec![vip]);
    targets(&lab, "S", 4000..5000);
    let open = [1, 2, 3].map(|id| lab.tables.active(id));
    for (open, wanted) in open.into_iter().zip([600, 300, 100]) {
        assert!(open.abs_diff(wanted) < 10, "{open} for {wanted}");
    }
}

#[test]
fn affinity_is_by_source_or_by_both_addresses() {
    for algorithm in [Algorithm::Source, Algorithm::ThreeTuple] {
        let mut lab = Lab::new();
        let mut vip = web(algorithm);
        vip.ring = RingSize::Large;
        lab.apply(vec![vip]);
        let mut used = BTreeSet::new();
        for client in 1..40 {
            let client = format!("10.0.0.{client}");
            let targets: BTreeSet<String> = (4000..4010)
                .map(|port| lab.target(&tcp(&client, port, "S")))
                .collect();
            assert_eq!(targets.len(), 1, "{client}: {targets:?}");
            used.extend(targets);
        }
        assert_eq!(used.len(), 3, "{algorithm:?}");
    }
}
