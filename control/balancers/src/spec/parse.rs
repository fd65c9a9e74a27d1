//! From messages to types.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fiberlb::desired::{
    self, Algorithm, BackendState, Desired, FlowTable, Fragments, Mode, Prefix, Proto, RingSize,
    Sources, SynCookies, Vip, VipAt,
};
use fiberlb_api::v1;

use super::{Admin, Backend, Balancer, BalancerKey, Fault, Listener, Pool, WEIGHT_MAX, check};

/// Addresses of the hosts that documents name.
pub type Hosts = BTreeMap<String, IpAddr>;

const NAME_LENGTH_MAX: usize = 63;
/// Faults that are told; the rest waits until these are mended.
const FAULTS_MAX: usize = 20;

/// Collects faults under a path.
struct Faults<'a> {
    all: &'a mut Vec<Fault>,
    path: String,
    object: String,
}

impl Faults<'_> {
    fn add(&mut self, field: &str, what: impl std::fmt::Display) {
        if self.all.len() == FAULTS_MAX {
            return;
        }
        let dot = if field.is_empty() || field.starts_with('[') {
            ""
        } else {
            "."
        };
        self.all.push(Fault {
            path: format!("{}{dot}{field}", self.path),
            what: format!("{}: {what}", self.object),
        });
    }

    fn below(&mut self, field: &str, at: usize, object: &str) -> Faults<'_> {
        Faults {
            path: format!("{}.{field}[{at}]", self.path),
            object: format!("{}, {object}", self.object),
            all: self.all,
        }
    }

    /// The value, or a fault and a value to go on with.
    fn take<T>(&mut self, field: &str, value: Result<T, String>, other: T) -> T {
        value.unwrap_or_else(|what| {
            self.add(field, what);
            other
        })
    }
}

/// Hosts that are no addresses, with where they stand.
pub fn host_names(balancers: &[v1::LoadBalancer]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (b, balancer) in balancers.iter().enumerate() {
        for (p, pool) in balancer.pools.iter().enumerate() {
            for (n, backend) in pool.backends.iter().enumerate() {
                if is_host(&backend.address) {
                    let path = format!("balancers[{b}].pools[{p}].backends[{n}].address");
                    found.push((path, backend.address.clone()));
                }
            }
        }
    }
    found
}

fn is_host(text: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    text.parse::<IpAddr>().is_err()
        && (1..=253).contains(&text.len())
        && text.bytes().all(letter)
        && text.bytes().any(|b| b.is_ascii_alphabetic())
}

/// Checks the balancers of a set. Places of VIPs that others have are in `taken`, by who has them.
///
/// # Errors
/// All faults that were found; nothing of it may be used then.
pub fn parse<'a>(
    (owner, set): (&str, &str),
    written: &[v1::LoadBalancer],
    hosts: &Hosts,
    others: impl Iterator<Item = &'a Balancer>,
) -> Result<Vec<Balancer>, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut places = Places::default();
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    let mut backends = 0;
    let mut vips = 0;
    for other in others {
        for listener in &other.listeners {
            places.take(
                listener,
                &format!("listener {} of {}", listener.name, other.key),
            );
            backends += other.pools[listener.pool].backends.len();
            vips += 1;
        }
        if other.key.owner == owner {
            names.insert(&other.key.name, &other.set);
        }
    }
    let mut balancers = Vec::new();
    for (at, balancer) in written.iter().enumerate() {
        let mut faults = Faults {
            all: &mut faults,
            path: format!("balancers[{at}]"),
            object: format!("load balancer {}", balancer.name),
        };
        check_name(&mut faults, &balancer.name);
        for (field, given, whole) in [
            ("owner", &balancer.owner, owner),
            ("set", &balancer.set, set),
        ] {
            if !given.is_empty() && given != whole {
                faults.add(field, format!("is {given}, and the document's is {whole}"));
            }
        }
        if let Some(other) = names.insert(&balancer.name, set) {
            let other = if other == set { "this document" } else { other };
            faults.add("name", format!("the name is taken already, in {other}"));
        }
        let parsed = parse_balancer(&mut faults, (owner, set), balancer, hosts, &mut places);
        for listener in &parsed.listeners {
            backends += parsed
                .pools
                .get(listener.pool)
                .map_or(0, |pool| pool.backends.len());
            vips += 1;
        }
        balancers.push(parsed);
    }
    let (vips_max, reals_max) = (fiberlb_abi::VIPS_MAX, fiberlb_abi::REALS_MAX);
    if vips > vips_max as usize || backends >= reals_max as usize {
        faults.push(Fault {
            path: "balancers".to_owned(),
            what: format!(
                "{vips} listeners with {backends} backends on the node: at most {vips_max} and {}",
                reals_max - 1
            ),
        });
    }
    if faults.is_empty() {
        Ok(balancers)
    } else {
        Err(faults)
    }
}

fn check_name(faults: &mut Faults<'_>, name: &str) {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if !(1..=NAME_LENGTH_MAX).contains(&name.len()) || !name.bytes().all(plain) {
        faults.add(
            "name",
            format!("{name:?} is not 1 to {NAME_LENGTH_MAX} of a-z, 0-9 and -"),
        );
    }
}

/// Who has which VIP.
#[derive(Default)]
struct Places {
    vips: BTreeMap<(u16, fiberlb_abi::Addr, u32, u16), String>,
    fragments: BTreeMap<(u16, IpAddr), String>,
}

impl Places {
    /// Takes a place; who has it, if it is taken.
    fn take(&mut self, listener: &Listener, who: &str) -> Option<String> {
        let proto = listener.proto.number();
        let place = match listener.at {
            VipAt::Port(addr, port) => (proto, desired::mapped(addr), 128, port),
            VipAt::Prefix(prefix, _) => (proto, prefix.mapped().0, prefix.mapped().1, 0),
        };
        if let Some(other) = self.vips.get(&place) {
            return Some(format!("the VIP is that of {other}"));
        }
        self.vips.insert(place, who.to_owned());
        if let (VipAt::Port(addr, _), Fragments::Drop | Fragments::Forward) =
            (listener.at, listener.fragments)
        {
            if let Some(other) = self.fragments.get(&(proto, addr)) {
                return Some(format!("fragments of this address are taken by {other}"));
            }
            self.fragments.insert((proto, addr), who.to_owned());
        }
        None
    }
}

fn parse_balancer(
    faults: &mut Faults<'_>,
    (owner, set): (&str, &str),
    written: &v1::LoadBalancer,
    hosts: &Hosts,
    places: &mut Places,
) -> Balancer {
    let key = BalancerKey {
        owner: owner.to_owned(),
        name: written.name.clone(),
    };
    let mut pools = Vec::new();
    let mut names = BTreeSet::new();
    for (at, pool) in written.pools.iter().enumerate() {
        let mut faults = faults.below("pools", at, &format!("pool {}", pool.name));
        check_name(&mut faults, &pool.name);
        if !names.insert(&*pool.name) {
            faults.add("name", "another pool has this name");
        }
        let ports = written.listeners.iter().filter(|l| l.pool == pool.name);
        let ports: BTreeSet<u32> = ports.map(|listener| listener.port).collect();
        pools.push(parse_pool(&mut faults, pool, &ports, hosts));
    }
    let mut listeners = Vec::new();
    let mut names = BTreeSet::new();
    let place = faults.path.clone();
    for (at, listener) in written.listeners.iter().enumerate() {
        let object = format!("listener {}", listener.name);
        let mut faults = faults.below("listeners", at, &object);
        check_name(&mut faults, &listener.name);
        if !names.insert(&*listener.name) {
            faults.add("name", "another listener has this name");
        }
        let before = faults.all.len();
        let Some(parsed) = parse_listener(&mut faults, listener, written) else {
            continue;
        };
        if faults.all.len() == before {
            if let Some(taken) = places.take(&parsed, &format!("{object} of {key}")) {
                faults.add("vip", taken);
            }
            // What is wrong with its pool was said there.
            let pool = format!("{place}.pools[{}]", parsed.pool);
            if !faults.all.iter().any(|fault| fault.path.starts_with(&pool)) {
                check_vip(&mut faults, &parsed, &pools[parsed.pool]);
            }
        }
        listeners.push(parsed);
    }
    let written = v1::LoadBalancer {
        owner: owner.to_owned(),
        set: set.to_owned(),
        ..written.clone()
    };
    Balancer {
        key,
        set: set.to_owned(),
        listeners,
        pools,
        written,
    }
}

/// What the tables would refuse of a listener alone.
fn check_vip(faults: &mut Faults<'_>, listener: &Listener, pool: &Pool) {
    let vip = vip_of(listener, pool);
    let alone = Desired {
        generation: 1,
        vips: vec![vip],
    };
    if let Err(error) = alone.check() {
        faults.add("", error);
    }
}

/// A listener's VIP, with all of its backends up.
pub(crate) fn vip_of(listener: &Listener, pool: &Pool) -> Vip {
    let backends = pool.backends.iter().map(|backend| desired::Backend {
        addr: backend.addr,
        port: backend.port,
        weight: backend.weight,
        state: BackendState::Up,
        hop: None,
        mtu: None,
        quic_server: backend.quic_server,
    });
    Vip {
        at: listener.at,
        proto: listener.proto,
        algorithm: listener.algorithm,
        ring: listener.ring,
        mode: listener.mode,
        sources: listener.sources.clone(),
        flows: listener.flows,
        fragments: listener.fragments,
        quic: listener.quic,
        syn_cookies: listener.syn_cookies,
        backends: backends.collect(),
    }
}

/// One of some words; the first stands for an empty text.
fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    let found = words.iter().find(|(word, _)| *word == text);
    match found {
        Some((_, value)) => Ok(*value),
        None if text.is_empty() => Ok(words[0].1),
        None => {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            Err(format!("{text:?} is none of {}", known.join(", ")))
        }
    }
}

const ALGORITHMS: [(&str, Algorithm); 6] = [
    ("5-tuple", Algorithm::FiveTuple),
    ("3-tuple", Algorithm::ThreeTuple),
    ("source", Algorithm::Source),
    ("round-robin", Algorithm::RoundRobin),
    ("random-of-two", Algorithm::RandomOfTwo),
    ("least-flows", Algorithm::LeastFlows),
];
const MODES: [(&str, Mode); 4] = [
    ("dnat", Mode::Dnat),
    ("direct", Mode::Direct),
    ("ipip", Mode::Ipip),
    ("gue", Mode::Gue),
];
const FRAGMENTS: [(&str, Fragments); 3] = [
    ("pass", Fragments::Pass),
    ("drop", Fragments::Drop),
    ("forward", Fragments::Forward),
];
const FLOWS: [(&str, FlowTable); 2] = [("kept", FlowTable::Kept), ("none", FlowTable::None)];
const RINGS: [(&str, RingSize); 2] = [("large", RingSize::Large), ("small", RingSize::Small)];
const SYN_COOKIES: [(&str, SynCookies); 3] = [
    ("auto", SynCookies::Auto),
    ("always", SynCookies::Always),
    ("off", SynCookies::Off),
];
const ADMIN: [(&str, Admin); 3] = [
    ("up", Admin::Up),
    ("drain", Admin::Drain),
    ("down", Admin::Down),
];

fn protocol(text: &str) -> Result<Proto, String> {
    match text {
        "tcp" => Ok(Proto::Tcp),
        "udp" => Ok(Proto::Udp),
        "http" | "https" | "terminated-https" => Err(format!(
            "{text} is not served yet: take tcp, and let the backends read it"
        )),
        "" => Err("is missing: tcp or udp".to_owned()),
        other => Err(format!("{other:?} is none of tcp and udp")),
    }
}

fn parse_listener(
    faults: &mut Faults<'_>,
    written: &v1::Listener,
    balancer: &v1::LoadBalancer,
) -> Option<Listener> {
    let proto = faults.take("protocol", protocol(&written.protocol), Proto::Tcp);
    let at = match place(&written.vip, written.port) {
        Ok(at) => Some(at),
        Err((field, what)) => {
            faults.add(field, what);
            None
        }
    };
    let pool = balancer.pools.iter().position(|p| p.name == written.pool);
    if pool.is_none() {
        let what = match &*written.pool {
            "" => "is missing: the name of a pool of this load balancer".to_owned(),
            name => format!("there is no pool {name} in this load balancer"),
        };
        faults.add("pool", what);
    }
    let of_pool = pool.map_or("", |pool| &balancer.pools[pool].algorithm);
    let algorithm = match &*written.algorithm {
        // The pool has said what is wrong with it.
        "" => word(of_pool, &ALGORITHMS).unwrap_or(Algorithm::FiveTuple),
        own => faults.take("algorithm", word(own, &ALGORITHMS), Algorithm::FiveTuple),
    };
    let mode = faults.take("mode", word(&written.mode, &MODES), Mode::Dnat);
    let flows = word(&written.flow_table, &FLOWS);
    let flows = faults.take("flow_table", flows, FlowTable::Kept);
    let fragments = word(&written.fragments, &FRAGMENTS);
    let fragments = faults.take("fragments", fragments, Fragments::Pass);
    let ring = faults.take("ring", word(&written.ring, &RINGS), RingSize::Large);
    let cookies = word(&written.syn_cookies, &SYN_COOKIES);
    let syn_cookies = faults.take("syn_cookies", cookies, SynCookies::Auto);
    let sources = sources(faults, written.sources.as_ref());
    Some(Listener {
        name: written.name.clone(),
        proto,
        at: at?,
        pool: pool?,
        algorithm,
        mode,
        sources,
        flows,
        fragments,
        quic: written.quic,
        ring,
        syn_cookies,
    })
}

fn sources(faults: &mut Faults<'_>, written: Option<&v1::Sources>) -> Sources {
    let Some(written) = written else {
        return Sources::default();
    };
    let mut list = |field: &str, texts: &[String]| {
        let mut prefixes = Vec::new();
        for (at, text) in texts.iter().enumerate() {
            match prefix(text) {
                Ok(prefix) => prefixes.push(prefix),
                Err(what) => faults.add(&format!("sources.{field}[{at}]"), what),
            }
        }
        prefixes
    };
    Sources {
        allow: list("allow", &written.allow),
        deny: list("deny", &written.deny),
        deny_others: written.deny_others,
    }
}

/// A prefix; an address alone is one of its own.
fn prefix(text: &str) -> Result<Prefix, String> {
    let wrong = || format!("{text:?} is no prefix as 192.0.2.0/24");
    let (addr, len) = match text.split_once('/') {
        Some((addr, len)) => (addr, Some(len)),
        None => (text, None),
    };
    let addr: IpAddr = addr.parse().map_err(|_| wrong())?;
    let max = if addr.is_ipv4() { 32 } else { 128 };
    let len = match len {
        None => max,
        Some(len) => len.parse().map_err(|_| wrong())?,
    };
    if len > max {
        return Err(wrong());
    }
    let cut = Prefix { addr, len };
    let (whole, _) = Prefix { addr, len: max }.mapped();
    if cut.mapped().0 != whole {
        return Err(format!("{text:?} has bits behind its length"));
    }
    Ok(cut)
}

fn place(vip: &str, port: u32) -> Result<VipAt, (&'static str, String)> {
    let port = u16::try_from(port).map_err(|_| ("port", format!("{port} is above 65535")))?;
    if vip.is_empty() {
        return Err(("vip", "is missing: an address or a prefix".to_owned()));
    }
    if vip.contains('/') {
        let prefix = prefix(vip).map_err(|what| ("vip", what))?;
        return Ok(VipAt::Prefix(prefix, (port != 0).then_some(port)));
    }
    let addr: IpAddr = vip
        .parse()
        .map_err(|_| ("vip", format!("{vip:?} is no address or prefix")))?;
    if addr.is_unspecified() || addr.is_multicast() {
        return Err(("vip", format!("{vip} is no host's address")));
    }
    if port == 0 {
        return Err((
            "port",
            "is missing; only prefixes take every port".to_owned(),
        ));
    }
    Ok(VipAt::Port(addr, port))
}

fn parse_pool(
    faults: &mut Faults<'_>,
    written: &v1::Pool,
    listener_ports: &BTreeSet<u32>,
    hosts: &Hosts,
) -> Pool {
    if let Err(what) = word(&written.algorithm, &ALGORITHMS) {
        faults.add("algorithm", what);
    }
    if written.slow_start_s > 3600 {
        faults.add("slow_start_s", "is above 3600");
    }
    if written.panic_threshold_percent > 100 {
        faults.add("panic_threshold_percent", "is above 100");
    }
    let health = written.health_check.as_ref();
    let check = health.and_then(|health| {
        check::parse(health, |field, what| {
            faults.add(&format!("health_check.{field}"), what);
        })
    });
    let own_port = health.map_or(0, |health| health.port);
    if own_port > 65535 {
        faults.add("health_check.port", "is above 65535");
    }
    // Where backends have no port of their own, the only one that leads to them.
    let common = match listener_ports.iter().collect::<Vec<_>>()[..] {
        [port] => *port,
        _ => 0,
    };
    let mut backends: Vec<Backend> = Vec::new();
    let mut names = BTreeSet::new();
    for (at, backend) in written.backends.iter().enumerate() {
        let mut faults = faults.below("backends", at, &format!("backend {}", backend.name));
        check_name(&mut faults, &backend.name);
        if !names.insert(&*backend.name) {
            faults.add("name", "another backend of the pool has this name");
        }
        let parsed = parse_backend(&mut faults, backend, hosts);
        let Some(mut parsed) = parsed else { continue };
        let port = [own_port, backend.port, common]
            .into_iter()
            .find(|at| *at != 0);
        if health.is_some() && port.is_none() {
            let what = "nothing says which port to check; give one here or in health_check";
            faults.add("port", what);
        }
        parsed.check_port = port.unwrap_or(0) as u16;
        let place = (parsed.addr, parsed.port);
        if let Some(same) = backends.iter().find(|b| (b.addr, b.port) == place) {
            faults.add("address", format!("backend {} is there too", same.name));
        }
        backends.push(parsed);
    }
    Pool {
        name: written.name.clone(),
        check,
        slow_start_ms: u64::from(written.slow_start_s) * 1000,
        panic_percent: written.panic_threshold_percent.min(100) as u8,
        backends,
    }
}

fn parse_backend(faults: &mut Faults<'_>, written: &v1::Backend, hosts: &Hosts) -> Option<Backend> {
    let addr = match written.address.parse::<IpAddr>() {
        Ok(addr) if addr.is_unspecified() || addr.is_multicast() => {
            faults.add("address", format!("{addr} is no host's address"));
            None
        }
        Ok(addr) => Some(addr),
        Err(_) if is_host(&written.address) => {
            let known = hosts.get(&written.address).copied();
            if known.is_none() {
                let what = format!("{} cannot be looked up", written.address);
                faults.add("address", what);
            }
            known
        }
        Err(_) => {
            faults.add(
                "address",
                format!("{:?} is no address or host", written.address),
            );
            None
        }
    };
    if written.weight > WEIGHT_MAX {
        faults.add("weight", format!("is above {WEIGHT_MAX}"));
    }
    if written.port > 65535 {
        faults.add("port", "is above 65535");
    }
    if written.quic_server > 65536 {
        faults.add("quic_server", "is above 65536");
    }
    let admin = faults.take("admin_state", word(&written.admin_state, &ADMIN), Admin::Up);
    Some(Backend {
        name: written.name.clone(),
        addr: addr?,
        port: u16::try_from(written.port).ok().filter(|port| *port != 0),
        check_port: 0,
        weight: written.weight.max(1),
        admin,
        quic_server: written.quic_server.checked_sub(1).map(|id| id as u16),
    })
}

#[cfg(test)]
mod tests;
