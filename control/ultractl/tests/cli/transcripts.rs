//! The sessions whose transcripts are kept.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::Value;

use crate::session::Session;

#[test]
fn a_first_look() {
    let mut session = Session::new();
    for line in [
        "",
        "--version",
        "--help",
        "chainfire --help",
        "chainfire member --help",
        "context set --help",
    ] {
        session.types(line);
    }
    session.is("a_first_look");
}

#[test]
fn wrong_words_are_answered_with_the_right_ones() {
    let mut session = Session::new();
    for line in [
        "chainfir",
        "chainfire membr list",
        "chainfire member lst",
        "--outptu json context list",
        "-o jsn context list",
        "chainfire get",
        "chainfire --cert me.crt get a",
        "context set",
        "-o json chainfir",
        "-o yaml chainfire member lst",
        "-o json chainfire",
    ] {
        session.types(line);
    }
    session.is("wrong_words");
}

#[test]
fn contexts_are_made_chosen_and_forgotten() {
    let mut session = Session::new();
    session.types("context list");
    session.types("context show");
    session.types("context set lab chainfire --endpoints http://127.0.0.1:1");
    session.types_with(
        "context set prod chainfire --endpoints https://10.0.0.1:2379,https://10.0.0.2:2379 \
         --user - --cert me.crt --key me.key --cacert prod.crt",
        "root:secret",
    );
    session.types("context list");
    session.types("-o wide context list");
    session.types("context use prod");
    session.types("-o json context show");
    session.types("-o yaml context show lab");
    session.types("context use prd");
    session.types("--context staging chainfire get a");
    session.types("context set 'a b' chainfire --endpoints http://a:1");
    session.types("context set lab chainfire --endpoints a:1");
    session.types("context set lab chainfire --endpoints https://a:1");
    session.types("context delete prod");
    session.types("-o json context delete lab");
    session.types("context list");
    let file = session.path(".config/ultracloud/contexts.toml");
    let mode = std::fs::metadata(file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    session.is("contexts");
}

#[test]
fn a_broken_config_is_shown_with_line_and_column() {
    let mut session = Session::new();
    session.export("ULTRACTL_CONFIG", "mine.toml");
    session.write(
        "mine.toml",
        "current = \"lab\"\n\n[contexts.lab.chainfire]\nendpoint = \"http://127.0.0.1:2379\"\n",
    );
    session.types("chainfire get a");
    session.types("-o json context list");
    session.write("mine.toml", "[contexts.lab.chainfire\n");
    session.types("context list");
    session.write(
        "mine.toml",
        "[contexts.lab.chainfire]\nendpoints = [\"http://127.0.0.1:2379\"]\nuser = \"root:a\"\n",
    );
    session.types("context list");
    session.is("broken_config");
}

#[test]
fn silence_is_an_error_of_its_own_and_flags_win_over_the_context() {
    let mut session = Session::new();
    session.types("context set lab chainfire --endpoints http://127.0.0.1:1");
    session.types("chainfire get a");
    session.types("-o json chainfire get a");
    session.types("-o yaml chainfire get a");
    session.types("chainfire --endpoints http://127.0.0.1:2 get a");
    session.export("ULTRACTL_CHAINFIRE_ENDPOINTS", "http://127.0.0.1:3");
    session.types("chainfire get a");
    session.types("chainfire --endpoints 127.0.0.1:2 get a");
    session.types("chainfire --user root get a");
    session.is("silence");
}

#[test]
fn proofs_are_listed_with_those_that_are_broken() {
    let mut session = Session::new();
    session.types("proof list");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/work");
    copy(&fixtures, &session.path("kept"));
    let lane = session.path("kept/chainfire-live-membership-proof");
    std::os::unix::fs::symlink("20261126T091500Z", lane.join("latest")).unwrap();
    std::fs::create_dir(lane.join("20261127T080000Z")).unwrap();
    session.export("ULTRACLOUD_WORK_ROOT", "kept");
    for line in [
        "proof list",
        "-o wide proof list chainfire-live-membership-proof",
        "-o json proof list durability-proof",
        "proof show durability-proof",
        "proof show",
        "proof show chainfire-live-membership-proof latest",
        "proof show chainfire-live-membership-proof",
        "proof show durability-proof 20261125T235959Z",
        "proof show durability-proof yesterday",
        "proof show nothing",
    ] {
        session.types(line);
    }
    session.is("proofs");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// What the machine is fit for differs; that each check says something, and that the exit code is what the
/// document says, does not.
#[test]
fn doctor_looks_at_this_machine() {
    let session = Session::new();
    let output = session.run("-o json doctor");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let names: Vec<&str> = checks
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "kernel",
            "io_uring",
            "memlock",
            "files",
            "hugepages",
            "kvm",
            "xdp",
            "cgroup",
            "namespaces",
            "disk",
            "work root",
            "clock"
        ]
    );
    let failed = checks.iter().any(|one| one["state"] == "fail");
    assert_eq!(report["ok"], !failed, "{report:#}");
    assert_eq!(output.status.code(), Some(i32::from(failed)), "{report:#}");
    for check in checks {
        assert!(!check["found"].as_str().unwrap().is_empty(), "{check}");
        let is_ok = check["state"] == "ok";
        assert_eq!(check.get("next").is_none(), is_ok, "{check}");
    }
    // The tests themselves run the engine here.
    assert_eq!(checks[0]["state"], "ok");
    assert_ne!(checks[1]["state"], "fail");

    let mut session = Session::new();
    let text = String::from_utf8(session.run("doctor").stdout).unwrap();
    assert!(
        !text.contains('\u{1b}'),
        "no colour without a terminal: {text}"
    );
    session.doctor(&text, &names);
    session.is("doctor");
}
