//! Options: what a client asks for before it begins.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..8 | `IHAVEOPT` |
//! | 8..12 | [`OptionCode`] |
//! | 12..16 | length of what follows |

use crate::cursor::{Cursor, put_text, text};
use crate::{OPTION_MAGIC, WireError};

/// Bytes of an option's head.
pub const OPTION_BYTES: usize = 16;

/// Which option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionCode(pub u32);

impl OptionCode {
    /// Chooses an export and begins, without an answer that could refuse.
    pub const EXPORT_NAME: OptionCode = OptionCode(1);
    /// Ends the negotiation.
    pub const ABORT: OptionCode = OptionCode(2);
    /// Asks for the names of exports.
    pub const LIST: OptionCode = OptionCode(3);
    /// Begins TLS.
    pub const STARTTLS: OptionCode = OptionCode(5);
    /// Asks what an export is.
    pub const INFO: OptionCode = OptionCode(6);
    /// As INFO, and begins.
    pub const GO: OptionCode = OptionCode(7);
    /// Asks for structured replies.
    pub const STRUCTURED_REPLY: OptionCode = OptionCode(8);
    /// Asks which contexts there are.
    pub const LIST_META_CONTEXT: OptionCode = OptionCode(9);
    /// Chooses contexts.
    pub const SET_META_CONTEXT: OptionCode = OptionCode(10);
}

/// The head of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHead {
    /// Which option.
    pub code: OptionCode,
    /// Bytes that follow.
    pub len: u32,
}

impl OptionHead {
    /// Reads one.
    ///
    /// # Errors
    /// When the magic is wrong.
    pub fn parse(bytes: &[u8; OPTION_BYTES]) -> Result<OptionHead, WireError> {
        let mut cursor = Cursor::new(bytes);
        let found = cursor.u64().unwrap_or_default();
        if found != OPTION_MAGIC {
            let what = "an option";
            return Err(WireError::Magic { what, found });
        }
        Ok(OptionHead {
            code: OptionCode(cursor.u32().unwrap_or_default()),
            len: cursor.u32().unwrap_or_default(),
        })
    }
}

/// An option with what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the protocol's")]
pub enum ClientOption {
    /// See [`OptionCode::EXPORT_NAME`].
    ExportName(String),
    /// See [`OptionCode::ABORT`].
    Abort,
    /// See [`OptionCode::LIST`].
    List,
    /// See [`OptionCode::STARTTLS`].
    StartTls,
    /// See [`OptionCode::INFO`]: the export, and what is to be said of it.
    Info { export: String, wanted: Vec<u16> },
    /// See [`OptionCode::GO`].
    Go { export: String, wanted: Vec<u16> },
    /// See [`OptionCode::STRUCTURED_REPLY`].
    StructuredReply,
    /// See [`OptionCode::LIST_META_CONTEXT`]: none are all.
    ListMetaContext {
        export: String,
        queries: Vec<String>,
    },
    /// See [`OptionCode::SET_META_CONTEXT`].
    SetMetaContext {
        export: String,
        queries: Vec<String>,
    },
    /// One that this crate does not know.
    Unknown(OptionCode),
}

impl ClientOption {
    /// Reads what follows the head of an option.
    ///
    /// # Errors
    /// When it is not what the option has.
    pub fn parse(code: OptionCode, data: &[u8]) -> Result<ClientOption, WireError> {
        let empty = |option| data.is_empty().then_some(option);
        let parsed = match code {
            OptionCode::EXPORT_NAME => text(data).map(ClientOption::ExportName),
            OptionCode::ABORT => Some(ClientOption::Abort),
            OptionCode::LIST => empty(ClientOption::List),
            OptionCode::STARTTLS => empty(ClientOption::StartTls),
            OptionCode::STRUCTURED_REPLY => empty(ClientOption::StructuredReply),
            OptionCode::INFO => {
                info(data).map(|(export, wanted)| ClientOption::Info { export, wanted })
            }
            OptionCode::GO => {
                info(data).map(|(export, wanted)| ClientOption::Go { export, wanted })
            }
            OptionCode::LIST_META_CONTEXT => contexts(data)
                .map(|(export, queries)| ClientOption::ListMetaContext { export, queries }),
            OptionCode::SET_META_CONTEXT => contexts(data)
                .map(|(export, queries)| ClientOption::SetMetaContext { export, queries }),
            other => Some(ClientOption::Unknown(other)),
        };
        parsed.ok_or(WireError::Malformed {
            what: "an option",
            len: data.len(),
        })
    }

    /// Its code.
    pub fn code(&self) -> OptionCode {
        match self {
            ClientOption::ExportName(_) => OptionCode::EXPORT_NAME,
            ClientOption::Abort => OptionCode::ABORT,
            ClientOption::List => OptionCode::LIST,
            ClientOption::StartTls => OptionCode::STARTTLS,
            ClientOption::Info { .. } => OptionCode::INFO,
            ClientOption::Go { .. } => OptionCode::GO,
            ClientOption::StructuredReply => OptionCode::STRUCTURED_REPLY,
            ClientOption::ListMetaContext { .. } => OptionCode::LIST_META_CONTEXT,
            ClientOption::SetMetaContext { .. } => OptionCode::SET_META_CONTEXT,
            ClientOption::Unknown(code) => *code,
        }
    }

    /// The whole option, head and all.
    pub fn encode(&self) -> Vec<u8> {
        let mut data = Vec::new();
        match self {
            ClientOption::ExportName(name) => data.extend(name.as_bytes()),
            ClientOption::Info { export, wanted } | ClientOption::Go { export, wanted } => {
                put_text(&mut data, export);
                data.extend((wanted.len() as u16).to_be_bytes());
                data.extend(wanted.iter().flat_map(|info| info.to_be_bytes()));
            }
            ClientOption::ListMetaContext { export, queries }
            | ClientOption::SetMetaContext { export, queries } => {
                put_text(&mut data, export);
                data.extend((queries.len() as u32).to_be_bytes());
                for query in queries {
                    put_text(&mut data, query);
                }
            }
            ClientOption::Abort
            | ClientOption::List
            | ClientOption::StartTls
            | ClientOption::StructuredReply
            | ClientOption::Unknown(_) => {}
        }
        let mut out = OPTION_MAGIC.to_be_bytes().to_vec();
        out.extend(self.code().0.to_be_bytes());
        out.extend((data.len() as u32).to_be_bytes());
        out.extend(data);
        out
    }
}

fn info(data: &[u8]) -> Option<(String, Vec<u16>)> {
    let mut cursor = Cursor::new(data);
    let export = cursor.text()?;
    let count = cursor.u16()?;
    // Each takes two bytes of what was received, so that a lie about their number ends early.
    let mut wanted = Vec::new();
    for _ in 0..count {
        wanted.push(cursor.u16()?);
    }
    cursor.is_empty().then_some((export, wanted))
}

fn contexts(data: &[u8]) -> Option<(String, Vec<String>)> {
    let mut cursor = Cursor::new(data);
    let export = cursor.text()?;
    let count = cursor.u32()?;
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(cursor.text()?);
    }
    cursor.is_empty().then_some((export, queries))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<ClientOption> {
        let export = || "disk".to_owned();
        let queries = || vec!["base:".to_owned(), "base:allocation".to_owned()];
        vec![
            ClientOption::ExportName(String::new()),
            ClientOption::ExportName(export()),
            ClientOption::Abort,
            ClientOption::List,
            ClientOption::StartTls,
            ClientOption::Info {
                export: export(),
                wanted: vec![],
            },
            ClientOption::Go {
                export: export(),
                wanted: vec![3, 1],
            },
            ClientOption::StructuredReply,
            ClientOption::ListMetaContext {
                export: export(),
                queries: vec![],
            },
            ClientOption::SetMetaContext {
                export: export(),
                queries: queries(),
            },
            ClientOption::Unknown(OptionCode(99)),
        ]
    }

    fn split(bytes: &[u8]) -> (OptionHead, &[u8]) {
        let (head, data) = bytes.split_first_chunk().expect("a head");
        (OptionHead::parse(head).expect("an option"), data)
    }

    #[test]
    fn options_are_read_back() {
        for option in all() {
            let bytes = option.encode();
            let (head, data) = split(&bytes);
            assert_eq!(head.len as usize, data.len());
            assert_eq!(ClientOption::parse(head.code, data), Ok(option));
        }
    }

    #[test]
    fn cut_short_or_with_more_behind_they_are_refused() {
        for option in all() {
            let bytes = option.encode();
            let (head, data) = split(&bytes);
            let free = [1, 2, 99].contains(&head.code.0);
            for len in 0..data.len() {
                let parsed = ClientOption::parse(head.code, &data[..len]);
                assert!(free || parsed.is_err(), "{option:?} in {len} bytes");
            }
            let longer = [data, b"x"].concat();
            assert!(free || ClientOption::parse(head.code, &longer).is_err());
        }
    }

    #[test]
    fn names_are_texts_of_some_length() {
        let code = OptionCode::EXPORT_NAME;
        let long = vec![b'a'; 4096];
        ClientOption::parse(code, &long).expect("as long as may be");
        for wrong in [vec![b'a'; 4097], vec![0xFF], vec![b'a', 0]] {
            ClientOption::parse(code, &wrong).expect_err("no name");
        }
        let lie = [0xFF; 12];
        ClientOption::parse(OptionCode::GO, &lie).expect_err("a lie about a length");
    }
}
