//! One command, run on both sides; what it printed, with what must differ hidden.

use std::collections::HashMap;
use std::io::Write as _;
use std::process::Stdio;
use std::thread;

use crate::mask;
use crate::support::Ctl;

/// A command of etcdctl, with `{name}` where a side has its own value.
#[derive(Clone, Debug)]
pub struct Step {
    pub args: Vec<String>,
    input: Option<String>,
    /// Keeps a word of the plain output under a name.
    keeps: Option<(&'static str, usize)>,
    formats: &'static [&'static str],
}

/// Words apart; `''` is an empty one.
pub fn step(line: &str) -> Step {
    let args = line.split(' ').map(|word| match word {
        "''" => String::new(),
        word => word.to_owned(),
    });
    Step {
        args: args.collect(),
        input: None,
        keeps: None,
        formats: &["simple", "json"],
    }
}

impl Step {
    /// Feeds a text to it.
    pub fn input(mut self, text: &str) -> Step {
        self.input = Some(text.to_owned());
        self
    }

    /// Keeps a word of its plain output under a name, from 0.
    pub fn keep(mut self, name: &'static str, word: usize) -> Step {
        self.keeps = Some((name, word));
        self.plain()
    }

    /// Runs it once, for people.
    pub fn plain(mut self) -> Step {
        self.formats = &["simple"];
        self
    }

    /// Runs it once, as JSON.
    pub fn json(mut self) -> Step {
        self.formats = &["json"];
        self
    }

    pub fn told(&self) -> String {
        self.args.join(" ")
    }
}

/// A cluster, and what the script kept of it.
pub struct Side {
    ctl: Ctl,
    kept: HashMap<&'static str, String>,
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    pub status: Option<i32>,
    pub printed: Vec<String>,
    pub complained: Vec<String>,
}

impl Side {
    pub fn new(ctl: Ctl) -> Side {
        Side {
            ctl,
            kept: HashMap::new(),
        }
    }

    /// Gives a value a name.
    pub fn know(&mut self, name: &'static str, value: String) {
        self.kept.insert(name, value);
    }

    fn run(&mut self, step: &Step) -> Vec<Done> {
        let formats = step.formats.iter();
        formats.map(|format| self.run_as(step, format)).collect()
    }

    fn run_as(&mut self, step: &Step, format: &str) -> Done {
        let args: Vec<String> = step.args.iter().map(|arg| self.filled(arg)).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let format = format!("--write-out={format}");
        let mut child = self
            .ctl
            .with(&format)
            // A machine under load is no difference.
            .with("--command-timeout=50s")
            .with("--dial-timeout=50s")
            .command(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("etcdctl is there after `cargo xtask setup`");
        let mut stdin = child.stdin.take().unwrap();
        if let Some(input) = &step.input {
            stdin.write_all(self.filled(input).as_bytes()).unwrap();
        }
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        if let Some((name, word)) = step.keeps {
            let kept = printed.split_whitespace().nth(word).unwrap_or_default();
            self.know(name, kept.to_owned());
        }
        let lines = |text: &str| -> Vec<String> { text.lines().map(mask::line).collect() };
        let printed = lines(&printed);
        Done {
            status: output.status.code(),
            printed,
            complained: lines(&String::from_utf8_lossy(&output.stderr)),
        }
    }

    fn filled(&self, text: &str) -> String {
        let kept = self.kept.iter();
        kept.fold(text.to_owned(), |text, (name, value)| {
            text.replace(&format!("{{{name}}}"), value)
        })
    }
}

/// Runs a command on both sides at once.
pub fn both(ours: &mut Side, theirs: &mut Side, step: &Step) -> (Vec<Done>, Vec<Done>) {
    thread::scope(|scope| {
        let ours = scope.spawn(|| ours.run(step));
        let theirs = theirs.run(step);
        (ours.join().unwrap(), theirs)
    })
}
