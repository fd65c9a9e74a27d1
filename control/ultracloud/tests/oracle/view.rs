//! What two answers are compared by: status, error code, the headers that mean something, and bodies.
//!
//! Left out on purpose, since they differ between any two servers: request ids, messages for people,
//! owners, dates other than "there is one", and the text of upload ids and continuation tokens. Of a
//! refusal its status and code are compared. Uploads are compared in the order of their keys.

use std::collections::{BTreeMap, BTreeSet};

use quick_xml::Reader;
use quick_xml::events::Event;

use crate::support::Answer;

/// Headers whose value is compared.
const HEADERS: [&str; 17] = [
    "accept-ranges",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-range",
    "content-type",
    "etag",
    "expires",
    "location",
    "x-amz-bucket-region",
    "x-amz-checksum-crc32",
    "x-amz-checksum-sha1",
    "x-amz-checksum-sha256",
    "x-amz-mp-parts-count",
    "x-amz-storage-class",
];
/// Elements that are compared by whether they are there.
const OPAQUE: [&str; 9] = [
    "LastModified",
    "CreationDate",
    "Initiated",
    "UploadId",
    "NextContinuationToken",
    "ContinuationToken",
    "UploadIdMarker",
    "NextUploadIdMarker",
    "Location",
];
/// Elements that say who and why: for people.
const IGNORED: [&str; 6] = [
    "Owner",
    "Initiator",
    "Message",
    "RequestId",
    "HostId",
    "Resource",
];

/// An answer as far as it is compared: what is at each place.
#[derive(Debug)]
pub struct View {
    pub status: u16,
    /// The code of an error document.
    pub code: Option<String>,
    places: BTreeMap<String, String>,
}

/// One place where two answers differ; `None` is nothing there.
#[derive(Debug)]
pub struct Difference {
    /// The status of our answer.
    pub status: u16,
    /// `status`, `code`, `header NAME`, `root`, `xml NAME[n] NAME[n]...` or `body`.
    pub at: String,
    pub ours: Option<String>,
    pub theirs: Option<String>,
}

impl View {
    /// `ours` says which buckets of a list belong to the history; others come and go.
    pub fn of(answer: &Answer, is_head: bool, ours: impl Fn(&str) -> bool) -> View {
        let mut view = View {
            status: answer.status,
            code: None,
            places: BTreeMap::new(),
        };
        let is_xml = answer
            .header("content-type")
            .is_some_and(|kind| kind.starts_with("application/xml"));
        let root = Some(&answer.body)
            .filter(|body| is_xml && !body.is_empty())
            .and_then(|body| parse(body));
        if answer.status < 400 {
            for (name, value) in &answer.headers {
                view.add_header(name, value, root.is_some());
            }
        }
        match root {
            Some(root) if root.name == "Error" => {
                let code = root.children.into_iter().find(|child| child.name == "Code");
                view.code = code.map(|code| code.text);
            }
            Some(mut root) => {
                if root.name == "ListMultipartUploadsResult" {
                    root.children
                        .sort_by(|a, b| a.child("Key").cmp(&b.child("Key")));
                }
                for list in root.children.iter_mut().filter(|c| c.name == "Buckets") {
                    list.children.retain(|b| b.child("Name").is_some_and(&ours));
                }
                view.places.insert("root".into(), root.name.clone());
                view.add_element("xml", &root);
            }
            None if !is_head && !answer.body.is_empty() => {
                let shown = match std::str::from_utf8(&answer.body) {
                    Ok(text) if text.len() < 200 => text.to_owned(),
                    _ => format!("{} bytes, {:x}", answer.body.len(), fnv(&answer.body)),
                };
                view.places.insert("body".into(), shown);
            }
            None => {}
        }
        view
    }

    fn add_header(&mut self, name: &str, value: &str, has_document: bool) {
        let compared = HEADERS.contains(&name) || name.starts_with("x-amz-meta-");
        if name == "last-modified" {
            self.places
                .insert("header last-modified".into(), "-".into());
        } else if compared && !(has_document && name == "content-length") {
            self.places.insert(format!("header {name}"), value.into());
        }
    }

    /// Children of one name are compared in their order; names among each other are not.
    fn add_element(&mut self, at: &str, element: &Element) {
        if element.children.is_empty() && !element.text.is_empty() {
            let name = &*element.name;
            let text = if OPAQUE.contains(&name) {
                "-"
            } else {
                &element.text
            };
            self.places.insert(at.to_owned(), text.to_owned());
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for child in &element.children {
            if IGNORED.contains(&&*child.name) {
                continue;
            }
            let count = counts.entry(&child.name).or_default();
            self.add_element(&format!("{at} {}[{count}]", child.name), child);
            *count += 1;
        }
    }
}

/// Every place where two views differ. Answers of different status have nothing else to compare.
pub fn differences(ours: &View, theirs: &View) -> Vec<Difference> {
    let status = ours.status;
    let differ = |at: &str, ours: Option<String>, theirs: Option<String>| Difference {
        status,
        at: at.to_owned(),
        ours,
        theirs,
    };
    if ours.status != theirs.status {
        let said = |view: &View| {
            let code = view.code.as_deref().unwrap_or_default();
            Some(format!("{} {code}", view.status).trim_end().to_owned())
        };
        return vec![differ("status", said(ours), said(theirs))];
    }
    if ours.code != theirs.code {
        return vec![differ("code", ours.code.clone(), theirs.code.clone())];
    }
    let places: BTreeSet<&String> = ours.places.keys().chain(theirs.places.keys()).collect();
    places
        .into_iter()
        .filter(|place| ours.places.get(*place) != theirs.places.get(*place))
        .map(|place| {
            differ(
                place,
                ours.places.get(place).cloned(),
                theirs.places.get(place).cloned(),
            )
        })
        .collect()
}

struct Element {
    name: String,
    text: String,
    children: Vec<Element>,
}

impl Element {
    fn new(name: &str) -> Element {
        Element {
            name: name.to_owned(),
            text: String::new(),
            children: Vec::new(),
        }
    }

    fn child(&self, name: &str) -> Option<&str> {
        let child = self.children.iter().find(|child| child.name == name);
        child.map(|child| &*child.text)
    }
}

/// The root of a document, or `None` when it is not well-formed.
fn parse(body: &[u8]) -> Option<Element> {
    let mut reader = Reader::from_str(std::str::from_utf8(body).ok()?);
    let mut open = vec![Element::new("")];
    loop {
        match reader.read_event().ok()? {
            Event::Start(tag) => open.push(Element::new(tag.local_name().into_inner())),
            Event::Empty(tag) => {
                let element = Element::new(tag.local_name().into_inner());
                open.last_mut()?.children.push(element);
            }
            Event::End(_) => {
                let element = open.pop()?;
                open.last_mut()?.children.push(element);
            }
            Event::Text(text) => open.last_mut()?.text.push_str(&text.xml10_content()),
            Event::GeneralRef(reference) => {
                let char = match reference.resolve_char_ref().ok()? {
                    Some(char) => char,
                    None => match &*reference.into_inner() {
                        "amp" => '&',
                        "lt" => '<',
                        "gt" => '>',
                        "quot" => '"',
                        "apos" => '\'',
                        _ => return None,
                    },
                };
                open.last_mut()?.text.push(char);
            }
            Event::Eof => break,
            _ => {}
        }
    }
    let mut document = open.pop().filter(|_| open.is_empty())?;
    document.children.pop()
}

/// A short name for bytes.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
