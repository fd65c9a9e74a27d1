//! ICMP errors find the backend of the flow that they are about, and the client of one.

use crate::frame;
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
            Proto::Tcp,
            "192.0.2.1",
            80,
            Mode::Dnat,
            vec![to(backend("r1", "10.1.0.1"), 8080)],
        ),
        vip(
            Proto::Tcp,
            "2001:db8::1",
            80,
            Mode::Dnat,
            vec![to(backend("r1", "2001:db8:1::1"), 8080)],
        ),
        vip(
            Proto::Tcp,
            "192.0.2.1",
            81,
            Mode::Direct,
            vec![backend("r2", "10.1.0.2")],
        ),
        vip(
            Proto::Tcp,
            "192.0.2.1",
            82,
            Mode::Ipip,
            vec![backend("r3", "10.1.0.3")],
        ),
    ]);
    lab
}

#[test]
fn errors_about_replies_go_to_the_backend() {
    let lab = lab();
    lab.check(Program::Balance, &[
        Case {
            name: "too big, DNAT: both heads are translated; the flow is not in the table",
            input: "eth router > lb | ip4 203.0.113.7 > 192.0.2.1 | icmp4 3 4 mtu 1280 | ip4 192.0.2.1 > 10.0.0.9 ttl 60 len 1500 | tcp 80 > 4000 sum 0x1234",
            verdict: "redirect",
            output: "eth lb > r1 | ip4 203.0.113.7 > 10.1.0.1 ttl 63 | icmp4 3 4 mtu 1280 | ip4 10.1.0.1 > 10.0.0.9 ttl 60 len 1500 | tcp 8080 > 4000 sum 0x1234",
        },
        Case {
            name: "unreachable, with no more than eight bytes inside",
            input: "eth router > lb | ip4 203.0.113.7 > 192.0.2.1 | icmp4 3 1 | ip4 192.0.2.1 > 10.0.0.9 len 1500 proto 6 | hex 00500fa000000001",
            verdict: "redirect",
            output: "eth lb > r1 | ip4 203.0.113.7 > 10.1.0.1 ttl 63 | icmp4 3 1 | ip4 10.1.0.1 > 10.0.0.9 len 1500 proto 6 | hex 1f900fa000000001",
        },
        Case {
            name: "too big, IPv6",
            input: "eth router > lb | ip6 2001:db8:7::7 > 2001:db8::1 | icmp6 2 0 mtu 1280 | ip6 2001:db8::1 > 2001:db8:9::9 len 1460 | tcp 80 > 4000 sum 0x1234",
            verdict: "redirect",
            output: "eth lb > r1 | ip6 2001:db8:7::7 > 2001:db8:1::1 hops 63 | icmp6 2 0 mtu 1280 | ip6 2001:db8:1::1 > 2001:db8:9::9 len 1460 | tcp 8080 > 4000 sum 0x1234",
        },
        Case {
            name: "direct return: as it is",
            input: "eth router > lb | ip4 203.0.113.7 > 192.0.2.1 | icmp4 3 4 mtu 1280 | ip4 192.0.2.1 > 10.0.0.9 len 1500 | tcp 81 > 4000",
            verdict: "redirect",
            output: "eth lb > r2 | ip4 203.0.113.7 > 192.0.2.1 | icmp4 3 4 mtu 1280 | ip4 192.0.2.1 > 10.0.0.9 len 1500 | tcp 81 > 4000",
        },
        Case {
            name: "a tunnel: whole",
            input: "eth router > lb | ip4 203.0.113.7 > 192.0.2.1 | icmp4 11 0 | ip4 192.0.2.1 > 10.0.0.9 len 1500 | tcp 82 > 4000",
            verdict: "redirect",
            output: "eth lb > r3 | ip4 10.255.0.1 > 10.1.0.3 df | ip4 203.0.113.7 > 192.0.2.1 | icmp4 11 0 | ip4 192.0.2.1 > 10.0.0.9 len 1500 | tcp 82 > 4000",
        },
    ]);
}

#[test]
fn errors_of_the_backend_go_to_the_client_as_the_vips() {
    let lab = lab();
    lab.send("eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | tcp 4000 > 80 flags S");
    lab.send("eth client > lb | ip6 2001:db8:9::9 > 2001:db8::1 | tcp 4000 > 80 flags S");
    lab.check(Program::Balance, &[
        Case {
            name: "IPv4",
            input: "eth r1 > lb | ip4 10.1.0.1 > 10.0.0.9 | icmp4 3 3 | ip4 10.0.0.9 > 10.1.0.1 ttl 63 | tcp 4000 > 8080 sum 0x1234",
            verdict: "tx",
            output: "eth lb > client | ip4 192.0.2.1 > 10.0.0.9 ttl 63 | icmp4 3 3 | ip4 10.0.0.9 > 192.0.2.1 ttl 63 | tcp 4000 > 80 sum 0x1234",
        },
        Case {
            name: "IPv6",
            input: "eth r1 > lb | ip6 2001:db8:1::1 > 2001:db8:9::9 | icmp6 1 4 | ip6 2001:db8:9::9 > 2001:db8:1::1 | tcp 4000 > 8080 sum 0x1234",
            verdict: "tx",
            output: "eth lb > client | ip6 2001:db8::1 > 2001:db8:9::9 hops 63 | icmp6 1 4 | ip6 2001:db8:9::9 > 2001:db8::1 | tcp 4000 > 80 sum 0x1234",
        },
    ]);
}

#[test]
fn an_error_follows_the_flow_and_not_the_ring() {
    let mut lab = Lab::new();
    let pool = |machines: &[(&str, &str)]| {
        let backends = machines
            .iter()
            .map(|(machine, addr)| backend(machine, addr));
        vec![vip(
            Proto::Tcp,
            "192.0.2.1",
            80,
            Mode::Direct,
            backends.collect(),
        )]
    };
    lab.apply(pool(&[("r1", "10.1.0.1")]));
    lab.send("eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | tcp 4000 > 80 flags S");
    let mut both = pool(&[("r1", "10.1.0.1"), ("r2", "10.1.0.2")]);
    both[0].backends[0].state = fiberlb::desired::BackendState::Draining;
    lab.apply(both);
    let error = |port| {
        format!(
            "eth router > lb | ip4 203.0.113.7 > 192.0.2.1 | icmp4 3 4 mtu 1280 | ip4 192.0.2.1 > 10.0.0.9 len 1500 | tcp 80 > {port}"
        )
    };
    assert_eq!(lab.target(&error(4000)), "r1");
    assert_eq!(lab.target(&error(4001)), "r2");
}

#[test]
fn other_messages_are_the_stacks() {
    let untouched = |name, input| Case {
        name,
        input,
        verdict: "pass",
        output: "",
    };
    lab().check(Program::Balance, &[
        untouched("echo", "eth router > lb | ip4 203.0.113.7 > 192.0.2.1 | icmp4 8 0 | text ping"),
        untouched("about no VIP", "eth router > lb | ip4 203.0.113.7 > 192.0.2.1 | icmp4 3 4 | ip4 192.0.2.1 > 10.0.0.9 | tcp 22 > 4000"),
        untouched("about another protocol", "eth router > lb | ip4 203.0.113.7 > 192.0.2.1 | icmp4 3 4 | ip4 192.0.2.1 > 10.0.0.9 proto 47 | zeros 8"),
        untouched("cut before the ports", "eth router > lb | ip4 203.0.113.7 > 192.0.2.1 | icmp4 3 4 | ip4 192.0.2.1 > 10.0.0.9 proto 6"),
        untouched("neighbour solicitation", "eth router > lb | ip6 2001:db8:7::7 > 2001:db8::1 | icmp6 135 0 | zeros 16"),
    ]);
    assert_eq!(frame::build("hex 0a0b"), [10, 11]);
}
