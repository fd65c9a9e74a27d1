//! A client of bytes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nbd_wire::*;

use crate::support::PATIENCE;

pub struct Client {
    pub stream: UnixStream,
    cookie: u64,
}

/// An answer in all its chunks.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub cookie: u64,
    pub error: Option<NbdError>,
    /// From the offset that was asked for.
    pub data: Vec<u8>,
    /// Bytes that came as holes.
    pub holes: u64,
    /// By the number of the context.
    pub status: Vec<(u32, Vec<(u32, u32)>)>,
}

pub fn request(command: Command, offset: u64, len: u32) -> Request {
    Request {
        flags: 0,
        command,
        cookie: 0,
        offset,
        len,
    }
}

impl Client {
    /// Greets.
    pub fn greet(socket: &Path) -> Client {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Client { stream, cookie: 0 };
        let flags = parse_greeting(&client.take()).unwrap();
        assert_eq!(flags, 3);
        client
    }

    /// Greets, and agrees to everything.
    pub fn connect(socket: &Path) -> Client {
        let mut client = Client::greet(socket);
        client.send(&3_u32.to_be_bytes());
        client
    }

    /// Begins with simple answers.
    pub fn simple(socket: &Path, export: &str) -> Client {
        let mut client = Client::connect(socket);
        client.go(export);
        client
    }

    /// Begins with structured answers and the contexts of these names.
    pub fn structured(socket: &Path, export: &str, contexts: &[&str]) -> Client {
        let mut client = Client::connect(socket);
        assert_eq!(
            client.ask(&ClientOption::StructuredReply),
            [OptionReply::Ack]
        );
        if !contexts.is_empty() {
            let replies = client.ask(&ClientOption::SetMetaContext {
                export: export.to_owned(),
                queries: contexts.iter().map(|name| (*name).to_owned()).collect(),
            });
            assert_eq!(replies.len(), contexts.len() + 1, "{replies:?}");
        }
        client.go(export);
        client
    }

    pub fn go(&mut self, export: &str) -> Vec<OptionReply> {
        let replies = self.ask(&ClientOption::Go {
            export: export.to_owned(),
            wanted: vec![],
        });
        assert_eq!(replies.last(), Some(&OptionReply::Ack), "{replies:?}");
        replies
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn take_vec(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Whether the server has closed the connection, when all is read that it sent.
    pub fn is_ended(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    /// All replies to an option.
    pub fn ask(&mut self, option: &ClientOption) -> Vec<OptionReply> {
        self.send(&option.encode());
        self.replies(option.code())
    }

    pub fn replies(&mut self, code: OptionCode) -> Vec<OptionReply> {
        let mut replies = Vec::new();
        loop {
            let head = ReplyHeadOfOption::parse(&self.take()).unwrap();
            assert_eq!(head.code, code);
            let data = self.take_vec(head.len as usize);
            let reply = OptionReply::parse(head.kind, &data).unwrap();
            let last = head.kind == ReplyType::ACK || head.kind.is_error();
            replies.push(reply);
            if last {
                return replies;
            }
        }
    }

    /// Sends a request with the next cookie, which it returns.
    pub fn begin(&mut self, request: Request, data: &[u8]) -> u64 {
        self.cookie += 1;
        let request = Request {
            cookie: self.cookie,
            ..request
        };
        self.send(&request.encode());
        self.send(data);
        self.cookie
    }

    /// The next answer, when each has one part; `bytes` follow a simple one without an error.
    pub fn answer(&mut self, offset: u64, bytes: usize) -> Answer {
        let mut answer = Answer::default();
        loop {
            let first: [u8; 4] = self.take();
            if !ReplyHead::begins_chunk(first).unwrap() {
                let rest: [u8; SIMPLE_BYTES - 4] = self.take();
                let head = ReplyHead::parse(&[&first[..], &rest].concat()).unwrap();
                let ReplyHead::Simple { error, cookie } = head else {
                    unreachable!("it has the magic of one");
                };
                answer.cookie = cookie;
                answer.error = error;
                if error.is_none() {
                    answer.data = self.take_vec(bytes);
                }
                return answer;
            }
            let rest: [u8; CHUNK_BYTES - 4] = self.take();
            let head = ReplyHead::parse(&[&first[..], &rest].concat()).unwrap();
            let ReplyHead::Chunk(head) = head else {
                unreachable!("it has the magic of one");
            };
            let body = self.take_vec(head.len as usize);
            answer.cookie = head.cookie;
            answer.add(head.kind, &body, offset);
            if head.done {
                return answer;
            }
        }
    }

    /// Does one request.
    pub fn call(&mut self, request: Request, data: &[u8]) -> Answer {
        let cookie = self.begin(request, data);
        let reads = request.command == Command::Read;
        let bytes = if reads { request.len as usize } else { 0 };
        let answer = self.answer(request.offset, bytes);
        assert_eq!(answer.cookie, cookie);
        answer
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let answer = self.call(request(Command::Write, offset, data.len() as u32), data);
        assert_eq!(answer.error, None);
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let answer = self.call(request(Command::Read, offset, len as u32), &[]);
        assert_eq!(answer.error, None);
        answer.data
    }

    /// The error of a request.
    pub fn refused(&mut self, request: Request, data: &[u8]) -> NbdError {
        self.call(request, data).error.expect("refused")
    }
}

impl Answer {
    fn add(&mut self, kind: ChunkKind, body: &[u8], offset: u64) {
        match kind {
            ChunkKind::NONE => {}
            ChunkKind::DATA => {
                let (at, data) = body.split_first_chunk().unwrap();
                self.put(u64::from_be_bytes(*at) - offset, data);
            }
            ChunkKind::HOLE => {
                let (at, len) = body.split_first_chunk().unwrap();
                let len = u32::from_be_bytes(len.try_into().unwrap());
                self.holes += u64::from(len);
                self.put(u64::from_be_bytes(*at) - offset, &vec![0; len as usize]);
            }
            ChunkKind::BLOCK_STATUS => {
                let (context, extents) = parse_block_status(body).unwrap();
                let extents = extents.iter().map(|extent| (extent.len, extent.flags));
                self.status.push((context, extents.collect()));
            }
            kind if kind.is_error() => self.error = Some(parse_error_body(body).unwrap().0),
            other => panic!("a chunk of kind {other:?}"),
        }
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        let (at, end) = (at as usize, at as usize + bytes.len());
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        self.data[at..end].copy_from_slice(bytes);
    }
}
