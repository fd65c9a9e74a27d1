//! Namespaces in which a test is alone: a bridge, a host for each member behind it, and filters that
//! lose packets.
//!
//! The test runs itself again inside namespaces for networks, mounts and processes. When it ends, however
//! it does, the kernel ends what ran in there and removes interfaces, filters and mounts: no name is
//! taken outside, and nothing is left.

use std::any::type_name;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Names the test's directory to the run inside.
const INSIDE: &str = "ULTRACLOUD_FAULTS_DIR";
/// Written by the run inside when the story has been told to its end.
const TOLD: &str = "told";
const NAMESPACES: [&str; 8] = [
    "--net",
    "--mount",
    "--propagation",
    "private",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
];
const AS_ROOT: &[&str] = &[];
const AS_USER: &[&str] = &["--user", "--map-root-user"];

/// Drops what goes from one host to another, for the pairs that it holds.
const FILTER: &str = "table bridge cut {
    set pairs { type ipv4_addr . ipv4_addr; }
    chain forward {
        type filter hook forward priority 0;
        ip saddr . ip daddr @pairs drop;
    }
}";

/// Tells the story of `test`, the test function itself, in namespaces of its own.
pub fn isolated<T>(test: T, story: impl FnOnce(&Network)) {
    drop(test);
    if let Some(dir) = std::env::var_os(INSIDE) {
        let network = Network::make(dir.into());
        story(&network);
        fs::write(network.dir.join(TOLD), "").unwrap();
        return;
    }
    let path = type_name::<T>();
    let (_, name) = path.split_once("::").expect("a test is in a crate");
    let dir = tempfile::tempdir().unwrap();
    let search = std::env::var("PATH").unwrap_or_default();
    let status = unshare(user())
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(INSIDE, dir.path())
        // Not every user finds the tools of networks.
        .env("PATH", format!("{search}:/usr/sbin:/sbin"))
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "inside its namespaces: {status}");
    assert!(
        dir.path().join(TOLD).exists(),
        "no test inside is called {name}"
    );
}

fn unshare(user: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--", "unshare"])
        .args(user)
        .args(NAMESPACES);
    command
}

/// How namespaces can be had here.
fn user() -> &'static [&'static str] {
    let allowed = |user: &&&[&str]| {
        let tried = unshare(user).arg("true").stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    };
    [AS_ROOT, AS_USER].iter().find(allowed).expect(
        "these tests need namespaces for networks, mounts and processes: run them as root, or where \
         users may make namespaces (sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces)",
    )
}

/// Runs a tool that must succeed.
#[track_caller]
pub fn tool(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| {
        panic!("{program}: {error}; `cargo xtask setup` installs it");
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
}

/// The test's network: a host for each member, and one for the test.
pub struct Network {
    dir: PathBuf,
}

#[expect(
    clippy::unused_self,
    reason = "the network is the process's own; only who has made it may change it"
)]
impl Network {
    fn make(dir: PathBuf) -> Network {
        // Named namespaces are kept in /run/netns: in one that only this test sees.
        tool("mount", &["-t", "tmpfs", "none", "/run"]);
        fs::create_dir("/run/netns").unwrap();
        tool("ip", &["link", "set", "lo", "up"]);
        tool("ip", &["link", "add", "hub", "type", "bridge"]);
        tool("ip", &["address", "add", "10.0.0.254/24", "dev", "hub"]);
        tool("ip", &["link", "set", "hub", "up"]);
        let mut nft = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("nft is there after `cargo xtask setup`");
        let mut rules = nft.stdin.take().unwrap();
        rules.write_all(FILTER.as_bytes()).unwrap();
        drop(rules);
        assert!(nft.wait().unwrap().success(), "nft takes the filter");
        Network { dir }
    }

    /// A directory of the test.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the host of a member; its address is [`host`].
    pub fn add(&self, member: u16) {
        let (space, outside) = (format!("m{member}"), format!("v{member}"));
        tool("ip", &["netns", "add", &space]);
        let pair = [
            "link", "add", &outside, "type", "veth", "peer", "name", "eth0",
        ];
        tool("ip", &[&pair[..], &["netns", &space]].concat());
        tool("ip", &["link", "set", &outside, "master", "hub", "up"]);
        let address = format!("{}/24", host(member));
        tool(
            "ip",
            &["-n", &space, "address", "add", &address, "dev", "eth0"],
        );
        tool("ip", &["-n", &space, "link", "set", "lo", "up"]);
        tool("ip", &["-n", &space, "link", "set", "eth0", "up"]);
    }

    /// Loses everything that goes from one member to another, without a word to either.
    pub fn cut(&self, from: u16, to: u16) {
        let pair = format!("{{ {} . {} }}", host(from), host(to));
        tool("nft", &["add", "element", "bridge", "cut", "pairs", &pair]);
    }

    /// Loses nothing any more.
    pub fn heal(&self) {
        tool("nft", &["flush", "set", "bridge", "cut", "pairs"]);
    }
}

/// The address of a member's host.
pub fn host(member: u16) -> String {
    format!("10.0.0.{member}")
}

/// What starts a program on a member's host.
pub fn enter(member: u16) -> Vec<String> {
    vec![
        "nsenter".into(),
        format!("--net=/run/netns/m{member}"),
        "--".into(),
    ]
}
