//! Conditional requests: parsed once, evaluated by pure functions in the order of RFC 9110
//! section 13.2.2.
//!
//! The owner of a key evaluates against the state that it is about to read or replace; nothing here
//! knows how to fetch one. A date that cannot be read makes its condition absent, as the RFC says;
//! an entity-tag condition is never dropped.

use crate::error::{Result, S3Error, S3ErrorCode};
use crate::etag::Etag;
use crate::head::RequestHead;
use crate::timestamp::parse_http_date;

/// An If-Match or If-None-Match field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EtagCondition {
    /// `*`: any current representation.
    Any,
    /// The listed tags, as opaque text without quotes.
    Tags(Vec<TagPattern>),
}

/// One listed tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagPattern {
    /// The text between the quotes.
    pub opaque: Box<str>,
    /// Whether it was marked `W/`.
    pub weak: bool,
}

impl EtagCondition {
    fn parse(field: &str) -> Self {
        if field.trim() == "*" {
            return Self::Any;
        }
        // A comma inside quotes is legal HTTP but never part of a tag that this server issues.
        let pattern = |piece: &str| {
            let piece = piece.trim();
            let (weak, rest) = piece
                .strip_prefix("W/")
                .map_or((false, piece), |rest| (true, rest));
            TagPattern {
                opaque: rest.trim_matches('"').into(),
                weak,
            }
        };
        Self::Tags(field.split(',').map(pattern).collect())
    }

    /// Whether the tag is listed. The strong comparison of If-Match never accepts a weak pattern.
    fn lists(&self, etag: &Etag, strong: bool) -> bool {
        match self {
            Self::Any => true,
            Self::Tags(tags) => {
                let text = etag.text();
                tags.iter()
                    .any(|t| !(strong && t.weak) && &*t.opaque == text.as_str())
            }
        }
    }
}

/// The conditions of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    /// If-Match.
    pub if_match: Option<EtagCondition>,
    /// If-None-Match.
    pub if_none_match: Option<EtagCondition>,
    /// If-Modified-Since, in seconds since 1970.
    pub if_modified_since_s: Option<i64>,
    /// If-Unmodified-Since, in seconds since 1970.
    pub if_unmodified_since_s: Option<i64>,
    /// If-Range, a tag or a date; reads ask [`Conditions::range_applies`].
    pub if_range: Option<Box<str>>,
}

/// The state of the object that conditions look at.
#[derive(Debug, Clone, Copy)]
pub struct Current {
    /// Its entity tag.
    pub etag: Etag,
    /// Its last change, in seconds since 1970.
    pub modified_s: i64,
}

/// What the conditions say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Carry on.
    Proceed,
    /// Answer 304 (reads only).
    NotModified,
    /// Answer 412.
    PreconditionFailed,
    /// Answer 404: If-Match on a key that does not exist (writes only).
    NoSuchKey,
}

impl Outcome {
    /// `Ok` to carry on, else the error to answer with.
    pub fn into_result(self) -> Result<()> {
        match self {
            Self::Proceed => Ok(()),
            Self::NotModified => Err(S3ErrorCode::NotModified.into()),
            Self::PreconditionFailed => Err(S3ErrorCode::PreconditionFailed.into()),
            Self::NoSuchKey => Err(S3ErrorCode::NoSuchKey.into()),
        }
    }
}

/// The four field names of one kind of condition.
struct FieldNames {
    matches: &'static str,
    none_match: &'static str,
    modified_since: &'static str,
    unmodified_since: &'static str,
}

const OF_REQUEST: FieldNames = FieldNames {
    matches: "if-match",
    none_match: "if-none-match",
    modified_since: "if-modified-since",
    unmodified_since: "if-unmodified-since",
};

const OF_COPY_SOURCE: FieldNames = FieldNames {
    matches: "x-amz-copy-source-if-match",
    none_match: "x-amz-copy-source-if-none-match",
    modified_since: "x-amz-copy-source-if-modified-since",
    unmodified_since: "x-amz-copy-source-if-unmodified-since",
};

impl Conditions {
    /// The conditions on the object that the request names.
    pub fn of_request(head: &RequestHead) -> Self {
        let if_range = head.header("if-range").map(Into::into);
        Self {
            if_range,
            ..Self::read(head, &OF_REQUEST)
        }
    }

    /// The conditions on the source of a copy.
    pub fn of_copy_source(head: &RequestHead) -> Self {
        Self::read(head, &OF_COPY_SOURCE)
    }

    fn read(head: &RequestHead, names: &FieldNames) -> Self {
        let tags = |name| head.header(name).map(EtagCondition::parse);
        let date = |name| head.header(name).and_then(parse_http_date);
        Self {
            if_match: tags(names.matches),
            if_none_match: tags(names.none_match),
            if_modified_since_s: date(names.modified_since),
            if_unmodified_since_s: date(names.unmodified_since),
            if_range: None,
        }
    }

    /// Whether there is nothing to evaluate.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Evaluates for GET and HEAD of an existing object.
    pub fn evaluate_read(&self, current: &Current) -> Outcome {
        match (&self.if_match, self.if_unmodified_since_s) {
            (Some(tags), _) if !tags.lists(&current.etag, true) => {
                return Outcome::PreconditionFailed;
            }
            (None, Some(date_s)) if current.modified_s > date_s => {
                return Outcome::PreconditionFailed;
            }
            _ => {}
        }
        match (&self.if_none_match, self.if_modified_since_s) {
            (Some(tags), _) if tags.lists(&current.etag, false) => Outcome::NotModified,
            (None, Some(date_s)) if current.modified_s <= date_s => Outcome::NotModified,
            _ => Outcome::Proceed,
        }
    }

    /// Whether a Range is to be obeyed. A client that resumes with If-Range must get the whole
    /// object when it has changed (RFC 9110 section 13.1.5).
    pub fn range_applies(&self, current: &Current) -> bool {
        let Some(validator) = &self.if_range else {
            return true;
        };
        match parse_http_date(validator) {
            Some(date_s) => date_s == current.modified_s,
            None => {
                EtagCondition::parse(validator).lists(&current.etag, true) && &**validator != "*"
            }
        }
    }

    /// Evaluates for the source of a copy: as a read, but there is no 304.
    pub fn evaluate_copy_source(&self, current: &Current) -> Outcome {
        match self.evaluate_read(current) {
            Outcome::NotModified => Outcome::PreconditionFailed,
            other => other,
        }
    }

    /// Refuses the conditions that S3 does not have on writes: If-None-Match with anything but `*`.
    pub fn check_write(&self) -> Result<()> {
        match self.if_none_match {
            Some(EtagCondition::Tags(_)) => Err(S3Error::new(
                S3ErrorCode::NotImplemented,
                "If-None-Match of a write takes only *.",
            )),
            _ => Ok(()),
        }
    }

    /// Evaluates for PUT, DELETE, CopyObject's target and CompleteMultipartUpload; `None` is a key
    /// without an object. If-Modified-Since has no meaning for writes.
    pub fn evaluate_write(&self, current: Option<&Current>) -> Outcome {
        match (&self.if_match, current) {
            (Some(_), None) => return Outcome::NoSuchKey,
            (Some(tags), Some(now)) if !tags.lists(&now.etag, true) => {
                return Outcome::PreconditionFailed;
            }
            _ => {}
        }
        if self.if_match.is_none()
            && let (Some(date_s), Some(now)) = (self.if_unmodified_since_s, current)
            && now.modified_s > date_s
        {
            return Outcome::PreconditionFailed;
        }
        match (&self.if_none_match, current) {
            (Some(tags), Some(now)) if tags.lists(&now.etag, false) => Outcome::PreconditionFailed,
            _ => Outcome::Proceed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: i64 = 784_111_777;
    const DIGEST: &str = "d41d8cd98f00b204e9800998ecf8427e";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const SAME: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    fn conditions(fields: &[(&str, &str)]) -> Conditions {
        let mut text = "GET / HTTP/1.1\r\nHost: a\r\n".to_owned();
        for &(name, value) in fields {
            text.extend([name, ": ", value, "\r\n"]);
        }
        text.push_str("\r\n");
        let parsed = crate::head::parse_head(text.as_bytes(), &crate::HeadLimits::default());
        let Ok(crate::Parsed::Complete { head, .. }) = parsed else {
            panic!("{text}")
        };
        Conditions::of_request(&head)
    }

    fn current() -> Current {
        Current {
            etag: DIGEST.parse().unwrap(),
            modified_s: AT,
        }
    }

    #[test]
    fn reads_follow_the_rfc_order() {
        use Outcome::*;
        let quoted = format!("\"{DIGEST}\"");
        let weak = format!("W/{quoted}");
        let list = format!("\"x\", {quoted}");
        for (fields, expected) in [
            (vec![], Proceed),
            (vec![("If-Match", &*quoted)], Proceed),
            (vec![("If-Match", DIGEST)], Proceed),
            (vec![("If-Match", "*")], Proceed),
            (vec![("If-Match", &list)], Proceed),
            (vec![("If-Match", &weak)], PreconditionFailed),
            (vec![("If-Match", "\"x\"")], PreconditionFailed),
            (vec![("If-Match", "")], PreconditionFailed),
            (vec![("If-None-Match", &quoted)], NotModified),
            (vec![("If-None-Match", &weak)], NotModified),
            (vec![("If-None-Match", "*")], NotModified),
            (vec![("If-None-Match", "\"x\"")], Proceed),
            (vec![("If-Modified-Since", SAME)], NotModified),
            (vec![("If-Modified-Since", BEFORE)], Proceed),
            (vec![("If-Unmodified-Since", SAME)], Proceed),
            (vec![("If-Unmodified-Since", BEFORE)], PreconditionFailed),
            (vec![("If-Unmodified-Since", "yesterday")], Proceed),
            // A tag condition beats the date of the same kind.
            (
                vec![("If-Match", &quoted), ("If-Unmodified-Since", BEFORE)],
                Proceed,
            ),
            (
                vec![("If-None-Match", "\"x\""), ("If-Modified-Since", SAME)],
                Proceed,
            ),
            (
                vec![("If-None-Match", &quoted), ("If-Modified-Since", BEFORE)],
                NotModified,
            ),
            (
                vec![("If-Match", "\"x\""), ("If-None-Match", &quoted)],
                PreconditionFailed,
            ),
        ] {
            let parsed = conditions(&fields);
            assert_eq!(parsed.evaluate_read(&current()), expected, "{fields:?}");
            let copy = if expected == NotModified {
                PreconditionFailed
            } else {
                expected
            };
            assert_eq!(parsed.evaluate_copy_source(&current()), copy, "{fields:?}");
        }
    }

    #[test]
    fn a_range_applies_only_to_the_representation_of_if_range() {
        let quoted = format!("\"{DIGEST}\"");
        for (validator, applies) in [
            (&*quoted, true),
            (SAME, true),
            (BEFORE, false),
            ("\"x\"", false),
            ("*", false),
        ] {
            let parsed = conditions(&[("If-Range", validator)]);
            assert_eq!(parsed.range_applies(&current()), applies, "{validator}");
        }
        assert!(conditions(&[]).range_applies(&current()));
        assert!(!conditions(&[("If-Range", &format!("W/{quoted}"))]).range_applies(&current()));
    }

    #[test]
    fn writes_look_at_the_object_that_they_replace() {
        use Outcome::*;
        for (fields, on_object, on_nothing) in [
            (vec![], Proceed, Proceed),
            (vec![("If-None-Match", "*")], PreconditionFailed, Proceed),
            (vec![("If-Match", "*")], Proceed, NoSuchKey),
            (vec![("If-Match", DIGEST)], Proceed, NoSuchKey),
            (vec![("If-Match", "\"x\"")], PreconditionFailed, NoSuchKey),
            (
                vec![("If-Unmodified-Since", BEFORE)],
                PreconditionFailed,
                Proceed,
            ),
            (vec![("If-Modified-Since", SAME)], Proceed, Proceed),
        ] {
            let parsed = conditions(&fields);
            assert!(parsed.check_write().is_ok());
            assert_eq!(
                parsed.evaluate_write(Some(&current())),
                on_object,
                "{fields:?}"
            );
            assert_eq!(parsed.evaluate_write(None), on_nothing, "{fields:?}");
        }
        let tagged = conditions(&[("If-None-Match", "\"x\"")]);
        assert_eq!(
            tagged.check_write().unwrap_err().code,
            S3ErrorCode::NotImplemented
        );
    }
}
