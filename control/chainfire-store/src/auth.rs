//! Users, roles and what they may touch, as etcd's auth store has it.
//!
//! The auth revision grows with every change besides the enabling; a request carries the revision
//! at which its user was authenticated, and one from before a change is refused. Role `root` may
//! do anything; the user `root` with that role is what authentication needs to be enabled.

mod verbs;

use std::collections::BTreeMap;

use bytes::Bytes;
use etcd_wire::RpcError;
use etcd_wire::authpb::{Permission, Role, User, permission};
use etcd_wire::etcdserverpb::{
    AuthRoleGetResponse, AuthRoleListResponse, AuthUserGetResponse, AuthUserListResponse,
    RequestOp, TxnRequest, request_op,
};

const ROOT: &str = "root";

/// On whose behalf a request comes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Identity<'a> {
    /// Empty: nobody.
    pub user: &'a str,
    /// The auth revision when the user was authenticated; 0: nobody.
    pub revision: u64,
}

/// What is done to keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading, also of previous values.
    Read,
    /// Putting and deleting.
    Write,
}

/// The auth store.
#[derive(Debug, Clone, PartialEq)]
pub struct Auth {
    pub(crate) enabled: bool,
    pub(crate) revision: u64,
    pub(crate) users: BTreeMap<String, User>,
    pub(crate) roles: BTreeMap<String, Role>,
    pub(crate) token_key: Bytes,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            enabled: false,
            revision: 1,
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
            token_key: Bytes::new(),
        }
    }
}

impl Auth {
    /// Whether requests are checked at all.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Grows with every change of users, roles and permissions.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The key with which every member signs and checks tokens; empty until auth was enabled.
    pub fn token_key(&self) -> &Bytes {
        &self.token_key
    }

    /// A user with the password's hash, for authentication.
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    /// Refuses whom `who` names to read or write these keys.
    ///
    /// # Errors
    /// `UserEmpty` for nobody, `AuthOldRevision` after a change, `PermissionDenied`.
    pub fn check(
        &self,
        who: Identity<'_>,
        access: Access,
        key: &[u8],
        range_end: &[u8],
    ) -> Result<(), RpcError> {
        if !self.enabled {
            return Ok(());
        }
        if who.revision == 0 {
            return Err(RpcError::UserEmpty);
        }
        if who.revision < self.revision {
            return Err(RpcError::AuthOldRevision);
        }
        let user = self.users.get(who.user).ok_or(RpcError::PermissionDenied)?;
        if is_root(user) || self.is_granted(user, access, key, range_end) {
            Ok(())
        } else {
            Err(RpcError::PermissionDenied)
        }
    }

    /// Refuses everybody but a user with role `root`.
    ///
    /// # Errors
    /// `UserEmpty` for nobody, else `PermissionDenied`.
    pub fn check_admin(&self, who: Identity<'_>) -> Result<(), RpcError> {
        if !self.enabled {
            return Ok(());
        }
        if who.user.is_empty() {
            return Err(RpcError::UserEmpty);
        }
        match self.users.get(who.user) {
            Some(user) if is_root(user) => Ok(()),
            _ => Err(RpcError::PermissionDenied),
        }
    }

    /// Refuses a transaction of which `who` may not do every part, on either branch.
    ///
    /// # Errors
    /// As [`Auth::check`].
    pub fn check_txn(&self, who: Identity<'_>, txn: &TxnRequest) -> Result<(), RpcError> {
        if !self.enabled {
            return Ok(());
        }
        for compare in &txn.compare {
            self.check(who, Access::Read, &compare.key, &compare.range_end)?;
        }
        for op in txn.success.iter().chain(&txn.failure) {
            self.check_op(who, op)?;
        }
        Ok(())
    }

    fn check_op(&self, who: Identity<'_>, op: &RequestOp) -> Result<(), RpcError> {
        use request_op::Request;
        match &op.request {
            Some(Request::RequestRange(range)) => {
                self.check(who, Access::Read, &range.key, &range.range_end)
            }
            Some(Request::RequestPut(put)) => self.check(who, Access::Write, &put.key, &[]),
            Some(Request::RequestDeleteRange(delete)) => {
                if delete.prev_kv {
                    self.check(who, Access::Read, &delete.key, &delete.range_end)?;
                }
                self.check(who, Access::Write, &delete.key, &delete.range_end)
            }
            Some(Request::RequestTxn(txn)) => self.check_txn(who, txn),
            None => Ok(()),
        }
    }

    /// The answer to `UserGet`, which a user may ask about himself.
    ///
    /// # Errors
    /// As [`Auth::check_admin`]; `UserNotFound`.
    pub fn user_get(&self, who: Identity<'_>, name: &str) -> Result<AuthUserGetResponse, RpcError> {
        if name != who.user {
            self.check_admin(who)?;
        }
        let user = self.users.get(name).ok_or(RpcError::UserNotFound)?;
        Ok(AuthUserGetResponse {
            header: None,
            roles: user.roles.clone(),
        })
    }

    /// The answer to `RoleGet`, which a user may ask about his roles.
    ///
    /// # Errors
    /// As [`Auth::check_admin`]; `RoleNotFound`.
    pub fn role_get(&self, who: Identity<'_>, name: &str) -> Result<AuthRoleGetResponse, RpcError> {
        let own = self
            .users
            .get(who.user)
            .is_some_and(|user| user.roles.iter().any(|role| role == name));
        if !own {
            self.check_admin(who)?;
        }
        let role = self.roles.get(name).ok_or(RpcError::RoleNotFound)?;
        let perm = if name == ROOT {
            vec![Permission {
                perm_type: permission::Type::Readwrite.into(),
                key: Bytes::new(),
                range_end: Bytes::from_static(&[0]),
            }]
        } else {
            role.key_permission.clone()
        };
        Ok(AuthRoleGetResponse { header: None, perm })
    }

    /// The answer to `UserList`.
    ///
    /// # Errors
    /// As [`Auth::check_admin`].
    pub fn user_list(&self, who: Identity<'_>) -> Result<AuthUserListResponse, RpcError> {
        self.check_admin(who)?;
        Ok(AuthUserListResponse {
            header: None,
            users: self.users.keys().cloned().collect(),
        })
    }

    /// The answer to `RoleList`.
    ///
    /// # Errors
    /// As [`Auth::check_admin`].
    pub fn role_list(&self, who: Identity<'_>) -> Result<AuthRoleListResponse, RpcError> {
        self.check_admin(who)?;
        Ok(AuthRoleListResponse {
            header: None,
            roles: self.roles.keys().cloned().collect(),
        })
    }

    /// Whether the user's roles together cover all of the keys.
    fn is_granted(&self, user: &User, access: Access, key: &[u8], range_end: &[u8]) -> bool {
        let mut spans: Vec<_> = user
            .roles
            .iter()
            .filter_map(|role| self.roles.get(role))
            .flat_map(|role| &role.key_permission)
            .filter(|permission| allows(permission, access))
            .map(|permission| span(&permission.key, &permission.range_end))
            .collect();
        spans.sort_unstable();
        let (mut from, to) = span(key, range_end);
        for (start, end) in spans {
            if from < start {
                return false;
            }
            if to <= end {
                return true;
            }
            if let End::Before(end) = end
                && end > from
            {
                from = end;
            }
        }
        false
    }
}

fn is_root(user: &User) -> bool {
    user.roles.iter().any(|role| role == ROOT)
}

fn allows(permission: &Permission, access: Access) -> bool {
    use permission::Type;
    match permission.perm_type() {
        Type::Readwrite => true,
        Type::Read => access == Access::Read,
        Type::Write => access == Access::Write,
    }
}

/// Where a span of keys ends. Ordered: nothing is behind the open end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Before(Vec<u8>),
    Open,
}

/// A span as etcd reads `key` and `range_end`; a single key ends before the next possible one.
fn span(key: &[u8], range_end: &[u8]) -> (Vec<u8>, End) {
    let end = match range_end {
        [] => End::Before([key, &[0]].concat()),
        [0] => End::Open,
        end => End::Before(end.to_vec()),
    };
    (key.to_vec(), end)
}
