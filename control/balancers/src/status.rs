//! What runs, joined from the model and the tables.

use control_kit::api_error::ApiError;
use engine::CallError;
use fiberlb::attach::Attached;
use fiberlb::desired::{BackendState, Mode, Proto, VipAt, mapped};
use fiberlb_api::v1;

use crate::attach::Purpose;
use crate::driver::Shared;
use crate::error::unreachable;
use crate::health::Verdict;
use crate::model::Model;
use crate::spec::{BackendKey, Balancer, Listener, Pool, shown_cookies, shown_proto, shown_vip};
use crate::tables::VipCounters;

/// The status of the balancers that fit.
pub async fn of(
    shared: &Shared,
    fits: impl Fn(&Balancer) -> bool,
) -> Result<v1::Status, CallError> {
    let now = shared.now_ms();
    let (mut balancers, vips, generation) = {
        let model = shared.model();
        let mut vips = Vec::new();
        let mut balancers = Vec::new();
        for balancer in model.balancers().filter(|balancer| fits(balancer)) {
            let of_it = |listener: &Listener| {
                vips.push((listener.at, listener.proto, listener.mode));
                listener_status(&model, balancer, listener, now)
            };
            balancers.push(v1::BalancerStatus {
                name: balancer.key.name.clone(),
                owner: balancer.key.owner.clone(),
                listeners: balancer.listeners.iter().map(of_it).collect(),
            });
        }
        (balancers, vips, model.desired().generation)
    };
    let asked: Vec<(VipAt, Proto)> = vips.iter().map(|(at, proto, _)| (*at, *proto)).collect();
    let counters = shared.tables.counters(asked).await?;
    let listeners = balancers.iter_mut().flat_map(|b| &mut b.listeners);
    for ((listener, counters), (_, _, mode)) in listeners.zip(counters).zip(&vips) {
        if let Some(counters) = counters {
            add(listener, &counters, *mode);
        }
    }
    let applied = shared.tables.applied().borrow().clone();
    Ok(v1::Status {
        generation,
        applied_generation: applied.generation,
        error: applied.error.unwrap_or_default(),
        interfaces: interfaces(shared),
        balancers,
    })
}

/// One backend, with the counters of all listeners that use it.
pub async fn of_backend(shared: &Shared, key: &BackendKey) -> Result<v1::BackendStatus, ApiError> {
    let status = of(shared, |balancer| balancer.key == key.balancer).await;
    let status = status.map_err(unreachable)?;
    let listeners = status.balancers.into_iter().flat_map(|b| b.listeners);
    let same = listeners
        .flat_map(|listener| listener.backends)
        .filter(|backend| backend.pool == key.pool && backend.name == key.name);
    let sum = same.reduce(|sum, one| v1::BackendStatus {
        open_flows: sum.open_flows + one.open_flows,
        packets: sum.packets + one.packets,
        bytes: sum.bytes + one.bytes,
        flows: sum.flows + one.flows,
        ..sum
    });
    if let Some(sum) = sum {
        return Ok(sum);
    }
    // No listener uses the pool.
    let now = shared.now_ms();
    let model = shared.model();
    let found = model.balancer(&key.balancer).and_then(|balancer| {
        let pool = balancer.pools.iter().find(|pool| pool.name == key.pool)?;
        let all = backends(&model, balancer, pool, now);
        all.into_iter().find(|backend| backend.name == key.name)
    });
    Ok(found.unwrap_or_default())
}

fn interfaces(shared: &Shared) -> Vec<v1::Interface> {
    let all = shared.attachments.interfaces().into_iter();
    all.map(|interface| v1::Interface {
        name: interface.name,
        purpose: match interface.purpose {
            Purpose::Balance => "balance",
            Purpose::EndTunnels => "end-tunnels",
        }
        .to_owned(),
        index: interface.index.unwrap_or(0),
        attached: match interface.attached {
            Some(Attached::Native) => "native",
            Some(Attached::Generic) => "generic",
            Some(Attached::Tc) => "tc",
            Some(Attached::TakenOver) => "taken-over",
            None => "none",
        }
        .to_owned(),
        error: interface.error.unwrap_or_default(),
    })
    .collect()
}

fn listener_status(
    model: &Model,
    balancer: &Balancer,
    listener: &Listener,
    now_ms: u64,
) -> v1::ListenerStatus {
    let pool = &balancer.pools[listener.pool];
    let (vip, port) = shown_vip(listener.at);
    v1::ListenerStatus {
        name: listener.name.clone(),
        protocol: shown_proto(listener.proto).to_owned(),
        vip,
        port: u32::from(port),
        pool: pool.name.clone(),
        panic: model.is_in_panic(balancer, pool),
        syn_cookies: shown_cookies(listener.proto, listener.syn_cookies).to_owned(),
        backends: backends(model, balancer, pool, now_ms),
        ..v1::ListenerStatus::default()
    }
}

fn backends(
    model: &Model,
    balancer: &Balancer,
    pool: &Pool,
    now_ms: u64,
) -> Vec<v1::BackendStatus> {
    let shares = model.shares(balancer, pool, now_ms);
    let backends = pool.backends.iter().zip(shares);
    let status = backends.map(|(backend, share)| {
        let key = balancer.backend_key(pool, backend);
        let health = model.health(&key);
        let deadline = model.drain(&key).and_then(|drain| drain.deadline_ms);
        v1::BackendStatus {
            name: backend.name.clone(),
            pool: pool.name.clone(),
            address: backend.addr.to_string(),
            port: u32::from(backend.port.unwrap_or(0)),
            state: match share.state {
                BackendState::Up => "up",
                BackendState::Draining => "draining",
                BackendState::Down => "down",
            }
            .to_owned(),
            health: match health.map(crate::health::Health::verdict) {
                None => "unchecked",
                Some(Verdict::Unknown) => "unknown",
                Some(Verdict::Healthy) => "healthy",
                Some(Verdict::Unhealthy) => "unhealthy",
            }
            .to_owned(),
            why: health.map(crate::health::Health::why).unwrap_or_default(),
            weight: share.weight,
            next_hop_known: model.way(backend.addr).is_some(),
            drain_left_s: deadline.map_or(0, |at| at.saturating_sub(now_ms).div_ceil(1000) as u32),
            ..v1::BackendStatus::default()
        }
    });
    status.collect()
}

/// Adds what the tables have counted.
fn add(listener: &mut v1::ListenerStatus, counters: &VipCounters, mode: Mode) {
    let stats = &counters.stats;
    listener.packets = stats.packets;
    listener.bytes = stats.bytes;
    listener.flows = stats.flows;
    listener.refused = stats.refused;
    listener.uncached = stats.uncached;
    listener.no_backend = stats.no_backend;
    listener.dropped = stats.dropped;
    listener.replies = stats.replies;
    let answers = &counters.answers;
    listener.cookies_sent = answers.cookies_sent;
    listener.cookies_proved = answers.cookies_proved;
    listener.cookies_wrong = answers.cookies_wrong;
    listener.too_big_told = answers.too_big_told;
    listener.too_big_dropped = answers.too_big_dropped;
    for backend in &mut listener.backends {
        let Ok(addr) = backend.address.parse() else {
            continue;
        };
        let port = match mode {
            Mode::Dnat => (backend.port as u16).to_be(),
            _ => 0,
        };
        let place = (mapped(addr), port);
        let mut found = counters.reals.iter();
        if let Some(found) = found.find(|one| (one.real.addr, one.real.port) == place) {
            backend.open_flows = found.open;
            backend.packets = found.stats.packets;
            backend.bytes = found.stats.bytes;
            backend.flows = found.stats.flows;
        }
    }
}
