//! The machine under the figures: CPU clocks, pinning, and the facts a reader needs beside them.
//!
//! CPU is the whole process's, not one thread's: io_uring hands fdatasync to kernel workers that
//! belong to the process, and a blocking pool works in threads of its own; a server thread's
//! clock would miss both. Never measures wall time for a CPU bar.

use std::ffi::CString;
use std::fmt;
use std::fs;
use std::io;
use std::mem;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

/// CPU time of every thread of this process, ended ones and io_uring's workers included. The share
/// of a thread that runs on another CPU may be one scheduler tick old.
pub fn process_cpu() -> Duration {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// CPU time of the calling thread.
pub fn thread_cpu() -> Duration {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn clock(id: libc::clockid_t) -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a live, writable timespec for the whole call, which keeps no pointer to it.
    let result = unsafe { libc::clock_gettime(id, &raw mut now) };
    assert_eq!(result, 0, "both CPU clocks exist on every Linux");
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Binds the calling thread, and the threads it will start, to one CPU.
pub fn pin(cpu: usize) -> Result<()> {
    // SAFETY: cpu_set_t is a plain bit mask, for which all zeroes is the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    if cpu >= libc::CPU_SETSIZE as usize {
        bail!(
            "pin to CPU {cpu}: beyond the {} a mask holds",
            libc::CPU_SETSIZE
        );
    }
    // SAFETY: `set` is a live mask and `cpu` was just checked to be inside it.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the pointer and the size describe `set`, which the call only reads.
    let result =
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    if result != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("pin to CPU {cpu}: the shapes need CPUs 0 and 1"));
    }
    Ok(())
}

/// Asks a program that this process has started, and not yet waited for, to end (SIGTERM).
pub fn terminate(child: &Child) -> Result<()> {
    let id = libc::pid_t::try_from(child.id()).context("a process id past its type")?;
    // SAFETY: the call takes two numbers. A child that nobody has waited for keeps its id, so no
    // other process is meant.
    let result = unsafe { libc::kill(id, libc::SIGTERM) };
    if result != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("end process {id}"));
    }
    Ok(())
}

/// Bytes that may still be written into the file system that holds `dir`.
pub fn free_bytes(dir: &Path) -> Result<u64> {
    let path = CString::new(dir.as_os_str().as_bytes()).context("a path with a zero byte")?;
    // SAFETY: statvfs is a plain struct of numbers, for which all zeroes is a value.
    let mut found: libc::statvfs = unsafe { mem::zeroed() };
    // SAFETY: `path` ends with a zero byte and `found` is writable; both outlive the call, which
    // keeps no pointer to either.
    let result = unsafe { libc::statvfs(path.as_ptr(), &raw mut found) };
    if result != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("look how much is free in {}", dir.display()));
    }
    Ok(found.f_bavail * found.f_frsize)
}

/// What stands beside the figures.
pub struct Facts {
    kernel: String,
    cpu: String,
    cpus: usize,
    memory_gib: f64,
    load: String,
}

impl Facts {
    /// Reads the facts as they are now.
    pub fn read() -> Result<Self> {
        let info = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
        let cpu = info
            .lines()
            .find(|line| line.starts_with("model name"))
            .and_then(|line| line.split_once(':'))
            .map_or("unknown CPU", |(_, name)| name.trim());
        Ok(Self {
            kernel: first_line("/proc/sys/kernel/osrelease")?,
            cpu: cpu.to_owned(),
            cpus: std::thread::available_parallelism()
                .context("count the CPUs")?
                .get(),
            memory_gib: memory_gib(&first_line("/proc/meminfo")?)?,
            load: first_line("/proc/loadavg")?,
        })
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kernel,
            cpu,
            cpus,
            memory_gib,
            load,
        } = self;
        write!(
            f,
            "Linux {kernel}, {cpus} × {cpu}, {memory_gib:.1} GiB, load {load}"
        )
    }
}

/// Memory of the machine out of the first line of `/proc/meminfo`.
fn memory_gib(line: &str) -> Result<f64> {
    let total = line
        .strip_prefix("MemTotal:")
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.parse::<f64>().ok());
    let kib = total.with_context(|| format!("not the first line of /proc/meminfo: {line:?}"))?;
    Ok(kib / f64::from(1 << 20))
}

fn first_line(path: &str) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// A mounted file system.
#[derive(Debug, PartialEq, Eq)]
pub struct Mount {
    /// The file system's type, as the kernel names it.
    pub kind: String,
    /// What it is mounted from.
    pub source: String,
}

impl Mount {
    /// The mount that holds `dir`.
    pub fn of(dir: &Path) -> Result<Self> {
        let dir = dir
            .canonicalize()
            .with_context(|| format!("resolve {}", dir.display()))?;
        let table =
            fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        Self::find(&table, &dir).ok_or_else(|| anyhow!("no mount holds {}", dir.display()))
    }

    /// The deepest mount point above `dir`; of two on one point the later covers the earlier.
    fn find(table: &str, dir: &Path) -> Option<Self> {
        let mut best: Option<(usize, Self)> = None;
        for line in table.lines() {
            let (place, device) = line.split_once(" - ")?;
            let point = Path::new(place.split(' ').nth(4)?);
            let mut device = device.split(' ');
            let mount = Self {
                kind: device.next()?.to_owned(),
                source: device.next()?.to_owned(),
            };
            let depth = point.components().count();
            if dir.starts_with(point) && best.as_ref().is_none_or(|(found, _)| depth >= *found) {
                best = Some((depth, mount));
            }
        }
        best.map(|(_, mount)| mount)
    }

    /// Whether a write here ever reaches a device.
    pub fn is_memory(&self) -> bool {
        matches!(
            self.kind.as_str(),
            "tmpfs" | "ramfs" | "rootfs" | "devtmpfs"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:26 / /tmp rw,nosuid shared:1 - tmpfs tmpfs rw
31 30 254:16 / /tmp/disk rw - xfs /dev/vdb rw
";

    fn kind(dir: &str) -> String {
        Mount::find(TABLE, Path::new(dir)).expect("a mount").kind
    }

    #[test]
    fn the_deepest_mount_holds_a_directory() {
        assert_eq!(kind("/var/tmp"), "ext4");
        assert_eq!(kind("/tmp/x"), "tmpfs");
        assert_eq!(kind("/tmp/disk/x"), "xfs");
    }

    #[test]
    fn a_name_that_only_starts_like_a_mount_point_is_outside() {
        assert_eq!(kind("/tmpfiles"), "ext4");
    }

    #[test]
    fn the_later_of_two_mounts_on_one_point_counts() {
        let table = format!("{TABLE}32 22 0:27 / /tmp rw - ext4 /dev/vdc rw\n");
        let mount = Mount::find(&table, Path::new("/tmp/x")).expect("a mount");
        assert_eq!(mount.source, "/dev/vdc");
    }

    #[test]
    fn memory_is_not_a_disk() {
        assert!(
            Mount {
                kind: "tmpfs".into(),
                source: "tmpfs".into()
            }
            .is_memory()
        );
        assert!(
            !Mount {
                kind: "ext4".into(),
                source: "/dev/vda".into()
            }
            .is_memory()
        );
    }

    #[test]
    fn the_memory_of_a_machine_is_read_in_gib() {
        let gib = memory_gib("MemTotal:        2097152 kB").unwrap();
        assert_eq!(gib.to_bits(), 2.0f64.to_bits());
        assert!(memory_gib("MemFree: 1 kB").is_err());
    }

    #[test]
    fn a_directory_has_free_bytes_and_a_missing_one_is_an_error() {
        assert!(free_bytes(Path::new("/")).unwrap() > 0);
        let error = free_bytes(Path::new("/no/such/directory")).unwrap_err();
        assert!(error.to_string().contains("/no/such/directory"));
    }

    #[test]
    fn a_cpu_that_cannot_exist_is_refused() {
        assert!(pin(usize::MAX).is_err());
    }

    #[test]
    fn the_process_clock_holds_the_threads_clock() {
        let before = (process_cpu(), thread_cpu());
        let mut sum = 0u64;
        for i in 0..3_000_000u64 {
            sum = std::hint::black_box(sum ^ i.wrapping_mul(31));
        }
        let after = (process_cpu(), thread_cpu());
        assert!(after.1 > before.1);
        assert!(after.0 > before.0);
    }
}
