//! Disks that end, and flushes that fail, under the leader.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Instant;

use crate::cluster::Cluster;
use crate::judge::judge;
use crate::load::Load;
use crate::network::{isolated, tool};
use crate::support::{Member, eventually, http, ultractl};

/// Room for a segment of the log, a store, and some of everything else.
const DISK_MIB: u32 = 48;

/// The member serves no more, and says why where operators look.
fn failed(member: &Member, why: &str) {
    let said = eventually("the health check fails", || {
        let (status, said) = http(member.admin, "GET", "/healthz", "");
        (status == 503).then_some(said)
    });
    assert!(said.contains(why) && said.contains("restart"), "{said}");
    assert!(member.log().contains(why), "{}", member.log());
    let (ready, said) = http(member.admin, "GET", "/readyz", "");
    assert!(ready == 503 && said.contains(why), "{ready}: {said}");
    eventually("it does not believe that it leads", || {
        (member.metric("uc_chainfire_leads_bool") == Some(0)).then_some(())
    });
    let status = ultractl(member, &["member", "status"]).unwrap();
    let refusals = status["refusals"].as_array().unwrap().iter();
    let mut whole = refusals.filter(|one| one["what"] == "everything on this member");
    assert!(whole.next().is_some(), "{status}");
    let refused = member.ctl().fails(&["put", "refused", "1"]);
    assert!(refused.contains("etcdserver: "), "{refused}");
}

/// A disk of a fixed size.
struct Disk(PathBuf);

impl Disk {
    fn new(dir: &Path, place: usize) -> Disk {
        let at = dir.join(format!("disk-{place}"));
        fs::create_dir(&at).unwrap();
        let size = format!("size={DISK_MIB}m");
        tool(
            "mount",
            &["-t", "tmpfs", "-o", &size, "none", at.to_str().unwrap()],
        );
        Disk(at)
    }

    fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    /// Somebody else takes all of its space.
    fn fill(&self) {
        let mut ballast = File::create(self.0.join("ballast")).unwrap();
        for bytes in [1 << 16, 1 << 12] {
            let zeros = vec![0; bytes];
            let ended = (0..1 << 16).find_map(|_| ballast.write(&zeros).err());
            assert_eq!(ended.unwrap().kind(), ErrorKind::StorageFull);
        }
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

#[test]
fn a_leader_with_a_full_disk_gives_way_and_is_back_after_a_restart_with_space() {
    let test = a_leader_with_a_full_disk_gives_way_and_is_back_after_a_restart_with_space;
    isolated(test, |network| {
        let disks = [0, 1, 2].map(|place| Disk::new(network.dir(), place));
        let mut cluster = Cluster::with_data(network, |place| Some(disks[place].data()));
        let load = Load::start(cluster.urls());
        load.progress(50);
        let leads = cluster.leader();
        disks[leads].fill();
        let admin = cluster.members[leads].admin;
        eventually("its disk is used up", || {
            load.put_large((leads + 1) % 3);
            (http(admin, "GET", "/healthz", "").0 == 503).then_some(())
        });
        println!(
            "disk full: served again after {:?}",
            load.served_since(Instant::now())
        );
        failed(&cluster.members[leads], "No space left on device");
        load.progress(50);
        cluster.members[leads].kill();
        disks[leads].empty();
        cluster.members[leads].restart();
        load.progress(20);
        cluster.leader();
        judge(&cluster.urls(), &load.end());
    });
}

/// Makes every flush of a process fail, until it is dropped.
struct FlushErrors {
    strace: Child,
    /// Held open: it writes more when threads begin.
    _said: BufReader<ChildStderr>,
}

impl FlushErrors {
    fn of(member: &Member) -> FlushErrors {
        let mut strace = Command::new("strace")
            .args(["-f", "-o", "/dev/null", "-e", "trace=fsync,fdatasync"])
            .args(["-e", "inject=fsync,fdatasync:error=EIO"])
            .args(["-p", &member.pid().to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace is there after `cargo xtask setup`");
        let mut said = String::new();
        let mut lines = BufReader::new(strace.stderr.take().unwrap());
        while !said.contains(" attached") {
            assert!(lines.read_line(&mut said).unwrap() > 0, "strace: {said}");
        }
        FlushErrors {
            strace,
            _said: lines,
        }
    }
}

impl Drop for FlushErrors {
    fn drop(&mut self) {
        // Fails when it has ended already. The member goes on without it.
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

#[test]
fn a_leader_whose_flush_fails_acknowledges_no_more_and_has_everything_after_a_restart() {
    let test = a_leader_whose_flush_fails_acknowledges_no_more_and_has_everything_after_a_restart;
    isolated(test, |network| {
        let mut cluster = Cluster::start(network);
        let load = Load::start(cluster.urls());
        load.progress(50);
        let leads = cluster.leader();
        let errors = FlushErrors::of(&cluster.members[leads]);
        let struck = Instant::now();
        println!(
            "flush failed: served again after {:?}",
            load.served_since(struck)
        );
        failed(&cluster.members[leads], "Input/output error");
        drop(errors);
        // A disk that is well again brings nothing back by itself: what was lost is not known.
        load.progress(50);
        failed(&cluster.members[leads], "Input/output error");
        cluster.members[leads].kill();
        cluster.members[leads].restart();
        load.progress(20);
        cluster.leader();
        judge(&cluster.urls(), &load.end());
    });
}
