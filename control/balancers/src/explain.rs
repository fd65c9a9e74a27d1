//! Where a packet goes, and why: the program's own steps, on the tables as they are.

use std::net::{IpAddr, SocketAddr};

use control_kit::api_error::ApiError;
use fiberlb::desired::{Mode, VipAt, mapped};
use fiberlb::ring::Ring;
use fiberlb_abi::{
    Addr, FlowKey, Real, algorithm, hash_flow, hash_source, hash_three, real_flags, slot_of,
    source_action, vip_flags,
};
use fiberlb_api::v1;

use crate::driver::Shared;
use crate::error::{invalid, unreachable};
use crate::model::Model;
use crate::spec::{Balancer, Listener};
use crate::tables::Looked;

/// Explains a packet.
pub async fn explain(
    shared: &Shared,
    request: &v1::ExplainRequest,
) -> Result<v1::Explanation, ApiError> {
    let key = key_of(request)?;
    let looked = shared.tables.look(key).await.map_err(unreachable)?;
    let looked = looked.map_err(|error| {
        let what = format!("the tables cannot be read: {error}");
        ApiError::new(tonic::Code::Internal, "tables-unreadable", what)
            .next("look for the cause in the node's log")
    })?;
    let mut answer = v1::Explanation {
        slot: -1,
        ..v1::Explanation::default()
    };
    let Some(looked) = looked else {
        answer.verdict = String::from("no-vip");
        let (proto, dst) = (&request.protocol, &request.dst);
        let step = format!("no VIP takes {proto} to {dst}: the packet is the stack's");
        answer.steps.push(step);
        return Ok(answer);
    };
    let listener = {
        let model = shared.model();
        find(&model, &looked, key.proto).map(|(b, l)| (b.clone(), l.clone()))
    };
    if let Some((balancer, listener)) = &listener {
        answer.owner.clone_from(&balancer.key.owner);
        answer.balancer.clone_from(&balancer.key.name);
        answer.listener.clone_from(&listener.name);
    }
    let at = looked.at;
    let (addr, port) = (shown(at.addr), u16::from_be(at.port));
    let place = match (at.exact, port) {
        (true, port) => format!("address {addr} and port {port}"),
        (false, 0) => format!("prefix {addr}/{}", length(at.addr, at.len)),
        (false, port) => format!("prefix {addr}/{} and port {port}", length(at.addr, at.len)),
    };
    answer.steps.push(format!("VIP by {place}"));
    if !source(&looked, &mut answer) {
        answer.verdict = String::from("refused");
        return Ok(answer);
    }
    let known = flow(&looked, &mut answer);
    let real = known.or_else(|| ring(&looked, &key, &mut answer));
    name(listener.as_ref(), real, &mut answer);
    Ok(answer)
}

fn key_of(request: &v1::ExplainRequest) -> Result<FlowKey, ApiError> {
    let addr = |field: &str, text: &str| {
        text.parse::<SocketAddr>().map_err(|_| {
            let what = format!("{text:?} is no address and port");
            invalid(field, what, "as 198.51.100.7:40000 or [2001:db8::7]:40000")
        })
    };
    let src = addr("src", &request.src)?;
    let dst = addr("dst", &request.dst)?;
    let proto = match &*request.protocol {
        "" | "tcp" => 6,
        "udp" => 17,
        other => {
            let what = format!("{other:?} is not balanced");
            return Err(invalid("protocol", what, "give tcp or udp"));
        }
    };
    if src.is_ipv4() != dst.is_ipv4() {
        let what = "source and destination are of two IP versions";
        return Err(invalid("dst", what, "give two of one"));
    }
    Ok(FlowKey {
        src: mapped(src.ip()),
        dst: mapped(dst.ip()),
        sport: src.port().to_be(),
        dport: dst.port().to_be(),
        proto,
    })
}

/// The listener whose VIP was found.
fn find<'a>(model: &'a Model, looked: &Looked, proto: u32) -> Option<(&'a Balancer, &'a Listener)> {
    let at = looked.at;
    let is_it = |listener: &&Listener| {
        let place = match listener.at {
            VipAt::Port(addr, port) => {
                at.exact && (mapped(addr), port.to_be()) == (at.addr, at.port)
            }
            VipAt::Prefix(prefix, _) => !at.exact && prefix.mapped() == (at.addr, at.len),
        };
        place && u32::from(listener.proto.number()) == proto
    };
    model
        .balancers()
        .find_map(|balancer| Some((balancer, balancer.listeners.iter().find(is_it)?)))
}

/// Whether the source may come.
fn source(looked: &Looked, answer: &mut v1::Explanation) -> bool {
    let step = if let Some((rule, len, action)) = &looked.rule {
        let word = match *action {
            source_action::ALLOW => "allow",
            _ => "deny",
        };
        answer.rule = format!("{word} {}/{}", shown(rule.addr), length(rule.addr, *len));
        format!("the source's rule is {}", answer.rule)
    } else if looked.vip.flags & vip_flags::DENY_OTHERS != 0 {
        "no rule holds the source, and others are denied".to_owned()
    } else if looked.vip.flags & vip_flags::SOURCES != 0 {
        "no rule holds the source".to_owned()
    } else {
        "every source may come".to_owned()
    };
    answer.steps.push(step);
    looked.allowed
}

/// The backend of a flow that is known.
fn flow(looked: &Looked, answer: &mut v1::Explanation) -> Option<Real> {
    let (Some(flow), Some(real)) = (looked.flow, looked.flow_real) else {
        answer.steps.push("the flow is not in the table".to_owned());
        return None;
    };
    let backend = shown(real.addr);
    if real.flags & real_flags::ALIVE == 0 || real.generation != flow.generation {
        let step = format!("the flow's backend {backend} is down or gone: it is chosen anew");
        answer.steps.push(step);
        return None;
    }
    answer.known_flow = true;
    let drains = if real.flags & real_flags::DRAINING != 0 {
        ", which drains and keeps it"
    } else {
        ""
    };
    let step = format!("the flow is in the table, with backend {backend}{drains}");
    answer.steps.push(step);
    Some(real)
}

/// The backend in the ring's slot; none where each flow is a new choice.
fn ring(looked: &Looked, key: &FlowKey, answer: &mut v1::Explanation) -> Option<Real> {
    let hash = match looked.vip.algorithm {
        algorithm::FIVE_TUPLE => hash_flow(key),
        algorithm::THREE_TUPLE => hash_three(key),
        algorithm::SOURCE => hash_source(key),
        other => {
            let (name, count) = match other {
                algorithm::ROUND_ROBIN => ("round robin", "next in turn"),
                algorithm::RANDOM_OF_TWO => ("random of two", "less loaded of two"),
                _ => ("least flows", "least loaded"),
            };
            let up = looked.reals.iter().filter(|(_, real)| is_up(real)).count();
            let step = format!("{name}: the {count} of {up} backends");
            answer.steps.push(step);
            answer.verdict = String::from(if up == 0 { "no-backend" } else { "balanced" });
            return None;
        }
    };
    if looked.vip.flags & vip_flags::COOKIES_ALWAYS != 0 {
        let step = "a SYN is let in when its source has proved itself by a SYN cookie";
        answer.steps.push(step.to_owned());
    }
    let Some(spec) = looked.ring.clone() else {
        answer.steps.push("the ring is being made".to_owned());
        return None;
    };
    let mut ring = Ring::new(spec.algorithm, spec.size, spec.entries);
    while !ring.advance(u32::MAX) {}
    let len = ring.len();
    let slot = slot_of(hash, len);
    let id = ring.into_slots()[slot as usize];
    answer.slot = i64::from(slot);
    let real = looked.reals.iter().find(|(at, _)| *at == id);
    let real = real.map(|(_, real)| *real);
    let whose = real.map_or("nobody's".to_owned(), |real| {
        format!("{}'s", shown(real.addr))
    });
    let step = format!("slot {slot} of {len} of the ring is {whose}");
    answer.steps.push(step);
    real
}

fn is_up(real: &Real) -> bool {
    real.flags & (real_flags::ALIVE | real_flags::DRAINING) == real_flags::ALIVE
}

/// Says which backend it is.
fn name(listener: Option<&(Balancer, Listener)>, real: Option<Real>, answer: &mut v1::Explanation) {
    let Some(real) = real else {
        if answer.verdict.is_empty() {
            answer.verdict = String::from("no-backend");
        }
        return;
    };
    answer.verdict = String::from("balanced");
    answer.address = shown(real.addr).to_string();
    answer.port = u32::from(u16::from_be(real.port));
    let Some((balancer, listener)) = listener else {
        return;
    };
    let pool = &balancer.pools[listener.pool];
    let own_port = listener.mode == Mode::Dnat;
    let found = pool.backends.iter().find(|backend| {
        let port = backend.port.filter(|_| own_port).unwrap_or(0);
        (mapped(backend.addr), port.to_be()) == (real.addr, real.port)
    });
    if let Some(found) = found {
        answer.backend.clone_from(&found.name);
    }
    if answer.port == 0 {
        let (_, port) = crate::spec::shown_vip(listener.at);
        answer.port = u32::from(port);
    }
}

fn shown(addr: Addr) -> IpAddr {
    IpAddr::from(addr.octets()).to_canonical()
}

/// A prefix's length as people write it.
fn length(addr: Addr, len: u32) -> u32 {
    if addr.is_v4() {
        len.saturating_sub(96)
    } else {
        len
    }
}
