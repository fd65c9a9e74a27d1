//! Which packets a VIP takes, and by what rules: prefixes, sources, fragments, QUIC, the limit on flows.

use crate::lab::{Case, Lab, backend, vip};
use fiberlb::desired::{FlowTable, Fragments, Mode, Prefix, Proto, Sources, Vip, VipAt};
use fiberlb::program::Program;
use fiberlb_abi::event_kind;

fn prefix(text: &str) -> Prefix {
    let (addr, len) = text.split_once('/').unwrap();
    Prefix {
        addr: addr.parse().unwrap(),
        len: len.parse().unwrap(),
    }
}

fn dns(backends: &[(&str, &str)]) -> Vip {
    let backends = backends
        .iter()
        .map(|(machine, addr)| backend(machine, addr));
    vip(
        Proto::Udp,
        "192.0.2.1",
        53,
        Mode::Direct,
        backends.collect(),
    )
}

#[test]
fn the_longest_prefix_takes_the_packet_and_a_port_before_it() {
    let mut lab = Lab::new();
    let at = |at, machine| Vip {
        at,
        ..dns(&[(machine, "10.1.0.1")])
    };
    lab.apply(vec![
        at(VipAt::Port("192.0.2.1".parse().unwrap(), 53), "r1"),
        at(VipAt::Prefix(prefix("192.0.2.0/24"), None), "r2"),
        at(VipAt::Prefix(prefix("192.0.2.64/26"), Some(53)), "r3"),
        Vip {
            backends: vec![backend("router", "2001:db8:1::1")],
            ..at(VipAt::Prefix(prefix("2001:db8::/32"), None), "router")
        },
    ]);
    let target = |to: &str| lab.target(&format!("eth client > lb | {to}"));
    assert_eq!(target("ip4 10.0.0.9 > 192.0.2.1 | udp 4000 > 53"), "r1");
    assert_eq!(target("ip4 10.0.0.9 > 192.0.2.1 | udp 4000 > 54"), "r2");
    assert_eq!(target("ip4 10.0.0.9 > 192.0.2.9 | udp 4000 > 53"), "r2");
    assert_eq!(target("ip4 10.0.0.9 > 192.0.2.65 | udp 4000 > 53"), "r3");
    assert_eq!(target("ip4 10.0.0.9 > 192.0.2.65 | udp 4000 > 54"), "pass");
    assert_eq!(target("ip4 10.0.0.9 > 192.0.3.1 | udp 4000 > 53"), "pass");
    assert_eq!(target("ip4 10.0.0.9 > 192.0.2.9 | tcp 4000 > 53"), "pass");
    assert_eq!(
        target("ip6 2001:db8:9::9 > 2001:db8:7::1 | udp 4000 > 9"),
        "router"
    );
}

#[test]
fn the_longest_prefix_of_a_source_decides_and_rules_apply_to_known_flows() {
    let mut lab = Lab::new();
    let mut vip = dns(&[("r1", "10.1.0.1")]);
    vip.sources.deny = vec![prefix("10.0.0.0/8"), prefix("2001:db8:bad::/48")];
    vip.sources.allow = vec![prefix("10.0.0.0/24")];
    let from = |lab: &Lab, addr: &str| {
        lab.target(&format!(
            "eth client > lb | ip4 {addr} > 192.0.2.1 | udp 4000 > 53"
        ))
    };
    lab.apply(vec![vip.clone()]);
    assert_eq!(from(&lab, "10.0.0.9"), "r1");
    assert_eq!(from(&lab, "10.0.1.9"), "drop");
    assert_eq!(from(&lab, "172.16.0.1"), "r1");
    vip.sources.deny_others = true;
    lab.apply(vec![vip.clone()]);
    assert_eq!(from(&lab, "172.16.0.1"), "drop");
    assert_eq!(from(&lab, "10.0.0.9"), "r1");
    vip.sources.allow.clear();
    lab.apply(vec![vip.clone()]);
    assert_eq!(from(&lab, "10.0.0.9"), "drop");
    vip.sources = Sources::default();
    lab.apply(vec![vip]);
    assert_eq!(from(&lab, "10.0.0.9"), "r1");
    assert_eq!(lab.tables.vip_stats(0).unwrap().refused, 3);
    // One flow of each of two clients: a change of rules begins none anew.
    assert_eq!(lab.tables.vip_stats(0).unwrap().flows, 2);
}

const WHOLE: &str = "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | udp 4000 > 53 | text query";
const FIRST: &str = "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 id 7 mf | udp 4000 > 53 sum 0 len 2000 | text begin";
const LATER: &str =
    "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 id 7 off 16 proto 17 | text the end";
const LATER_V6: &str =
    "eth client > lb | ip6 2001:db8:9::9 > 2001:db8::1 | frag off 16 id 7 proto 17 | text the end";

#[test]
fn fragments_pass_drop_or_go_together() {
    let mut lab = Lab::new();
    let mut all = dns(&[("r1", "10.1.0.1"), ("r2", "10.1.0.2"), ("r3", "10.1.0.3")]);
    lab.apply(vec![all.clone()]);
    assert_eq!([lab.target(FIRST), lab.target(LATER)], ["pass", "pass"]);
    all.fragments = Fragments::Drop;
    lab.apply(vec![all.clone()]);
    assert_eq!([lab.target(FIRST), lab.target(LATER)], ["drop", "drop"]);
    assert_eq!(lab.tables.vip_stats(0).unwrap().dropped, 2);
    all.fragments = Fragments::Forward;
    let v6 = Vip {
        at: VipAt::Port("2001:db8::1".parse().unwrap(), 53),
        backends: vec![backend("r2", "2001:db8:1::2")],
        ..all.clone()
    };
    lab.apply(vec![all, v6]);
    let together = lab.target(LATER);
    assert!(together.starts_with('r'));
    assert_eq!(lab.target(LATER_V6), "r2");
    for port in 4000..4040 {
        let first = FIRST.replace("4000", &port.to_string());
        // A flow of whole packets from the same port goes where its ports lead.
        lab.target(&WHOLE.replace("4000", &port.to_string()));
        assert_eq!(lab.target(&first), together);
    }
}

#[test]
fn fragments_are_translated_both_ways() {
    let mut lab = Lab::new();
    let mut vip = dns(&[("r1", "10.1.0.1")]);
    vip.mode = Mode::Dnat;
    vip.fragments = Fragments::Forward;
    vip.backends[0].port = Some(5353);
    lab.apply(vec![vip]);
    lab.check(Program::Balance, &[
        Case {
            name: "the first",
            input: FIRST,
            verdict: "redirect",
            output: "eth lb > r1 | ip4 10.0.0.9 > 10.1.0.1 ttl 63 id 7 mf | udp 4000 > 5353 sum 0 len 2000 | text begin",
        },
        Case {
            name: "a later one",
            input: LATER,
            verdict: "redirect",
            output: "eth lb > r1 | ip4 10.0.0.9 > 10.1.0.1 ttl 63 id 7 off 16 proto 17 | text the end",
        },
        Case {
            name: "a whole packet",
            input: WHOLE,
            verdict: "redirect",
            output: "eth lb > r1 | ip4 10.0.0.9 > 10.1.0.1 ttl 63 | udp 4000 > 5353 | text query",
        },
        Case {
            name: "the first of a reply",
            input: "eth r1 > lb | ip4 10.1.0.1 > 10.0.0.9 id 8 mf | udp 5353 > 4000 sum 0 len 2000 | text begin",
            verdict: "tx",
            output: "eth lb > client | ip4 192.0.2.1 > 10.0.0.9 ttl 63 id 8 mf | udp 53 > 4000 sum 0 len 2000 | text begin",
        },
        Case {
            name: "a later one of a reply",
            input: "eth r1 > lb | ip4 10.1.0.1 > 10.0.0.9 id 8 off 16 proto 17 | text the end",
            verdict: "tx",
            output: "eth lb > client | ip4 192.0.2.1 > 10.0.0.9 ttl 63 id 8 off 16 proto 17 | text the end",
        },
    ]);
}

#[test]
fn quic_follows_its_connection_identifier() {
    let mut lab = Lab::new();
    let machines = [("r1", "10.1.0.1"), ("r2", "10.1.0.2"), ("r3", "10.1.0.3")];
    let mut vip = dns(&machines);
    vip.quic = true;
    for (backend, server) in vip.backends.iter_mut().zip([0x0a01, 0x0a02, 0x0a03]) {
        backend.quic_server = Some(server);
    }
    lab.apply(vec![vip]);
    let send = |port: u16, payload: &str| {
        lab.target(&format!(
            "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | udp {port} > 53 | hex {payload}"
        ))
    };
    for (server, machine) in [("0a01", "r1"), ("0a02", "r2"), ("0a03", "r3")] {
        for port in [4000, 4001, 4002] {
            let short = format!("40 20{server} 0102030405");
            assert_eq!(send(port, &short), machine, "short header");
            let handshake = format!("e0 00000001 08 20{server} 0102030405 00");
            assert_eq!(send(port, &handshake), machine, "Handshake");
        }
    }
    // The client chose these: the flow leads, wherever it does.
    let led = send(5000, "c0 00000001 08 200a01 0102030405 00");
    for server in ["0a01", "0a02", "0a03"] {
        assert_eq!(
            send(5000, &format!("c0 00000001 08 20{server} 0102030405 00")),
            led,
            "Initial"
        );
        assert_eq!(
            send(5000, &format!("d0 00000001 08 20{server} 0102030405 00")),
            led,
            "0-RTT"
        );
    }
    assert_eq!(
        send(5000, "40 200aff 0102030405"),
        led,
        "a server that is not known"
    );
    assert_eq!(
        send(5000, "40 e00a01 0102030405"),
        led,
        "an identifier that names none"
    );
    assert_eq!(send(5000, "40"), led, "cut");
}

#[test]
fn flows_past_the_limit_are_forwarded_and_not_remembered() {
    let mut lab = Lab::new();
    let mut nat = dns(&[("r2", "10.1.0.2")]);
    nat.at = VipAt::Port("192.0.2.2".parse().unwrap(), 53);
    nat.mode = Mode::Dnat;
    lab.apply(vec![dns(&[("r1", "10.1.0.1")]), nat]);
    let send = |lab: &Lab, vip: &str, port: u16| {
        lab.target(&format!(
            "eth client > lb | ip4 10.0.0.9 > {vip} | udp {port} > 53"
        ))
    };
    assert_eq!(send(&lab, "192.0.2.2", 3999), "r2");
    // One flow in more than an hour, and none saved up.
    lab.configure(|config| {
        config.insert_cost_ns = u32::MAX;
        config.sample_mask = 0;
    });
    for port in 4000..4010 {
        assert_eq!(send(&lab, "192.0.2.1", port), "r1");
        // A reply could not be translated back.
        assert_eq!(send(&lab, "192.0.2.2", port), "drop");
        let event = lab.tables.next_event().unwrap();
        assert_eq!(
            (event.kind, event.vip, event.real),
            (event_kind::UNCACHED, 0, 1)
        );
        assert_eq!(lab.tables.next_event().unwrap().vip, 1);
    }
    assert_eq!(send(&lab, "192.0.2.2", 3999), "r2");
    let direct = lab.tables.vip_stats(0).unwrap();
    assert_eq!((direct.packets, direct.flows, direct.uncached), (10, 0, 10));
    assert_eq!(lab.tables.vip_stats(1).unwrap().uncached, 10);
    assert_eq!(lab.tables.active(1), 0);
}

#[test]
fn new_flows_are_told_when_sampled() {
    let mut lab = Lab::new();
    lab.apply(vec![dns(&[("r1", "10.1.0.1")])]);
    lab.target(WHOLE);
    assert_eq!(lab.tables.next_event(), None);
    lab.configure(|config| config.sample_mask = 0);
    lab.target(WHOLE);
    assert_eq!(lab.tables.next_event(), None, "it is no new flow");
    lab.target(&WHOLE.replace("4000", "4001"));
    let event = lab.tables.next_event().unwrap();
    assert_eq!(
        (event.kind, event.vip, event.real),
        (event_kind::NEW_FLOW, 0, 1)
    );
    assert_eq!(u16::from_be(event.key.sport), 4001);
}

#[test]
fn without_the_table_the_ring_decides_for_every_packet() {
    let mut lab = Lab::new();
    let mut vip = dns(&[("r1", "10.1.0.1")]);
    vip.flows = FlowTable::None;
    lab.apply(vec![vip.clone()]);
    assert_eq!(lab.target(WHOLE), "r1");
    vip.backends = vec![backend("r2", "10.1.0.2")];
    lab.apply(vec![vip]);
    assert_eq!(lab.target(WHOLE), "r2");
    assert_eq!(lab.tables.vip_stats(0).unwrap().flows, 0);
}

#[test]
fn what_is_read_back_is_what_was_written() {
    let mut lab = Lab::new();
    let mut all = dns(&[("r1", "10.1.0.1"), ("r2", "10.1.0.2")]);
    all.sources.deny = vec![prefix("10.0.0.0/8"), prefix("2001:db8:bad::/48")];
    all.quic = true;
    all.backends[0].quic_server = Some(0x0a01);
    all.fragments = Fragments::Forward;
    let wide = Vip {
        at: VipAt::Prefix(prefix("192.0.2.0/24"), Some(53)),
        ..dns(&[("r3", "10.1.0.3")])
    };
    lab.apply(vec![all.clone(), wide]);
    lab.assert_mirrored();
    all.backends.pop();
    all.sources.deny.pop();
    all.quic = false;
    lab.apply(vec![all]);
    lab.assert_mirrored();
    lab.apply(Vec::new());
    lab.assert_mirrored();
    assert!(lab.mirror.keys.is_empty() && lab.mirror.sources.is_empty());
}

/// What a CPU knows of an address must not outlive it: each look comes several times, and what is asked first
/// is what was not there before.
#[test]
fn an_address_leads_where_it_was_led_last() {
    let mut lab = Lab::new();
    let query = "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | udp 4000 > 53";
    let told = |lab: &Lab| -> Vec<String> { (0..4).map(|_| lab.target(query)).collect() };
    let unkept = |machine| Vip {
        flows: FlowTable::None,
        ..dns(&[(machine, "10.1.0.1")])
    };
    let prefix = |machine| Vip {
        at: VipAt::Prefix(prefix("192.0.2.0/24"), None),
        ..unkept(machine)
    };
    for (vips, wanted) in [
        (vec![], "pass"),
        (vec![prefix("r1")], "r1"),
        (vec![prefix("r1"), unkept("r2")], "r2"),
        (vec![prefix("r1")], "r1"),
        (vec![], "pass"),
        (vec![unkept("r3")], "r3"),
        (
            vec![Vip {
                sources: Sources {
                    deny_others: true,
                    ..Sources::default()
                },
                ..unkept("r3")
            }],
            "drop",
        ),
        (vec![unkept("r3")], "r3"),
    ] {
        lab.apply(vips);
        assert_eq!(told(&lab), [wanted; 4]);
    }
}
