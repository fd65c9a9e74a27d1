//! Figures of a real etcd (3.4.23), taken by its own client: the same history gives the same
//! revisions and, byte for byte, the same hash.

use etcd_wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use etcd_wire::etcdserverpb::{Compare, TxnRequest};

use chainfire_store::RpcError;

use crate::support::{Machine, delete, op_delete, op_put, put};

fn hash(machine: &Machine, revision: i64) -> (u32, i64) {
    let hash = machine.view().hash_kv(revision).unwrap();
    assert_eq!(hash.revision, machine.view().revision());
    (hash.hash, hash.compact_revision)
}

#[test]
fn the_hash_of_a_history_is_etcds() {
    let mut machine = Machine::new();
    assert_eq!(hash(&machine, 0), (1_084_519_789, -1));
    machine.put("a", "1");
    machine.put("b", "2");
    machine.put("a", "3");
    machine.grant(2_324_035_619_181_331_208, 100).unwrap();
    machine.delete(delete("a", ""));
    machine.put("c", "");
    machine.put("a", "4");
    assert_eq!(hash(&machine, 0), (297_848_494, -1));
    assert_eq!(hash(&machine, 4), (2_069_675_932, -1));
    let exists = Compare {
        result: CompareResult::Greater.into(),
        target: CompareTarget::Version.into(),
        key: "a".into(),
        target_union: Some(TargetUnion::Version(0)),
        ..Compare::default()
    };
    let txn = TxnRequest {
        compare: vec![exists],
        success: vec![op_put(put("d", "5")), op_delete(delete("b", ""))],
        failure: Vec::new(),
    };
    machine.txn(txn).unwrap();
    assert_eq!(hash(&machine, 0), (1_863_605_683, -1));
    machine.delete(delete("zzz", ""));
    machine.compact(6).unwrap();
    assert_eq!(hash(&machine, 0), (1_114_954_283, 6));
    assert_eq!(hash(&machine, 7), (3_287_354_186, 6));
    let refused = machine.view().hash_kv(5).unwrap_err();
    assert_eq!(refused.to_string(), RpcError::Compacted.text());
    let refused = machine.view().hash_kv(9).unwrap_err();
    assert_eq!(refused.to_string(), RpcError::FutureRev.text());
}
