//! Users, roles and tokens. Passwords are hashed here, before they reach the log.

use std::fs::File;
use std::io::Read as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use etcd_wire::RpcError;
use etcd_wire::chainfire::AuthEnable;
use etcd_wire::etcdserverpb::*;
use tonic::Status;

use super::{Api, Caller, propose};

/// etcd's default cost of a password.
const BCRYPT_COST: u32 = 10;

impl Api {
    /// Requests are checked from now on.
    pub async fn auth_enable(
        &self,
        caller: &Caller,
        _request: AuthEnableRequest,
    ) -> Result<AuthEnableResponse, Status> {
        let token_key = random_key()?.to_vec().into();
        propose!(self, caller, AuthEnable, AuthEnable { token_key })
    }

    /// Requests are checked no more.
    pub async fn auth_disable(
        &self,
        caller: &Caller,
        request: AuthDisableRequest,
    ) -> Result<AuthDisableResponse, Status> {
        propose!(self, caller, AuthDisable, request)
    }

    /// Whether requests are checked.
    pub async fn auth_status(
        &self,
        _caller: &Caller,
        _request: AuthStatusRequest,
    ) -> Result<AuthStatusResponse, Status> {
        self.consensus.barrier().await?;
        let view = self.consensus.view();
        Ok(AuthStatusResponse {
            header: Some(self.header(view.revision())),
            enabled: view.auth().is_enabled(),
            auth_revision: view.auth().revision(),
        })
    }

    /// A token for a user who knows the password.
    pub async fn authenticate(
        &self,
        _caller: &Caller,
        request: AuthenticateRequest,
    ) -> Result<AuthenticateResponse, Status> {
        self.consensus.barrier().await?;
        let view = self.consensus.view();
        let auth = view.auth();
        if !auth.is_enabled() {
            return Err(RpcError::AuthNotEnabled.into());
        }
        let user = auth.user(&request.name).ok_or(RpcError::AuthFailed)?;
        if user
            .options
            .as_ref()
            .is_some_and(|options| options.no_password)
        {
            return Err(RpcError::AuthFailed.into());
        }
        let hash = String::from_utf8_lossy(&user.password).into_owned();
        let caller = Caller {
            user: request.name,
            auth_revision: auth.revision(),
        };
        let checked = off_loop(move || bcrypt::verify(request.password, &hash)).await?;
        if !checked.unwrap_or(false) {
            return Err(RpcError::AuthFailed.into());
        }
        Ok(AuthenticateResponse {
            header: Some(self.header(view.revision())),
            token: caller.token(auth),
        })
    }

    /// A new user.
    pub async fn user_add(
        &self,
        caller: &Caller,
        mut request: AuthUserAddRequest,
    ) -> Result<AuthUserAddResponse, Status> {
        let no_password = request.options.as_ref().is_some_and(|o| o.no_password);
        if !no_password && request.hashed_password.is_empty() {
            request.hashed_password = hashed(std::mem::take(&mut request.password)).await?;
        }
        request.password.clear();
        propose!(self, caller, UserAdd, request)
    }

    /// Another password.
    pub async fn user_change_password(
        &self,
        caller: &Caller,
        mut request: AuthUserChangePasswordRequest,
    ) -> Result<AuthUserChangePasswordResponse, Status> {
        if request.hashed_password.is_empty() {
            request.hashed_password = hashed(std::mem::take(&mut request.password)).await?;
        }
        request.password.clear();
        propose!(self, caller, UserChangePassword, request)
    }

    /// A user's roles.
    pub async fn user_get(
        &self,
        caller: &Caller,
        request: AuthUserGetRequest,
    ) -> Result<AuthUserGetResponse, Status> {
        self.consensus.barrier().await?;
        let view = self.consensus.view();
        let mut response = view.auth().user_get(caller.identity(), &request.name)?;
        response.header = Some(self.header(view.revision()));
        Ok(response)
    }

    /// All users.
    pub async fn user_list(
        &self,
        caller: &Caller,
        _request: AuthUserListRequest,
    ) -> Result<AuthUserListResponse, Status> {
        self.consensus.barrier().await?;
        let view = self.consensus.view();
        let mut response = view.auth().user_list(caller.identity())?;
        response.header = Some(self.header(view.revision()));
        Ok(response)
    }

    /// A role's permissions.
    pub async fn role_get(
        &self,
        caller: &Caller,
        request: AuthRoleGetRequest,
    ) -> Result<AuthRoleGetResponse, Status> {
        self.consensus.barrier().await?;
        let view = self.consensus.view();
        let mut response = view.auth().role_get(caller.identity(), &request.role)?;
        response.header = Some(self.header(view.revision()));
        Ok(response)
    }

    /// All roles.
    pub async fn role_list(
        &self,
        caller: &Caller,
        _request: AuthRoleListRequest,
    ) -> Result<AuthRoleListResponse, Status> {
        self.consensus.barrier().await?;
        let view = self.consensus.view();
        let mut response = view.auth().role_list(caller.identity())?;
        response.header = Some(self.header(view.revision()));
        Ok(response)
    }
}

/// Requests that go to the state machine as they are.
macro_rules! proposed {
    ($($(#[$doc:meta])* $method:ident, $kind:ident: $request:ty => $response:ty;)*) => {
        impl Api {
            $(
                $(#[$doc])*
                pub async fn $method(
                    &self,
                    caller: &Caller,
                    request: $request,
                ) -> Result<$response, Status> {
                    propose!(self, caller, $kind, request)
                }
            )*
        }
    };
}

proposed! {
    /// One user less.
    user_delete, UserDelete: AuthUserDeleteRequest => AuthUserDeleteResponse;
    /// A user gets a role.
    user_grant_role, UserGrantRole: AuthUserGrantRoleRequest => AuthUserGrantRoleResponse;
    /// A user loses a role.
    user_revoke_role, UserRevokeRole: AuthUserRevokeRoleRequest => AuthUserRevokeRoleResponse;
    /// A new role.
    role_add, RoleAdd: AuthRoleAddRequest => AuthRoleAddResponse;
    /// One role less.
    role_delete, RoleDelete: AuthRoleDeleteRequest => AuthRoleDeleteResponse;
    /// A role may touch more keys.
    role_grant_permission, RoleGrantPermission:
        AuthRoleGrantPermissionRequest => AuthRoleGrantPermissionResponse;
    /// A role may touch fewer keys.
    role_revoke_permission, RoleRevokePermission:
        AuthRoleRevokePermissionRequest => AuthRoleRevokePermissionResponse;
}

/// bcrypt takes tens of milliseconds on purpose: not on a thread that serves.
async fn off_loop<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| RpcError::Stopped.into())
}

/// A password as etcd's requests carry it once it is hashed: bcrypt's text in base64.
async fn hashed(password: String) -> Result<String, Status> {
    let hash = off_loop(move || bcrypt::hash(password, BCRYPT_COST)).await?;
    let hash = hash.map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(BASE64.encode(hash))
}

fn random_key() -> Result<[u8; 32], Status> {
    let mut key = [0; 32];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut key));
    match read {
        Ok(()) => Ok(key),
        Err(error) => Err(Status::internal(format!("no random bytes: {error}"))),
    }
}
