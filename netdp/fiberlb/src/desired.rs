//! What FiberLB's tables should say: VIPs with their backends, whole, and checked as a whole.

use std::collections::HashSet;
use std::net::IpAddr;

use fiberlb_abi::{Addr, Hop, REALS_MAX, SCAN_MAX, VIPS_MAX};

use crate::error::{Error, ErrorKind, Result};

/// Largest weight of a backend.
pub const WEIGHT_MAX: u32 = 65_535;

/// Everything that is wanted.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Desired {
    /// Grows with each state; written beside every VIP.
    pub generation: u32,
    /// In any order.
    pub vips: Vec<Vip>,
}

/// One VIP of one protocol.
#[derive(Clone, PartialEq, Debug)]
pub struct Vip {
    /// Where packets are sent to.
    pub at: VipAt,
    /// TCP or UDP.
    pub proto: Proto,
    /// How a backend is chosen.
    pub algorithm: Algorithm,
    /// Slots of the ring, for algorithms that hash.
    pub ring: RingSize,
    /// How packets reach backends.
    pub mode: Mode,
    /// Who may come.
    pub sources: Sources,
    /// Whether the table of flows is used. DNAT uses it whatever this says.
    pub flows: FlowTable,
    /// What happens to fragments.
    pub fragments: Fragments,
    /// Whether connection identifiers of QUIC lead to backends.
    pub quic: bool,
    /// Whether sources of new flows have to prove themselves; of TCP alone.
    pub syn_cookies: SynCookies,
    /// Its backends, each address and port once.
    pub backends: Vec<Backend>,
}

/// A VIP's place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum VipAt {
    /// One address and one port.
    Port(IpAddr, u16),
    /// Every address of a prefix, on one port or on all.
    Prefix(Prefix, Option<u16>),
}

/// A prefix of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Prefix {
    /// An address of it.
    pub addr: IpAddr,
    /// Bits that count.
    pub len: u8,
}

/// Protocols that are balanced.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// See `fiberlb_abi::algorithm`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Algorithm {
    /// By addresses, ports and protocol.
    FiveTuple,
    /// By addresses and protocol.
    ThreeTuple,
    /// By source address.
    Source,
    /// In turn.
    RoundRobin,
    /// The less loaded of two.
    RandomOfTwo,
    /// The least loaded.
    LeastFlows,
}

/// Slots of a ring that is hashed into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RingSize {
    /// 65,537: for up to hundreds of backends.
    Large,
    /// 4,093: for few.
    Small,
}

/// See `fiberlb_abi::mode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Addresses and ports are translated both ways.
    Dnat,
    /// Only MAC addresses change.
    Direct,
    /// IP in IP.
    Ipip,
    /// IP in UDP.
    Gue,
}

/// Who may reach a VIP: the longest prefix decides.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sources {
    /// Let in.
    pub allow: Vec<Prefix>,
    /// Dropped.
    pub deny: Vec<Prefix>,
    /// Whether a source that no prefix holds is dropped.
    pub deny_others: bool,
}

/// Whether flows are remembered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlowTable {
    /// They stay where they are when the ring changes.
    Kept,
    /// The ring decides for each packet.
    None,
}

/// What happens to fragments, which have no ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragments {
    /// They are the stack's.
    Pass,
    /// They are dropped.
    Drop,
    /// All pieces go where the hash of their addresses and protocol leads. One VIP of an address and a
    /// protocol may have them.
    Forward,
}

/// When a source has to prove that it is there before it may begin a flow of TCP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SynCookies {
    /// While there are too many SYNs (see `KernelTables::set_gate_rate`), or no room for flows.
    Auto,
    /// Always.
    Always,
    /// Never.
    Off,
}

/// One backend.
#[derive(Clone, PartialEq, Debug)]
pub struct Backend {
    /// Its address.
    pub addr: IpAddr,
    /// Its port; with modes other than DNAT it is the VIP's and this is `None`.
    pub port: Option<u16>,
    /// Its share beside the others', 1 to [`WEIGHT_MAX`].
    pub weight: u32,
    /// What it may get.
    pub state: BackendState,
    /// The way to it, when it is known.
    pub hop: Option<Hop>,
    /// Largest packet that the way takes.
    pub mtu: Option<u32>,
    /// Its identifier within QUIC-LB connection identifiers.
    pub quic_server: Option<u16>,
}

/// What a backend gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackendState {
    /// Flows, old and new.
    Up,
    /// The flows that it has.
    Draining,
    /// Nothing: its flows go elsewhere.
    Down,
}

impl Proto {
    /// Its IP protocol number.
    pub const fn number(self) -> u16 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl Prefix {
    /// Its address as the tables have it, with the bits that do not count cleared, and how many count.
    pub fn mapped(self) -> (Addr, u32) {
        let (bits, len) = match self.addr {
            IpAddr::V4(addr) => (addr.to_ipv6_mapped().to_bits(), u32::from(self.len) + 96),
            IpAddr::V6(addr) => (addr.to_bits(), u32::from(self.len)),
        };
        let mask = u128::MAX.checked_shl(128 - len).unwrap_or(0);
        (Addr::from_octets((bits & mask).to_be_bytes()), len)
    }

    fn is_valid(self) -> bool {
        self.len <= if self.addr.is_ipv4() { 32 } else { 128 }
    }
}

/// An address as the tables have it.
pub fn mapped(addr: IpAddr) -> Addr {
    let addr = match addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped(),
        IpAddr::V6(addr) => addr,
    };
    Addr::from_octets(addr.octets())
}

impl Desired {
    /// Refuses what contradicts itself or is past a limit.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Desired`], naming the VIP and what is wrong.
    pub fn check(&self) -> Result<()> {
        let mut places = HashSet::new();
        let mut fragments = HashSet::new();
        let backends: usize = self.vips.iter().map(|vip| vip.backends.len()).sum();
        if self.vips.len() > VIPS_MAX as usize || backends >= REALS_MAX as usize {
            return Err(refused(format!(
                "{} VIPs with {backends} backends: at most {VIPS_MAX} and {}",
                self.vips.len(),
                REALS_MAX - 1
            )));
        }
        for vip in &self.vips {
            vip.check()
                .map_err(|what| refused(format!("VIP {}: {what}", vip.shown())))?;
            let place = match vip.at {
                VipAt::Port(addr, port) => (mapped(addr), 128, port),
                // Two prefixes of one length would be one entry, whatever their ports.
                VipAt::Prefix(prefix, _) => (prefix.mapped().0, prefix.mapped().1, 0),
            };
            if !places.insert((place, vip.proto)) {
                return Err(refused(format!("VIP {} is there twice", vip.shown())));
            }
            if let (VipAt::Port(addr, _), Fragments::Drop | Fragments::Forward) =
                (vip.at, vip.fragments)
                && !fragments.insert((addr, vip.proto))
            {
                return Err(refused(format!(
                    "VIP {}: another VIP of this address takes its fragments",
                    vip.shown()
                )));
            }
        }
        Ok(())
    }
}

impl Vip {
    fn shown(&self) -> String {
        let proto = match self.proto {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
        };
        match self.at {
            VipAt::Port(addr, port) => format!("{proto} {addr} port {port}"),
            VipAt::Prefix(prefix, None) => format!("{proto} {}/{}", prefix.addr, prefix.len),
            VipAt::Prefix(prefix, Some(port)) => {
                format!("{proto} {}/{} port {port}", prefix.addr, prefix.len)
            }
        }
    }

    /// Whether it is IPv4's.
    pub(crate) fn is_v4(&self) -> bool {
        match self.at {
            VipAt::Port(addr, _) => addr.is_ipv4(),
            VipAt::Prefix(prefix, _) => prefix.addr.is_ipv4(),
        }
    }

    fn check(&self) -> std::result::Result<(), String> {
        match self.at {
            VipAt::Port(_, 0) | VipAt::Prefix(_, Some(0)) => return Err("port 0".into()),
            VipAt::Prefix(prefix, _) if !prefix.is_valid() => {
                return Err(format!("a prefix of {} bits", prefix.len));
            }
            VipAt::Prefix(..) if self.fragments == Fragments::Forward => {
                return Err("fragments are forwarded for single addresses only".into());
            }
            _ => {}
        }
        let rules = self.sources.allow.iter().chain(&self.sources.deny);
        let mut seen = HashSet::new();
        for rule in rules {
            if !rule.is_valid() || !seen.insert(rule.mapped()) {
                return Err(format!(
                    "source {}/{} is invalid or there twice",
                    rule.addr, rule.len
                ));
            }
        }
        if self.algorithm == Algorithm::LeastFlows && self.backends.len() > SCAN_MAX as usize {
            return Err(format!("least flows takes at most {SCAN_MAX} backends"));
        }
        if self.quic && self.proto != Proto::Udp {
            return Err("QUIC is UDP's".into());
        }
        if self.syn_cookies == SynCookies::Always && self.proto != Proto::Tcp {
            return Err("SYN cookies are TCP's".into());
        }
        let mut seen = HashSet::new();
        let mut servers = HashSet::new();
        for backend in &self.backends {
            self.check_backend(backend)
                .map_err(|what| format!("backend {}: {what}", backend.addr))?;
            if !seen.insert((backend.addr, backend.port)) {
                return Err(format!("backend {} is there twice", backend.addr));
            }
            if backend
                .quic_server
                .is_some_and(|server| !servers.insert(server))
            {
                return Err(format!(
                    "backend {}: its QUIC server is taken",
                    backend.addr
                ));
            }
        }
        Ok(())
    }

    fn check_backend(&self, backend: &Backend) -> std::result::Result<(), String> {
        let dnat = self.mode == Mode::Dnat;
        if backend.weight == 0 || backend.weight > WEIGHT_MAX {
            return Err(format!("weight {}: 1 to {WEIGHT_MAX}", backend.weight));
        }
        if backend.port == Some(0) || (!dnat && backend.port.is_some()) {
            return Err("a port of its own needs DNAT, and is not 0".into());
        }
        let tunnel = matches!(self.mode, Mode::Ipip | Mode::Gue);
        if !tunnel && backend.addr.is_ipv4() != self.is_v4() {
            return Err("another IP version than the VIP needs a tunnel".into());
        }
        Ok(())
    }
}

fn refused(what: String) -> Error {
    Error::new(ErrorKind::Desired, what)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn backend(addr: &str) -> Backend {
        Backend {
            addr: addr.parse().unwrap(),
            port: None,
            weight: 1,
            state: BackendState::Up,
            hop: None,
            mtu: None,
            quic_server: None,
        }
    }

    pub(crate) fn vip(addr: &str, port: u16, backends: &[&str]) -> Vip {
        Vip {
            at: VipAt::Port(addr.parse().unwrap(), port),
            proto: Proto::Tcp,
            algorithm: Algorithm::FiveTuple,
            ring: RingSize::Small,
            mode: Mode::Dnat,
            sources: Sources::default(),
            flows: FlowTable::Kept,
            fragments: Fragments::Pass,
            quic: false,
            syn_cookies: SynCookies::Auto,
            backends: backends.iter().map(|addr| backend(addr)).collect(),
        }
    }

    fn said(vips: Vec<Vip>) -> String {
        let desired = Desired {
            generation: 1,
            vips,
        };
        match desired.check() {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_prefix_is_cut_to_its_length() {
        let prefix = |addr: &str, len| Prefix {
            addr: addr.parse().unwrap(),
            len,
        };
        assert_eq!(
            prefix("10.1.2.3", 8).mapped(),
            prefix("10.9.9.9", 8).mapped()
        );
        assert_eq!(prefix("10.1.2.3", 32).mapped().1, 128);
        assert_eq!(prefix("2001:db8::1", 0).mapped(), (Addr::default(), 0));
        assert_eq!(
            prefix("2001:db8::1", 32).mapped(),
            prefix("2001:db8:ffff::", 32).mapped()
        );
    }

    #[test]
    fn contradictions_are_refused_by_name() {
        let good = vip("192.0.2.1", 80, &["10.0.0.1", "10.0.0.2"]);
        assert_eq!(said(vec![good.clone(), vip("192.0.2.1", 443, &[])]), "");
        let twice = said(vec![good.clone(), good.clone()]);
        assert!(
            twice.contains("192.0.2.1 port 80 is there twice"),
            "{twice}"
        );
        for (change, wanted) in [
            (
                Box::new(|vip: &mut Vip| vip.backends[0].weight = 0) as Box<dyn Fn(&mut Vip)>,
                "weight 0",
            ),
            (
                Box::new(|vip| vip.backends[1] = vip.backends[0].clone()),
                "10.0.0.1 is there twice",
            ),
            (
                Box::new(|vip| vip.backends[0].addr = "2001:db8::1".parse().unwrap()),
                "needs a tunnel",
            ),
            (
                Box::new(|vip| {
                    vip.mode = Mode::Direct;
                    vip.backends[0].port = Some(8080);
                }),
                "needs DNAT",
            ),
            (Box::new(|vip| vip.quic = true), "QUIC"),
            (
                Box::new(|vip| {
                    vip.proto = Proto::Udp;
                    vip.syn_cookies = SynCookies::Always;
                }),
                "SYN cookies",
            ),
            (
                Box::new(|vip| {
                    vip.algorithm = Algorithm::LeastFlows;
                    let all = (0..65).map(|at| backend(&format!("10.0.1.{at}")));
                    vip.backends = all.collect();
                }),
                "at most 64",
            ),
        ] {
            let mut bad = good.clone();
            change(&mut bad);
            let said = said(vec![bad]);
            assert!(said.contains(wanted), "{said}");
        }
    }
}
