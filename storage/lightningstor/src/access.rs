//! Who may do what. The front has said who it is, by a signature or a token; this says whether they may.
//!
//! Every operation asks here before it looks at what it is about, with an action, the resource, the
//! user and the owner of the bucket: what a policy needs to decide. A copy asks for its source too,
//! and a DeleteObjects for each of its keys. A policy engine takes the place of [`authorize`].
//!
//! Today a bucket and everything in it belong to the user who made it, and nobody else may do
//! anything with it but the node's own user, who may do everything. Creating buckets and listing
//! one's own is open to every user; only the node's own may list another's.

use s3_wire::request::ObjectPath;
use s3_wire::{BucketName, ObjectKey, S3Op};

/// The identity of the node's own user, who may use every bucket.
pub const ROOT_ID: &str = "root";

/// Declares the actions together with their names.
macro_rules! actions {
    ($($variant:ident $text:literal)*) => {
        /// What is done, by the names of S3's own actions.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Action { $(#[doc = $text] $variant,)* }

        impl Action {
            /// All actions.
            pub const ALL: &'static [Action] = &[$(Action::$variant,)*];

            /// Its name in policies.
            pub const fn as_str(self) -> &'static str {
                match self { $(Action::$variant => $text,)* }
            }
        }
    };
}

actions! {
    ListAllMyBuckets "s3:ListAllMyBuckets"
    CreateBucket "s3:CreateBucket"
    DeleteBucket "s3:DeleteBucket"
    GetBucketLocation "s3:GetBucketLocation"
    GetBucketVersioning "s3:GetBucketVersioning"
    ListBucket "s3:ListBucket"
    ListBucketMultipartUploads "s3:ListBucketMultipartUploads"
    GetObject "s3:GetObject"
    GetObjectAttributes "s3:GetObjectAttributes"
    PutObject "s3:PutObject"
    DeleteObject "s3:DeleteObject"
    AbortMultipartUpload "s3:AbortMultipartUpload"
    ListMultipartUploadParts "s3:ListMultipartUploadParts"
    NotImplemented "s3:NotImplemented"
}

impl Action {
    /// The action of an operation on its own resource.
    pub fn of(op: &S3Op) -> Action {
        match op {
            S3Op::ListBuckets => Action::ListAllMyBuckets,
            S3Op::CreateBucket(_) => Action::CreateBucket,
            S3Op::DeleteBucket(_) => Action::DeleteBucket,
            S3Op::GetBucketLocation(_) => Action::GetBucketLocation,
            S3Op::GetBucketVersioning(_) => Action::GetBucketVersioning,
            S3Op::HeadBucket(_) | S3Op::ListObjectsV1(..) | S3Op::ListObjectsV2(..) => {
                Action::ListBucket
            }
            S3Op::ListMultipartUploads(..) => Action::ListBucketMultipartUploads,
            S3Op::GetObject(..) | S3Op::HeadObject(..) => Action::GetObject,
            S3Op::GetObjectAttributes(..) => Action::GetObjectAttributes,
            S3Op::PutObject(_)
            | S3Op::CopyObject(..)
            | S3Op::CreateMultipartUpload(_)
            | S3Op::UploadPart(..)
            | S3Op::UploadPartCopy(..)
            | S3Op::CompleteMultipartUpload(..) => Action::PutObject,
            S3Op::DeleteObject(_) | S3Op::DeleteObjects(_) => Action::DeleteObject,
            S3Op::AbortMultipartUpload(..) => Action::AbortMultipartUpload,
            S3Op::ListParts(..) => Action::ListMultipartUploadParts,
            S3Op::NotImplemented(_) => Action::NotImplemented,
        }
    }
}

/// What it is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource<'a> {
    /// The service as a whole.
    Service,
    /// A bucket.
    Bucket(&'a BucketName),
    /// An object, whether it exists or not.
    Object(&'a BucketName, &'a ObjectKey),
}

impl<'a> Resource<'a> {
    /// The resource of an operation.
    pub fn of(op: &'a S3Op) -> Resource<'a> {
        match (op.object(), op.bucket()) {
            (Some(path), _) => Resource::object(path),
            (None, Some(bucket)) => Resource::Bucket(bucket),
            (None, None) => Resource::Service,
        }
    }

    /// An object.
    pub fn object(path: &'a ObjectPath) -> Resource<'a> {
        Resource::Object(&path.bucket, &path.key)
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    /// The id of who wants it.
    pub user: &'a str,
    /// What is done.
    pub action: Action,
    /// To what.
    pub resource: Resource<'a>,
    /// The id of the bucket's owner, when the bucket exists; of a listing, whose buckets are listed
    /// other than the user's own.
    pub owner: Option<&'a str>,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allow,
    /// Answer AccessDenied.
    Deny,
}

/// Decides. What does not exist is not denied but not found.
pub fn authorize(access: &Access<'_>) -> Decision {
    match (access.action, access.owner) {
        // A taken name is a conflict, whoever has it.
        (Action::CreateBucket | Action::NotImplemented, _) | (_, None) => Decision::Allow,
        (_, Some(owner)) if owner == access.user || access.user == ROOT_ID => Decision::Allow,
        (_, Some(_)) => Decision::Deny,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_owner_and_root_may_do_anything_with_a_bucket() {
        let bucket = BucketName::new("photos").unwrap();
        let key = ObjectKey::new("cat").unwrap();
        let open = [Action::CreateBucket, Action::NotImplemented];
        for action in Action::ALL.iter().copied() {
            for resource in [Resource::Bucket(&bucket), Resource::Object(&bucket, &key)] {
                let decide = |user, owner| {
                    authorize(&Access {
                        user,
                        action,
                        resource,
                        owner,
                    })
                };
                assert_eq!(decide("ann", Some("ann")), Decision::Allow);
                assert_eq!(decide("root", Some("ann")), Decision::Allow);
                assert_eq!(decide("bob", None), Decision::Allow);
                let others = decide("bob", Some("ann"));
                assert_eq!(
                    others == Decision::Allow,
                    open.contains(&action),
                    "{action:?}"
                );
                // The name of a user is no identity.
                assert_eq!(decide("bob", Some("Ann")), others);
            }
        }
    }
}
