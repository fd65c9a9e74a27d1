//! The same verbs by REST, gRPC and the command line, by clients that know nothing of the service.

use std::path::PathBuf;
use std::process::{Command, Output};

use crate::running::{BLUE, OPERATOR, Place, Service};

fn cli(service: &Service, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sample-service"))
        .args(["create", "--url", &format!("http://{}", service.addr)])
        .args(arguments)
        .output()
        .unwrap()
}

/// Python of the clients' venv.
pub fn python() -> PathBuf {
    let bin = std::env::var_os("ULTRACLOUD_CLIENTS").map(PathBuf::from);
    let bin = bin.expect("run by `cargo xtask test`, which sets ULTRACLOUD_CLIENTS");
    bin.join("python")
}

#[test]
fn a_widget_is_made_read_and_deleted_by_rest_grpc_and_the_command_line() {
    let place = Place::new();
    let mut service = place.service();

    let made = service.post(BLUE, "/v1/widgets", r#"{"name":"red","size":4}"#, &[]);
    assert_eq!(made.status, 202, "{made:?}");
    assert_eq!(made.body["state"], "creating");
    let operation = service.settled(made.body["operation"].as_str().unwrap());
    assert_eq!(operation["state"], "done", "{operation}");
    let steps: Vec<_> = operation["steps"].as_array().unwrap().iter().collect();
    assert!(
        steps.iter().all(|step| step["state"] == "done"),
        "{steps:?}"
    );
    assert_eq!(
        service.curl(BLUE, &["/v1/widgets/red"]).body["state"],
        "ready"
    );
    assert_eq!(
        std::fs::read(place.files().join("widget.blue.red")).unwrap(),
        b"wwww"
    );

    let made = cli(&service, &["green", "5"]);
    assert!(made.status.success(), "{made:?}");
    assert_eq!(String::from_utf8_lossy(&made.stdout), "green is ready\n");
    let again = cli(&service, &["green", "5"]);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(
        !again.status.success() && said.contains("changed"),
        "{said}"
    );

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sample/grpc_client.py");
    let spoken = Command::new(python())
        .args([script, &service.addr, BLUE])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&spoken.stderr).into_owned();
    assert!(spoken.status.success(), "{said}");
    let told = String::from_utf8_lossy(&spoken.stdout).into_owned();
    for part in [
        "service grpc.health.v1.Health",
        "service sample.v1.Widgets",
        "service ultracloud.operations.v1.Operations",
        "made blue-by-grpc creating",
        "operation done",
        "refused NOT_FOUND not-found",
        "refused UNAUTHENTICATED not-authenticated",
        "refused INVALID_ARGUMENT invalid-name",
        "health SERVING",
    ] {
        assert!(told.lines().any(|line| line == part), "{part} in\n{told}");
    }

    let gone = service.curl(BLUE, &["-X", "DELETE", "/v1/widgets/red"]);
    assert_eq!(gone.status, 202, "{gone:?}");
    let operation = service.settled(gone.body["operation"].as_str().unwrap());
    assert_eq!(operation["state"], "done");
    assert_eq!(service.curl(BLUE, &["/v1/widgets/red"]).status, 404);

    let metrics = service.curl(BLUE, &["/metrics"]).text;
    for name in [
        "uc_api_calls_total",
        "uc_saga_steps_total",
        "uc_api_call_seconds_count",
    ] {
        assert!(metrics.contains(name), "{name} in\n{metrics}");
    }
    let log = service.curl(OPERATOR, &["/v1/audit-events"]).body;
    let told: Vec<String> = log["events"].as_array().unwrap().iter().map(line).collect();
    for part in [
        "ann widget-create widget/blue/red begun",
        "ann widget-create widget/blue/red done",
        "ann widget-delete widget/blue/red done",
    ] {
        assert!(told.iter().any(|line| line == part), "{part} in {told:?}");
    }
    assert!(service.process.terminate(), "it ends in order");
}

fn line(event: &serde_json::Value) -> String {
    let part = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
    format!(
        "{} {} {} {}",
        part("principal"),
        part("action"),
        part("object"),
        part("outcome")
    )
}

#[test]
fn what_is_refused_says_what_to_which_object_and_what_next() {
    let place = Place::new();
    let service = place.service();
    let refused = |body: &str| service.post(BLUE, "/v1/widgets", body, &[]);
    for (body, status, code) in [
        (r#"{"name":"Red","size":4}"#, 400, "invalid-name"),
        (
            r#"{"name":"red","size":4,"colour":1}"#,
            400,
            "invalid-request",
        ),
        (r#"{"name":"red","size":-4}"#, 400, "invalid-request"),
        ("{", 400, "invalid-request"),
    ] {
        let answer = refused(body);
        assert_eq!(answer.status, status, "{body}: {answer:?}");
        assert_eq!(answer.body["error"]["code"], code, "{body}: {answer:?}");
        assert!(answer.body["error"]["request_id"].is_string(), "{answer:?}");
    }
    let plain = service.curl(BLUE, &["-d", "name=red", "/v1/widgets"]);
    assert_eq!(
        (plain.status, &plain.body["error"]["code"]),
        (415, &"unsupported-media-type".into())
    );
    assert_eq!(service.curl("wrong", &["/v1/widgets/red"]).status, 401);
    let nowhere = service.curl(BLUE, &["/v1/nothing"]);
    assert_eq!(
        (nowhere.status, &nowhere.body["error"]["code"]),
        (404, &"no-such-path".into())
    );
    assert_eq!(
        service.curl(BLUE, &["-X", "PATCH", "/v1/widgets"]).status,
        405
    );

    // More than the quota allows: the operation is undone, and says why.
    let made = refused(r#"{"name":"huge","size":1000000}"#);
    let operation = service.settled(made.body["operation"].as_str().unwrap());
    assert_eq!(operation["state"], "done");
    let over = refused(r#"{"name":"more","size":1}"#);
    let operation = service.settled(over.body["operation"].as_str().unwrap());
    assert_eq!(operation["state"], "undone", "{operation}");
    let trouble = operation["trouble"].as_str().unwrap();
    assert!(trouble.contains("1000000"), "{trouble}");
    assert_eq!(operation["trouble_step"], "reserve");
    assert_eq!(service.curl(BLUE, &["/v1/widgets/more"]).status, 404);
}

#[test]
fn a_request_under_an_idempotency_key_is_done_once() {
    let place = Place::new();
    let service = place.service();
    let body = r#"{"name":"once","size":4}"#;
    let key = ["-H", "idempotency-key: k-1"];
    let first = service.post(BLUE, "/v1/widgets", body, &key);
    let again = service.post(BLUE, "/v1/widgets", body, &key);
    assert_eq!((first.status, again.status), (202, 202), "{again:?}");
    assert_eq!(first.body["operation"], again.body["operation"]);
    let other = service.post(BLUE, "/v1/widgets", r#"{"name":"twice","size":4}"#, &key);
    assert_eq!(other.status, 409, "{other:?}");
    assert_eq!(other.body["error"]["code"], "idempotency-key-reused");
    let operation = first.body["operation"].as_str().unwrap();
    assert_eq!(service.settled(operation)["state"], "done");
    // Another tenant's operations are nobody else's; an operator sees all.
    let path = format!("/v1/operations/{operation}");
    assert_eq!(service.curl(OPERATOR, &[&path]).status, 200);
    let listed = service.curl(OPERATOR, &["/v1/operations?limit=5"]).body;
    assert_eq!(
        listed["operations"].as_array().unwrap().len(),
        1,
        "{listed}"
    );
}

#[test]
fn the_whole_service_is_under_150_lines() {
    let source = include_str!("../../src/main.rs");
    let code = source.lines().map(str::trim_start);
    let code = code
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .count();
    assert!(code < 150, "{code} lines");
}
