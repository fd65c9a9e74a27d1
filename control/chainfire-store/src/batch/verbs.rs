//! Which command does what, for whom, and under which alarms.

use std::sync::Arc;

use etcd_wire::RpcError;
use etcd_wire::chainfire::command::Op;
use etcd_wire::chainfire::{ClusterVersionReply, Command};
use etcd_wire::etcdserverpb::alarm_request::AlarmAction;
use etcd_wire::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, AuthDisableResponse, AuthEnableResponse,
    AuthRoleAddResponse, AuthRoleDeleteResponse, AuthRoleGrantPermissionResponse,
    AuthRoleRevokePermissionResponse, AuthUserAddResponse, AuthUserChangePasswordResponse,
    AuthUserDeleteResponse, AuthUserGrantRoleResponse, AuthUserRevokeRoleResponse,
    CompactionRequest, CompactionResponse, LeaseCheckpointRequest, LeaseCheckpointResponse,
    LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest, LeaseRevokeResponse,
};

use super::{Batch, Reply};
use crate::auth::{Access, Auth, Identity};
use crate::lease::{LEASE_TTL_S_MAX, Lease, attached_to};
use crate::reads::ReadError;
use crate::revision::Revision;
use crate::size::cost;
use crate::state::Alarm;

impl Batch<'_> {
    /// As etcd's layers of appliers: administrators' verbs first, then alarms, then permissions.
    pub(super) fn dispatch(&mut self, command: &Command, op: &Op) -> Result<Reply, ReadError> {
        let who = Identity {
            user: &command.user,
            revision: command.auth_revision,
        };
        if is_auth(op) {
            self.state.auth.check_admin(who)?;
            return Ok(self.auth(op)?);
        }
        self.check_alarms(op)?;
        self.check_permission(who, op)?;
        Ok(match op {
            Op::Put(request) => Reply::Put(self.put_alone(request)?),
            Op::DeleteRange(request) => Reply::DeleteRange(self.delete_alone(request)?),
            Op::Txn(request) => Reply::Txn(self.txn(request)?),
            Op::Compaction(request) => Reply::Compaction(self.compact(*request)?),
            Op::LeaseGrant(request) => Reply::LeaseGrant(self.lease_grant(*request)?),
            Op::LeaseRevoke(request) => Reply::LeaseRevoke(self.lease_revoke(*request)?),
            Op::LeaseCheckpoint(request) => Reply::LeaseCheckpoint(self.lease_checkpoint(request)?),
            Op::Alarm(request) => Reply::Alarm(self.alarm(*request)),
            Op::ClusterVersion(request) => {
                self.state.cluster_version = request.version.as_str().into();
                Reply::ClusterVersion(ClusterVersionReply {
                    version: request.version.clone(),
                })
            }
            _ => unreachable!("the verbs of the auth store are dispatched above"),
        })
    }

    /// What a full or damaged cluster refuses. It still deletes and compacts when it is full.
    fn check_alarms(&self, op: &Op) -> Result<(), RpcError> {
        let keys_or_leases = !matches!(
            op,
            Op::Alarm(_) | Op::ClusterVersion(_) | Op::LeaseCheckpoint(_)
        );
        if keys_or_leases && self.state.has_alarm(AlarmType::Corrupt) {
            return Err(RpcError::Corrupt);
        }
        if cost(op) > 0 && self.state.has_alarm(AlarmType::Nospace) {
            return Err(RpcError::NoSpace);
        }
        Ok(())
    }

    fn check_permission(&self, who: Identity<'_>, op: &Op) -> Result<(), RpcError> {
        let auth = &self.state.auth;
        if !auth.is_enabled() {
            return Ok(());
        }
        match op {
            Op::Put(put) => {
                auth.check(who, Access::Write, &put.key, &[])?;
                self.check_lease_keys(who, put.lease)?;
                if put.prev_kv {
                    auth.check(who, Access::Read, &put.key, &[])?;
                }
                Ok(())
            }
            Op::DeleteRange(delete) => {
                auth.check(who, Access::Write, &delete.key, &delete.range_end)?;
                if delete.prev_kv {
                    auth.check(who, Access::Read, &delete.key, &delete.range_end)?;
                }
                Ok(())
            }
            Op::Txn(txn) => auth.check_txn(who, txn),
            Op::LeaseRevoke(revoke) => self.check_lease_keys(who, revoke.id),
            _ => Ok(()),
        }
    }

    /// Who ends a lease, or puts a key on it, must be able to write every key that hangs on it.
    fn check_lease_keys(&self, who: Identity<'_>, lease: i64) -> Result<(), RpcError> {
        let auth = &self.state.auth;
        if lease == 0 || auth.check_admin(who).is_ok() {
            return Ok(());
        }
        attached_to(&self.state.attached, lease)
            .try_for_each(|key| auth.check(who, Access::Write, key, &[]))
    }

    fn compact(&mut self, request: CompactionRequest) -> Result<CompactionResponse, RpcError> {
        if request.revision <= self.state.compacted {
            return Err(RpcError::Compacted);
        }
        if request.revision > self.state.revision {
            return Err(RpcError::FutureRev);
        }
        // The walk begins at the last compaction's own revision: a tombstone there was kept.
        let from = Revision::new(self.state.compacted.max(0), 0);
        self.state.purge_next = self.state.purge_next.min(from);
        self.state.compacted = request.revision;
        Ok(CompactionResponse {
            header: Some(self.state.header()),
        })
    }

    fn lease_grant(&mut self, request: LeaseGrantRequest) -> Result<LeaseGrantResponse, RpcError> {
        if request.id == 0 {
            return Err(RpcError::LeaseNotFound);
        }
        if request.ttl > LEASE_TTL_S_MAX {
            return Err(RpcError::LeaseTtlTooLarge);
        }
        if self.state.lease(request.id).is_some() {
            return Err(RpcError::LeaseExist);
        }
        let ttl = request.ttl.max(self.store.options().lease_ttl_s_min);
        self.set_lease(Lease::new(request.id, ttl, 0));
        Ok(LeaseGrantResponse {
            header: Some(self.state.header()),
            id: request.id,
            ttl,
            error: String::new(),
        })
    }

    fn lease_revoke(
        &mut self,
        request: LeaseRevokeRequest,
    ) -> Result<LeaseRevokeResponse, RpcError> {
        let id = request.id;
        if self.state.leases.remove(&id.to_be_bytes()).is_none() {
            return Err(RpcError::LeaseNotFound);
        }
        self.changes.leases.insert(id, None);
        let keys: Vec<_> = attached_to(&self.state.attached, id)
            .map(<[u8]>::to_vec)
            .collect();
        self.delete_attached(&keys);
        Ok(LeaseRevokeResponse {
            header: Some(self.state.header()),
        })
    }

    /// Stops at the first lease that is gone, as etcd does.
    fn lease_checkpoint(
        &mut self,
        request: &LeaseCheckpointRequest,
    ) -> Result<LeaseCheckpointResponse, RpcError> {
        for checkpoint in &request.checkpoints {
            let lease = self.state.lease(checkpoint.id);
            let ttl = lease.ok_or(RpcError::LeaseNotFound)?.ttl_s;
            self.set_lease(Lease::new(checkpoint.id, ttl, checkpoint.remaining_ttl));
        }
        Ok(LeaseCheckpointResponse {
            header: Some(self.state.header()),
        })
    }

    fn set_lease(&mut self, lease: Lease) {
        let lease = Arc::new(lease);
        self.state.leases.insert(Arc::clone(&lease));
        self.changes.leases.insert(lease.id, Some(lease));
    }

    fn alarm(&mut self, request: AlarmRequest) -> AlarmResponse {
        let alarm = Alarm {
            kind: request.alarm,
            member: request.member_id,
        };
        let none = request.alarm() == AlarmType::None;
        let told: Vec<_> = match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => self
                .state
                .alarms
                .iter()
                .filter(|other| none || other.kind == alarm.kind)
                .copied()
                .collect(),
            Ok(AlarmAction::Activate) if !none => {
                Arc::make_mut(&mut self.state.alarms).insert(alarm);
                vec![alarm]
            }
            Ok(AlarmAction::Deactivate) if self.state.alarms.contains(&alarm) => {
                Arc::make_mut(&mut self.state.alarms).remove(&alarm);
                vec![alarm]
            }
            _ => Vec::new(),
        };
        AlarmResponse {
            header: Some(self.state.header()),
            alarms: told
                .into_iter()
                .map(|alarm| AlarmMember {
                    member_id: alarm.member,
                    alarm: alarm.kind,
                })
                .collect(),
        }
    }

    fn auth(&mut self, op: &Op) -> Result<Reply, RpcError> {
        let header = Some(self.state.header());
        // Changed on a copy: a refused verb leaves nothing behind.
        let mut auth = Auth::clone(&self.state.auth);
        let reply = match op {
            Op::AuthEnable(request) => {
                auth.enable(&request.token_key)?;
                Reply::AuthEnable(AuthEnableResponse { header })
            }
            Op::AuthDisable(_) => {
                auth.disable();
                Reply::AuthDisable(AuthDisableResponse { header })
            }
            Op::UserAdd(request) => {
                auth.user_add(request)?;
                Reply::UserAdd(AuthUserAddResponse { header })
            }
            Op::UserDelete(request) => {
                auth.user_delete(request)?;
                Reply::UserDelete(AuthUserDeleteResponse { header })
            }
            Op::UserChangePassword(request) => {
                auth.user_change_password(request)?;
                Reply::UserChangePassword(AuthUserChangePasswordResponse { header })
            }
            Op::UserGrantRole(request) => {
                auth.user_grant_role(request)?;
                Reply::UserGrantRole(AuthUserGrantRoleResponse { header })
            }
            Op::UserRevokeRole(request) => {
                auth.user_revoke_role(request)?;
                Reply::UserRevokeRole(AuthUserRevokeRoleResponse { header })
            }
            Op::RoleAdd(request) => {
                auth.role_add(request)?;
                Reply::RoleAdd(AuthRoleAddResponse { header })
            }
            Op::RoleDelete(request) => {
                auth.role_delete(request)?;
                Reply::RoleDelete(AuthRoleDeleteResponse { header })
            }
            Op::RoleGrantPermission(request) => {
                auth.role_grant_permission(request)?;
                Reply::RoleGrantPermission(AuthRoleGrantPermissionResponse { header })
            }
            Op::RoleRevokePermission(request) => {
                auth.role_revoke_permission(request)?;
                Reply::RoleRevokePermission(AuthRoleRevokePermissionResponse { header })
            }
            _ => unreachable!("only the verbs of the auth store come here"),
        };
        if auth != *self.state.auth {
            self.state.auth = Arc::new(auth);
        }
        Ok(reply)
    }
}

fn is_auth(op: &Op) -> bool {
    matches!(
        op,
        Op::AuthEnable(_)
            | Op::AuthDisable(_)
            | Op::UserAdd(_)
            | Op::UserDelete(_)
            | Op::UserChangePassword(_)
            | Op::UserGrantRole(_)
            | Op::UserRevokeRole(_)
            | Op::RoleAdd(_)
            | Op::RoleDelete(_)
            | Op::RoleGrantPermission(_)
            | Op::RoleRevokePermission(_)
    )
}
