//! Strangers' clients: boto3, awscli, s3cmd and rclone copy and sync trees, upload in parts, sign URLs
//! for others and, where they can, write on conditions.
//!
//! `ULTRACLOUD_CLIENTS` names a directory of programs (a venv's `bin`); then every client has to be
//! there or on the PATH. Without it the test runs those that the PATH has, and says which are not.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::{ACCESS_KEY, Node, SECRET_KEY, connect, fresh, noise, read_response};

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

/// A client that is told the node's address and keys in every way that clients know.
struct Program<'a> {
    path: PathBuf,
    node: &'a Node,
    home: &'a Path,
}

impl Program<'_> {
    /// Runs it; what it printed.
    #[track_caller]
    fn run(&self, args: &[&str]) -> String {
        let output = self.output(args);
        let said = said(&output);
        let name = self.path.display();
        assert!(output.status.success(), "{name} {args:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it where it must fail; what it said.
    #[track_caller]
    fn fails(&self, args: &[&str]) -> String {
        let output = self.output(args);
        let said = said(&output);
        assert!(!output.status.success(), "{args:?}: {said}");
        said
    }

    fn output(&self, args: &[&str]) -> Output {
        let endpoint = format!("http://{}", self.node.s3);
        Command::new(&self.path)
            .args(args)
            .env("HOME", self.home)
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .env("AWS_ENDPOINT_URL", &endpoint)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env_remove("AWS_CA_BUNDLE")
            .env_remove("AWS_PROFILE")
            .env("RCLONE_CONFIG_UC_TYPE", "s3")
            .env("RCLONE_CONFIG_UC_PROVIDER", "Other")
            .env("RCLONE_CONFIG_UC_ENV_AUTH", "true")
            .env("RCLONE_CONFIG_UC_ENDPOINT", &endpoint)
            .output()
            .unwrap()
    }
}

fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
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

/// Fetches a presigned URL as a browser would.
fn fetch(node: &Node, url: &str) -> Vec<u8> {
    let target = url.trim().split_once(&node.s3.to_string()).unwrap().1;
    let mut stream = connect(node.s3);
    let host = node.s3;
    write!(stream, "GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
    read_response(&mut stream, false).unwrap().expect(200).body
}

#[test]
fn awscli_syncs_signs_and_writes_on_conditions() {
    let Some(path) = Clients::of_env().find("aws", &["--version"]) else {
        return;
    };
    let (dir, node) = fresh();
    let (home, node, files) = (dir.path(), &node, files(dir.path()));
    let aws = Program { path, node, home };
    let back = home.join("back");
    let (from, to) = (files.to_str().unwrap(), back.to_str().unwrap());
    aws.run(&["s3", "mb", "s3://awscli"]);
    let sync = ["s3", "sync", "--no-progress", from, "s3://awscli/tree"];
    assert_eq!(aws.run(&sync).matches("upload:").count(), 4);
    assert_eq!(aws.run(&sync), "", "everything is there");
    aws.run(&["s3", "sync", "--quiet", "s3://awscli/tree", to]);
    assert_same(&files, &back);
    let copy = ["s3://awscli/tree/large", "s3://awscli/copy"];
    aws.run(&[&["s3", "cp", "--quiet"], &copy[..]].concat());
    let copied = node.client().get("/awscli/copy").expect(200);
    assert!(copied.body == noise(LARGE as u64, LARGE));
    let url = aws.run(&["s3", "presign", "s3://awscli/tree/small.txt"]);
    assert!(fetch(node, &url) == noise(1000, 1000));
    let once = ["s3api", "put-object", "--bucket", "awscli", "--key", "once"];
    let once = [&once[..], &["--if-none-match", "*"]].concat();
    aws.run(&once);
    let said = aws.fails(&once);
    assert!(said.contains("PreconditionFailed"), "{said}");
    aws.run(&["s3", "rb", "--force", "s3://awscli"]);
}

#[test]
fn s3cmd_syncs_in_parts_and_signs() {
    let Some(path) = Clients::of_env().find("s3cmd", &["--version"]) else {
        return;
    };
    let (dir, node) = fresh();
    let (home, node, files) = (dir.path(), &node, files(dir.path()));
    let s3cmd = Program { path, node, home };
    let host = node.s3;
    // It reads its configuration from the home directory.
    let text = format!(
        "[default]\naccess_key = {ACCESS_KEY}\nsecret_key = {SECRET_KEY}\nhost_base = {host}\n\
         host_bucket = {host}\nuse_https = False\nmultipart_chunk_size_mb = 5\n"
    );
    std::fs::write(home.join(".s3cfg"), text).unwrap();
    let back = home.join("back");
    std::fs::create_dir(&back).unwrap();
    let (from, to) = (
        format!("{}/", files.display()),
        format!("{}/", back.display()),
    );
    s3cmd.run(&["mb", "s3://s3cmd"]);
    let sync = ["sync", "--no-progress", &from, "s3://s3cmd/tree/"];
    s3cmd.run(&sync);
    let large = node.client().head("/s3cmd/tree/large").expect(200);
    assert!(large.header("etag").unwrap().ends_with("-4\""), "{large:?}");
    let again = s3cmd.run(&sync);
    assert!(!again.contains("upload:"), "{again}");
    s3cmd.run(&["sync", "s3://s3cmd/tree/", &to]);
    assert_same(&files, &back);
    s3cmd.run(&["cp", "s3://s3cmd/tree/large", "s3://s3cmd/copy"]);
    let large = home.join("large.back");
    s3cmd.run(&["get", "s3://s3cmd/copy", large.to_str().unwrap()]);
    assert!(std::fs::read(large).unwrap() == noise(LARGE as u64, LARGE));
    let url = s3cmd.run(&["signurl", "s3://s3cmd/tree/small.txt", "+60"]);
    assert!(fetch(node, &url) == noise(1000, 1000));
    s3cmd.run(&["rb", "--recursive", "--force", "s3://s3cmd"]);
}

#[test]
fn rclone_syncs_checks_links_and_moves_a_tree() {
    let Some(path) = Clients::of_env().find("rclone", &["version"]) else {
        return;
    };
    let (dir, node) = fresh();
    let (home, node, files) = (dir.path(), &node, files(dir.path()));
    let rclone = Program { path, node, home };
    let back = home.join("back");
    let (from, to) = (files.to_str().unwrap(), back.to_str().unwrap());
    rclone.run(&["mkdir", "uc:rclone"]);
    let in_parts = ["--s3-upload-cutoff", "5M", "--s3-chunk-size", "5M"];
    rclone.run(&[&["sync", from, "uc:rclone/tree"], &in_parts[..]].concat());
    rclone.run(&["check", "--download", from, "uc:rclone/tree"]);
    rclone.run(&["sync", "uc:rclone/tree", to]);
    assert_same(&files, &back);
    let url = rclone.run(&["link", "uc:rclone/tree/small.txt"]);
    assert!(fetch(node, &url) == noise(1000, 1000));
    rclone.run(&["move", "uc:rclone/tree", "uc:rclone/moved"]);
    rclone.run(&["check", from, "uc:rclone/moved"]);
    std::fs::remove_file(files.join("large")).unwrap();
    rclone.run(&["sync", from, "uc:rclone/moved"]);
    let listed = rclone.run(&["lsf", "--recursive", "--files-only", "uc:rclone"]);
    assert_eq!(listed.lines().count(), 3, "{listed}");
    rclone.run(&["purge", "uc:rclone"]);
}

const BOTO3: &str = r#"
import boto3, botocore, os, sys, urllib.request
from botocore.config import Config
s3 = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
def refused(code, call, **args):
    try:
        call(Bucket="boto3", **args)
    except botocore.exceptions.ClientError as error:
        assert error.response["Error"]["Code"] == code, error
    else:
        raise SystemExit(f"{code} was expected")
s3.create_bucket(Bucket="boto3")
body = bytes(range(256)) * 1000
put = s3.put_object(Bucket="boto3", Key="a/b c+d", Body=body, Metadata={"color": "blue"})
got = s3.get_object(Bucket="boto3", Key="a/b c+d")
assert got["Body"].read() == body and got["Metadata"] == {"color": "blue"}
assert got["ETag"] == put["ETag"] and got["ChecksumCRC32"] == put["ChecksumCRC32"]
part = s3.get_object(Bucket="boto3", Key="a/b c+d", Range="bytes=10-19")
assert part["Body"].read() == body[10:20]
s3.upload_file(sys.argv[1], "boto3", "large")
s3.copy({"Bucket": "boto3", "Key": "large"}, "boto3", "copied")
s3.download_file("boto3", "copied", sys.argv[2])
refused("PreconditionFailed", s3.put_object, Key="large", Body=b"", IfNoneMatch="*")
refused("PreconditionFailed", s3.put_object, Key="large", Body=b"", IfMatch=put["ETag"])
refused("NoSuchKey", s3.put_object, Key="none", Body=b"", IfMatch=put["ETag"])
refused("304", s3.get_object, Key="a/b c+d", IfNoneMatch=put["ETag"])
s3.put_object(Bucket="boto3", Key="a/b c+d", Body=b"two", IfMatch=put["ETag"])
upload = s3.create_multipart_upload(Bucket="boto3", Key="large", ChecksumAlgorithm="SHA256")["UploadId"]
first = s3.upload_part(Bucket="boto3", Key="large", UploadId=upload, PartNumber=1, Body=body, ChecksumAlgorithm="SHA256")
parts = {"Parts": [{"PartNumber": 1, "ETag": first["ETag"], "ChecksumSHA256": first["ChecksumSHA256"]}]}
refused("PreconditionFailed", s3.complete_multipart_upload, Key="large", UploadId=upload, MultipartUpload=parts, IfNoneMatch="*")
done = s3.complete_multipart_upload(Bucket="boto3", Key="large", UploadId=upload, MultipartUpload=parts)
assert done["ChecksumSHA256"].endswith("-1"), done
for version in ["s3", "s3v4"]:
    signer = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], config=Config(signature_version=version))
    where = {"Bucket": "boto3", "Key": "signed ü"}
    url = signer.generate_presigned_url("put_object", Params=where)
    urllib.request.urlopen(urllib.request.Request(url, data=b"signed", method="PUT", headers={"Content-Type": ""}))
    url = signer.generate_presigned_url("get_object", Params=where)
    assert urllib.request.urlopen(url).read() == b"signed"
pages = s3.get_paginator("list_objects_v2").paginate(Bucket="boto3", PaginationConfig={"PageSize": 2})
keys = [o["Key"] for p in pages for o in p["Contents"]]
assert keys == ["a/b c+d", "copied", "large", "signed ü"], keys
s3.delete_objects(Bucket="boto3", Delete={"Objects": [{"Key": k} for k in keys]})
s3.delete_bucket(Bucket="boto3")
"#;

#[test]
fn boto3_uploads_copies_signs_and_writes_on_conditions() {
    let probe = ["-c", "import boto3"];
    let Some(path) = Clients::of_env().find("python3", &probe) else {
        return;
    };
    let (dir, node) = fresh();
    let (home, node, files) = (dir.path(), &node, files(dir.path()));
    let (large, back) = (files.join("large"), home.join("large.back"));
    let args = ["-c", BOTO3, large.to_str().unwrap(), back.to_str().unwrap()];
    Program { path, node, home }.run(&args);
    assert!(std::fs::read(&large).unwrap() == std::fs::read(&back).unwrap());
}
