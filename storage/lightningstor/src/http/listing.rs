//! ListObjects V1 and V2: one ordered page out of all partitions.
//!
//! Keys are spread over the partitions by hash, so a page is a merge of one ordered cursor a
//! partition. The fold decides what is listed and where it makes sense to go on; cursors that lie
//! behind jump there, so that a page never walks through a common prefix. Each partition is asked for
//! about its share of the page.

use std::collections::VecDeque;

use futures_util::future::join_all;
use s3_wire::list::{Fold, FoldParams, Page, Start, Step};
use s3_wire::request::ListParams;
use s3_wire::xml::{self, ListV1, ListV2, ListingFrame, ObjectEntry};
use s3_wire::{BucketName, S3Error};
use shards::PartitionId;

use super::buckets::owner;
use super::errors;
use super::exchange::Reply;
use super::ops::{Call, OP_COST};
use super::select::storage_class;
use crate::store::{BucketId, ListCursor, ListEntry};

/// Entries asked of a partition beyond its share of the page.
const SLACK: usize = 16;
/// Entries first asked of a partition when keys are rolled up: most of them may be passed over.
const ROLLED_FIRST: usize = 32;
/// Most entries asked of a partition at a time.
const ASK_MAX: usize = 1024;
/// Rounds of asking that cost one turn.
const ROUNDS_PER_TURN: u32 = 8;

pub(crate) async fn objects_v1(
    call: &Call<'_>,
    name: &BucketName,
    params: &ListParams,
) -> Result<Reply, S3Error> {
    let start = params
        .start_after
        .as_deref()
        .map_or(Start::First, Start::After);
    let bucket = call.bucket(name)?;
    let page = page(call, name, params, start).await?;
    let mut body = Vec::with_capacity(512 + 320 * page.contents.len());
    let frame = ListingFrame {
        owner: Some(owner(call, &bucket)),
        ..frame(name, params, &page)
    };
    let v1 = ListV1 {
        marker: params.start_after.as_deref().unwrap_or_default(),
        next_marker: page.next_marker.as_deref(),
    };
    xml::write_list_v1(&mut body, &frame, &v1, page.contents.iter().map(entry));
    Ok(call.exchange.xml(200, body))
}

pub(crate) async fn objects_v2(
    call: &Call<'_>,
    name: &BucketName,
    params: &ListParams,
) -> Result<Reply, S3Error> {
    let start = match (&params.continuation_token, &params.start_after) {
        (Some(token), _) => Start::Token(token),
        (None, Some(after)) => Start::After(after),
        (None, None) => Start::First,
    };
    let bucket = call.bucket(name)?;
    let page = page(call, name, params, start).await?;
    let mut body = Vec::with_capacity(512 + 256 * page.contents.len());
    let shown = params.fetch_owner.then(|| owner(call, &bucket));
    let frame = ListingFrame {
        owner: shown,
        ..frame(name, params, &page)
    };
    let v2 = ListV2 {
        continuation_token: params.continuation_token.as_deref(),
        next_token: page.next_token.as_deref(),
        start_after: params.start_after.as_deref(),
    };
    xml::write_list_v2(&mut body, &frame, &v2, page.contents.iter().map(entry));
    Ok(call.exchange.xml(200, body))
}

fn frame<'a>(
    name: &'a BucketName,
    params: &'a ListParams,
    page: &'a Page<ListEntry>,
) -> ListingFrame<'a> {
    ListingFrame {
        bucket: name.as_str(),
        prefix: &params.prefix,
        delimiter: &params.delimiter,
        max_keys: params.max_keys,
        encoding_url: params.encoding_url,
        truncated: page.truncated,
        owner: None,
        common_prefixes: &page.common_prefixes,
    }
}

fn entry(listed: &ListEntry) -> ObjectEntry<'_> {
    ObjectEntry {
        key: &listed.key,
        modified_s: (listed.modified_ms / 1000) as i64,
        etag: listed.etag,
        size_bytes: listed.size,
        storage_class: storage_class(listed.flags),
        checksum: listed.checksum.map(|sum| (sum.algorithm, sum.kind)),
    }
}

async fn page(
    call: &Call<'_>,
    name: &BucketName,
    params: &ListParams,
    start: Start<'_>,
) -> Result<Page<ListEntry>, S3Error> {
    let bucket = call.bucket(name)?;
    let mut fold = Fold::new(&FoldParams {
        prefix: &params.prefix,
        delimiter: &params.delimiter,
        max_keys: params.max_keys,
        start,
    })?;
    if fold.is_done() {
        return Ok(fold.finish());
    }
    let map = call
        .server()
        .router
        .map()
        .expect("a map is installed before anything is served");
    let partitions = map.partitions();
    let share = usize::from(params.max_keys) / usize::from(partitions) + SLACK;
    let ask = if params.delimiter.is_empty() {
        share
    } else {
        share.min(ROLLED_FIRST)
    };
    let merge = Merge {
        bucket: bucket.id,
        prefix: params.prefix.clone(),
        cursors: (0..partitions)
            .map(|p| Cursor::new(PartitionId(p), ask))
            .collect(),
    };
    merge.run(call, &mut fold).await?;
    Ok(fold.finish())
}

/// Where one partition's part of the listing is.
struct Cursor {
    partition: PartitionId,
    entries: VecDeque<ListEntry>,
    /// The last key that was fetched; none before the first fetch.
    last: Option<Box<str>>,
    /// Whether the partition has more than was fetched.
    more: bool,
    ask: usize,
}

impl Cursor {
    fn new(partition: PartitionId, ask: usize) -> Cursor {
        Cursor {
            partition,
            entries: VecDeque::new(),
            last: None,
            more: true,
            ask,
        }
    }

    /// The next key, if it is here.
    fn key(&self) -> Option<&str> {
        self.entries.front().map(|entry| &*entry.key)
    }

    /// Drops what lies before the bound.
    fn skip_to(&mut self, bound: &[u8]) {
        let passed = self
            .entries
            .partition_point(|entry| entry.key.as_bytes() < bound);
        self.entries.drain(..passed);
    }

    /// Where to fetch from: behind what was fetched, or at the bound if that is further on.
    fn fetch_from(&self, bound: &[u8]) -> Vec<u8> {
        match &self.last {
            Some(last) if last.as_bytes() >= bound => {
                let mut behind = last.as_bytes().to_vec();
                behind.push(0);
                behind
            }
            _ => bound.to_vec(),
        }
    }
}

struct Merge {
    bucket: BucketId,
    prefix: Box<str>,
    cursors: Vec<Cursor>,
}

impl Merge {
    async fn run(mut self, call: &Call<'_>, fold: &mut Fold<ListEntry>) -> Result<(), S3Error> {
        for round in 0_u32.. {
            let turn = match round % ROUNDS_PER_TURN {
                0 => Some(call.server().turn(call.tenant, OP_COST).await?),
                _ => None,
            };
            self.refill(call, fold.seek()).await?;
            drop(turn);
            if self.feed(fold) {
                return Ok(());
            }
            engine::yield_if_needed().await;
        }
        Ok(())
    }

    /// Fetches for every cursor that has run out.
    async fn refill(&mut self, call: &Call<'_>, bound: &[u8]) -> Result<(), S3Error> {
        let fetches = self
            .cursors
            .iter()
            .enumerate()
            .filter(|(_, c)| c.entries.is_empty() && c.more);
        let fetches = fetches.map(|(at, cursor)| {
            let (bucket, prefix, ask) = (self.bucket, self.prefix.clone(), cursor.ask);
            let (partition, from) = (cursor.partition, cursor.fetch_from(bound));
            let fetch = call.server().on(partition, move |p| async move {
                p.list(bucket, ListCursor::From(&from), prefix.as_bytes(), ask)
                    .await
            });
            async move { (at, fetch.await) }
        });
        for (at, fetched) in join_all(fetches).await {
            let chunk = fetched.map_err(|error| errors::report(&error, "list"))?;
            let cursor = &mut self.cursors[at];
            if let Some(last) = chunk.entries.last() {
                cursor.last = Some(last.key.clone());
            }
            cursor.more = chunk.more && !chunk.entries.is_empty();
            cursor.entries = chunk.entries.into();
            cursor.ask = (cursor.ask * 2).min(ASK_MAX);
        }
        Ok(())
    }

    /// Feeds keys in order until the page is full (true) or a cursor has to be fetched for.
    fn feed(&mut self, fold: &mut Fold<ListEntry>) -> bool {
        loop {
            if self.cursors.iter().any(|c| c.entries.is_empty() && c.more) {
                return false;
            }
            let live = self.cursors.iter_mut().filter(|c| !c.entries.is_empty());
            let Some(cursor) = live.min_by(|a, b| a.key().cmp(&b.key())) else {
                return true;
            };
            let entry = cursor
                .entries
                .front()
                .expect("cursors without entries are left out");
            let step = fold.offer(&entry.key, || entry.clone());
            match step {
                Step::Done => return true,
                Step::Next => {
                    cursor.entries.pop_front();
                }
                Step::Seek => {
                    for cursor in &mut self.cursors {
                        cursor.skip_to(fold.seek());
                    }
                }
            }
        }
    }
}
