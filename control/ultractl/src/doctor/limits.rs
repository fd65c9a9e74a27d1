//! What a process may have: locked memory, open files, huge pages.

use engine::EngineConfig;

use super::Check;
use super::host::{Capability, Host};

const LIMITS: &str = "proc/self/limits";
/// Below it a node works and refuses connections early.
const FILES_WANTED: u64 = 65_536;
/// Below it a node has no room for its own logs and members.
const FILES_MIN: u64 = 1024;

/// Which of a resource's two limits.
#[derive(Clone, Copy)]
enum Column {
    Soft = 0,
    Hard = 1,
}

/// No limit at all.
const UNLIMITED: u64 = u64::MAX;

/// A limit of a resource.
fn limit(host: &Host, resource: &str, column: Column) -> Option<u64> {
    let line = host.field(LIMITS, resource)?;
    match line.split_whitespace().nth(column as usize)? {
        "unlimited" => Some(UNLIMITED),
        number => number.parse().ok(),
    }
}

/// All three.
pub fn check(host: &Host) -> [Check; 3] {
    [memlock(host), open_files(host), huge_pages(host)]
}

fn memlock(host: &Host) -> Check {
    let name = "memlock";
    let shard = EngineConfig::default().pool_bytes as u64;
    let next = format!(
        "set LimitMEMLOCK=infinity in the unit (`ulimit -l unlimited` in a shell): {} MiB a shard are \
         registered with the kernel",
        shard >> 20
    );
    match limit(host, "Max locked memory", Column::Soft) {
        None => Check::warn(name, "the limit cannot be told", next),
        Some(UNLIMITED) => Check::ok(name, "unlimited"),
        Some(limit) if host.has(Capability::IpcLock) => {
            let found = format!("{} KiB, and CAP_IPC_LOCK lifts it", limit >> 10);
            Check::ok(name, found)
        }
        Some(limit) if limit < shard => {
            let found = format!("{} KiB is less than a shard registers", limit >> 10);
            Check::warn(name, found, next)
        }
        Some(limit) => {
            let found = format!("{} KiB, enough for {} shards", limit >> 10, limit / shard);
            Check::ok(name, found)
        }
    }
}

/// A node raises its soft limit to the hard one.
fn open_files(host: &Host) -> Check {
    let name = "files";
    let next =
        format!("set LimitNOFILE={FILES_WANTED} or more in the unit (`ulimit -Hn` in a shell)");
    match limit(host, "Max open files", Column::Hard) {
        None => Check::warn(name, "the limit of open files cannot be told", next),
        Some(UNLIMITED) => Check::ok(name, "unlimited"),
        Some(limit) if limit < FILES_MIN => Check::fail(name, format!("{limit} at once"), next),
        Some(limit) if limit < FILES_WANTED => Check::warn(
            name,
            format!("{limit} at once; each connection is one"),
            next,
        ),
        Some(limit) => Check::ok(name, format!("{limit} at once")),
    }
}

/// Nothing that runs today asks for reserved ones, so that having none is no fault.
fn huge_pages(host: &Host) -> Check {
    let count = |field: &str| {
        host.field("proc/meminfo", field)
            .and_then(|text| text.parse::<u64>().ok())
    };
    let size = host
        .field("proc/meminfo", "Hugepagesize:")
        .unwrap_or_default();
    match (count("HugePages_Total:"), count("HugePages_Free:")) {
        (Some(0), _) => Check::ok(
            "hugepages",
            format!("none of {size} reserved; nothing asks for them yet"),
        ),
        (Some(total), Some(free)) => {
            Check::ok("hugepages", format!("{free} of {total} of {size} free"))
        }
        _ => Check::ok(
            "hugepages",
            "the kernel has none; nothing asks for them yet",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::super::host::tests::machine;
    use super::*;

    fn limits(memlock: &str, files: &str) -> String {
        format!(
            "Limit                     Soft Limit           Hard Limit           Units\n\
             Max open files            1024                 {files:<20} files\n\
             Max locked memory         {memlock:<20} unlimited            bytes\n"
        )
    }

    #[test]
    fn limits_are_judged_by_what_a_node_takes() {
        for (memlock, files, states) in [
            ("unlimited", "1048576", [State::Ok, State::Ok]),
            ("8388608", "20000", [State::Warn, State::Warn]),
            ("67108864", "100", [State::Ok, State::Fail]),
        ] {
            let text = limits(memlock, files);
            let (_dir, host) = machine(&[(LIMITS, &text)]);
            let [memlock, files, _] = check(&host);
            assert_eq!([memlock.state, files.state], states, "{text}");
        }
        let (_dir, host) = machine(&[
            (LIMITS, &limits("8388608", "65536")),
            ("proc/self/status", "CapEff:\t0000000000004000\n"),
        ]);
        assert_eq!(check(&host)[0].state, State::Ok);
        let (_dir, host) = machine(&[]);
        assert_eq!(check(&host)[1].state, State::Warn);
    }

    #[test]
    fn huge_pages_are_counted() {
        let text =
            "HugePages_Total:      16\nHugePages_Free:        4\nHugepagesize:       2048 kB\n";
        let (_dir, host) = machine(&[("proc/meminfo", text)]);
        assert_eq!(check(&host)[2].found, "4 of 16 of 2048 kB free");
    }
}
