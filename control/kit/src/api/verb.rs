//! A verb's description.

use axum::http::StatusCode;

/// What a verb is called, and where it is served.
#[derive(Clone, Copy, Debug)]
pub struct Verb {
    pub(super) name: &'static str,
    pub(super) method: Kind,
    pub(super) path: &'static str,
    pub(super) summary: &'static str,
    pub(super) success: StatusCode,
}

/// The HTTP methods of verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Get,
    Post,
    Put,
    Delete,
}

impl Kind {
    /// Whether the request comes in a body, not in the query.
    pub fn has_body(self) -> bool {
        matches!(self, Kind::Post | Kind::Put)
    }
}

impl Verb {
    fn new(method: Kind, name: &'static str, path: &'static str, summary: &'static str) -> Verb {
        Verb {
            name,
            method,
            path,
            summary,
            success: StatusCode::OK,
        }
    }

    /// Reads. `name` is the gRPC method's, `path` as `/v1/widgets/{name}`.
    pub fn get(name: &'static str, path: &'static str, summary: &'static str) -> Verb {
        Verb::new(Kind::Get, name, path, summary)
    }

    /// Makes something, or does something to it.
    pub fn post(name: &'static str, path: &'static str, summary: &'static str) -> Verb {
        Verb::new(Kind::Post, name, path, summary)
    }

    /// Makes something be as it is given.
    pub fn put(name: &'static str, path: &'static str, summary: &'static str) -> Verb {
        Verb::new(Kind::Put, name, path, summary)
    }

    /// Makes something be gone.
    pub fn delete(name: &'static str, path: &'static str, summary: &'static str) -> Verb {
        Verb::new(Kind::Delete, name, path, summary)
    }

    /// Answers 201: it is made.
    pub fn created(mut self) -> Verb {
        self.success = StatusCode::CREATED;
        self
    }

    /// Answers 202: an operation has begun that will make it so.
    pub fn accepted(mut self) -> Verb {
        self.success = StatusCode::ACCEPTED;
        self
    }

    /// Names of the path's parameters.
    pub(super) fn path_parameters(&self) -> impl Iterator<Item = &'static str> + use<> {
        let parts = self.path.split('/');
        parts.filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
    }
}
