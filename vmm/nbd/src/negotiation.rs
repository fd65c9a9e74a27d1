//! What options a client may use, and what it is answered. Sans-IO: an option in, bytes and what to do next
//! out.

use std::cell::RefCell;
use std::rc::Rc;

use nbd_wire::session::{DEVICE, SESSION, Token, VERIFIER};
use nbd_wire::{ClientOption, Info, OptionCode, OptionReply, ReplyType, export_name_reply};
use shards::block::BlockDevice;

use crate::export::{Context, Entry, Exports};

/// How TLS is used on this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Security {
    /// There is none.
    None,
    /// It may be begun.
    Offered,
    /// Nothing else is answered before it.
    Required,
    /// It has begun.
    Begun,
}

/// What a client chose.
pub(crate) struct Chosen<D: BlockDevice> {
    pub(crate) entry: Rc<Entry<D>>,
    pub(crate) structured: bool,
    /// With their numbers.
    pub(crate) contexts: Vec<(u32, Context)>,
    /// The session that was asked for.
    pub(crate) session: Option<Token>,
}

/// What comes after an option, once its answer is sent.
pub(crate) enum Next<D: BlockDevice> {
    /// The next option.
    Option,
    /// TLS.
    StartTls,
    /// Requests.
    Begin(Chosen<D>),
    /// The client has ended it.
    Abort,
    /// The connection ends, as nothing else can be said.
    Refuse(&'static str),
}

pub(crate) struct Negotiation<D: BlockDevice> {
    exports: Rc<RefCell<Exports<D>>>,
    security: Security,
    /// Whether the zeros behind a chosen export are sent.
    zeroes: bool,
    structured: bool,
    /// The contexts that were chosen, and of which export.
    contexts: Option<Contexts<D>>,
}

struct Contexts<D: BlockDevice> {
    of: Rc<Entry<D>>,
    chosen: Vec<(u32, Context)>,
    session: Option<Token>,
}

impl<D: BlockDevice> Negotiation<D> {
    pub(crate) fn new(exports: Rc<RefCell<Exports<D>>>, security: Security) -> Negotiation<D> {
        Negotiation {
            exports,
            security,
            zeroes: true,
            structured: false,
            contexts: None,
        }
    }

    pub(crate) fn leave_out_zeroes(&mut self) {
        self.zeroes = false;
    }

    /// TLS has begun: what was agreed in the clear is void.
    pub(crate) fn secure(&mut self) {
        self.security = Security::Begun;
        self.structured = false;
        self.contexts = None;
    }

    /// Answers an option that cannot be read.
    pub(crate) fn malformed(code: OptionCode, out: &mut Vec<u8>) -> Next<D> {
        if code == OptionCode::EXPORT_NAME {
            return Next::Refuse("the name of an export is none");
        }
        refuse(code, ReplyType::INVALID, "the option is malformed", out)
    }

    /// Answers an option that is too long.
    pub(crate) fn too_big(code: OptionCode, out: &mut Vec<u8>) -> Next<D> {
        if code == OptionCode::EXPORT_NAME {
            return Next::Refuse("the name of an export is too long");
        }
        refuse(code, ReplyType::TOO_BIG, "the option is too long", out)
    }

    /// Answers an option.
    pub(crate) fn answer(&mut self, option: ClientOption, out: &mut Vec<u8>) -> Next<D> {
        let code = option.code();
        let in_the_clear = matches!(option, ClientOption::StartTls | ClientOption::Abort);
        if self.security == Security::Required && !in_the_clear {
            if code == OptionCode::EXPORT_NAME {
                return Next::Refuse("exports are for clients with TLS");
            }
            let why = "this server wants TLS: begin it first";
            return refuse(code, ReplyType::TLS_REQUIRED, why, out);
        }
        match option {
            ClientOption::ExportName(name) => self.export_name(&name, out),
            ClientOption::Abort => {
                OptionReply::Ack.encode(code, out);
                Next::Abort
            }
            ClientOption::List => {
                for (name, entry) in &*self.exports.borrow() {
                    if !entry.is_stopped() {
                        OptionReply::Server(name.clone()).encode(code, out);
                    }
                }
                OptionReply::Ack.encode(code, out);
                Next::Option
            }
            ClientOption::StartTls => self.start_tls(out),
            ClientOption::Info { export, wanted } | ClientOption::Go { export, wanted } => {
                self.info(code, &export, &wanted, out)
            }
            ClientOption::StructuredReply => {
                self.structured = true;
                OptionReply::Ack.encode(code, out);
                Next::Option
            }
            ClientOption::ListMetaContext { export, queries }
            | ClientOption::SetMetaContext { export, queries } => {
                self.meta_context(code, &export, &queries, out)
            }
            ClientOption::Unknown(_) => {
                refuse(code, ReplyType::UNSUPPORTED, "there is no such option", out)
            }
        }
    }

    fn find(&self, name: &str) -> Option<Rc<Entry<D>>> {
        let exports = self.exports.borrow();
        let found = exports.get(name).filter(|entry| !entry.is_stopped());
        found.cloned()
    }

    fn begin(&mut self, entry: Rc<Entry<D>>) -> Next<D> {
        let of_it = |contexts: &Contexts<D>| Rc::ptr_eq(&contexts.of, &entry);
        let contexts = self.contexts.take().filter(of_it);
        let (contexts, session) = contexts.map_or_else(Default::default, |contexts| {
            (contexts.chosen, contexts.session)
        });
        Next::Begin(Chosen {
            entry,
            structured: self.structured,
            contexts,
            session,
        })
    }

    /// Whether contexts were chosen of an export of this name that was another one.
    fn was_replaced(&self, entry: &Rc<Entry<D>>) -> bool {
        self.contexts.as_ref().is_some_and(|contexts| {
            contexts.of.export.name == entry.export.name && !Rc::ptr_eq(&contexts.of, entry)
        })
    }

    fn export_name(&mut self, name: &str, out: &mut Vec<u8>) -> Next<D> {
        let entry = self.find(name).filter(|entry| !self.was_replaced(entry));
        let Some(entry) = entry else {
            return Next::Refuse("there is no such export");
        };
        let (bytes, flags) = entry.export.size_and_flags(self.structured);
        out.extend(export_name_reply(bytes, flags, self.zeroes));
        self.begin(entry)
    }

    fn start_tls(&mut self, out: &mut Vec<u8>) -> Next<D> {
        let code = OptionCode::STARTTLS;
        match self.security {
            Security::None => refuse(code, ReplyType::UNSUPPORTED, "there is no TLS here", out),
            Security::Begun => refuse(code, ReplyType::INVALID, "TLS has begun already", out),
            Security::Offered | Security::Required => {
                OptionReply::Ack.encode(code, out);
                Next::StartTls
            }
        }
    }

    fn info(&mut self, code: OptionCode, name: &str, wanted: &[u16], out: &mut Vec<u8>) -> Next<D> {
        let Some(entry) = self.find(name) else {
            return refuse(code, ReplyType::UNKNOWN, "there is no such export", out);
        };
        if self.was_replaced(&entry) {
            // What was said of its contexts is not true of this one.
            let why = "the export was replaced since its contexts were chosen";
            return refuse(code, ReplyType::UNKNOWN, why, out);
        }
        let export = &entry.export;
        let (bytes, flags) = export.size_and_flags(self.structured);
        let mut say = |info| OptionReply::Info(info).encode(code, out);
        say(Info::Export { bytes, flags });
        say(Info::BlockSize(export.block_sizes()));
        if wanted.contains(&Info::NAME) {
            say(Info::Name(export.name.clone()));
        }
        if wanted.contains(&Info::DESCRIPTION) && !export.description.is_empty() {
            say(Info::Description(export.description.clone()));
        }
        OptionReply::Ack.encode(code, out);
        if code == OptionCode::GO {
            return self.begin(entry);
        }
        Next::Option
    }

    fn meta_context(
        &mut self,
        code: OptionCode,
        name: &str,
        queries: &[String],
        out: &mut Vec<u8>,
    ) -> Next<D> {
        let setting = code == OptionCode::SET_META_CONTEXT;
        if setting {
            self.contexts = None;
        }
        if !self.structured {
            let why = "contexts need structured replies: ask for them first";
            return refuse(code, ReplyType::INVALID, why, out);
        }
        let Some(entry) = self.find(name) else {
            return refuse(code, ReplyType::UNKNOWN, "there is no such export", out);
        };
        let session = queries.iter().find_map(|query| {
            let token = query.strip_prefix(SESSION)?;
            token.parse::<Token>().ok()
        });
        let session = session.filter(|_| setting && entry.export.verifier.is_some());
        let mut chosen = Vec::new();
        for (at, (context, kind)) in entry.export.contexts().enumerate() {
            let told = [VERIFIER, DEVICE]
                .iter()
                .any(|name| context.starts_with(name));
            let asked = queries.iter().any(|query| {
                let prefix =
                    !setting && query.ends_with(':') && context.starts_with(query.as_str());
                prefix || *query == context
            });
            let asked = asked || (told && session.is_some());
            if !asked && (setting || !queries.is_empty()) {
                continue;
            }
            let id = if setting { at as u32 } else { 0 };
            let reply = OptionReply::MetaContext { id, name: context };
            reply.encode(code, out);
            chosen.push((id, kind));
        }
        OptionReply::Ack.encode(code, out);
        if setting {
            // A session's word is not asked for with each status.
            chosen.retain(|(_, kind)| session.is_none() || *kind != Context::Told);
            self.contexts = Some(Contexts {
                of: entry,
                chosen,
                session,
            });
        }
        Next::Option
    }
}

fn refuse<D: BlockDevice>(
    code: OptionCode,
    kind: ReplyType,
    message: &str,
    out: &mut Vec<u8>,
) -> Next<D> {
    let message = message.to_owned();
    OptionReply::Error { kind, message }.encode(code, out);
    Next::Option
}
