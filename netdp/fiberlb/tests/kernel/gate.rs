//! The gate before new flows of TCP: who gets a cookie, who has proved himself, and what is left for him.

use fiberlb::desired::{Backend, FlowTable, Mode, Proto, SynCookies, Vip};
use fiberlb_abi::{FlowKey, cookie, cookie_period};

use crate::frame;
use crate::lab::{Lab, backend, vip};

fn web(addr: &str, mode: Mode, cookies: SynCookies) -> Vip {
    let backends = if addr.contains(':') {
        vec![backend("r1", "2001:db8:1::1")]
    } else {
        vec![backend("r1", "10.1.0.1")]
    };
    Vip {
        syn_cookies: cookies,
        ..vip(Proto::Tcp, addr, 80, mode, backends)
    }
}

fn syn(from: &str, port: u16) -> String {
    format!("eth client > lb | ip4 {from} > 192.0.2.1 | tcp {port} > 80 flags S seq 7")
}

fn reset(from: &str, port: u16, cookie: u32) -> String {
    format!("eth client > lb | ip4 {from} > 192.0.2.1 | tcp {port} > 80 flags R seq {cookie}")
}

/// The number that the answer to a SYN acknowledges; the SYN was answered.
fn asked(lab: &Lab, syn: &str) -> u32 {
    let (verdict, answer) = lab.send(syn);
    assert_eq!(verdict, "redirect", "{syn}");
    assert_eq!(answer[..6], frame::mac("client"), "{syn}");
    let l4 = if answer[12] == 8 { 34 } else { 54 };
    let ack = answer[l4 + 8..l4 + 12].try_into().unwrap();
    u32::from_be_bytes(ack)
}

/// A source proves itself.
fn prove(lab: &Lab, from: &str, port: u16) {
    let cookie = asked(lab, &syn(from, port));
    assert_eq!(lab.target(&reset(from, port, cookie)), "drop");
}

#[test]
fn a_source_that_sends_its_cookie_back_comes_in() {
    for (mode, wanted) in [
        (
            Mode::Dnat,
            "ip4 10.0.0.9 > 10.1.0.1 ttl 63 | tcp 4000 > 80 flags S seq 7 | zeros 20",
        ),
        (
            Mode::Direct,
            "ip4 10.0.0.9 > 192.0.2.1 | tcp 4000 > 80 flags S seq 7 | zeros 20",
        ),
        (
            Mode::Ipip,
            "ip4 10.255.0.1 > 10.1.0.1 df | ip4 10.0.0.9 > 192.0.2.1 | tcp 4000 > 80 flags S seq 7 | zeros 20",
        ),
    ] {
        let mut lab = Lab::new();
        lab.apply(vec![web("192.0.2.1", mode, SynCookies::Always)]);
        // What follows the header of TCP, as options do, is not in the answer.
        let syn = format!("{} | zeros 20", syn("10.0.0.9", 4000));
        let cookie = asked(&lab, &syn);
        assert_ne!(cookie, 8, "it would be the answer of a server");
        let answer = format!(
            "eth lb > client | ip4 192.0.2.1 > 10.0.0.9 df | tcp 80 > 4000 flags SA seq 0 ack {cookie}"
        );
        let (got, answer) = (lab.send(&syn).1, frame::build(&answer));
        assert!(got == answer, "{}", frame::difference(&got, &answer));
        assert_eq!(lab.tables.vip_stats(0).unwrap().flows, 0);

        assert_eq!(lab.target(&reset("10.0.0.9", 4000, cookie)), "drop");
        let (verdict, got) = lab.send(&syn);
        assert_eq!(verdict, "redirect", "{mode:?}");
        let wanted = frame::build(&format!("eth lb > r1 | {wanted}"));
        assert!(
            got == wanted,
            "{mode:?}: {}",
            frame::difference(&got, &wanted)
        );
        let stats = lab.tables.answer_stats(0).unwrap();
        let counted = (
            stats.cookies_sent,
            stats.cookies_proved,
            stats.cookies_wrong,
        );
        assert_eq!(counted, (2, 1, 0));
        assert_eq!(lab.tables.vip_stats(0).unwrap().flows, 1);
    }
}

/// What this CPU knows of the address makes no way past the gate.
#[test]
fn a_vip_without_flows_asks_too() {
    for mode in [Mode::Direct, Mode::Ipip] {
        let mut lab = Lab::new();
        let vip = web("192.0.2.1", mode, SynCookies::Always);
        lab.apply(vec![Vip {
            flows: FlowTable::None,
            ..vip
        }]);
        let data = "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | tcp 4000 > 80 flags A";
        for _ in 0..3 {
            assert_eq!(lab.target(data), "r1", "it is of a connection");
            asked(&lab, &syn("10.0.0.9", 4000));
        }
        prove(&lab, "10.0.0.9", 4000);
        assert_eq!(lab.target(&syn("10.0.0.9", 4000)), "r1", "{mode:?}");
        asked(&lab, &syn("10.0.0.10", 4000));
    }
}

#[test]
fn ipv6_is_answered_too_and_a_proof_is_its_networks() {
    let mut lab = Lab::new();
    lab.apply(vec![web("2001:db8::1", Mode::Gue, SynCookies::Always)]);
    let packet = |from: &str, tcp: &str| {
        format!("eth client > lb | ip6 {from} > 2001:db8::1 tc 0xb9 | tcp 4000 > 80 {tcp}")
    };
    let first = packet("2001:db8:9::9", "flags S seq 7 | text early data");
    let cookie = asked(&lab, &first);
    let wanted = format!(
        "eth lb > client | ip6 2001:db8::1 > 2001:db8:9::9 | tcp 80 > 4000 flags SA seq 0 ack {cookie}"
    );
    let (got, wanted) = (lab.send(&first).1, frame::build(&wanted));
    assert!(got == wanted, "{}", frame::difference(&got, &wanted));
    let reset = packet("2001:db8:9::9", &format!("flags R seq {cookie}"));
    assert_eq!(lab.target(&reset), "drop");
    assert_eq!(lab.target(&first), "r1");
    let beside = packet("2001:db8:9::a", "flags S");
    assert_eq!(lab.target(&beside), "r1", "of the same 64 bits");
    asked(&lab, &packet("2001:db8:9:1::9", "flags S"));
}

#[test]
fn options_of_ip_are_not_in_the_answer() {
    let mut lab = Lab::new();
    lab.apply(vec![web("192.0.2.1", Mode::Dnat, SynCookies::Always)]);
    let syn =
        "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 opts 3 tos 0xb9 id 7 | tcp 4000 > 80 flags S";
    let cookie = asked(&lab, syn);
    let wanted = format!(
        "eth lb > client | ip4 192.0.2.1 > 10.0.0.9 df | tcp 80 > 4000 flags SA seq 0 ack {cookie}"
    );
    let (got, wanted) = (lab.send(syn).1, frame::build(&wanted));
    assert!(got == wanted, "{}", frame::difference(&got, &wanted));
    let reset = format!(
        "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 opts 3 | tcp 4000 > 80 flags R seq {cookie}"
    );
    assert_eq!(lab.target(&reset), "drop");
    assert_eq!(lab.target(syn), "r1");
}

/// Moments of the monotonic clock in nanoseconds.
fn now_ns() -> u64 {
    let mut at = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes a time where there is room for one.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut at) };
    assert_eq!(done, 0);
    at.tv_sec as u64 * 1_000_000_000 + at.tv_nsec as u64
}

#[test]
fn a_cookie_that_is_wrong_old_or_anothers_proves_nothing() {
    let mut lab = Lab::new();
    lab.apply(vec![web("192.0.2.1", Mode::Direct, SynCookies::Always)]);
    let made = |lab: &Lab, before: u32| {
        let addr = |addr: &str| fiberlb::desired::mapped(addr.parse().unwrap());
        let key = FlowKey {
            src: addr("10.0.0.9"),
            dst: addr("192.0.2.1"),
            sport: 4003_u16.to_be(),
            dport: 80_u16.to_be(),
            proto: 6,
        };
        let period = cookie_period(now_ns()) - before;
        u32::from_be(cookie(
            &lab.tables.answer_rules().unwrap().keys[0],
            &key,
            period,
        ))
    };
    let good = asked(&lab, &syn("10.0.0.9", 4000));
    let mut wrong = 0;
    for (name, reset) in [
        ("wrong", reset("10.0.0.9", 4000, good.wrapping_add(1))),
        ("another port's", reset("10.0.0.9", 4001, good)),
        ("another source's", reset("10.0.0.8", 4000, good)),
        (
            "of two periods before",
            reset("10.0.0.9", 4003, made(&lab, 2)),
        ),
    ] {
        // A reset of a flow that another node had, for all that is known.
        assert_eq!(lab.target(&reset), "r1", "{name}");
        wrong += 1;
        assert_eq!(
            lab.tables.answer_stats(0).unwrap().cookies_wrong,
            wrong,
            "{name}"
        );
        asked(&lab, &syn("10.0.0.9", 5000));
    }
    let no_reset = reset("10.0.0.9", 4002, good).replace("flags R", "flags RA");
    assert_eq!(lab.target(&no_reset), "r1", "a server's reset");
    lab.tables.rotate_cookie_key().unwrap();
    lab.tables.rotate_cookie_key().unwrap();
    assert_eq!(
        lab.target(&reset("10.0.0.7", 4000, good)),
        "r1",
        "of a key that is gone"
    );
    let stats = lab.tables.answer_stats(0).unwrap();
    assert_eq!((stats.cookies_proved, stats.cookies_wrong), (0, 5));

    // One key later, and as late as a period later, it still holds.
    let cookie = asked(&lab, &syn("10.0.0.6", 4000));
    lab.tables.rotate_cookie_key().unwrap();
    assert_eq!(lab.target(&reset("10.0.0.6", 4000, cookie)), "drop");
    assert_eq!(lab.target(&syn("10.0.0.6", 4000)), "r1");
}

#[test]
fn by_itself_a_gate_closes_when_there_are_too_many_or_no_room() {
    let mut lab = Lab::new();
    lab.apply(vec![
        web("192.0.2.1", Mode::Direct, SynCookies::Auto),
        Vip {
            syn_cookies: SynCookies::Off,
            ..vip(
                Proto::Tcp,
                "192.0.2.2",
                80,
                Mode::Direct,
                vec![backend("r2", "10.1.0.2")],
            )
        },
    ]);
    let never = |port| syn("10.0.0.9", port).replace("192.0.2.1", "192.0.2.2");
    assert_eq!(lab.target(&syn("10.0.0.9", 4000)), "r1");
    // Less than one is saved up: the first is too many.
    lab.tables.set_gate_rate(1).unwrap();
    asked(&lab, &syn("10.0.0.9", 4001));
    assert_eq!(lab.target(&never(4001)), "r2");
    for flags in ["S", "A", "PA"] {
        let packet = syn("10.0.0.9", 4000).replace("flags S", &format!("flags {flags}"));
        assert_eq!(lab.target(&packet), "r1", "of a known flow");
    }
    let old = syn("10.0.0.9", 4002).replace("flags S", "flags A");
    assert_eq!(lab.target(&old), "r1", "of a flow that another node had");
    let udp = "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 | udp 4000 > 80";
    assert_eq!(lab.target(udp), "pass");
    prove(&lab, "10.0.0.9", 4003);
    assert_eq!(lab.target(&syn("10.0.0.9", 4004)), "r1");
    asked(&lab, &syn("10.0.0.8", 4000));

    let mut lab = Lab::new();
    lab.apply(vec![web("192.0.2.1", Mode::Dnat, SynCookies::Auto)]);
    assert_eq!(lab.target(&syn("10.0.0.9", 4000)), "r1");
    lab.configure(|config| config.insert_cost_ns = u32::MAX);
    asked(&lab, &syn("10.0.0.9", 4001));
}

/// Keeps this thread on one CPU, whose buckets it then empties.
fn stay_on_a_cpu() {
    // SAFETY: plain numbers; the set outlives the calls.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(libc::sched_getcpu() as usize, &mut set);
        assert_eq!(
            libc::sched_setaffinity(0, size_of_val(&set), &raw const set),
            0
        );
    }
}

#[test]
fn a_flood_of_others_leaves_room_for_sources_that_proved_themselves() {
    stay_on_a_cpu();
    let mut lab = Lab::new();
    let dnat = |addr, cookies| Vip {
        backends: vec![Backend {
            port: Some(8080),
            ..backend("r1", "10.1.0.1")
        }],
        ..web(addr, Mode::Dnat, cookies)
    };
    lab.apply(vec![
        dnat("192.0.2.1", SynCookies::Always),
        dnat("192.0.2.2", SynCookies::Off),
    ]);
    prove(&lab, "10.0.0.9", 4000);
    // Room for two flows, and for another one in more than four seconds.
    lab.configure(|config| {
        config.insert_cost_ns = u32::MAX;
        config.insert_burst_ns = 2 * u64::from(u32::MAX);
    });
    let of_flood = |port| syn("203.0.113.7", port).replace("192.0.2.1", "192.0.2.2");
    let full = (1000..1100).find(|port| lab.target(&of_flood(*port)) == "drop");
    assert!(full.is_some(), "there is room for a flood");
    assert_eq!(lab.target(&syn("10.0.0.9", 4000)), "r1");
    assert_eq!(lab.target(&syn("10.0.0.9", 4001)), "r1");
    let full = (4002..4100).find(|port| lab.target(&syn("10.0.0.9", *port)) == "drop");
    assert!(full.is_some(), "what has proved itself has no limit");
}
