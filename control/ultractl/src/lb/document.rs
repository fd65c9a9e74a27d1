//! A document of load balancers: read from YAML, with the line of each value, so that what a server finds wrong
//! is told with its line.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use fiberlb_api::v1;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use crate::failure::{Exit, Failure};

/// Bytes of a document at most.
const BYTES_MAX: u64 = 8 << 20;
/// Between a path and what is wrong there, as the node says it.
const AFTER_PATH: &str = ": ";

/// A document that was read.
#[derive(Debug)]
pub struct Document {
    /// What it asks for.
    pub request: v1::ApplyRequest,
    path: PathBuf,
    lines: Lines,
}

impl Document {
    /// Reads a file, or the standard input.
    pub fn read(path: &Path) -> Result<Document> {
        let mut text = String::new();
        let unreadable = || format!("cannot read {}", path.display());
        let read = if path == Path::new("-") {
            std::io::stdin()
                .lock()
                .take(BYTES_MAX + 1)
                .read_to_string(&mut text)
        } else {
            let file = std::fs::File::open(path).with_context(unreadable)?;
            file.take(BYTES_MAX + 1).read_to_string(&mut text)
        };
        let bytes = read.with_context(unreadable)?;
        if bytes as u64 > BYTES_MAX {
            let what = format!("{} has more than {BYTES_MAX} bytes", path.display());
            return Err(Failure::usage(what).into());
        }
        Document::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Document> {
        let wrong = |error: &serde_saphyr::Error| {
            let at = error.location();
            let at = at.map_or_else(String::new, |at| {
                format!(", line {}, column {}", at.line(), at.column())
            });
            let said = error.without_snippet().to_string();
            // The error says its own place, too, at its end.
            let said = said.split(" at line ").next().unwrap_or(&said).to_owned();
            Failure::usage(format!("{}{at}: {said}", path.display()))
                .next("docs/fiberlb.md describes the document; nothing was sent")
        };
        let request: v1::ApplyRequest =
            serde_saphyr::from_str(text).map_err(|error| wrong(&error))?;
        let tree: Spanned<Tree> = serde_saphyr::from_str(text).map_err(|error| wrong(&error))?;
        let mut lines = Lines::default();
        lines.add(String::new(), &tree);
        Ok(Document {
            request,
            path: path.to_owned(),
            lines,
        })
    }

    /// The same failure, with lines of the document in the place of paths.
    pub fn placed(&self, failure: Failure) -> Failure {
        if failure.exit() != Exit::Refused {
            return failure;
        }
        failure.map_message(|message| {
            let placed = message.lines().map(|line| self.placed_line(line));
            placed.collect::<Vec<_>>().join("\n")
        })
    }

    fn placed_line(&self, line: &str) -> String {
        let Some((path, what)) = line.split_once(AFTER_PATH) else {
            return line.to_owned();
        };
        match self.lines.of(path) {
            Some(at) => {
                let field = path.rsplit('.').next().unwrap_or(path);
                format!("{}, line {at}: {what} ({field})", self.path.display())
            }
            None => line.to_owned(),
        }
    }
}

/// The line of each value, by its path.
#[derive(Debug, Default)]
struct Lines(BTreeMap<String, u64>);

impl Lines {
    fn add(&mut self, path: String, tree: &Spanned<Tree>) {
        match &tree.value {
            Tree::Leaf => {}
            Tree::Map(entries) => {
                for (key, value) in entries {
                    let dot = if path.is_empty() { "" } else { "." };
                    self.add(format!("{path}{dot}{key}"), value);
                }
            }
            Tree::List(values) => {
                for (at, value) in values.iter().enumerate() {
                    self.add(format!("{path}[{at}]"), value);
                }
            }
        }
        self.0.insert(path, tree.referenced.line());
    }

    /// The line of a value, or of the nearest one around it that is written.
    fn of(&self, path: &str) -> Option<u64> {
        if !path.starts_with("balancers") {
            return None;
        }
        let mut path = path;
        loop {
            if let Some(line) = self.0.get(path) {
                return Some(*line);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }
}

/// Any YAML, of which only the places count.
#[derive(Debug)]
enum Tree {
    Leaf,
    Map(Vec<(String, Spanned<Tree>)>),
    List(Vec<Spanned<Tree>>),
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Tree, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_str<E>(self, _: &str) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Tree::Map(entries))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tree, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Tree::List(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "\
set: web
balancers:
- name: web
  listeners:
  - name: http
    protocol: tcp
    vip: 192.0.2.1
    port: 80
    pool: web
  pools:
  - name: web
    health_check: {kind: http, statuses: [200, 2xx]}
    backends:
    - {name: b1, address: 10.0.0.1, port: 8080}
    - {name: b2,
       address: 10.0.0.2}
";

    fn parse(text: &str) -> Result<Document> {
        Document::parse(Path::new("lb.yaml"), text)
    }

    #[test]
    fn a_document_is_read_and_faults_get_their_lines() {
        let document = parse(DOCUMENT).unwrap();
        assert_eq!(document.request.set, "web");
        let pool = &document.request.balancers[0].pools[0];
        assert_eq!(pool.backends[1].address, "10.0.0.2");
        assert_eq!(pool.health_check.as_ref().unwrap().statuses[0], "200");
        for (path, line) in [
            ("balancers[0].listeners[0].vip", 7),
            ("balancers[0].listeners[0].mode", 5),
            ("balancers[0].pools[0].backends[1].address", 16),
            ("balancers[0].pools[0].health_check.kind", 12),
            ("balancers", 3),
        ] {
            let placed = document.placed_line(&format!("{path}: it is wrong: so"));
            assert!(
                placed.starts_with(&format!("lb.yaml, line {line}: it is wrong: so")),
                "{path}: {placed}"
            );
        }
        assert_eq!(document.placed_line("other: text"), "other: text");
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_line() {
        for (text, parts) in [
            (
                "balancers:\n- nmae: web\n",
                &["lb.yaml, line 2", "nmae"][..],
            ),
            (
                "balancers:\n- name: web\n  listeners:\n  - port: eighty\n",
                &["line 4", "invalid u32"],
            ),
            ("balancers: [\n", &["lb.yaml, line"]),
        ] {
            let said = parse(text).unwrap_err().to_string();
            for part in parts {
                assert!(said.contains(part), "{text:?} gives {said:?}");
            }
        }
    }
}
