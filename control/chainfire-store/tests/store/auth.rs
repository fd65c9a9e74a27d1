//! Users, roles, permissions, and commands on somebody's behalf.

use chainfire_store::{Access, Command, Identity, Op, Outcome, Reply, RpcError};
use etcd_wire::authpb::{Permission, UserAddOptions, permission};
use etcd_wire::chainfire::AuthEnable;
use etcd_wire::etcdserverpb::{
    AuthDisableRequest, AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGrantPermissionRequest,
    AuthRoleRevokePermissionRequest, AuthUserAddRequest, AuthUserChangePasswordRequest,
    AuthUserDeleteRequest, AuthUserGrantRoleRequest, AuthUserRevokeRoleRequest, DeleteRangeRequest,
    LeaseRevokeRequest, PutRequest, TxnRequest,
};

use crate::support::{Machine, delete, op_delete, op_put, op_range, op_txn, put, range};

fn user_add(name: &str) -> Op {
    Op::UserAdd(AuthUserAddRequest {
        name: name.into(),
        hashed_password: "aGFzaA==".into(),
        ..AuthUserAddRequest::default()
    })
}

fn user_delete(name: &str) -> Op {
    Op::UserDelete(AuthUserDeleteRequest { name: name.into() })
}

fn grant_role(user: &str, role: &str) -> Op {
    Op::UserGrantRole(AuthUserGrantRoleRequest {
        user: user.into(),
        role: role.into(),
    })
}

fn revoke_role(name: &str, role: &str) -> Op {
    Op::UserRevokeRole(AuthUserRevokeRoleRequest {
        name: name.into(),
        role: role.into(),
    })
}

fn role_add(name: &str) -> Op {
    Op::RoleAdd(AuthRoleAddRequest { name: name.into() })
}

fn role_delete(role: &str) -> Op {
    Op::RoleDelete(AuthRoleDeleteRequest { role: role.into() })
}

fn permit(role: &str, kind: permission::Type, key: &str, end: &str) -> Op {
    Op::RoleGrantPermission(AuthRoleGrantPermissionRequest {
        name: role.into(),
        perm: Some(Permission {
            perm_type: kind.into(),
            key: key.to_owned().into(),
            range_end: end.to_owned().into(),
        }),
    })
}

fn forbid(role: &str, key: &str, end: &str) -> Op {
    Op::RoleRevokePermission(AuthRoleRevokePermissionRequest {
        role: role.into(),
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
    })
}

fn enable() -> Op {
    Op::AuthEnable(AuthEnable {
        token_key: "secret".into(),
    })
}

/// Everything that one does to begin with.
fn guarded() -> Machine {
    use permission::Type;
    let mut machine = Machine::new();
    for op in [
        user_add("root"),
        grant_role("root", "root"),
        user_add("ann"),
        role_add("app"),
        permit("app", Type::Readwrite, "app/", "app0"),
        permit("app", Type::Read, "conf/a", "conf/b"),
        permit("app", Type::Read, "conf/b", "conf/c"),
        permit("app", Type::Write, "log", ""),
        grant_role("ann", "app"),
        enable(),
    ] {
        machine.op(op).unwrap();
    }
    machine
}

impl Machine {
    fn as_user(&mut self, user: &str, op: Op) -> Outcome {
        let auth_revision = self.view().auth().revision();
        self.apply(&Command {
            user: user.into(),
            auth_revision,
            op: Some(op),
        })
    }

    fn refused(&mut self, op: Op) -> RpcError {
        self.op(op).unwrap_err()
    }
}

#[test]
fn authentication_needs_a_root_with_its_role() {
    let mut machine = Machine::new();
    assert_eq!(machine.refused(enable()), RpcError::RootUserNotExist);
    machine.op(user_add("root")).unwrap();
    assert_eq!(machine.refused(enable()), RpcError::RootRoleNotExist);
    machine.op(grant_role("root", "root")).unwrap();
    assert_eq!(machine.view().auth().revision(), 3);
    machine.op(enable()).unwrap();
    let view = machine.view();
    assert!(view.auth().is_enabled());
    assert_eq!(
        (view.auth().revision(), &view.auth().token_key()[..]),
        (3, &b"secret"[..])
    );
    assert_eq!(machine.refused(enable()), RpcError::UserEmpty);
    assert!(
        machine.as_user("root", enable()).is_ok(),
        "again, it does nothing"
    );
    machine
        .as_user("root", Op::AuthDisable(AuthDisableRequest {}))
        .unwrap();
    assert_eq!(machine.view().auth().revision(), 4);
    assert!(machine.put_with(put("k", "1")).is_ok());
}

#[test]
fn names_that_are_wrong_are_refused_as_etcd_does() {
    let mut machine = Machine::new();
    for op in [user_add("u"), role_add("r"), grant_role("u", "r")] {
        machine.op(op).unwrap();
    }
    let revision = machine.view().auth().revision();
    let bad_hash = Op::UserAdd(AuthUserAddRequest {
        name: "v".into(),
        hashed_password: "*".into(),
        ..AuthUserAddRequest::default()
    });
    let unknown_password = Op::UserChangePassword(AuthUserChangePasswordRequest {
        name: "v".into(),
        ..AuthUserChangePasswordRequest::default()
    });
    let no_permission = Op::RoleGrantPermission(AuthRoleGrantPermissionRequest {
        name: "r".into(),
        perm: None,
    });
    for (op, refusal) in [
        (user_add(""), RpcError::UserEmpty),
        (user_add("u"), RpcError::UserAlreadyExist),
        (bad_hash, RpcError::AuthFailed),
        (unknown_password, RpcError::UserNotFound),
        (user_delete("v"), RpcError::UserNotFound),
        (grant_role("v", "r"), RpcError::UserNotFound),
        (grant_role("u", "s"), RpcError::RoleNotFound),
        (revoke_role("v", "r"), RpcError::UserNotFound),
        (revoke_role("u", "s"), RpcError::RoleNotGranted),
        (role_add(""), RpcError::RoleEmpty),
        (role_add("r"), RpcError::RoleAlreadyExist),
        (role_delete("s"), RpcError::RoleNotFound),
        (no_permission, RpcError::PermissionNotGiven),
        (
            permit("s", permission::Type::Read, "k", ""),
            RpcError::RoleNotFound,
        ),
        (forbid("s", "k", ""), RpcError::RoleNotFound),
        (forbid("r", "k", ""), RpcError::PermissionNotGranted),
    ] {
        assert_eq!(machine.refused(op.clone()), refusal, "{op:?}");
    }
    machine.op(grant_role("u", "r")).unwrap();
    assert_eq!(
        machine.view().auth().revision(),
        revision,
        "nothing has changed"
    );
}

#[test]
fn permissions_are_updated_listed_and_revoked() {
    use permission::Type;
    let mut machine = Machine::new();
    machine.op(role_add("r")).unwrap();
    machine.op(role_add("root")).unwrap();
    machine.op(permit("r", Type::Read, "b", "c")).unwrap();
    machine.op(permit("r", Type::Read, "a", "")).unwrap();
    machine.op(permit("r", Type::Write, "b", "")).unwrap();
    machine.op(permit("r", Type::Readwrite, "b", "c")).unwrap();
    let listed = |machine: &Machine, role| {
        let nobody = Identity::default();
        let answer = machine.view().auth().role_get(nobody, role).unwrap();
        let shown = |permission: &Permission| {
            let key = String::from_utf8_lossy(&permission.key).into_owned();
            (permission.perm_type, key, permission.range_end.len())
        };
        answer.perm.iter().map(shown).collect::<Vec<_>>()
    };
    let (a, b) = (|| "a".to_owned(), || "b".to_owned());
    assert_eq!(
        listed(&machine, "r"),
        [(0, a(), 0), (2, b(), 1), (1, b(), 0)]
    );
    assert_eq!(listed(&machine, "root"), [(2, String::new(), 1)]);
    machine.op(forbid("r", "b", "c")).unwrap();
    assert_eq!(listed(&machine, "r"), [(0, a(), 0), (1, b(), 0)]);
}

#[test]
fn users_reach_what_their_roles_cover() {
    let machine = guarded();
    let view = machine.view();
    let auth = view.auth();
    let ann = Identity {
        user: "ann",
        revision: auth.revision(),
    };
    let may = |access, key: &str, end: &str| {
        let checked = auth.check(ann, access, key.as_bytes(), end.as_bytes());
        assert!(matches!(checked, Ok(()) | Err(RpcError::PermissionDenied)));
        checked.is_ok()
    };
    use Access::{Read, Write};
    assert!(may(Read, "app/x", "") && may(Write, "app/x", ""));
    assert!(may(Write, "app/", "app0") && may(Read, "app/a", "app/b"));
    assert!(!may(Read, "app", "") && !may(Read, "app/", "app1") && !may(Read, "app/", "\0"));
    assert!(may(Read, "conf/a", "conf/c"), "two permissions that touch");
    assert!(!may(Read, "conf/a", "conf/c\0"));
    assert!(!may(Write, "conf/a", ""));
    assert!(may(Write, "log", "") && !may(Read, "log", "") && !may(Write, "log", "log1"));
    let root = Identity {
        user: "root",
        ..ann
    };
    assert_eq!(auth.check(root, Write, b"\0", b"\0"), Ok(()));
    let nobody = Identity::default();
    assert_eq!(
        auth.check(nobody, Read, b"k", b""),
        Err(RpcError::UserEmpty)
    );
    let old = Identity {
        revision: ann.revision - 1,
        ..ann
    };
    assert_eq!(
        auth.check(old, Read, b"app/x", b""),
        Err(RpcError::AuthOldRevision)
    );
    let stranger = Identity { user: "eve", ..ann };
    assert_eq!(
        auth.check(stranger, Read, b"app/x", b""),
        Err(RpcError::PermissionDenied)
    );
}

#[test]
fn commands_run_with_their_users_permissions() {
    let denied = RpcError::PermissionDenied;
    let mut machine = guarded();
    assert_eq!(
        machine.put_with(put("app/x", "1")).unwrap_err(),
        RpcError::UserEmpty
    );
    assert!(machine.as_user("ann", Op::Put(put("app/x", "1"))).is_ok());
    assert!(machine.as_user("ann", Op::Put(put("log", "1"))).is_ok());
    assert_eq!(
        machine
            .as_user("ann", Op::Put(put("conf/a", "1")))
            .unwrap_err(),
        denied
    );
    let showing = PutRequest {
        prev_kv: true,
        ..put("log", "2")
    };
    assert_eq!(
        machine.as_user("ann", Op::Put(showing)).unwrap_err(),
        denied
    );
    let showing = DeleteRangeRequest {
        prev_kv: true,
        ..delete("log", "")
    };
    assert_eq!(
        machine
            .as_user("ann", Op::DeleteRange(showing))
            .unwrap_err(),
        denied
    );
    let txn = |op| TxnRequest {
        failure: vec![op],
        ..TxnRequest::default()
    };
    for op in [
        op_range(range("log", "")),
        op_put(put("conf/a", "")),
        op_delete(delete("app/", "\0")),
        op_txn(txn(op_put(put("other", "")))),
    ] {
        assert_eq!(
            machine.as_user("ann", Op::Txn(txn(op))).unwrap_err(),
            denied
        );
    }
    assert!(
        machine
            .as_user("ann", Op::Txn(txn(op_put(put("log", "3")))))
            .is_ok()
    );
    assert_eq!(machine.as_user("ann", user_add("bob")).unwrap_err(), denied);
    assert!(machine.as_user("root", user_add("bob")).is_ok());
    // A command from before that change.
    let late = Command {
        user: "ann".into(),
        auth_revision: machine.view().auth().revision() - 1,
        op: Some(Op::Put(put("app/x", "2"))),
    };
    assert_eq!(machine.apply(&late).unwrap_err(), RpcError::AuthOldRevision);
}

#[test]
fn a_lease_belongs_to_who_may_write_all_its_keys() {
    let mut machine = guarded();
    machine.grant(1, 60).unwrap();
    let on_lease = |key| {
        Op::Put(PutRequest {
            lease: 1,
            ..put(key, "")
        })
    };
    machine.as_user("ann", on_lease("app/a")).unwrap();
    machine.as_user("root", on_lease("other")).unwrap();
    let denied = RpcError::PermissionDenied;
    assert_eq!(
        machine.as_user("ann", on_lease("app/b")).unwrap_err(),
        denied
    );
    let revoke = Op::LeaseRevoke(LeaseRevokeRequest { id: 1 });
    assert_eq!(machine.as_user("ann", revoke.clone()).unwrap_err(), denied);
    assert!(machine.as_user("root", revoke).is_ok());
}

#[test]
fn root_cannot_be_lost_while_authentication_is_on() {
    let mut machine = guarded();
    let kept = RpcError::InvalidAuthMgmt;
    assert_eq!(
        machine.as_user("root", user_delete("root")).unwrap_err(),
        kept
    );
    assert_eq!(
        machine
            .as_user("root", revoke_role("root", "root"))
            .unwrap_err(),
        kept
    );
    assert_eq!(
        machine.as_user("root", role_delete("root")).unwrap_err(),
        kept
    );
    machine.as_user("root", role_delete("app")).unwrap();
    let view = machine.view();
    let root = Identity {
        user: "root",
        revision: view.auth().revision(),
    };
    assert!(view.auth().user_get(root, "ann").unwrap().roles.is_empty());
    assert_eq!(view.auth().user_list(root).unwrap().users, ["ann", "root"]);
    assert!(view.auth().role_list(root).unwrap().roles.is_empty());
    let ann = Identity {
        user: "ann",
        ..root
    };
    assert!(view.auth().user_get(ann, "ann").is_ok(), "about oneself");
    assert_eq!(
        view.auth().user_get(ann, "root"),
        Err(RpcError::PermissionDenied)
    );
    assert_eq!(view.auth().user_list(ann), Err(RpcError::PermissionDenied));
}

#[test]
fn passwords_come_hashed_and_change() {
    let mut machine = Machine::new();
    machine.op(user_add("u")).unwrap();
    let quiet = Op::UserAdd(AuthUserAddRequest {
        name: "q".into(),
        options: Some(UserAddOptions { no_password: true }),
        ..AuthUserAddRequest::default()
    });
    machine.op(quiet).unwrap();
    let hash = |machine: &Machine, name| machine.view().auth().user(name).unwrap().password.clone();
    assert_eq!(
        (&hash(&machine, "u")[..], &hash(&machine, "q")[..]),
        (&b"hash"[..], &b""[..])
    );
    let change = Op::UserChangePassword(AuthUserChangePasswordRequest {
        name: "u".into(),
        hashed_password: "bmV3".into(),
        ..AuthUserChangePasswordRequest::default()
    });
    assert!(matches!(
        machine.op(change),
        Ok(Reply::UserChangePassword(_))
    ));
    assert_eq!(&hash(&machine, "u")[..], b"new");
}
