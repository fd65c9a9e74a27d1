//! What the engine does when memory, the ring or the kernel's permission runs out, and when
//! futures are dropped at any moment.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;

use engine::fs::{File, OpenOptions};
use engine::net::{Addr, ListenOptions, TcpListener, TcpStream};
use engine::{Engine, EngineConfig, ErrorKind, LocalFut, Rng, SchedGroup, ShardId};

fn with_config<R, F>(config: EngineConfig, f: F) -> R
where
    R: Send + 'static,
    F: FnOnce() -> LocalFut<R> + Send + 'static,
{
    let engine = Engine::start(config).unwrap();
    let result = engine
        .handle()
        .call_blocking(ShardId(0), move |_| f())
        .unwrap();
    engine.shutdown().unwrap();
    result
}

const WRITABLE: OpenOptions = OpenOptions {
    write: true,
    create: true,
    create_new: false,
    direct: true,
    mode: 0o600,
};

/// Polls a future `polls` times, yielding in between, then drops it.
async fn poll_and_drop(mut future: Pin<Box<dyn Future<Output = ()> + '_>>, polls: u64) {
    for _ in 0..polls {
        let done =
            std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await;
        if done {
            return;
        }
        engine::yield_now().await;
    }
}

async fn dropping_rounds(dir: std::path::PathBuf, seed: u64) {
    let mut rng = Rng::new(seed);
    let file = File::open(dir.join("file"), WRITABLE).await.unwrap();
    file.allocate(0, 1 << 20).await.unwrap();
    let any = Addr::Inet(SocketAddr::from(([127, 0, 0, 1], 0)));
    let mut listener = TcpListener::bind(&any, ListenOptions::default()).unwrap();
    let addr = listener.local_addr().unwrap();
    let one = TcpStream::connect(&addr).await.unwrap();
    let two = listener.accept().await.unwrap();
    for _ in 0..2000 {
        let offset = rng.below(200) * 4096;
        let Ok(buf) = engine::take_buf(4096 << rng.below(3)) else {
            continue;
        };
        let op: Pin<Box<dyn Future<Output = ()> + '_>> = match rng.below(9) {
            0 => Box::pin(async { drop(file.read_at(buf, offset).await) }),
            1 => Box::pin(async { drop(file.write_at(buf, offset).await) }),
            2 => Box::pin(async { drop(file.write_durable(buf, offset).await) }),
            3 => Box::pin(async { drop(file.write_then_datasync(buf, offset).await) }),
            4 => Box::pin(async { drop(one.send(vec![1; 100]).await) }),
            5 => Box::pin(async { drop(two.recv(buf).await) }),
            6 => Box::pin(async { drop(two.recv_ring().await) }),
            7 => Box::pin(async { drop(TcpStream::connect(&addr).await) }),
            _ => Box::pin(async { drop(listener.accept().await) }),
        };
        poll_and_drop(op, rng.below(4)).await;
    }
}

#[test]
fn futures_dropped_in_flight_leave_memory_and_descriptors_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let open_before = std::fs::read_dir("/proc/self/fd").unwrap().count();
    for seed in 0..8 {
        let path = path.clone();
        let mut config = EngineConfig::unpinned(1);
        config.pool_bytes = 4 << 20;
        with_config(config, move || {
            Box::pin(async move {
                dropping_rounds(path, seed).await;
                // Everything that was dropped comes back to the pool.
                let mut held = Vec::new();
                while held.len() < 2 {
                    match engine::take_buf(engine::MAX_BUF) {
                        Ok(buf) => held.push(buf),
                        Err(_) => engine::yield_now().await,
                    }
                }
            })
        });
    }
    // One doorbell stays with the process for each shard that ever ran at the same time.
    let open_after = std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(
        open_after <= open_before + 1,
        "{open_before} descriptors before, {open_after} after"
    );
}

#[test]
fn a_tiny_ring_overflows_into_its_backlog_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let mut config = EngineConfig::unpinned(1);
    config.ring_entries = 64;
    config.disk_ops_max = 4096;
    config.disk_bytes_max = 1 << 30;
    let counted = with_config(config, move || {
        Box::pin(async move {
            let file = std::rc::Rc::new(File::open(&path, WRITABLE).await.unwrap());
            file.allocate(0, 8 << 20).await.unwrap();
            let tasks: Vec<_> = (0..1000_u64)
                .map(|n| {
                    let file = std::rc::Rc::clone(&file);
                    engine::spawn_local(SchedGroup::FOREGROUND, async move {
                        let mut buf = engine::take_buf(4096).unwrap();
                        buf.fill(n as u8);
                        let (done, buf) = if n % 3 == 0 {
                            file.write_then_datasync(buf, n * 4096).await
                        } else {
                            file.write_at(buf, n * 4096).await
                        };
                        done.unwrap();
                        let (read, buf) = file.read_at(buf, n * 4096).await;
                        read.unwrap();
                        assert!(buf.iter().all(|b| *b == n as u8));
                    })
                })
                .collect();
            let mut done = 0;
            for task in tasks {
                task.await;
                done += 1;
            }
            done
        })
    });
    assert_eq!(counted, 1000);
}

#[test]
fn a_full_operation_table_answers_busy() {
    let mut config = EngineConfig::unpinned(1);
    config.ops_max = 64;
    let busy = with_config(config, || {
        Box::pin(async {
            let any = Addr::Inet(SocketAddr::from(([127, 0, 0, 1], 0)));
            let mut listener = TcpListener::bind(&any, ListenOptions::default()).unwrap();
            let client = TcpStream::connect(&listener.local_addr().unwrap())
                .await
                .unwrap();
            let server = listener.accept().await.unwrap();
            let mut waiting: Vec<_> = (0..100)
                .map(|_| Box::pin(server.recv(vec![0; 8])))
                .collect();
            let mut busy = 0;
            for recv in &mut waiting {
                if let Poll::Ready((Err(error), _)) =
                    std::future::poll_fn(|cx| Poll::Ready(recv.as_mut().poll(cx))).await
                {
                    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
                    busy += 1;
                }
            }
            drop(waiting);
            drop(client);
            busy
        })
    });
    assert!(
        (30..=50).contains(&busy),
        "{busy} of 100 were refused with 64 slots"
    );
}

#[test]
fn an_empty_receive_ring_is_told_and_loses_no_bytes() {
    let mut config = EngineConfig::unpinned(1);
    config.recv_buffers = 8;
    with_config(config, || {
        Box::pin(async {
            let any = Addr::Inet(SocketAddr::from(([127, 0, 0, 1], 0)));
            let mut listener = TcpListener::bind(&any, ListenOptions::default()).unwrap();
            let client = TcpStream::connect(&listener.local_addr().unwrap())
                .await
                .unwrap();
            let server = listener.accept().await.unwrap();
            client.send(vec![3; 64 * 1024]).await.0.unwrap();
            let mut held = Vec::new();
            let error = loop {
                match server.recv_ring().await {
                    Ok(buf) => held.push(buf.unwrap()),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS));
            assert_eq!(held.len(), 8);
            let mut total: usize = held.iter().map(|b| b.len()).sum();
            while total < 64 * 1024 {
                let (got, _buf) = server.recv(vec![0; 16 * 1024]).await;
                total += got.unwrap();
            }
            drop(held);
            client.send(vec![4; 10]).await.0.unwrap();
            assert_eq!(&server.recv_ring().await.unwrap().unwrap()[..], [4; 10]);
        })
    });
}

/// Gives up CAP_IPC_LOCK in this thread, so that RLIMIT_MEMLOCK counts also for root.
fn drop_ipc_lock() {
    const CAP_IPC_LOCK: u32 = 14;
    const VERSION_3: u32 = 0x2008_0522;
    let mut header = [VERSION_3, 0];
    let mut sets = [[0_u32; 3]; 2];
    // SAFETY: capget fills two sets of three words for version 3.
    let got = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) };
    assert_eq!(got, 0);
    for word in &mut sets[0] {
        *word &= !(1 << CAP_IPC_LOCK);
    }
    // SAFETY: as above; capset reads them. Only this thread changes.
    let set = unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr()) };
    assert_eq!(set, 0);
}

#[test]
fn a_low_memlock_limit_falls_back_to_unregistered_buffers_and_says_so() {
    std::thread::spawn(|| {
        drop_ipc_lock();
        let limit = libc::rlimit {
            rlim_cur: 4 << 20,
            rlim_max: 4 << 20,
        };
        // SAFETY: setrlimit reads one rlimit.
        let set = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
        assert_eq!(set, 0);
        let engine = Engine::start(EngineConfig::unpinned(1)).unwrap();
        assert!(!engine.capabilities().registered_buffers);
        let told = engine
            .capabilities()
            .missing
            .iter()
            .any(|m| m.contains("RLIMIT_MEMLOCK"));
        assert!(told, "{:?}", engine.capabilities());
        let len = engine.handle().call_blocking(ShardId(0), |_| {
            Box::pin(async { engine::take_buf(4096).unwrap().len() })
        });
        assert_eq!(len, Ok(4096));
        engine.shutdown().unwrap();
    })
    .join()
    .unwrap();
}

/// A seccomp filter that answers EPERM to io_uring_setup, as container profiles do.
fn forbid_io_uring() {
    let code = |code: u32, jt, jf, k: u32| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let filter = [
        code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        code(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            libc::SYS_io_uring_setup as u32,
        ),
        code(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        ),
        code(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: prctl reads the program during the call; only this thread and its children change.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let done = libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        );
        assert_eq!(done, 0);
    }
}

#[test]
fn a_forbidden_io_uring_is_an_error_that_names_the_cause() {
    std::thread::spawn(|| {
        forbid_io_uring();
        let error = Engine::start(EngineConfig::unpinned(1)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::NoUring);
        assert!(error.to_string().contains("seccomp"), "{error}");
    })
    .join()
    .unwrap();
}

#[test]
fn a_panicking_task_fails_its_engine_by_name_and_leaves_no_caller_waiting() {
    let engine = Engine::start(EngineConfig::unpinned(2)).unwrap();
    let handle = engine.handle();
    let other = std::thread::spawn(move || {
        handle.call_blocking(ShardId(0), |_| Box::pin(std::future::pending::<()>()))
    });
    let gone = engine.handle().call_blocking(ShardId(0), |_| {
        Box::pin(async { panic!("a bug in a task") })
    });
    assert_eq!(gone, Err::<(), _>(engine::CallError::Gone));
    assert_eq!(other.join().unwrap(), Err(engine::CallError::Gone));
    let error = engine.shutdown().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShardFailed);
    assert!(error.to_string().contains("shard 0 panicked"), "{error}");
}
