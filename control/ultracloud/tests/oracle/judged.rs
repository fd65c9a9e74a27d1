//! The differences to moto that have been judged. docs/s3-compatibility.md says for each name what
//! differs, what Amazon documents, and why ours stays.
//!
//! A rule recognises its difference and no other; one that recognises nothing in a whole run is stale
//! and fails the test.

use s3_wire::uri;

use crate::plan::{Op, Plan};
use crate::view::Difference;

/// A difference that stays, and how it is recognised.
pub struct Rule {
    pub name: &'static str,
    applies: fn(&Plan, &Difference) -> bool,
}

const fn rule(name: &'static str, applies: fn(&Plan, &Difference) -> bool) -> Rule {
    Rule { name, applies }
}

/// The rule for a difference, if it has been judged; the first that applies.
pub fn rule_for(plan: &Plan, difference: &Difference) -> Option<&'static Rule> {
    RULES.iter().find(|rule| (rule.applies)(plan, difference))
}

impl Difference {
    fn is(&self, at: &str, ours: Option<&str>, theirs: Option<&str>) -> bool {
        self.at == at && self.ours.as_deref() == ours && self.theirs.as_deref() == theirs
    }

    /// The statuses and codes of two answers.
    fn statuses(&self, ours: &str, theirs: &str) -> bool {
        self.is("status", Some(ours), Some(theirs))
    }

    fn only_ours(&self, at: &str) -> bool {
        self.at == at && self.ours.is_some() && self.theirs.is_none()
    }

    fn only_theirs(&self, at: &str) -> bool {
        self.at == at && self.ours.is_none() && self.theirs.is_some()
    }
}

fn is_read(plan: &Plan) -> bool {
    matches!(plan.op, Op::Get | Op::Head)
}

fn is_list(plan: &Plan) -> bool {
    matches!(plan.op, Op::ListV1 | Op::ListV2)
}

pub const RULES: &[Rule] = &[
    // Heads of answers.
    rule("type-of-nothing", |_, d| {
        d.is(
            "header content-type",
            None,
            Some("text/html; charset=utf-8"),
        )
    }),
    rule("date-of-a-write", |plan, d| {
        plan.method == "PUT" && d.only_theirs("header last-modified")
    }),
    rule("class-of-a-write", |plan, d| {
        plan.method == "PUT" && d.only_theirs("header x-amz-storage-class")
    }),
    rule("etag-header-of-a-copy", |plan, d| {
        matches!(plan.op, Op::Copy | Op::PartCopy) && d.only_theirs("header etag")
    }),
    rule("type-of-a-bucket", |plan, d| {
        plan.op == Op::HeadBucket && d.is("header content-type", None, Some("application/xml"))
    }),
    rule("caching-of-a-304", |_, d| {
        let sent = [
            "header last-modified",
            "header cache-control",
            "header expires",
        ];
        d.status == 304 && sent.contains(&&*d.at) && d.only_ours(&d.at)
    }),
    rule("headers-of-a-304", |_, d| {
        let left_out = [
            "accept-ranges",
            "content-disposition",
            "content-language",
            "content-encoding",
        ];
        let name = d.at.strip_prefix("header ").unwrap_or_default();
        d.status == 304
            && (left_out.contains(&name) || name.starts_with("x-amz-meta-"))
            && d.only_theirs(&d.at)
    }),
    rule("overrides-of-headers", |plan, d| {
        is_read(plan)
            && d.at
                .strip_prefix("header ")
                .and_then(|header| plan.param(&format!("response-{header}")))
                .is_some_and(|asked| d.ours.as_deref() == Some(asked))
    }),
    // Listings.
    rule("names-of-documents", |plan, d| {
        matches!(plan.op, Op::ListParts | Op::Complete)
            && d.at == "root"
            && d.ours
                .as_deref()
                .and_then(|ours| ours.strip_suffix("Result"))
                == d.theirs
                    .as_deref()
                    .and_then(|theirs| theirs.strip_suffix("Response"))
    }),
    rule("marker-that-leads-nowhere", |plan, d| {
        plan.op == Op::ListParts && d.only_theirs("xml NextPartNumberMarker[0]")
    }),
    rule("uploads-without-pages", |plan, d| {
        let asked = [
            "delimiter",
            "max-uploads",
            "key-marker",
            "encoding-type",
            "prefix",
        ];
        plan.op == Op::ListUploads
            && asked.iter().any(|name| plan.param(name).is_some())
            && d.at.starts_with("xml ")
    }),
    rule("part-markers-are-numbers", |plan, d| {
        plan.op == Op::ListParts
            && plan.param("part-number-marker").is_some()
            && d.at.starts_with("xml ")
    }),
    rule("prefixes-count-in-pages", |plan, d| {
        plan.op == Op::ListV1
            && plan.param("delimiter").is_some()
            && plan.param("max-keys").is_some()
            && d.at.starts_with("xml ")
    }),
    rule("prefixes-before-the-marker", |plan, d| {
        plan.op == Op::ListV1
            && plan.param("delimiter").is_some()
            && plan.param("marker").is_some()
            && d.at.starts_with("xml CommonPrefixes[")
    }),
    rule("prefixes-are-encoded", |plan, d| {
        plan.op == Op::ListV1
            && plan.param("encoding-type").is_some()
            && d.at.starts_with("xml CommonPrefixes[")
            && d.ours
                .as_deref()
                .and_then(|ours| uri::decode_path(ours).ok())
                .as_deref()
                == d.theirs.as_deref()
    }),
    rule("start-after-is-echoed", |plan, d| {
        plan.op == Op::ListV2
            && plan
                .query
                .iter()
                .any(|(name, _)| *name == "continuation-token")
            && d.only_ours("xml StartAfter[0]")
    }),
    rule("start-after-is-encoded", |plan, d| {
        plan.op == Op::ListV2
            && plan.param("encoding-type").is_some()
            && d.at == "xml StartAfter[0]"
            && d.theirs.as_deref() == plan.param("start-after")
    }),
    rule("marker-is-echoed", |plan, d| {
        plan.op == Op::ListV1 && d.only_ours("xml Marker[0]")
    }),
    rule("token-is-echoed", |plan, d| {
        plan.op == Op::ListV2 && d.only_ours("xml ContinuationToken[0]")
    }),
    rule("next-marker-without-delimiter", |plan, d| {
        plan.op == Op::ListV1
            && plan.param("delimiter").is_none()
            && d.only_theirs("xml NextMarker[0]")
    }),
    rule("page-size-is-capped", |plan, d| {
        is_list(plan)
            && plan.param("max-keys") == Some("5000")
            && d.is("xml MaxKeys[0]", Some("1000"), Some("5000"))
    }),
    rule("quiet-deletes", |plan, d| {
        plan.op == Op::DeleteMany
            && plan.body.windows(12).any(|at| at == b"<Quiet>true<")
            && d.only_theirs(&d.at)
    }),
    // What is refused.
    rule("keys-are-bounded", |plan, d| {
        plan.key.len() > 1024 && d.statuses("400 KeyTooLongError", "200")
    }),
    rule("metadata-is-bounded", |_, d| {
        d.statuses("400 MetadataTooLarge", "200")
    }),
    rule("arguments-are-checked", |plan, d| {
        let theirs = d.theirs.as_deref();
        matches!(plan.op, Op::Bad | Op::Copy | Op::PartCopy)
            && !plan.has("x-amz-copy-source-range")
            && d.is("status", Some("400 InvalidArgument"), theirs)
            && matches!(theirs, Some("200" | "500"))
    }),
    rule("bucket-names-are-checked", |plan, d| {
        plan.op == Op::CreateBucket && d.statuses("400 InvalidBucketName", "200")
    }),
    rule("storage-classes", |plan, d| {
        plan.has("x-amz-storage-class")
            && d.is(
                "status",
                Some("400 InvalidStorageClass"),
                d.theirs.as_deref(),
            )
    }),
    rule("digests-are-checked", |plan, d| {
        plan.has("content-md5")
            && (d.statuses("400 InvalidDigest", "200") || d.statuses("400 BadDigest", "200"))
    }),
    rule("xml-is-checked", |_, d| {
        d.statuses("400 MalformedXML", "500")
    }),
    rule("uploads-of-no-upload", |plan, d| {
        let ops = [Op::Bad, Op::Part, Op::PartCopy, Op::Complete];
        let is_accepted = plan.op == Op::Complete && d.theirs.as_deref() == Some("200");
        ops.contains(&plan.op)
            && (d.statuses("404 NoSuchUpload", "500")
                || d.statuses("404 NoSuchUpload", "200") && is_accepted)
    }),
    rule("buckets-are-not-made-twice", |plan, d| {
        plan.op == Op::CreateBucket && d.statuses("409 BucketAlreadyOwnedByYou", "200")
    }),
    rule("ranges-that-make-no-sense", |plan, d| {
        matches!(
            plan.value_of("range"),
            Some("bytes=5-2" | "bytes=a-b" | "lines=1-2")
        ) && d.is("status", Some("200"), d.theirs.as_deref())
            && d.theirs
                .as_deref()
                .is_some_and(|theirs| matches!(theirs, "206" | "416" | "416 InvalidRange"))
    }),
    rule("ranges-of-nothing", |plan, d| {
        let asked = plan.value_of("range");
        asked.is_some_and(|range| range.starts_with("bytes=-"))
            && d.status == 416
            && d.at == "status"
            && d.theirs.as_deref() == Some("200")
    }),
    rule("conditions-of-a-copys-source", |plan, d| {
        plan.headers
            .iter()
            .any(|(name, _)| name.starts_with("x-amz-copy-source-if-"))
            && d.statuses("412 PreconditionFailed", "200")
    }),
    rule("copies-of-nothing", |plan, d| {
        plan.op == Op::PartCopy && d.only_ours("code")
    }),
    rule("ranges-of-part-copies", |plan, d| {
        plan.has("x-amz-copy-source-range")
            && (d.statuses("400 InvalidArgument", "200")
                || d.statuses("400 InvalidArgument", "500"))
    }),
    rule("arguments-before-existence", |plan, d| {
        let theirs = d.theirs.as_deref();
        matches!(plan.op, Op::Part | Op::PartCopy | Op::Copy | Op::Bad)
            && d.is("status", Some("400 InvalidArgument"), theirs)
            && theirs.is_some_and(|theirs| theirs.starts_with("404"))
    }),
    rule("checksums-are-checked", |plan, d| {
        plan.has("x-amz-sdk-checksum-algorithm") && d.statuses("400 BadDigest", "200")
    }),
    rule("digests-before-conditions", |plan, d| {
        let refused = matches!(
            d.ours.as_deref(),
            Some("400 BadDigest" | "400 InvalidDigest")
        );
        (plan.has("if-match") || plan.has("if-none-match"))
            && d.is(
                "status",
                d.ours.as_deref().filter(|_| refused),
                d.theirs.as_deref(),
            )
            && matches!(
                d.theirs.as_deref(),
                Some("404 NoSuchKey" | "412 PreconditionFailed")
            )
    }),
    rule("parts-before-conditions", |plan, d| {
        let refused = matches!(
            d.ours.as_deref(),
            Some("400 InvalidPart" | "400 MalformedXML")
        );
        plan.op == Op::Complete
            && plan.has("if-none-match")
            && refused
            && d.is("status", d.ours.as_deref(), Some("412 PreconditionFailed"))
    }),
    rule("small-parts-before-missing-parts", |plan, d| {
        plan.op == Op::Complete && d.is("code", Some("EntityTooSmall"), Some("InvalidPart"))
    }),
];
