//! From a socket to an export that is ready for requests.

use std::sync::Arc;

use nbd_wire::{
    ALLOCATION_CONTEXT, BlockSizes, ClientOption, GREETING_BYTES, Info, OptionCode, OptionReply,
    PAYLOAD_BYTES_MAX, REPLY_BYTES, ReplyHeadOfOption, ReplyType, handshake, parse_greeting,
};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::error::ClientError;
use crate::target::{Address, ClientTls, Target};

/// Longest data of a reply to an option.
const REPLY_BYTES_MAX: u32 = 64 << 10;
/// Most replies to one option.
const REPLIES_MAX: usize = 1024;

/// A socket of any kind.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}
pub(crate) type BoxStream = Box<dyn Stream>;

/// What was agreed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Agreed {
    pub(crate) bytes: u64,
    pub(crate) flags: u16,
    pub(crate) sizes: BlockSizes,
    /// The number of the context of what is allocated, when the server has it.
    pub(crate) allocation: Option<u32>,
    pub(crate) structured: bool,
}

/// Connects, and chooses an export.
pub(crate) async fn connect(target: &Target) -> Result<(BoxStream, Agreed), ClientError> {
    let opened = open(&target.address).await;
    let mut stream = opened.map_err(|source| ClientError::Connect {
        to: target.address.to_string(),
        source: Arc::new(source),
    })?;
    let mut bytes = [0; GREETING_BYTES];
    stream.read_exact(&mut bytes).await?;
    let flags = parse_greeting(&bytes)?;
    if flags & handshake::FIXED_NEWSTYLE == 0 {
        return Err(ClientError::Protocol("it answers no options"));
    }
    let agreed = flags & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
    stream.write_all(&u32::from(agreed).to_be_bytes()).await?;
    if let Some(tls) = &target.tls {
        stream = start_tls(stream, tls).await?;
    }
    let agreed = choose(&mut stream, &target.export).await?;
    Ok((stream, agreed))
}

async fn open(address: &Address) -> std::io::Result<BoxStream> {
    Ok(match address {
        Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
        Address::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
    })
}

async fn start_tls(mut stream: BoxStream, tls: &ClientTls) -> Result<BoxStream, ClientError> {
    let replies = ask(&mut stream, &ClientOption::StartTls).await?;
    accepted("TLS", &replies)?;
    let name = ServerName::try_from(tls.server_name.clone());
    let name = name.map_err(|_| ClientError::Address {
        uri: tls.server_name.clone(),
        why: "it is no name of a server",
    })?;
    let connector = TlsConnector::from(Arc::clone(&tls.config));
    Ok(Box::new(connector.connect(name, stream).await?))
}

async fn choose(stream: &mut BoxStream, export: &str) -> Result<Agreed, ClientError> {
    let replies = ask(stream, &ClientOption::StructuredReply).await?;
    let structured = accepted("structured replies", &replies).is_ok();
    let mut allocation = None;
    if structured {
        let option = ClientOption::SetMetaContext {
            export: export.to_owned(),
            queries: vec![ALLOCATION_CONTEXT.to_owned()],
        };
        // A server without contexts refuses the option, and is asked for the export all the same.
        for reply in ask(stream, &option).await? {
            if let OptionReply::MetaContext { id, name } = reply
                && name == ALLOCATION_CONTEXT
            {
                allocation = Some(id);
            }
        }
    }
    let option = ClientOption::Go {
        export: export.to_owned(),
        wanted: vec![Info::BLOCK_SIZE],
    };
    let replies = ask(stream, &option).await?;
    accepted(&format!("the export {export:?}"), &replies)?;
    let mut agreed = Agreed {
        bytes: 0,
        flags: 0,
        sizes: BlockSizes {
            minimum: 1,
            preferred: 4096,
            maximum: PAYLOAD_BYTES_MAX,
        },
        allocation,
        structured,
    };
    for reply in replies {
        match reply {
            OptionReply::Info(Info::Export { bytes, flags }) => {
                (agreed.bytes, agreed.flags) = (bytes, flags);
            }
            OptionReply::Info(Info::BlockSize(sizes)) => agreed.sizes = sizes,
            _ => {}
        }
    }
    if agreed.flags & nbd_wire::transmission::HAS_FLAGS == 0 {
        return Err(ClientError::Protocol("it says nothing of the export"));
    }
    sound(&mut agreed.sizes)?;
    Ok(agreed)
}

/// Sizes that requests can be cut into.
fn sound(sizes: &mut BlockSizes) -> Result<(), ClientError> {
    sizes.maximum = sizes.maximum.min(PAYLOAD_BYTES_MAX);
    let powers = sizes.minimum.is_power_of_two() && sizes.preferred.is_power_of_two();
    if !powers || sizes.minimum > 64 << 10 || sizes.maximum < sizes.minimum.max(4096) {
        return Err(ClientError::Protocol("its sizes of blocks make no sense"));
    }
    sizes.maximum -= sizes.maximum % sizes.minimum;
    Ok(())
}

fn accepted(what: &str, replies: &[OptionReply]) -> Result<(), ClientError> {
    match replies.last() {
        Some(OptionReply::Ack) => Ok(()),
        Some(OptionReply::Error { kind, message }) => Err(ClientError::Refused {
            what: what.to_owned(),
            kind: *kind,
            message: message.clone(),
        }),
        _ => Err(ClientError::Protocol("an option has no answer")),
    }
}

/// Sends an option, and reads its replies: the last one accepts or refuses.
async fn ask(
    stream: &mut BoxStream,
    option: &ClientOption,
) -> Result<Vec<OptionReply>, ClientError> {
    stream.write_all(&option.encode()).await?;
    let mut replies = Vec::new();
    while replies.len() < REPLIES_MAX {
        let (code, kind, reply) = next_reply(stream).await?;
        if code != option.code() {
            return Err(ClientError::Protocol("it answers another option"));
        }
        replies.push(reply);
        if kind == ReplyType::ACK || kind.is_error() {
            return Ok(replies);
        }
    }
    Err(ClientError::Protocol("its answers to an option do not end"))
}

async fn next_reply(
    stream: &mut BoxStream,
) -> Result<(OptionCode, ReplyType, OptionReply), ClientError> {
    let mut head = [0; REPLY_BYTES];
    stream.read_exact(&mut head).await?;
    let head = ReplyHeadOfOption::parse(&head)?;
    if head.len > REPLY_BYTES_MAX {
        return Err(ClientError::Protocol("its answer to an option is too long"));
    }
    let mut data = vec![0; head.len as usize];
    stream.read_exact(&mut data).await?;
    let reply = OptionReply::parse(head.kind, &data)?;
    Ok((head.code, head.kind, reply))
}
