//! `object_store`, with the conditional writes that tables and logs on object storage rely on.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut, S3CopyIfNotExists};
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{
    Attribute, Attributes, Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode,
    PutOptions, PutPayload, UpdateVersion,
};

use crate::block_on;
use crate::digests::Digests;
use crate::http::Plain;
use crate::support::{ACCESS_KEY, Node, SECRET_KEY, connect, fresh, noise, read_response};

fn store(node: &Node) -> AmazonS3 {
    node.client().put("/store", b"").expect(200);
    AmazonS3Builder::new()
        .with_endpoint(format!("http://{}", node.s3))
        .with_allow_http(true)
        .with_bucket_name("store")
        .with_region("us-east-1")
        .with_access_key_id(ACCESS_KEY)
        .with_secret_access_key(SECRET_KEY)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_copy_if_not_exists(S3CopyIfNotExists::Multipart)
        .with_crypto_provider(Arc::new(Digests))
        .with_http_connector(Plain)
        .build()
        .unwrap()
}

fn on_store<F: Future<Output = ()>>(test: impl FnOnce(AmazonS3) -> F) {
    let (_dir, node) = fresh();
    block_on(test(store(&node)));
}

fn text(text: &'static str) -> PutPayload {
    PutPayload::from_static(text.as_bytes())
}

#[test]
fn create_and_update_are_compare_and_swap() {
    on_store(|store| async move {
        let path = Path::from("log/00001");
        let put = |body, mode: PutMode| store.put_opts(&path, text(body), mode.into());
        let first = put("one", PutMode::Create).await.unwrap();
        let taken = put("two", PutMode::Create).await.unwrap_err();
        assert!(matches!(taken, Error::AlreadyExists { .. }), "{taken}");
        let version = UpdateVersion::from(first);
        let second = put("two", PutMode::Update(version.clone())).await.unwrap();
        let stale = put("three", PutMode::Update(version)).await.unwrap_err();
        assert!(matches!(stale, Error::Precondition { .. }), "{stale}");
        let got = store.get(&path).await.unwrap();
        assert_eq!(got.meta.e_tag, second.e_tag);
        assert_eq!(got.bytes().await.unwrap(), "two");
        let gone = Path::from("log/none");
        let gone = store.put_opts(&gone, text("x"), PutMode::Update(second.into()).into());
        let gone = gone.await.unwrap_err();
        assert!(matches!(gone, Error::Precondition { .. }), "{gone}");
    });
}

#[test]
fn of_many_writers_that_create_one_wins() {
    on_store(|store| async move {
        let path = Path::from("lease");
        let writers = (0..16_u8).map(|n| {
            let body = PutPayload::from(vec![n; 100]);
            store.put_opts(&path, body, PutMode::Create.into())
        });
        let results = futures_util::future::join_all(writers).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        let winner = results.iter().position(Result::is_ok).unwrap();
        let got = store.get(&path).await.unwrap().bytes().await.unwrap();
        assert!(got.iter().all(|byte| usize::from(*byte) == winner));
    });
}

#[test]
fn bytes_ranges_attributes_and_conditions_of_reads() {
    on_store(|store| async move {
        let path = Path::from("a/ü b+c%");
        let body = noise(1, 1 << 20);
        let attributes = Attributes::from_iter([
            (Attribute::ContentType, "text/x"),
            (Attribute::CacheControl, "no-store"),
            (Attribute::Metadata("color".into()), "blue"),
        ]);
        let options = PutOptions::from(attributes.clone());
        store
            .put_opts(&path, body.clone().into(), options)
            .await
            .unwrap();
        let got = store.get(&path).await.unwrap();
        assert_eq!(got.attributes, attributes);
        assert!(got.bytes().await.unwrap() == body);
        let meta = store.head(&path).await.unwrap();
        assert_eq!((meta.size, &meta.location), (1 << 20, &path));
        let wanted = [0..10, 100..70_000, 500_000..500_001, (1 << 20) - 9..1 << 20];
        let ranges = store.get_ranges(&path, &wanted).await.unwrap();
        for (range, got) in wanted.into_iter().zip(ranges) {
            assert!(
                got == body[range.start as usize..range.end as usize],
                "{range:?}"
            );
        }
        let get = |options| store.get_opts(&path, options);
        let tail = get(GetOptions::new().with_range(Some(GetRange::Suffix(7))))
            .await
            .unwrap();
        assert_eq!(tail.range, (1 << 20) - 7..1 << 20);
        assert!(tail.bytes().await.unwrap() == body[(1 << 20) - 7..]);
        let etag = meta.e_tag.clone();
        let same = get(GetOptions::new().with_if_none_match(etag.clone()))
            .await
            .unwrap_err();
        assert!(matches!(same, Error::NotModified { .. }), "{same}");
        get(GetOptions::new().with_if_match(etag)).await.unwrap();
        let other = get(GetOptions::new().with_if_match(Some("\"0\"")))
            .await
            .unwrap_err();
        assert!(matches!(other, Error::Precondition { .. }), "{other}");
        let gone = store.get(&Path::from("none")).await.unwrap_err();
        assert!(matches!(gone, Error::NotFound { .. }), "{gone}");
    });
}

#[test]
fn a_multipart_upload_is_there_when_it_is_complete_and_not_before() {
    on_store(|store| async move {
        let path = Path::from("large");
        let parts = [noise(1, 5 << 20), noise(2, 6 << 20), noise(3, 100)];
        let mut upload = store.put_multipart(&path).await.unwrap();
        let puts: Vec<_> = parts
            .iter()
            .map(|part| upload.put_part(part.clone().into()))
            .collect();
        futures_util::future::try_join_all(puts).await.unwrap();
        assert!(store.head(&path).await.is_err());
        let done = upload.complete().await.unwrap();
        let got = store.get(&path).await.unwrap();
        assert_eq!(got.meta.e_tag, done.e_tag);
        assert!(got.bytes().await.unwrap() == parts.concat());
        let other = Path::from("aborted");
        let mut upload = store.put_multipart(&other).await.unwrap();
        upload.put_part(text("x")).await.unwrap();
        upload.abort().await.unwrap();
        assert!(store.head(&other).await.is_err());
    });
}

#[test]
fn listings_with_delimiter_and_offset() {
    on_store(|store| async move {
        let names: Vec<Path> = (0..1200)
            .map(|n| Path::from(format!("t/{:02}/{n:04}", n % 12)))
            .collect();
        let puts = names.iter().map(|name| store.put(name, text("x")));
        let puts = futures_util::stream::iter(puts).buffer_unordered(32);
        puts.try_collect::<Vec<_>>().await.unwrap();
        store.put(&Path::from("top"), text("")).await.unwrap();
        let mut sorted = names.clone();
        sorted.sort();
        let prefix = Path::from("t");
        let list = |listed: Vec<object_store::ObjectMeta>| {
            listed
                .into_iter()
                .map(|meta| meta.location)
                .collect::<Vec<_>>()
        };
        // More than a page.
        let all = store.list(Some(&prefix)).try_collect().await.unwrap();
        assert_eq!(list(all), sorted);
        let offset = &sorted[777];
        let rest = store.list_with_offset(Some(&prefix), offset);
        assert_eq!(list(rest.try_collect().await.unwrap()), sorted[778..]);
        let top = store.list_with_delimiter(None).await.unwrap();
        assert_eq!(top.common_prefixes, std::slice::from_ref(&prefix));
        assert_eq!(list(top.objects), [Path::from("top")]);
        let below = store.list_with_delimiter(Some(&prefix)).await.unwrap();
        assert_eq!(below.common_prefixes.len(), 12);
        // More than one request's worth of deletions, some of nothing.
        let gone = names.into_iter().chain([Path::from("none")]).map(Ok);
        let gone =
            store.delete_stream(futures_util::stream::iter(gone.collect::<Vec<_>>()).boxed());
        assert_eq!(gone.try_collect::<Vec<_>>().await.unwrap().len(), 1201);
        let left = store.list(None).try_collect().await.unwrap();
        assert_eq!(list(left), [Path::from("top")]);
    });
}

#[test]
fn copies_renames_and_copies_that_must_not_overwrite() {
    on_store(|store| async move {
        let (from, to) = (Path::from("from"), Path::from("to é"));
        store.put(&from, noise(1, 200_000).into()).await.unwrap();
        store.copy(&from, &to).await.unwrap();
        let got = store.get(&to).await.unwrap().bytes().await.unwrap();
        assert!(got == noise(1, 200_000));
        let taken = store.copy_if_not_exists(&from, &to).await.unwrap_err();
        assert!(matches!(taken, Error::AlreadyExists { .. }), "{taken}");
        let fresh = Path::from("fresh");
        store.copy_if_not_exists(&from, &fresh).await.unwrap();
        store.rename(&fresh, &Path::from("renamed")).await.unwrap();
        assert!(matches!(
            store.head(&fresh).await,
            Err(Error::NotFound { .. })
        ));
        store.delete(&from).await.unwrap();
        let gone = store.copy(&from, &to).await.unwrap_err();
        assert!(matches!(gone, Error::NotFound { .. }), "{gone}");
    });
}

#[test]
fn a_signed_url_works_without_keys() {
    let (_dir, node) = fresh();
    let store = store(&node);
    let path = Path::from("signed/ü b");
    block_on(store.put(&path, text("signed"))).unwrap();
    let url = store.signed_url("GET".parse().unwrap(), &path, Duration::from_mins(1));
    let url = block_on(url).unwrap();
    let target = url.as_str().split_once(&node.s3.to_string()).unwrap().1;
    let mut stream = connect(node.s3);
    let head = format!("GET {target} HTTP/1.1\r\nHost: {}\r\n\r\n", node.s3);
    std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
    assert_eq!(
        read_response(&mut stream, false).unwrap().expect(200).body,
        b"signed"
    );
}
