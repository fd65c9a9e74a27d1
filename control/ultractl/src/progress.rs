//! How far a long verb is, on stderr: a bar where a person looks on, lines where none does, nothing where
//! a program reads the answer.
//!
//! A verb reports each step as it begins and ends; for a saga these are the steps of its journal, as the
//! service tells them. A bar is gone when the verb ends; a step that failed or was undone leaves a line.

use std::fmt;
use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::Format;

/// How often the bar shows that time passes.
const TICK: Duration = Duration::from_millis(200);
const BAR: &str = "{prefix} [{bar:24}] {pos}/{len} {msg} ({elapsed})";

/// Where a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepState {
    /// It has begun.
    Running,
    /// It has done what it is for.
    Done,
    /// What it did is being taken back, as a later step failed.
    Undoing,
    /// What it did is taken back.
    Undone,
    /// It could not do what it is for.
    Failed,
}

impl fmt::Display for StepState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StepState::Running => "running",
            StepState::Done => "done",
            StepState::Undoing => "undoing",
            StepState::Undone => "undone",
            StepState::Failed => "failed",
        })
    }
}

/// The progress of one verb.
pub struct Progress {
    verb: String,
    display: Display,
}

enum Display {
    Bar(ProgressBar),
    Lines(Box<dyn Write>),
    Silent,
}

impl Progress {
    /// Of a verb with so many steps.
    pub fn new(verb: &str, steps: u64, format: Format) -> Progress {
        let display = if io::stderr().is_terminal() {
            Display::bar(verb, ProgressBar::new(steps))
        } else if format.is_structured() {
            Display::Silent
        } else {
            Display::Lines(Box::new(io::stderr()))
        };
        let verb = verb.to_owned();
        Progress { verb, display }
    }

    /// Shows where a step is now.
    pub fn update(&mut self, step: &str, state: StepState) {
        let verb = &self.verb;
        match &mut self.display {
            Display::Bar(bar) => match state {
                StepState::Running => bar.set_message(step.to_owned()),
                StepState::Done => bar.inc(1),
                StepState::Undoing => bar.set_message(format!("undoing {step}")),
                StepState::Undone | StepState::Failed => {
                    if state == StepState::Undone {
                        bar.set_position(bar.position().saturating_sub(1));
                    }
                    bar.println(format!("{verb}: {step}: {state}"));
                }
            },
            Display::Lines(out) => {
                // Progress that nobody can read stops nothing.
                let _ = writeln!(out, "{verb}: {step}: {state}");
            }
            Display::Silent => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
    }
}

impl Display {
    fn bar(verb: &str, bar: ProgressBar) -> Display {
        let style = ProgressStyle::with_template(BAR).expect("the template is one");
        bar.set_style(style.progress_chars("=> "));
        bar.set_prefix(verb.to_owned());
        bar.enable_steady_tick(TICK);
        Display::Bar(bar)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use indicatif::{ProgressDrawTarget, TermLike};

    use super::*;

    /// What was written, by whoever holds a copy.
    #[derive(Clone, Debug, Default)]
    struct Written(Arc<Mutex<String>>);

    impl Written {
        fn text(&self) -> String {
            self.0.lock().unwrap().clone()
        }

        fn add(&self, text: &str) {
            self.0.lock().unwrap().push_str(text);
        }
    }

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.add(&String::from_utf8_lossy(bytes));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl TermLike for Written {
        fn width(&self) -> u16 {
            120
        }

        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> io::Result<()> {
            self.add(text);
            self.add("\n");
            Ok(())
        }

        fn write_str(&self, text: &str) -> io::Result<()> {
            self.add(text);
            Ok(())
        }

        fn clear_line(&self) -> io::Result<()> {
            self.add("<cleared>");
            Ok(())
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A saga of three steps whose third fails.
    fn play(progress: &mut Progress) {
        for (step, state) in [
            ("port", StepState::Running),
            ("port", StepState::Done),
            ("volume", StepState::Running),
            ("volume", StepState::Failed),
            ("port", StepState::Undoing),
            ("port", StepState::Undone),
        ] {
            progress.update(step, state);
        }
    }

    #[test]
    fn without_a_terminal_each_change_is_a_line() {
        let written = Written::default();
        let display = Display::Lines(Box::new(written.clone()));
        let mut progress = Progress {
            verb: "vm create".to_owned(),
            display,
        };
        play(&mut progress);
        assert_eq!(
            written.text(),
            "vm create: port: running\nvm create: port: done\nvm create: volume: running\n\
             vm create: volume: failed\nvm create: port: undoing\nvm create: port: undone\n"
        );
    }

    #[test]
    fn on_a_terminal_a_bar_moves_and_is_gone_in_the_end() {
        let written = Written::default();
        let target = ProgressDrawTarget::term_like(Box::new(written.clone()));
        let bar = ProgressBar::with_draw_target(Some(3), target);
        let mut progress = Progress {
            verb: "vm create".to_owned(),
            display: Display::bar("vm create", bar),
        };
        play(&mut progress);
        drop(progress);
        let text = written.text();
        for part in [
            "vm create [                        ] 0/3 port",
            "1/3 volume",
            "vm create: volume: failed",
            "1/3 undoing port",
            "vm create: port: undone",
        ] {
            assert!(text.contains(part), "{part} in {text:?}");
        }
        assert!(text.ends_with("<cleared>"), "{text:?}");
    }
}
