//! What changes the auth store: one function for each verb, with etcd's refusals in etcd's order.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use etcd_wire::RpcError;
use etcd_wire::authpb::{Role, User};
use etcd_wire::etcdserverpb::{
    AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGrantPermissionRequest,
    AuthRoleRevokePermissionRequest, AuthUserAddRequest, AuthUserChangePasswordRequest,
    AuthUserDeleteRequest, AuthUserGrantRoleRequest, AuthUserRevokeRoleRequest,
};

use super::{Auth, ROOT, is_root};

type Verb = Result<(), RpcError>;

impl Auth {
    /// Turns authentication on; again, it does nothing.
    pub(crate) fn enable(&mut self, token_key: &Bytes) -> Verb {
        if self.enabled {
            return Ok(());
        }
        let root = self.users.get(ROOT).ok_or(RpcError::RootUserNotExist)?;
        if !is_root(root) {
            return Err(RpcError::RootRoleNotExist);
        }
        self.enabled = true;
        self.token_key = token_key.clone();
        Ok(())
    }

    pub(crate) fn disable(&mut self) {
        if self.enabled {
            self.enabled = false;
            self.revision += 1;
        }
    }

    pub(crate) fn user_add(&mut self, request: &AuthUserAddRequest) -> Verb {
        if request.name.is_empty() {
            return Err(RpcError::UserEmpty);
        }
        if self.users.contains_key(&request.name) {
            return Err(RpcError::UserAlreadyExist);
        }
        let options = request.options.unwrap_or_default();
        let user = User {
            name: request.name.clone().into(),
            password: password(options.no_password, &request.hashed_password)?,
            roles: Vec::new(),
            options: Some(options),
        };
        self.users.insert(request.name.clone(), user);
        self.revision += 1;
        Ok(())
    }

    pub(crate) fn user_delete(&mut self, request: &AuthUserDeleteRequest) -> Verb {
        if self.enabled && request.name == ROOT {
            return Err(RpcError::InvalidAuthMgmt);
        }
        self.users
            .remove(&request.name)
            .ok_or(RpcError::UserNotFound)?;
        self.revision += 1;
        Ok(())
    }

    pub(crate) fn user_change_password(&mut self, request: &AuthUserChangePasswordRequest) -> Verb {
        let user = self
            .users
            .get_mut(&request.name)
            .ok_or(RpcError::UserNotFound)?;
        let none = user.options.is_some_and(|options| options.no_password);
        user.password = password(none, &request.hashed_password)?;
        self.revision += 1;
        Ok(())
    }

    pub(crate) fn user_grant_role(&mut self, request: &AuthUserGrantRoleRequest) -> Verb {
        let user = self
            .users
            .get_mut(&request.user)
            .ok_or(RpcError::UserNotFound)?;
        if request.role != ROOT && !self.roles.contains_key(&request.role) {
            return Err(RpcError::RoleNotFound);
        }
        if let Err(at) = user.roles.binary_search(&request.role) {
            user.roles.insert(at, request.role.clone());
            self.revision += 1;
        }
        Ok(())
    }

    pub(crate) fn user_revoke_role(&mut self, request: &AuthUserRevokeRoleRequest) -> Verb {
        if self.enabled && request.name == ROOT && request.role == ROOT {
            return Err(RpcError::InvalidAuthMgmt);
        }
        let user = self
            .users
            .get_mut(&request.name)
            .ok_or(RpcError::UserNotFound)?;
        let before = user.roles.len();
        user.roles.retain(|role| *role != request.role);
        if user.roles.len() == before {
            return Err(RpcError::RoleNotGranted);
        }
        self.revision += 1;
        Ok(())
    }

    pub(crate) fn role_add(&mut self, request: &AuthRoleAddRequest) -> Verb {
        if request.name.is_empty() {
            return Err(RpcError::RoleEmpty);
        }
        if self.roles.contains_key(&request.name) {
            return Err(RpcError::RoleAlreadyExist);
        }
        let role = Role {
            name: request.name.clone().into(),
            key_permission: Vec::new(),
        };
        self.roles.insert(request.name.clone(), role);
        self.revision += 1;
        Ok(())
    }

    pub(crate) fn role_delete(&mut self, request: &AuthRoleDeleteRequest) -> Verb {
        if self.enabled && request.role == ROOT {
            return Err(RpcError::InvalidAuthMgmt);
        }
        self.roles
            .remove(&request.role)
            .ok_or(RpcError::RoleNotFound)?;
        for user in self.users.values_mut() {
            user.roles.retain(|role| *role != request.role);
        }
        self.revision += 1;
        Ok(())
    }

    pub(crate) fn role_grant_permission(
        &mut self,
        request: &AuthRoleGrantPermissionRequest,
    ) -> Verb {
        let granted = request.perm.as_ref().ok_or(RpcError::PermissionNotGiven)?;
        let role = self
            .roles
            .get_mut(&request.name)
            .ok_or(RpcError::RoleNotFound)?;
        let held = role
            .key_permission
            .iter_mut()
            .find(|held| held.key == granted.key && held.range_end == granted.range_end);
        if let Some(held) = held {
            held.perm_type = granted.perm_type;
        } else {
            role.key_permission.push(granted.clone());
            role.key_permission.sort_by(|a, b| a.key.cmp(&b.key));
        }
        self.revision += 1;
        Ok(())
    }

    pub(crate) fn role_revoke_permission(
        &mut self,
        request: &AuthRoleRevokePermissionRequest,
    ) -> Verb {
        let role = self
            .roles
            .get_mut(&request.role)
            .ok_or(RpcError::RoleNotFound)?;
        let before = role.key_permission.len();
        role.key_permission
            .retain(|held| held.key != request.key || held.range_end != request.range_end);
        if role.key_permission.len() == before {
            return Err(RpcError::PermissionNotGranted);
        }
        self.revision += 1;
        Ok(())
    }
}

/// The hash to keep. It comes in base64, as etcd's log has it.
fn password(none: bool, hashed: &str) -> Result<Bytes, RpcError> {
    if none {
        return Ok(Bytes::new());
    }
    let hash = STANDARD.decode(hashed).map_err(|_| RpcError::AuthFailed)?;
    Ok(hash.into())
}
