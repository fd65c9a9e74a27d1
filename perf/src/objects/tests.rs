//! Runs for real: every contender that is installed here goes through the whole of it,
//! briefly.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: ObjectsArgs,
}

fn args(words: &[&str]) -> ObjectsArgs {
    Cli::parse_from([&["objects"], words].concat()).args
}

#[test]
fn a_contender_that_nobody_knows_is_refused_with_the_ones_there_are() {
    let error = run(&args(&["--contenders", "nginx,apache"])).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("apache") && text.contains("s3s-fs"), "{text}");
}

/// The static server needs no environment, so it shows the whole way from process to row.
#[test]
fn a_static_server_is_started_filled_checked_loaded_and_gone() {
    if process::on_path("wrk").is_none() || process::on_path("nginx").is_none() {
        eprintln!("wrk or nginx is not installed: nothing was run");
        return;
    }
    // The system's temporary directory may be memory; a build's is not.
    let binary = std::env::current_exe().unwrap();
    let dir = tempfile::tempdir_in(binary.parent().unwrap()).unwrap();
    let dir = dir.path().to_str().unwrap();
    let words = [
        "--contenders",
        "nginx",
        "--cells",
        "get-4k-c16",
        "--rounds",
        "1",
    ];
    let run = run(&args(
        &[&words[..], &["--seconds", "1", "--dir", dir]].concat(),
    ));
    let rows = run.unwrap();
    assert!(
        rows.iter()
            .all(|row| row.contender == "nginx" && row.ok().is_none())
    );
    let bars: Vec<_> = rows.iter().map(|row| row.bar).collect();
    let expected = [
        "get-4k-c16/cpu",
        "get-4k-c16/p50",
        "get-4k-c16/p99",
        "get-4k-c16/rate",
    ];
    assert_eq!(bars, expected);
    assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
}

#[test]
fn a_wrong_body_ends_the_run_before_it_is_measured() {
    let nginx = process::on_path("nginx");
    let Some((wrk, _)) = process::on_path("wrk").zip(nginx) else {
        eprintln!("wrk or nginx is not installed: nothing was run");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let args = args(&["--contenders", "nginx"]);
    let bench = Bench::new(dir.path(), &wrk, &args).unwrap();
    let cells = [Cell::GetSmall16];
    data::fill(&bench.sites[0], &cells).unwrap();
    data::check(&bench.sites[0], cells[0]).unwrap();
    let site::Access::Files(root) = &bench.sites[0].endpoint.access else {
        panic!("nginx serves files");
    };
    let path = root.join("perf-objects/small-000-00000040");
    let mut body = fs::read(&path).unwrap();
    body[4095] ^= 1;
    fs::write(&path, body).unwrap();
    let error = data::check(&bench.sites[0], cells[0]).unwrap_err();
    assert!(
        format!("{error:#}").contains("small-000-00000040"),
        "{error:#}"
    );
}

#[test]
fn one_refused_request_ends_the_run() {
    let nginx = process::on_path("nginx");
    let Some((wrk, _)) = process::on_path("wrk").zip(nginx) else {
        eprintln!("wrk or nginx is not installed: nothing was run");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let args = args(&["--contenders", "nginx"]);
    let mut bench = Bench::new(dir.path(), &wrk, &args).unwrap();
    let cells = [Cell::GetSmall16];
    data::fill(&bench.sites[0], &cells).unwrap();
    let site::Access::Files(root) = &bench.sites[0].endpoint.access else {
        panic!("nginx serves files");
    };
    fs::remove_file(root.join("perf-objects/small-000-00000041")).unwrap();
    let mut series = bench.series(&cells).unwrap();
    bench.prepare(&mut series[0]).unwrap();
    let error = bench.window(&series[0], 1).unwrap_err();
    let text = format!("{error:#}");
    assert!(
        text.contains("get-4k-c16 by nginx failed") && text.contains("Non-2xx"),
        "{text}"
    );
}

/// Takes PUTs until it is dropped with its process, and hands their targets and bodies on.
fn sink() -> (SocketAddr, Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, bodies) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let sender = sender.clone();
            // Ends with an error when wrk hangs up in the middle of a request.
            thread::spawn(move || swallow(&stream.unwrap(), &sender));
        }
    });
    (address, bodies)
}

fn swallow(stream: &TcpStream, bodies: &Sender<(String, Vec<u8>)>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        while head.last().is_none_or(|line: &String| line != "\r\n") {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            head.push(line);
        }
        let length = head
            .iter()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        let mut body = vec![0; length.unwrap().trim().parse().unwrap()];
        reader.read_exact(&mut body)?;
        let target = head[0].split(' ').nth(1).unwrap().to_owned();
        if bodies.send((target, body)).is_err() {
            return Ok(());
        }
        (&mut &*stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
    }
}

#[test]
fn the_load_puts_bodies_of_the_right_shape_that_all_differ() {
    let Some(wrk) = process::on_path("wrk") else {
        eprintln!("wrk is not installed: nothing was run");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let in_dir = |name: &str| dir.path().join(name);
    let (pool, targets, script) = (in_dir("pool"), in_dir("targets"), in_dir("script.lua"));
    fs::write(&pool, body::pool()).unwrap();
    fs::write(&targets, "/b/0?x=1\n/b/1?x=2\n").unwrap();
    for (window, bytes) in [(1, 4096), (2, 3 * body::PIECE_BYTES)] {
        let (address, bodies) = sink();
        let host = address.to_string();
        let text = Script {
            host: &host,
            targets: &targets,
            body: Body::Put {
                bytes,
                pool: &pool,
                window,
            },
        };
        fs::write(&script, text.lua().unwrap()).unwrap();
        let load = wrk::Load {
            wrk: &wrk,
            script: &script,
            address,
            connections: 1,
            seconds: 1,
            yields: false,
            dir: dir.path(),
        };
        let report = load.run().unwrap();
        let got: Vec<_> = bodies.try_iter().collect();
        assert!(got.len() as u64 >= report.requests);
        let mut counts = BTreeMap::<_, usize>::new();
        for (at, (target, body)) in got.iter().enumerate() {
            // Targets take turns; wrk keeps the script's first request for itself.
            assert_eq!(*target, ["/b/1?x=2", "/b/0?x=1"][at % 2]);
            body::check_written(body, bytes, &body::pool()).unwrap();
            for piece in body.chunks(body::PIECE_BYTES) {
                *counts.entry(&piece[..body::STAMP_BYTES]).or_default() += 1;
            }
        }
        assert!(counts.values().all(|count| *count == 1));
    }
}
