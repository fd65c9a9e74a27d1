//! Replies to options.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..8 | `0x0003_E889_0455_65A9` |
//! | 8..12 | [`OptionCode`] of what is answered |
//! | 12..16 | [`ReplyType`] |
//! | 16..20 | length of what follows |

use crate::WireError;
use crate::cursor::{Cursor, put_text, text};
use crate::option::OptionCode;

const MAGIC: u64 = 0x0003_E889_0455_65A9;
/// Bytes of a reply's head.
pub const REPLY_BYTES: usize = 20;

/// What kind of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyType(pub u32);

const ERROR: u32 = 1 << 31;

impl ReplyType {
    /// Done.
    pub const ACK: ReplyType = ReplyType(1);
    /// The name of an export.
    pub const SERVER: ReplyType = ReplyType(2);
    /// Something about an export.
    pub const INFO: ReplyType = ReplyType(3);
    /// A context.
    pub const META_CONTEXT: ReplyType = ReplyType(4);
    /// There is no such option.
    pub const UNSUPPORTED: ReplyType = ReplyType(ERROR | 1);
    /// Not for this client.
    pub const POLICY: ReplyType = ReplyType(ERROR | 2);
    /// The option is malformed, or not possible now.
    pub const INVALID: ReplyType = ReplyType(ERROR | 3);
    /// Only over TLS.
    pub const TLS_REQUIRED: ReplyType = ReplyType(ERROR | 5);
    /// There is no such export.
    pub const UNKNOWN: ReplyType = ReplyType(ERROR | 6);
    /// The server ends.
    pub const SHUTDOWN: ReplyType = ReplyType(ERROR | 7);
    /// The option is too long.
    pub const TOO_BIG: ReplyType = ReplyType(ERROR | 9);

    /// Whether it refuses.
    pub fn is_error(self) -> bool {
        self.0 & ERROR != 0
    }
}

/// Sizes of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of this.
    pub minimum: u32,
    /// Multiples of this are best.
    pub preferred: u32,
    /// Most bytes of a transfer.
    pub maximum: u32,
}

/// Something about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the protocol's")]
pub enum Info {
    /// Its size, and what it can do ([`crate::transmission`]).
    Export { bytes: u64, flags: u16 },
    /// Its name.
    Name(String),
    /// A text for people.
    Description(String),
    /// Sizes of requests.
    BlockSize(BlockSizes),
    /// What this crate does not know.
    Unknown(u16),
}

impl Info {
    /// Number of [`Info::Name`].
    pub const NAME: u16 = 1;
    /// Number of [`Info::Description`].
    pub const DESCRIPTION: u16 = 2;
    /// Number of [`Info::BlockSize`].
    pub const BLOCK_SIZE: u16 = 3;

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Info::Export { bytes, flags } => {
                out.extend(0_u16.to_be_bytes());
                out.extend(bytes.to_be_bytes());
                out.extend(flags.to_be_bytes());
            }
            Info::Name(name) => {
                out.extend(Info::NAME.to_be_bytes());
                out.extend(name.as_bytes());
            }
            Info::Description(text) => {
                out.extend(Info::DESCRIPTION.to_be_bytes());
                out.extend(text.as_bytes());
            }
            Info::BlockSize(sizes) => {
                out.extend(Info::BLOCK_SIZE.to_be_bytes());
                for size in [sizes.minimum, sizes.preferred, sizes.maximum] {
                    out.extend(size.to_be_bytes());
                }
            }
            Info::Unknown(kind) => out.extend(kind.to_be_bytes()),
        }
        out
    }

    fn parse(data: &[u8]) -> Option<Info> {
        let mut cursor = Cursor::new(data);
        let info = match cursor.u16()? {
            0 => Info::Export {
                bytes: cursor.u64()?,
                flags: cursor.u16()?,
            },
            Info::NAME => Info::Name(text(cursor.rest())?),
            Info::DESCRIPTION => Info::Description(text(cursor.rest())?),
            Info::BLOCK_SIZE => Info::BlockSize(BlockSizes {
                minimum: cursor.u32()?,
                preferred: cursor.u32()?,
                maximum: cursor.u32()?,
            }),
            kind => {
                cursor.rest();
                Info::Unknown(kind)
            }
        };
        cursor.is_empty().then_some(info)
    }
}

/// A reply with what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the protocol's")]
pub enum OptionReply {
    /// Done.
    Ack,
    /// The name of an export.
    Server(String),
    /// Something about an export.
    Info(Info),
    /// A context, and the number by which answers name it.
    MetaContext { id: u32, name: String },
    /// A refusal, and a text for people.
    Error { kind: ReplyType, message: String },
}

/// The head of a reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyHeadOfOption {
    /// What is answered.
    pub code: OptionCode,
    /// What kind of an answer.
    pub kind: ReplyType,
    /// Bytes that follow.
    pub len: u32,
}

impl ReplyHeadOfOption {
    /// Reads one.
    ///
    /// # Errors
    /// When the magic is wrong.
    pub fn parse(bytes: &[u8; REPLY_BYTES]) -> Result<ReplyHeadOfOption, WireError> {
        let mut cursor = Cursor::new(bytes);
        let found = cursor.u64().unwrap_or_default();
        if found != MAGIC {
            let what = "a reply to an option";
            return Err(WireError::Magic { what, found });
        }
        Ok(ReplyHeadOfOption {
            code: OptionCode(cursor.u32().unwrap_or_default()),
            kind: ReplyType(cursor.u32().unwrap_or_default()),
            len: cursor.u32().unwrap_or_default(),
        })
    }
}

impl OptionReply {
    fn parts(&self) -> (ReplyType, Vec<u8>) {
        match self {
            OptionReply::Ack => (ReplyType::ACK, Vec::new()),
            OptionReply::Server(name) => {
                let mut data = Vec::new();
                put_text(&mut data, name);
                (ReplyType::SERVER, data)
            }
            OptionReply::Info(info) => (ReplyType::INFO, info.encode()),
            OptionReply::MetaContext { id, name } => {
                let mut data = id.to_be_bytes().to_vec();
                data.extend(name.as_bytes());
                (ReplyType::META_CONTEXT, data)
            }
            OptionReply::Error { kind, message } => (*kind, message.as_bytes().to_vec()),
        }
    }

    /// Appends the whole reply, head and all.
    pub fn encode(&self, to: OptionCode, out: &mut Vec<u8>) {
        let (kind, data) = self.parts();
        out.extend(MAGIC.to_be_bytes());
        out.extend(to.0.to_be_bytes());
        out.extend(kind.0.to_be_bytes());
        out.extend((data.len() as u32).to_be_bytes());
        out.extend(data);
    }

    /// Reads what follows the head of a reply.
    ///
    /// # Errors
    /// When it is not what such a reply has.
    pub fn parse(kind: ReplyType, data: &[u8]) -> Result<OptionReply, WireError> {
        let parsed = match kind {
            ReplyType::ACK => data.is_empty().then_some(OptionReply::Ack),
            // What follows the name is for people.
            ReplyType::SERVER => Cursor::new(data).text().map(OptionReply::Server),
            ReplyType::INFO => Info::parse(data).map(OptionReply::Info),
            ReplyType::META_CONTEXT => {
                let mut cursor = Cursor::new(data);
                let id = cursor.u32();
                id.zip(text(cursor.rest()))
                    .map(|(id, name)| OptionReply::MetaContext { id, name })
            }
            kind if kind.is_error() => Some(OptionReply::Error {
                kind,
                message: String::from_utf8_lossy(data).into_owned(),
            }),
            _ => None,
        };
        parsed.ok_or(WireError::Malformed {
            what: "a reply to an option",
            len: data.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<OptionReply> {
        let sizes = BlockSizes {
            minimum: 512,
            preferred: 4096,
            maximum: 32 << 20,
        };
        vec![
            OptionReply::Ack,
            OptionReply::Server("disk".into()),
            OptionReply::Info(Info::Export {
                bytes: 1 << 40,
                flags: 0x1FF,
            }),
            OptionReply::Info(Info::Name("disk".into())),
            OptionReply::Info(Info::Description("a disk".into())),
            OptionReply::Info(Info::BlockSize(sizes)),
            OptionReply::Info(Info::Unknown(77)),
            OptionReply::MetaContext {
                id: 7,
                name: "base:allocation".into(),
            },
            OptionReply::Error {
                kind: ReplyType::UNKNOWN,
                message: "no such export".into(),
            },
        ]
    }

    #[test]
    fn replies_are_read_back() {
        for reply in all() {
            let mut bytes = Vec::new();
            reply.encode(OptionCode::GO, &mut bytes);
            let (head, data) = bytes.split_first_chunk().expect("a head");
            let head = ReplyHeadOfOption::parse(head).expect("a reply");
            assert_eq!((head.code, head.len as usize), (OptionCode::GO, data.len()));
            assert_eq!(OptionReply::parse(head.kind, data), Ok(reply));
        }
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        ReplyHeadOfOption::parse(&[0; REPLY_BYTES]).expect_err("no magic");
        OptionReply::parse(ReplyType::ACK, b"x").expect_err("an answer with something in it");
        OptionReply::parse(ReplyType::INFO, &[0, 3, 0]).expect_err("cut short");
        OptionReply::parse(ReplyType(1000), b"").expect_err("no kind of reply");
    }
}
