//! The echo shape's load: one raw io_uring generator for every server.
//!
//! Each connection has one message outstanding, a linked send and receive. Every echo is compared
//! byte for byte with what was sent. Never starts a server and never outwaits a silent one.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use io_uring::{opcode, squeue, types};

use crate::engine::contender::{MESSAGE_BYTES, Sample};
use crate::engine::ring::{Completion, Ring};
use crate::machine;

/// Longest silence of a server.
const GRACE: Duration = Duration::from_secs(5);
/// Part of the window that runs before it and is not counted.
const WARM_UP_PART: u32 = 10;
/// Set in the tag of a receive, clear in that of a send.
const RECV: u64 = 1 << 32;

/// What one connection sends and what came back.
struct Exchange {
    sent: [u8; MESSAGE_BYTES],
    received: [u8; MESSAGE_BYTES],
    number: u64,
}

struct Generator {
    sockets: Vec<TcpStream>,
    /// Boxed slice: the kernel is given addresses in it, and it never grows.
    ring: Ring<Box<[Exchange]>>,
    echoed: u64,
}

/// Connects, echoes for a warm-up and then for the window, and closes. Runs on the thread that
/// generates, already pinned; its CPU is taken out of the sample.
pub fn generate(server: SocketAddr, connections: usize, window: Duration) -> Result<Sample> {
    let mut generator = Generator::connect(server, connections)?;
    for connection in 0..connections {
        generator.send(connection)?;
    }
    generator.echo_until(Instant::now() + window / WARM_UP_PART)?;
    let (echoed, cpu) = (generator.echoed, others_cpu());
    generator.echo_until(Instant::now() + window)?;
    let cpu = others_cpu().saturating_sub(cpu);
    let ops = generator.echoed - echoed;
    generator.drain()?;
    Ok(Sample { ops, cpu })
}

/// CPU of every thread but this one.
fn others_cpu() -> Duration {
    machine::process_cpu().saturating_sub(machine::thread_cpu())
}

impl Generator {
    fn connect(server: SocketAddr, connections: usize) -> Result<Self> {
        let mut sockets = Vec::with_capacity(connections);
        for _ in 0..connections {
            let socket = TcpStream::connect_timeout(&server, GRACE)
                .with_context(|| format!("connect to the echo server at {server}"))?;
            socket.set_nodelay(true).context("set TCP_NODELAY")?;
            sockets.push(socket);
        }
        let exchanges = (0..connections)
            .map(|_| Exchange {
                sent: [0; MESSAGE_BYTES],
                received: [0; MESSAGE_BYTES],
                number: 0,
            })
            .collect();
        Ok(Self {
            sockets,
            ring: Ring::new(2 * connections, exchanges)?,
            echoed: 0,
        })
    }

    /// Queues the connection's next message, no byte of which is that of its last.
    fn send(&mut self, connection: usize) -> Result<()> {
        let socket = types::Fd(self.sockets[connection].as_raw_fd());
        let exchange = &mut self.ring.memory()[connection];
        exchange.number += 1;
        fill(&mut exchange.sent, connection, exchange.number);
        let bytes = MESSAGE_BYTES as u32;
        let send = opcode::Send::new(socket, exchange.sent.as_ptr(), bytes)
            .build()
            .flags(squeue::Flags::IO_LINK)
            .user_data(connection as u64);
        let recv = opcode::Recv::new(socket, exchange.received.as_mut_ptr(), bytes)
            .flags(libc::MSG_WAITALL)
            .build()
            .user_data(connection as u64 | RECV);
        // SAFETY: both halves of the exchange lie in the ring's boxed memory and are next touched
        // when the receive, and so the send linked before it, has completed.
        unsafe {
            self.ring.push(&send)?;
            self.ring.push(&recv)
        }
    }

    /// Keeps every connection busy until the deadline.
    fn echo_until(&mut self, deadline: Instant) -> Result<()> {
        while Instant::now() < deadline {
            self.step(true)?;
        }
        Ok(())
    }

    /// Waits for the echoes still under way and sends nothing more.
    fn drain(&mut self) -> Result<()> {
        while self.ring.in_flight() > 0 {
            self.step(false)?;
        }
        Ok(())
    }

    fn step(&mut self, send_again: bool) -> Result<()> {
        self.ring
            .wait_for(GRACE)
            .context("the echo server fell silent")?;
        let ready = self.ring.take_completions();
        for completion in &ready {
            if let Some(connection) = self.finish(*completion)?
                && send_again
            {
                self.send(connection)?;
            }
        }
        self.ring.give_back(ready);
        Ok(())
    }

    /// Takes one completion; a receive's gives its connection back for the next message.
    fn finish(&mut self, completion: Completion) -> Result<Option<usize>> {
        let connection = (completion.tag & !RECV) as usize;
        let is_recv = completion.tag & RECV != 0;
        let verb = if is_recv { "receive" } else { "send" };
        let bytes = completion
            .bytes()
            .with_context(|| format!("{verb} on {connection}"))?;
        if bytes != MESSAGE_BYTES {
            bail!("connection {connection}: {verb} of {bytes} bytes, expected {MESSAGE_BYTES}");
        }
        if !is_recv {
            return Ok(None);
        }
        let exchange = &mut self.ring.memory()[connection];
        let (number, whole) = (exchange.number, exchange.sent == exchange.received);
        ensure!(
            whole,
            "connection {connection}: the echo of message {number} differs from it"
        );
        self.echoed += 1;
        Ok(Some(connection))
    }
}

/// A message of this connection and number: both are in it, and every byte moves with the number.
fn fill(message: &mut [u8; MESSAGE_BYTES], connection: usize, number: u64) {
    message.fill(number as u8);
    message[..8].copy_from_slice(&(connection as u64).to_le_bytes());
    message[8..16].copy_from_slice(&number.to_le_bytes());
}
