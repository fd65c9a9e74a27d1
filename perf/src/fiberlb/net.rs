//! FiberLB beside nftables: one generator, one CPU, packets that come out at the far end.
//!
//! Each contender is a network namespace with two veth pairs: packets come in by the one, leave by the other
//! for a backend, and are counted and dropped there by a program. The generator (frames that the kernel runs
//! a program on and sends, `BPF_F_TEST_XDP_LIVE_FRAMES`), the contender and the counter share one CPU, so what
//! a packet takes is what all three do for it; a run without a contender says what two of them take. Both
//! contenders give packets of the same flows another address and port of one of 100 backends.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fiberlb::desired::{FlowTable, Mode};
use fiberlb::program::Program;
use fiberlb_abi::Hop;

use super::lab::{BACKENDS, Family, Lab, Shape};
use crate::machine;
use crate::process::SERVER_CPU;
use crate::report::{Limit, Peer, Row, Spread};

const FLOWS: u32 = 4096;
/// Packets of a short run: the last ones are seen some milliseconds late, and that is to be a few percent.
const PACKETS: u32 = 400_000;
/// Of this many short runs of other figures there is one: they take some tenths of a second each.
const RUNS_PER: u32 = 4;
/// Times more than nftables that FiberLB is to forward.
const TIMES: f64 = 4.0;
/// How long packets may be on their way after the last one was sent.
const QUIET: Duration = Duration::from_millis(2);
const ARRIVE_MOST: Duration = Duration::from_secs(5);

const INSIDE: [u8; 6] = [2, 0, 0, 0, 0, 3];
const BACKEND: [u8; 6] = [2, 0, 0, 0, 0, 4];

const BAR: &str = "DNAT through veth, 4,096 flows";

/// A network namespace, which ends with the process that holds it.
struct Namespace {
    holder: Child,
}

fn run(words: &str) -> Result<String> {
    let mut parts = words.split_whitespace();
    let mut command = Command::new(parts.next().context("no command")?);
    let output = command.args(parts).output();
    let output = output.with_context(|| format!("start {words}"))?;
    ensure!(
        output.status.success(),
        "{words}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Gives the calling thread a network of its own.
fn leave_network() -> Result<()> {
    // SAFETY: no memory is involved; the thread alone changes its namespace.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    let error = std::io::Error::last_os_error();
    ensure!(done == 0, "{error}: measuring networks runs as root");
    run("ip link set lo up")?;
    Ok(())
}

fn enter(network: &File) -> Result<()> {
    // SAFETY: the descriptor is open; the thread alone changes its namespace.
    let done = unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) };
    if done != 0 {
        return Err(std::io::Error::last_os_error()).context("enter a network namespace");
    }
    Ok(())
}

impl Namespace {
    fn new() -> Result<Self> {
        let holder = Command::new("unshare")
            .args(["-n", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start unshare")?;
        let mut namespace = Self { holder };
        // The holder answers when it is in its namespace.
        let (Some(input), Some(output)) = (
            namespace.holder.stdin.as_mut(),
            namespace.holder.stdout.take(),
        ) else {
            bail!("unshare has no pipes");
        };
        input.write_all(b"x\n")?;
        BufReader::new(output).read_line(&mut String::new())?;
        Ok(namespace)
    }

    fn run(&self, words: &str) -> Result<String> {
        run(&format!("nsenter -t {} -n {words}", self.holder.id()))
    }

    /// Does something in it.
    fn within<T>(&self, code: impl FnOnce() -> Result<T>) -> Result<T> {
        let own = File::open("/proc/thread-self/ns/net").context("open the own network")?;
        enter(&File::open(format!("/proc/{}/ns/net", self.holder.id()))?)?;
        let done = code();
        enter(&own)?;
        done
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

fn ifindex(shown: &str) -> Result<u32> {
    let (index, _) = shown.split_once(':').context("ip shows no index")?;
    Ok(index.trim().parse()?)
}

/// A way through a namespace of its own: `in-N` here is `in` there, `out-N` here is `out` there.
struct Way {
    namespace: Namespace,
    /// Of `in-N` and `out-N`.
    sends: u32,
    receives: u32,
}

impl Way {
    fn new(number: u8) -> Result<Self> {
        let namespace = Namespace::new()?;
        let pid = namespace.holder.id();
        let inside = shown(INSIDE);
        for (here, there, pair) in [
            ("02:00:00:00:00:09", "02:00:00:00:00:01", "in"),
            (&*shown(BACKEND), &*inside, "out"),
        ] {
            run(&format!(
                "ip link add {pair}-{number} address {here} type veth \
                 peer name {pair} address {there} netns {pid}"
            ))?;
            run(&format!("ip link set {pair}-{number} up"))?;
            namespace.run(&format!("ip link set {pair} up"))?;
            // Lets frames in that programs redirect.
            namespace.run(&format!("/usr/sbin/ethtool -K {pair} gro on"))?;
        }
        let index = |pair: &str| ifindex(&run(&format!("ip -o link show {pair}-{number}"))?);
        Ok(Self {
            namespace,
            sends: index("in")?,
            receives: index("out")?,
        })
    }

    fn index_there(&self, pair: &str) -> Result<u32> {
        ifindex(&self.namespace.run(&format!("ip -o link show {pair}"))?)
    }

    /// Makes it forward and translate by nftables: one look-up for a new flow, connection tracking for others.
    fn nftables(&self) -> Result<()> {
        let backends: Vec<String> = (0..BACKENDS)
            .map(|at| format!("{at} : 10.1.0.{} . 5353", at + 1))
            .collect();
        let rules = format!(
            "table ip lb {{\nchain pre {{\ntype nat hook prerouting priority -100\n\
             ip daddr 192.0.2.1 udp dport 53 dnat ip to \
             jhash ip saddr . udp sport mod {BACKENDS} map {{ {} }}\n}}\n}}\n",
            backends.join(", ")
        );
        for words in [
            "/usr/sbin/sysctl -q -w net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0",
            "/usr/sbin/sysctl -q -w net.ipv4.conf.in.rp_filter=0",
            "ip addr add 10.255.0.1/16 dev in",
            "ip addr add 10.2.0.1/24 dev out",
            "ip route add 10.0.0.0/16 via 10.255.0.2",
            "ip route add 10.1.0.0/16 via 10.2.0.2",
        ] {
            self.namespace.run(words)?;
        }
        let to = shown(BACKEND);
        self.namespace.run(&format!(
            "ip neigh add 10.2.0.2 lladdr {to} nud permanent dev out"
        ))?;
        let mut nft = Command::new("nsenter")
            .args(["-t", &self.namespace.holder.id().to_string(), "-n"])
            .args(["/usr/sbin/nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .context("start nft")?;
        let mut input = nft.stdin.take().context("nft has no pipe")?;
        input.write_all(rules.as_bytes())?;
        drop(input);
        ensure!(nft.wait()?.success(), "nft refuses its rules");
        Ok(())
    }
}

fn shown(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Sends packets by an interface; gives nanoseconds for each that came out.
fn send(lab: &mut Lab, by: u32) -> Result<f64> {
    let before = lab.received()?;
    let began = Instant::now();
    lab.send(by, PACKETS)?;
    let (mut last, mut seen) = (began.elapsed(), lab.received()?);
    while last + QUIET > began.elapsed() {
        ensure!(began.elapsed() < ARRIVE_MOST, "packets do not end");
        let now = lab.received()?;
        if now != seen {
            (last, seen) = (began.elapsed(), now);
        }
    }
    let came = seen - before;
    ensure!(came > 0, "no packet comes out");
    Ok(last.as_secs_f64() * 1e9 / came as f64)
}

/// Rows of FiberLB, nftables, and no contender at all.
pub fn rows(rounds: u32, runs: u32) -> Result<Vec<Row>> {
    // In a thread of its own, whose network ends with it.
    let rows = std::thread::spawn(move || {
        machine::pin(SERVER_CPU)?;
        leave_network()?;
        measure(rounds, runs)
    });
    rows.join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn measure(rounds: u32, runs: u32) -> Result<Vec<Row>> {
    let ways = [Way::new(1)?, Way::new(2)?, Way::new(3)?];
    let [fiberlb, nftables, nobody] = &ways;
    let shape = Shape {
        mode: Mode::Dnat,
        flows: FlowTable::Kept,
        family: Family::V4,
    };
    let hop = Hop::new(BACKEND, INSIDE, fiberlb.index_there("out")?);
    let mut lab = Lab::with_hop(shape, hop)?;
    let inside = fiberlb.index_there("in")?;
    fiberlb
        .namespace
        .within(|| lab.attach(Program::Balance, inside))?;
    nftables.nftables()?;
    for way in [fiberlb, nftables] {
        lab.attach(Program::MeasureReceive, way.receives)?;
    }
    let inside = nobody.index_there("in")?;
    nobody
        .namespace
        .within(|| lab.attach(Program::MeasureReceive, inside))?;
    lab.walk_over(FLOWS)?;
    let mut found: [Vec<f64>; 3] = Default::default();
    for _ in 0..rounds {
        let mut best = [f64::INFINITY; 3];
        for _ in 0..runs.div_ceil(RUNS_PER) {
            for (best, way) in best.iter_mut().zip(&ways) {
                *best = best.min(send(&mut lab, way.sends)?);
            }
        }
        for (found, best) in found.iter_mut().zip(best) {
            found.push(best);
        }
    }
    compare(&found)
}

/// A packet that takes a quarter of the time is four times the packets.
fn compare([fiberlb, nftables, nobody]: &[Vec<f64>; 3]) -> Result<Vec<Row>> {
    let peer = Spread::of(nftables)?.median;
    let row = |contender, unit, values: &[f64]| -> Result<Row> {
        Ok(Row {
            bar: BAR,
            contender,
            unit,
            spread: Spread::of(values)?,
            peer: None,
            limit: None,
        })
    };
    let rate = |values: &[f64]| -> Vec<f64> { values.iter().map(|ns| 1e6 / ns).collect() };
    let mut ours = row("fiberlb", "ns/packet", fiberlb)?;
    ours.limit = Some(Limit::Ratio(1.0 / TIMES));
    ours.peer = Some(Peer {
        name: "nftables".into(),
        median: peer,
    });
    Ok(vec![
        ours,
        row("nftables", "ns/packet", nftables)?,
        row("generator", "ns/packet", nobody)?,
        row("fiberlb", "kpackets/s", &rate(fiberlb))?,
        row("nftables", "kpackets/s", &rate(nftables))?,
    ])
}
