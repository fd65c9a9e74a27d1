//! What an operator does to operations, by `ultractl`.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use control_kit::saga::Record;
use control_kit::store::{Condition, Outcome, SharedStore, Txn, Write, get};
use serde_json::Value;

use crate::killed::{kill_after, store};
use crate::running::{BLUE, OPERATOR, Place, Service, eventually};

/// The command line, built beside the service.
fn ultractl() -> PathBuf {
    let service = Path::new(env!("CARGO_BIN_EXE_sample-service"));
    let ultractl = service.with_file_name("ultractl");
    assert!(
        ultractl.is_file(),
        "build it first: cargo build -p ultractl"
    );
    ultractl
}

fn command(service: &Service, token: &str, line: &str) -> Command {
    let mut command = Command::new(ultractl());
    command
        .args(line.split_whitespace())
        .env("ULTRACTL_CONFIG", "/nonexistent")
        .env("ULTRACTL_ENDPOINT", format!("http://{}", service.addr))
        .env("ULTRACTL_TOKEN", token)
        .stdin(Stdio::null());
    command
}

/// What a command said.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    fn of(output: &Output) -> Said {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said {
            code: output.status.code().unwrap(),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }

    #[track_caller]
    fn ended(self, code: i32) -> Said {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        self
    }

    #[track_caller]
    fn has(self, parts: &[&str]) -> Said {
        let all = format!("{}{}", self.out, self.err);
        for part in parts {
            assert!(all.contains(part), "{part} in\n{all}");
        }
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap()
    }
}

fn run(service: &Service, token: &str, line: &str) -> Said {
    Said::of(&command(service, token, line).output().unwrap())
}

/// Begins a widget and gives its operation.
fn begin(service: &Service, name: &str, size: u64) -> String {
    let body = format!(r#"{{"name":"{name}","size":{size}}}"#);
    let made = service.post(BLUE, "/v1/widgets", &body, &[]);
    assert_eq!(made.status, 202, "{made:?}");
    made.body["operation"].as_str().unwrap().to_owned()
}

#[test]
fn operations_are_listed_shown_and_waited_for() {
    let place = Place::new();
    let service = place.service();
    let id = begin(&service, "red", 4);
    let waited = run(&service, BLUE, &format!("operation wait {id}")).ended(0);
    waited.has(&[
        "widget-create: reserve: done\n",
        "widget-create: make: done\n",
        "widget-create: commit: done\n",
        "widget-create of widget/blue/red is done\n",
    ]);
    let quiet = run(&service, BLUE, &format!("-o json operation wait {id}")).ended(0);
    assert_eq!(
        (quiet.json()["state"].as_str(), quiet.err.as_str()),
        (Some("done"), "")
    );
    run(&service, BLUE, "operation list").ended(0).has(&[
        "ID",
        "UPDATED",
        &id,
        "widget/blue/red",
        "done",
    ]);
    let failed = run(&service, BLUE, "-o json operation list --failed").ended(0);
    assert_eq!(failed.json(), Value::Array(Vec::new()));
    run(&service, OPERATOR, "-o wide audit list")
        .ended(0)
        .has(&["PRINCIPAL", "ann", "widget-create", "begun", "done", "blue"]);

    // What was asked for and cannot be is an error, and says why.
    let over = begin(&service, "huge", 1_000_000);
    run(&service, BLUE, &format!("operation wait {over}"))
        .ended(1)
        .has(&[
            "is undone: reserve: ",
            "1000000",
            "help: nothing is left of it",
        ]);
    let unknown = "0190a1b2-0000-7000-8000-000000000000";
    run(&service, BLUE, &format!("operation get {unknown}")).ended(3);
    run(&service, BLUE, "operation get me")
        .ended(5)
        .has(&["no operation's id"]);
    run(&service, "wrong", "operation list").ended(6);
    let mut nobody = command(&service, BLUE, "operation list");
    let nobody = nobody.env_remove("ULTRACTL_TOKEN").output().unwrap();
    Said::of(&nobody)
        .ended(2)
        .has(&["no token", "--token-file", "context set"]);
}

#[test]
fn waiting_outlasts_the_service_and_ends_when_it_is_told_to() {
    let place = Place::new();
    let mut service = place.service();
    std::fs::remove_dir_all(place.files()).unwrap();
    let id = begin(&service, "red", 4);
    run(&service, BLUE, &format!("operation wait {id} --timeout 1"))
        .ended(4)
        .has(&["is still running", &format!("operation wait {id}")]);
    let shown = || run(&service, BLUE, &format!("-o json operation get {id}")).json();
    eventually("a try has failed", || {
        let trouble = shown()["trouble"].as_str().unwrap().to_owned();
        trouble.contains("cannot write the file").then_some(())
    });
    let mut waiting = command(&service, BLUE, &format!("operation wait {id}"));
    let mut waiting = waiting
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(waiting.stderr.take().unwrap()).lines();
    let begun = told.find(|line| line.as_ref().unwrap().contains("make: running"));
    assert!(begun.is_some(), "it ended: {:?}", waiting.wait());
    service.process.kill();
    std::fs::create_dir(place.files()).unwrap();
    let _service = place.service_at(&service.addr);
    let told: Vec<String> = told.map(Result::unwrap).collect();
    let waited = waiting.wait_with_output().unwrap();
    Said::of(&waited).ended(0).has(&["is done"]);
    let is_told = |line: &String| line.contains("make: done");
    assert!(told.iter().any(is_told), "{told:?}");
}

/// Makes an operation one that another version of the service wrote, whose first step had another name. What the
/// process had sent before it was killed may still arrive.
async fn rename_first_step(store: &SharedStore, id: &str) {
    let key = format!("saga/open/{id}");
    loop {
        let entry = get(&**store, &key).await.unwrap().unwrap();
        let mut record: Record = serde_json::from_slice(&entry.value).unwrap();
        "reserve-all".clone_into(&mut record.done[0].name);
        let record = serde_json::to_vec(&record).unwrap();
        let unchanged = Condition::as_read(&key, Some(&entry));
        let txn = Txn::when(unchanged).then(Write::put(&key, record));
        if matches!(store.commit(txn).await.unwrap(), Outcome::Committed { .. }) {
            return;
        }
    }
}

#[tokio::test]
async fn what_failed_is_retried_or_given_up() {
    let place = Place::new();
    let store = store(&place);
    let mut service = place.service();
    let begin = |service: &Service| {
        let made = service.post(BLUE, "/v1/widgets", r#"{"name":"red","size":4}"#, &[]);
        made.body
    };
    let id = kill_after(&store, &mut service, 1, begin).await;
    rename_first_step(&store, &id).await;

    let service = place.service();
    run(&service, BLUE, &format!("operation wait {id}"))
        .ended(1)
        .has(&[
            "is failed (steps-changed)",
            &format!("operation retry {id} --wait"),
            &format!("operation force-delete {id}"),
        ]);
    run(&service, OPERATOR, "operation list --failed")
        .ended(0)
        .has(&[&id]);
    // The cause is not mended, so it fails again.
    run(&service, BLUE, &format!("operation retry {id} --wait"))
        .ended(1)
        .has(&["steps-changed"]);
    run(&service, BLUE, &format!("operation force-delete {id}"))
        .ended(6)
        .has(&["only an operator"]);
    let given_up = run(
        &service,
        OPERATOR,
        &format!("-o yaml operation force-delete {id}"),
    );
    given_up.ended(0).has(&["state: force-deleted"]);
    assert_eq!(service.curl(BLUE, &["/v1/widgets/red"]).status, 404);
    run(&service, BLUE, &format!("operation retry {id}")).ended(5);
}
