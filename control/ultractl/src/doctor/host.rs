//! The machine's facts, as files tell them; and the checks that are about the kernel itself.

use std::path::{Path, PathBuf};

use super::Check;

/// The oldest kernel with the ring set-up that the engine relies on.
const KERNEL_MIN: (u32, u32) = (6, 1);
/// Namespaces that members in tests, containers and services live in.
const NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "user"];
/// What cgroups have to share out among nodes' services.
const CONTROLLERS: [&str; 3] = ["cpu", "io", "memory"];

/// A capability's bit, as linux/capability.h numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    NetAdmin = 12,
    IpcLock = 14,
    SysAdmin = 21,
    Bpf = 39,
}

/// A machine, as the files below a root tell of it.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// This machine.
    pub fn here() -> Host {
        Host { root: "/".into() }
    }

    /// A path below the root.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// A file's text without the line's end; empty when it cannot be read.
    pub fn text(&self, path: &str) -> String {
        let text = std::fs::read_to_string(self.path(path)).unwrap_or_default();
        text.trim_end().to_owned()
    }

    /// The rest of the line of a file that begins with a word.
    pub fn field(&self, path: &str, word: &str) -> Option<String> {
        let text = self.text(path);
        let rest = text.lines().find_map(|line| line.strip_prefix(word))?;
        Some(rest.trim().to_owned())
    }

    /// Whether this process has a capability.
    pub fn has(&self, capability: Capability) -> bool {
        let mask = self.field("proc/self/status", "CapEff:");
        let mask = mask.and_then(|hex| u64::from_str_radix(&hex, 16).ok());
        mask.is_some_and(|mask| mask & (1 << capability as u32) != 0)
    }
}

/// The kernel's release.
pub fn kernel(host: &Host) -> Check {
    let release = host.text("proc/sys/kernel/osrelease");
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    let (major, minor) = KERNEL_MIN;
    match (numbers.next(), numbers.next()) {
        (Some(a), Some(b)) if (a, b) >= KERNEL_MIN => {
            Check::ok("kernel", format!("Linux {release}"))
        }
        (Some(_), Some(_)) => Check::fail(
            "kernel",
            format!("Linux {release} is older than {major}.{minor}"),
            format!("install a kernel of {major}.{minor} or newer"),
        ),
        _ => Check::warn(
            "kernel",
            format!("its release cannot be told ({release:?})"),
            format!("a node needs Linux {major}.{minor} or newer"),
        ),
    }
}

/// Cgroups of version 2.
pub fn cgroups(host: &Host) -> Check {
    let next =
        "boot with systemd.unified_cgroup_hierarchy=1, so that services can be given their shares";
    let listed = host.text("sys/fs/cgroup/cgroup.controllers");
    let controllers: Vec<&str> = listed.split_whitespace().collect();
    let missing: Vec<&str> = CONTROLLERS
        .into_iter()
        .filter(|wanted| !controllers.contains(wanted))
        .collect();
    if missing.is_empty() {
        return Check::ok(
            "cgroup",
            format!("version 2 with {}", controllers.join(", ")),
        );
    }
    let mounts = host.text("proc/self/mounts");
    let found = match (controllers.is_empty(), mounts.contains(" cgroup2 ")) {
        (false, _) => format!("version 2 without {}", missing.join(", ")),
        (true, true) => "version 2 is mounted, but version 1 has the controllers".to_owned(),
        (true, false) => "version 2 is not mounted".to_owned(),
    };
    Check::warn("cgroup", found, next)
}

/// Namespaces, and whether this user may make them.
pub fn namespaces(host: &Host) -> Check {
    let is_there = |name: &&str| {
        let link: &Path = &host.path("proc/self/ns").join(name);
        link.symlink_metadata().is_ok()
    };
    let missing: Vec<&str> = NAMESPACES
        .into_iter()
        .filter(|name| !is_there(name))
        .collect();
    if !missing.is_empty() {
        let found = format!("the kernel has no {}", missing.join(", "));
        return Check::warn(
            "namespaces",
            found,
            "install a kernel that is built with them",
        );
    }
    if host.has(Capability::SysAdmin) {
        return Check::ok(
            "namespaces",
            "all kinds; this user may make them (CAP_SYS_ADMIN)",
        );
    }
    let most = host.text("proc/sys/user/max_user_namespaces");
    let is_forbidden = most == "0" || host.text("proc/sys/kernel/unprivileged_userns_clone") == "0";
    if is_forbidden {
        return Check::warn(
            "namespaces",
            "all kinds; this user may make none",
            "run as root, or set sysctl user.max_user_namespaces above 0",
        );
    }
    Check::ok(
        "namespaces",
        "all kinds; this user may make them inside a user namespace",
    )
}

#[cfg(test)]
pub mod tests {
    use super::super::State;
    use super::*;

    /// A machine that has these files. It is gone with its directory.
    pub fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let host = Host {
            root: dir.path().to_owned(),
        };
        (dir, host)
    }

    const STATUS: &str = "proc/self/status";

    #[test]
    fn a_kernel_is_judged_by_its_numbers() {
        for (release, state) in [
            ("6.1.0-13-amd64\n", State::Ok),
            ("10.0\n", State::Ok),
            ("6.0.19\n", State::Fail),
            ("5.15.0\n", State::Fail),
            ("odd\n", State::Warn),
        ] {
            let (_dir, host) = machine(&[("proc/sys/kernel/osrelease", release)]);
            assert_eq!(kernel(&host).state, state, "{release}");
        }
    }

    #[test]
    fn capabilities_are_bits_of_a_mask() {
        let (_dir, host) = machine(&[(STATUS, "Name:\tx\nCapEff:\t0000000000004000\n")]);
        assert!(host.has(Capability::IpcLock) && !host.has(Capability::SysAdmin));
        let (_dir, none) = machine(&[]);
        assert!(!none.has(Capability::IpcLock));
    }

    #[test]
    fn cgroups_of_both_versions_are_told_apart() {
        let controllers = "sys/fs/cgroup/cgroup.controllers";
        let (_dir, host) = machine(&[(controllers, "cpuset cpu io memory pids\n")]);
        assert_eq!(cgroups(&host).state, State::Ok);
        let (_dir, host) = machine(&[(controllers, "cpu memory\n")]);
        assert_eq!(cgroups(&host).found, "version 2 without io");
        let mounts = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let (_dir, host) = machine(&[("proc/self/mounts", mounts)]);
        assert!(
            cgroups(&host)
                .found
                .contains("version 1 has the controllers")
        );
        let (_dir, host) = machine(&[]);
        assert_eq!(cgroups(&host).found, "version 2 is not mounted");
    }

    #[test]
    fn namespaces_need_a_kernel_and_a_right() {
        let all = NAMESPACES.map(|name| format!("proc/self/ns/{name}"));
        let mut files: Vec<(&str, &str)> = all.iter().map(|path| (path.as_str(), "")).collect();
        files.push(("proc/sys/user/max_user_namespaces", "0\n"));
        let (_dir, host) = machine(&files);
        assert!(namespaces(&host).found.contains("may make none"));
        files.push((STATUS, "CapEff:\t0000000000200000\n"));
        let (_dir, host) = machine(&files);
        assert_eq!(namespaces(&host).state, State::Ok);
        let (_dir, host) = machine(&files[1..]);
        assert_eq!(namespaces(&host).found, "the kernel has no cgroup");
    }
}
