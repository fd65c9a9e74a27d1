//! From a socket to an export that is ready for requests.

use std::io;
use std::rc::Rc;

use engine::net::TcpStream;
use nbd_wire::session::{SESSION, Shape, VERIFIER};
use nbd_wire::{
    ALLOCATION_CONTEXT, BlockSizes, ClientOption, GREETING_BYTES, Info, OptionReply,
    PAYLOAD_BYTES_MAX, REPLY_BYTES, ReplyHeadOfOption, ReplyType, WireError, handshake,
    parse_greeting,
};
use rustls::ClientConnection;

use super::known::Known;
use super::{RemoteConfig, RemoteTls};
use crate::wire::{Broken, Reader, Wire};

/// Longest data of a reply to an option.
const REPLY_BYTES_MAX: u32 = 16 << 10;
/// Most replies to one option.
const REPLIES_MAX: usize = 128;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoLink {
    /// Nobody listens, or the connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It does not speak the protocol.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// It does not take what it is sent.
    #[error("{0}")]
    Broken(#[from] Broken),
    /// What it says is not to be had.
    #[error("{0}")]
    Nonsense(&'static str),
    /// It refuses.
    #[error("it refuses {what} ({kind:#x}): {message}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// The error's number.
        kind: u32,
        /// What it says.
        message: String,
    },
    /// It takes too long.
    #[error("it takes too long to answer")]
    Slow,
}

/// A connection that is ready for requests.
pub(super) struct Ready {
    pub(super) wire: Rc<Wire>,
    pub(super) reader: Reader,
    pub(super) known: Known,
    /// The number of the context of what is allocated, when the server has it.
    pub(super) allocation: Option<u32>,
    pub(super) structured: bool,
}

/// Connects, and chooses the export.
pub(super) async fn connect(config: &RemoteConfig) -> Result<Ready, NoLink> {
    let ready = engine::timeout(config.connect_max, connect_now(config)).await;
    ready.ok_or(NoLink::Slow)?
}

async fn connect_now(config: &RemoteConfig) -> Result<Ready, NoLink> {
    let stream = TcpStream::connect(&config.addr).await?;
    // A Unix socket has no such thing.
    let _ = stream.set_nodelay();
    let wire = Wire::new(stream, config.answer_max, 4);
    let mut reader = Reader::new(Rc::clone(&wire)).await?;
    let flags = parse_greeting(&reader.array::<GREETING_BYTES>().await?)?;
    if flags & handshake::FIXED_NEWSTYLE == 0 {
        return Err(NoLink::Nonsense("it answers no options"));
    }
    let agreed = flags & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
    wire.send(u32::from(agreed).to_be_bytes().to_vec()).await?;
    let mut options = Options { wire, reader };
    if let Some(tls) = &config.tls {
        options.start_tls(tls).await?;
    }
    options.choose(config).await
}

/// The part of a connection in which options are asked for.
struct Options {
    wire: Rc<Wire>,
    reader: Reader,
}

impl Options {
    async fn start_tls(&mut self, tls: &RemoteTls) -> Result<(), NoLink> {
        let replies = self.ask(&ClientOption::StartTls).await?;
        accepted("TLS", &replies)?;
        let connection = ClientConnection::new(tls.config.clone(), tls.server_name.clone());
        let connection = connection.map_err(io::Error::other)?;
        Ok(self.reader.start_tls(connection.into()).await?)
    }

    async fn choose(mut self, config: &RemoteConfig) -> Result<Ready, NoLink> {
        let mut known = Known {
            verifier: None,
            bytes: 0,
            flags: 0,
            sizes: BlockSizes {
                minimum: 1,
                preferred: 4096,
                maximum: PAYLOAD_BYTES_MAX,
            },
            shape: None,
        };
        let mut allocation = None;
        let replies = self.ask(&ClientOption::StructuredReply).await?;
        let structured = accepted("structured replies", &replies).is_ok();
        if structured {
            let option = ClientOption::SetMetaContext {
                export: config.export.clone(),
                queries: vec![
                    ALLOCATION_CONTEXT.to_owned(),
                    format!("{SESSION}{}", config.session),
                ],
            };
            // A server without contexts refuses the option, and is asked for the export all the same.
            for reply in self.ask(&option).await? {
                let OptionReply::MetaContext { id, name } = reply else {
                    continue;
                };
                if name == ALLOCATION_CONTEXT {
                    allocation = Some(id);
                } else if let Some(verifier) = name.strip_prefix(VERIFIER) {
                    let verifier = verifier.parse();
                    let nonsense = |_| NoLink::Nonsense("its verifier is none");
                    known.verifier = Some(verifier.map_err(nonsense)?);
                } else if let Some(shape) = Shape::of_context(&name) {
                    known.shape = Some(shape);
                }
            }
        }
        let option = ClientOption::Go {
            export: config.export.clone(),
            wanted: vec![Info::BLOCK_SIZE],
        };
        let replies = self.ask(&option).await?;
        accepted("the export", &replies)?;
        for reply in replies {
            match reply {
                OptionReply::Info(Info::Export { bytes, flags }) => {
                    (known.bytes, known.flags) = (bytes, flags);
                }
                OptionReply::Info(Info::BlockSize(sizes)) => known.sizes = sizes,
                _ => {}
            }
        }
        Ok(Ready {
            wire: self.wire,
            reader: self.reader,
            known: known.checked().map_err(NoLink::Nonsense)?,
            allocation,
            structured,
        })
    }

    /// Sends an option, and reads its replies: the last one accepts or refuses.
    async fn ask(&mut self, option: &ClientOption) -> Result<Vec<OptionReply>, NoLink> {
        self.wire.send(option.encode()).await?;
        let mut replies = Vec::new();
        while replies.len() < REPLIES_MAX {
            let head = ReplyHeadOfOption::parse(&self.reader.array::<REPLY_BYTES>().await?)?;
            if head.len > REPLY_BYTES_MAX {
                return Err(NoLink::Nonsense("its answer to an option is too long"));
            }
            let mut data = vec![0; head.len as usize];
            self.reader.fill(&mut data).await?;
            if head.code != option.code() {
                return Err(NoLink::Nonsense("it answers another option"));
            }
            replies.push(OptionReply::parse(head.kind, &data)?);
            if head.kind == ReplyType::ACK || head.kind.is_error() {
                return Ok(replies);
            }
        }
        Err(NoLink::Nonsense("its answers to an option do not end"))
    }
}

fn accepted(what: &'static str, replies: &[OptionReply]) -> Result<(), NoLink> {
    match replies.last() {
        Some(OptionReply::Ack) => Ok(()),
        Some(OptionReply::Error { kind, message }) => Err(NoLink::Refused {
            what,
            kind: kind.0,
            message: message.chars().take(200).collect(),
        }),
        _ => Err(NoLink::Nonsense("an option has no answer")),
    }
}
