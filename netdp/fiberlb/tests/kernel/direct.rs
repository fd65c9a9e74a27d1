//! Direct return: frames to another machine of the link, and tunnels with their far end.

use crate::frame;
use crate::lab::{Case, HERE, Lab, backend, vip};
use fiberlb::desired::{Mode, Proto, mapped};
use fiberlb::program::Program;
use fiberlb_abi::Hop;

#[test]
fn direct_return_changes_the_frames_addresses_only() {
    let mut lab = Lab::new();
    let mut beside = backend("r2", "10.0.0.2");
    beside.hop = Some(Hop::new(frame::mac("r2"), frame::mac("lb"), HERE));
    let mut lost = backend("r3", "10.0.0.3");
    lost.hop = None;
    lab.apply(vec![
        vip(
            Proto::Udp,
            "192.0.2.1",
            53,
            Mode::Direct,
            vec![backend("r1", "10.1.0.1")],
        ),
        vip(Proto::Tcp, "192.0.2.1", 80, Mode::Direct, vec![beside]),
        vip(Proto::Tcp, "192.0.2.1", 81, Mode::Direct, vec![lost]),
        vip(
            Proto::Udp,
            "2001:db8::1",
            53,
            Mode::Direct,
            vec![backend("r1", "2001:db8:1::1")],
        ),
    ]);
    lab.check(Program::Balance, &[
        Case {
            name: "by another interface",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 ttl 1 | udp 4000 > 53 | text query",
            verdict: "redirect",
            output: "eth lb > r1 | ip4 10.0.0.9 > 192.0.2.1 ttl 1 | udp 4000 > 53 | text query",
        },
        Case {
            name: "by the same one",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | tcp 4000 > 80 flags S",
            verdict: "tx",
            output: "eth lb > r2 | ip4 10.0.0.9 > 192.0.2.1 | tcp 4000 > 80 flags S",
        },
        Case {
            name: "IPv6",
            input: "eth client > lb | ip6 2001:db8:9::9 > 2001:db8::1 | udp 4000 > 53 | text query",
            verdict: "redirect",
            output: "eth lb > r1 | ip6 2001:db8:9::9 > 2001:db8::1 | udp 4000 > 53 | text query",
        },
        Case {
            name: "a next hop that is not known",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | tcp 4000 > 81 flags S",
            verdict: "drop",
            output: "",
        },
    ]);
}

/// VIPs of both versions whose backends are reached by both, on ports that say so.
fn tunnels(mode: Mode) -> Lab {
    let mut lab = Lab::new();
    let v4 = || vec![backend("r1", "10.1.0.1")];
    let v6 = || vec![backend("r2", "2001:db8:1::2")];
    let mut narrow = backend("r1", "10.1.0.1");
    narrow.mtu = Some(100);
    lab.apply(vec![
        vip(Proto::Udp, "192.0.2.1", 44, mode, v4()),
        vip(Proto::Udp, "192.0.2.1", 46, mode, v6()),
        vip(Proto::Udp, "2001:db8::1", 64, mode, v4()),
        vip(Proto::Udp, "2001:db8::1", 66, mode, v6()),
        vip(Proto::Udp, "192.0.2.1", 99, mode, vec![narrow]),
    ]);
    lab
}

#[test]
fn ip_in_ip_carries_either_version_over_either() {
    tunnels(Mode::Ipip).check(Program::Balance, &[
        Case {
            name: "IPv4 over IPv4, with the class of service",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 tos 0xb9 | udp 4000 > 44 | text query",
            verdict: "redirect",
            output: "eth lb > r1 | ip4 10.255.0.1 > 10.1.0.1 ttl 64 tos 0xb9 df | ip4 10.0.0.9 > 192.0.2.1 tos 0xb9 | udp 4000 > 44 | text query",
        },
        Case {
            name: "IPv4 over IPv6",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 tos 0xb9 | udp 4000 > 46 | text query",
            verdict: "redirect",
            output: "eth lb > r2 | ip6 2001:db8:ff::1 > 2001:db8:1::2 tc 0xb9 | ip4 10.0.0.9 > 192.0.2.1 tos 0xb9 | udp 4000 > 46 | text query",
        },
        Case {
            name: "IPv6 over IPv4",
            input: "eth client > lb | ip6 2001:db8:9::9 > 2001:db8::1 tc 0xb9 | udp 4000 > 64 | text query",
            verdict: "redirect",
            output: "eth lb > r1 | ip4 10.255.0.1 > 10.1.0.1 tos 0xb9 df | ip6 2001:db8:9::9 > 2001:db8::1 tc 0xb9 | udp 4000 > 64 | text query",
        },
        Case {
            name: "IPv6 over IPv6",
            input: "eth client > lb | ip6 2001:db8:9::9 > 2001:db8::1 | udp 4000 > 66 | text query",
            verdict: "redirect",
            output: "eth lb > r2 | ip6 2001:db8:ff::1 > 2001:db8:1::2 | ip6 2001:db8:9::9 > 2001:db8::1 | udp 4000 > 66 | text query",
        },
        Case {
            name: "the most that a narrow way takes",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | udp 4000 > 99 | zeros 52",
            verdict: "redirect",
            output: "eth lb > r1 | ip4 10.255.0.1 > 10.1.0.1 df | ip4 10.0.0.9 > 192.0.2.1 | udp 4000 > 99 | zeros 52",
        },
        Case {
            name: "a byte more",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | udp 4000 > 99 | zeros 53",
            verdict: "drop",
            output: "",
        },
    ]);
}

/// The source port that GUE's header got, from a flow's hash.
fn source_port(out: &[u8], ip: usize) -> u16 {
    u16::from_be_bytes([out[14 + ip], out[15 + ip]])
}

#[test]
fn gue_carries_packets_behind_a_udp_header() {
    let lab = tunnels(Mode::Gue);
    for (input, ip, outer, inner) in [
        (
            "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | udp 4000 > 44 | text query",
            20,
            "eth lb > r1 | ip4 10.255.0.1 > 10.1.0.1 df",
            "ip4 10.0.0.9 > 192.0.2.1 | udp 4000 > 44 | text query",
        ),
        (
            "eth client > lb | ip6 2001:db8:9::9 > 2001:db8::1 | udp 4000 > 66 | text query",
            40,
            "eth lb > r2 | ip6 2001:db8:ff::1 > 2001:db8:1::2",
            "ip6 2001:db8:9::9 > 2001:db8::1 | udp 4000 > 66 | text query",
        ),
    ] {
        let (verdict, out) = lab.send(input);
        assert_eq!(verdict, "redirect");
        let port = source_port(&out, ip);
        assert!(port >= 0xc000, "{port}");
        let wanted = frame::build(&format!("{outer} | udp {port} > 6080 sum 0 | {inner}"));
        assert!(out == wanted, "{}", frame::difference(&out, &wanted));
    }
    let port = |from| {
        let text = format!("eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | udp {from} > 44");
        source_port(&lab.send(&text).1, 20)
    };
    assert_eq!(port(4000), port(4000));
    let ports: std::collections::BTreeSet<u16> = (4000..4020).map(port).collect();
    assert!(ports.len() > 15, "flows spread over {ports:?}");
}

#[test]
fn the_far_end_gives_back_what_went_in() {
    for mode in [Mode::Ipip, Mode::Gue] {
        let mut lab = tunnels(mode);
        for addr in ["10.1.0.1", "2001:db8:1::2"] {
            let addr = mapped(addr.parse().unwrap());
            lab.tables.set_tunnel_end(&addr, true).unwrap();
        }
        for (to, packet) in [
            (
                "r1",
                "ip4 10.0.0.9 > 192.0.2.1 tos 7 | udp 4000 > 44 | text query",
            ),
            (
                "r2",
                "ip4 10.0.0.9 > 192.0.2.1 opts 2 | udp 4000 > 46 | text query",
            ),
            (
                "r1",
                "ip6 2001:db8:9::9 > 2001:db8::1 | udp 4000 > 64 | text query",
            ),
            (
                "r2",
                "ip6 2001:db8:9::9 > 2001:db8::1 | udp 4000 > 66 | text query",
            ),
        ] {
            let (_, sent) = lab.send(&format!("eth client > lb | {packet}"));
            let (verdict, got) = lab.run(Program::Decapsulate, &sent);
            let wanted = frame::build(&format!("eth lb > {to} | {packet}"));
            assert_eq!(verdict, "pass");
            assert!(got == wanted, "{}", frame::difference(&got, &wanted));
        }
    }
}

#[test]
fn the_far_end_leaves_alone_what_is_not_its_own() {
    let mut lab = Lab::new();
    let addr = mapped("10.1.0.1".parse().unwrap());
    lab.tables.set_tunnel_end(&addr, true).unwrap();
    let untouched = |name, input| Case {
        name,
        input,
        verdict: "pass",
        output: "",
    };
    lab.check(Program::Decapsulate, &[
        untouched("another address", "eth lb > r1 | ip4 10.255.0.1 > 10.1.0.2 | ip4 10.0.0.9 > 192.0.2.1 | udp 1 > 2"),
        untouched("no tunnel", "eth lb > r1 | ip4 10.255.0.1 > 10.1.0.1 | udp 1 > 2 | text query"),
        untouched("another port", "eth lb > r1 | ip4 10.255.0.1 > 10.1.0.1 | udp 1 > 6081 | ip4 10.0.0.9 > 192.0.2.1 | udp 1 > 2"),
        untouched("another variant of GUE", "eth lb > r1 | ip4 10.255.0.1 > 10.1.0.1 | udp 1 > 6080 | hex 00040000 | ip4 10.0.0.9 > 192.0.2.1"),
        untouched("a fragment", "eth lb > r1 | ip4 10.255.0.1 > 10.1.0.1 mf | ip4 10.0.0.9 > 192.0.2.1 | udp 1 > 2"),
    ]);
    lab.tables.set_tunnel_end(&addr, false).unwrap();
    lab.check(
        Program::Decapsulate,
        &[untouched(
            "an address that is no end any more",
            "eth lb > r1 | ip4 10.255.0.1 > 10.1.0.1 | ip4 10.0.0.9 > 192.0.2.1 | udp 1 > 2",
        )],
    );
}
