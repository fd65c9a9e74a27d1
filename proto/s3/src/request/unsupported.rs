//! The parts of S3 that requests can ask for and that do not exist here.
//!
//! Two closed tables: sub-resources in the query, and headers whose meaning would be lost (a key
//! that must encrypt, a lock that must hold). Whoever implements one removes its line.

use crate::head::RequestHead;

/// Sub-resources of buckets and objects, by S3's own spelling.
const SUB_RESOURCES: &[&str] = &[
    "abac",
    "accelerate",
    "acl",
    "analytics",
    "annotation",
    "annotations",
    "append",
    "cors",
    "encryption",
    "intelligent-tiering",
    "inventory",
    "legal-hold",
    "lifecycle",
    "logging",
    "metadataConfiguration",
    "metadataAnnotationTable",
    "metadataInventoryTable",
    "metadataJournalTable",
    "metadataTable",
    "metrics",
    "notification",
    "object-lock",
    "ownershipControls",
    "policy",
    "policyStatus",
    "publicAccessBlock",
    "renameObject",
    "replication",
    "replication-metrics",
    "requestPayment",
    "restore",
    "retention",
    "select",
    "select-type",
    "session",
    "tagging",
    "torrent",
    "updateObjectEncryption",
    "versions",
    "website",
];

/// The table's own text for a sub-resource that is not implemented.
pub(super) fn sub_resource(name: &str) -> Option<&'static str> {
    SUB_RESOURCES
        .iter()
        .copied()
        .find(|known| known.eq_ignore_ascii_case(name))
}

/// The first header that asks for something that is not implemented.
pub(super) fn feature_in_headers(head: &RequestHead) -> Option<&'static str> {
    head.headers()
        .find_map(|(name, value)| feature_in_field(name, value))
}

/// What a field (lower-case name; header or query parameter) asks for, if that is not implemented.
pub(super) fn feature_in_field(name: &str, value: &str) -> Option<&'static str> {
    let rest = name.strip_prefix("x-amz-")?;
    let asked = |what| (!value.is_empty()).then_some(what);
    match rest {
        "acl" if matches!(value, "private" | "bucket-owner-full-control") => None,
        "acl" => asked("canned ACLs other than private"),
        "object-ownership" if value == "BucketOwnerEnforced" => None,
        "object-ownership" => asked("object ownership other than BucketOwnerEnforced"),
        "bucket-object-lock-enabled" if value.eq_ignore_ascii_case("false") => None,
        "bucket-object-lock-enabled" => asked("object lock"),
        "tagging" => asked("object tagging"),
        "website-redirect-location" => asked("website redirects"),
        "write-offset-bytes" => asked("appending writes"),
        "rename-source" => asked("renames"),
        "if-match-last-modified-time" | "if-match-size" | "rename-source-if-match" => {
            asked("conditions on time or size")
        }
        _ if rest.starts_with("grant-") => asked("ACL grants"),
        _ if rest.starts_with("object-lock-") => asked("object lock"),
        _ if rest.starts_with("server-side-encryption") => asked("server-side encryption"),
        _ if rest.starts_with("copy-source-server-side-encryption") => {
            asked("server-side encryption")
        }
        _ => None,
    }
}
