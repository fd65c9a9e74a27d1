//! The engine on the real kernel: sockets, files, calls between shards and from other threads.
//! Contract CARD-1.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use engine::fs::{File, OpenOptions};
use engine::net::{Addr, ListenOptions, TcpListener, TcpStream, UdpSocket};
use engine::{
    CallError, Engine, EngineConfig, EngineHandle, EventFd, GuestIov, GuestList, GuestMem,
    LocalFut, SchedGroup, ShardId, Sharded,
};

/// Runs a future on shard 0 of an engine with `shards` shards.
fn on_engine<R, F>(shards: usize, f: F) -> R
where
    R: Send + 'static,
    F: FnOnce(EngineHandle) -> LocalFut<R> + Send + 'static,
{
    let engine = Engine::start(EngineConfig::unpinned(shards)).unwrap();
    let handle = engine.handle();
    let result = (engine
        .handle()
        .call_blocking(ShardId(0), move |_| f(handle)))
    .unwrap();
    engine.shutdown().unwrap();
    result
}

fn loopback() -> Addr {
    Addr::Inet(SocketAddr::from(([127, 0, 0, 1], 0)))
}

const WRITABLE: OpenOptions = OpenOptions {
    write: true,
    create: true,
    create_new: false,
    direct: true,
    mode: 0o600,
};

fn scratch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    (dir, path)
}

async fn echo(stream: TcpStream) -> io::Result<()> {
    while let Some(bytes) = stream.recv_ring().await? {
        stream.send(bytes.to_vec()).await.0?;
    }
    Ok(())
}

#[test]
fn an_echo_server_returns_what_it_got() {
    on_engine(1, |_| {
        Box::pin(async {
            let mut listener = TcpListener::bind(&loopback(), ListenOptions::default()).unwrap();
            let addr = listener.local_addr().unwrap();
            let server = engine::spawn_local(SchedGroup::FOREGROUND, async move {
                loop {
                    let stream = listener.accept().await.unwrap();
                    engine::spawn_local(SchedGroup::FOREGROUND, echo(stream)).detach();
                }
            });
            let clients: Vec<_> = (0..32_u8)
                .map(|n| {
                    let addr = addr.clone();
                    engine::spawn_local(SchedGroup::FOREGROUND, async move {
                        let stream = TcpStream::connect(&addr).await.unwrap();
                        stream.set_nodelay().unwrap();
                        for round in 0..50_u8 {
                            let sent = vec![n ^ round; 100];
                            stream.send(sent.clone()).await.0.unwrap();
                            let mut got = Vec::new();
                            while got.len() < 100 {
                                let (read, buf) = stream.recv(vec![0; 100]).await;
                                assert!(read.unwrap() > 0);
                                got.extend(buf);
                            }
                            assert_eq!(got, sent);
                        }
                    })
                })
                .collect();
            for client in clients {
                client.await;
            }
            drop(server);
        })
    });
}

#[test]
fn a_multishot_receiver_sees_all_bytes_in_order_with_few_buffers() {
    on_engine(1, |_| {
        Box::pin(async {
            let mut listener = TcpListener::bind(&loopback(), ListenOptions::default()).unwrap();
            let addr = listener.local_addr().unwrap();
            let sender = engine::spawn_local(SchedGroup::FOREGROUND, async move {
                let stream = TcpStream::connect(&addr).await.unwrap();
                let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
                stream.send(bytes).await.0.unwrap();
                stream.shutdown_write().await.unwrap();
            });
            let stream = listener.accept().await.unwrap();
            let mut receiver = stream.recv_stream();
            let mut seen = 0_u32;
            loop {
                match receiver.next().await {
                    Ok(Some(bytes)) => {
                        for byte in bytes.iter() {
                            assert_eq!(u32::from(*byte), seen % 251);
                            seen += 1;
                        }
                    }
                    Ok(None) => break,
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            assert_eq!(seen, 3_000_000);
            sender.await;
        })
    });
}

#[test]
fn files_read_back_what_was_written_by_every_kind_of_write() {
    let (_dir, path) = scratch();
    on_engine(1, move |_| {
        Box::pin(async move {
            let file = File::open(&path, WRITABLE).await.unwrap();
            file.allocate(0, 1 << 20).await.unwrap();
            for (index, fill) in (0..).zip([1_u8, 2, 3]) {
                let mut buf = engine::take_buf(8192).unwrap();
                buf.fill(fill);
                let offset = index * 8192;
                let (done, _buf) = match fill {
                    1 => file.write_at(buf, offset).await,
                    2 => file.write_durable(buf, offset).await,
                    _ => file.write_then_datasync(buf, offset).await,
                };
                done.unwrap();
            }
            file.datasync().await.unwrap();
            for (index, fill) in (0..).zip([1_u8, 2, 3, 0]) {
                let (read, buf) = file
                    .read_at(engine::take_buf(8192).unwrap(), index * 8192)
                    .await;
                assert_eq!(read.unwrap(), 8192);
                assert!(buf.iter().all(|b| *b == fill), "block {index}");
            }
            file.discard(0, 8192).await.unwrap();
            let (_, buf) = file.read_at(engine::take_buf(8192).unwrap(), 0).await;
            assert!(buf.iter().all(|b| *b == 0));
        })
    });
}

#[test]
fn a_read_past_the_end_is_short_and_a_misaligned_one_fails() {
    let (_dir, path) = scratch();
    on_engine(1, move |_| {
        Box::pin(async move {
            let file = File::open(&path, WRITABLE).await.unwrap();
            let (done, _) = file.write_at(engine::take_buf(4096).unwrap(), 0).await;
            done.unwrap();
            let (read, _) = file.read_at(engine::take_buf(16_384).unwrap(), 0).await;
            assert_eq!(read.unwrap(), 4096);
            if file.is_direct() {
                let (read, _) = file
                    .read_at(engine::take_buf(4096).unwrap().slice(1..4096), 0)
                    .await;
                assert!(read.unwrap_err().to_string().contains("read at offset 0"));
            }
        })
    });
}

#[test]
fn the_name_space_lists_renames_removes_and_locks() {
    let (dir, path) = scratch();
    let root = dir.path().to_owned();
    on_engine(1, move |_| {
        Box::pin(async move {
            engine::fs::create_dir_all(root.join("a/b")).await.unwrap();
            let file = File::open(&path, WRITABLE).await.unwrap();
            file.set_len(5).await.unwrap();
            file.lock().await.unwrap();
            let other = File::open(&path, WRITABLE).await.unwrap();
            assert_eq!(
                other.lock().await.unwrap_err().kind(),
                io::ErrorKind::WouldBlock
            );
            engine::fs::rename(&path, root.join("renamed"))
                .await
                .unwrap();
            engine::fs::sync_dir(&root).await.unwrap();
            let names: Vec<(String, bool, u64)> = engine::fs::read_dir(&root)
                .await
                .unwrap()
                .into_iter()
                .map(|e| (e.name, e.is_dir, e.len))
                .collect();
            assert_eq!(names, [("a".into(), true, 0), ("renamed".into(), false, 5)]);
            engine::fs::remove_file(root.join("renamed")).await.unwrap();
            let missing = File::open(root.join("renamed"), OpenOptions::default()).await;
            assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
            assert!(engine::fs::space(&root).await.unwrap().total > 0);
        })
    });
}

#[test]
fn datagrams_carry_their_sender() {
    on_engine(1, |_| {
        Box::pin(async {
            let one = UdpSocket::bind(&loopback(), false).unwrap();
            let two = UdpSocket::bind(&loopback(), false).unwrap();
            let (sent, _) = one
                .send_to(b"ping".to_vec(), &two.local_addr().unwrap())
                .await;
            assert_eq!(sent.unwrap(), 4);
            let (got, buf) = two.recv_from(vec![0; 64]).await;
            assert_eq!(got.unwrap(), (4, one.local_addr().unwrap()));
            assert_eq!(buf, b"ping");
        })
    });
}

#[test]
fn unix_sockets_and_vectored_sends_work() {
    let (dir, _) = scratch();
    let addr = Addr::Unix(dir.path().join("socket"));
    on_engine(1, move |_| {
        Box::pin(async move {
            let mut listener = TcpListener::bind(&addr, ListenOptions::default()).unwrap();
            let client = TcpStream::connect(&addr).await.unwrap();
            let server = listener.accept().await.unwrap();
            let mut body = engine::take_buf(4096).unwrap();
            body.fill(7);
            let (sent, (head, _body)) = client.send_pair(b"head".to_vec(), body).await;
            sent.unwrap();
            assert_eq!(head, b"head");
            let (sent, _) = client.send_zero_copy(vec![9; 10]).await;
            assert!(sent.is_ok() || sent.unwrap_err().kind() == io::ErrorKind::Unsupported);
            let mut got = Vec::new();
            while got.len() < 4100 {
                got.extend_from_slice(&server.recv_ring().await.unwrap().unwrap());
            }
            assert_eq!(&got[..5], b"head\x07");
        })
    });
}

#[test]
fn eventfds_wake_a_waiting_task() {
    on_engine(1, |_| {
        Box::pin(async {
            let event = Rc::new(EventFd::new().unwrap());
            let signal = Rc::clone(&event);
            engine::spawn_local(SchedGroup::FOREGROUND, async move {
                signal.signal().unwrap();
                signal.signal().unwrap();
            })
            .await;
            let mut event = Rc::into_inner(event).unwrap();
            assert_eq!(event.wait().await.unwrap(), 2);
        })
    });
}

#[test]
fn eventfds_that_do_not_block_are_watched_and_added_to() {
    use std::os::fd::{FromRawFd, OwnedFd};
    on_engine(1, |_| {
        Box::pin(async {
            // SAFETY: eventfd takes integers; the descriptor is new.
            let fd = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_NONBLOCK)) };
            let event = Rc::new(EventFd::from_fd(fd));
            let mut watch = event.watch();
            for _ in 0..3 {
                event.post().await.unwrap();
                watch.changed().await.unwrap();
            }
            let silent = engine::timeout(Duration::from_millis(1), watch.changed()).await;
            assert!(silent.is_none(), "nobody added");
            event.post().await.unwrap();
            watch.changed().await.unwrap();
        })
    });
}

#[test]
fn guest_memory_is_read_and_written_in_place() {
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};
    let (_dir, path) = scratch();
    on_engine(1, move |_| {
        Box::pin(async move {
            // SAFETY: memfd_create reads a NUL-terminated name and returns a new descriptor.
            let memfd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), 0)) };
            let ram = std::fs::File::from(memfd.try_clone().unwrap());
            ram.set_len(1 << 20).unwrap();
            let mem = GuestMem::map(memfd.as_fd(), 0, 1 << 20).unwrap();
            assert!(GuestMem::map(memfd.as_fd(), 4096, 1 << 20).is_err());
            use std::os::unix::fs::FileExt;
            ram.write_all_at(&[5; 4096], 8192).unwrap();
            ram.write_all_at(&[6; 4096], 65_536).unwrap();
            let file = File::open(&path, WRITABLE).await.unwrap();
            let list = |ranges: &[(u64, u32)]| {
                let mut list = GuestList::new();
                for &(offset, len) in ranges {
                    list.push(&mem, GuestIov { offset, len }).unwrap();
                }
                list
            };
            // One vectored operation, then a plain one.
            let two = list(&[(8192, 4096), (65_536, 4096)]);
            file.write_list_at(two.clone(), 0).await.0.unwrap();
            file.write_list_durable(two, 8192).await.0.unwrap();
            let read = file.read_list_at(list(&[(0, 8192)]), 0).await;
            assert_eq!((read.0.unwrap(), read.1.len()), (8192, 8192));
            let mut seen = [0; 8192];
            ram.read_exact_at(&mut seen, 0).unwrap();
            assert_eq!((seen[0], seen[4095], seen[4096], seen[8191]), (5, 5, 6, 6));
            let apart = list(&[(131_072, 4096), (262_144, 12_288)]);
            assert_eq!(file.read_list_at(apart, 4096).await.0.unwrap(), 12_288);
            ram.read_exact_at(&mut seen, 262_144).unwrap();
            assert_eq!((seen[0], seen[4096]), (5, 6));
            let refused = file.write_list_at(list(&[]), 0).await.0.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
            // The kernel meets the cut first: an error of the operation, and nothing else.
            ram.set_len(0).unwrap();
            let cut = file.write_list_at(list(&[(0, 4096)]), 0).await.0;
            assert!(cut.is_err());
        })
    });
}

#[test]
fn shards_call_each_other_under_limits() {
    let mut config = EngineConfig::unpinned(2);
    let group = config.add_service("test", 1, 4, Duration::from_mins(1));
    let other = config.add_service("other", 1, 4, Duration::from_mins(1));
    let engine = Engine::start(config).unwrap();
    let handle = engine.handle();
    let numbers: Sharded<std::cell::Cell<u64>> = Sharded::new(&handle);
    for id in handle.shard_ids() {
        let numbers = numbers.clone();
        handle
            .call_blocking(id, move |_| {
                Box::pin(async move { numbers.set_local(Rc::new(std::cell::Cell::new(0))) })
            })
            .unwrap();
    }
    let both = numbers.clone();
    let (total, busy) = handle
        .call_blocking(ShardId(0), move |_| {
            Box::pin(async move {
                for n in 1..=1000_u64 {
                    both.invoke_on(ShardId(1), group, move |cell| async move {
                        cell.set(cell.get() + n);
                    })
                    .await
                    .unwrap();
                }
                let calls: Vec<_> = (0..10)
                    .map(|_| {
                        let both = both.clone();
                        engine::spawn_local(SchedGroup::FOREGROUND, async move {
                            both.invoke_on(ShardId(1), group, |cell| async move {
                                while cell.get() != 0 {
                                    engine::yield_now().await;
                                }
                            })
                            .await
                        })
                    })
                    .collect();
                while calls.iter().filter(|call| call.is_finished()).count() < 6 {
                    engine::yield_now().await;
                }
                let total = both
                    .invoke_on(ShardId(1), other, |cell| async move { cell.replace(0) })
                    .await;
                let mut busy = 0;
                for call in calls {
                    busy += usize::from(call.await == Err(CallError::Busy));
                }
                (total.unwrap(), busy)
            })
        })
        .unwrap();
    assert_eq!(total, 500_500);
    assert_eq!(busy, 6, "four of ten calls fit the group's limit");
    engine.shutdown().unwrap();
    let gone = handle.call_blocking(ShardId(0), |_| Box::pin(async {}));
    assert_eq!(gone, Err(CallError::Gone));
}

#[test]
fn a_call_past_its_deadline_says_so() {
    let mut config = EngineConfig::unpinned(2);
    let group = config.add_service("slow", 1, 4, Duration::from_millis(20));
    let engine = Engine::start(config).unwrap();
    let handle = engine.handle();
    let unit: Sharded<()> = Sharded::new(&handle);
    for id in handle.shard_ids() {
        let unit = unit.clone();
        handle
            .call_blocking(id, move |_| {
                Box::pin(async move { unit.set_local(Rc::new(())) })
            })
            .unwrap();
    }
    let answer = handle.call_blocking(ShardId(0), move |_| {
        Box::pin(async move {
            unit.invoke_on(ShardId(1), group, |_| {
                engine::sleep(Duration::from_mins(10))
            })
            .await
        })
    });
    assert_eq!(answer.unwrap(), Err(CallError::Deadline));
    engine.shutdown().unwrap();
}

#[test]
fn a_dropped_task_is_cancelled_and_a_detached_one_runs_on() {
    on_engine(1, |_| {
        Box::pin(async {
            let ran = Rc::new(std::cell::Cell::new(0));
            let count = |n: u32| {
                let ran = Rc::clone(&ran);
                async move {
                    engine::yield_now().await;
                    ran.set(ran.get() + n);
                }
            };
            drop(engine::spawn_local(SchedGroup::FOREGROUND, count(1)));
            engine::spawn_local(SchedGroup::FOREGROUND, count(10)).detach();
            engine::spawn_local(SchedGroup::BACKGROUND, count(100)).await;
            while ran.get() != 110 {
                engine::yield_now().await;
            }
        })
    });
}

#[test]
fn a_shutdown_under_load_ends_with_everything_drained() {
    let (_dir, path) = scratch();
    let engine = Engine::start(EngineConfig::unpinned(2)).unwrap();
    let handle = engine.handle();
    handle
        .call_blocking(ShardId(0), move |_| {
            Box::pin(async move {
                let file = Rc::new(File::open(&path, WRITABLE).await.unwrap());
                let mut listener =
                    TcpListener::bind(&loopback(), ListenOptions::default()).unwrap();
                for n in 0..64_u64 {
                    let file = Rc::clone(&file);
                    engine::spawn_local(SchedGroup::FOREGROUND, async move {
                        loop {
                            let buf = engine::take_buf(4096).unwrap();
                            file.write_then_datasync(buf, n * 4096).await.0.unwrap();
                        }
                    })
                    .detach();
                }
                engine::spawn_local(SchedGroup::FOREGROUND, async move {
                    while listener.accept().await.is_ok() {}
                })
                .detach();
                for _ in 0..100 {
                    engine::yield_now().await;
                }
            })
        })
        .unwrap();
    engine.shutdown().unwrap();
}

#[test]
fn bad_configurations_and_unknown_cpus_are_told() {
    let bad = EngineConfig {
        mailbox: 3,
        ..EngineConfig::default()
    };
    assert!(
        Engine::start(bad)
            .err()
            .unwrap()
            .to_string()
            .contains("mailbox is 3")
    );
    let far = EngineConfig {
        cpus: vec![Some(1000)],
        ..EngineConfig::default()
    };
    let engine = Engine::start(far).unwrap();
    assert!(!engine.capabilities().pinned);
    assert!(
        engine
            .capabilities()
            .missing
            .iter()
            .any(|m| m.contains("pinning of shard 0"))
    );
}

#[test]
fn a_poll_that_holds_its_shard_is_counted_as_a_stall_and_shown() {
    let engine = Engine::start(EngineConfig::unpinned(1)).unwrap();
    let handle = engine.handle();
    let text = handle
        .call_blocking(ShardId(0), |_| {
            Box::pin(async {
                let started = engine::now();
                while engine::now() - started < Duration::from_millis(2) {
                    std::hint::spin_loop();
                }
            })
        })
        .and_then(|()| {
            handle.call_blocking(ShardId(0), |shard| {
                let metrics = shard.metrics();
                Box::pin(async move { engine::metrics::prometheus(&[metrics]) })
            })
        })
        .unwrap();
    assert!(
        text.contains("uc_engine_stalls_total{shard=\"0\",group=\"foreground\"} 1\n"),
        "{text}"
    );
    assert!(text.contains("# TYPE uc_engine_queue_delay_ns summary"));
    engine.shutdown().unwrap();
}

#[test]
fn timers_fire_in_order_and_a_timeout_cuts_a_wait_short() {
    on_engine(1, |_| {
        Box::pin(async {
            let order = Rc::new(std::cell::RefCell::new(Vec::new()));
            let tasks: Vec<_> = [3_u64, 1, 2]
                .map(|n| {
                    let order = Rc::clone(&order);
                    engine::spawn_local(SchedGroup::FOREGROUND, async move {
                        engine::sleep(Duration::from_millis(5 * n)).await;
                        order.borrow_mut().push(n);
                    })
                })
                .into();
            for task in tasks {
                task.await;
            }
            assert_eq!(*order.borrow(), [1, 2, 3]);
            let never = std::future::pending::<()>();
            assert!(
                engine::timeout(Duration::from_millis(1), never)
                    .await
                    .is_none()
            );
            assert_eq!(
                engine::timeout(Duration::from_mins(1), async { 7 }).await,
                Some(7)
            );
        })
    });
}
