//! A tenant that stalls delays only itself: memory for bodies is shared out among tenants.

use std::time::Duration;

use engine::Nanos;

use crate::world::{ANN, Answer, BOB, Connection, ask, noise, world};

/// Far more than the memory of both shards would hold.
const STALLED: usize = 48;

async fn timed(addr: std::net::SocketAddr, asked: crate::world::Ask) -> (Answer, Duration) {
    let begun: Nanos = engine::now();
    let answer = asked.send(addr).await.unwrap();
    (answer, engine::now().since(begun))
}

#[test]
fn uploads_and_downloads_of_one_tenant_go_on_while_another_stalls_all_that_it_can() {
    let mut world = world(1);
    world.limits.buffer_bytes_max = 4 << 20;
    world.start();
    let (addr, limits) = (world.addr(), world.limits);
    world.ask(ask("PUT", "/anns")).expect(200);
    world.ask(ask("PUT", "/bobs").by(BOB)).expect(200);
    let large = noise(1, 600_000);
    let put = ask("PUT", "/anns/large").body(large.clone());
    world.ask(put).expect(200);
    world.on_client(async move {
        let mut stalled = Vec::new();
        for n in 0..STALLED {
            let path = format!("/bobs/{n}");
            let upload = ask("PUT", &path).by(BOB).body(vec![0; 2 << 20]);
            let bytes = upload.encode(addr);
            let mut connection = Connection::open(addr).await;
            connection.send(bytes[..8_000].to_vec()).await;
            stalled.push(connection);
        }
        // Downloads that nobody takes hold memory as well.
        for _ in 0..STALLED {
            let mut connection = Connection::open(addr).await;
            let get = ask("GET", "/anns/large").by(crate::world::ROOT);
            connection.send(get.encode(addr)).await;
            stalled.push(connection);
        }
        let mut slowest = Duration::ZERO;
        for n in 0..40_u64 {
            let body = noise(n, 300_000);
            let path = format!("/anns/{n}");
            for asked in [
                ask("PUT", &path).by(ANN).body(body.clone()),
                ask("GET", &path).by(ANN),
                ask("GET", "/anns/large").by(ANN),
                ask("PUT", "/anns/small").by(ANN).body("small"),
            ] {
                let (answer, took) = timed(addr, asked).await;
                answer.expect(200);
                slowest = slowest.max(took);
            }
        }
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
        // Who stalls is told so, itself.
        let more = ask("PUT", "/bobs/more").by(BOB).body(noise(1, 2 << 20));
        let (answer, took) = timed(addr, more).await;
        answer.refused(503, "SlowDown");
        assert!(took >= limits.buffer_deadline, "{took:?}");
        drop(stalled);
    });
    assert!(world.metric("uc_lightningstor_buffer_used_bytes") <= 8 << 20);
}
