//! Running other programs: every failure names the command, its status and what it said.
//!
//! A program run by [`bounded`] has a deadline and writes into a log file, never into a pipe that
//! could fill up. Only processes started here are ever ended, through their own handle.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a wait looks at what it waits for.
pub const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The command as a person would type it.
pub fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program()];
    words.extend(command.get_args());
    words
        .into_iter()
        .map(OsStr::to_string_lossy)
        .map(quoted)
        .collect::<Vec<_>>()
        .join(" ")
}

fn quoted(word: std::borrow::Cow<'_, str>) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:@%+,~".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Runs with the terminal's own streams; an exit status other than 0 is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    check(command, status)
}

/// Like [`run`], with stdout sent to stderr: the child's words are progress, not a result.
pub fn run_as_progress(command: &mut Command) -> Result<()> {
    run(command.stdout(Stdio::from(std::io::stderr())))
}

/// Runs to the end and gives stdout, trimmed. Stderr is part of the error.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{}` ended with {}: {}",
            shown(command),
            output.status,
            said.trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs with stdout and stderr in `log`; past `deadline` the program is killed.
/// Gives what the program printed; a failure carries the end of it.
pub fn bounded(command: &mut Command, log: &Path, deadline: Duration) -> Result<String> {
    Running::start(command, log)?.finish(deadline)
}

/// A program that runs beside this one, with its words in a file. Dropping it kills it.
pub struct Running {
    child: Child,
    shown: String,
    log: PathBuf,
}

impl Running {
    /// Starts a program with stdout and stderr in `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let shown = shown(command);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start `{shown}`"))?;
        Ok(Self {
            child,
            shown,
            log: log.to_owned(),
        })
    }

    /// Its process, as the kernel knows it.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether the program still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for the end; gives what the program printed. A failure carries the end of it.
    pub fn finish(mut self, deadline: Duration) -> Result<String> {
        let ended = wait(&mut self.child, deadline)?;
        let said = String::from_utf8_lossy(&std::fs::read(&self.log)?).into_owned();
        let (shown, end) = (&self.shown, tail(&said, 30));
        match ended {
            Some(status) if status.success() => Ok(said),
            Some(status) => bail!("`{shown}` ended with {status}\n{end}"),
            None => {
                let seconds = deadline.as_secs();
                bail!("`{shown}` did not end within {seconds} s and was killed\n{end}")
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Either may fail when the program has already ended.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Waits for a child until the deadline; `None` means that it still runs.
pub fn wait(child: &mut Child, deadline: Duration) -> Result<Option<ExitStatus>> {
    until(deadline, || Ok(child.try_wait()?))
}

/// Asks `probe` until it has an answer or the deadline has passed.
pub fn until<T>(deadline: Duration, probe: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    until_every(POLL_INTERVAL, deadline, probe)
}

/// Like [`until`], with a rest between two questions, for those that are costly to answer.
pub fn until_every<T>(
    rest: Duration,
    deadline: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(answer) = probe()? {
            return Ok(Some(answer));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(rest);
    }
}

/// The last `lines_max` lines of a text, indented.
pub fn tail(text: &str, lines_max: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.len().saturating_sub(lines_max);
    let indented: Vec<String> = lines[start..]
        .iter()
        .map(|line| format!("    {line}"))
        .collect();
    indented.join("\n")
}

fn check(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_command_can_be_pasted() {
        let mut command = Command::new("echo");
        command.args(["plain-1.0", "two words", "it's", ""]);
        assert_eq!(shown(&command), r"echo plain-1.0 'two words' 'it'\''s' ''");
    }

    #[test]
    fn a_failed_capture_says_what_the_program_said() {
        let error = capture(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("why") && text.contains('3'), "{text}");
    }

    #[test]
    fn a_program_past_its_deadline_is_killed_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo begun; exec tail -f /dev/null"]);
        let log = dir.path().join("log");
        let error = bounded(&mut command, &log, Duration::ZERO).unwrap_err();
        assert!(format!("{error:#}").contains("did not end within"));
    }

    #[test]
    fn bounded_gives_both_streams() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2"]);
        let said = bounded(
            &mut command,
            &dir.path().join("log"),
            Duration::from_mins(1),
        )
        .unwrap();
        assert_eq!(said, "out\nerr\n");
    }

    #[test]
    fn the_tail_is_the_end() {
        assert_eq!(tail("a\nb\nc", 2), "    b\n    c");
        assert_eq!(tail("", 2), "");
    }
}
