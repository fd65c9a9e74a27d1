//! etcdctl and ultractl, as operators run them.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use serde_json::Value;

use super::{Member, signal};

/// etcdctl with its endpoints and global options.
#[derive(Clone)]
pub struct Ctl {
    args: Vec<String>,
}

impl Ctl {
    pub fn new(endpoints: &[SocketAddr]) -> Ctl {
        let endpoints: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
        Ctl::at(&endpoints)
    }

    /// At members that are named by URLs.
    pub fn at(urls: &[String]) -> Ctl {
        let args = vec![format!("--endpoints={}", urls.join(","))];
        Ctl { args }
    }

    /// Over TLS; the certificates are options.
    pub fn secure(endpoints: &[SocketAddr]) -> Ctl {
        let urls: Vec<String> = endpoints.iter().map(|at| format!("https://{at}")).collect();
        Ctl::at(&urls)
    }

    /// With one more global option.
    pub fn with(&self, option: &str) -> Ctl {
        let mut args = self.args.clone();
        args.push(option.to_owned());
        Ctl { args }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(&self.args)
            .args(args)
            .stdin(Stdio::null());
        command
    }

    pub fn output(&self, args: &[&str]) -> Output {
        self.command(args)
            .output()
            .expect("etcdctl is there after `cargo xtask setup`")
    }

    /// Runs it; what it printed.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> String {
        let output = self.output(args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl {args:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it where it must fail; what it complained of.
    #[track_caller]
    pub fn fails(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(!output.status.success(), "etcdctl {args:?} did not fail");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Runs it with JSON as its output.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let mut all = vec!["-w", "json"];
        all.extend(args);
        let said = self.run(&all);
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{args:?}: {error}: {said}"))
    }

    /// Runs it with a text as its input; how it ended.
    pub fn fed(&self, args: &[&str], input: &str) -> Output {
        let mut command = self.command(args);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        drop(stdin);
        child.wait_with_output().unwrap()
    }

    /// Runs it with a text as its input; what it printed.
    #[track_caller]
    pub fn feed(&self, args: &[&str], input: &str) -> String {
        let output = self.fed(args, input);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl {args:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts it and leaves it running, as a watch or a lock.
    pub fn running(&self, args: &[&str]) -> Running {
        self.running_with(args, "")
    }

    /// The same, with a text as its input, which does not end there.
    pub fn running_with(&self, args: &[&str], input: &str) -> Running {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Running {
            child,
            lines,
            _stdin: stdin,
        }
    }
}

/// An etcdctl that runs. Killed when dropped.
pub struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
    _stdin: ChildStdin,
}

impl Running {
    /// The next line that it prints.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        let count = self.lines.read_line(&mut line).unwrap();
        assert!(count > 0, "it ended: {:?}", self.child.wait());
        line.trim_end().to_owned()
    }

    /// SIGINT, as from a keyboard, and its end.
    pub fn interrupt(mut self) {
        signal(self.child.id(), "INT");
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `ultractl -o json chainfire` at a member; its answer, or what it complained of.
pub fn ultractl(member: &Member, args: &[&str]) -> Result<Value, String> {
    let output = ultractl_command(member, args).output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8(output.stderr).unwrap());
    }
    Ok(serde_json::from_slice(&output.stdout).unwrap())
}

/// `ultractl -o json chainfire` at a member.
pub fn ultractl_command(member: &Member, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ultractl"));
    command
        // Nobody's contexts.
        .env("ULTRACTL_CONFIG", "/dev/null")
        .args(["-o", "json", "chainfire", "--endpoints"])
        .arg(format!("http://{}", member.client))
        .args(args);
    command
}
