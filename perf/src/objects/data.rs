//! The objects of a run: which keys there are, how they get into a site, and proof that the site
//! gives them back.
//!
//! Nothing is measured before every kind of answer that will be measured was compared byte for byte.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::body;
use super::cell::{BIG_BYTES, Cell, Job, PAGE_KEYS, SMALL_BYTES};
use super::fill::{Fill, Method};
use super::site::{Access, Site};

/// The bucket of everything but listings.
const BUCKET: &str = "perf-objects";
/// Small objects, and small targets of PUT.
const SMALL_KEYS: u32 = 4_000;
/// Big objects.
const BIG_READ_KEYS: u32 = 8;
/// Big targets of PUT.
const BIG_WRITE_KEYS: u32 = 16;
/// Bytes of an object that is there to be listed.
const LISTED_BYTES: usize = 16;
/// Keys that a delimiter rolls up to one common prefix.
const GROUP_KEYS: u32 = 100_000;
/// The delimiter, which no server takes for a directory of its own.
const DELIMITER: &str = "-";
/// Small objects between two that are compared.
const SAMPLE_STEP: usize = 40;
/// Written objects that are compared after a window.
const WRITTEN_SAMPLES: u32 = 4;

/// The keys that a cell works on: one path each.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Keys {
    bucket: String,
    prefix: &'static str,
    count: u32,
}

impl Keys {
    fn of(cell: Cell) -> Self {
        let (prefix, count) = match cell.job() {
            Job::Get(SMALL_BYTES) => ("small-", SMALL_KEYS),
            Job::Get(_) => ("big-", BIG_READ_KEYS),
            Job::Put(SMALL_BYTES) => ("small-put-", SMALL_KEYS),
            Job::Put(_) => ("big-put-", BIG_WRITE_KEYS),
            Job::List(count) | Job::Roll(count) => ("key-", count),
        };
        let bucket = match cell.job() {
            Job::Get(_) | Job::Put(_) => BUCKET.to_owned(),
            Job::List(count) | Job::Roll(count) => format!("perf-list-{count}"),
        };
        Self {
            bucket,
            prefix,
            count,
        }
    }

    /// Keys sort as their numbers do.
    fn key(&self, number: u32) -> String {
        format!("{}{number:08}", self.group(number))
    }

    /// What a delimiter rolls the key of this number up to.
    fn group(&self, number: u32) -> String {
        format!("{}{:03}{DELIMITER}", self.prefix, number / GROUP_KEYS)
    }

    fn path(&self, number: u32) -> String {
        format!("/{}/{}", self.bucket, self.key(number))
    }

    fn bucket_path(&self) -> String {
        format!("/{}", self.bucket)
    }

    /// The query of a page that starts with the key of this number.
    fn page_query(&self, first: u32) -> String {
        let after = match first.checked_sub(1) {
            Some(before) => format!("&start-after={}", self.key(before)),
            None => String::new(),
        };
        format!("list-type=2&max-keys={PAGE_KEYS}{after}")
    }

    /// The query for all common prefixes.
    fn roll_query(&self) -> String {
        let prefix = self.prefix;
        format!("list-type=2&max-keys={PAGE_KEYS}&prefix={prefix}&delimiter={DELIMITER}")
    }
}

/// Puts everything into a site that the cells will ask it for.
pub fn fill(site: &Site, cells: &[Cell]) -> Result<()> {
    let mut done: Vec<Keys> = Vec::new();
    for cell in cells.iter().filter(|cell| site.serves(cell.job())) {
        let keys = Keys::of(*cell);
        if done.contains(&keys) {
            continue;
        }
        if done.iter().all(|other| other.bucket != keys.bucket) {
            make_bucket(site, &keys)?;
        }
        match cell.job() {
            Job::Get(bytes) => put_all(site, &keys, bytes),
            Job::Put(_) => Ok(()),
            Job::List(_) | Job::Roll(_) => put_all(site, &keys, LISTED_BYTES),
        }
        .with_context(|| format!("fill {} for {}", site.name, cell.name()))?;
        done.push(keys);
    }
    Ok(())
}

fn make_bucket(site: &Site, keys: &Keys) -> Result<()> {
    let path = keys.bucket_path();
    match &site.endpoint.access {
        Access::Files(root) => fs::create_dir(root.join(&keys.bucket)).map_err(Into::into),
        Access::Signed(_) => site.endpoint.ask("PUT", &path, "").map(drop),
    }
    .with_context(|| format!("make the bucket {path} of {}", site.name))
}

fn put_all(site: &Site, keys: &Keys, bytes: usize) -> Result<()> {
    if let Access::Files(root) = &site.endpoint.access {
        for number in 0..keys.count {
            let path = root.join(&keys.bucket).join(keys.key(number));
            fs::write(&path, body::stored(number.into(), bytes))
                .with_context(|| format!("write {}", path.display()))?;
        }
        return Ok(());
    }
    let fill = Fill {
        method: Method::Put,
        count: keys.count,
        path: &|number| keys.path(number),
        body: &|number| body::stored(number.into(), bytes),
    };
    fill.run(&site.endpoint)
}

/// Compares what a site answers with what was put into it; gives the bytes of the shortest body.
pub fn check(site: &Site, cell: Cell) -> Result<u64> {
    let keys = Keys::of(cell);
    match cell.job() {
        Job::Get(bytes) => check_objects(site, &keys, bytes),
        // Compared after each window, as nothing is there before.
        Job::Put(_) => Ok(0),
        Job::List(_) => check_pages(site, &keys),
        Job::Roll(_) => check_rolled(site, &keys),
    }
    .with_context(|| format!("{} answers {} wrongly", site.name, cell.name()))
}

fn check_objects(site: &Site, keys: &Keys, bytes: usize) -> Result<u64> {
    let mut client = site.endpoint.client()?;
    let last = keys.count - 1;
    for number in (0..keys.count).step_by(SAMPLE_STEP).chain([last]) {
        let path = keys.path(number);
        let got = client.request("GET", &site.endpoint.target("GET", &path, "")?, b"")?;
        let got = got.ok().with_context(|| format!("GET {path}"))?;
        ensure!(
            got == body::stored(number.into(), bytes),
            "GET {path}: {} bytes that are not the {bytes} that were put",
            got.len()
        );
    }
    Ok(bytes as u64)
}

fn check_pages(site: &Site, keys: &Keys) -> Result<u64> {
    let mut client = site.endpoint.client()?;
    let mut shortest = u64::MAX;
    for first in (0..keys.count).step_by(PAGE_KEYS as usize) {
        let query = keys.page_query(first);
        let target = site.endpoint.target("GET", &keys.bucket_path(), &query)?;
        let page = client.request("GET", &target, b"")?.ok()?;
        shortest = shortest.min(page.len() as u64);
        let page = String::from_utf8(page).context("a page that is not UTF-8")?;
        let expected = (first..first + PAGE_KEYS).map(|number| keys.key(number));
        ensure!(
            listed(&page).eq(expected),
            "the page after {first} keys does not list the next {PAGE_KEYS}"
        );
    }
    Ok(shortest)
}

fn check_rolled(site: &Site, keys: &Keys) -> Result<u64> {
    let page = site
        .endpoint
        .ask("GET", &keys.bucket_path(), &keys.roll_query())?;
    let text = String::from_utf8(page).context("a page that is not UTF-8")?;
    let (_, rolled) = text
        .split_once("<CommonPrefixes>")
        .context("a page without common prefixes")?;
    let firsts = (0..keys.count).step_by(GROUP_KEYS as usize);
    ensure!(
        listed(&text).count() == 0
            && between(rolled, "<Prefix>", "</Prefix>").eq(firsts.map(|first| keys.group(first))),
        "the page does not roll up {} keys by {DELIMITER:?}",
        keys.count
    );
    Ok(text.len() as u64)
}

/// The keys on a page of ListObjectsV2; none of ours needs an escape.
fn listed(page: &str) -> impl Iterator<Item = &str> {
    between(page, "<Key>", "</Key>")
}

fn between<'a>(text: &'a str, open: &'a str, close: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(open)
        .skip(1)
        .filter_map(move |rest| rest.split_once(close))
        .map(|(inner, _)| inner)
}

/// Reads back what the first requests of a window wrote.
pub fn check_written(site: &Site, cell: Cell, pool: &[u8]) -> Result<()> {
    let Job::Put(bytes) = cell.job() else {
        return Ok(());
    };
    let keys = Keys::of(cell);
    let mut client = site.endpoint.client()?;
    let mut found = 0;
    // wrk asks its script for one request that it never sends, so key 1 is the first to be put.
    for number in 1..=WRITTEN_SAMPLES {
        let path = keys.path(number);
        let answer = client.request("GET", &site.endpoint.target("GET", &path, "")?, b"")?;
        // The window may have ended before this one was put.
        if answer.status == 404 {
            continue;
        }
        let got = answer.ok().with_context(|| format!("GET {path}"))?;
        body::check_written(&got, bytes, pool)
            .with_context(|| format!("{} lost part of {path}", site.name))?;
        found += 1;
    }
    ensure!(
        found > 0,
        "{} has none of the first objects of {}",
        site.name,
        cell.name()
    );
    Ok(())
}

/// Writes the targets of a cell's requests, one a line, into a file.
pub fn write_targets(site: &Site, cell: Cell, path: &Path) -> Result<()> {
    let keys = Keys::of(cell);
    let object = |method, number| site.endpoint.target(method, &keys.path(number), "");
    let page = |query: &str| site.endpoint.target("GET", &keys.bucket_path(), query);
    let lines: Vec<String> = match cell.job() {
        Job::Get(_) => (0..keys.count)
            .map(|number| object("GET", number))
            .collect::<Result<_>>()?,
        Job::Put(_) => (0..keys.count)
            .map(|number| object("PUT", number))
            .collect::<Result<_>>()?,
        Job::List(_) => (0..keys.count)
            .step_by(PAGE_KEYS as usize)
            .map(|first| page(&keys.page_query(first)))
            .collect::<Result<_>>()?,
        Job::Roll(_) => vec![page(&keys.roll_query())?],
    };
    fs::write(path, lines.join("\n") + "\n").with_context(|| format!("write {}", path.display()))
}

const _: () = assert!(SMALL_BYTES != BIG_BYTES && WRITTEN_SAMPLES < BIG_WRITE_KEYS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_starts_after_the_key_before_it() {
        let keys = Keys::of(Cell::List1e4);
        assert_eq!(keys.page_query(0), "list-type=2&max-keys=1000");
        let second = "list-type=2&max-keys=1000&start-after=key-000-00000999";
        assert_eq!(keys.page_query(1000), second);
    }

    #[test]
    fn keys_sort_as_their_numbers_and_no_job_shares_them() {
        let keys = Keys::of(Cell::List1e6);
        assert!(keys.key(9) < keys.key(10) && keys.key(99_999) < keys.key(999_999));
        assert_eq!(Keys::of(Cell::GetSmall16), Keys::of(Cell::GetSmall64));
        assert_ne!(Keys::of(Cell::GetSmall64), Keys::of(Cell::PutSmall64));
        assert_ne!(Keys::of(Cell::GetBig4), Keys::of(Cell::PutBig4));
    }

    #[test]
    fn a_million_keys_roll_up_to_ten_common_prefixes() {
        let keys = Keys::of(Cell::ListRolled1e6);
        assert_eq!(keys, Keys::of(Cell::List1e6));
        let mut groups: Vec<_> = (0..keys.count)
            .step_by(1000)
            .map(|n| keys.group(n))
            .collect();
        groups.dedup();
        assert_eq!(groups.len(), 10);
        assert!(keys.key(999_999).starts_with("key-009-"));
    }

    #[test]
    fn the_keys_of_a_page_are_read_in_order() {
        let page = "<L><Name>b</Name><Contents><Key>a</Key><Size>1</Size></Contents>\
            <Contents><Key>b</Key></Contents><Contents><Key>cut";
        assert!(listed(page).eq(["a", "b"]));
        assert_eq!(listed("").count(), 0);
    }
}
