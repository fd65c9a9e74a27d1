//! Programs that a run starts: bound to one CPU, with their words in a file, and killed with the run.
//!
//! Only processes started here are ever ended, by their own handle; the kernel kills them when this
//! process dies first. A program's id stays the one it was started with, as every wrapper execs.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::machine;

/// The CPU of the load generator and of the threads that fill the servers.
pub const LOAD_CPU: usize = 0;
/// The CPU of the server under load.
pub const SERVER_CPU: usize = 1;

/// How often a wait looks at what it waits for.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// The last lines of a log that an error carries.
const TAIL_LINES: usize = 20;
/// Lifts the limit of open files, then becomes the program on its CPUs.
const LAUNCH: &str = r#"ulimit -n "$(ulimit -H -n)" && exec taskset -c "$0" "$@""#;

/// A command that will run on one CPU and die with this process.
pub fn pinned(cpu: usize, program: impl AsRef<OsStr>) -> Command {
    on_cpus(&cpu.to_string(), program)
}

/// A command that may run on the CPUs of a list, as `0-3`, and will die with this process.
pub fn on_cpus(list: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--", "sh", "-c", LAUNCH])
        .arg(list)
        .arg(program);
    command
}

/// A running program. Dropping it kills it.
pub struct Process {
    child: Child,
    name: &'static str,
    /// Its stdout; `.err` beside it has its stderr.
    out: PathBuf,
}

impl Process {
    /// Starts a program with stdout in `DIR/NAME.out` and stderr in `DIR/NAME.err`.
    pub fn start(name: &'static str, command: &mut Command, dir: &Path) -> Result<Self> {
        let create = |suffix: &str| -> Result<(PathBuf, File)> {
            let path = dir.join(format!("{name}.{suffix}"));
            let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
            Ok((path, file))
        };
        let (out, stdout) = create("out")?;
        let (_, stderr) = create("err")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self { child, name, out })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed on stdout so far.
    pub fn said(&self) -> Result<String> {
        read(&self.out)
    }

    /// Asks `probe` until it has an answer; the program's end or the deadline is an error.
    pub fn until<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut probe: impl FnMut(&Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let end = Instant::now() + deadline;
        loop {
            if let Some(answer) = probe(self)? {
                return Ok(answer);
            }
            if let Some(status) = self.child.try_wait().context("look after a child")? {
                bail!("{} ended with {status}{}", self.name, self.tail());
            }
            if Instant::now() >= end {
                bail!(
                    "{}: {what} took over {deadline:?}{}",
                    self.name,
                    self.tail()
                );
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits for its end with status 0 and gives its stdout.
    pub fn finish(mut self, deadline: Duration) -> Result<String> {
        let end = Instant::now() + deadline;
        loop {
            match self.child.try_wait().context("look after a child")? {
                Some(status) if status.success() => return self.said(),
                Some(status) => bail!("{} ended with {status}{}", self.name, self.tail()),
                None if Instant::now() >= end => {
                    bail!("{} still ran after {deadline:?}{}", self.name, self.tail())
                }
                None => thread::sleep(POLL_INTERVAL),
            }
        }
    }

    /// Asks it to end and waits for its end with status 0.
    pub fn stop(self, deadline: Duration) -> Result<()> {
        machine::terminate(&self.child).with_context(|| format!("stop {}", self.name))?;
        self.finish(deadline).map(drop)
    }

    /// Kills it, whatever it does, and waits for its end.
    pub fn kill(mut self) -> Result<()> {
        let name = self.name;
        self.child.kill().with_context(|| format!("kill {name}"))?;
        let status = self.child.wait();
        status.map(drop).with_context(|| format!("wait for {name}"))
    }

    /// The end of its words, to be put behind an error.
    pub fn tail(&self) -> String {
        let mut text = String::new();
        for path in [&self.out, &self.out.with_extension("err")] {
            // The words are a help to the reader of another error; without them that one stands.
            let said = read(path).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
                text.push_str("\n    ");
                text.push_str(line);
            }
        }
        text
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Either may fail when the program has already ended.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The first line that a program prints about its version, whichever stream it takes.
pub fn version(program: &Path, option: &str) -> Option<String> {
    let output = Command::new(program)
        .arg(option)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let said = [output.stdout, output.stderr].concat();
    let line = String::from_utf8_lossy(&said)
        .lines()
        .next()?
        .trim()
        .to_owned();
    (!line.is_empty()).then_some(line)
}

/// Where the shell would find a program, system directories included.
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc;

    const DEADLINE: Duration = Duration::from_mins(1);

    #[test]
    fn a_pinned_program_keeps_its_id_and_its_cpu() {
        let dir = tempfile::tempdir().unwrap();
        let script = r#"echo "id $$"; exec tail -f /dev/null"#;
        let mut command = pinned(LOAD_CPU, "sh");
        let mut process =
            Process::start("shell", command.args(["-c", script]), dir.path()).unwrap();
        let expected = format!("id {}\n", process.id());
        let said = process.until("its id", DEADLINE, |process| {
            Ok(Some(process.said()?).filter(|said| said.ends_with('\n')))
        });
        assert_eq!(said.unwrap(), expected);
        proc::check_pinned(process.id(), LOAD_CPU).unwrap();
        let error = proc::check_pinned(process.id(), LOAD_CPU + 1).unwrap_err();
        assert!(error.to_string().contains("left its pinning"), "{error}");
    }

    #[test]
    fn a_dropped_program_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = pinned(LOAD_CPU, "tail");
        let process =
            Process::start("tail", command.args(["-f", "/dev/null"]), dir.path()).unwrap();
        let id = process.id();
        drop(process);
        assert!(proc::tree_cpu(id).is_err());
    }

    #[test]
    fn a_stopped_program_may_tidy_up_and_a_bad_end_is_an_error() {
        for (code, ends_well) in [(0, true), (4, false)] {
            let dir = tempfile::tempdir().unwrap();
            let script =
                format!("trap 'kill $!; exit {code}' TERM; tail -f /dev/null & echo ready; wait");
            let mut command = pinned(LOAD_CPU, "sh");
            let mut process =
                Process::start("shell", command.args(["-c", &script]), dir.path()).unwrap();
            let ready = process.until("its trap", DEADLINE, |process| {
                Ok(Some(()).filter(|()| process.said().unwrap_or_default() == "ready\n"))
            });
            ready.unwrap();
            assert_eq!(process.stop(DEADLINE).is_ok(), ends_well, "exit {code}");
        }
    }

    #[test]
    fn a_program_that_fails_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = pinned(LOAD_CPU, "sh");
        command.args(["-c", "echo the reason >&2; exit 3"]);
        let process = Process::start("shell", &mut command, dir.path()).unwrap();
        let text = format!("{:#}", process.finish(DEADLINE).unwrap_err());
        assert!(
            text.contains("shell ended") && text.contains("the reason"),
            "{text}"
        );
    }

    #[test]
    fn a_wait_ends_when_the_program_does() {
        let dir = tempfile::tempdir().unwrap();
        let mut process =
            Process::start("true", &mut pinned(LOAD_CPU, "true"), dir.path()).unwrap();
        let answer = process.until::<()>("a word", DEADLINE, |_| Ok(None));
        assert!(answer.unwrap_err().to_string().contains("true ended"));
    }

    #[test]
    fn programs_are_found_where_the_shell_finds_them() {
        assert!(on_path("sh").is_some());
        assert!(on_path("no-such-program-anywhere").is_none());
        assert!(version(Path::new("no-such-program-anywhere"), "--version").is_none());
    }
}
