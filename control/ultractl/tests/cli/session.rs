//! A user's session: a home of its own, and a transcript of what was typed and said.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A session, whose home is empty in the beginning.
pub struct Session {
    home: TempDir,
    env: Vec<(String, String)>,
    transcript: String,
}

impl Session {
    pub fn new() -> Session {
        Session {
            home: tempfile::tempdir().unwrap(),
            env: Vec::new(),
            transcript: String::new(),
        }
    }

    /// A file's path below the session's home.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Sets a variable for what is typed from now on.
    pub fn export(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
        self.note(&format!("$ export {name}={value}"));
    }

    /// Writes a file of the home, and shows it.
    pub fn write(&mut self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self.note(&format!("$ cat {name}\n{}", text.trim_end()));
    }

    fn note(&mut self, text: &str) {
        let masked = self.masked(text);
        self.transcript.push_str(&masked);
        self.transcript.push('\n');
    }

    /// What differs from machine to machine.
    fn masked(&self, text: &str) -> String {
        let home = self.home.path().to_str().unwrap();
        text.replace(home, "$HOME")
            .replace(env!("CARGO_PKG_VERSION"), "$VERSION")
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ultractl"));
        command
            .args(words(line))
            .current_dir(self.home.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.home.path())
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Runs `ultractl` with these words, without a line in the transcript.
    pub fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// Types a line.
    pub fn types(&mut self, line: &str) -> Output {
        let output = self.run(line);
        self.keep(line, &output);
        output
    }

    /// Types a line, and `input` when it is asked for.
    pub fn types_with(&mut self, line: &str, input: &str) -> Output {
        use std::io::Write as _;
        let mut command = self.command(line);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "{input}").unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        self.keep(line, &output);
        output
    }

    fn keep(&mut self, line: &str, output: &Output) {
        let mut text = format!("$ ultractl {line}\n");
        let said = String::from_utf8_lossy(&output.stdout);
        if line.contains("-o wide") {
            // Columns are as wide as paths, which differ.
            text += &squeezed(&said);
        } else {
            text += &said;
        }
        for said in String::from_utf8_lossy(&output.stderr).lines() {
            writeln!(text, "stderr| {said}").unwrap();
        }
        let code = output.status.code().unwrap();
        writeln!(text, "exit {code}").unwrap();
        self.note(&text);
    }

    /// Keeps what doctor said, with what it found masked: each name stays.
    pub fn doctor(&mut self, text: &str, names: &[&str]) {
        let mut masked = String::from("$ ultractl doctor\n");
        for name in names {
            let line = text
                .lines()
                .find(|line| line.get(6..).is_some_and(|rest| rest.starts_with(name)));
            let line = line.unwrap_or_else(|| panic!("{name} in {text}"));
            let state = line[..6].trim_end();
            assert!(["ok", "warn", "fail"].contains(&state), "{line}");
            writeln!(masked, "STATE {name:<10}  FOUND").unwrap();
        }
        self.note(&masked);
    }

    /// Compares the transcript with the file of that name, or writes it when that is asked for.
    #[track_caller]
    pub fn is(self, name: &str) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/golden");
        let path = dir.join(name).with_extension("txt");
        let transcript = self.transcript.trim_end().to_owned() + "\n";
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, transcript).unwrap();
            return;
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        let differs = golden
            .lines()
            .zip(transcript.lines())
            .position(|(golden, now)| golden != now);
        assert!(
            golden == transcript,
            "{} differs, first at line {:?}. Now it is:\n{transcript}",
            path.display(),
            differs.map(|line| line + 1)
        );
    }
}

/// With two spaces between columns, however wide they are.
fn squeezed(table: &str) -> String {
    let row = |line: &str| {
        let cells: Vec<&str> = line.split("  ").map(str::trim).collect();
        let cells: Vec<&str> = cells.into_iter().filter(|cell| !cell.is_empty()).collect();
        cells.join("  ") + "\n"
    };
    table.lines().map(row).collect()
}

/// The words of a line, as a shell splits them; single quotes keep one together.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (place, part) in line.split('\'').enumerate() {
        if place % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}
