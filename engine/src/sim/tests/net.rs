//! Streams, datagrams and eventfds between nodes that lose sight of each other.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use super::{NodeId, Sim, addr, one_node, start, two_nodes};
use crate::backend::Addr;
use crate::net::{ListenOptions, Listener, TcpStream, UdpSocket};
use crate::{EventFd, SchedGroup, spawn_local};

/// Serves every connection on a port by sending back what comes.
fn serve_echo(sim: &Sim, at: &Addr, node: NodeId, shard: u16) {
    let at = at.clone();
    let _detached = sim.spawn(node, shard, async move {
        let mut listener = Listener::bind(&at, ListenOptions::default()).unwrap();
        loop {
            let stream = listener.accept().await.unwrap();
            spawn_local(SchedGroup::FOREGROUND, async move {
                loop {
                    let (count, bytes) = stream.recv(vec![0; 16 << 10]).await;
                    match count {
                        Ok(0) | Err(_) => return,
                        Ok(_) => {}
                    }
                    if stream.send(bytes).await.0.is_err() {
                        return;
                    }
                }
            })
            .detach();
        }
    });
    sim.run_for(Duration::from_millis(1));
}

async fn read_all(stream: &TcpStream, mut left: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while left > 0 {
        let (count, bytes) = stream.recv(vec![0; left.min(64 << 10)]).await;
        let count = count.unwrap();
        assert!(count > 0, "the stream ended {left} bytes early");
        all.extend_from_slice(&bytes);
        left -= count;
    }
    all
}

#[test]
fn a_stream_keeps_order_and_content_past_its_window() {
    for seed in 0..20 {
        let (sim, a, b) = two_nodes(seed);
        serve_echo(&sim, &addr(b, 80), b, 0);
        sim.run(a, 0, async move {
            let stream = std::rc::Rc::new(TcpStream::connect(&addr(b, 80)).await.unwrap());
            assert_eq!(stream.peer_addr().unwrap(), addr(b, 80));
            let sent: Vec<u8> = (0..1_000_000_u32).map(|i| (i * 7 % 251) as u8).collect();
            let (sender, bytes) = (stream.clone(), sent.clone());
            let sending = spawn_local(SchedGroup::FOREGROUND, async move {
                sender.send(bytes).await.0.unwrap();
            });
            assert!(
                read_all(&stream, sent.len()).await == sent,
                "bytes came back changed"
            );
            sending.await;
        });
    }
}

#[test]
fn a_connect_to_nobody_is_refused_and_to_a_dead_node_times_out() {
    let (sim, a, b) = two_nodes(5);
    let connect = move || async move {
        let tried = TcpStream::connect(&addr(b, 81)).await;
        tried.err().map(|e| e.kind())
    };
    assert_eq!(sim.run(a, 0, connect()), Some(ErrorKind::ConnectionRefused));
    sim.crash(b);
    let before = sim.now();
    assert_eq!(sim.run(a, 0, connect()), Some(ErrorKind::TimedOut));
    assert!(sim.now() - before >= Duration::from_secs(10));
    start(&sim, b);
    assert_eq!(sim.run(a, 0, connect()), Some(ErrorKind::ConnectionRefused));
}

#[test]
fn a_partition_stalls_a_stream_and_healing_it_loses_nothing() {
    for seed in 0..20 {
        let (sim, a, b) = two_nodes(seed);
        serve_echo(&sim, &addr(b, 80), b, 0);
        let stream = sim.run(a, 0, async move {
            TcpStream::connect(&addr(b, 80)).await.unwrap()
        });
        if seed % 2 == 0 {
            sim.partition(a, b);
        } else {
            sim.one_way(b, a);
        }
        let task = sim.spawn(a, 0, async move {
            stream.send(vec![9; 5_000]).await.0.unwrap();
            read_all(&stream, 5_000).await
        });
        sim.run_for(Duration::from_mins(1));
        assert!(
            task.take().is_none(),
            "seed {seed}: bytes crossed a cut link"
        );
        sim.heal();
        assert_eq!(sim.join(&task), Some(vec![9; 5_000]));
    }
}

#[test]
fn a_reset_and_a_crash_end_a_connection() {
    for seed in 0..40 {
        let (sim, a, b) = two_nodes(seed);
        serve_echo(&sim, &addr(b, 80), b, 0);
        let stream = sim.run(a, 0, async move {
            TcpStream::connect(&addr(b, 80)).await.unwrap()
        });
        if seed % 2 == 0 {
            sim.reset(a, b);
        } else {
            sim.crash(b);
            start(&sim, b);
        }
        let ended = sim.run(a, 0, async move {
            // The peer may have gone in silence: then sending finds out.
            let _ = stream.send(vec![1; 10]).await;
            stream.recv(vec![0; 10]).await.0.map_err(|e| e.kind())
        });
        assert_eq!(ended, Err(ErrorKind::ConnectionReset), "seed {seed}");
    }
}

#[test]
fn half_closing_lets_the_other_half_finish() {
    let (sim, a, b) = two_nodes(6);
    let at = addr(b, 80);
    let _detached = sim.spawn(b, 1, async move {
        let mut listener = Listener::bind(&at, ListenOptions::default()).unwrap();
        let stream = listener.accept().await.unwrap();
        let mut total = 0_u64;
        while let Some(buf) = stream.recv_ring().await.unwrap() {
            total += buf.len() as u64;
        }
        stream.send(total.to_le_bytes().to_vec()).await.0.unwrap();
    });
    let told = sim.run(a, 0, async move {
        crate::sleep(Duration::from_millis(5)).await;
        let stream = TcpStream::connect(&addr(b, 80)).await.unwrap();
        stream.send_zero_copy(vec![0; 30_000]).await.0.unwrap();
        stream.shutdown_write().await.unwrap();
        read_all(&stream, 8).await
    });
    assert_eq!(told, 30_000_u64.to_le_bytes());
}

#[test]
fn a_multishot_receive_runs_out_of_buffers_and_goes_on() {
    let (sim, a, b) = two_nodes(7);
    let at = addr(b, 80);
    let reader = sim.spawn(b, 0, async move {
        let mut listener = Listener::bind(&at, ListenOptions::default()).unwrap();
        let stream = listener.accept().await.unwrap();
        // More than the ring's 1 MiB arrives before anything is read.
        let mut incoming = stream.recv_stream();
        let (mut total, mut dry) = (0, 0);
        loop {
            match incoming.next().await {
                Ok(None) => return (total, dry > 0),
                Ok(Some(buf)) => {
                    assert!(buf.iter().all(|byte| *byte == 3));
                    total += buf.len();
                }
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS));
                    dry += 1;
                }
            }
            crate::sleep(Duration::from_micros(50)).await;
        }
    });
    sim.run(a, 0, async move {
        crate::sleep(Duration::from_millis(5)).await;
        let stream = TcpStream::connect(&addr(b, 80)).await.unwrap();
        for _ in 0..40 {
            stream.send(vec![3; 64 << 10]).await.0.unwrap();
        }
    });
    assert_eq!(sim.join(&reader), Some((40 * (64 << 10), true)));
}

#[test]
fn listeners_on_one_port_share_connections_across_shards() {
    let (sim, a, b) = two_nodes(8);
    let mut counts = Vec::new();
    for shard in 0..2 {
        let log = std::rc::Rc::new(std::cell::Cell::new(0));
        counts.push(log.clone());
        let at = addr(b, 80);
        let _detached = sim.spawn(b, shard, async move {
            let mut listener = Listener::bind(&at, ListenOptions::default()).unwrap();
            loop {
                listener.accept().await.unwrap();
                log.set(log.get() + 1);
            }
        });
    }
    sim.run(a, 0, async move {
        crate::sleep(Duration::from_millis(5)).await;
        for _ in 0..40 {
            TcpStream::connect(&addr(b, 80)).await.unwrap();
        }
        crate::sleep(Duration::from_millis(5)).await;
    });
    assert!(
        counts.iter().all(|count| count.get() > 5),
        "one shard gets all"
    );
    assert_eq!(counts.iter().map(|count| count.get()).sum::<i32>(), 40);
}

#[test]
fn unix_streams_connect_inside_a_node_only() {
    let (sim, a, b) = two_nodes(9);
    let at = Addr::Unix(PathBuf::from("/run/echo.sock"));
    serve_echo(&sim, &at, a, 0);
    let there = at.clone();
    let echoed = sim.run(a, 1, async move {
        let stream = TcpStream::connect(&there).await.unwrap();
        stream.send(b"hello".to_vec()).await.0.unwrap();
        read_all(&stream, 5).await
    });
    assert_eq!(echoed, b"hello");
    let elsewhere = sim.run(b, 0, async move { TcpStream::connect(&at).await.err() });
    assert_eq!(elsewhere.unwrap().kind(), ErrorKind::NotFound);
}

/// Sends 200 numbered datagrams and tells in which order they arrived.
fn exchange(sim: &Sim, a: NodeId, b: NodeId) -> Vec<u8> {
    let receiver = sim.spawn(b, 0, async move {
        let socket = UdpSocket::bind(&addr(b, 53), false).unwrap();
        let mut seen = Vec::new();
        let waiting = Duration::from_millis(100);
        while let Some((got, bytes)) = crate::timeout(waiting, socket.recv_from(vec![0; 64])).await
        {
            let (len, from) = got.unwrap();
            assert_eq!((len, from), (1, addr(a, 1000)));
            seen.push(bytes[0]);
        }
        seen
    });
    let _detached = sim.spawn(a, 0, async move {
        let socket = UdpSocket::bind(&addr(a, 1000), false).unwrap();
        crate::sleep(Duration::from_millis(1)).await;
        for number in 0..200 {
            socket.send_to(vec![number], &addr(b, 53)).await.0.unwrap();
            crate::sleep(Duration::from_micros(100)).await;
        }
    });
    sim.join(&receiver).unwrap()
}

#[test]
fn datagrams_drop_double_and_overtake_by_rate_and_vanish_under_a_partition() {
    let (sim, a, b) = two_nodes(10);
    assert_eq!(
        exchange(&sim, a, b).len(),
        200,
        "nothing is lost unless asked for"
    );
    sim.configure(|config| {
        config.datagram_drops_one_in = 5;
        config.datagram_duplicates_one_in = 10;
        config.datagram_reorders_one_in = 10;
    });
    // The first round's sockets close a moment after its tasks end.
    sim.run_for(Duration::from_millis(1));
    let seen = exchange(&sim, a, b);
    let distinct: BTreeSet<u8> = seen.iter().copied().collect();
    assert!(
        (120..190).contains(&distinct.len()),
        "{} of 200 arrived",
        distinct.len()
    );
    assert!(seen.len() > distinct.len(), "some arrive twice");
    assert!(!seen.is_sorted(), "some overtake");
    sim.run_for(Duration::from_millis(1));
    sim.partition(a, b);
    assert_eq!(exchange(&sim, a, b), Vec::<u8>::new());
}

#[test]
fn an_eventfd_counts_signals_and_wakes_its_reader() {
    let (sim, node) = one_node(11);
    sim.run(node, 0, async {
        let mut event = EventFd::new().unwrap();
        event.signal().unwrap();
        event.signal().unwrap();
        assert_eq!(event.wait().await.unwrap(), 2);
        let none = crate::timeout(Duration::from_millis(1), event.wait()).await;
        assert!(none.is_none());
        event.signal().unwrap();
        assert_eq!(event.wait().await.unwrap(), 1);
    });
}
