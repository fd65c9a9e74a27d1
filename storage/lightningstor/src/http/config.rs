//! What the S3 front is told at its start: where to listen, who may come in, and its limits.
//!
//! Values are checked by whoever reads them from a file; here they are plain and complete.

use std::net::SocketAddr;
use std::time::Duration;

use s3_wire::request::HostConfig;
use s3_wire::sigv4::{Credential, CredentialSource, RegionPolicy, UserId};

/// Largest body of one PutObject or UploadPart.
pub const BODY_BYTES_MAX: u64 = 5 << 30;
/// Largest body that is stored inside its record; larger ones are streamed.
pub const INLINE_BYTES_MAX: usize = 64 << 10;
/// Bytes read from or handed to the store at a time, but for long chunks.
pub const CHUNK_BYTES: usize = 256 << 10;

/// Settings of the S3 front, the same on every shard.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Where every shard listens; port 0 lets the kernel choose one for all.
    pub listen: SocketAddr,
    /// The region that GetBucketLocation names; empty is us-east-1.
    pub region: Box<str>,
    /// Which regions signatures may name.
    pub region_policy: RegionPolicy,
    /// How hosts name buckets.
    pub hosts: HostConfig,
    /// Who may come in.
    pub users: Users,
    /// Bounds and deadlines.
    pub limits: Limits,
}

/// Bounds and deadlines of one shard's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of one shard; further ones are answered 503 and closed.
    pub connections_max: usize,
    /// From the first byte of a head to its last.
    pub head_deadline: Duration,
    /// Between two requests of a connection.
    pub idle_deadline: Duration,
    /// Without a byte in the middle of a body, in either direction.
    pub progress_deadline: Duration,
    /// Waiting for a buffer before a request is told to slow down.
    pub buffer_deadline: Duration,
    /// Bytes of buffers that the bodies on one shard may hold together.
    pub buffer_bytes_max: u64,
    /// Requests of one tenant that work on a shard at a time, over all tenants.
    pub concurrent_max: u32,
    /// Requests of one tenant that may wait for their turn.
    pub queue_per_tenant_max: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: 4096,
            head_deadline: Duration::from_secs(30),
            idle_deadline: Duration::from_secs(75),
            progress_deadline: Duration::from_mins(1),
            buffer_deadline: Duration::from_secs(5),
            buffer_bytes_max: 32 << 20,
            concurrent_max: 256,
            queue_per_tenant_max: 4096,
        }
    }
}

/// A user and the access key that stands for it.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// The name; owner of what the user creates, and its tenant.
    pub name: Box<str>,
    /// The access key.
    pub access_key: Box<str>,
    /// Its secret.
    pub secret_key: Box<str>,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User")
            .field("name", &self.name)
            .field("access_key", &self.access_key)
            .finish_non_exhaustive()
    }
}

/// All users. An access key belongs to one user; a user may have several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users {
    all: Vec<User>,
}

/// Two users have one access key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the access key {0} belongs to two users; give each its own")]
pub struct DuplicateKey(pub Box<str>);

impl Users {
    /// Takes the users, in an order that gives them their numbers.
    ///
    /// # Errors
    /// [`DuplicateKey`] for an access key that is listed twice.
    pub fn new(all: Vec<User>) -> Result<Users, DuplicateKey> {
        for (at, user) in all.iter().enumerate() {
            if all[..at]
                .iter()
                .any(|other| other.access_key == user.access_key)
            {
                return Err(DuplicateKey(user.access_key.clone()));
            }
        }
        Ok(Users { all })
    }

    /// The user behind a verified signature.
    pub fn get(&self, id: UserId) -> Option<&User> {
        self.all.get(id.0 as usize)
    }
}

impl Users {
    /// The number that stands for a user in admission: that of the first access key of this name.
    pub fn tenant(&self, user: &User) -> u64 {
        let first = self.all.iter().position(|other| other.name == user.name);
        first.unwrap_or(self.all.len()) as u64
    }
}

impl CredentialSource for Users {
    fn lookup(&self, access_key: &str) -> Option<Credential<'_>> {
        let at = self
            .all
            .iter()
            .position(|user| *user.access_key == *access_key)?;
        let user = UserId(u32::try_from(at).ok()?);
        Some(Credential {
            secret: &self.all[at].secret_key,
            user,
            session_token: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, access_key: &str) -> User {
        User {
            name: name.into(),
            access_key: access_key.into(),
            secret_key: "hush".into(),
        }
    }

    #[test]
    fn an_access_key_finds_its_user_and_its_secret() {
        let users = Users::new(vec![user("root", "A"), user("backup", "B")]).unwrap();
        let found = users.lookup("B").unwrap();
        assert_eq!((found.secret, found.user), ("hush", UserId(1)));
        assert_eq!(&*users.get(found.user).unwrap().name, "backup");
        assert!(users.lookup("C").is_none());
    }

    #[test]
    fn an_access_key_cannot_belong_to_two_users() {
        let error = Users::new(vec![user("a", "K"), user("b", "K")]).unwrap_err();
        assert_eq!(error, DuplicateKey("K".into()));
    }

    #[test]
    fn all_keys_of_a_user_are_one_tenant() {
        let users = [user("a", "K1"), user("b", "K2"), user("a", "K3")];
        let all = Users::new(users.to_vec()).unwrap();
        assert_eq!(users.map(|user| all.tenant(&user)), [0, 1, 0]);
    }

    #[test]
    fn debug_output_never_shows_a_secret() {
        assert!(!format!("{:?}", user("root", "A")).contains("hush"));
    }
}
