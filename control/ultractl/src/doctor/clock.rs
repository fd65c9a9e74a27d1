//! Whether somebody keeps the clock right. The kernel tells only through a call that this program does not
//! make, so whoever keeps clocks here is asked.

use std::process::{Command, Stdio};

use super::Check;
use super::host::Host;

/// Whom to ask, how, and what a good answer has in it.
const KEEPERS: [(&str, &[&str], &str); 2] = [
    ("chronyc", &["-n", "tracking"], "Leap status     : Normal"),
    (
        "timedatectl",
        &["show", "--property=NTPSynchronized"],
        "NTPSynchronized=yes",
    ),
];

/// Asks all of them.
pub fn check(host: &Host) -> Check {
    let mark = "run/systemd/timesync/synchronized";
    if host.path(mark).exists() {
        return Check::ok("clock", "kept right by systemd-timesyncd");
    }
    let answers = KEEPERS.map(|(program, args, good)| {
        let answer = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .output();
        let answer = answer.ok().filter(|answer| answer.status.success())?;
        Some((
            program,
            String::from_utf8_lossy(&answer.stdout).contains(good),
        ))
    });
    judge(&answers.into_iter().flatten().collect::<Vec<_>>())
}

fn judge(answers: &[(&str, bool)]) -> Check {
    let next = "run chrony or systemd-timesyncd: certificates, signatures of S3 and tokens are judged by the clock";
    let asked: Vec<&str> = answers.iter().map(|(program, _)| *program).collect();
    match answers.iter().find(|(_, is_good)| *is_good) {
        Some((program, _)) => Check::ok("clock", format!("kept right, as {program} says")),
        None if answers.is_empty() => {
            let found = "not told: neither systemd-timesyncd, chronyc nor timedatectl answers";
            Check::warn("clock", found, next)
        }
        None => {
            let found = format!("not kept right, as {} says", asked.join(" and "));
            Check::warn("clock", found, next)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::super::host::tests::machine;
    use super::*;

    #[test]
    fn one_good_answer_is_enough_and_none_is_told() {
        assert_eq!(
            judge(&[("chronyc", false), ("timedatectl", true)]).state,
            State::Ok
        );
        let bad = judge(&[("chronyc", false)]);
        assert_eq!(bad.found, "not kept right, as chronyc says");
        assert!(judge(&[]).found.starts_with("not told"));
        let (_dir, host) = machine(&[("run/systemd/timesync/synchronized", "")]);
        assert_eq!(check(&host).state, State::Ok);
    }
}
