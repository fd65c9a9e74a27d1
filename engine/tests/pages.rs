//! Sealed pages on the real kernel: memfds that nobody can change, sent without a copy.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use engine::net::{Addr, ListenOptions, TcpListener, TcpStream};
use engine::{Engine, EngineConfig, LocalFut, PAGES_MAX, Pages, SchedGroup, ShardId};

/// Runs a future on the one shard of an engine.
fn on_engine(test: impl FnOnce() -> LocalFut<()> + Send + 'static) {
    let engine = Engine::start(EngineConfig::unpinned(1)).unwrap();
    let done = engine.handle().call_blocking(ShardId(0), move |_| test());
    done.unwrap();
    engine.shutdown().unwrap();
}

/// Both ends of a connection.
async fn pair() -> (TcpStream, TcpStream) {
    let loopback = Addr::Inet(SocketAddr::from(([127, 0, 0, 1], 0)));
    let mut listener = TcpListener::bind(&loopback, ListenOptions::default()).unwrap();
    let client = TcpStream::connect(&listener.local_addr().unwrap())
        .await
        .unwrap();
    let server = listener.accept().await.unwrap();
    server.set_nodelay().unwrap();
    (server, client)
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i + seed) * 7 % 251) as u8).collect()
}

async fn send_all(stream: &TcpStream, pages: &Pages) {
    let mut at = 0;
    while at < pages.len() {
        at += stream.send_pages(pages, at..pages.len()).await.unwrap();
    }
}

async fn receive(stream: &TcpStream, len: usize) -> Vec<u8> {
    let mut all = Vec::with_capacity(len);
    while all.len() < len {
        let (count, bytes) = stream.recv(vec![0; (len - all.len()).min(50_000)]).await;
        assert!(count.unwrap() > 0, "the stream ended at {}", all.len());
        all.extend_from_slice(&bytes);
    }
    all
}

#[test]
fn more_pages_than_a_socket_holds_arrive_behind_their_head() {
    on_engine(|| {
        Box::pin(async {
            let (server, client) = pair().await;
            let parts: Vec<Vec<u8>> = (0..64).map(|n| pattern(n, PAGES_MAX - n)).collect();
            let sealed: Vec<Pages> = parts.iter().map(|p| Pages::seal(p).unwrap()).collect();
            let sending = engine::spawn_local(SchedGroup::FOREGROUND, async move {
                server.send_more(b"head".to_vec()).await.0.unwrap();
                for pages in &sealed {
                    send_all(&server, pages).await;
                }
            });
            let mut expected = b"head".to_vec();
            expected.extend(parts.concat());
            let got = receive(&client, expected.len()).await;
            assert!(got == expected, "bytes changed");
            sending.await;
        })
    });
}

#[test]
fn bytes_on_their_way_stay_when_their_pages_go() {
    on_engine(|| {
        Box::pin(async {
            let (server, client) = pair().await;
            let bytes = pattern(1, PAGES_MAX);
            let pages = Pages::seal(&bytes).unwrap();
            let sent = server.send_pages(&pages, 0..PAGES_MAX).await.unwrap();
            drop(pages);
            // Memory that comes free is taken and written by the next.
            let others: Vec<Pages> = (0..16)
                .map(|_| Pages::seal(&vec![0xEE; PAGES_MAX]).unwrap())
                .collect();
            assert!(
                receive(&client, sent).await == bytes[..sent],
                "bytes changed"
            );
            drop(others);
            // The socket works on as before: what waits on it waits, and is not told to try again.
            let reading = engine::spawn_local(SchedGroup::FOREGROUND, async move {
                let (count, bytes) = server.recv(vec![0; 5]).await;
                assert_eq!((count.unwrap(), &bytes[..]), (5, &b"thank"[..]));
                let again = Pages::seal(b"again").unwrap();
                send_all(&server, &again).await;
            });
            engine::yield_now().await;
            client.send(b"thank".to_vec()).await.0.unwrap();
            assert_eq!(receive(&client, 5).await, b"again");
            reading.await;
        })
    });
}

#[test]
fn a_peer_that_is_gone_is_an_error_and_no_signal() {
    on_engine(|| {
        Box::pin(async {
            let (server, client) = pair().await;
            let pages = Pages::seal(&pattern(2, PAGES_MAX)).unwrap();
            let sending = engine::spawn_local(SchedGroup::FOREGROUND, async move {
                loop {
                    if let Err(error) = server.send_pages(&pages, 0..PAGES_MAX).await {
                        return error.kind();
                    }
                }
            });
            receive(&client, 1000).await;
            drop(client);
            let kind = sending.await;
            let told = matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
            assert!(told, "{kind}");
        })
    });
}

#[test]
fn a_wait_for_room_that_is_given_up_has_sent_nothing() {
    on_engine(|| {
        Box::pin(async {
            let (server, client) = pair().await;
            let bytes = pattern(3, PAGES_MAX);
            let pages = Pages::seal(&bytes).unwrap();
            let mut sent = Vec::new();
            loop {
                let at = sent.len() % PAGES_MAX;
                let send = server.send_pages(&pages, at..PAGES_MAX);
                let Some(done) = at_once(send).await else {
                    break;
                };
                sent.extend_from_slice(&bytes[at..at + done.unwrap()]);
            }
            let sending = engine::spawn_local(SchedGroup::FOREGROUND, async move {
                let at = Pages::seal(b"the end").unwrap();
                send_all(&server, &at).await;
            });
            sent.extend_from_slice(b"the end");
            assert!(receive(&client, sent.len()).await == sent, "bytes changed");
            sending.await;
        })
    });
}

/// The future's output if it is there at the first poll; else it is dropped.
async fn at_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

#[test]
fn pages_can_be_read_from_any_thread() {
    on_engine(|| {
        Box::pin(async {
            let bytes = pattern(4, 100_000);
            let pages = Arc::new(Pages::seal(&bytes).unwrap());
            let elsewhere = std::thread::spawn(move || {
                let mut copy = vec![0; 70_000];
                pages.copy_to(30_000, &mut copy).unwrap();
                copy
            });
            let copy = elsewhere.join().unwrap();
            assert!(copy == bytes[30_000..], "bytes changed");
        })
    });
}
