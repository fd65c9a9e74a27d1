//! Leases and the keys on them.

use chainfire_store::{LEASE_TTL_S_MAX, Op, RpcError};
use etcd_wire::etcdserverpb::{LeaseCheckpoint, LeaseCheckpointRequest, PutRequest};

use crate::support::{Machine, delete, put, text};

fn leased(machine: &mut Machine, key: &str, lease: i64) -> Result<(), RpcError> {
    let request = PutRequest {
        lease,
        ..put(key, "v")
    };
    machine.put_with(request).map(drop)
}

fn keys(machine: &Machine, lease: i64) -> Vec<String> {
    machine.view().lease_keys(lease).map(text).collect()
}

#[test]
fn leases_are_granted_once_and_not_too_short_or_long() {
    let mut machine = Machine::new();
    assert_eq!(machine.grant(5, 60), Ok(60));
    assert_eq!(machine.grant(5, 60), Err(RpcError::LeaseExist));
    assert_eq!(machine.grant(6, 1), Ok(2));
    assert_eq!(machine.grant(7, -3), Ok(2));
    assert_eq!(machine.grant(-8, LEASE_TTL_S_MAX), Ok(LEASE_TTL_S_MAX));
    assert_eq!(
        machine.grant(9, LEASE_TTL_S_MAX + 1),
        Err(RpcError::LeaseTtlTooLarge)
    );
    assert_eq!(machine.grant(0, 60), Err(RpcError::LeaseNotFound));
    assert_eq!(machine.view().revision(), 1, "leases have no revision");
    let ids: Vec<_> = machine.view().leases().map(|lease| lease.id).collect();
    assert_eq!(ids, [5, 6, 7, -8]);
}

#[test]
fn keys_hang_on_the_lease_of_their_last_put() {
    let mut machine = Machine::new();
    machine.grant(1, 60).unwrap();
    machine.grant(2, 60).unwrap();
    assert_eq!(leased(&mut machine, "k", 3), Err(RpcError::LeaseNotFound));
    leased(&mut machine, "a", 1).unwrap();
    leased(&mut machine, "b", 1).unwrap();
    leased(&mut machine, "b", 1).unwrap();
    leased(&mut machine, "c", 1).unwrap();
    assert_eq!(keys(&machine, 1), ["a", "b", "c"]);
    leased(&mut machine, "b", 2).unwrap();
    machine.put("c", "free");
    assert_eq!(
        (keys(&machine, 1), keys(&machine, 2)),
        (vec!["a".into()], vec!["b".into()])
    );
    machine.delete(delete("a", ""));
    assert!(keys(&machine, 1).is_empty());
    machine.revoke(1).unwrap();
    assert_eq!(machine.all(), ["b=v", "c=free"]);
}

#[test]
fn revoking_deletes_the_keys_in_one_revision() {
    let mut machine = Machine::new();
    machine.grant(1, 60).unwrap();
    for key in ["c", "a", "b"] {
        leased(&mut machine, key, 1).unwrap();
    }
    machine.put("free", "v");
    machine.revoke(1).unwrap();
    assert_eq!(machine.view().revision(), 6);
    let told = machine.events.last().unwrap();
    let gone: Vec<_> = told
        .events
        .iter()
        .map(|event| text(&event.kv.as_ref().unwrap().key))
        .collect();
    assert_eq!(
        (told.revision, gone),
        (6, vec!["a".into(), "b".into(), "c".into()])
    );
    assert_eq!(machine.all(), ["free=v"]);
    assert_eq!(machine.revoke(1), Err(RpcError::LeaseNotFound));
    assert_eq!(machine.view().lease(1), None);
    machine.grant(1, 60).unwrap();
    machine.revoke(1).unwrap();
    assert_eq!(machine.view().revision(), 6, "no key, no revision");
}

#[test]
fn checkpoints_keep_what_is_left() {
    let mut machine = Machine::new();
    machine.grant(1, 60).unwrap();
    machine.grant(2, 60).unwrap();
    let mut checkpoint = |of: &[(i64, i64)]| {
        let checkpoints = of
            .iter()
            .map(|&(id, remaining_ttl)| LeaseCheckpoint { id, remaining_ttl })
            .collect();
        let outcome = machine.op(Op::LeaseCheckpoint(LeaseCheckpointRequest { checkpoints }));
        let left = |id| machine.view().lease(id).unwrap().remaining_s;
        (outcome.map(drop), left(1), left(2))
    };
    assert_eq!(checkpoint(&[(1, 40), (2, 50)]), (Ok(()), 40, 50));
    assert_eq!(checkpoint(&[(1, 0)]), (Ok(()), 0, 50));
    let missing = checkpoint(&[(1, 7), (3, 1), (2, 9)]);
    assert_eq!(missing, (Err(RpcError::LeaseNotFound), 7, 50));
}
