//! Sealed pages on simulated streams: the promises are those of the kernel's, see `tests/pages.rs`.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use super::{NodeId, Sim, addr, one_node, two_nodes};
use crate::net::{ListenOptions, Listener, TcpStream};
use crate::{PAGES_MAX, Pages, SchedGroup, spawn_local};

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i + seed) * 7 % 251) as u8).collect()
}

/// Bytes that `server` sends to whoever connects.
fn serve(sim: &Sim, server: NodeId, bytes: Vec<Vec<u8>>) {
    let at = addr(server, 80);
    let _detached = sim.spawn(server, 0, async move {
        let mut listener = Listener::bind(&at, ListenOptions::default()).unwrap();
        let stream = listener.accept().await.unwrap();
        for bytes in bytes {
            let pages = Pages::seal(&bytes).unwrap();
            let mut at = 0;
            while at < pages.len() {
                match stream.send_pages(&pages, at..pages.len()).await {
                    Ok(sent) => at += sent,
                    Err(_) => return,
                }
            }
        }
    });
    sim.run_for(Duration::from_millis(1));
}

async fn read_to_end(stream: &TcpStream, step: usize) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let (count, bytes) = stream.recv(vec![0; step]).await;
        if count.unwrap() == 0 {
            return all;
        }
        all.extend_from_slice(&bytes);
    }
}

#[test]
fn pages_arrive_whole_and_in_order_past_the_window() {
    for seed in 0..20 {
        let (sim, a, b) = two_nodes(seed);
        sim.configure(|config| config.short_sends_one_in = 3);
        let parts: Vec<Vec<u8>> = (0..5).map(|n| pattern(n, PAGES_MAX - n * 1000)).collect();
        serve(&sim, b, parts.clone());
        let got = sim.run(a, 0, async move {
            let stream = TcpStream::connect(&addr(b, 80)).await.unwrap();
            read_to_end(&stream, 30_000).await
        });
        assert!(got == parts.concat(), "seed {seed}: bytes changed");
    }
}

#[test]
fn a_reader_that_stops_holds_the_sender_up_until_it_goes_on() {
    let (sim, a, b) = two_nodes(3);
    let at = addr(b, 80);
    let sending = sim.spawn(b, 0, async move {
        let mut listener = Listener::bind(&at, ListenOptions::default()).unwrap();
        let stream = listener.accept().await.unwrap();
        stream.send_more(b"head".to_vec()).await.0.unwrap();
        let pages = Pages::seal(&pattern(0, PAGES_MAX)).unwrap();
        let (mut sent, mut waits) = (0, 0);
        while sent < 2 * PAGES_MAX {
            let at = sent % PAGES_MAX;
            let send = stream.send_pages(&pages, at..PAGES_MAX);
            match crate::timeout(Duration::from_secs(10), send).await {
                Some(done) => sent += done.unwrap(),
                None => waits += 1,
            }
        }
        waits
    });
    let got = sim.run(a, 0, async move {
        let stream = TcpStream::connect(&addr(b, 80)).await.unwrap();
        crate::sleep(Duration::from_secs(35)).await;
        read_to_end(&stream, 4096).await
    });
    let waits = sim.join(&sending).unwrap();
    assert_eq!(waits, 3, "a wait that was given up has sent nothing");
    let part = pattern(0, PAGES_MAX);
    assert!(
        got == [b"head", &part[..], &part[..]].concat(),
        "bytes changed"
    );
}

#[test]
fn a_peer_that_is_gone_is_an_error() {
    for seed in 0..10 {
        let (sim, a, b) = two_nodes(seed);
        let at = addr(b, 80);
        let sending = sim.spawn(b, 0, async move {
            let mut listener = Listener::bind(&at, ListenOptions::default()).unwrap();
            let stream = listener.accept().await.unwrap();
            let pages = Pages::seal(&pattern(0, PAGES_MAX)).unwrap();
            loop {
                if let Err(error) = stream.send_pages(&pages, 0..PAGES_MAX).await {
                    return error.kind();
                }
            }
        });
        sim.run(a, 0, async move {
            let stream = TcpStream::connect(&addr(b, 80)).await.unwrap();
            stream.recv(vec![0; 100]).await.0.unwrap();
        });
        let kind = sim.join(&sending).unwrap();
        assert!(
            matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
            "seed {seed}: {kind}"
        );
    }
}

#[test]
fn pages_are_read_and_dropped_on_other_shards() {
    let (sim, node) = one_node(1);
    let pages = sim.run(node, 0, async {
        let bytes = pattern(9, 10_000);
        let pages = Arc::new(Pages::seal(&bytes).unwrap());
        let reading = Arc::clone(&pages);
        spawn_local(SchedGroup::FOREGROUND, async move {
            let mut copy = vec![0; 500];
            reading.copy_to(9_500, &mut copy).unwrap();
            assert_eq!(copy, bytes[9_500..]);
        })
        .await;
        pages
    });
    sim.run(node, 1, async move {
        let mut first = [0; 1];
        pages.copy_to(0, &mut first).unwrap();
        assert_eq!(first[0], pattern(9, 1)[0]);
    });
}

#[test]
fn pages_that_are_refused_say_so() {
    let (sim, node) = one_node(1);
    sim.configure(|config| config.page_seals_fail_one_in = 1);
    let refused = sim.run(node, 0, async { Pages::seal(b"x").map(drop) });
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::OutOfMemory);
}
