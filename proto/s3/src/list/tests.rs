//! The fold against a naive model, page by page, with callers that seek and callers that do not.

use proptest::prelude::*;

use super::*;

type Entry = (String, bool);

/// Every entry after the start, in order: rolls up each key and drops repeats.
fn model(keys: &[String], prefix: &str, delimiter: &str, after: Option<&str>) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for key in keys
        .iter()
        .filter(|k| k.starts_with(prefix) && after.is_none_or(|a| k.as_str() > a))
    {
        let at = if delimiter.is_empty() {
            None
        } else {
            key[prefix.len()..].find(delimiter)
        };
        let entry = match at {
            Some(at) => (key[..prefix.len() + at + delimiter.len()].to_owned(), true),
            None => (key.clone(), false),
        };
        let is_the_marker = entry.1 && after == Some(&*entry.0);
        if !is_the_marker && !entries.contains(&entry) {
            entries.push(entry);
        }
    }
    entries
}

fn page(keys: &[String], params: &FoldParams<'_>, seeks: bool) -> Page<String> {
    let mut fold = Fold::new(params).unwrap();
    let mut at = 0;
    if seeks {
        at = keys.partition_point(|k| k.as_bytes() < fold.seek());
    }
    while at < keys.len() && !fold.is_done() {
        match fold.offer(&keys[at], || keys[at].clone()) {
            Step::Done => break,
            Step::Seek if seeks => at = keys.partition_point(|k| k.as_bytes() < fold.seek()),
            Step::Seek | Step::Next => at += 1,
        }
    }
    fold.finish()
}

fn entries(page: &Page<String>) -> Vec<Entry> {
    let keys = page.contents.iter().map(|k| (k.clone(), false));
    let prefixes = page.common_prefixes.iter().map(|p| (p.to_string(), true));
    let mut all: Vec<_> = keys.chain(prefixes).collect();
    all.sort();
    all
}

fn params<'a>(prefix: &'a str, delimiter: &'a str, max_keys: u16) -> FoldParams<'a> {
    FoldParams {
        prefix,
        delimiter,
        max_keys,
        start: Start::First,
    }
}

#[test]
fn rolls_up_like_the_s3_documentation() {
    let keys = ["Nelson", "a/x", "a/y", "b/x", "sample.jpg"].map(str::to_owned);
    let got = page(&keys, &params("", "/", 1000), true);
    assert_eq!(got.contents, ["Nelson", "sample.jpg"]);
    assert_eq!(got.common_prefixes, ["a/".into(), "b/".into()]);
    assert!(!got.truncated && got.next_token.is_none() && got.next_marker.is_none());
}

#[test]
fn a_page_of_no_keys_is_empty_and_complete() {
    let got = page(&["a".to_owned()], &params("", "", 0), false);
    assert_eq!((got.contents.len(), got.truncated), (0, false));
}

#[test]
fn a_full_page_at_the_end_is_not_truncated() {
    let keys = ["a/1", "a/2", "b"].map(str::to_owned);
    assert!(!page(&keys, &params("", "/", 2), true).truncated);
    let one = page(&keys, &params("", "/", 1), true);
    assert_eq!(
        (one.truncated, one.next_marker.as_deref()),
        (true, Some("a/"))
    );
    assert!(!page(&keys[..2], &params("", "/", 1), false).truncated);
}

#[test]
fn the_page_size_is_capped() {
    let keys: Vec<_> = (0..1500).map(|n| format!("{n:05}")).collect();
    let got = page(&keys, &params("", "", u16::MAX), true);
    assert_eq!((got.contents.len(), got.truncated), (1000, true));
}

#[test]
fn foreign_tokens_are_refused() {
    let long = "a".repeat(4000);
    for token in ["", "!", "eA", "a2", "azw_", &long] {
        let start = Start::Token(token);
        let refused = Fold::<()>::new(&FoldParams {
            start,
            ..params("", "", 1)
        });
        let is_known = refused.is_ok();
        assert!(!is_known || token == "azw_", "{token}");
    }
}

/// Few letters, so that prefixes, delimiters and markers meet.
fn word() -> impl Strategy<Value = String> {
    "[ab/é]{0,6}"
}

proptest! {
    #[test]
    fn pages_joined_by_tokens_are_the_model(
        mut keys in proptest::collection::vec("[ab/é]{1,6}", 0..40),
        prefix in "[ab/é]{0,2}",
        delimiter in "/|a/|b?",
        after in proptest::option::of(word()),
        max_keys in 1_u16..8,
        seeks: bool,
        by_marker: bool,
    ) {
        keys.sort();
        keys.dedup();
        let expected = model(&keys, &prefix, &delimiter, after.as_deref());
        let mut got = Vec::new();
        let mut next: Option<Box<str>> = None;
        loop {
            let start = match (&next, &after) {
                (Some(text), _) if by_marker => Start::After(text),
                (Some(text), _) => Start::Token(text),
                (None, Some(after)) => Start::After(after),
                (None, None) => Start::First,
            };
            let one = page(&keys, &FoldParams { start, ..params(&prefix, &delimiter, max_keys) }, seeks);
            let entries = entries(&one);
            prop_assert!(entries.len() <= usize::from(max_keys));
            prop_assert!(!one.truncated || entries.len() == usize::from(max_keys));
            got.extend(entries);
            next = if by_marker { one.next_marker } else { one.next_token };
            if next.is_none() {
                break;
            }
        }
        prop_assert_eq!(got, expected);
    }

    #[test]
    fn any_token_is_a_start_or_an_error(token in "[A-Za-z0-9_-]{0,20}") {
        let _ = Fold::<()>::new(&FoldParams { start: Start::Token(&token), ..params("a", "/", 1) });
    }
}
