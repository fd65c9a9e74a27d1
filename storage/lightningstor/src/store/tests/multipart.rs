//! Uploads in parts.

use s3_wire::checksum::{Algorithm, ChecksumType, Checksummer};

use super::*;

fn to(upload: UploadId) -> UploadRef {
    UploadRef {
        bucket: BUCKET,
        key: key("big"),
        upload,
    }
}

async fn part(
    store: &Partition,
    upload: UploadId,
    number: u16,
    body: &[u8],
) -> Result<PartDone, StoreError> {
    let mut sum = Checksummer::new(Algorithm::Crc64Nvme);
    sum.update(body);
    let sent = if body.len() > INLINE_MAX {
        PartBody::Write(stream(store, body, true).await?)
    } else {
        PartBody::Small(Some(buf(body)?))
    };
    let part = PartPut {
        number,
        body: sent,
        etag: tag(body),
        size: body.len() as u64,
        checksum: Some(sum.finish()),
        modified_ms: 5,
    };
    store.part_put(to(upload), part).await
}

async fn create(store: &Partition) -> UploadId {
    let promise = UploadChecksum {
        algorithm: Algorithm::Crc64Nvme,
        kind: ChecksumType::FullObject,
    };
    store
        .upload_create(BUCKET, key("big"), meta(b""), Some(promise))
        .await
        .unwrap()
}

/// Makes the object `big` of these parts.
pub(super) async fn put_parts(store: &Partition, bodies: &[Vec<u8>]) {
    let upload = create(store).await;
    let mut list = Vec::new();
    for (number, body) in (1..).zip(bodies) {
        part(store, upload, number, body).await.unwrap();
        list.push((number, tag(body)));
    }
    let done = store.upload_complete(to(upload), list, Condition::None, 77);
    done.await.unwrap();
}

#[test]
fn parts_small_and_large_become_one_object_also_after_a_restart() {
    let (sim, node) = world(1);
    let bodies = [
        bytes(1, 300_000),
        bytes(2, 2_000),
        bytes(3, 70_000),
        bytes(4, 9),
    ];
    let whole = bodies.concat();
    let expected = whole.clone();
    sim.run(node, 0, async move {
        let store = open().await;
        let upload = create(&store).await;
        part(&store, upload, 2, &bytes(99, 80_000)).await.unwrap();
        let mut list = Vec::new();
        for (number, body) in (1..).zip(&bodies) {
            part(&store, upload, number * 10, body).await.unwrap();
            list.push((number * 10, tag(body)));
        }
        let listed = store.parts(&to(upload), 2, 3).unwrap();
        assert_eq!(
            listed.parts.iter().map(|p| p.number).collect::<Vec<_>>(),
            [10, 20, 30]
        );
        assert!(listed.more);
        let done = store
            .upload_complete(to(upload), list.clone(), Condition::None, 77)
            .await;
        let (done, meta) = done.unwrap();
        let mut sum = Checksummer::new(Algorithm::Crc64Nvme);
        sum.update(&whole);
        assert_eq!(meta.checksum.unwrap().value, sum.finish());
        assert_eq!(
            (meta.size, meta.parts, meta.modified_ms),
            (whole.len() as u64, 4, 77)
        );
        assert_eq!(done.etag.parts(), Some(4));
        assert_eq!(store.head(BUCKET, &key("big")).await.unwrap(), meta);
        let again = store
            .upload_complete(to(upload), list, Condition::None, 78)
            .await;
        assert_eq!(again.err(), Some(StoreError::NoSuchUpload));
        assert!(get(&store, "big").await.unwrap() == whole);
        audit(&store).await;
        for round in 0..60 {
            put(&store, "other", &bytes(round, 30_000)).await.unwrap();
        }
        store.close().await.unwrap();
    });
    sim.stop(node);
    sim.start(node, engine_config(1)).unwrap();
    sim.run(node, 0, async move {
        let store = open().await;
        assert!(get(&store, "big").await.unwrap() == expected);
        assert!(
            store
                .delete(BUCKET, key("big"), Condition::None)
                .await
                .unwrap()
        );
        assert_eq!(store.metrics().data_used_bytes, 0);
        audit(&store).await;
    });
}

#[test]
fn a_completion_names_what_is_wrong_with_its_parts() {
    let (sim, node) = world(2);
    sim.run(node, 0, async {
        let store = open().await;
        let upload = create(&store).await;
        part(&store, upload, 1, &[1; 10]).await.unwrap();
        part(&store, upload, 2, &[2; 5000]).await.unwrap();
        let (one, two) = (tag(&[1; 10]), tag(&[2; 5000]));
        let complete = async |parts: &[(u16, Etag)], condition| {
            let done = store
                .upload_complete(to(upload), parts.to_vec(), condition, 1)
                .await;
            done.map(|(done, _)| done.etag)
        };
        let none = Condition::None;
        assert_eq!(
            complete(&[(2, two), (1, one)], none).await,
            Err(StoreError::InvalidPartOrder)
        );
        assert_eq!(
            complete(&[(1, one), (1, one)], none).await,
            Err(StoreError::InvalidPartOrder)
        );
        assert_eq!(complete(&[], none).await, Err(StoreError::InvalidPartOrder));
        let absent = Err(StoreError::InvalidPart {
            number: 3,
            etag: None,
        });
        assert_eq!(complete(&[(2, two), (3, one)], none).await, absent);
        let other = Err(StoreError::InvalidPart {
            number: 2,
            etag: Some(two),
        });
        assert_eq!(complete(&[(2, one)], none).await, other);
        let small = Err(StoreError::EntityTooSmall {
            number: 1,
            size: 10,
            min: 1000,
        });
        assert_eq!(complete(&[(1, one), (2, two)], none).await, small);
        put(&store, "big", b"here").await.unwrap();
        let failed = Err(StoreError::PreconditionFailed);
        assert_eq!(
            complete(&[(2, two)], Condition::IfNoneMatchAny).await,
            failed
        );
        assert!(
            complete(&[(2, two)], Condition::IfMatch(tag(b"here")))
                .await
                .is_ok()
        );
        assert_eq!(get(&store, "big").await.unwrap(), [2; 5000]);
        audit(&store).await;
    });
}

#[test]
fn an_aborted_upload_frees_its_parts_and_takes_no_more() {
    let (sim, node) = world(3);
    sim.run(node, 0, async {
        let store = open().await;
        let upload = create(&store).await;
        let other = create(&store).await;
        part(&store, upload, 1, &bytes(1, 90_000)).await.unwrap();
        part(&store, upload, 1, &bytes(2, 90_000)).await.unwrap();
        assert_eq!(
            store.metrics().data_used_bytes,
            22 * 4096,
            "a replaced part is freed"
        );
        assert_eq!(store.uploads(BUCKET, "b", None, 1).uploads.len(), 1);
        assert!(store.uploads(BUCKET, "b", None, 1).more);
        assert!(store.uploads(BUCKET, "c", None, 9).uploads.is_empty());
        store.upload_abort(to(upload)).await.unwrap();
        let left = store.uploads(BUCKET, "", None, 9);
        assert_eq!(
            left.uploads.iter().map(|u| u.upload).collect::<Vec<_>>(),
            [other]
        );
        let late = part(&store, upload, 2, &bytes(3, 90_000)).await;
        assert_eq!(late, Err(StoreError::NoSuchUpload));
        assert_eq!(
            store.upload_abort(to(upload)).await,
            Err(StoreError::NoSuchUpload)
        );
        assert_eq!(store.metrics().data_used_bytes, 0);
        audit(&store).await;
    });
}
