//! The Debian packages: each with the reason that it is here, skipped when what it brings runs.
//!
//! The package lists are fetched only when something is missing. No service is left running by
//! an installation made here.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{Report, Scope, State, version_in};
use crate::process;

/// One thing that a package brings.
struct Tool {
    name: &'static str,
    why: &'static str,
    packages: &'static [&'static str],
    /// A command that shows the tool to be there, and its version.
    probe: &'static [&'static str],
    /// Whether the probe must exit with 0; some tools do not when asked for their version.
    strict: bool,
    scope: Scope,
}

const PYTHON_PROBE: &str =
    "import ensurepip, ssl, venv, sys; print('Python', sys.version.split()[0])";

/// Debian keeps each version in a directory of its own.
const POSTGRES_PROBE: &str =
    "exec \"$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)\"/postgres --version";

const TOOLS: &[Tool] = &[
    Tool {
        name: "cc",
        why: "links Rust programs and builds the C of mimalloc",
        packages: &["gcc", "libc6-dev"],
        probe: &["cc", "--version"],
        strict: true,
        scope: Scope::Clients,
    },
    Tool {
        name: "c++",
        why: "builds libFuzzer for the fuzz targets",
        packages: &["g++"],
        probe: &["c++", "--version"],
        strict: true,
        scope: Scope::Clients,
    },
    Tool {
        name: "git",
        why: "tells tidy and quickstart which files are the tree",
        packages: &["git"],
        probe: &["git", "--version"],
        strict: true,
        scope: Scope::Clients,
    },
    Tool {
        name: "curl",
        why: "asks the admin endpoint by hand",
        packages: &["curl", "ca-certificates"],
        probe: &["curl", "--version"],
        strict: true,
        scope: Scope::Clients,
    },
    Tool {
        name: "rclone",
        why: "an S3 client written in Go",
        packages: &["rclone"],
        probe: &["rclone", "--version"],
        strict: true,
        scope: Scope::Clients,
    },
    Tool {
        name: "python3",
        why: "runs boto3, awscli and s3cmd in a venv",
        packages: &["python3", "python3-venv", "python3-pip"],
        probe: &["python3", "-c", PYTHON_PROBE],
        strict: true,
        scope: Scope::Clients,
    },
    Tool {
        name: "etcdctl",
        why: "etcd's own client, against ChainFire",
        packages: &["etcd-client"],
        probe: &["etcdctl", "version"],
        strict: true,
        scope: Scope::Clients,
    },
    Tool {
        name: "protoc",
        why: "builds the protos of the etcd-client crate, which tests drive",
        packages: &["protobuf-compiler", "libprotobuf-dev"],
        probe: &["protoc", "--version"],
        strict: true,
        scope: Scope::Clients,
    },
    Tool {
        name: "ip",
        why: "gives each member of a test's cluster a network namespace of its own",
        packages: &["iproute2"],
        probe: &["ip", "-V"],
        strict: true,
        scope: Scope::Clients,
    },
    Tool {
        name: "ethtool",
        why: "lets machines in tests send whole checksums, as FiberLB's program needs",
        packages: &["ethtool"],
        probe: &["/usr/sbin/ethtool", "--version"],
        strict: true,
        scope: Scope::Clients,
    },
    Tool {
        name: "nft",
        why: "loses packets between members, in one direction or both",
        packages: &["nftables"],
        probe: &["/usr/sbin/nft", "--version"],
        strict: true,
        scope: Scope::Clients,
    },
    Tool {
        name: "strace",
        why: "makes flushes of a running member fail",
        packages: &["strace"],
        probe: &["strace", "--version"],
        strict: true,
        scope: Scope::Clients,
    },
    Tool {
        name: "qemu",
        why: "runs guests that attach disks, by emulation where there is no KVM",
        packages: &["qemu-system-x86"],
        probe: &["qemu-system-x86_64", "--version"],
        strict: true,
        scope: Scope::Clients,
    },
    Tool {
        name: "qemu-img",
        why: "QEMU's own NBD clients and its tools for disk images, against exports",
        packages: &["qemu-utils"],
        probe: &["qemu-img", "--version"],
        strict: true,
        scope: Scope::Clients,
    },
    Tool {
        name: "nbdcopy",
        why: "libnbd's clients, against exports",
        packages: &["libnbd-bin"],
        probe: &["nbdcopy", "--version"],
        strict: true,
        scope: Scope::Clients,
    },
    Tool {
        name: "busybox",
        why: "is what those guests run",
        packages: &["busybox-static"],
        probe: &["/bin/busybox"],
        strict: true,
        scope: Scope::Clients,
    },
    Tool {
        name: "fio",
        why: "writes in those guests and verifies what it reads back",
        packages: &["fio"],
        probe: &["fio", "--version"],
        strict: true,
        scope: Scope::Volumes,
    },
    Tool {
        name: "dnsmasq",
        why: "name servers behind a load balancer",
        packages: &["dnsmasq-base"],
        probe: &["/usr/sbin/dnsmasq", "--version"],
        strict: true,
        scope: Scope::Balancing,
    },
    Tool {
        name: "dig",
        why: "asks them",
        packages: &["bind9-dnsutils"],
        probe: &["dig", "-v"],
        strict: true,
        scope: Scope::Balancing,
    },
    Tool {
        name: "iperf3",
        why: "streams through a load balancer",
        packages: &["iperf3"],
        probe: &["iperf3", "--version"],
        strict: true,
        scope: Scope::Balancing,
    },
    Tool {
        name: "nc",
        why: "asks through it by hand",
        packages: &["netcat-openbsd"],
        probe: &["nc", "-h"],
        strict: false,
        scope: Scope::Balancing,
    },
    Tool {
        name: "hping3",
        why: "floods it with SYNs",
        packages: &["hping3"],
        probe: &["/usr/sbin/hping3", "--version"],
        strict: false,
        scope: Scope::Balancing,
    },
    Tool {
        name: "lz4",
        why: "unpacks their kernel",
        packages: &["lz4"],
        probe: &["lz4", "--version"],
        strict: true,
        scope: Scope::Clients,
    },
    Tool {
        name: "wrk",
        why: "makes the load of the object benchmark",
        packages: &["wrk"],
        probe: &["wrk", "-v"],
        strict: false,
        scope: Scope::Bench,
    },
    Tool {
        name: "nginx",
        why: "backends of load balancers, and the ceiling of the object benchmark",
        packages: &["nginx-light"],
        probe: &["/usr/sbin/nginx", "-v"],
        strict: true,
        scope: Scope::Clients,
    },
    Tool {
        name: "qemu-storage",
        why: "a peer of the volumes benchmark: qemu-storage-daemon",
        packages: &["qemu-system-common"],
        probe: &["qemu-storage-daemon", "--version"],
        strict: true,
        scope: Scope::Bench,
    },
    Tool {
        name: "etcd",
        why: "what ChainFire is compared with, in tests and in the benchmark",
        packages: &["etcd-server"],
        probe: &["etcd", "--version"],
        strict: true,
        scope: Scope::Clients,
    },
    Tool {
        name: "postgres",
        why: "what Patroni fails over, in a lane",
        packages: &["postgresql"],
        probe: &["sh", "-c", POSTGRES_PROBE],
        strict: true,
        scope: Scope::Failover,
    },
];

/// Installs what is missing of the scope's tools and reports all of them.
pub fn ensure(scope: Scope, report: &mut Report) -> Result<()> {
    let wanted = TOOLS
        .iter()
        .filter(|tool| tool.scope == Scope::Clients || tool.scope == scope);
    let mut missing = Vec::new();
    for tool in wanted {
        match version(tool) {
            Some(version) => report.line(State::Found, tool.name, &version, tool.why)?,
            None => missing.push(tool),
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing)?;
    for tool in missing {
        let version = version(tool)
            .with_context(|| format!("{} was installed but does not run", tool.name))?;
        report.line(State::Installed, tool.name, &version, tool.why)?;
        match tool.name {
            "nginx" | "etcd" => leave_stopped(tool.name)?,
            "postgres" => leave_stopped("postgresql")?,
            _ => {}
        }
    }
    Ok(())
}

fn version(tool: &Tool) -> Option<String> {
    let output = Command::new(tool.probe[0])
        .args(&tool.probe[1..])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    if tool.strict && !output.status.success() {
        return None;
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    Some(version_in(&said).unwrap_or("?").to_owned())
}

fn install(missing: &[&Tool]) -> Result<()> {
    let packages: Vec<&str> = missing
        .iter()
        .flat_map(|tool| tool.packages)
        .copied()
        .collect();
    for tool in missing {
        eprintln!(
            "missing: {} ({}), from {}",
            tool.name,
            tool.why,
            tool.packages.join(", ")
        );
    }
    install_packages(&packages)
}

/// Installs packages, as root; else says how.
pub fn install_packages(packages: &[&str]) -> Result<()> {
    let by_hand = by_hand(packages);
    if process::capture(Command::new("apt-get").arg("--version")).is_err() {
        bail!(
            "this is not a Debian-like machine: install {} with its own package manager, then \
             run `cargo xtask setup` again",
            packages.join(", ")
        );
    }
    if process::capture(Command::new("id").arg("-u"))? != "0" {
        bail!(
            "installing packages needs root. Run this, then `cargo xtask setup` again:\n  {by_hand}"
        );
    }
    process::run_as_progress(Command::new("apt-get").args(["update", "-q"]))?;
    process::run_as_progress(
        Command::new("apt-get")
            .args(["install", "-q", "-y", "--no-install-recommends"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive")
            // Maintainer scripts start no service in the single-user run level.
            .env("RUNLEVEL", "1"),
    )
    .with_context(|| format!("could not install the packages; by hand: {by_hand}"))
}

fn by_hand(packages: &[&str]) -> String {
    format!(
        "sudo apt-get update && sudo apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    )
}

/// Disables and stops the system's service of a tool, which the package may have started; benchmarks
/// run their own with their own configuration. Called only right after the package was installed.
fn leave_stopped(service: &str) -> Result<()> {
    if Path::new("/run/systemd/system").is_dir() {
        process::run_as_progress(Command::new("systemctl").args(["disable", "--now", service]))?;
    }
    let Ok(pid) = std::fs::read_to_string(format!("/run/{service}.pid")) else {
        return Ok(());
    };
    let pid = pid.trim();
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if name.trim() == service {
        process::run_as_progress(Command::new("kill").args(["-QUIT", pid]))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_has_a_reason_and_packages() {
        for tool in TOOLS {
            assert!(
                !tool.why.is_empty() && !tool.packages.is_empty(),
                "{}",
                tool.name
            );
        }
    }

    #[test]
    fn the_command_by_hand_names_the_missing_packages_only() {
        let command = by_hand(&["rclone", "wrk"]);
        assert!(command.ends_with("--no-install-recommends rclone wrk"));
    }

    #[test]
    fn a_tool_that_cannot_run_is_missing() {
        let absent = Tool {
            name: "absent",
            why: "never there",
            packages: &["absent"],
            probe: &["ultracloud-no-such-program"],
            strict: false,
            scope: Scope::Clients,
        };
        assert_eq!(version(&absent), None);
        let failing = Tool {
            probe: &["sh", "-c", "echo 1.0; exit 1"],
            strict: true,
            ..absent
        };
        assert_eq!(version(&failing), None);
        let lenient = Tool {
            strict: false,
            ..failing
        };
        assert_eq!(version(&lenient).as_deref(), Some("1.0"));
    }
}
