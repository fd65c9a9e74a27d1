//! Who may do what. The signature has said who it is; this says whether they may.
//!
//! Today a bucket and everything in it belong to the user who made it, and nobody else may do
//! anything with it. Creating buckets and listing one's own is open to every user.

use s3_wire::S3Op;

use super::config::User;

/// The answer to "may this user do this?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allow,
    /// Answer AccessDenied.
    Deny,
}

/// Decides on an operation. `owner` is that of the operation's bucket, when the bucket exists: what
/// does not exist is not denied but not found.
pub fn authorize(user: &User, op: &S3Op, owner: Option<&str>) -> Decision {
    match (op, owner) {
        // A taken name is a conflict, whoever has it.
        (S3Op::ListBuckets | S3Op::CreateBucket(_) | S3Op::NotImplemented(_), _) | (_, None) => {
            Decision::Allow
        }
        (_, Some(owner)) if *owner == *user.name => Decision::Allow,
        (_, Some(_)) => Decision::Deny,
    }
}

#[cfg(test)]
mod tests {
    use s3_wire::BucketName;

    use super::*;

    #[test]
    fn only_the_owner_of_a_bucket_may_use_it() {
        let user = User {
            name: "ann".into(),
            access_key: "a".into(),
            secret_key: "s".into(),
        };
        let bucket = BucketName::new("photos").unwrap();
        let head = S3Op::HeadBucket(bucket.clone());
        assert_eq!(authorize(&user, &head, Some("ann")), Decision::Allow);
        assert_eq!(authorize(&user, &head, Some("bob")), Decision::Deny);
        assert_eq!(authorize(&user, &head, None), Decision::Allow);
        assert_eq!(
            authorize(&user, &S3Op::CreateBucket(bucket), Some("bob")),
            Decision::Allow
        );
    }
}
