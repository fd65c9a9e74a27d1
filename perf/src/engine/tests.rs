//! Every contender through every shape, for real and briefly; and contenders that lie, which must
//! be found out.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::contender::{BUFFER_BYTES, Laps, MESSAGE_BYTES, Meter, Sample};
use super::disk::{Batch, Block};
use super::*;

const WINDOW: Duration = Duration::from_millis(50);

fn bench() -> Bench {
    let args = EngineArgs {
        json: false,
        strict: false,
        rounds: 1,
        seconds: WINDOW.as_secs_f64(),
        dir: None,
        file_mib: 4,
        shapes: Shape::value_variants().to_vec(),
        contenders: Vec::new(),
    };
    Bench::new(&std::env::temp_dir(), &args).unwrap()
}

fn passes(shape: Shape) {
    let mut bench = bench();
    for contender in CONTENDERS {
        let value = bench.measure(shape, contender, WINDOW).unwrap();
        assert!(
            value.is_finite() && value > 0.0,
            "{shape} by {}: {value}",
            contender.name()
        );
    }
}

#[test]
fn every_contender_echoes() {
    passes(Shape::Echo);
}

#[test]
fn every_contender_reads_the_blocks_it_asked_for() {
    passes(Shape::Read);
}

#[test]
fn every_contender_commits_what_it_reports() {
    passes(Shape::Commit);
}

#[test]
fn every_contender_hops() {
    passes(Shape::Hop);
}

#[test]
fn servers_echo_odd_sizes_and_outlive_a_client_that_says_nothing() {
    for contender in CONTENDERS {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = listener.local_addr().unwrap();
        let client = thread::spawn(move || {
            drop(TcpStream::connect(server).unwrap());
            let mut stream = TcpStream::connect(server).unwrap();
            for bytes in [1, 127, 129, BUFFER_BYTES, 3 * BUFFER_BYTES + 5] {
                let sent: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
                let mut received = vec![0; bytes];
                stream.write_all(&sent).unwrap();
                stream.read_exact(&mut received).unwrap();
                assert_eq!(sent, received, "{bytes} bytes by {}", contender.name());
            }
        });
        let job = EchoJob {
            listener,
            connections: 2,
        };
        pinned(NEAR_CPU, WINDOW, move || contender.echo_server(job)).unwrap();
        client.join().unwrap();
    }
}

/// Does every shape wrongly: flips a bit of an echo, reads the neighbour, skips a write, answers
/// with the request.
struct Liar;

impl Contender for Liar {
    fn name(&self) -> &'static str {
        "liar"
    }

    fn echo_server(&self, job: EchoJob) -> Result<()> {
        let mut streams: Vec<_> = (0..job.connections)
            .map(|_| job.listener.accept().unwrap().0)
            .collect();
        for stream in &mut streams {
            let mut message = [0; MESSAGE_BYTES];
            stream.read_exact(&mut message)?;
            message[MESSAGE_BYTES - 1] ^= 1;
            stream.write_all(&message)?;
        }
        Ok(())
    }

    fn random_read(&self, job: ReadJob) -> Result<Sample> {
        let content = Block::zeroed();
        let meter = Meter::open(job.window);
        while let Some(number) = meter.next() {
            ReadJob::check(job.pick(number), disk::BLOCK_BYTES, &content)?;
            meter.count();
        }
        meter.close()
    }

    fn group_commit(&self, job: CommitJob) -> Result<Sample> {
        let mut batch = Batch::zeroed();
        let meter = Meter::open(job.window);
        while let Some(number) = meter.next() {
            job.stamp(number, &mut batch);
            CommitJob::check(number, disk::BATCH_BYTES)?;
            meter.count();
        }
        meter.close()
    }

    fn hop(&self, job: HopJob) -> Result<Laps> {
        let laps = Laps::open(job);
        while let Some(request) = laps.next() {
            laps.record(request, request, Duration::from_nanos(1))?;
        }
        Ok(laps)
    }
}

#[test]
fn a_contender_that_lies_has_no_figure() {
    let mut bench = bench();
    for shape in Shape::value_variants() {
        let error = format!("{:#}", bench.measure(*shape, &Liar, WINDOW).unwrap_err());
        let found = match shape {
            Shape::Echo => "differs",
            Shape::Read => "does not carry its number",
            Shape::Commit => "does not hold record",
            Shape::Hop => "expected",
        };
        assert!(error.contains(found), "{shape}: {error}");
    }
}

#[test]
fn a_panicking_thread_is_an_error_that_names_its_cpu() {
    let outcome: Result<()> = pinned(NEAR_CPU, WINDOW, || panic!("as the test wants"));
    assert!(outcome.unwrap_err().to_string().contains("CPU 0"));
}

#[test]
fn contenders_are_chosen_by_name_and_strangers_refused() {
    assert_eq!(chosen(&[]).unwrap().len(), CONTENDERS.len());
    let one = chosen(&["tokio".to_owned()]).unwrap();
    assert_eq!(
        one.iter()
            .map(|contender| contender.name())
            .collect::<Vec<_>>(),
        ["tokio"]
    );
    let error = chosen(&["nginx".to_owned()]).err().unwrap().to_string();
    assert!(error.contains("nginx") && error.contains("raw"), "{error}");
}

#[test]
fn rows_are_compared_with_the_peer_of_their_own_shape() {
    let contenders: [&'static dyn Contender; 2] = [&tokio::Tokio, &raw::Raw];
    let values = [vec![6.0], vec![3.0], vec![50.0], vec![100.0]];
    let rows = rows(&[Shape::Echo, Shape::Commit], &contenders, &values).unwrap();
    let ratios: Vec<_> = rows
        .iter()
        .map(|row| row.ratio().unwrap().to_string())
        .collect();
    assert_eq!(ratios, ["2", "1", "0.5", "1"]);
    assert!(rows.iter().all(|row| row.ok().is_none()));
}

#[test]
fn windows_outside_their_bounds_are_refused() {
    assert!(seconds("1").is_ok() && seconds("0.01").is_ok() && seconds("60").is_ok());
    for text in ["0", "0.009", "61", "-1", "NaN", "inf", "x"] {
        assert!(seconds(text).is_err(), "{text}");
    }
}
