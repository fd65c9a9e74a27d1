//! Strangers' clients: boto3, awscli, s3cmd and rclone do a round trip each.
//!
//! `ULTRACLOUD_CLIENTS` names a directory of programs (a venv's `bin`); then every client has to be
//! there or on the PATH. Without it the test runs those that the PATH has, and says which are not.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{ACCESS_KEY, Node, SECRET_KEY, fresh, noise};

/// Larger than the clients' limit for multipart uploads.
const LARGE: usize = 20 << 20;

struct Clients {
    dir: Option<PathBuf>,
}

impl Clients {
    fn of_env() -> Clients {
        Clients {
            dir: std::env::var_os("ULTRACLOUD_CLIENTS").map(PathBuf::from),
        }
    }

    /// The command, if the program works with these arguments.
    fn find(&self, name: &str, probe: &[&str]) -> Option<PathBuf> {
        let named = self.dir.as_ref().map(|dir| dir.join(name));
        let candidates = named.into_iter().chain([PathBuf::from(name)]);
        let mut works = candidates.filter(|program| {
            let mut command = Command::new(program);
            let probe = command
                .args(probe)
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            probe.status().is_ok_and(|status| status.success())
        });
        let found = works.next();
        if found.is_none() {
            assert!(
                self.dir.is_none(),
                "{name} is missing from ULTRACLOUD_CLIENTS"
            );
            eprintln!("{name} is not installed: not shown here");
        }
        found
    }
}

/// Runs a client with the node's address and keys in the ways that clients know.
fn run(program: &Path, node: &Node, home: &Path, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .env("HOME", home)
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        .env("AWS_DEFAULT_REGION", "us-east-1")
        .env("AWS_ENDPOINT_URL", format!("http://{}", node.s3))
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env_remove("AWS_CA_BUNDLE")
        .env_remove("AWS_PROFILE")
        .env("RCLONE_CONFIG_UC_TYPE", "s3")
        .env("RCLONE_CONFIG_UC_PROVIDER", "Other")
        .env("RCLONE_CONFIG_UC_ENV_AUTH", "true")
        .env("RCLONE_CONFIG_UC_ENDPOINT", format!("http://{}", node.s3))
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{} {args:?}: {out}{err}",
        program.display()
    );
    out.into_owned()
}

/// Files to send: empty, small, and one in parts.
fn files(dir: &Path) -> PathBuf {
    let files = dir.join("files");
    std::fs::create_dir_all(files.join("below")).unwrap();
    for (name, size) in [
        ("empty", 0),
        ("small.txt", 1000),
        ("below/mid", 100_000),
        ("large", LARGE),
    ] {
        std::fs::write(files.join(name), noise(size as u64, size)).unwrap();
    }
    files
}

fn assert_same(a: &Path, b: &Path) {
    for name in ["empty", "small.txt", "below/mid", "large"] {
        assert!(
            std::fs::read(a.join(name)).unwrap() == std::fs::read(b.join(name)).unwrap(),
            "{name}"
        );
    }
}

#[test]
fn awscli_copies_a_tree_there_and_back() {
    let Some(aws) = Clients::of_env().find("aws", &["--version"]) else {
        return;
    };
    let (dir, node) = fresh();
    let (home, files) = (dir.path(), files(dir.path()));
    let back = home.join("back");
    let (from, to) = (files.to_str().unwrap(), back.to_str().unwrap());
    run(&aws, &node, home, &["s3", "mb", "s3://awscli"]);
    run(
        &aws,
        &node,
        home,
        &[
            "s3",
            "cp",
            "--recursive",
            "--quiet",
            from,
            "s3://awscli/tree",
        ],
    );
    run(
        &aws,
        &node,
        home,
        &["s3", "cp", "--recursive", "--quiet", "s3://awscli/tree", to],
    );
    assert_same(&files, &back);
    let listed = run(
        &aws,
        &node,
        home,
        &["s3", "ls", "--recursive", "s3://awscli"],
    );
    assert_eq!(listed.lines().count(), 4, "{listed}");
    run(&aws, &node, home, &["s3", "rb", "--force", "s3://awscli"]);
}

#[test]
fn s3cmd_copies_a_tree_there_and_back() {
    let Some(s3cmd) = Clients::of_env().find("s3cmd", &["--version"]) else {
        return;
    };
    let (dir, node) = fresh();
    let (home, files) = (dir.path(), files(dir.path()));
    let config = home.join("s3cfg");
    let host = node.s3;
    let text = format!(
        "[default]\naccess_key = {ACCESS_KEY}\nsecret_key = {SECRET_KEY}\nhost_base = {host}\n\
         host_bucket = {host}\nuse_https = False\nmultipart_chunk_size_mb = 5\n"
    );
    std::fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    let back = home.join("back");
    std::fs::create_dir(&back).unwrap();
    let (from, to) = (
        format!("{}/", files.display()),
        format!("{}/", back.display()),
    );
    run(&s3cmd, &node, home, &["-c", config, "mb", "s3://s3cmd"]);
    run(
        &s3cmd,
        &node,
        home,
        &["-c", config, "sync", &from, "s3://s3cmd/tree/"],
    );
    run(
        &s3cmd,
        &node,
        home,
        &["-c", config, "sync", "s3://s3cmd/tree/", &to],
    );
    assert_same(&files, &back);
    run(
        &s3cmd,
        &node,
        home,
        &["-c", config, "rb", "--recursive", "--force", "s3://s3cmd"],
    );
}

#[test]
fn rclone_syncs_and_checks_a_tree() {
    let Some(rclone) = Clients::of_env().find("rclone", &["version"]) else {
        return;
    };
    let (dir, node) = fresh();
    let (home, files) = (dir.path(), files(dir.path()));
    let back = home.join("back");
    let (from, to) = (files.to_str().unwrap(), back.to_str().unwrap());
    let cutoff = ["--s3-upload-cutoff", "5M"];
    run(&rclone, &node, home, &["mkdir", "uc:rclone"]);
    run(
        &rclone,
        &node,
        home,
        &["sync", from, "uc:rclone/tree", cutoff[0], cutoff[1]],
    );
    run(&rclone, &node, home, &["check", from, "uc:rclone/tree"]);
    run(&rclone, &node, home, &["sync", "uc:rclone/tree", to]);
    assert_same(&files, &back);
    run(&rclone, &node, home, &["purge", "uc:rclone"]);
}

const BOTO3: &str = r#"
import boto3, botocore, os, sys
s3 = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
s3.create_bucket(Bucket="boto3")
body = bytes(range(256)) * 1000
put = s3.put_object(Bucket="boto3", Key="a/b c+d", Body=body, Metadata={"color": "blue"})
got = s3.get_object(Bucket="boto3", Key="a/b c+d")
assert got["Body"].read() == body and got["Metadata"] == {"color": "blue"}
assert got["ETag"] == put["ETag"]
part = s3.get_object(Bucket="boto3", Key="a/b c+d", Range="bytes=10-19")
assert part["Body"].read() == body[10:20]
s3.upload_file(sys.argv[1], "boto3", "large")
s3.download_file("boto3", "large", sys.argv[2])
try:
    s3.put_object(Bucket="boto3", Key="large", Body=b"", IfNoneMatch="*")
    raise SystemExit("the condition did not hold")
except botocore.exceptions.ClientError as error:
    assert error.response["Error"]["Code"] == "PreconditionFailed", error
keys = [o["Key"] for p in s3.get_paginator("list_objects_v2").paginate(Bucket="boto3") for o in p["Contents"]]
assert keys == ["a/b c+d", "large"], keys
s3.delete_objects(Bucket="boto3", Delete={"Objects": [{"Key": k} for k in keys]})
s3.delete_bucket(Bucket="boto3")
"#;

#[test]
fn boto3_does_its_round_trip() {
    let probe = ["-c", "import boto3"];
    let Some(python) = Clients::of_env().find("python3", &probe) else {
        return;
    };
    let (dir, node) = fresh();
    let (home, files) = (dir.path(), files(dir.path()));
    let (large, back) = (files.join("large"), home.join("large.back"));
    let args = ["-c", BOTO3, large.to_str().unwrap(), back.to_str().unwrap()];
    run(&python, &node, home, &args);
    assert!(std::fs::read(&large).unwrap() == std::fs::read(&back).unwrap());
}
