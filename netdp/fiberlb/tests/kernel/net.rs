//! Network namespaces: this thread is the load balancer, each other machine has one end of a veth pair.
//!
//! All of it ends with the thread and with the pipes that hold the other namespaces.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use fiberlb_abi::Hop;

/// Runs a command in this thread's namespaces; it must succeed.
pub fn run(words: &str) -> String {
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next().expect("a program"));
    let output = command.args(words).output().expect("it starts");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Gives this thread network and mounts of its own, and makes it a router.
pub fn become_router() {
    // SAFETY: no memory is involved; the thread alone changes namespaces.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
    assert_eq!(
        done,
        0,
        "{}: tests of networks run as root",
        std::io::Error::last_os_error()
    );
    run("mount --make-rprivate /");
    run("mount -t sysfs sysfs /sys");
    run("ip link set lo up");
    run("/usr/sbin/sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
}

/// A machine behind a veth pair.
pub struct Machine {
    /// Holds the namespace: it ends when its input does.
    holder: Child,
    /// The last byte of its addresses.
    number: u8,
}

impl Machine {
    /// Makes machine `number`: it is 10.N.0.2 on its `eth0`, which is `to-N` here with 10.N.0.1.
    pub fn new(number: u8) -> Self {
        let holder = Command::new("unshare")
            .args(["-n", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare starts");
        let mut machine = Self { holder, number };
        machine.wait_for_namespace();
        let pid = machine.holder.id();
        let [here, there] = machine.macs().map(shown);
        run(&format!(
            "ip link add to-{number} address {here} type veth peer name eth0 address {there} netns {pid}"
        ));
        run(&format!("ip addr add 10.{number}.0.1/24 dev to-{number}"));
        run(&format!(
            "ip addr add fd00:{number}::1/64 dev to-{number} nodad"
        ));
        run(&format!("ip link set to-{number} up"));
        machine.run("ip link set lo up");
        machine.run(&format!("ip addr add 10.{number}.0.2/24 dev eth0"));
        machine.run(&format!("ip addr add fd00:{number}::2/64 dev eth0 nodad"));
        machine.run("ip link set eth0 up");
        machine.run(&format!("ip route add default via 10.{number}.0.1"));
        machine.run(&format!("ip -6 route add default via fd00:{number}::1"));
        // Programs need whole checksums and packets of the link's size; GRO lets frames in that
        // programs redirect.
        machine.run("/usr/sbin/ethtool -K eth0 tx off tso off gso off gro on");
        machine
    }

    /// The holder answers when it is in its namespace.
    fn wait_for_namespace(&mut self) {
        let input = self.holder.stdin.as_mut().expect("it is piped");
        input.write_all(b"x\n").expect("cat reads");
        let output = self.holder.stdout.take().expect("it is piped");
        let mut line = String::new();
        BufReader::new(output)
            .read_line(&mut line)
            .expect("cat answers");
    }

    /// MAC addresses here and there.
    pub fn macs(&self) -> [[u8; 6]; 2] {
        [[2, 0, 0, 0, self.number, 1], [2, 0, 0, 0, self.number, 2]]
    }

    /// Its interface here.
    pub fn ifindex(&self) -> u32 {
        let link = run(&format!("ip -o link show to-{}", self.number));
        let (index, _) = link.split_once(':').expect("it begins with the index");
        index.trim().parse().expect("it is a number")
    }

    /// The way there.
    pub fn hop(&self) -> Hop {
        let [here, there] = self.macs();
        Hop::new(there, here, self.ifindex())
    }

    /// Runs a command on it; it must succeed.
    pub fn run(&self, words: &str) -> String {
        run(&format!("nsenter -t {} -n {words}", self.holder.id()))
    }

    /// Runs code on it, in a thread.
    pub fn spawn<T: Send + 'static>(
        &self,
        code: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let namespace =
            File::open(format!("/proc/{}/ns/net", self.holder.id())).expect("it is there");
        std::thread::spawn(move || {
            // SAFETY: the descriptor is open; the thread alone changes its namespace.
            let done = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(done, 0);
            code()
        })
    }

    /// Serves HTTP on it: every request is answered with its name.
    pub fn serve(&self, addr: &str, name: &'static str) {
        let addr: SocketAddr = addr.parse().expect("an address");
        let listener = self.spawn(move || TcpListener::bind(addr).expect("the address is its own"));
        let listener = listener.join().expect("it binds");
        // A socket stays in the namespace where it was made.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || answer(&stream, name));
            }
        });
    }

    /// Connects from it.
    pub fn connect(&self, addr: &'static str) -> Client {
        let stream = self.spawn(move || TcpStream::connect(addr).expect("it answers"));
        let stream = stream.join().expect("it connects");
        Client(BufReader::new(stream))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

fn shown(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn answer(stream: &TcpStream, name: &str) {
    let mut lines = BufReader::new(stream).lines();
    while let Some(Ok(line)) = lines.next() {
        if line.is_empty() {
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}",
                name.len()
            );
            let mut stream = stream;
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}

/// One connection that asks again and again.
pub struct Client(BufReader<TcpStream>);

impl Client {
    /// Asks with so many bytes more in the request.
    pub fn ask_with(&mut self, more: usize) -> String {
        let padding = format!("X-Padding: {}\r\n", "x".repeat(more));
        let stream = self.0.get_mut();
        stream
            .write_all(padding.as_bytes())
            .expect("it is connected");
        self.ask()
    }

    /// Who answers.
    pub fn ask(&mut self) -> String {
        let request = b"GET / HTTP/1.1\r\nHost: vip\r\n\r\n";
        self.0
            .get_mut()
            .write_all(request)
            .expect("it is connected");
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            assert_ne!(self.0.read_line(&mut line).expect("it is connected"), 0);
        }
        let mut name = [0; 2];
        std::io::Read::read_exact(&mut self.0, &mut name).expect("it is connected");
        String::from_utf8_lossy(&name).into_owned()
    }
}
