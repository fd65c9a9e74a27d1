//! LIST: every page tells of every key that it passes what it had at some moment between the page's
//! request and its answer, so a page is a set of reads, and the keys' histories judge it.

use super::client::{BUCKET, Client, Refusal, TRIES_MAX};
use super::history::KEYS;
use super::http::{Outcome, Request, Response, element, elements};
use super::object::{Object, Op};

/// Most pages of one listing; each gives at least one of the keys.
const PAGES_MAX: usize = KEYS.len() + 1;

/// What is listed.
struct Listing {
    prefix: &'static str,
    delimiter: bool,
    keys_max: usize,
    first_version: bool,
}

/// A page of a listing.
struct Page {
    /// Keys with their ETags.
    objects: Vec<(usize, Object)>,
    prefixes: Vec<String>,
    /// Where the next page begins, in the words of the server.
    next: Option<String>,
}

impl Client {
    pub(super) async fn list(&mut self) {
        let listing = Listing {
            prefix: ["", "", "d/", "f/", "d/3"][self.rng.below(5) as usize],
            delimiter: self.rng.once_in(3),
            keys_max: [1, 2, 3, 1_000][self.rng.below(4) as usize],
            first_version: self.rng.once_in(4),
        };
        self.list_pages(&listing).await;
    }

    /// Lists all keys until the server has told of all.
    pub async fn list_at_last(&mut self) {
        let listing = Listing {
            prefix: "",
            delimiter: false,
            keys_max: 1_000,
            first_version: false,
        };
        for _ in 0..TRIES_MAX {
            if self.list_pages(&listing).await {
                return;
            }
        }
        panic!("the keys cannot be listed");
    }

    /// Lists page by page; false when the end was not reached.
    async fn list_pages(&mut self, listing: &Listing) -> bool {
        // The last thing that was listed: a key, or a common prefix with all its keys.
        let mut covered = String::new();
        let mut next = None;
        for _ in 0..PAGES_MAX {
            let done = self.ask(listing.request(next.as_deref())).await;
            let Outcome::Answered(response) = &done.outcome else {
                return false;
            };
            if response.status != 200 {
                return match self.refusal(response) {
                    Refusal::Nothing | Refusal::Unknown => false,
                    Refusal::Precondition | Refusal::Missing => panic!("{response:?}"),
                };
            }
            let page = self.page(listing, response);
            let last = page.last();
            assert!(
                page.next.is_none() || last.is_some(),
                "a page without anything is the last"
            );
            self.look_at(listing, &page, &covered, (done.began, done.ended));
            match (page.next, last) {
                (Some(more), Some(last)) => (next, covered) = (Some(more), last),
                _ => return true,
            }
        }
        panic!(
            "a listing of {} keys has more than {PAGES_MAX} pages",
            KEYS.len()
        );
    }

    fn page(&self, listing: &Listing, response: &Response) -> Page {
        let text = response.text();
        let object = |contents: &str| {
            let name = element(contents, "Key").expect("an object has a key");
            let key = KEYS.iter().position(|key| *key == name);
            let etag = element(contents, "ETag").expect("an object has an ETag");
            let object = self.history().named(&etag.replace("&quot;", ""));
            let size = element(contents, "Size").expect("an object has a size");
            assert_eq!(size, self.history().bytes(object).len().to_string());
            (key.expect("only the run's keys are listed"), object)
        };
        let next = match (listing.first_version, listing.delimiter) {
            (false, _) => element(text, "NextContinuationToken"),
            (true, true) => element(text, "NextMarker"),
            (true, false) => elements(text, "Key").last(),
        };
        let more = element(text, "IsTruncated") == Some("true");
        assert!(!more || next.is_some(), "{text}");
        let rolled = elements(text, "CommonPrefixes");
        Page {
            objects: elements(text, "Contents").map(object).collect(),
            prefixes: rolled
                .map(|inside| element(inside, "Prefix").expect("a prefix").to_owned())
                .collect(),
            next: next.filter(|_| more).map(str::to_owned),
        }
    }

    /// Checks a page's order and records what it tells of the keys behind `covered`.
    fn look_at(&self, listing: &Listing, page: &Page, covered: &str, (began, ended): (u64, u64)) {
        let names: Vec<&str> = page.objects.iter().map(|(key, _)| KEYS[*key]).collect();
        let shown = names.len() + page.prefixes.len();
        assert!(shown <= listing.keys_max, "{names:?} {:?}", page.prefixes);
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
        assert!(
            page.prefixes.is_sorted_by(|a, b| a < b),
            "{:?}",
            page.prefixes
        );
        let all = names
            .iter()
            .copied()
            .chain(page.prefixes.iter().map(String::as_str));
        for name in all {
            let repeated = name <= covered || (covered.ends_with('/') && name.starts_with(covered));
            assert!(!repeated, "{name:?} is listed behind {covered:?}");
            assert!(name.starts_with(listing.prefix), "{name:?}");
        }
        let end = page.next.is_some().then(|| page.last()).flatten();
        for prefix in &page.prefixes {
            let below = (0..KEYS.len()).filter(|key| KEYS[*key].starts_with(prefix.as_str()));
            self.history().rolled(below.collect(), began, ended);
        }
        for (key, name) in KEYS.iter().enumerate() {
            let passed = |bound: &str| *name <= bound || is_below(name, bound, listing.delimiter);
            let asked = name.starts_with(listing.prefix)
                && !passed(covered)
                && end.as_deref().is_none_or(passed);
            let rolled = listing.rolled_up(name);
            if !asked || rolled.is_some_and(|up| page.prefixes.iter().any(|p| p == up)) {
                continue;
            }
            let found = page.objects.iter().find(|(listed, _)| *listed == key);
            assert!(
                found.is_none() || rolled.is_none(),
                "{name:?} is not rolled up"
            );
            let op = found.map_or(Op::SawNone, |(_, object)| Op::Saw(*object));
            self.history().answered(key, op, began, ended);
        }
    }
}

/// Whether a common prefix stands for the key.
fn is_below(name: &str, bound: &str, delimiter: bool) -> bool {
    delimiter && bound.ends_with('/') && name.starts_with(bound)
}

impl Page {
    /// The last thing listed.
    fn last(&self) -> Option<String> {
        let key = self.objects.last().map(|(key, _)| KEYS[*key]);
        let prefix = self.prefixes.last().map(String::as_str);
        key.max(prefix).map(str::to_owned)
    }
}

impl Listing {
    fn request(&self, next: Option<&str>) -> Request {
        let encoded = |text: &str| {
            text.replace('/', "%2F")
                .replace('=', "%3D")
                .replace('+', "%2B")
        };
        let mut query = format!("max-keys={}&prefix={}", self.keys_max, encoded(self.prefix));
        if self.delimiter {
            query.push_str("&delimiter=%2F");
        }
        if !self.first_version {
            query.push_str("&list-type=2");
        }
        if let Some(next) = next {
            let name = if self.first_version {
                "marker"
            } else {
                "continuation-token"
            };
            query.extend(["&", name, "=", &encoded(next)]);
        }
        Request {
            method: "GET",
            path: BUCKET.into(),
            query,
            ..Request::default()
        }
    }

    /// The common prefix that stands for a key.
    fn rolled_up<'n>(&self, name: &'n str) -> Option<&'n str> {
        let rest = name.strip_prefix(self.prefix).filter(|_| self.delimiter)?;
        let at = rest.find('/')?;
        Some(&name[..=self.prefix.len() + at])
    }
}
