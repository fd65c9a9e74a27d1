//! `ultractl doctor`: whether this machine is fit for a node, check by check, with what to do.
//!
//! Each check says what it found, as whoever runs it; a server that systemd starts may have other limits.
//! What a check cannot tell it does not claim: no guest is booted, no XDP program is loaded, no data is
//! written. Facts are read below a root, so that tests can show machines that are not here.

mod clock;
mod disk;
mod host;
mod limits;
mod network;
mod ring;
mod vm;

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use anyhow::Result;
use serde::Serialize;

use self::host::Host;
use crate::output::{self, Format};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// As it should be.
    Ok,
    /// A node runs, and something of it will be slower or missing; or it could not be told.
    Warn,
    /// A node does not run here.
    Fail,
}

/// What one check found.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    next: String,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check {
            name,
            state: State::Ok,
            found: found.into(),
            next: String::new(),
        }
    }

    fn warn(name: &'static str, found: impl Into<String>, next: impl Into<String>) -> Check {
        Check {
            state: State::Warn,
            next: next.into(),
            ..Check::ok(name, found)
        }
    }

    fn fail(name: &'static str, found: impl Into<String>, next: impl Into<String>) -> Check {
        Check {
            state: State::Fail,
            ..Check::warn(name, found, next)
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    /// Whether nothing failed.
    ok: bool,
    checks: Vec<Check>,
}

/// Looks at the machine. Ends with 1 when a check failed.
pub fn run(format: Format) -> Result<ExitCode> {
    let host = Host::here();
    let mut checks = vec![host::kernel(&host), ring::check()];
    checks.extend(limits::check(&host));
    checks.push(vm::check(&host));
    checks.push(network::xdp(&host, network::has_af_xdp()));
    checks.extend([host::cgroups(&host), host::namespaces(&host)]);
    checks.extend(disk::check()?);
    checks.push(clock::check(&host));
    let ok = checks.iter().all(|check| check.state != State::Fail);
    let report = Report { ok, checks };
    if format.is_structured() {
        output::show(format, &report, text)?;
    } else {
        // By way of anstream: in colour where a person looks on.
        anstream::stdout().write_all(text(&report).as_bytes())?;
    }
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for check in &report.checks {
        let (word, color) = match check.state {
            State::Ok => ("ok", AnsiColor::Green),
            State::Warn => ("warn", AnsiColor::Yellow),
            State::Fail => ("fail", AnsiColor::Red),
        };
        let style: Style = color.on_default().bold();
        let (name, found) = (check.name, &check.found);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{style}{word:<4}{style:#}  {name:<10}  {found}");
        if !check.next.is_empty() {
            let _ = writeln!(text, "{:>18}{}", "", check.next);
        }
    }
    let count = |state| {
        report
            .checks
            .iter()
            .filter(|check| check.state == state)
            .count()
    };
    let (warnings, failures) = (count(State::Warn), count(State::Fail));
    let _ = match (report.ok, warnings) {
        (true, 0) => writeln!(text, "fit for a node"),
        (true, _) => writeln!(text, "fit for a node, with {warnings} warnings"),
        (false, _) => writeln!(text, "not fit for a node: {failures} checks failed"),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_is_not_fit_and_a_warning_is() {
        let report = |checks: Vec<Check>| Report {
            ok: checks.iter().all(|check| check.state != State::Fail),
            checks,
        };
        let plain = |report: &Report| anstream::adapter::strip_str(&text(report)).to_string();
        let warned = report(vec![
            Check::ok("a", "fine"),
            Check::warn("b", "odd", "mend it"),
        ]);
        assert_eq!(
            plain(&warned),
            "ok    a           fine\nwarn  b           odd\n                  mend it\n\
             fit for a node, with 1 warnings\n"
        );
        let failed = report(vec![Check::fail("c", "bad", "mend it")]);
        assert!(plain(&failed).ends_with("not fit for a node: 1 checks failed\n"));
    }
}
