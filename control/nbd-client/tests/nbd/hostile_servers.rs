//! Servers that send what was not asked for: an error, with bounded memory, and no wait without an end.

use futures_util::future::join;
use nbd_client::{Address, Client, ClientError, Options, Target};
use nbd_wire::{Chunk, ChunkKind, Info, OptionCode, OptionReply, Request, chunk, greeting, simple};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// Negotiates with a client as a server that has structured replies and one context.
async fn begin(stream: &mut UnixStream) -> std::io::Result<()> {
    stream.write_all(&greeting(3)).await?;
    let mut flags = [0; 4];
    stream.read_exact(&mut flags).await?;
    for code in [
        OptionCode::STRUCTURED_REPLY,
        OptionCode::SET_META_CONTEXT,
        OptionCode::GO,
    ] {
        let mut head = [0; 16];
        stream.read_exact(&mut head).await?;
        let len = u32::from_be_bytes([head[12], head[13], head[14], head[15]]);
        let mut data = vec![0; len as usize];
        stream.read_exact(&mut data).await?;
        let mut out = Vec::new();
        if code == OptionCode::SET_META_CONTEXT {
            let name = nbd_wire::ALLOCATION_CONTEXT.to_owned();
            OptionReply::MetaContext { id: 1, name }.encode(code, &mut out);
        }
        if code == OptionCode::GO {
            let (bytes, flags) = (1 << 30, 0x7D);
            OptionReply::Info(Info::Export { bytes, flags }).encode(code, &mut out);
        }
        OptionReply::Ack.encode(code, &mut out);
        stream.write_all(&out).await?;
    }
    Ok(())
}

/// A server that answers the first request with these bytes, made from its cookie.
async fn answered(
    answer: impl Fn(u64) -> Vec<u8> + Send + 'static,
    ask: impl AsyncFnOnce(Client) -> ClientError,
) -> ClientError {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbd");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        begin(&mut stream).await.unwrap();
        let mut bytes = [0; nbd_wire::REQUEST_BYTES];
        stream.read_exact(&mut bytes).await.unwrap();
        let request = Request::parse(&bytes).unwrap();
        // The client may end it in the middle.
        let _ = stream.write_all(&answer(request.cookie)).await;
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    });
    let target = Target::new(Address::Unix(socket), "disk");
    let client = Client::connect(&target, Options::default()).await.unwrap();
    let error = ask(client).await;
    server.await.unwrap();
    error
}

fn part(kind: ChunkKind, cookie: u64, len: u32, done: bool, body: &[u8]) -> Vec<u8> {
    let head = Chunk {
        done,
        kind,
        cookie,
        len,
    };
    [&chunk(&head)[..], body].concat()
}

fn data(cookie: u64, offset: u64, len: u32, done: bool) -> Vec<u8> {
    let body = [&offset.to_be_bytes()[..], &vec![7; len as usize]].concat();
    part(ChunkKind::DATA, cookie, len + 8, done, &body)
}

fn hole(cookie: u64, offset: u64, len: u32, done: bool) -> Vec<u8> {
    let body = [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat();
    part(ChunkKind::HOLE, cookie, 12, done, &body)
}

type Answer = Box<dyn Fn(u64) -> Vec<u8> + Send>;

#[tokio::test]
async fn reads_that_are_answered_wrongly_are_errors() {
    let answers: Vec<(&str, Answer)> = vec![
        (
            "another cookie",
            Box::new(|cookie| simple(None, cookie + 1).to_vec()),
        ),
        ("no magic", Box::new(|_| vec![0; 64])),
        ("an end in the middle", Box::new(|_| vec![0x67, 0x44])),
        (
            "before the range",
            Box::new(|cookie| data(cookie, 0, 512, true)),
        ),
        (
            "behind it",
            Box::new(|cookie| data(cookie, 8192, 512, true)),
        ),
        (
            "more than was asked",
            Box::new(|cookie| data(cookie, 4096, 8192, true)),
        ),
        (
            "a part alone",
            Box::new(|cookie| data(cookie, 4096, 512, true)),
        ),
        ("no bytes", Box::new(|cookie| data(cookie, 4096, 0, true))),
        (
            "a lie about the length",
            Box::new(|cookie| part(ChunkKind::DATA, cookie, u32::MAX, true, &[0; 8])),
        ),
        (
            "one part twice",
            Box::new(|cookie| {
                [
                    data(cookie, 4096, 2048, false),
                    data(cookie, 4096, 2048, true),
                ]
                .concat()
            }),
        ),
        (
            "holes without an end",
            Box::new(|cookie| hole(cookie, 4096, 2048, false).repeat(3)),
        ),
        (
            "an empty hole",
            Box::new(|cookie| hole(cookie, 4096, 0, true)),
        ),
        (
            "extents of a read",
            Box::new(|cookie| part(ChunkKind::BLOCK_STATUS, cookie, 12, true, &[1; 12])),
        ),
        (
            "a body without an end",
            Box::new(|cookie| part(ChunkKind::ERROR, cookie, u32::MAX, true, &[])),
        ),
        (
            "an unknown chunk",
            Box::new(|cookie| part(ChunkKind(77), cookie, 0, true, &[])),
        ),
    ];
    for (what, answer) in answers {
        let read = async |client: Client| client.read(4096, 4096).await.unwrap_err();
        let error = answered(answer, read).await;
        let known = matches!(
            error,
            ClientError::Protocol(_) | ClientError::Wire(_) | ClientError::Broken(_)
        );
        assert!(known, "{what}: {error}");
    }
}

#[tokio::test]
async fn extents_that_make_no_sense_are_errors() {
    let status = |cookie, context: u32, extents: &[u32]| {
        let words = [&[context], extents].concat();
        let body: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        part(
            ChunkKind::BLOCK_STATUS,
            cookie,
            body.len() as u32,
            true,
            &body,
        )
    };
    let answers: Vec<(&str, Answer)> = vec![
        ("none", Box::new(move |cookie| status(cookie, 1, &[]))),
        (
            "an empty one",
            Box::new(move |cookie| status(cookie, 1, &[0, 0])),
        ),
        (
            "half of one",
            Box::new(move |cookie| status(cookie, 1, &[512])),
        ),
        (
            "of another context",
            Box::new(move |cookie| status(cookie, 2, &[512, 0])),
        ),
        (
            "a simple answer",
            Box::new(|cookie| simple(None, cookie).to_vec()),
        ),
    ];
    for (what, answer) in answers {
        let ask = async |client: Client| client.block_status(0, 4096).await.unwrap_err();
        let error = answered(answer, ask).await;
        let known = matches!(error, ClientError::Protocol(_) | ClientError::Wire(_));
        assert!(known, "{what}: {error}");
    }
}

#[tokio::test]
async fn an_error_of_one_request_leaves_the_others() {
    let answer = |cookie| {
        let body = nbd_wire::error_body(nbd_wire::NbdError::NO_SPACE, "it is full", None);
        let failed = part(ChunkKind::ERROR, cookie, body.len() as u32, true, &body);
        [failed, data(cookie + 1, 0, 512, true)].concat()
    };
    let ask = async |client: Client| {
        let (failed, read) = join(client.write_zeroes(0, 4096), client.read(0, 512)).await;
        assert_eq!(read.unwrap(), [7; 512]);
        failed.unwrap_err()
    };
    let error = answered(answer, ask).await;
    let said = error.to_string();
    assert!(
        said.contains("ENOSPC") && said.contains("it is full"),
        "{said}"
    );
}
