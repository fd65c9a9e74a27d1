//! The OpenAPI document that is served: the one that is checked in, and true by schemathesis.

use std::process::Command;

use crate::clients::python;
use crate::running::{BLUE, Place};

#[test]
fn the_document_is_the_one_that_is_checked_in() {
    let place = Place::new();
    let service = place.service();
    let served = service.curl(BLUE, &["/openapi.json"]);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
    if std::env::var_os("UC_UPDATE").is_some() {
        std::fs::write(path, served.text + "\n").unwrap();
        return;
    }
    let checked_in = std::fs::read_to_string(path).unwrap();
    assert_eq!(
        checked_in.trim_end(),
        served.text.trim_end(),
        "UC_UPDATE=1 writes it anew"
    );
}

#[test]
fn generated_requests_are_answered_as_the_document_says() {
    let place = Place::new();
    let service = place.service();
    let schema = format!("http://{}/openapi.json", service.addr);
    let fuzzed = Command::new(python().with_file_name("schemathesis"))
        .args([
            "run",
            &schema,
            "--header",
            &format!("Authorization: Bearer {BLUE}"),
        ])
        .args(["--max-examples", "25", "--seed", "7", "--no-color"])
        .args(["--exclude-path-regex", "/wait$"])
        // Page tokens and ids are texts that mean something, which a schema does not say; and a whole
        // number with a fraction of zero is none here. A widget that was accepted is undone past the quota.
        .args([
            "--exclude-checks",
            "positive_data_acceptance,ensure_resource_availability",
        ])
        .current_dir(place.files())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&fuzzed.stdout).into_owned();
    assert!(
        fuzzed.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&fuzzed.stderr)
    );
}
