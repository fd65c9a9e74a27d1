//! The program of traffic control: the same translation as XDP's, over packets of the stack's.

use std::collections::BTreeSet;

use fiberlb::attach::{AttachMode, Attached, PINS};
use fiberlb::desired::{Backend, Mode, Proto, SynCookies, Vip};
use fiberlb::program::{FiberLb, Options, Program};
use fiberlb_abi::Hop;

use crate::frame;
use crate::lab::{Case, HERE, Lab, backend, vip};
use crate::net::{Client, Machine, become_router, run};
use crate::network::{Running, answers, bpffs, names, start};

fn lab() -> Lab {
    let mut lab = Lab::new();
    let to = |machine, addr, port| Backend {
        port: Some(port),
        ..backend(machine, addr)
    };
    let mut beside = backend("r2", "10.0.0.2");
    beside.hop = Some(Hop::new(frame::mac("r2"), frame::mac("lb"), HERE));
    let one = |proto, addr, port, mode, backend| vip(proto, addr, port, mode, vec![backend]);
    let (tcp, udp) = (Proto::Tcp, Proto::Udp);
    lab.apply(vec![
        one(tcp, "192.0.2.1", 80, Mode::Dnat, to("r1", "10.1.0.1", 8080)),
        one(udp, "192.0.2.1", 53, Mode::Dnat, to("r1", "10.1.0.1", 5353)),
        one(
            tcp,
            "2001:db8::1",
            80,
            Mode::Dnat,
            to("r1", "2001:db8:1::1", 8080),
        ),
        one(
            udp,
            "192.0.2.1",
            54,
            Mode::Direct,
            backend("r2", "10.1.0.2"),
        ),
        one(tcp, "192.0.2.1", 81, Mode::Direct, beside),
        one(tcp, "192.0.2.1", 82, Mode::Ipip, backend("r3", "10.1.0.3")),
        Vip {
            syn_cookies: SynCookies::Always,
            ..one(tcp, "192.0.2.1", 83, Mode::Dnat, to("r1", "10.1.0.1", 8080))
        },
    ]);
    lab
}

#[test]
fn packets_are_translated_and_sent_as_by_xdp() {
    lab().check_tc(&[
        Case {
            name: "a SYN",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | tcp 4000 > 80 flags S",
            verdict: "redirect",
            output: "eth lb > r1 | ip4 10.0.0.9 > 10.1.0.1 ttl 63 | tcp 4000 > 8080 flags S",
        },
        Case {
            name: "its answer, to where the SYN came from",
            input: "eth r1 > lb | ip4 10.1.0.1 > 10.0.0.9 | tcp 8080 > 4000 flags SA | text data",
            verdict: "redirect",
            output: "eth lb > client | ip4 192.0.2.1 > 10.0.0.9 ttl 63 | tcp 80 > 4000 flags SA | text data",
        },
        Case {
            name: "options of IP",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 opts 10 | udp 4000 > 53 | text query",
            verdict: "redirect",
            output: "eth lb > r1 | ip4 10.0.0.9 > 10.1.0.1 ttl 63 opts 10 | udp 4000 > 5353 | text query",
        },
        Case {
            name: "no checksum of UDP stays none",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | udp 4001 > 53 sum 0 | text query",
            verdict: "redirect",
            output: "eth lb > r1 | ip4 10.0.0.9 > 10.1.0.1 ttl 63 | udp 4001 > 5353 sum 0 | text query",
        },
        Case {
            name: "IPv6",
            input: "eth client > lb | ip6 2001:db8:9::9 > 2001:db8::1 | tcp 4000 > 80 flags S",
            verdict: "redirect",
            output: "eth lb > r1 | ip6 2001:db8:9::9 > 2001:db8:1::1 hops 63 | tcp 4000 > 8080 flags S",
        },
        Case {
            name: "IPv6 back",
            input: "eth r1 > lb | ip6 2001:db8:1::1 > 2001:db8:9::9 | tcp 8080 > 4000 flags SA",
            verdict: "redirect",
            output: "eth lb > client | ip6 2001:db8::1 > 2001:db8:9::9 hops 63 | tcp 80 > 4000 flags SA",
        },
        Case {
            name: "an error of the backend's",
            input: "eth r1 > lb | ip4 10.1.0.1 > 10.0.0.9 | icmp4 3 3 | ip4 10.0.0.9 > 10.1.0.1 ttl 63 | tcp 4000 > 8080 sum 0x1234",
            verdict: "redirect",
            output: "eth lb > client | ip4 192.0.2.1 > 10.0.0.9 ttl 63 | icmp4 3 3 | ip4 10.0.0.9 > 192.0.2.1 ttl 63 | tcp 4000 > 80 sum 0x1234",
        },
        Case {
            name: "direct return by another interface",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 ttl 1 | udp 4000 > 54 | text query",
            verdict: "redirect",
            output: "eth lb > r2 | ip4 10.0.0.9 > 192.0.2.1 ttl 1 | udp 4000 > 54 | text query",
        },
        Case {
            name: "direct return by the same one",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | tcp 4000 > 81 flags S",
            verdict: "redirect",
            output: "eth lb > r2 | ip4 10.0.0.9 > 192.0.2.1 | tcp 4000 > 81 flags S",
        },
        Case {
            name: "nobody's",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | tcp 4000 > 22 flags S",
            verdict: "pass",
            output: "",
        },
        Case {
            name: "the last hop",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 ttl 1 | udp 4000 > 53 | text query",
            verdict: "drop",
            output: "",
        },
    ]);
}

#[test]
fn what_traffic_control_goes_without_is_dropped_or_left_out() {
    lab().check_tc(&[
        Case {
            name: "a tunnel",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | tcp 4000 > 82 flags S",
            verdict: "drop",
            output: "",
        },
        Case {
            name: "SYN cookies",
            input: "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | tcp 4000 > 83 flags S",
            verdict: "redirect",
            output: "eth lb > r1 | ip4 10.0.0.9 > 10.1.0.1 ttl 63 | tcp 4000 > 8080 flags S",
        },
    ]);
}

fn web(one: &Machine) -> Vec<Vip> {
    let to = |addr, port| Backend {
        port: Some(port),
        hop: Some(one.hop()),
        ..backend("r1", addr)
    };
    vec![
        vip(
            Proto::Tcp,
            "192.0.2.1",
            80,
            Mode::Dnat,
            vec![to("10.2.0.2", 8080)],
        ),
        vip(
            Proto::Tcp,
            "2001:db8::1",
            80,
            Mode::Dnat,
            vec![to("fd00:2::2", 8081)],
        ),
    ]
}

/// Machines whose cards complete checksums and cut segments, as traffic control lets them.
fn machines() -> [Machine; 2] {
    let machines = [1, 2].map(Machine::new);
    for machine in &machines {
        machine.run("/usr/sbin/ethtool -K eth0 tx on tso on gso on");
    }
    let [_, one] = &machines;
    one.serve("0.0.0.0:8080", "b1");
    one.serve("[::]:8081", "b6");
    machines
}

fn pins(lb: &Running, machine: &Machine) -> BTreeSet<&'static str> {
    let dir = lb.pins();
    let is_there = |name: &&str| dir.join(format!("{name}-{}", machine.ifindex())).exists();
    PINS.into_iter().filter(is_there).collect()
}

#[test]
fn connections_go_on_through_traffic_control_without_a_process_and_with_the_next() {
    become_router();
    let dir = tempfile::tempdir().unwrap();
    bpffs(dir.path());
    let [client, one] = machines();
    let mut lb = start(dir.path());
    let both = [&client, &one];
    assert_eq!(lb.attach_as(&both, AttachMode::Tc), [Attached::Tc; 2]);
    let links = run("ip link show");
    assert!(!links.contains("xdp"), "{links}");
    lb.apply(web(&one));
    assert_eq!(answers(&client, "http://192.0.2.1/", 5), names(&["b1"]));
    assert_eq!(answers(&client, "http://[2001:db8::1]/", 3), names(&["b6"]));
    let mut open: Vec<(Client, &str)> = vec![
        (client.connect("192.0.2.1:80"), "b1"),
        (client.connect("[2001:db8::1]:80"), "b6"),
    ];
    let mut same = |when: &str| {
        for (client, name) in &mut open {
            assert_eq!(client.ask_with(200_000), *name, "{when}");
        }
    };
    same("at first");
    drop(lb);
    same("without a process");
    let mut lb = start(dir.path());
    assert_eq!(lb.attach_as(&both, AttachMode::Auto), [Attached::Tc; 2]);
    same("with the next process");
    for machine in both {
        lb.lb.detach(machine.ifindex()).unwrap();
        assert_eq!(pins(&lb, machine), BTreeSet::new());
    }
}

#[test]
fn an_interface_that_takes_no_xdp_gets_traffic_control() {
    become_router();
    let dir = tempfile::tempdir().unwrap();
    bpffs(dir.path());
    let [client, one] = machines();
    // Somebody else's program has the place of XDP.
    let object = fiberlb::object::read(None).unwrap();
    let options = Options {
        flows_max: 64,
        pins: None,
    };
    let (mut other, _tables) = FiberLb::load(&object, &options).unwrap();
    for machine in [&client, &one] {
        let index = machine.ifindex();
        let attached = other.attach(Program::Decapsulate, index, AttachMode::Native);
        assert_eq!(attached.unwrap(), Attached::Native);
    }
    let mut lb = start(dir.path());
    let refused = lb
        .lb
        .attach(Program::Balance, client.ifindex(), AttachMode::Native);
    let refused = refused.unwrap_err().to_string();
    let wanted = format!(
        "cannot attach fiberlb to interface {}: Native: ",
        client.ifindex()
    );
    assert!(refused.starts_with(&wanted), "{refused}");
    let both = [&client, &one];
    assert_eq!(lb.attach_as(&both, AttachMode::Auto), [Attached::Tc; 2]);
    lb.apply(web(&one));
    assert_eq!(answers(&client, "http://192.0.2.1/", 3), names(&["b1"]));
}

#[test]
fn another_way_to_attach_takes_the_place_of_the_one_before() {
    become_router();
    let dir = tempfile::tempdir().unwrap();
    bpffs(dir.path());
    let [client, one] = [1, 2].map(Machine::new);
    one.serve("0.0.0.0:8080", "b1");
    one.serve("[::]:8081", "b6");
    let both = [&client, &one];
    for (mode, attached, pin) in [
        (AttachMode::Tc, Attached::Tc, PINS[1]),
        (AttachMode::Native, Attached::Native, PINS[0]),
        (AttachMode::Tc, Attached::Tc, PINS[1]),
        (AttachMode::Auto, Attached::Tc, PINS[1]),
        (AttachMode::Generic, Attached::Generic, PINS[0]),
        (AttachMode::Auto, Attached::TakenOver, PINS[0]),
    ] {
        let mut lb = start(dir.path());
        assert_eq!(lb.attach_as(&both, mode), [attached; 2], "{mode:?}");
        lb.apply(web(&one));
        assert_eq!(answers(&client, "http://192.0.2.1/", 3), names(&["b1"]));
        for machine in both {
            assert_eq!(pins(&lb, machine), BTreeSet::from([pin]), "{mode:?}");
        }
    }
}
