//! Volumes that are made from objects. Contract CO-1.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::api::{ANN, BOB, body, error, rest, start};
use crate::support::{Client, Node, command, noise};

const ROLES: &str = "roles = [\"lightningstor\", \"coronafs\"]\n";
/// No multiple of a block, and several chunks.
const IMAGE_BYTES: usize = (5 << 20) + 1234;

fn create(node: &Node, request: &Value) -> Value {
    let answer = rest(node, ANN, "POST", "/v1/volumes", &request.to_string());
    assert!(answer.status < 300, "{}", answer.text());
    body(&answer)
}

fn image_of(node: &Node, name: &str) -> Value {
    let answer = rest(node, ANN, "GET", &format!("/v1/volumes/{name}"), "");
    body(&answer)["image"].clone()
}

/// Asks until the volume needs its image no more, or has failed.
fn settled(node: &Node, name: &str) -> Value {
    for _ in 0..100_000 {
        let image = image_of(node, name);
        if image["phase"] != "filling" {
            return image;
        }
    }
    panic!("{name} is still being filled: {}", image_of(node, name));
}

/// What a volume holds, read by a client of others'.
fn content(node: &Node, name: &str, file: &Path) -> Vec<u8> {
    let path = format!("/v1/volumes/{name}/attachments");
    let request = json!({ "kind": "nbd", "access": "read-only" }).to_string();
    let answer = rest(node, ANN, "POST", &path, &request);
    assert!(answer.status < 300, "{}", answer.text());
    let attachment = body(&answer);
    let uri = attachment["uri"].as_str().unwrap();
    let copied = Command::new("nbdcopy").arg(uri).arg(file).status();
    assert!(copied.unwrap().success());
    let path = format!("{path}/{}", attachment["id"]);
    assert_eq!(rest(node, ANN, "DELETE", &path, "").status, 200);
    std::fs::read(file).unwrap()
}

#[test]
fn a_volume_holds_what_an_object_does_also_after_a_kill() {
    let (dir, node) = start(ROLES);
    let image = noise(7, IMAGE_BYTES);
    let mut ann = Client::new(node.s3, "ANNKEY", "ann's secret");
    ann.put("/images", b"").expect(200);
    ann.put("/images/disk.raw", &image).expect(200);
    let digest = hex::encode(Sha256::digest(&image));
    let request = json!({
        "name": "disk",
        "from_image": "images/disk.raw",
        "image_sha256": digest,
        "checksums": true,
    });
    let made = create(&node, &request);
    let bytes = IMAGE_BYTES.next_multiple_of(4096);
    assert_eq!(made["bytes"], bytes);
    assert_eq!(made["image"]["total_bytes"], IMAGE_BYTES);

    node.kill();
    let mut command = command(&dir.path().join("data"));
    let node = Node::from_command(command.arg("--config").arg(dir.path().join("node.toml")));
    let flatten = rest(&node, ANN, "POST", "/v1/volumes/disk/flatten", "{}");
    assert_eq!(flatten.status, 200, "{}", flatten.text());
    let read = content(&node, "disk", &dir.path().join("read"));
    assert!(read[..IMAGE_BYTES] == image && read[IMAGE_BYTES..].iter().all(|byte| *byte == 0));
    let settled = settled(&node, "disk");
    assert_eq!(
        (&settled["phase"], &settled["verified"]),
        (&json!("filled"), &json!(true))
    );

    let scrubbed = rest(&node, ANN, "POST", "/v1/volumes/disk/scrub", "{}");
    assert_eq!(scrubbed.status, 200, "{}", scrubbed.text());
    let scrubbed = body(&scrubbed);
    assert_eq!(scrubbed["errors"], 0, "{scrubbed}");
    assert_eq!(scrubbed["bytes"], bytes, "{scrubbed}");

    // It needs the object no more.
    let mut ann = Client::new(node.s3, "ANNKEY", "ann's secret");
    ann.delete("/images/disk.raw").expect(204);
    assert!(content(&node, "disk", &dir.path().join("read")) == read);
    let path = "/v1/volumes/disk/snapshots";
    assert_eq!(
        rest(&node, ANN, "POST", path, r#"{"name":"s"}"#).status,
        201
    );
    node.drain();
}

#[test]
fn an_object_that_is_not_the_image_is_not_served() {
    let (_dir, node) = start(ROLES);
    let mut ann = Client::new(node.s3, "ANNKEY", "ann's secret");
    ann.put("/images", b"").expect(200);
    ann.put("/images/disk.raw", &noise(8, IMAGE_BYTES))
        .expect(200);
    let wrong = "00".repeat(32);
    let request =
        json!({ "name": "wrong", "from_image": "images/disk.raw", "image_sha256": wrong });
    create(&node, &request);
    assert_eq!(settled(&node, "wrong")["phase"], "failed");
    assert_ne!(image_of(&node, "wrong")["error"], "");
    assert_eq!(
        rest(&node, ANN, "DELETE", "/v1/volumes/wrong", "").status,
        200
    );

    let refused = |token: &str, request: Value| {
        let answer = rest(&node, token, "POST", "/v1/volumes", &request.to_string());
        let (status, code, _) = error(&answer);
        (status, code)
    };
    for (token, request, status, code) in [
        (
            ANN,
            json!({"name":"b","from_image":"images/none"}),
            404,
            "no-such-image",
        ),
        (
            ANN,
            json!({"name":"b","from_image":"none/none"}),
            404,
            "no-such-bucket",
        ),
        (
            ANN,
            json!({"name":"b","from_image":"images"}),
            400,
            "invalid-image",
        ),
        (
            ANN,
            json!({"name":"b","image_sha256":wrong,"bytes":4096}),
            400,
            "invalid-request",
        ),
        (
            ANN,
            json!({"name":"b","from_image":"images/disk.raw","image_sha256":"12"}),
            400,
            "invalid-request",
        ),
        (
            ANN,
            json!({"name":"b","from_image":"images/disk.raw","bytes":4096}),
            400,
            "invalid-volume",
        ),
        (
            ANN,
            json!({"name":"b","from_image":"images/disk.raw","from_volume":"a"}),
            400,
            "invalid-request",
        ),
        (
            BOB,
            json!({"name":"b","from_image":"images/disk.raw"}),
            403,
            "access-denied",
        ),
    ] {
        let shown = request.to_string();
        assert_eq!(
            refused(token, request),
            (status, code.to_owned()),
            "{shown}"
        );
    }
    node.drain();
}
