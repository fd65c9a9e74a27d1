//! The lane's network: the load balancer's machine in the middle, a client and three backends around it, each a
//! network namespace of this machine. Dropping it takes them away.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process;

/// The machine in the middle.
pub const BALANCER: usize = 0;
/// Who asks.
pub const CLIENT: usize = 1;
/// The backends.
pub const BACKENDS: [usize; 3] = [2, 3, 4];

const ETHTOOL: &str = "/usr/sbin/ethtool";
/// Checksums are whole when a packet is sent, and a veth device takes what XDP sends it.
const OFFLOADS: [&str; 8] = ["tx", "off", "tso", "off", "gso", "off", "gro", "on"];

/// See the module's head.
pub struct Net {
    /// The beginning of all names.
    prefix: String,
    pins: PathBuf,
}

impl Drop for Net {
    fn drop(&mut self) {
        for machine in 0..=4 {
            let name = self.name(machine);
            // What is left of it goes with the machine.
            let _ = process::capture(Command::new("ip").args(["netns", "del", &name]));
        }
        let _ = process::capture(Command::new("umount").arg(&self.pins));
    }
}

impl Net {
    /// Makes the machines, and a place for what outlives a load balancer's process.
    pub fn make(pins: &Path) -> Result<Net> {
        std::fs::create_dir_all(pins).with_context(|| format!("make {}", pins.display()))?;
        let net = Net {
            prefix: format!("uc{}", std::process::id()),
            pins: pins.to_owned(),
        };
        let mut mount = Command::new("mount");
        process::capture(mount.args(["-t", "bpf", "bpf"]).arg(pins))?;
        for machine in 0..=4 {
            ip(&["netns", "add", &net.name(machine)])?;
            net.run(machine, &["ip", "link", "set", "lo", "up"])?;
        }
        for machine in 1..=4 {
            net.connect(machine)?;
        }
        let forward = "echo 1 >/proc/sys/net/ipv4/ip_forward";
        net.run(BALANCER, &["sh", "-c", forward])?;
        Ok(net)
    }

    fn name(&self, machine: usize) -> String {
        format!("{}-{machine}", self.prefix)
    }

    /// The load balancer's interface towards a machine.
    pub fn interface(machine: usize) -> String {
        format!("to{machine}")
    }

    /// A machine's address.
    pub fn addr(machine: usize) -> String {
        format!("10.77.{machine}.2")
    }

    /// Between a machine and the load balancer, its router. Who sends makes its checksums whole itself.
    fn connect(&self, machine: usize) -> Result<()> {
        let (inner, outer) = (self.name(machine), self.name(BALANCER));
        let to = Net::interface(machine);
        let veth = ["link", "add", "up0", "netns", &inner, "type", "veth"];
        let peer = ["peer", "name", &to, "netns", &outer];
        ip(&[&veth[..], &peer[..]].concat())?;
        let router = format!("10.77.{machine}.1");
        let addr = format!("{}/24", Net::addr(machine));
        let gateway = format!("{router}/24");
        let steps: [(usize, &[&str]); 7] = [
            (machine, &["ip", "addr", "add", &addr, "dev", "up0"]),
            (machine, &["ip", "link", "set", "up0", "up"]),
            (BALANCER, &["ip", "addr", "add", &gateway, "dev", &to]),
            (BALANCER, &["ip", "link", "set", &to, "up"]),
            (machine, &["ip", "route", "add", "default", "via", &router]),
            (machine, &[&[ETHTOOL, "-K", "up0"][..], &OFFLOADS].concat()),
            (BALANCER, &[&[ETHTOOL, "-K", &to][..], &OFFLOADS].concat()),
        ];
        for (at, words) in steps {
            self.run(at, words)?;
        }
        Ok(())
    }

    /// A command that runs on a machine, and ends with this process.
    pub fn on(&self, machine: usize, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.name(machine)))
            .args(["setpriv", "--pdeathsig", "KILL", "--"])
            .arg(program);
        command
    }

    /// Runs a command on a machine to its end; what it said.
    pub fn run(&self, machine: usize, words: &[&str]) -> Result<String> {
        ensure!(!words.is_empty(), "no command");
        process::capture(self.on(machine, words[0]).args(&words[1..]))
    }
}

fn ip(words: &[&str]) -> Result<()> {
    process::capture(Command::new("ip").args(words)).map(drop)
}
