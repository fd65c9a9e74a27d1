//! Load balancers as their operators wrote them, checked into types that cannot be wrong.
//!
//! Every fault is found, not only the first, and each says where in the document it stands: a path as
//! `balancers[0].listeners[1].vip`, which whoever has the text turns into a line.

mod check;
mod parse;

use std::net::IpAddr;

use fiberlb::desired::{
    Algorithm, FlowTable, Fragments, Mode, Proto, RingSize, Sources, SynCookies, VipAt,
};
use fiberlb_api::v1;

pub use check::{Check, CheckKind, Tls};
pub(crate) use parse::vip_of;
pub use parse::{Hosts, host_names, parse};

/// What is wrong, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// As `balancers[0].pools[1].backends[2].address`.
    pub path: String,
    /// What is wrong, with the object's name.
    pub what: String,
}

/// Whose balancer of which name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BalancerKey {
    /// The user's id.
    pub owner: String,
    /// The balancer's name.
    pub name: String,
}

/// One backend of a node.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BackendKey {
    /// Its balancer.
    pub balancer: BalancerKey,
    /// Its pool.
    pub pool: String,
    /// Its name.
    pub name: String,
}

/// A load balancer.
#[derive(Clone, PartialEq, Debug)]
pub struct Balancer {
    /// Whose, and its name.
    pub key: BalancerKey,
    /// The set that it is applied with.
    pub set: String,
    /// Where traffic comes in.
    pub listeners: Vec<Listener>,
    /// Where it goes.
    pub pools: Vec<Pool>,
    /// As it was written.
    pub written: v1::LoadBalancer,
}

/// One VIP.
#[derive(Clone, PartialEq, Debug)]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// TCP or UDP.
    pub proto: Proto,
    /// Where packets are sent to.
    pub at: VipAt,
    /// Its pool's place in [`Balancer::pools`].
    pub pool: usize,
    /// How a new flow gets its backend.
    pub algorithm: Algorithm,
    /// How packets reach backends.
    pub mode: Mode,
    /// Who may come.
    pub sources: Sources,
    /// Whether flows are remembered.
    pub flows: FlowTable,
    /// What happens to fragments.
    pub fragments: Fragments,
    /// Whether it is QUIC.
    pub quic: bool,
    /// Slots of the ring.
    pub ring: RingSize,
    /// When sources have to prove themselves.
    pub syn_cookies: SynCookies,
}

/// Backends that are alike.
#[derive(Clone, PartialEq, Debug)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// How it is known who is alive.
    pub check: Option<Check>,
    /// How long a backend that comes back takes to get its whole share.
    pub slow_start_ms: u64,
    /// When fewer are healthy than this, in percent, all get traffic.
    pub panic_percent: u8,
    /// Its backends.
    pub backends: Vec<Backend>,
}

/// One backend.
#[derive(Clone, PartialEq, Debug)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Its address.
    pub addr: IpAddr,
    /// Its port, where it is not the VIP's.
    pub port: Option<u16>,
    /// The port that checks ask.
    pub check_port: u16,
    /// Its share.
    pub weight: u32,
    /// What its operator wants of it.
    pub admin: Admin,
    /// Its identifier within QUIC's connection identifiers.
    pub quic_server: Option<u16>,
}

/// What an operator wants of a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admin {
    /// All that it can take.
    Up,
    /// What it has.
    Drain,
    /// Nothing.
    Down,
}

/// Largest weight that is taken: slow starts multiply it by ten.
pub const WEIGHT_MAX: u32 = 1000;

impl Balancer {
    /// The key of one of its backends.
    pub fn backend_key(&self, pool: &Pool, backend: &Backend) -> BackendKey {
        BackendKey {
            balancer: self.key.clone(),
            pool: pool.name.clone(),
            name: backend.name.clone(),
        }
    }
}

impl std::fmt::Display for BalancerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "load balancer {} of {}", self.name, self.owner)
    }
}

impl std::fmt::Display for BackendKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (pool, name, balancer) = (&self.pool, &self.name, &self.balancer);
        write!(f, "backend {name} of pool {pool} of {balancer}")
    }
}

/// A VIP as people write it.
pub fn shown_vip(at: VipAt) -> (String, u16) {
    match at {
        VipAt::Port(addr, port) => (addr.to_string(), port),
        VipAt::Prefix(prefix, port) => {
            (format!("{}/{}", prefix.addr, prefix.len), port.unwrap_or(0))
        }
    }
}

/// The word of documents for SYN cookies; none for UDP.
pub fn shown_cookies(proto: Proto, cookies: SynCookies) -> &'static str {
    match (proto, cookies) {
        (Proto::Udp, _) => "",
        (Proto::Tcp, SynCookies::Auto) => "auto",
        (Proto::Tcp, SynCookies::Always) => "always",
        (Proto::Tcp, SynCookies::Off) => "off",
    }
}

/// A protocol's name.
pub fn shown_proto(proto: Proto) -> &'static str {
    match proto {
        Proto::Tcp => "tcp",
        Proto::Udp => "udp",
    }
}
