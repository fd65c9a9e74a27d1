//! One connection, from its greeting to its end.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use engine::net::TcpStream;
use engine::sync::Notify;
use futures_util::future::{Either, select};
use nbd_wire::{ClientOption, OPTION_BYTES, OptionHead, greeting, handshake};
use rustls::{ServerConfig as TlsConfig, ServerConnection};
use shards::block::BlockDevice;

use crate::export::{Entry, Exports};
use crate::memory::Memory;
use crate::negotiation::{Chosen, Negotiation, Next, Security};
use crate::server::{Limits, Tls};
use crate::stats::add;
use crate::transmission::Link;
use crate::wire::{Broken, Reader, Wire};

/// Longest data of an option.
const OPTION_BYTES_MAX: u32 = 16 << 10;
/// Most options of a connection.
const OPTIONS_MAX: usize = 64;

/// Why a connection was ended by us.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// It is broken, or TLS is.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// What came is not NBD.
    #[error("it does not speak the protocol")]
    Wire(#[from] nbd_wire::WireError),
    /// The client does not take what it is sent, or the connection failed.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// It asks for what is not given.
    #[error("it was refused: {0}")]
    Refused(&'static str),
    /// It takes too long.
    #[error("it took too long to {0}")]
    Slow(&'static str),
}

/// What a connection needs of its server.
pub(crate) struct Terms<D: BlockDevice> {
    pub(crate) exports: Rc<RefCell<Exports<D>>>,
    pub(crate) tls: Tls,
    pub(crate) limits: Limits,
    pub(crate) stopped: Cell<bool>,
    pub(crate) stop: Notify,
}

impl<D: BlockDevice> Terms<D> {
    /// Ends when the server does.
    async fn stopped(&self) {
        while !self.stopped.get() {
            self.stop.notified().await;
        }
    }
}

/// Serves a client until it goes.
///
/// # Errors
/// When it was disconnected.
pub(crate) async fn serve<D: BlockDevice>(
    terms: &Terms<D>,
    stream: TcpStream,
) -> Result<(), (Option<Rc<Entry<D>>>, Fault)> {
    let limits = terms.limits;
    // A Unix socket has no such thing.
    let _ = stream.set_nodelay();
    let senders = limits.requests_max + 4;
    let wire = Wire::new(stream, limits.stall_max, senders);
    let negotiated = engine::timeout(limits.handshake_max, negotiate(terms, &wire));
    let negotiated = match select(pin!(negotiated), pin!(terms.stopped())).await {
        Either::Left((negotiated, _)) => negotiated,
        Either::Right(_) => return Ok(()),
    };
    let (mut reader, chosen) = match negotiated {
        Some(Ok(Some(begun))) => begun,
        Some(Ok(None)) => return Ok(()),
        Some(Err(fault)) => return Err((None, fault)),
        None => return Err((None, Fault::Slow("choose an export"))),
    };
    let entry = Rc::clone(&chosen.entry);
    let Some(open) = entry.open(chosen.session) else {
        return Ok(());
    };
    add(&entry.counters.connections, 1);
    // Before the first request is looked at: what an older one does must not come behind it.
    open.alone().await;
    let memory = Memory::new(limits.memory_bytes, limits.requests_max + 1);
    let memory = memory.map_err(|error| (Some(Rc::clone(&entry)), Fault::Io(error)))?;
    let link = Rc::new(Link::new(wire, chosen, open, memory, limits.requests_max));
    let outcome = Rc::clone(&link).run(&mut reader).await;
    drop(reader);
    link.drain().await;
    outcome.map_err(|fault| (Some(entry), fault))
}

type Begun<D> = (Reader, Chosen<D>);

/// Greets, and answers options until one of them begins.
async fn negotiate<D: BlockDevice>(
    terms: &Terms<D>,
    wire: &Rc<Wire>,
) -> Result<Option<Begun<D>>, Fault> {
    let mut reader = Reader::new(Rc::clone(wire)).await?;
    let flags = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;
    wire.send(greeting(flags).to_vec()).await?;
    if !reader.wait().await? {
        return Ok(None);
    }
    let agreed = u32::from_be_bytes(reader.array().await?);
    if agreed & !u32::from(flags) != 0 {
        return Err(Fault::Refused("flags that nobody knows"));
    }
    let mut negotiation = Negotiation::new(Rc::clone(&terms.exports), terms.tls.security());
    if agreed & u32::from(handshake::NO_ZEROES) != 0 {
        negotiation.leave_out_zeroes();
    }
    for _ in 0..OPTIONS_MAX {
        if !reader.wait().await? {
            return Ok(None);
        }
        let mut out = Vec::new();
        let next = option(&mut reader, &mut negotiation, &mut out).await?;
        if !out.is_empty() {
            wire.send(out).await?;
        }
        match next {
            Next::Option => {}
            Next::StartTls => {
                let config = terms.tls.config();
                let config = config.ok_or(Fault::Refused("there is no TLS here"))?;
                let tls = ServerConnection::new(config).map_err(io::Error::other)?;
                reader.start_tls(tls.into()).await?;
                negotiation.secure();
            }
            Next::Begin(chosen) => return Ok(Some((reader, chosen))),
            Next::Abort => return Ok(None),
            Next::Refuse(why) => return Err(Fault::Refused(why)),
        }
    }
    Err(Fault::Refused("too many options"))
}

/// Reads an option and works out its answer.
async fn option<D: BlockDevice>(
    reader: &mut Reader,
    negotiation: &mut Negotiation<D>,
    out: &mut Vec<u8>,
) -> Result<Next<D>, Fault> {
    let head = OptionHead::parse(&reader.array::<OPTION_BYTES>().await?)?;
    if head.len > nbd_wire::PAYLOAD_BYTES_MAX {
        return Err(Fault::Refused("an option that is much too long"));
    }
    if head.len > OPTION_BYTES_MAX {
        reader.skip(head.len).await?;
        return Ok(Negotiation::too_big(head.code, out));
    }
    let mut data = vec![0; head.len as usize];
    reader.fill(&mut data).await?;
    Ok(match ClientOption::parse(head.code, &data) {
        Ok(option) => negotiation.answer(option, out),
        Err(_) => Negotiation::malformed(head.code, out),
    })
}

impl Tls {
    fn security(&self) -> Security {
        match self {
            Tls::None => Security::None,
            Tls::Offered(_) => Security::Offered,
            Tls::Required(_) => Security::Required,
        }
    }

    fn config(&self) -> Option<Arc<TlsConfig>> {
        match self {
            Tls::None => None,
            Tls::Offered(config) | Tls::Required(config) => Some(Arc::clone(config)),
        }
    }
}
