//! The process: its lock, its keys, its config, its health and its end.

use std::io::Write;
use std::process::Stdio;

use crate::support::{
    ACCESS_KEY, Client, Node, SECRET_KEY, admin, command, connect, data_of, fresh, noise,
    read_response, request,
};

/// Runs a node that must not start; what it said.
fn fails(command: &mut std::process::Command) -> String {
    let output = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert!(
        !output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_second_process_on_the_directory_is_refused_by_its_name() {
    let (dir, node) = fresh();
    let data = data_of(&dir);
    let said = fails(&mut command(&data));
    assert!(
        said.contains(&data.display().to_string()) && said.contains("in use"),
        "{said}"
    );
    node.kill();
    Node::start(&data).drain();
}

#[test]
fn a_config_error_names_file_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    std::fs::write(&path, "[lightningstor]\nlisen = \"127.0.0.1:1\"\n").unwrap();
    let said = fails(command(&data_of(&dir)).arg("--config").arg(&path));
    for part in ["node.toml", "line 2", "lisen"] {
        assert!(said.contains(part), "{said}");
    }
    let none = dir.path().join("none.toml");
    let said = fails(command(&data_of(&dir)).arg("--config").arg(&none));
    assert!(said.contains("none.toml"), "{said}");
}

#[test]
fn an_address_in_use_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let binary = env!("CARGO_BIN_EXE_ultracloud");
    let start = |s3: &str, admin: &str| {
        let mut command = std::process::Command::new(binary);
        command.args([
            "node",
            "--s3-listen",
            s3,
            "--admin-listen",
            admin,
            "--data-dir",
        ]);
        command.arg(data_of(&dir));
        fails(&mut command)
    };
    assert!(start("127.0.0.1:0", &addr).contains(&addr));
    assert!(start(&addr, "127.0.0.1:0").contains(&addr));
}

#[test]
fn root_keys_are_made_shown_once_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_of(&dir);
    let start = || {
        let mut command = command(&data);
        Node::from_command(
            command
                .env_remove("ULTRACLOUD_ACCESS_KEY")
                .env_remove("ULTRACLOUD_SECRET_KEY"),
        )
    };
    let node = start();
    let shown = |key: &str| {
        let line = node
            .printed
            .lines()
            .find_map(|l| l.trim().strip_prefix(key));
        line.unwrap().trim_start_matches(" = ").to_owned()
    };
    let (access, secret) = (shown("access_key"), shown("secret_key"));
    Client::new(node.s3, &access, &secret)
        .put("/kept", b"")
        .expect(200);
    node.drain();
    let node = start();
    assert!(!node.printed.contains(&secret), "the secret is shown once");
    Client::new(node.s3, &access, &secret)
        .head("/kept")
        .expect(200);
    Client::new(node.s3, ACCESS_KEY, SECRET_KEY)
        .get("/")
        .refused(403, "InvalidAccessKeyId");
}

#[test]
fn health_metrics_and_shards_are_told() {
    let (_dir, node) = fresh();
    let mut client = node.client();
    client.put("/health", b"").expect(200);
    client.put("/health/a", b"x").expect(200);
    client.get("/health/a").expect(200);
    for path in ["/healthz", "/readyz"] {
        assert_eq!(admin(&node, path).0, 200);
    }
    let (status, text) = admin(&node, "/metrics");
    assert_eq!(status, 200);
    for name in [
        "uc_engine_ops_total{shard=\"0\"}",
        "uc_lightningstor_objects{shard=\"0\"}",
        "uc_lightningstor_requests_total{shard=\"0\",op=\"get\",outcome=\"served\"}",
        "uc_lightningstor_request_latency_us{shard=\"0\",op=\"put\",quantile=\"0.99\"}",
        "uc_node_serving 1",
    ] {
        assert!(text.contains(name), "{name} in {text}");
    }
    let (status, text) = admin(&node, "/debug/shards");
    assert_eq!(status, 200);
    let shards: serde_json::Value = serde_json::from_str(&text).unwrap();
    let first = &shards["shards"][0];
    assert!(
        first["groups"][0]["queue_delay_ns"]["p999"].is_u64(),
        "{text}"
    );
    assert!(shards["capabilities"]["missing"].is_array());
    assert_eq!(admin(&node, "/other").0, 404);
}

#[test]
fn everything_is_there_after_a_restart_with_another_number_of_shards() {
    let dir = tempfile::tempdir().unwrap();
    let data = data_of(&dir);
    let config = dir.path().join("node.toml");
    for (round, shards) in (0_u64..).zip([2, 1, 3]) {
        let pool = "pool_mib = 16";
        std::fs::write(&config, format!("[shards]\ncount = {shards}\n{pool}\n")).unwrap();
        let node = Node::from_command(command(&data).arg("--config").arg(&config));
        let mut client = node.client();
        if round == 0 {
            client.put("/kept", b"").expect(200);
        }
        for old in 0..round {
            for (i, size) in [10, 100_000].into_iter().enumerate() {
                let got = client.get(&format!("/kept/{old}-{i}")).expect(200);
                assert!(got.body == noise(old, size));
            }
        }
        for (i, size) in [10, 100_000].into_iter().enumerate() {
            client
                .put(&format!("/kept/{round}-{i}"), &noise(round, size))
                .expect(200);
        }
        node.drain();
    }
}

#[test]
fn sigterm_lets_a_request_in_flight_end_and_refuses_new_connections() {
    let (_dir, node) = fresh();
    let mut client = node.client();
    client.put("/drain", b"").expect(200);
    let body = noise(1, 300_000);
    let bytes = client.encode(&request("PUT", "/drain/a").body(&body));
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let mut stream = connect(node.s3);
    stream.write_all(first).unwrap();
    // The request is known to the server once it shows up in its metrics.
    while !admin(&node, "/metrics")
        .1
        .contains("uc_lightningstor_buffer_used_bytes{shard=\"0\"} 300000")
        && !admin(&node, "/metrics")
            .1
            .contains("uc_lightningstor_buffer_used_bytes{shard=\"1\"} 300000")
    {}
    node.signal("-TERM");
    while admin(&node, "/healthz").0 == 200 {}
    stream.write_all(second).unwrap();
    let answer = read_response(&mut stream, false).unwrap().expect(200);
    assert_eq!(answer.header("connection"), Some("close"));
    let status = node.wait();
    assert!(status.success(), "{status}");
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let (_dir, node) = fresh();
    let mut client = node.client();
    client.put("/drain", b"").expect(200);
    let bytes = client.encode(&request("PUT", "/drain/a").body(&noise(1, 300_000)));
    let mut stream = connect(node.s3);
    stream.write_all(&bytes[..bytes.len() / 2]).unwrap();
    while !admin(&node, "/metrics").1.contains("} 300000\n") {}
    node.signal("-TERM");
    while admin(&node, "/healthz").0 == 200 {}
    node.signal("-TERM");
    assert_eq!(node.wait().code(), Some(130));
}

#[test]
fn a_second_node_cannot_share_the_s3_address_of_the_first() {
    let (_dir, node) = fresh();
    let other = tempfile::tempdir().unwrap();
    let addr = node.s3.to_string();
    let mut second = std::process::Command::new(env!("CARGO_BIN_EXE_ultracloud"));
    second
        .args([
            "node",
            "--admin-listen",
            "127.0.0.1:0",
            "--s3-listen",
            &addr,
        ])
        .arg("--data-dir")
        .arg(data_of(&other));
    let said = fails(&mut second);
    assert!(said.contains(&addr), "{said}");
    assert!(
        !data_of(&other).join("root-credentials").exists(),
        "keys were made for a node that did not start"
    );
    node.drain();
}

#[test]
fn a_limit_of_open_files_that_is_too_low_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut limited = std::process::Command::new("sh");
    limited
        .arg("-c")
        .arg("ulimit -n 300; exec \"$0\" \"$@\"")
        .arg(env!("CARGO_BIN_EXE_ultracloud"));
    limited
        .args([
            "node",
            "--admin-listen",
            "127.0.0.1:0",
            "--s3-listen",
            "127.0.0.1:0",
        ])
        .arg("--data-dir")
        .arg(data_of(&dir));
    assert!(fails(&mut limited).contains("RLIMIT_NOFILE"));
}

#[test]
fn what_a_node_stores_is_nobody_elses_to_read() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, node) = fresh();
    node.drain();
    let mut folders = vec![data_of(&dir)];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            let wanted = if path.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(mode & !wanted, 0, "{} has mode {mode:o}", path.display());
            seen += 1;
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    assert!(seen > 4, "a node keeps more than {seen} names");
}
