//! The whole node under the simulator: S3 over simulated sockets onto a simulated disk. Contract BY-2.
//!
//! Fault model: the machine loses power at any moment; writes that were not flushed are lost, torn
//! or kept by chance. What must survive: every object whose PUT was answered 200. Deadlines run in
//! virtual time, so that a minute costs nothing.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::net::SocketAddr;
use std::time::Duration;

use engine::net::{Addr, TcpStream};
use engine::sim::{NodeId, Sim};
use engine::{EngineConfig, Rng};
use lightningstor::http::{HttpConfig, Limits, User, Users};
use lightningstor::node::{LightningStorNode, NodeConfig};
use lightningstor::store::StoreConfig;
use s3_wire::request::HostConfig;
use s3_wire::sigv4::{RegionPolicy, RequestToSign, Signer, sign_request};

const SHARDS: usize = 2;
const PORT: u16 = 9000;

struct World {
    sim: Sim,
    server: NodeId,
    client: NodeId,
    limits: Limits,
}

fn world(seed: u64) -> World {
    let sim = Sim::new(seed);
    let (server, client) = (sim.node("server"), sim.node("client"));
    let world = World {
        sim,
        server,
        client,
        limits: Limits::default(),
    };
    world.sim.start(client, engine_config()).unwrap();
    world
}

fn engine_config() -> EngineConfig {
    EngineConfig {
        pool_bytes: 16 << 20,
        ..EngineConfig::unpinned(SHARDS)
    }
}

impl World {
    fn addr(&self) -> SocketAddr {
        SocketAddr::new(self.server.ip().into(), PORT)
    }

    /// Gives the server power and waits until it serves, which it does as long as the engine runs.
    fn start(&self) {
        std::mem::forget(self.start_node());
    }

    fn start_node(&self) -> LightningStorNode {
        let mut config = engine_config();
        let groups = LightningStorNode::declare(&mut config);
        let handle = self.sim.start(self.server, config).unwrap();
        let user = User {
            id: "root".into(),
            name: "root".into(),
            access_key: "KEY".into(),
            secret_key: "secret".into(),
        };
        let node = NodeConfig {
            data_dir: "/data".into(),
            partitions: 3,
            http: HttpConfig {
                listen: self.addr(),
                region: "us-east-1".into(),
                region_policy: RegionPolicy::Any,
                hosts: HostConfig::default(),
                users: Users::new(vec![user]).unwrap(),
                limits: self.limits,
            },
            store: store_config(),
        };
        let started = async move { LightningStorNode::start(&handle, groups, node).await };
        self.sim.run(self.server, 0, started).unwrap()
    }

    fn on_client<R: 'static>(&self, future: impl Future<Output = R> + 'static) -> R {
        self.sim.run(self.client, 0, future)
    }
}

fn store_config() -> StoreConfig {
    let mut config = StoreConfig {
        data_grow_bytes: 1 << 20,
        ..StoreConfig::default()
    };
    config.log.segment_bytes = 2 << 20;
    config
}

fn encode(addr: SocketAddr, method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let host = addr.to_string();
    let signer = Signer {
        access_key: "KEY",
        secret: "secret",
        session_token: None,
        region: "us-east-1",
        unix_s: (engine::wall_clock() / 1_000_000_000) as i64,
    };
    let request = RequestToSign {
        method,
        path,
        query: "",
        headers: &[("host", &host)],
    };
    let signed = sign_request(&signer, &request, "UNSIGNED-PAYLOAD").unwrap();
    let mut out = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nx-amz-date: {}\r\n\
         x-amz-content-sha256: UNSIGNED-PAYLOAD\r\nAuthorization: {}\r\nContent-Length: {}\r\n\r\n",
        signed.amz_date,
        signed.authorization,
        body.len()
    )
    .into_bytes();
    out.extend_from_slice(body);
    out
}

/// Reads an answer: status and body; `None` when the connection ends before it is whole.
async fn read_answer(stream: &TcpStream) -> Option<(u16, Vec<u8>)> {
    let mut got = Vec::new();
    let (head, length) = loop {
        if let Some(at) = got.windows(4).position(|w| w == b"\r\n\r\n") {
            let text = String::from_utf8(got[..at].to_vec()).unwrap();
            let length = text
                .split("\r\n")
                .find_map(|l| l.strip_prefix("Content-Length: "));
            break (
                (text.clone(), at + 4),
                length.map_or(0, |l| l.parse().unwrap()),
            );
        }
        receive(stream, &mut got).await?;
    };
    let (text, start) = head;
    while got.len() < start + length {
        receive(stream, &mut got).await?;
    }
    Some((
        text[9..12].parse().unwrap(),
        got[start..start + length].to_vec(),
    ))
}

async fn receive(stream: &TcpStream, got: &mut Vec<u8>) -> Option<()> {
    let (count, bytes) = stream.recv(vec![0; 65_536]).await;
    let count = count.ok().filter(|count| *count > 0)?;
    got.extend_from_slice(&bytes[..count]);
    Some(())
}

async fn ask(addr: SocketAddr, method: &str, path: &str, body: &[u8]) -> Option<(u16, Vec<u8>)> {
    let stream = TcpStream::connect(&Addr::Inet(addr)).await.ok()?;
    stream.send(encode(addr, method, path, body)).await.0.ok()?;
    read_answer(&stream).await
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| rng.next_u64() as u8).collect()
}

/// Inline, and streamed in two chunks.
const SIZES: [usize; 3] = [10, 65_536, 300_000];

#[test]
fn what_is_put_is_read_back_whichever_shard_is_asked() {
    let world = world(1);
    world.start();
    let addr = world.addr();
    world.on_client(async move {
        assert_eq!(ask(addr, "PUT", "/sim", b"").await.unwrap().0, 200);
        for (at, size) in SIZES.into_iter().enumerate() {
            let body = noise(at as u64, size);
            let path = format!("/sim/{at}");
            assert_eq!(ask(addr, "PUT", &path, &body).await.unwrap().0, 200);
            // Each connection may land on another shard.
            for _ in 0..4 {
                assert!(ask(addr, "GET", &path, b"").await.unwrap() == (200, body.clone()));
            }
        }
        assert_eq!(ask(addr, "DELETE", "/sim/0", b"").await.unwrap().0, 204);
        assert_eq!(ask(addr, "GET", "/sim/0", b"").await.unwrap().0, 404);
    });
}

#[test]
fn acknowledged_objects_survive_the_loss_of_power() {
    for seed in 0..50 {
        let world = world(seed);
        world.start();
        let addr = world.addr();
        world.on_client(async move {
            assert_eq!(ask(addr, "PUT", "/sim", b"").await.unwrap().0, 200);
        });
        let acknowledged = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let writers: Vec<_> = (0..3_u64)
            .map(|writer| {
                let acknowledged = std::rc::Rc::clone(&acknowledged);
                world.sim.spawn(world.client, 0, async move {
                    for n in 0..50_u64 {
                        let (path, seed) = (format!("/sim/{writer}-{n}"), writer << 32 | n);
                        let size = SIZES[(n % 3) as usize];
                        match ask(addr, "PUT", &path, &noise(seed, size)).await {
                            Some((200, _)) => acknowledged.borrow_mut().push((path, seed, size)),
                            _ => return,
                        }
                    }
                })
            })
            .collect();
        let moment = Duration::from_micros(2_000 + Rng::new(seed).below(60_000));
        world.sim.run_for(moment);
        world.sim.crash(world.server);
        drop(writers);
        let kept = acknowledged.take();
        world.start();
        world.on_client(async move {
            for (path, noise_seed, size) in kept {
                let got = ask(addr, "GET", &path, b"").await.unwrap();
                assert!(got == (200, noise(noise_seed, size)), "seed {seed}: {path}");
            }
        });
    }
}

#[test]
fn a_failed_flush_is_told_to_clients_and_to_the_operator_and_other_partitions_go_on() {
    let world = world(2);
    let node = std::rc::Rc::new(world.start_node());
    let (addr, disk) = (world.addr(), world.sim.disk(world.server));
    let stored = world.on_client(async move {
        assert_eq!(ask(addr, "PUT", "/sim", b"").await.unwrap().0, 200);
        let mut stored = Vec::new();
        for n in 0..200_u64 {
            let path = format!("/sim/{n}");
            let (status, body) = ask(addr, "PUT", &path, &noise(n, 300)).await.unwrap();
            if status == 200 {
                stored.push((path, n));
            } else {
                let body = String::from_utf8(body).unwrap();
                assert_eq!(status, 503, "{body}");
                assert!(body.contains("<Code>ServiceUnavailable</Code>"), "{body}");
                assert!(body.contains("takes no writes"), "{body}");
                assert!(body.contains("<RequestId>"), "{body}");
                return stored;
            }
            disk.fail_next_sync();
        }
        panic!("no flush failed");
    });
    let asked = std::rc::Rc::clone(&node);
    let poisoned = world
        .sim
        .run(world.server, 0, async move { asked.poisoned().await });
    assert_eq!(poisoned.len(), 1, "{poisoned:?}");
    let (partition, cause) = &poisoned[0];
    assert!(cause.contains(&format!("p{:03}", partition.0)), "{cause}");
    world.on_client(async move {
        for (path, n) in stored {
            let got = ask(addr, "GET", &path, b"").await.unwrap();
            assert!(got == (200, noise(n, 300)), "{path}");
        }
        let mut served = 0;
        for n in 1000..1020 {
            let (status, _) = ask(addr, "PUT", &format!("/sim/{n}"), b"x").await.unwrap();
            assert!(status == 200 || status == 503, "{status}");
            served += u32::from(status == 200);
        }
        assert!(served > 4, "other partitions take writes");
    });
    std::mem::forget(node);
}

#[test]
fn a_head_a_body_and_an_idle_connection_have_their_deadlines() {
    let world = world(3);
    world.start();
    let (addr, limits) = (world.addr(), world.limits);
    world.on_client(async move {
        assert_eq!(ask(addr, "PUT", "/sim", b"").await.unwrap().0, 200);
        let full = encode(addr, "PUT", "/sim/a", b"0123456789");
        let slow_head = full[..20].to_vec();
        let slow_body = full[..full.len() - 5].to_vec();
        for (bytes, deadline, answer) in [
            (slow_head, limits.head_deadline, true),
            (slow_body, limits.progress_deadline, true),
            (Vec::new(), limits.idle_deadline, false),
        ] {
            let stream = TcpStream::connect(&Addr::Inet(addr)).await.unwrap();
            let begun = engine::now();
            if !bytes.is_empty() {
                stream.send(bytes).await.0.unwrap();
            }
            let got = read_answer(&stream).await;
            let waited = engine::now().since(begun);
            // The server's clock starts a network delay before or after ours.
            let apart = waited.abs_diff(deadline);
            assert!(
                apart < Duration::from_secs(2),
                "{waited:?} instead of {deadline:?}"
            );
            match got {
                Some((status, body)) => {
                    assert!(answer && status == 400);
                    assert!(String::from_utf8(body).unwrap().contains("RequestTimeout"));
                }
                None => assert!(!answer),
            }
        }
        assert_eq!(ask(addr, "GET", "/sim/a", b"").await.unwrap().0, 404);
    });
}

#[test]
fn connections_beyond_the_limit_are_told_to_slow_down() {
    let mut world = world(4);
    world.limits.connections_max = 1;
    world.start();
    let addr = world.addr();
    world.on_client(async move {
        // One a shard is served; of more, some shard has to refuse.
        let mut open = Vec::new();
        let mut refused = 0;
        for _ in 0..=SHARDS {
            let stream = TcpStream::connect(&Addr::Inet(addr)).await.unwrap();
            stream.send(encode(addr, "GET", "/", b"")).await.0.unwrap();
            let (status, body) = read_answer(&stream).await.unwrap();
            if status == 503 {
                assert!(String::from_utf8(body).unwrap().contains("SlowDown"));
                refused += 1;
            } else {
                open.push(stream);
            }
        }
        assert!(refused >= 1);
        drop(open);
    });
}

/// Long enough for several pieces, and for more than a socket's window.
const LARGE: usize = 2 << 20;

/// Puts a large object and reads it until it comes from memory, whichever shard is asked.
async fn put_and_warm(addr: SocketAddr, body: &[u8]) {
    assert_eq!(ask(addr, "PUT", "/sim", b"").await.unwrap().0, 200);
    assert_eq!(ask(addr, "PUT", "/sim/large", body).await.unwrap().0, 200);
    for _ in 0..6 {
        let (status, got) = ask(addr, "GET", "/sim/large", b"").await.unwrap();
        assert_eq!((status, got.len()), (200, body.len()));
        assert!(got == body, "bytes changed");
    }
}

#[test]
fn a_large_object_is_read_whole_from_memory_and_past_it() {
    for seed in 0..8 {
        let world = world(seed);
        world.start();
        let (addr, sim) = (world.addr(), world.sim.clone());
        world.on_client(async move {
            let body = noise(seed, LARGE);
            put_and_warm(addr, &body).await;
            sim.configure(|config| config.page_seals_fail_one_in = 2);
            let other = noise(seed + 100, LARGE);
            assert_eq!(ask(addr, "PUT", "/sim/other", &other).await.unwrap().0, 200);
            for _ in 0..6 {
                assert!(ask(addr, "GET", "/sim/other", b"").await.unwrap() == (200, other.clone()));
            }
        });
    }
}

#[test]
fn a_reader_from_memory_may_be_slow_but_not_stop() {
    let world = world(5);
    world.start();
    let (addr, limits) = (world.addr(), world.limits);
    world.on_client(async move {
        let body = noise(5, LARGE);
        put_and_warm(addr, &body).await;
        let get = encode(addr, "GET", "/sim/large", b"");
        let slow = TcpStream::connect(&Addr::Inet(addr)).await.unwrap();
        slow.send(get.clone()).await.0.unwrap();
        let mut got = Vec::new();
        // Less than a piece within each deadline.
        while !got.ends_with(&body[LARGE - 1000..]) {
            engine::sleep(limits.progress_deadline / 3).await;
            receive(&slow, &mut got).await.unwrap();
        }
        assert!(got.ends_with(&body), "bytes changed");

        let stopped = TcpStream::connect(&Addr::Inet(addr)).await.unwrap();
        stopped.send(get.clone()).await.0.unwrap();
        engine::sleep(limits.progress_deadline + Duration::from_secs(5)).await;
        let mut got = Vec::new();
        while receive(&stopped, &mut got).await.is_some() {}
        assert!(got.len() < LARGE, "the answer was cut off");

        let gone = TcpStream::connect(&Addr::Inet(addr)).await.unwrap();
        gone.send(get).await.0.unwrap();
        receive(&gone, &mut got).await.unwrap();
        drop(gone);
        assert!(ask(addr, "GET", "/sim/large", b"").await.unwrap() == (200, body));
    });
}
