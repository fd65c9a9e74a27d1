//! Completion scripts, run by the shells that are everywhere.

use std::io::{Seek as _, Write as _};
use std::process::Command;

use crate::session::Session;

/// What bash offers for a line whose last word is begun.
fn offered(words: &[&str]) -> Vec<String> {
    // Longer than an argument may be.
    let mut script = tempfile::tempfile().unwrap();
    let said = Session::new().run("completion bash").stdout;
    script.write_all(&said).unwrap();
    script.rewind().unwrap();
    let last = words.len() - 1;
    let play = format!(
        "source /dev/stdin\nCOMP_WORDS=({}); COMP_CWORD={last}\n\
         _ultractl ultractl \"{}\" \"{}\"\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words.join(" "),
        words[last],
        words[last - 1],
    );
    let mut bash = Command::new("bash");
    let output = bash.args(["-c", &play]).stdin(script).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    said.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_verbs_flags_and_values() {
    assert_eq!(offered(&["ultractl", "ch"]), ["chainfire"]);
    assert_eq!(
        offered(&["ultractl", "chainfire", "member", "pro"]),
        ["promote"]
    );
    assert_eq!(
        offered(&["ultractl", "chainfire", "--end"]),
        ["--endpoints"]
    );
    assert_eq!(offered(&["ultractl", "--output", "j"]), ["json"]);
}

#[test]
fn each_shell_has_a_script() {
    let session = Session::new();
    for (shell, mark) in [
        ("bash", "complete -F _ultractl"),
        ("zsh", "#compdef ultractl"),
        ("fish", "complete -c ultractl"),
        ("elvish", "edit:completion"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        let output = session.run(&format!("completion {shell}"));
        assert!(output.status.success());
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(script.contains(mark), "{shell}");
    }
}
