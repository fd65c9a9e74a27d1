//! Fuzz targets: options, what a whole connection may send, answers as a client reads them, and what a remote
//! device's server may say.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::LazyLock;
use std::time::Duration;

use engine::net::Addr;
use engine::{Engine, EngineConfig, GuestIov, GuestList, GuestMem, ShardId};
use futures_util::future::join;
use nbd_wire::session::{Shape, Token, VERIFIER};
use nbd_wire::{
    ALLOCATION_CONTEXT, BlockSizes, ClientOption, Info, OPTION_BYTES, OptionCode, OptionHead,
    OptionReply, ReplyHead, ReplyType, Request, greeting, parse_block_status, parse_error_body,
};
use shards::block::{BlockDevice, BlockError, Geometry};

use crate::export::{Entry, Exports};
use crate::negotiation::{Negotiation, Next, Security};
use crate::{Export, Limits, Listen, RemoteConfig, RemoteDevice, Server, ServerConfig};

/// Reads leave memory as it is, and nothing is kept.
struct Nothing;

impl BlockDevice for Nothing {
    fn geometry(&self) -> Geometry {
        Geometry {
            bytes: 1 << 40,
            block_bytes: 512,
            physical_bytes: 4096,
            optimal_bytes: 0,
            discard_granularity: 4096,
            read_only: false,
            serial: [0; 20],
        }
    }

    async fn read(&self, _offset: u64, _into: GuestList) -> Result<(), BlockError> {
        Ok(())
    }

    async fn write(
        &self,
        _offset: u64,
        _from: GuestList,
        _durable: bool,
    ) -> Result<(), BlockError> {
        Ok(())
    }

    async fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    async fn discard(&self, _offset: u64, _len: u64) -> Result<(), BlockError> {
        Ok(())
    }

    async fn write_zeroes(
        &self,
        _offset: u64,
        _len: u64,
        _may_unmap: bool,
        _durable: bool,
    ) -> Result<(), BlockError> {
        Ok(())
    }

    async fn changed(&self) {
        std::future::pending::<()>().await;
    }
}

/// Options, one behind the other as on a socket: what is read is written to the same again, and each is
/// answered by something that a client can read.
pub fn options(input: &[u8]) {
    let mut exports = Exports::new();
    for name in ["", "disk"] {
        let entry = Entry::new(Export::new(name, Rc::new(Nothing)));
        exports.insert(name.to_owned(), entry);
    }
    let exports = Rc::new(RefCell::new(exports));
    let mut negotiation = Negotiation::new(exports, Security::Offered);
    let mut left = input;
    while let Some((head, rest)) = left.split_first_chunk::<OPTION_BYTES>() {
        let Ok(head) = OptionHead::parse(head) else {
            return;
        };
        let (data, rest) = rest.split_at((head.len as usize).min(rest.len()));
        left = rest;
        let mut out = Vec::new();
        let next = match ClientOption::parse(head.code, data) {
            Ok(option) => {
                let bytes = option.encode();
                let again = ClientOption::parse(option.code(), &bytes[OPTION_BYTES..]);
                assert_eq!(again.as_ref(), Ok(&option));
                negotiation.answer(option, &mut out)
            }
            Err(_) => Negotiation::malformed(head.code, &mut out),
        };
        match next {
            Next::Option if head.code != OptionCode::EXPORT_NAME => assert!(!out.is_empty()),
            Next::StartTls => negotiation.secure(),
            _ => return,
        }
    }
}

/// A server that never ends, at this socket.
static SERVER: LazyLock<PathBuf> = LazyLock::new(|| {
    let name = format!("nbd-fuzz-{}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let listen = Listen::Unix(path.clone());
    let engine = Engine::start(EngineConfig::unpinned(1)).expect("an engine");
    let started = engine.handle().call_blocking(ShardId(0), move |_| {
        Box::pin(async move {
            let config = ServerConfig {
                limits: Limits {
                    stall_max: Duration::from_secs(2),
                    handshake_max: Duration::from_secs(2),
                    ..Limits::default()
                },
                ..ServerConfig::new(listen)
            };
            let server = Server::start(config).expect("a socket");
            let export = Export::new("disk", Rc::new(Nothing));
            server.add(export).expect("a new name");
            std::mem::forget(server);
        })
    });
    started.expect("the shard serves");
    std::mem::forget(engine);
    path
});

/// Bytes of a whole connection: the first one says whether they begin with the greeting's answer alone, or
/// behind an export that was chosen.
pub fn connection(input: &[u8]) {
    let Some((how, bytes)) = input.split_first() else {
        return;
    };
    let mut stream = UnixStream::connect(&*SERVER).expect("the server listens");
    let mut sent = Vec::new();
    if how & 1 != 0 {
        sent.extend(3_u32.to_be_bytes());
    }
    if how & 2 != 0 {
        sent.extend(ClientOption::StructuredReply.encode());
    }
    if how & 4 != 0 {
        let (export, queries) = ("disk".to_owned(), vec!["base:allocation".to_owned()]);
        sent.extend(ClientOption::SetMetaContext { export, queries }.encode());
    }
    if how & 8 != 0 {
        let (export, wanted) = ("disk".to_owned(), vec![]);
        sent.extend(ClientOption::Go { export, wanted }.encode());
    }
    sent.extend(bytes);
    let mut reader = stream.try_clone().expect("a descriptor");
    let reading = std::thread::spawn(move || {
        let mut answers = vec![0; 1 << 16];
        while reader.read(&mut answers).is_ok_and(|got| got > 0) {}
    });
    // The server may have ended it before.
    let _ = stream.write_all(&sent);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    reading.join().expect("it ends");
}

/// What a server sends, as a client reads it.
pub fn answers(input: &[u8]) {
    let _ = ReplyHead::parse(input);
    let _ = parse_error_body(input);
    if let Ok((context, extents)) = parse_block_status(input) {
        assert_eq!(nbd_wire::block_status(context, &extents), input);
    }
    if let Some((request, _)) = input.split_first_chunk()
        && let Ok(parsed) = Request::parse(request)
    {
        assert_eq!(parsed.encode(), *request);
    }
    let Some((kind, data)) = input.split_first_chunk() else {
        return;
    };
    if let Ok(reply) = OptionReply::parse(ReplyType(u32::from_be_bytes(*kind)), data) {
        let mut bytes = Vec::new();
        reply.encode(OptionCode::GO, &mut bytes);
    }
}

/// A shard for devices, and where their server listens.
struct Clients {
    engine: Engine,
    listener: UnixListener,
    path: PathBuf,
}

static CLIENTS: LazyLock<Clients> = LazyLock::new(|| {
    let name = format!("nbd-fuzz-remote-{}", std::process::id());
    let path = std::env::temp_dir().join(name);
    Clients {
        engine: Engine::start(EngineConfig::unpinned(1)).expect("an engine"),
        listener: UnixListener::bind(&path).expect("a socket"),
        path,
    }
});

/// What a server says up to where requests begin.
fn negotiated() -> Vec<u8> {
    let sizes = BlockSizes {
        minimum: 512,
        preferred: 4096,
        maximum: 32 << 20,
    };
    let shape = Shape {
        physical_bytes: 4096,
        optimal_bytes: 0,
        discard_granularity: 4096,
        serial: [0; 20],
    };
    let context = |id, name| OptionReply::MetaContext { id, name };
    let (bytes, flags) = (1 << 20, 0x96D);
    let mut out = greeting(3).to_vec();
    for (code, reply) in [
        (OptionCode::STRUCTURED_REPLY, OptionReply::Ack),
        (
            OptionCode::SET_META_CONTEXT,
            context(0, ALLOCATION_CONTEXT.to_owned()),
        ),
        (
            OptionCode::SET_META_CONTEXT,
            context(1, format!("{VERIFIER}{}", Token(1))),
        ),
        (OptionCode::SET_META_CONTEXT, context(2, shape.context())),
        (OptionCode::SET_META_CONTEXT, OptionReply::Ack),
        (
            OptionCode::GO,
            OptionReply::Info(Info::Export { bytes, flags }),
        ),
        (OptionCode::GO, OptionReply::Info(Info::BlockSize(sizes))),
        (OptionCode::GO, OptionReply::Ack),
    ] {
        reply.encode(code, &mut out);
    }
    out
}

/// What a server says to a remote device: the first byte says whether the rest follows a connection that has
/// been agreed on.
pub fn remote(input: &[u8]) {
    let Some((how, said)) = input.split_first() else {
        return;
    };
    let mut bytes = if how & 1 != 0 {
        negotiated()
    } else {
        Vec::new()
    };
    bytes.extend(said);
    let clients = &*CLIENTS;
    let config = RemoteConfig {
        patience: Duration::from_millis(1),
        answer_max: Duration::from_secs(1),
        connect_max: Duration::from_secs(1),
        ..RemoteConfig::new(Addr::Unix(clients.path.clone()), "disk", Token(2))
    };
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = CLIENTS.listener.accept().expect("a client");
        // The client may have ended it before.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut asked = vec![0; 1 << 16];
        while stream.read(&mut asked).is_ok_and(|got| got > 0) {}
    });
    let used = clients.engine.handle().call_blocking(ShardId(0), move |_| {
        Box::pin(async move {
            let Ok(device) = RemoteDevice::connect(config, None).await else {
                return;
            };
            let bytes = device.geometry().bytes.min(64 << 10) as u32;
            let mem = GuestMem::anonymous(64 << 10).expect("memory");
            let mut list = GuestList::new();
            let pushed = list.push(
                &mem,
                GuestIov {
                    offset: 0,
                    len: bytes,
                },
            );
            pushed.expect("it is inside");
            // Each of them ends, however that is.
            let (read, write) = (device.read(0, list.clone()), device.write(0, list, true));
            let (extents, flush) = (device.extents(0, u64::from(bytes)), device.flush());
            let _ended = join(join(read, write), join(extents, flush)).await;
        })
    });
    used.expect("the shard serves");
    serving.join().expect("it ends");
}
