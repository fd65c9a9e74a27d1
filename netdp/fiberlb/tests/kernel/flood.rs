//! A flood of SYNs from sources that are not there, beside clients that are.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fiberlb::attach::Attached;
use fiberlb::desired::{Backend, Mode, Proto, SynCookies, Vip};

use crate::frame;
use crate::lab::vip;
use crate::net::{Machine, become_router};
use crate::network::{Running, bpffs, start};

const DEADLINE: Duration = Duration::from_mins(1);
/// Sources of the flood.
const SOURCES: u32 = 5000;
/// Clients' addresses, each of which has to prove itself.
const CLIENTS: u8 = 12;

/// Frames of the flood from one machine's link, to each of the VIPs.
fn frames(machine: &Machine) -> Vec<Vec<u8>> {
    let [here, there] = machine.macs();
    let frame = |at: u32| {
        let source = format!("198.18.{}.{}", at >> 8 & 255, at & 255);
        let vip = 1 + at % 2;
        let port = if vip == 1 { 80 } else { 8080 };
        let sport = 1024 + at;
        let text = format!(
            "eth client > lb | ip4 {source} > 192.0.2.{vip} | tcp {sport} > {port} flags S seq {at}"
        );
        let mut frame = frame::build(&text);
        frame[..6].copy_from_slice(&here);
        frame[6..12].copy_from_slice(&there);
        frame
    };
    (0..SOURCES).map(frame).collect()
}

/// Sends frames in turn by `eth0` of the namespace that it runs in, until it is to stop.
fn flood(frames: &[Vec<u8>], stop: &AtomicBool) -> u64 {
    let all = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: sockets and names of interfaces; each pointer is to what it should be, and outlives its call.
    unsafe {
        let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
        assert!(socket >= 0, "{}", io::Error::last_os_error());
        let mut to: libc::sockaddr_ll = std::mem::zeroed();
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = all;
        to.sll_ifindex = libc::if_nametoindex(c"eth0".as_ptr()) as i32;
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            let frame = &frames[(sent % u64::from(SOURCES)) as usize];
            let len = size_of_val(&to) as libc::socklen_t;
            libc::sendto(
                socket,
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                len,
            );
            sent += 1;
        }
        libc::close(socket);
        sent
    }
}

fn wait_for_cookies(lb: &Running, slot: u16) {
    let until = Instant::now() + DEADLINE;
    while lb.tables.answer_stats(slot).unwrap().cookies_sent < 2000 {
        assert!(Instant::now() < until, "the flood is not answered");
        std::thread::yield_now();
    }
}

#[test]
fn clients_come_in_beside_a_flood_of_syns() {
    become_router();
    let dir = tempfile::tempdir().unwrap();
    bpffs(dir.path());
    let [client, one] = [1, 2].map(Machine::new);
    one.run("ip addr add 192.0.2.2/32 dev lo");
    one.serve("0.0.0.0:8080", "b1");
    one.serve("[::]:8081", "b6");
    for last in 10..10 + CLIENTS {
        client.run(&format!("ip addr add 10.1.0.{last}/24 dev eth0"));
    }
    let web = |addr, port, mode, backend: Backend| Vip {
        syn_cookies: SynCookies::Auto,
        ..vip(Proto::Tcp, addr, port, mode, vec![backend])
    };
    let to = |addr, port| Backend {
        port,
        hop: Some(one.hop()),
        ..crate::lab::backend("r1", addr)
    };
    let mut lb = start(dir.path());
    assert_eq!(lb.attach(&[&client, &one]), [Attached::Native; 2]);
    lb.apply(vec![
        web("192.0.2.1", 80, Mode::Dnat, to("10.2.0.2", Some(8080))),
        web("192.0.2.2", 8080, Mode::Direct, to("10.2.0.2", None)),
        web("2001:db8::1", 80, Mode::Dnat, to("fd00:2::2", Some(8081))),
    ]);
    lb.tables.set_gate_rate(1).unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let (frames, stopped) = (frames(&client), Arc::clone(&stop));
    let flood = client.spawn(move || flood(&frames, &stopped));
    for slot in 0..2 {
        wait_for_cookies(&lb, slot);
    }
    for last in 10..10 + CLIENTS {
        for url in ["http://192.0.2.1/", "http://192.0.2.2:8080/"] {
            let curl = format!("curl -s -S --max-time 30 --interface 10.1.0.{last} {url}");
            assert_eq!(client.run(&curl), "b1", "{url} from 10.1.0.{last}");
        }
    }
    assert_eq!(
        client.run("curl -s -S --max-time 30 http://[2001:db8::1]/"),
        "b6"
    );
    let connected = client.spawn(|| TcpStream::connect("192.0.2.1:80").map(drop));
    connected.join().unwrap().unwrap();
    stop.store(true, Ordering::Relaxed);
    assert!(flood.join().unwrap() > 4000);

    // Nobody of the flood has a flow, and nobody of it has proved himself.
    let flows = [0, 1, 2].map(|slot| lb.tables.vip_stats(slot).unwrap().flows);
    let clients = u64::from(CLIENTS);
    assert_eq!(flows, [clients + 1, clients, 1]);
    let proved = [0, 1, 2].map(|slot| lb.tables.answer_stats(slot).unwrap().cookies_proved);
    assert_eq!(proved, [clients + 1, 0, 1], "one proof is for all VIPs");
}
