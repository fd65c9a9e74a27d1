//! Files that are written are read back, and are what bbolt's own check asks for; files that are damaged
//! are refused, and never panic. etcdctl's reading of such files is a test of ChainFire's.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::collections::BTreeMap;

use bbolt_format::{Contents, Error, ErrorKind, KEY_BYTES_MAX, PAGE_BYTES, Plan, Reader};
use proptest::prelude::*;

type Bucket = BTreeMap<Vec<u8>, Vec<u8>>;
type Buckets = BTreeMap<String, Bucket>;

fn fill(buckets: &Buckets) -> impl Fn(&mut Contents<'_, Error>) -> Result<(), Error> + '_ {
    move |contents| {
        for (name, bucket) in buckets {
            contents.bucket(name)?;
            for (key, value) in bucket {
                contents.put(key, value)?;
            }
        }
        Ok(())
    }
}

fn written(buckets: &Buckets) -> Vec<u8> {
    let plan = Plan::of(fill(buckets)).unwrap();
    let mut file = Vec::new();
    let take = |page: &[u8]| {
        file.extend_from_slice(page);
        Ok(())
    };
    plan.write(fill(buckets), take).unwrap();
    assert_eq!(plan.bytes(), file.len() as u64);
    file
}

fn slice(file: &[u8], offset: u64, length: usize) -> Vec<u8> {
    file[offset as usize..][..length].to_vec()
}

fn read(file: &[u8], names: &[&str]) -> Result<Buckets, Error> {
    let mut reader = Reader::open(file.len() as u64, |offset, length| {
        Ok::<_, Error>(slice(file, offset, length))
    })?;
    let mut buckets = Buckets::new();
    for name in names {
        let Some(mut cursor) = reader.bucket(name)? else {
            continue;
        };
        let bucket = buckets.entry((*name).to_owned()).or_default();
        while let Some((key, value)) = cursor.next_entry()? {
            bucket.insert(key, value);
        }
    }
    Ok(buckets)
}

fn number(file: &[u8], at: usize, bytes: usize) -> u64 {
    let mut word = [0; 8];
    word[..bytes].copy_from_slice(&file[at..at + bytes]);
    u64::from_le_bytes(word)
}

/// Walks a tree as bbolt's check does: the pages that belong to it, and that no branch has one child.
fn pages_of(file: &[u8], root: u64, pages: &mut Vec<u64>) {
    let at = root as usize * PAGE_BYTES;
    assert_eq!(number(file, at, 8), root, "a page knows its number");
    let (flags, count) = (number(file, at + 8, 2), number(file, at + 10, 2));
    pages.extend((0..=number(file, at + 12, 4)).map(|next| root + next));
    for element in 0..count as usize {
        let element = at + 16 + element * 16;
        if flags == 1 {
            pages_of(file, number(file, element + 8, 8), pages);
        } else if number(file, element, 4) == 1 {
            let value = number(file, element + 4, 4) + number(file, element + 8, 4);
            pages_of(file, number(file, element + value as usize, 8), pages);
        }
    }
    assert!(flags == 2 || count >= 2, "a branch has two children");
}

/// Every page belongs to exactly one thing.
fn check(file: &[u8]) {
    let mut pages = vec![0, 1, 2];
    pages_of(file, number(file, 32, 8), &mut pages);
    pages.sort_unstable();
    let all: Vec<u64> = (0..(file.len() / PAGE_BYTES) as u64).collect();
    assert_eq!(pages, all);
}

fn numbered(count: usize, key: usize, value: usize) -> Bucket {
    let entry = |n: usize| (format!("{n:0key$}").into_bytes(), vec![n as u8; value]);
    (0..count).map(entry).collect()
}

#[test]
fn trees_of_every_height_are_read_back() {
    for (count, key, value) in [
        (0, 8, 8),
        (1, 8, 0),
        (127, 17, 0),
        (128, 17, 100),
        (20_000, 17, 40),
        // Keys of which a page holds one or two, and values that need several pages.
        (40, 1_900, 10),
        (41, 1_900, 10),
        (9, 9_000, 0),
        (7, KEY_BYTES_MAX, 9),
        (5, 8, 100_000),
    ] {
        let buckets = Buckets::from([
            ("a".to_owned(), numbered(count, key, value)),
            ("b".to_owned(), Bucket::new()),
        ]);
        let file = written(&buckets);
        check(&file);
        assert_eq!(
            read(&file, &["a", "b", "c"]).unwrap(),
            buckets,
            "{count} of {key}"
        );
    }
}

#[test]
fn entries_out_of_order_or_too_large_are_refused() {
    let refused = |entries: &[(&[u8], &[u8])]| {
        let planned = Plan::of::<Error>(|contents| {
            contents.bucket("a")?;
            entries
                .iter()
                .try_for_each(|(key, value)| contents.put(key, value))
        });
        planned.unwrap_err().kind()
    };
    assert_eq!(refused(&[(b"b", b""), (b"a", b"")]), ErrorKind::Entry);
    assert_eq!(refused(&[(b"a", b""), (b"a", b"")]), ErrorKind::Entry);
    assert_eq!(refused(&[(b"", b"")]), ErrorKind::Entry);
    assert_eq!(
        refused(&[(&vec![1; KEY_BYTES_MAX + 1], b"")]),
        ErrorKind::Entry
    );
    let orphan = Plan::of::<Error>(|contents| contents.put(b"a", b""));
    assert_eq!(orphan.unwrap_err().kind(), ErrorKind::Entry);
}

#[test]
fn contents_that_changed_since_they_were_planned_are_refused() {
    let planned = Buckets::from([("a".to_owned(), numbered(10, 8, 8))]);
    let others = Buckets::from([("a".to_owned(), numbered(1_000, 8, 8))]);
    let plan = Plan::of(fill(&planned)).unwrap();
    let changed = plan.write(fill(&others), |_| Ok(()));
    assert!(changed.unwrap_err().to_string().contains("changed"));
}

#[test]
fn the_newer_meta_page_counts_and_one_is_enough() {
    let buckets = Buckets::from([("a".to_owned(), numbered(10, 8, 8))]);
    let file = written(&buckets);
    for damaged in [0, 1] {
        let mut file = file.clone();
        file[damaged * PAGE_BYTES + 50] ^= 1;
        assert_eq!(read(&file, &["a"]).unwrap(), buckets);
    }
    let mut both = file;
    both[50] ^= 1;
    both[PAGE_BYTES + 50] ^= 1;
    assert_eq!(read(&both, &["a"]).unwrap_err().kind(), ErrorKind::Damaged);
}

#[test]
fn a_file_that_is_cut_off_is_refused() {
    let file = written(&Buckets::from([("a".to_owned(), numbered(500, 8, 8))]));
    for length in [0, 100, PAGE_BYTES, 3 * PAGE_BYTES, file.len() - 1] {
        let refused = read(&file[..length], &["a"]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Damaged, "{length}");
    }
}

#[test]
fn a_tree_that_leads_into_itself_ends() {
    let mut file = written(&Buckets::from([("a".to_owned(), numbered(500, 8, 8))]));
    let branch = (3..file.len() / PAGE_BYTES)
        .map(|page| page * PAGE_BYTES)
        .find(|at| number(&file, at + 8, 2) == 1)
        .unwrap();
    let itself = file[branch..branch + 8].to_vec();
    file[branch + 24..branch + 32].copy_from_slice(&itself);
    let refused = read(&file, &["a"]).unwrap_err();
    assert!(refused.to_string().contains("too deep"), "{refused}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(buckets in prop::collection::btree_map(
        "[a-z]{1,4}",
        prop::collection::btree_map(
            prop::collection::vec(any::<u8>(), 1..40),
            prop::collection::vec(any::<u8>(), 0..3_000),
            0..40,
        ),
        0..4,
    )) {
        let file = written(&buckets);
        check(&file);
        let names: Vec<&str> = buckets.keys().map(String::as_str).collect();
        prop_assert_eq!(read(&file, &names).unwrap(), buckets);
    }

    #[test]
    fn damage_never_panics(places in prop::collection::vec((any::<u32>(), any::<u8>()), 1..8)) {
        let mut file = written(&Buckets::from([
            ("a".to_owned(), numbered(300, 8, 30)),
            ("b".to_owned(), numbered(3, 8, 30)),
        ]));
        for (place, byte) in places {
            // Behind the meta pages, whose sum finds everything.
            let place = 2 * PAGE_BYTES + place as usize % (file.len() - 2 * PAGE_BYTES);
            file[place] = byte;
        }
        let _ = read(&file, &["a", "b"]);
    }
}
