//! The story of `fiberlb`: layer 4 end to end, in network namespaces (contracts LB-1, LB-5, LB-7 and PVR-1 as far
//! as it is about FiberLB).
//!
//! What is established is judged by connections that ask on and on, and must be answered by whom answered first.

mod backends;
pub mod flows;
mod net;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proof::Accelerator;
use serde_json::{Value, json};

use self::backends::Backend;
use self::flows::Outcome;
use self::net::{BACKENDS, BALANCER, CLIENT, Net};
use super::announce;
use super::artifacts::{About, Artifacts, Part, Scope};
use crate::process::{self, Running};

const DEADLINE: Duration = Duration::from_mins(1);
const VIP: &str = "192.0.2.1";
const WEB: &str = "192.0.2.1:80";
/// Connections that are held.
const HELD: usize = 48;
/// Rings that are made and swapped under them.
const SWAPS: u32 = 1000;
/// Packets of the flood.
const FLOOD: u32 = 200_000;
/// Where PVR-1 wants it.
const DRAIN_SUMMARY: &str = "fiberlb-drain-summary.txt";

/// What the lane is about.
pub const ABOUT: About = About {
    lane: "fiberlb",
    contracts: &["LB-1", "LB-5", "LB-7", "PVR-1"],
    scopes: &[Scope {
        name: "machine",
        words: "Client, load balancer and three backends are network namespaces of one machine, joined by veth \
                devices with XDP in the driver's mode. No virtual machine is started \
                (vm_accelerator_mode=none). No contract that asks for KVM is claimed.",
    }],
    not_shown: &[
        Part {
            what: "PVR-1's parts on FlashDNS and on virtual machines",
            reason: "this lane is about FiberLB",
        },
        Part {
            what: "XDP on a network card, and packets a second at its line rate",
            reason: "the machine has veth devices",
        },
    ],
    clients: &["curl"],
    accelerator: Accelerator::None,
};

struct Story<'a> {
    server: &'a Path,
    cli: &'a Path,
    object: &'a Path,
    dir: PathBuf,
    net: Net,
    node: Option<(Running, String)>,
    starts: u32,
    backends: Vec<Backend>,
    loads: u32,
}

/// Established connections, in a process on the client.
struct Load {
    process: Running,
    until: PathBuf,
}

/// Runs the story.
pub fn run(server: &Path, cli: &Path, object: &Path, artifacts: &mut Artifacts) -> Result<()> {
    // What is pinned lies in a file system of its own, whose place may not be the artifacts'.
    let pins = tempfile::tempdir()?;
    let mut story = Story {
        server,
        cli,
        object,
        dir: artifacts.dir().to_owned(),
        net: Net::make(&pins.path().join("bpf"))?,
        node: None,
        starts: 0,
        backends: Vec::new(),
        loads: 0,
    };
    let pins = pins.path().join("bpf/fiberlb");
    artifacts.step("clean-local-state", |_| story.begin(&pins))?;
    artifacts.step("applied-and-explained", |out| story.apply_first(out))?;
    artifacts.step("clients", |out| story.clients(out))?;
    artifacts.step("bad-documents-refused", |out| story.refuse(out))?;
    artifacts.step("rings-swapped-under-load", |out| story.swap(out))?;
    artifacts.step("drained-and-restored-under-load", |out| story.drain(out))?;
    artifacts.step("killed-and-started-under-load", |out| {
        story.restart(out, &pins)
    })?;
    artifacts.step("backend-dies-under-load", |out| story.lose(out))?;
    artifacts.step("syn-flood-beside-clients", |out| story.flood(out))
}

impl Story<'_> {
    fn begin(&mut self, pins: &Path) -> Result<()> {
        for (at, machine) in BACKENDS.into_iter().enumerate() {
            let backend = Backend::start(&self.net, machine, &format!("b{}", at + 1), &self.dir)?;
            self.backends.push(backend);
        }
        self.start_node(pins)
    }

    fn start_node(&mut self, pins: &Path) -> Result<()> {
        self.starts += 1;
        let interfaces: Vec<String> = (1..=4).map(Net::interface).collect();
        let mut command = self.net.on(BALANCER, self.server);
        command
            .args(["node", "--role", "fiberlb", "--admin-listen", "127.0.0.1:0"])
            .arg("--data-dir")
            .arg(self.dir.join("data"))
            .env(
                "ULTRACLOUD_FIBERLB__INTERFACES",
                json!(interfaces).to_string(),
            )
            .env("ULTRACLOUD_FIBERLB__PIN_DIR", json!(pins).to_string())
            .env(crate::bpf::OBJECT_VARIABLE, self.object);
        let log = self.dir.join(format!("node-{}.log", self.starts));
        let mut process = Running::start(&mut command, &log)?;
        let admin = announce::admin(&mut process, &log, DEADLINE)?;
        self.node = Some((process, format!("http://{admin}")));
        Ok(())
    }

    /// What `ultractl lb ... -o json` answers.
    fn ask(&self, words: &[&str]) -> Result<Value> {
        let said = process::capture(&mut self.lb(words)?)?;
        serde_json::from_str(&said).with_context(|| format!("ultractl said no JSON: {said}"))
    }

    fn lb(&self, words: &[&str]) -> Result<std::process::Command> {
        let (_, url) = self.node.as_ref().context("the node does not run")?;
        let mut command = self.net.on(BALANCER, self.cli);
        command
            .args(["lb", "--endpoint", url, "-o", "json", "--token-file"])
            .arg(self.dir.join("data/root-token"))
            .args(words);
        Ok(command)
    }

    /// Writes a document with these weights of the web's backends.
    fn document(&self, weights: [u32; 3]) -> Result<String> {
        let backends = |port: u16, weights: &[u32]| -> Vec<Value> {
            let named = weights.iter().zip(BACKENDS).enumerate();
            let backend = named.map(|(at, (weight, machine))| {
                json!({ "name": format!("b{}", at + 1), "address": Net::addr(machine), "port": port, "weight": weight })
            });
            backend.collect()
        };
        let check = json!({
            "kind": "http", "path": "/who", "interval_ms": 200, "timeout_ms": 1000, "rise": 2, "fall": 3,
        });
        let listener = |name: &str, protocol: &str, port: u16| json!({ "name": name, "protocol": protocol, "vip": VIP, "port": port, "pool": name });
        let document = json!({
            "set": "lane",
            "balancers": [{
                "name": "web",
                "listeners": [listener("web", "tcp", 80), listener("dns", "udp", 53), listener("speed", "tcp", 5201)],
                "pools": [
                    { "name": "web", "health_check": check, "backends": backends(8080, &weights) },
                    { "name": "dns", "backends": backends(5353, &[1, 1]) },
                    { "name": "speed", "backends": backends(5201, &[1]) },
                ],
            }],
        });
        let path = self.dir.join(format!(
            "lb-{}.json",
            weights.map(|weight| weight.to_string()).join("-")
        ));
        fs::write(&path, serde_json::to_string_pretty(&document)? + "\n")?;
        path.to_str()
            .map(str::to_owned)
            .context("a path that is no text")
    }

    /// The web's listener in the status, once that is as wanted.
    fn status_until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let found = process::until(DEADLINE, || {
            last = self.ask(&["status", "web"])?;
            let there = number(&last["generation"]) == number(&last["applied_generation"]);
            let listeners = last["balancers"][0]["listeners"].as_array();
            let web = listeners.and_then(|all| all.iter().find(|one| one["name"] == "web"));
            Ok(web.filter(|web| there && wanted(web)).cloned())
        })?;
        found.with_context(|| format!("{what}: the status says {last}"))
    }

    fn healthy(&self, wanted: &[&str]) -> Result<Value> {
        let is = |web: &Value| {
            let backends = web["backends"].as_array().into_iter().flatten();
            let mut healthy: Vec<&str> = backends
                .filter(|backend| backend["health"] == "healthy")
                .filter_map(|backend| backend["name"].as_str())
                .collect();
            healthy.sort_unstable();
            healthy == wanted
        };
        self.status_until(&format!("only {wanted:?} are healthy"), is)
    }

    fn apply_first(&mut self, out: &mut Artifacts) -> Result<()> {
        let document = self.document([1, 1, 1])?;
        let dry = self.ask(&["apply", "-f", &document, "--dry-run"])?;
        ensure!(
            dry["dry_run"] == true && !is_empty(&dry["changes"]),
            "the dry run says {dry}"
        );
        let before = self.ask(&["list"])?;
        ensure!(is_empty(&before), "a dry run has made {before}");
        let applied = self.ask(&["apply", "-f", &document])?;
        ensure!(applied["changes"] == dry["changes"], "it changed {applied}");
        out.keep("apply", &applied)?;
        self.healthy(&["b1", "b2", "b3"])?;
        let again = self.ask(&["apply", "-f", &document])?;
        ensure!(is_empty(&again["changes"]), "the same once more: {again}");
        let source = format!("{}:40000", Net::addr(CLIENT));
        let explained = self.ask(&["explain", &source, WEB])?;
        ensure!(
            explained["verdict"] == "balanced",
            "it explains {explained}"
        );
        out.keep("explain", &explained)?;
        let all = self.ask(&["status"])?;
        let attached: Vec<&Value> = all["interfaces"].as_array().into_iter().flatten().collect();
        let native = attached.iter().all(|one| one["attached"] == "native");
        ensure!(attached.len() == 4 && native, "interfaces: {attached:?}");
        Ok(())
    }

    /// Strangers' clients through the VIP.
    fn clients(&mut self, out: &mut Artifacts) -> Result<()> {
        let mut answered = std::collections::BTreeMap::<String, u32>::new();
        for _ in 0..60 {
            *answered.entry(self.curl()?).or_default() += 1;
        }
        ensure!(answered.len() == 3, "curl was answered by {answered:?}");
        out.fact("curl_answered_by", json!(answered));
        let request = format!("printf 'GET /who HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {VIP} 80");
        let said = self.net.run(CLIENT, &["sh", "-c", &request])?;
        ensure!(said.contains("200 OK"), "nc: {said}");
        let mut named = std::collections::BTreeSet::new();
        let at = format!("@{VIP}");
        for _ in 0..40 {
            let words = [
                "dig", "+short", "+tries=3", "+time=2", "TXT", "who.test", &at,
            ];
            named.insert(self.net.run(CLIENT, &words)?);
        }
        ensure!(named.len() == 2, "dig was answered by {named:?}");
        let said = self
            .net
            .run(CLIENT, &["iperf3", "-c", VIP, "-t", "2", "-J"])?;
        let said: Value = serde_json::from_str(&said)?;
        let rate = said["end"]["sum_received"]["bits_per_second"].as_f64();
        out.fact(
            "iperf3_gbit_per_s",
            rate.map(|rate| (rate / 1e7).round() / 100.0),
        );
        ensure!(rate.is_some_and(|rate| rate > 0.0), "iperf3 says {said}");
        Ok(())
    }

    fn curl(&self) -> Result<String> {
        let url = format!("http://{WEB}/who");
        self.net
            .run(CLIENT, &["curl", "-fsS", "--max-time", "20", &url])
    }

    fn refuse(&mut self, out: &mut Artifacts) -> Result<()> {
        let mut said = String::new();
        let faults = [
            ("unknown-pool", "pool: web", "pool: nowhere"),
            ("overlap", "port: 81", "port: 80"),
            (
                "host",
                "address: 10.77.2.2",
                "address: no.such.host.invalid",
            ),
            ("misspelt", "listeners:", "listener:"),
        ];
        let good = "balancers:\n  - name: more\n    listeners:\n      - name: a\n        protocol: tcp\n        \
                    vip: 192.0.2.1\n        port: 81\n        pool: web\n    pools:\n      - name: web\n        \
                    backends:\n          - name: b1\n            address: 10.77.2.2\n            port: 8080\n";
        let before = self.ask(&["list"])?;
        for (name, from, to) in faults {
            let path = self.dir.join(format!("bad-{name}.yaml"));
            fs::write(&path, good.replacen(from, to, 1))?;
            let output = self
                .lb(&["apply", "-f", path.to_str().context("no text")?])?
                .output()?;
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(!output.status.success(), "{name} was taken");
            ensure!(told.contains("line "), "{name}: no line is named: {told}");
            let _ = writeln!(said, "== {name}\n{told}");
        }
        ensure!(
            self.ask(&["list"])? == before,
            "a refused document has changed something"
        );
        self.curl()?;
        fs::write(self.dir.join("refused.txt"), said)?;
        out.fact("documents_refused", faults.len());
        Ok(())
    }

    fn load(&mut self) -> Result<Load> {
        self.loads += 1;
        let file = |what: &str| self.dir.join(format!("load-{}.{what}", self.loads));
        let (ready, until, log) = (file("ready"), file("until"), file("log"));
        let mut command = self.net.on(CLIENT, std::env::current_exe()?);
        command.args(["flows", "--to", WEB, "--connections", &HELD.to_string()]);
        command
            .arg("--ready")
            .arg(&ready)
            .arg("--until")
            .arg(&until);
        let mut process = Running::start(&mut command, &log)?;
        process::until(DEADLINE, || {
            Ok((ready.exists() || !process.is_running()?).then_some(()))
        })?;
        ensure!(
            process.is_running()?,
            "no load: {}",
            process::tail(&fs::read_to_string(&log)?, 5)
        );
        Ok(Load { process, until })
    }

    fn end(load: Load) -> Result<Outcome> {
        fs::write(&load.until, "")?;
        let said = load.process.finish(DEADLINE)?;
        let line = said.lines().last().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("the load said {said}"))
    }

    fn end_unbroken(load: Load) -> Result<Outcome> {
        let outcome = Story::end(load)?;
        ensure!(
            outcome.broken() == 0,
            "established flows broke: {outcome:?}"
        );
        Ok(outcome)
    }

    fn swap(&mut self, out: &mut Artifacts) -> Result<()> {
        let documents = [self.document([1, 2, 3])?, self.document([3, 2, 1])?];
        let load = self.load()?;
        let before = number(&self.ask(&["status"])?["applied_generation"]);
        for swap in 0..SWAPS {
            let applied = self.ask(&["apply", "-f", &documents[swap as usize % 2]])?;
            ensure!(
                !is_empty(&applied["changes"]),
                "swap {swap} changed nothing"
            );
        }
        self.healthy(&["b1", "b2", "b3"])?;
        let after = number(&self.ask(&["status"])?["applied_generation"]);
        let outcome = Story::end_unbroken(load)?;
        let made = after
            .zip(before)
            .map_or(0, |(after, before)| after - before);
        ensure!(made >= u64::from(SWAPS), "{made} generations were applied");
        out.keep(
            "swap",
            &json!({ "swaps": SWAPS, "generations": made, "flows": outcome }),
        )
    }

    fn drain(&mut self, out: &mut Artifacts) -> Result<()> {
        let load = self.load()?;
        let mut summary = String::from("FiberLB: a backend is drained and restored under load\n");
        let b2 = |web: &Value| named(web, "b2").cloned();
        let before = self.status_until("it runs", |_| true)?;
        let before = b2(&before).context("there is no b2")?;
        let drained = self.ask(&["drain", "web", "web/b2", "--deadline", "600"])?;
        let draining = |web: &Value| b2(web).is_some_and(|one| one["state"] == "draining");
        let state =
            b2(&self.status_until("b2 is draining", draining)?).context("there is no b2")?;
        let began = number(&state["flows"]);
        for _ in 0..60 {
            let who = self.curl()?;
            ensure!(who != "b2", "a new flow went to a backend that is drained");
        }
        let after = b2(&self.status_until("it runs", |_| true)?).context("there is no b2")?;
        ensure!(
            number(&after["flows"]) == began,
            "new flows: {state}, then {after}"
        );
        let outcome = Story::end_unbroken(load)?;
        let held = outcome.held.get("b2").copied().unwrap_or(0);
        ensure!(held > 0, "b2 held no flow: {outcome:?}");
        let left = |web: &Value| b2(web).is_some_and(|one| number(&one["open_flows"]) == Some(0));
        self.status_until("b2's flows have ended", left)?;
        self.ask(&["restore", "web", "web/b2"])?;
        let up = |web: &Value| b2(web).is_some_and(|one| one["state"] == "up");
        let restored = b2(&self.status_until("b2 is back", up)?).context("there is no b2")?;
        process::until(DEADLINE, || Ok((self.curl()? == "b2").then_some(())))?
            .context("b2 gets no new flows after the restore")?;
        for (what, value) in [
            ("backend", json!("web/b2")),
            ("open flows before the drain", before["open_flows"].clone()),
            ("flows left when it began", drained["open_flows"].clone()),
            ("deadline in seconds", json!(600)),
            ("new connections meanwhile", json!(60)),
            ("new flows to it meanwhile", json!(0)),
            ("established flows that it kept", json!(held)),
            ("established flows that broke", json!(outcome.broken())),
            (
                "requests answered on established flows",
                json!(outcome.requests),
            ),
            ("open flows when they had ended", json!(0)),
            ("state after the restore", restored["state"].clone()),
            ("new flows after the restore", json!("yes")),
        ] {
            let _ = writeln!(summary, "{what}: {}", value.to_string().trim_matches('"'));
        }
        let dir = self.dir.join("network-provider");
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(DRAIN_SUMMARY), &summary)?;
        out.keep(
            "drain",
            &json!({ "drained": drained, "restored": restored, "flows": outcome }),
        )
    }

    fn restart(&mut self, out: &mut Artifacts, pins: &Path) -> Result<()> {
        let load = self.load()?;
        for _ in 0..3 {
            let (process, _) = self.node.take().context("the node does not run")?;
            drop(process);
            // Nobody is there but the kernel.
            for _ in 0..20 {
                self.curl()?;
            }
            self.start_node(pins)?;
            self.healthy(&["b1", "b2", "b3"])?;
        }
        let outcome = Story::end_unbroken(load)?;
        out.keep("restart", &json!({ "kills": 3, "flows": outcome }))
    }

    fn lose(&mut self, out: &mut Artifacts) -> Result<()> {
        let load = self.load()?;
        self.backends[2].kill()?;
        self.healthy(&["b1", "b2"])?;
        let mut answered = std::collections::BTreeSet::new();
        for _ in 0..60 {
            answered.insert(self.curl()?);
        }
        ensure!(!answered.contains("b3"), "the dead answer: {answered:?}");
        let outcome = Story::end(load)?;
        // Nobody can hold the flows of the one that died.
        let others = outcome.broken.iter().filter(|(who, _)| *who != "b3");
        ensure!(others.count() == 0, "survivors' flows broke: {outcome:?}");
        ensure!(
            outcome.held.contains_key("b3"),
            "b3 had no flows: {outcome:?}"
        );
        self.backends[2].revive(&self.net)?;
        self.healthy(&["b1", "b2", "b3"])?;
        out.keep("backend-death", &json!({ "flows": outcome }))
    }

    fn flood(&mut self, out: &mut Artifacts) -> Result<()> {
        let load = self.load()?;
        let mut command = self.net.on(CLIENT, "/usr/sbin/hping3");
        command.args(["-S", "-q", "--rand-source", "-p", "80", "-i", "u20"]);
        command.args(["-c", &FLOOD.to_string(), VIP]);
        let mut flood = Running::start(&mut command, &self.dir.join("flood.log"))?;
        let mut asked = 0;
        while flood.is_running()? && asked < 2000 {
            self.curl()?;
            asked += 1;
        }
        let status = self.status_until("it runs", |_| true)?;
        drop(flood);
        let outcome = Story::end_unbroken(load)?;
        ensure!(asked > 10, "only {asked} requests beside the flood");
        for count in ["cookies_sent", "cookies_proved"] {
            ensure!(number(&status[count]) > Some(0), "no {count}: {status}");
        }
        out.keep(
            "flood",
            &json!({ "syns": FLOOD, "requests_beside": asked, "web": status, "flows": outcome }),
        )
    }
}

fn named<'v>(web: &'v Value, name: &str) -> Option<&'v Value> {
    let backends = web["backends"].as_array()?;
    backends.iter().find(|backend| backend["name"] == name)
}

fn is_empty(list: &Value) -> bool {
    list.as_array().is_none_or(Vec::is_empty)
}

/// A number, which large ones are as text.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}
