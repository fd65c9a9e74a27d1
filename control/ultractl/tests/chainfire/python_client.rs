//! etcd3gw, a Python client of the JSON gateway.

use std::path::PathBuf;
use std::process::Command;

use crate::support::Member;

const SCRIPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/chainfire/python_client.py"
);
/// Lines of the script that tell what held.
const HELD: usize = 13;

#[test]
fn keys_leases_locks_watches_and_transactions_work_over_the_gateway() {
    let Some(dir) = std::env::var_os("ULTRACLOUD_CLIENTS").map(PathBuf::from) else {
        eprintln!("ULTRACLOUD_CLIENTS names no venv with etcd3gw: not shown here");
        return;
    };
    let member = Member::alone();
    let output = Command::new(dir.join("python"))
        .arg(SCRIPT)
        .arg(member.client.ip().to_string())
        .arg(member.client.port().to_string())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{error}");
    assert_eq!(said.lines().count(), HELD, "{said}");
}
