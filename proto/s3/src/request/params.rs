//! The query parameters that mean something to S3, collected in one pass.
//!
//! Names are compared without case, so that a misspelt sub-resource cannot fall through to the
//! plain operation. A repeated parameter is an error: two readers would disagree on its value.

use std::borrow::Cow;

use super::unsupported;
use crate::error::{Result, S3Error};
use crate::uri;

/// Declares the names together with their text.
macro_rules! names {
    ($($variant:ident $text:literal)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Name { $($variant,)* }

        impl Name {
            const ALL: &[Self] = &[$(Self::$variant,)*];

            pub(super) const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

names! {
    Location "location"
    Delete "delete"
    Uploads "uploads"
    Attributes "attributes"
    Versioning "versioning"
    UploadId "uploadId"
    PartNumber "partNumber"
    ListType "list-type"
    VersionId "versionId"
    Prefix "prefix"
    Delimiter "delimiter"
    Marker "marker"
    MaxKeys "max-keys"
    StartAfter "start-after"
    ContinuationToken "continuation-token"
    EncodingType "encoding-type"
    FetchOwner "fetch-owner"
    MaxUploads "max-uploads"
    KeyMarker "key-marker"
    UploadIdMarker "upload-id-marker"
    MaxParts "max-parts"
    PartNumberMarker "part-number-marker"
    ResponseContentType "response-content-type"
    ResponseContentLanguage "response-content-language"
    ResponseExpires "response-expires"
    ResponseCacheControl "response-cache-control"
    ResponseContentDisposition "response-content-disposition"
    ResponseContentEncoding "response-content-encoding"
}

impl Name {
    /// Parameters that replace a header of the answer.
    pub(super) const RESPONSE_OVERRIDES: [(Self, &'static str); 6] = [
        (Self::ResponseContentType, "Content-Type"),
        (Self::ResponseContentLanguage, "Content-Language"),
        (Self::ResponseExpires, "Expires"),
        (Self::ResponseCacheControl, "Cache-Control"),
        (Self::ResponseContentDisposition, "Content-Disposition"),
        (Self::ResponseContentEncoding, "Content-Encoding"),
    ];

    fn find(text: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|name| name.text().eq_ignore_ascii_case(text))
    }
}

/// Which of the parameters that select an operation are present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Selectors(u8);

impl Selectors {
    pub(super) const NONE: Self = Self(0);
    pub(super) const LOCATION: Self = Self(1);
    pub(super) const DELETE: Self = Self(2);
    pub(super) const UPLOADS: Self = Self(4);
    pub(super) const UPLOAD_ID: Self = Self(8);
    pub(super) const PART_NUMBER: Self = Self(16);
    pub(super) const LIST_TYPE: Self = Self(32);
    pub(super) const ATTRIBUTES: Self = Self(64);
    pub(super) const VERSIONING: Self = Self(128);
    /// A part of an upload: both names.
    pub(super) const PART: Self = Self(8 | 16);

    pub(super) const OF_NAMES: [(Name, Self); 8] = [
        (Name::Attributes, Self::ATTRIBUTES),
        (Name::Versioning, Self::VERSIONING),
        (Name::Location, Self::LOCATION),
        (Name::Delete, Self::DELETE),
        (Name::Uploads, Self::UPLOADS),
        (Name::UploadId, Self::UPLOAD_ID),
        (Name::PartNumber, Self::PART_NUMBER),
        (Name::ListType, Self::LIST_TYPE),
    ];
}

/// Most parameters of presigned requests: they sign, and ask for nothing.
const SIGNING: [&str; 6] = [
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
];

/// The parsed query.
#[derive(Debug)]
pub(super) struct Query<'a> {
    values: [Option<Cow<'a, str>>; Name::ALL.len()],
    /// The first parameter that selects something that is not implemented.
    pub(super) unsupported: Option<&'static str>,
}

impl<'a> Query<'a> {
    pub(super) fn parse(raw: &'a str) -> Result<Self> {
        let mut query = Self {
            values: [const { None }; Name::ALL.len()],
            unsupported: None,
        };
        for param in uri::params(raw) {
            if SIGNING.contains(&param.name) {
                uri::decode_query(param.value)?;
                continue;
            }
            let name = uri::decode_query(param.name)?;
            let value = uri::decode_query(param.value)?;
            // None of them is in the tables of names.
            if name
                .get(..6)
                .is_some_and(|front| front.eq_ignore_ascii_case("x-amz-"))
            {
                let feature = unsupported::feature_in_field(&name.to_ascii_lowercase(), &value);
                query.unsupported = query.unsupported.or(feature);
            } else if let Some(known) = Name::find(&name) {
                let slot = &mut query.values[known as usize];
                if slot.is_some() {
                    let text = known.text();
                    return Err(S3Error::argument(format!(
                        "The parameter {text} is repeated."
                    )));
                }
                *slot = Some(value);
            } else if query.unsupported.is_none() {
                query.unsupported = unsupported::sub_resource(&name);
            }
        }
        Ok(query)
    }

    pub(super) fn get(&self, name: Name) -> Option<&str> {
        self.values[name as usize].as_deref()
    }

    pub(super) fn owned(&self, name: Name) -> Option<Box<str>> {
        self.get(name).map(Into::into)
    }

    pub(super) fn selectors(&self) -> Selectors {
        let present = |(name, bit): &(Name, Selectors)| self.get(*name).map(|_| bit.0);
        Selectors(
            Selectors::OF_NAMES
                .iter()
                .filter_map(present)
                .fold(0, |all, bit| all | bit),
        )
    }
}
