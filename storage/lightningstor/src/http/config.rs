//! What the S3 front is told at its start: where to listen, who may come in, and its limits.
//!
//! Values are checked by whoever reads them from a file; here they are plain and complete.

use std::collections::BTreeMap;
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
    /// Slowest that a body may come in the end; each byte of it earns time beyond the first
    /// `progress_deadline`.
    pub body_bytes_per_s_min: u64,
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
            body_bytes_per_s_min: 1024,
            buffer_deadline: Duration::from_secs(5),
            buffer_bytes_max: 32 << 20,
            concurrent_max: 256,
            queue_per_tenant_max: 4096,
        }
    }
}

/// A user and one access key that stands for it.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// The identity: owner of what the user creates, shown as Owner/ID, and the tenant. It is stored
    /// with buckets and never changes.
    pub id: Box<str>,
    /// The name that people see, shown as DisplayName; it may change.
    pub name: Box<str>,
    /// The access key.
    pub access_key: Box<str>,
    /// Its secret.
    pub secret_key: Box<str>,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("access_key", &self.access_key)
            .finish_non_exhaustive()
    }
}

/// All users, one entry for each access key; a user may have several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users {
    all: Vec<User>,
    /// Access key to the place in `all`.
    by_key: BTreeMap<Box<str>, u32>,
    /// Id to the place of the first entry of that user.
    by_id: BTreeMap<Box<str>, u32>,
}

/// Entries of users contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserConflict {
    /// Two entries have one access key.
    #[error("the access key {0} is listed twice; each entry needs its own")]
    AccessKey(Box<str>),
    /// Entries of one id have different names.
    #[error("the user id {0} is listed with two names; the entries of a user share id and name")]
    Name(Box<str>),
}

impl Users {
    /// Takes the users, in an order that gives them their numbers.
    ///
    /// # Errors
    /// [`UserConflict`] for an access key that is listed twice, or an id with two names.
    pub fn new(all: Vec<User>) -> Result<Users, UserConflict> {
        let mut users = Users::default();
        for (at, user) in (0..).zip(&all) {
            if users.by_key.insert(user.access_key.clone(), at).is_some() {
                return Err(UserConflict::AccessKey(user.access_key.clone()));
            }
            let first = *users.by_id.entry(user.id.clone()).or_insert(at);
            if all[first as usize].name != user.name {
                return Err(UserConflict::Name(user.id.clone()));
            }
        }
        users.all = all;
        Ok(users)
    }

    /// The user behind a verified signature.
    pub fn get(&self, id: UserId) -> Option<&User> {
        self.all.get(id.0 as usize)
    }

    /// The name of who has this id; the id of who is not listed any more.
    pub fn name_of<'a>(&'a self, id: &'a str) -> &'a str {
        let at = self.by_id.get(id);
        at.map_or(id, |at| &self.all[*at as usize].name)
    }

    /// The number that stands for a user in admission: that of its first entry.
    pub fn tenant(&self, user: &User) -> u64 {
        self.tenant_of(&user.id)
    }

    /// As [`Users::tenant`], of the user with this id; all who are not listed have one number.
    pub fn tenant_of(&self, id: &str) -> u64 {
        let first = self.by_id.get(id).copied();
        first.map_or(self.all.len() as u64, u64::from)
    }
}

impl CredentialSource for Users {
    fn lookup(&self, access_key: &str) -> Option<Credential<'_>> {
        let at = *self.by_key.get(access_key)?;
        Some(Credential {
            secret: &self.all[at as usize].secret_key,
            user: UserId(at),
            session_token: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(id: &str, access_key: &str) -> User {
        User {
            id: id.into(),
            name: format!("{id}'s name").into(),
            access_key: access_key.into(),
            secret_key: "hush".into(),
        }
    }

    #[test]
    fn an_access_key_finds_its_user_and_its_secret() {
        let users = Users::new(vec![user("root", "A"), user("backup", "B")]).unwrap();
        let found = users.lookup("B").unwrap();
        assert_eq!((found.secret, found.user), ("hush", UserId(1)));
        assert_eq!(&*users.get(found.user).unwrap().id, "backup");
        assert!(users.lookup("C").is_none());
        assert_eq!(users.name_of("backup"), "backup's name");
        assert_eq!(users.name_of("gone"), "gone");
    }

    #[test]
    fn an_access_key_cannot_be_listed_twice_and_an_id_has_one_name() {
        let error = Users::new(vec![user("a", "K"), user("b", "K")]).unwrap_err();
        assert_eq!(error, UserConflict::AccessKey("K".into()));
        let mut other = user("a", "L");
        other.name = "another".into();
        let error = Users::new(vec![user("a", "K"), other]).unwrap_err();
        assert_eq!(error, UserConflict::Name("a".into()));
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
