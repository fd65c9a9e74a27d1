//! Listings through the SDK's paginators.

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::EncodingType;

use super::{BUCKET, on_stage};

/// 40 keys in 4 directories, one unicode, two at the top; in byte order.
fn keys() -> Vec<String> {
    let mut keys: Vec<String> = (0..36).map(|n| format!("d{}/k{n:02}", n % 4)).collect();
    keys.extend(["top&<1>", "top 2", "über/1", "über/2"].map(String::from));
    keys.sort();
    keys
}

async fn fill(s3: &Client) {
    for key in keys() {
        let put = s3.put_object().bucket(BUCKET).key(key);
        put.body(ByteStream::from_static(b"x"))
            .send()
            .await
            .unwrap();
    }
}

#[test]
fn the_paginator_sees_every_key_once_in_order() {
    on_stage(|s3| async move {
        fill(&s3).await;
        for size in [1, 7, 1000] {
            let list = s3.list_objects_v2().bucket(BUCKET).max_keys(size);
            let mut pages = list.into_paginator().send();
            let mut listed = Vec::new();
            while let Some(page) = pages.try_next().await.unwrap() {
                for item in page.contents() {
                    assert_eq!(item.size(), Some(1));
                    assert!(item.e_tag().is_some() && item.last_modified().is_some());
                    listed.push(item.key().unwrap().to_owned());
                }
            }
            assert_eq!(listed, keys(), "pages of {size}");
        }
    });
}

#[test]
fn delimiter_prefix_and_start_after_select() {
    on_stage(|s3| async move {
        fill(&s3).await;
        let list = || s3.list_objects_v2().bucket(BUCKET).delimiter("/");
        let mut pages = list().max_keys(2).into_paginator().send();
        let (mut listed, mut prefixes) = (Vec::new(), Vec::new());
        while let Some(page) = pages.try_next().await.unwrap() {
            assert!(page.key_count().unwrap() <= 2);
            listed.extend(page.contents().iter().filter_map(|o| o.key.clone()));
            prefixes.extend(
                page.common_prefixes()
                    .iter()
                    .filter_map(|p| p.prefix.clone()),
            );
        }
        assert_eq!(listed, ["top 2", "top&<1>"]);
        assert_eq!(prefixes, ["d0/", "d1/", "d2/", "d3/", "über/"]);
        let below = list().prefix("d2/").start_after("d2/k10").fetch_owner(true);
        let below = below.send().await.unwrap();
        let wanted: Vec<String> = keys()
            .into_iter()
            .filter(|key| key.starts_with("d2/") && &**key > "d2/k10")
            .collect();
        let listed: Vec<&str> = below.contents().iter().filter_map(|o| o.key()).collect();
        assert_eq!(listed, wanted);
        assert!(below.contents().iter().all(|o| o.owner().is_some()));
        assert!(below.common_prefixes().is_empty());
    });
}

#[test]
fn keys_that_xml_cannot_hold_are_listed_in_url_encoding() {
    on_stage(|s3| async move {
        let put = s3.put_object().bucket(BUCKET).key("bell\u{7}");
        put.body(ByteStream::from_static(b"x"))
            .send()
            .await
            .unwrap();
        let list = s3.list_objects_v2().bucket(BUCKET);
        let listed = list.encoding_type(EncodingType::Url).send().await.unwrap();
        assert_eq!(listed.contents()[0].key(), Some("bell%07"));
    });
}

#[test]
fn the_first_version_pages_by_markers() {
    on_stage(|s3| async move {
        fill(&s3).await;
        let (mut listed, mut marker) = (Vec::new(), None);
        loop {
            let list = s3.list_objects().bucket(BUCKET).max_keys(9);
            let page = list.set_marker(marker).send().await.unwrap();
            listed.extend(page.contents().iter().filter_map(|o| o.key.clone()));
            if page.is_truncated() != Some(true) {
                break;
            }
            marker = listed.last().cloned();
        }
        assert_eq!(listed, keys());
    });
}
