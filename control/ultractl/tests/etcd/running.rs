//! Commands that do not end by themselves: what they print, line by line, until they are interrupted.

use std::thread;

use crate::mask;
use crate::peer::Etcd;
use crate::support::{Ctl, Member};

/// Lines that a command prints, on a side; then it is interrupted.
fn printed(ctl: &Ctl, args: &[&str], input: &str, count: usize) -> Vec<String> {
    let mut running = ctl.running_with(args, input);
    let lines = (0..count).map(|_| mask::line(&running.line())).collect();
    running.interrupt();
    lines
}

#[test]
fn commands_that_run_on_print_what_etcds_print() {
    let (member, etcd) = (Member::alone(), Etcd::start());
    let sides = [member.ctl(), etcd.ctl()];
    for ctl in &sides {
        for command in [
            "put w/a 1",
            "put w/b 1",
            "put w/a 2",
            "put other 1",
            "del w/b",
            "put w/a 3",
        ] {
            ctl.run(&command.split(' ').collect::<Vec<_>>());
        }
    }
    let cases: &[(&str, &str, usize)] = &[
        ("watch w/ --prefix --rev=1", "", 15),
        ("watch w/ --prefix --rev=1 --prev-kv", "", 21),
        ("watch w/ x --rev=4 --prev-kv", "", 13),
        ("watch w/a --rev=3", "", 6),
        ("watch '' --prefix --rev=2", "", 18),
        ("watch -i", "watch w/ --prefix --rev=1\n", 15),
        ("watch -i", "watch w/a --rev=4\nwatch w/b --rev=6\n", 9),
        (
            "watch w/a --rev=7 -- sh -c env|grep^ETCD_WATCH_|sort",
            "",
            4,
        ),
        ("-w json watch w/a --rev=1", "", 1),
        ("-w json watch w/ --prefix --rev=1 --prev-kv", "", 1),
        ("elect e me", "", 2),
        ("lock l", "", 1),
    ];
    for (command, input, count) in cases {
        let args: Vec<String> = command
            .split(' ')
            .map(|word| word.replace("''", "").replace('^', " "))
            .collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let [ours, theirs] = thread::scope(|scope| {
            let runs = sides.each_ref().map(|ctl| {
                let args = &args;
                scope.spawn(move || {
                    let mut lines = printed(ctl, args, input, *count);
                    if input.matches('\n').count() > 1 {
                        // Two watches have no order between them.
                        lines.sort();
                    }
                    lines
                })
            });
            runs.map(|run| run.join().unwrap())
        });
        assert_eq!(ours, theirs, "etcdctl {command}");
    }
    let [ours, theirs] = sides.each_ref().map(|ctl| {
        ctl.run(&["compaction", "5"]);
        ctl.fails(&["watch", "w/a", "--rev=3"])
    });
    assert_eq!(ours, theirs);
}
