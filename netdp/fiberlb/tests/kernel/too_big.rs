//! Packets too big for the tunnel to their backend: who is told, and what.

use fiberlb::desired::{Backend, Mode, Proto, Vip};
use fiberlb::program::Program;

use crate::lab::{Lab, backend, vip};
use crate::net::{Machine, become_router};
use crate::network::{bpffs, start, tunnel_end, tunnels};

/// VIPs whose ways take 1500 bytes, on ports that say which version the tunnel has.
fn lab(mode: Mode) -> Lab {
    let mut lab = Lab::new();
    let narrow = |machine, addr| {
        vec![Backend {
            mtu: Some(1500),
            ..backend(machine, addr)
        }]
    };
    let (v4, v6) = (
        || narrow("r1", "10.1.0.1"),
        || narrow("r2", "2001:db8:1::2"),
    );
    lab.apply(vec![
        vip(Proto::Udp, "192.0.2.1", 44, mode, v4()),
        vip(Proto::Udp, "192.0.2.1", 46, mode, v6()),
        vip(Proto::Udp, "2001:db8::1", 64, mode, v4()),
        vip(Proto::Udp, "2001:db8::1", 66, mode, v6()),
    ]);
    lab
}

const V4: &str = "eth client > lb | ip4 10.0.0.9 > 192.0.2.1 tos 0xb9 df id 7 | udp 4000";
const V6: &str = "eth client > lb | ip6 2001:db8:9::9 > 2001:db8::1 | udp 4000";

/// The answer to a packet that was sent to a port with a payload of so many zeros: the packet is cut after
/// what an answer may have of it.
fn answer(packet: &str, port: u16, zeros: usize, mtu: u32) -> String {
    let (_, ip) = packet.split_once(" | ").unwrap();
    let (ip, udp) = ip.split_once(" | ").unwrap();
    let len = zeros + 8;
    if packet == V4 {
        // The head keeps the length that the packet had; the checksum of UDP is the packet's too.
        let sum = sum(packet, port, zeros, 34);
        let (all, kept) = (len + 20, 548 - 28);
        format!(
            "eth lb > client | ip4 192.0.2.1 > 10.0.0.9 tos 0xb8 df | icmp4 3 4 mtu {mtu} | {ip} len {all} | {udp} > {port} len {len} sum {sum} | zeros {kept}"
        )
    } else {
        let sum = sum(packet, port, zeros, 54);
        let kept = 1232 - 48;
        format!(
            "eth lb > client | ip6 2001:db8::1 > 2001:db8:9::9 | icmp6 2 0 mtu {mtu} | {ip} len {len} | {udp} > {port} len {len} sum {sum} | zeros {kept}"
        )
    }
}

fn sum(packet: &str, port: u16, zeros: usize, udp: usize) -> u16 {
    let frame = crate::frame::build(&format!("{packet} > {port} | zeros {zeros}"));
    u16::from_be_bytes([frame[udp + 6], frame[udp + 7]])
}

#[test]
fn the_sender_of_a_packet_too_big_is_told_what_fits() {
    for (mode, udp) in [(Mode::Ipip, 0), (Mode::Gue, 8)] {
        let lab = lab(mode);
        for (packet, port, head, overhead) in [
            (V4, 44, 28, 20 + udp),
            (V4, 46, 28, 40 + udp),
            (V6, 64, 48, 20 + udp),
            (V6, 66, 48, 40 + udp),
        ] {
            let room = 1500 - overhead;
            let fits = format!("{packet} > {port} | zeros {}", room - head);
            assert!(lab.target(&fits).starts_with('r'), "{mode:?} {port}");
            for more in [1, 4, 700] {
                let zeros = room - head + more;
                let input = &format!("{packet} > {port} | zeros {zeros}");
                let output = &answer(packet, port, zeros, room as u32);
                let name = &*format!("{mode:?}, port {port}, {more} more");
                lab.check_one(Program::Balance, (name, input), "redirect", output);
            }
        }
        let told = (0..4).map(|slot| lab.tables.answer_stats(slot).unwrap().too_big_told);
        assert_eq!(told.sum::<u64>(), 12);
    }
}

#[test]
fn who_may_not_be_told_is_not() {
    let mut lab = lab(Mode::Ipip);
    let may_be_cut = V4.replace(" df", "");
    let from = |addr: &str| V4.replace("10.0.0.9", addr);
    let mut dropped = 0;
    for packet in [
        may_be_cut,
        from("0.0.0.0"),
        from("127.0.0.1"),
        from("224.0.0.1"),
        from("255.255.255.255"),
    ] {
        let packet = format!("{packet} > 44 | zeros 1500");
        assert_eq!(lab.target(&packet), "drop", "{packet}");
        dropped += 1;
        assert_eq!(lab.tables.answer_stats(0).unwrap().too_big_dropped, dropped);
    }
    for from in ["::", "ff02::1"] {
        let packet = V6.replace("2001:db8:9::9", from);
        assert_eq!(lab.target(&format!("{packet} > 64 | zeros 1500")), "drop");
    }
    // An error about an error is never sent.
    let error = "eth router > lb | ip4 203.0.113.7 > 192.0.2.1 df | icmp4 11 0 | ip4 192.0.2.1 > 10.0.0.9 len 1500 | udp 44 > 4000 len 1500 sum 0 | zeros 1450";
    assert_eq!(lab.target(error), "drop");
    assert_eq!(lab.tables.answer_stats(0).unwrap().too_big_told, 0);
    assert_eq!(lab.tables.vip_stats(0).unwrap().dropped, 1);

    lab.tables.set_tell_rate(0).unwrap();
    assert_eq!(lab.target(&format!("{V4} > 44 | zeros 1500")), "drop");
    assert_eq!(
        lab.tables.answer_stats(0).unwrap().too_big_dropped,
        dropped + 1
    );
    lab.tables.set_tell_rate(1000).unwrap();
    assert_eq!(lab.target(&format!("{V4} > 44 | zeros 1500")), "client");
}

/// A VIP of each version in a tunnel to a machine, which ends it.
#[test]
fn large_requests_come_through_a_tunnel() {
    become_router();
    let dir = tempfile::tempdir().unwrap();
    bpffs(dir.path());
    let [client, one] = [1, 2].map(Machine::new);
    for addr in ["192.0.2.1/32", "2001:db8::1/128"] {
        one.run(&format!("ip addr add {addr} dev lo"));
    }
    one.serve("0.0.0.0:80", "b1");
    one.serve("[::]:8081", "b6");
    let mut lb = start(dir.path());
    lb.attach(&[&client]);
    lb.tables.set_config(&tunnels()).unwrap();
    let end = one.spawn(|| tunnel_end(&["10.2.0.2", "fd00:2::2"]));
    let _end = end.join().unwrap();
    let to = |addr: &str| {
        vec![Backend {
            hop: Some(one.hop()),
            mtu: Some(1500),
            ..backend("r1", addr)
        }]
    };
    for (mode, told) in [(Mode::Ipip, 1), (Mode::Gue, 2)] {
        let vips: Vec<Vip> = vec![
            vip(Proto::Tcp, "192.0.2.1", 80, mode, to("10.2.0.2")),
            vip(Proto::Tcp, "2001:db8::1", 8081, mode, to("fd00:2::2")),
        ];
        lb.apply(vips);
        for (slot, addr, name) in [(0, "192.0.2.1:80", "b1"), (1, "[2001:db8::1]:8081", "b6")] {
            let mut client = client.connect(addr);
            assert_eq!(client.ask_with(100_000), name, "{mode:?}");
            let stats = lb.tables.answer_stats(slot).unwrap();
            assert!(stats.too_big_told >= told, "{mode:?}: {stats:?}");
        }
    }
}
