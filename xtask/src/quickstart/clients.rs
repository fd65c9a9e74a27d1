//! The steps that strangers' clients take, and what each must show.
//!
//! A client sees nothing of this machine's own settings: its environment is empty but for what the
//! quickstart gives it, and its home is the scratch directory.

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::input::{self, Input};
use super::node::{Ports, RootKeys};
use super::place::Place;
use super::show::Show;
use crate::process::{self, Running};
use crate::setup;

/// The bucket of the tree that awscli puts.
pub const TREE: &str = "tree";
const IMAGES: &str = "images";
const COPY: &str = "rclone-copy";
const PARTS: &str = "s3cmd-parts";
const LARGE: Target = Target {
    bucket: "large",
    key: "one gibibyte.bin",
};
const CHURN: Target = Target {
    bucket: "churn",
    key: "small",
};
/// So many puts are acknowledged before the node is killed.
const ACKNOWLEDGED_MIN: usize = 500;
const PARTS_BYTES: usize = 30_000_000;
const REGION: &str = "us-east-1";
/// For one call of one client, on a slow machine.
const CALL_DEADLINE: Duration = Duration::from_mins(15);
const BOTO: &str = include_str!("boto.py");

/// What a call of the boto3 script works on.
#[derive(Clone, Copy)]
struct Target {
    bucket: &'static str,
    key: &'static str,
}

/// The clients, with what they need to reach the node.
pub struct Toolbox {
    bin: PathBuf,
    scratch: PathBuf,
    environment: Vec<(&'static str, String)>,
    s3cmd_config: PathBuf,
    bucket_suffix: String,
    aws: String,
    boto3: String,
    rclone: String,
    s3cmd: String,
}

impl Toolbox {
    /// Writes the clients' settings into scratch.
    pub fn new(
        tools: &setup::Clients,
        place: &Place,
        ports: Ports,
        keys: &RootKeys,
    ) -> Result<Self> {
        let scratch = place.scratch().to_owned();
        let s3cmd_config = scratch.join("s3cmd.cfg");
        write_private(
            &s3cmd_config,
            &s3cmd_settings(&ports.s3().to_string(), keys),
        )?;
        let named = |tool: &str| format!("{tool} {}", tools.version(tool));
        Ok(Self {
            bin: tools.bin(),
            environment: environment(&format!("http://{}", ports.s3()), keys, &scratch),
            s3cmd_config,
            bucket_suffix: place.bucket_suffix().to_owned(),
            aws: named("awscli"),
            boto3: named("boto3"),
            rclone: named("rclone"),
            s3cmd: named("s3cmd"),
            scratch,
        })
    }

    /// The name that a bucket has in this run.
    pub fn bucket(&self, name: &str) -> String {
        format!("{name}{}", self.bucket_suffix)
    }

    /// boto3 and its version.
    pub fn boto3(&self) -> &str {
        &self.boto3
    }

    /// Where awscli is.
    pub fn aws_path(&self) -> String {
        self.bin.join("aws").display().to_string()
    }

    fn command(&self, program: PathBuf, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn run(&self, program: PathBuf, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(program, arguments);
        process::bounded(
            &mut command,
            &self.scratch.join("client.log"),
            CALL_DEADLINE,
        )
    }

    fn aws(&self, arguments: &[&str]) -> Result<String> {
        self.run(self.bin.join("aws"), arguments)
    }

    /// Puts a file into a bucket of its own, and says where it is: `BUCKET/KEY`.
    pub fn put_image(&self, file: &Path) -> Result<String> {
        let bucket = self.bucket(IMAGES);
        self.aws(&["s3", "mb", &format!("s3://{bucket}")])?;
        let name = file.file_name().and_then(|name| name.to_str());
        let image = format!("{bucket}/{}", name.context("an image has a name")?);
        self.aws(&["s3", "cp", text(file)?, &format!("s3://{image}")])?;
        Ok(image)
    }

    fn rclone(&self, arguments: &[&str]) -> Result<String> {
        self.run("rclone".into(), arguments)
    }

    fn s3cmd(&self, arguments: &[&str]) -> Result<String> {
        let config = text(&self.s3cmd_config)?;
        let settings = ["-c", config, "--no-progress"];
        self.run(self.bin.join("s3cmd"), &[&settings, arguments].concat())
    }

    fn boto_command(&self, verb: &str, target: Target, file: &Path) -> Result<Command> {
        let script = self.scratch.join("boto.py");
        std::fs::write(&script, BOTO)?;
        let bucket = self.bucket(target.bucket);
        let options = [
            "--bucket",
            &bucket,
            "--key",
            target.key,
            "--file",
            text(file)?,
        ];
        let arguments = [&[text(&script)?, verb], options.as_slice()].concat();
        Ok(self.command(self.bin.join("python"), &arguments))
    }

    /// Runs the boto3 script; gives the JSON object that it closes with.
    fn boto(&self, verb: &str, target: Target, file: &Path) -> Result<serde_json::Value> {
        let mut command = self.boto_command(verb, target, file)?;
        let said = process::bounded(
            &mut command,
            &self.scratch.join("client.log"),
            CALL_DEADLINE,
        )?;
        let last = said.lines().rev().find(|line| line.starts_with('{'));
        let last = last.with_context(|| format!("boto.py printed no result: {said}"))?;
        serde_json::from_str(last).context("boto.py's result is not JSON")
    }

    /// Where churn writes what was acknowledged.
    fn acknowledged(&self) -> PathBuf {
        self.scratch.join("acknowledged")
    }
}

/// Puts everything, with four clients, and checks what each can see.
pub fn drive(toolbox: &Toolbox, input: &Input, show: &mut Show) -> Result<()> {
    let files = input.sums.len();
    show.step(
        "a tree of real files is put and listed",
        &toolbox.aws,
        || {
            put_tree(toolbox, input)?;
            Ok((
                (),
                format!("{files} files, {:.1} MB", input.bytes as f64 / 1e6),
            ))
        },
    )?;
    show.step(
        "a copy of the tree is compared byte for byte",
        &toolbox.rclone,
        || {
            copy_tree(toolbox, input)?;
            Ok(((), format!("{files} files equal")))
        },
    )?;
    show.step("30 MB in parts of 5 MB go round", &toolbox.s3cmd, || {
        let parts = round_trip(toolbox)?;
        Ok(((), format!("{parts} bytes equal")))
    })?;
    let what = "1 GiB in parts; conditional, ranged, presigned GET";
    show.step(what, &toolbox.boto3, || {
        let said = toolbox.boto("put", LARGE, &input.large)?;
        Ok((
            (),
            format!("{} bytes in {} parts", said["bytes"], said["parts"]),
        ))
    })
}

/// Runs `kill` while eight connections put small objects; gives how many had been acknowledged.
pub fn interrupt(toolbox: &Toolbox, kill: impl FnOnce() -> Result<()>) -> Result<usize> {
    let path = toolbox.acknowledged();
    let mut command = toolbox.boto_command("churn", CHURN, &path)?;
    let mut churn = Running::start(&mut command, &toolbox.scratch.join("churn.log"))?;
    let count = || {
        std::fs::read_to_string(&path)
            .unwrap_or_default()
            .lines()
            .count()
    };
    let enough = process::until(CALL_DEADLINE, || {
        let ready = count() >= ACKNOWLEDGED_MIN;
        Ok((ready || !churn.is_running()?).then_some(ready))
    })?;
    if enough == Some(true) {
        kill()?;
    }
    churn.finish(CALL_DEADLINE)?;
    ensure!(
        enough == Some(true),
        "only {} puts were acknowledged",
        count()
    );
    Ok(count())
}

/// Reads everything back and compares it with the digests taken before it was put.
pub fn read_back(toolbox: &Toolbox, input: &Input, show: &mut Show) -> Result<()> {
    show.step(
        "what was acknowledged before the kill is there",
        &toolbox.boto3,
        || {
            let said = toolbox.boto("check", CHURN, &toolbox.acknowledged())?;
            let (safe, under_way) = (&said["acknowledged"], &said["under_way"]);
            Ok((
                (),
                format!("{safe} objects whole, {under_way} more were under way"),
            ))
        },
    )?;
    show.step("after the crash the tree is whole", &toolbox.aws, || {
        let back = toolbox.scratch.join("back");
        let bucket = format!("s3://{}/", toolbox.bucket(TREE));
        toolbox.aws(&["s3", "sync", "--only-show-errors", &bucket, text(&back)?])?;
        let difference = input::difference(&input.sums, &input::sums(&back)?);
        ensure!(difference.is_none(), "{}", difference.unwrap_or_default());
        Ok(((), format!("{} SHA-256 equal", input.sums.len())))
    })?;
    show.step(
        "after the crash the 1 GiB object is whole",
        &toolbox.boto3,
        || {
            let said = toolbox.boto("get", LARGE, &toolbox.scratch.join("large.back"))?;
            let (put, got) = (
                input::hex(&input.large_sum),
                said["sha256"].as_str().unwrap_or("none"),
            );
            ensure!(put == got, "SHA-256 was {put} and came back as {got}");
            Ok(((), format!("SHA-256 {}... equal", &put[..12])))
        },
    )
}

fn put_tree(toolbox: &Toolbox, input: &Input) -> Result<()> {
    let bucket = format!("s3://{}", toolbox.bucket(TREE));
    toolbox.aws(&["s3", "mb", &bucket])?;
    toolbox.aws(&[
        "s3",
        "sync",
        "--only-show-errors",
        text(&input.tree)?,
        &bucket,
    ])?;
    let listing = toolbox.aws(&["s3", "ls", "--recursive", "--summarize", &bucket])?;
    let total = |name: &str| -> Result<u64> {
        let line = listing
            .lines()
            .find_map(|line| line.trim().strip_prefix(name));
        let count = line.and_then(|count| count.trim().parse().ok());
        count.with_context(|| format!("`aws s3 ls --summarize` has no {name}"))
    };
    let (objects, bytes) = (total("Total Objects:")?, total("Total Size:")?);
    ensure!(
        (objects, bytes) == (input.sums.len() as u64, input.bytes),
        "{} files of {} bytes were put, {objects} of {bytes} bytes are listed",
        input.sums.len(),
        input.bytes
    );
    Ok(())
}

fn copy_tree(toolbox: &Toolbox, input: &Input) -> Result<()> {
    let bucket = format!("node:{}", toolbox.bucket(COPY));
    let tree = text(&input.tree)?;
    toolbox.rclone(&["mkdir", &bucket])?;
    toolbox.rclone(&["copy", "--transfers=8", tree, &bucket])?;
    let said = toolbox.rclone(&["check", "--download", tree, &bucket])?;
    let matching = format!("{} matching files", input.sums.len());
    ensure!(
        said.contains(&matching),
        "`rclone check` does not say {matching}:\n{said}"
    );
    Ok(())
}

fn round_trip(toolbox: &Toolbox) -> Result<usize> {
    let (out, back) = (
        toolbox.scratch.join("parts.bin"),
        toolbox.scratch.join("parts.back"),
    );
    let put = input::write_random(&out, PARTS_BYTES, 7)?;
    let bucket = format!("s3://{}", toolbox.bucket(PARTS));
    let object = format!("{bucket}/in parts.bin");
    toolbox.s3cmd(&["mb", &bucket])?;
    toolbox.s3cmd(&["put", "--multipart-chunk-size-mb=5", text(&out)?, &object])?;
    let listing = toolbox.s3cmd(&["ls", &bucket])?;
    ensure!(
        listing.contains(&object),
        "`s3cmd ls` does not list {object}:\n{listing}"
    );
    toolbox.s3cmd(&["get", "--force", &object, text(&back)?])?;
    ensure!(
        input::sum(&back)? == put,
        "{object} did not come back as it was put"
    );
    Ok(PARTS_BYTES)
}

fn environment(endpoint: &str, keys: &RootKeys, scratch: &Path) -> Vec<(&'static str, String)> {
    let scratch_text = scratch.display().to_string();
    let rclone_config = scratch.join("rclone.conf").display().to_string();
    vec![
        ("HOME", scratch_text.clone()),
        ("TMPDIR", scratch_text),
        // File names are UTF-8 whatever the machine's locale is.
        ("LC_ALL", "C.UTF-8".into()),
        ("PYTHONUTF8", "1".into()),
        ("AWS_ACCESS_KEY_ID", keys.access_key.clone()),
        ("AWS_SECRET_ACCESS_KEY", keys.secret_key.clone()),
        ("AWS_DEFAULT_REGION", REGION.into()),
        ("AWS_ENDPOINT_URL", endpoint.into()),
        ("AWS_EC2_METADATA_DISABLED", "true".into()),
        ("AWS_PAGER", String::new()),
        ("RCLONE_CONFIG", rclone_config),
        ("RCLONE_CONFIG_NODE_TYPE", "s3".into()),
        ("RCLONE_CONFIG_NODE_PROVIDER", "Other".into()),
        ("RCLONE_CONFIG_NODE_ENV_AUTH", "true".into()),
        ("RCLONE_CONFIG_NODE_ENDPOINT", endpoint.into()),
        ("RCLONE_CONFIG_NODE_REGION", REGION.into()),
    ]
}

/// `host_bucket` without a bucket in it makes s3cmd use paths instead of host names.
fn s3cmd_settings(host: &str, keys: &RootKeys) -> String {
    let RootKeys {
        access_key,
        secret_key,
    } = keys;
    format!(
        "[default]\naccess_key = {access_key}\nsecret_key = {secret_key}\nhost_base = {host}\n\
         host_bucket = {host}\nbucket_location = {REGION}\nuse_https = False\n"
    )
}

/// Writes a file that only its owner can read.
fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    let mut options = std::fs::File::options();
    let mut file = options
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
