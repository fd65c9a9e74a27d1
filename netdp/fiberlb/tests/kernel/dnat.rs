//! DNAT: packets of clients to backends, and the way back.

use crate::lab::{Case, Lab, backend, vip};
use fiberlb::desired::{Backend, Mode, Proto};
use fiberlb::program::Program;

fn lab() -> Lab {
    let mut lab = Lab::new();
    let to = |backend: Backend, port| Backend {
        port: Some(port),
        ..backend
    };
    lab.apply(vec![
        vip(
            Proto::Udp,
            "192.0.2.1",
            53,
            Mode::Dnat,
            vec![to(backend("r1", "10.1.0.1"), 5353)],
        ),
        vip(
            Proto::Tcp,
            "192.0.2.1",
            80,
            Mode::Dnat,
            vec![to(backend("r2", "10.1.0.2"), 8080)],
        ),
        vip(
            Proto::Tcp,
            "192.0.2.1",
            443,
            Mode::Dnat,
            vec![backend("r3", "10.1.0.3")],
        ),
        vip(
            Proto::Udp,
            "2001:db8::1",
            53,
            Mode::Dnat,
            vec![to(backend("r1", "2001:db8:1::1"), 5353)],
        ),
        vip(
            Proto::Tcp,
            "2001:db8::1",
            80,
            Mode::Dnat,
            vec![to(backend("r2", "2001:db8:1::2"), 8080)],
        ),
    ]);
    lab
}

#[test]
fn ipv4_goes_to_the_backend_and_its_replies_come_from_the_vip() {
    lab().check(Program::Balance, &[
        Case {
            name: "UDP to the backend",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 ttl 64 | udp 4000 > 53 | text query",
            verdict: "redirect",
            output: "eth lb > r1 | ip4 10.0.0.9 > 10.1.0.1 ttl 63 | udp 4000 > 5353 | text query",
        },
        Case {
            name: "its reply",
            input: "eth r1 > lb | ip4 10.1.0.1 > 10.0.0.9 ttl 64 | udp 5353 > 4000 | text answer",
            verdict: "tx",
            output: "eth lb > client | ip4 192.0.2.1 > 10.0.0.9 ttl 63 | udp 53 > 4000 | text answer",
        },
        Case {
            name: "UDP without a checksum keeps none",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | udp 4001 > 53 sum 0 | text query",
            verdict: "redirect",
            output: "eth lb > r1 | ip4 10.0.0.9 > 10.1.0.1 ttl 63 | udp 4001 > 5353 sum 0 | text query",
        },
        Case {
            name: "no payload",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | udp 4002 > 53",
            verdict: "redirect",
            output: "eth lb > r1 | ip4 10.0.0.9 > 10.1.0.1 ttl 63 | udp 4002 > 5353",
        },
        Case {
            name: "a payload of odd length, with class, identifier and DF",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 tos 0xb9 id 77 df | udp 4003 > 53 | text abc",
            verdict: "redirect",
            output: "eth lb > r1 | ip4 10.0.0.9 > 10.1.0.1 ttl 63 tos 0xb9 id 77 df | udp 4003 > 5353 | text abc",
        },
        Case {
            name: "IP options",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 opts 3 | udp 4004 > 53 | text query",
            verdict: "redirect",
            output: "eth lb > r1 | ip4 10.0.0.9 > 10.1.0.1 ttl 63 opts 3 | udp 4004 > 5353 | text query",
        },
        Case {
            name: "the most IP options",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 opts 10 | tcp 4004 > 80 flags S",
            verdict: "redirect",
            output: "eth lb > r2 | ip4 10.0.0.9 > 10.1.0.2 ttl 63 opts 10 | tcp 4004 > 8080 flags S",
        },
        Case {
            name: "TCP, SYN",
            input: "eth router > lb | ip4 10.0.0.9 > 192.0.2.1 | tcp 4000 > 80 flags S",
            verdict: "redirect",
            output: "eth lb > r2 | ip4 10.0.0.9 > 10.1.0.2 ttl 63 | tcp 4000 > 8080 flags S",
        },
        Case {
            name: "TCP, SYN and ACK, by the router that the SYN came from",
            input: "eth r2 > lb | ip4 10.1.0.2 > 10.0.0.9 | tcp 8080 > 4000 flags SA",
            verdict: "tx",
            output: "eth lb > router | ip4 192.0.2.1 > 10.0.0.9 ttl 63 | tcp 80 > 4000 flags SA",
        },
        Case {
            name: "TCP, data",
            input: "eth router > lb | ip4 10.0.0.9 > 192.0.2.1 | tcp 4000 > 80 flags PA seq 7 | text GET /",
            verdict: "redirect",
            output: "eth lb > r2 | ip4 10.0.0.9 > 10.1.0.2 ttl 63 | tcp 4000 > 8080 flags PA seq 7 | text GET /",
        },
        Case {
            name: "a backend without a port of its own keeps the VIP's",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | tcp 4000 > 443 flags S",
            verdict: "redirect",
            output: "eth lb > r3 | ip4 10.0.0.9 > 10.1.0.3 ttl 63 | tcp 4000 > 443 flags S",
        },
        Case {
            name: "its reply",
            input: "eth r3 > lb | ip4 10.1.0.3 > 10.0.0.9 | tcp 443 > 4000 flags SA",
            verdict: "tx",
            output: "eth lb > client | ip4 192.0.2.1 > 10.0.0.9 ttl 63 | tcp 443 > 4000 flags SA",
        },
    ]);
}

#[test]
fn a_wrong_checksum_stays_wrong() {
    let lab = lab();
    let good = "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | tcp 4000 > 80 flags S | text x";
    let (_, good) = lab.send(good);
    let bad = "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | tcp 4000 > 80 flags S sum 1 | text x";
    let (verdict, bad) = lab.send(bad);
    assert_eq!(verdict, "redirect");
    assert_ne!(good[50..52], bad[50..52]);
}

#[test]
fn ipv6_goes_to_the_backend_and_its_replies_come_from_the_vip() {
    lab().check(Program::Balance, &[
        Case {
            name: "UDP to the backend",
            input: "eth client > lb | ip6 2001:db8:9::9 > 2001:db8::1 hops 64 | udp 4000 > 53 | text query",
            verdict: "redirect",
            output: "eth lb > r1 | ip6 2001:db8:9::9 > 2001:db8:1::1 hops 63 | udp 4000 > 5353 | text query",
        },
        Case {
            name: "its reply",
            input: "eth r1 > lb | ip6 2001:db8:1::1 > 2001:db8:9::9 | udp 5353 > 4000 | text answer",
            verdict: "tx",
            output: "eth lb > client | ip6 2001:db8::1 > 2001:db8:9::9 hops 63 | udp 53 > 4000 | text answer",
        },
        Case {
            name: "TCP, with a traffic class",
            input: "eth client > lb | ip6 2001:db8:9::9 > 2001:db8::1 tc 0x2e | tcp 4000 > 80 flags S",
            verdict: "redirect",
            output: "eth lb > r2 | ip6 2001:db8:9::9 > 2001:db8:1::2 tc 0x2e hops 63 | tcp 4000 > 8080 flags S",
        },
    ]);
}

#[test]
fn what_is_not_for_a_vip_is_the_stacks() {
    let untouched = |name, input| Case {
        name,
        input,
        verdict: "pass",
        output: "",
    };
    lab().check(Program::Balance, &[
        untouched("another address", "eth client > lb | ip4 10.0.0.9 > 192.0.2.2 | udp 4000 > 53"),
        untouched("another port", "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | udp 4000 > 54"),
        untouched("another protocol", "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | tcp 4000 > 53 flags S"),
        untouched("a reply to nobody", "eth r1 > lb | ip4 10.1.0.1 > 10.0.0.9 | udp 5353 > 4999"),
        untouched("ICMP echo", "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | icmp4 8 0 | text ping"),
        untouched("SCTP", "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 proto 132 | zeros 12"),
        untouched("a VLAN's", "eth client > lb | vlan 7 | ip4 10.0.0.9 > 192.0.2.1 | udp 4000 > 53"),
        untouched("ARP", "eth client > lb | zeros 28"),
        untouched("IPv6 with hop-by-hop options", "eth client > lb | ip6 2001:db8:9::9 > 2001:db8::1 proto 0 | hex 1100010400000000 | udp 4000 > 53"),
        untouched("a header of IPv4 that is cut", "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 proto 17"),
        untouched("a header of TCP that is cut", "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 proto 6 | hex 0fa00050"),
        untouched("longer than its frame", "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 len 1500 | udp 4000 > 53"),
        untouched("longer than its frame, IPv6", "eth client > lb | ip6 2001:db8:9::9 > 2001:db8::1 len 1460 | udp 4000 > 53"),
        untouched("an address of IPv4 in IPv6", "eth client > lb | ip6 ::ffff:10.0.0.9 > ::ffff:192.0.2.1 | udp 4000 > 53"),
    ]);
}

#[test]
fn a_packet_at_its_last_hop_is_dropped_and_counted() {
    let lab = lab();
    let drop = |name, input| Case {
        name,
        input,
        verdict: "drop",
        output: "",
    };
    lab.check(
        Program::Balance,
        &[
            drop(
                "IPv4",
                "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 ttl 1 | udp 4000 > 53",
            ),
            drop(
                "IPv6",
                "eth client > lb | ip6 2001:db8:9::9 > 2001:db8::1 hops 1 | udp 4000 > 53",
            ),
        ],
    );
    let dropped: u64 = (0..5)
        .map(|slot| lab.tables.vip_stats(slot).unwrap().dropped)
        .sum();
    assert_eq!(dropped, 2);
}

#[test]
fn a_backend_without_a_next_hop_is_reached_by_the_stack() {
    let mut lab = Lab::new();
    let mut unresolved = backend("r1", "10.1.0.1");
    unresolved.hop = None;
    lab.apply(vec![vip(
        Proto::Udp,
        "192.0.2.1",
        53,
        Mode::Dnat,
        vec![unresolved],
    )]);
    lab.check(
        Program::Balance,
        &[Case {
            name: "translated, with the frame's addresses as they were",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | udp 4000 > 53 | text query",
            verdict: "pass",
            output: "eth client > lb | ip4 10.0.0.9 > 10.1.0.1 ttl 63 | udp 4000 > 53 | text query",
        }],
    );
}

#[test]
fn packets_and_flows_are_counted_for_vip_and_backend() {
    let mut lab = Lab::new();
    lab.apply(vec![vip(
        Proto::Udp,
        "192.0.2.1",
        53,
        Mode::Dnat,
        vec![backend("r1", "10.1.0.1")],
    )]);
    for port in [4000, 4000, 4001] {
        lab.send(&format!(
            "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | udp {port} > 53 | text query"
        ));
    }
    lab.send("eth r1 > lb | ip4 10.1.0.1 > 10.0.0.9 | udp 53 > 4000 | text answer");
    let vip = lab.tables.vip_stats(0).unwrap();
    assert_eq!(
        (vip.packets, vip.bytes, vip.flows, vip.replies),
        (3, 99, 2, 1)
    );
    let real = lab.tables.real_stats(1).unwrap();
    assert_eq!((real.packets, real.bytes, real.flows), (3, 99, 2));
    assert_eq!(lab.tables.active(1), 2);
}
