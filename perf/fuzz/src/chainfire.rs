//! What ChainFire's clients send, as JSON and nested, and its backups.

use std::fmt::Debug;

use chainfire_store::{Command, Op, TXN_OPS_MAX, check_txn};
use etcd_wire::etcdserverpb as pb;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// `ultractl` is a program and no library, so its file format is compiled here.
#[path = "../../../control/ultractl/src/chainfire/backup/file.rs"]
mod file;

/// What is parsed is written to something that is parsed to the same, and is a message of gRPC's too.
fn same<T: DeserializeOwned + Serialize + Message + Default + PartialEq + Debug>(parsed: &T) {
    let written = serde_json::to_vec(parsed).expect("what was parsed is written");
    let again: T = serde_json::from_slice(&written).expect("what was written is parsed");
    assert_eq!(again, *parsed);
    let decoded = T::decode(parsed.encode_to_vec().as_slice());
    assert_eq!(decoded.as_ref(), Ok(parsed));
}

fn round<T: DeserializeOwned + Serialize + Message + Default + PartialEq + Debug>(text: &[u8]) {
    if let Ok(parsed) = serde_json::from_slice::<T>(text) {
        same(&parsed);
    }
}

/// What a member proposes can be read by all.
fn proposed(txn: pb::TxnRequest) {
    if check_txn(&txn, TXN_OPS_MAX).is_ok() {
        let op = Some(Op::Txn(txn));
        let command = Command {
            op,
            ..Command::default()
        };
        let decoded = Command::decode(command.encode_to_vec().as_slice());
        assert_eq!(decoded.as_ref(), Ok(&command));
    }
}

/// The first byte chooses the request; the rest is its JSON, or for a stream the JSON of many, or a
/// transaction's message.
pub fn json(input: &[u8]) {
    let [which, text @ ..] = input else { return };
    match which % 12 {
        0 => round::<pb::RangeRequest>(text),
        1 => round::<pb::PutRequest>(text),
        2 => round::<pb::DeleteRangeRequest>(text),
        3 => round::<pb::TxnRequest>(text),
        4 => round::<pb::CompactionRequest>(text),
        5 => round::<pb::LeaseGrantRequest>(text),
        6 => round::<pb::WatchRequest>(text),
        7 => round::<pb::MemberAddRequest>(text),
        8 => round::<pb::AlarmRequest>(text),
        9 => round::<pb::AuthRoleGrantPermissionRequest>(text),
        10 => {
            let requests = serde_json::Deserializer::from_slice(text).into_iter();
            let requests = requests.filter_map(Result::ok);
            requests.for_each(|request: pb::WatchRequest| same(&request));
        }
        _ => {
            if let Ok(txn) = pb::TxnRequest::decode(text) {
                proposed(txn);
            }
        }
    }
}

/// Whether both say the same, whatever each one's checksum is.
fn alike(one: &file::Backup, other: &file::Backup) -> bool {
    (one.cluster_id, one.revision, &one.leases, &one.kvs)
        == (other.cluster_id, other.revision, &other.leases, &other.kvs)
}

/// The first bytes say which bit is damaged; the rest is a file: as it is, and with the foot that its
/// lines need. Of the latter a damaged bit is noticed, unless only how a line is written changes.
pub fn backup(input: &[u8]) {
    let [high, low, bytes @ ..] = input else {
        return;
    };
    if let Err(error) = file::read(bytes, "backup") {
        assert!(error.to_string().contains("backup"), "which file? {error}");
    }
    let mut writer = file::Writer::new(Vec::new());
    let lines = bytes.split(|byte| *byte == b'\n');
    for line in lines.filter_map(|line| serde_json::from_slice(line).ok()) {
        let line = match line {
            file::Line::Foot { .. } => continue,
            file::Line::Head {
                cluster_id,
                revision,
                ..
            } => file::Line::head(cluster_id, revision),
            line => line,
        };
        writer.line(&line).expect("memory is written");
    }
    let (mut written, keys, leases, sha256) = writer.finish().expect("memory is written");
    let Ok(backup) = file::read(written.as_slice(), "backup") else {
        return;
    };
    let counted = (backup.kvs.len() as u64, backup.leases.len() as u64);
    assert_eq!((counted, &backup.sha256), ((keys, leases), &sha256));
    let bit = usize::from(u16::from_be_bytes([*high, *low])) % (written.len() * 8);
    written[bit / 8] ^= 1 << (bit % 8);
    if let Ok(damaged) = file::read(written.as_slice(), "backup") {
        assert!(alike(&backup, &damaged), "bit {bit} is damaged");
    }
}
