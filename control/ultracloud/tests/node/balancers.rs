//! FiberLB as a node serves it: packets of a client in a network namespace, through a VIP, to servers in others.
//! Contracts LB-1, LB-5, LB-7.
//!
//! The node runs in a namespace that is the router between those of the machines. It needs root, and the
//! program that `cargo xtask test` builds.

mod modes;

use std::io::{BufRead, BufReader, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Node, command, data_of};

const DEADLINE: Duration = Duration::from_secs(30);
/// Tells this binary, started again within a namespace, as whom it serves.
const SERVES: &str = "ULTRACLOUD_TEST_SERVES";

/// A process with pipes, which ends with its input.
struct Piped {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Piped {
    fn new(command: &mut Command) -> Piped {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let input = child.stdin.take();
        Piped {
            child,
            input,
            output,
        }
    }

    /// Gives it a line; the line that it answers.
    fn ask(&mut self) -> String {
        self.input.as_mut().unwrap().write_all(b"x\n").unwrap();
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Namespaces that a process holds.
struct Namespace(Piped);

impl Namespace {
    fn new(flags: &[&str]) -> Namespace {
        let mut holder = Piped::new(Command::new("unshare").args(flags).arg("cat"));
        assert_eq!(holder.ask(), "x", "tests of networks run as root");
        Namespace(holder)
    }

    fn pid(&self) -> u32 {
        self.0.child.id()
    }

    /// A command within.
    fn command(&self, words: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid().to_string(), "-n", "-m"]);
        command.args(words.split_whitespace());
        command
    }

    fn run(&self, words: &str) -> String {
        let output = self.command(words).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// The router, a client (machine 1) and backends (2, 3 and 4).
struct Lab {
    dir: TempDir,
    router: Namespace,
    machines: Vec<Namespace>,
}

impl Lab {
    fn new() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let router = Namespace::new(&["-n", "-m", "--propagation", "private"]);
        let bpf = dir.path().join("bpf");
        std::fs::create_dir(&bpf).unwrap();
        router.run(&format!("mount -t bpf bpf {}", bpf.display()));
        router.run("ip link set lo up");
        router.run("/usr/sbin/sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        let machine = |number| {
            let machine = Namespace::new(&["-n"]);
            let pid = machine.pid();
            router.run(&format!(
                "ip link add to-{number} type veth peer name eth0 netns {pid}"
            ));
            router.run(&format!("ip addr add 10.{number}.0.1/24 dev to-{number}"));
            router.run(&format!(
                "ip addr add fd00:{number}::1/64 dev to-{number} nodad"
            ));
            router.run(&format!("ip link set to-{number} up"));
            machine.run("ip link set lo up");
            machine.run(&format!("ip addr add 10.{number}.0.2/24 dev eth0"));
            machine.run(&format!("ip addr add fd00:{number}::2/64 dev eth0 nodad"));
            machine.run("ip link set eth0 up");
            machine.run(&format!("ip route add default via 10.{number}.0.1"));
            machine.run(&format!("ip route add default via fd00:{number}::1"));
            machine.run("/usr/sbin/ethtool -K eth0 tx off tso off gso off gro on");
            machine
        };
        let machines = (1..=4).map(machine).collect();
        Lab {
            dir,
            router,
            machines,
        }
    }

    /// Starts the node within the router.
    fn node(&self) -> Node {
        self.node_with("")
    }

    /// The same with more lines of FiberLB's config.
    fn node_with(&self, lines: &str) -> Node {
        let pins = self.dir.path().join("bpf/fiberlb");
        let lines = format!(
            "interfaces = [\"to-1\", \"to-2\", \"to-3\", \"to-4\"]\npin_dir = \"{}\"\n{lines}",
            pins.display()
        );
        Lab::node_on(&self.router, &self.dir, &lines)
    }

    /// Starts a node within a namespace, with these lines of FiberLB's config.
    fn node_on(machine: &Namespace, dir: &TempDir, lines: &str) -> Node {
        let config = dir.path().join("node.toml");
        let text = format!(
            "roles = [\"lightningstor\", \"fiberlb\"]\n[shards]\ncount = 1\npool_mib = 16\n[fiberlb]\n{lines}"
        );
        std::fs::write(&config, text).unwrap();
        let inner = command(&data_of(dir));
        // nsenter becomes the node, so that signals reach that.
        let mut outer = machine.command("");
        outer.arg(inner.get_program()).args(inner.get_args());
        outer.arg("--config").arg(&config);
        outer.envs(
            inner
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        Node::from_command(&mut outer)
    }

    /// A call of the API, as root.
    fn call(&self, node: &Node, method: &str, path: &str, body: &Value) -> (u16, Value) {
        Lab::call_on((&self.router, &self.dir), node, method, path, body)
    }

    /// The same of a node within a namespace, on a directory.
    fn call_on(
        (machine, dir): (&Namespace, &TempDir),
        node: &Node,
        method: &str,
        path: &str,
        body: &Value,
    ) -> (u16, Value) {
        let token = std::fs::read_to_string(data_of(dir).join("root-token")).unwrap();
        let mut curl = machine.command("curl -s -S --max-time 30");
        curl.args(["-X", method, "-w", "\n%{http_code}"]);
        curl.args(["-H", &format!("authorization: Bearer {}", token.trim())]);
        if !body.is_null() {
            curl.args(["-H", "content-type: application/json"]);
            curl.args(["-d", &body.to_string()]);
        }
        let url = format!("http://{}{path}", node.admin);
        let output = curl.arg(url).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        let status = status.parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or_default())
    }

    fn done(&self, node: &Node, method: &str, path: &str, body: &Value) -> Value {
        let (status, answer) = self.call(node, method, path, body);
        assert_eq!(status, 200, "{method} {path}: {answer}");
        answer
    }

    /// Waits until backends are in these states, by ways that are known.
    fn wait_for(&self, node: &Node, states: [&str; 3]) {
        let began = Instant::now();
        loop {
            let path = "/v1/load-balancer-status?name=web";
            let status = self.done(node, "GET", path, &Value::Null);
            let backends = &status["balancers"][0]["listeners"][0]["backends"];
            let backends = backends.as_array().unwrap();
            let is = |(backend, state): (&Value, &str)| {
                backend["state"] == state && backend["next_hop_known"] == true
            };
            let applied = status["generation"] == status["applied_generation"];
            if applied && backends.iter().zip(states).all(is) {
                return;
            }
            assert!(began.elapsed() < DEADLINE, "{states:?} is not {status}");
        }
    }

    /// A server on a machine, until it is dropped.
    fn server(&self, machine: usize) -> Piped {
        let this = std::env::current_exe().unwrap();
        let mut command = self.machines[machine - 1].command("");
        command.arg(this);
        command.args([
            "--exact",
            "balancers::serves_within_a_namespace",
            "--nocapture",
        ]);
        let mut server = Piped::new(command.env(SERVES, format!("b{machine}")));
        while server.line() != "serves" {}
        server
    }

    /// Who answers so many requests of the client, each over a new connection.
    fn answers(&self, times: usize) -> Vec<String> {
        self.answers_of(&["http://192.0.2.1/"], times)
    }

    /// The same of requests for these URLs in turn.
    fn answers_of(&self, urls: &[&str], times: usize) -> Vec<String> {
        let ask = |url: &&str| self.machines[0].run(&format!("curl -g -s -S --max-time 10 {url}"));
        let mut answers: Vec<String> = urls.iter().cycle().take(times).map(ask).collect();
        answers.sort();
        answers.dedup();
        answers
    }

    /// A connection of the client that asks once for each line.
    fn connection(&self) -> Piped {
        let script = "exec 3<>/dev/tcp/192.0.2.1/80
            while read -r _; do
                printf 'GET / HTTP/1.1\\r\\nHost: v\\r\\n\\r\\n' >&3
                while read -r line <&3 && [ \"$line\" != $'\\r' ]; do :; done
                read -r -N 2 name <&3 && echo \"$name\"
            done";
        Piped::new(self.machines[0].command("bash -c").arg(script))
    }
}

/// No test of its own: what a machine of the tests below runs. It serves until its input ends.
#[test]
fn serves_within_a_namespace() {
    let Ok(name) = std::env::var(SERVES) else {
        return;
    };
    let listener = TcpListener::bind("[::]:8080").unwrap();
    let datagrams = UdpSocket::bind("0.0.0.0:5353").unwrap();
    println!("\nserves");
    let line = format!("{name}\n");
    std::thread::spawn(move || {
        while let Ok((_, from)) = datagrams.recv_from(&mut [0; 64]) {
            let _ = datagrams.send_to(line.as_bytes(), from);
        }
    });
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let name = name.clone();
            std::thread::spawn(move || answer(&stream, &name));
        }
    });
    let _ = std::io::stdin().read_line(&mut String::new());
}

fn answer(stream: &TcpStream, name: &str) {
    let mut lines = BufReader::new(stream).lines();
    while let Some(Ok(line)) = lines.next() {
        let length = name.len();
        let body = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}");
        let mut stream = stream;
        if line.is_empty() && stream.write_all(body.as_bytes()).is_err() {
            return;
        }
    }
}

fn document() -> Value {
    let backend = |at: u32| {
        serde_json::json!({
            "name": format!("b{at}"), "address": format!("10.{at}.0.2"), "port": 8080
        })
    };
    serde_json::json!({ "balancers": [{
        "name": "web",
        "listeners": [{
            "name": "http", "protocol": "tcp", "vip": "192.0.2.1", "port": 80, "pool": "web"
        }],
        "pools": [{
            "name": "web",
            "health_check": { "kind": "http", "interval_ms": 100, "rise": 1, "fall": 2 },
            "backends": [backend(2), backend(3), backend(4)],
        }],
    }] })
}

#[test]
fn clients_reach_backends_through_drains_and_restarts_of_the_node() {
    let lab = Lab::new();
    let _servers: Vec<Piped> = (2..=4).map(|machine| lab.server(machine)).collect();
    let node = lab.node();
    let all = "/v1/load-balancers";
    let dry = {
        let mut dry = document();
        dry["dry_run"] = true.into();
        lab.done(&node, "PUT", all, &dry)
    };
    assert_eq!(dry["changes"].as_array().unwrap().len(), 6, "{dry}");
    let listed = lab.done(&node, "GET", all, &Value::Null);
    assert_eq!(
        listed["balancers"],
        serde_json::json!([]),
        "a dry run does nothing"
    );
    lab.done(&node, "PUT", all, &document());
    lab.wait_for(&node, ["up", "up", "up"]);
    assert_eq!(lab.answers(30), ["b2", "b3", "b4"]);

    // Connections stay where they are, whatever happens to others.
    let mut open: Vec<Piped> = (0..12).map(|_| lab.connection()).collect();
    let mut who = || open.iter_mut().map(Piped::ask).collect::<Vec<String>>();
    let before = who();
    for name in ["b2", "b3"] {
        assert!(before.iter().any(|who| who == name), "{before:?}");
    }
    let drain = serde_json::json!({ "backend": "b3" });
    let drained = lab.done(&node, "POST", "/v1/load-balancers/web/drain", &drain);
    assert_eq!(drained["state"], "draining");
    let kept = before.iter().filter(|who| *who == "b3").count();
    assert_eq!(drained["open_flows"], kept, "{before:?}");
    assert_eq!(lab.answers(20), ["b2", "b4"]);
    assert_eq!(who(), before);

    // A document with faults is refused whole.
    let mut bad = document();
    bad["balancers"][0]["pools"][0]["backends"][1]["address"] = "nowhere!".into();
    bad["balancers"][0]["listeners"][0]["vip"] = "192.0.2.2".into();
    let (status, refused) = lab.call(&node, "PUT", all, &bad);
    let said = refused["error"]["message"].as_str().unwrap();
    assert_eq!(status, 400);
    assert!(
        said.starts_with("balancers[0].pools[0].backends[1].address: "),
        "{said}"
    );
    assert_eq!(lab.answers(20), ["b2", "b4"]);

    // The node dies: packets go on. The next one has the drain, and forgets no flow.
    node.kill();
    assert_eq!(who(), before, "without a node");
    assert_eq!(lab.answers(10), ["b2", "b4"]);
    let node = lab.node();
    lab.wait_for(&node, ["up", "draining", "up"]);
    assert_eq!(who(), before, "with the next node");
    let restored = lab.done(&node, "POST", "/v1/load-balancers/web/restore", &drain);
    assert_eq!(restored["state"], "up");
    assert_eq!(lab.answers(30), ["b2", "b3", "b4"]);
    assert_eq!(who(), before);

    node.drain();
}

#[test]
fn a_dead_backend_is_seen_and_packets_are_explained() {
    let lab = Lab::new();
    let mut servers: Vec<Piped> = (2..=4).map(|machine| lab.server(machine)).collect();
    let node = lab.node();
    lab.done(&node, "PUT", "/v1/load-balancers", &document());
    lab.wait_for(&node, ["up", "up", "up"]);
    drop(servers.pop());
    lab.wait_for(&node, ["up", "up", "down"]);
    assert_eq!(lab.answers(20), ["b2", "b3"]);
    servers.push(lab.server(4));
    lab.wait_for(&node, ["up", "up", "up"]);
    let path = "/v1/load-balancer-explanation?src=10.1.0.2:1234&dst=192.0.2.1:80&protocol=tcp";
    let explained = lab.done(&node, "GET", path, &Value::Null);
    assert_eq!(explained["balancer"], "web");
    assert_eq!(explained["verdict"], "balanced", "{explained}");
    lab.done(&node, "DELETE", "/v1/load-balancers/web", &Value::Null);
    let explained = lab.done(&node, "GET", path, &Value::Null);
    assert_eq!(explained["verdict"], "no-vip", "{explained}");
    node.drain();
}

#[test]
fn sources_prove_themselves_and_traffic_control_refuses_what_needs_xdp() {
    let lab = Lab::new();
    let _servers: Vec<Piped> = (2..=4).map(|machine| lab.server(machine)).collect();
    let all = "/v1/load-balancers";
    let with = |field: &str, value: &str| {
        let mut document = document();
        document["balancers"][0]["listeners"][0][field] = value.into();
        document
    };
    let status = |node: &Node| {
        let path = "/v1/load-balancer-status?name=web";
        lab.done(node, "GET", path, &Value::Null)
    };
    let node = lab.node();
    lab.done(&node, "PUT", all, &with("syn_cookies", "always"));
    lab.wait_for(&node, ["up", "up", "up"]);
    assert_eq!(lab.answers(30), ["b2", "b3", "b4"]);
    let running = status(&node);
    let listener = &running["balancers"][0]["listeners"][0];
    assert_eq!(listener["syn_cookies"], "always", "{running}");
    assert_eq!(listener["cookies_proved"], 1, "{running}");
    assert_eq!(running["interfaces"][0]["attached"], "native", "{running}");
    let metrics = lab
        .router
        .run(&format!("curl -s -S http://{}/metrics", node.admin));
    let counted =
        "uc_fiberlb_vip_proved_sources_total{owner=\"root\",balancer=\"web\",listener=\"http\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
    lab.done(&node, "PUT", all, &document());
    node.drain();

    let node = lab.node_with("attach = \"tc\"\n");
    lab.wait_for(&node, ["up", "up", "up"]);
    let interfaces = status(&node)["interfaces"].clone();
    let interfaces = interfaces.as_array().unwrap();
    assert!(
        interfaces.iter().all(|one| one["attached"] == "tc"),
        "{interfaces:?}"
    );
    assert_eq!(lab.answers(30), ["b2", "b3", "b4"]);
    for document in [with("syn_cookies", "always"), {
        let mut tunnels = with("mode", "ipip");
        for backend in tunnels["balancers"][0]["pools"][0]["backends"]
            .as_array_mut()
            .unwrap()
        {
            backend["port"] = 0.into();
        }
        tunnels
    }] {
        let (code, refused) = lab.call(&node, "PUT", all, &document);
        let said = refused["error"]["message"].as_str().unwrap();
        assert_eq!(code, 400, "{refused}");
        assert!(said.starts_with("balancers[0].listeners[0]: "), "{said}");
        assert!(
            said.contains("needs XDP, and interface to-1 is attached by tc"),
            "{said}"
        );
    }
    node.drain();
}
