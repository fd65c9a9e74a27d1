//! A flipped bit on the disk: the client gets an error or half an answer, never a wrong byte.

use lightningstor::store::{ImageExtent, ImagePlace};
use s3_wire::{BucketName, ObjectKey};

use crate::world::{Connection, World, ask, noise, world};

/// Where an object lies: its partition's directory, and its extents.
fn map_of(world: &World, key: &str) -> (String, Vec<ImageExtent>) {
    let (images, key) = (world.images(), ObjectKey::new(key).unwrap());
    world.sim.run(world.server, 0, async move {
        let bucket = BucketName::new("rot").unwrap();
        let image = images.open(&bucket, &key).await.unwrap();
        let dir = format!("/data/p{:03}", image.partition().0);
        (dir, image.extents().to_vec())
    })
}

/// Flips a bit of the object's byte at `offset`, wherever it is.
fn flip(world: &World, key: &str, offset: u64) {
    let (dir, extents) = map_of(world, key);
    let mut before = extents.iter().rev();
    let extent = before.find(|extent| extent.offset <= offset).unwrap();
    let within = offset - extent.offset;
    let disk = world.sim.disk(world.server);
    match extent.place {
        ImagePlace::Data { offset } => disk.flip_bit(format!("{dir}/data"), offset + within),
        ImagePlace::Record { segment, offset } => {
            // Behind the head of the record and its fields.
            let at = u64::from(offset) + 600 + within;
            disk.flip_bit(format!("{dir}/log/{segment:08}.seg"), at);
        }
    }
}

/// Puts an object in parts that lie in extents.
fn put_parts(world: &World, path: &str, sizes: &[usize]) {
    let begun = world
        .ask(ask("POST", &format!("{path}?uploads")))
        .expect(200);
    let id = begun.one("UploadId");
    let mut listed = String::new();
    for (number, size) in (1..).zip(sizes) {
        let part = ask("PUT", &format!("{path}?partNumber={number}&uploadId={id}"));
        let done = world.ask(part.body(noise(number, *size))).expect(200);
        let etag = done.header("etag").unwrap();
        let part = format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
        listed.push_str(&part);
    }
    let list = format!("<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>");
    let complete = ask("POST", &format!("{path}?uploadId={id}")).body(list);
    world.ask(complete).expect(200);
}

/// A GET that is cut off: the bytes of the body that came before.
fn cut_off(world: &World, path: &str) -> Vec<u8> {
    let (addr, get) = (world.addr(), ask("GET", path));
    world.on_client(async move {
        let mut connection = Connection::open(addr).await;
        connection.send(get.encode(addr)).await;
        let answer = connection.answer(false).await;
        assert!(answer.is_none(), "the answer was whole");
        let got = connection.rest();
        let at = got.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        assert!(got.starts_with(b"HTTP/1.1 200 "));
        got[at + 4..].to_vec()
    })
}

#[test]
fn damage_before_the_answer_is_an_error_and_after_its_head_the_connection_is_cut() {
    let mut world = world(1);
    // A record in memory is no concern of the disk's.
    world.store.cache_bytes_max = 0;
    world.start();
    world.ask(ask("PUT", "/rot")).expect(200);
    let large = noise(8, 1_500_000);
    let put = ask("PUT", "/rot/inline").body(noise(7, 5_000));
    world.ask(put).expect(200);
    for key in ["first", "later"] {
        let put = ask("PUT", &format!("/rot/{key}")).body(large.clone());
        world.ask(put).expect(200);
    }
    put_parts(&world, "/rot/parts", &[700_000, 300_000, 900_000]);
    let whole = [noise(1, 700_000), noise(2, 300_000), noise(3, 900_000)].concat();

    for (key, offset) in [
        ("inline", 2_000),
        ("first", 100_000),
        ("later", 1_400_000),
        ("parts", 1_000_100),
    ] {
        flip(&world, key, offset);
    }
    let before = world.metric("uc_lightningstor_corrupt_reads_total");
    let answer = world.ask(ask("GET", "/rot/inline"));
    answer.refused(500, "InternalError");
    world.ask(ask("HEAD", "/rot/inline")).expect(500);
    let answer = world.ask(ask("GET", "/rot/first"));
    answer.refused(500, "InternalError");
    let range = ask("GET", "/rot/later").header("range", "bytes=1399000-1399999");
    world.ask(range).refused(500, "InternalError");
    let part = world.ask(ask("GET", "/rot/parts?partNumber=3"));
    part.refused(500, "InternalError");
    let came = cut_off(&world, "/rot/later");
    assert!(came.len() < large.len() && came == large[..came.len()]);
    let came = cut_off(&world, "/rot/parts");
    assert!(came.len() < whole.len() && came == whole[..came.len()]);
    assert!(world.metric("uc_lightningstor_corrupt_reads_total") >= before + 7);

    // What is whole around the damage is served.
    let range = ask("GET", "/rot/later").header("range", "bytes=0-262143");
    assert!(world.ask(range).expect(206).body == large[..262_144]);
    let part = world.ask(ask("GET", "/rot/parts?partNumber=1")).expect(206);
    assert!(part.body == whole[..700_000]);
    // Damage is not copied on.
    let copy = ask("PUT", "/rot/copy").header("x-amz-copy-source", "/rot/later");
    world.ask(copy).refused(500, "InternalError");
    world.ask(ask("GET", "/rot/copy")).refused(404, "NoSuchKey");
}
