//! What is counted of load balancers, as Prometheus and people read it.

use std::fmt::Write as _;
use std::net::IpAddr;

use fiberlb_abi::{Addr, event_kind};
use fiberlb_api::v1;
use serde_json::{Value, json};

use crate::service::BalancerService;
use crate::tables::Seen;

/// A column of a listener: name, kind, what it says, its value.
type OfListener = (
    &'static str,
    &'static str,
    &'static str,
    fn(&v1::ListenerStatus) -> u64,
);
/// The same of a backend.
type OfBackend = (
    &'static str,
    &'static str,
    &'static str,
    fn(&v1::BackendStatus) -> u64,
);

const LISTENERS: [OfListener; 14] = [
    (
        "vip_packets_total",
        "counter",
        "Packets that were sent to backends.",
        |l| l.packets,
    ),
    ("vip_bytes_total", "counter", "Their bytes.", |l| l.bytes),
    (
        "vip_flows_total",
        "counter",
        "Flows that were begun.",
        |l| l.flows,
    ),
    (
        "vip_refused_packets_total",
        "counter",
        "Packets dropped for their source.",
        |l| l.refused,
    ),
    (
        "vip_uncached_flows_total",
        "counter",
        "New flows that were not remembered.",
        |l| l.uncached,
    ),
    (
        "vip_no_backend_packets_total",
        "counter",
        "Packets dropped without a backend.",
        |l| l.no_backend,
    ),
    (
        "vip_dropped_packets_total",
        "counter",
        "Packets dropped otherwise.",
        |l| l.dropped,
    ),
    (
        "vip_reply_packets_total",
        "counter",
        "Replies that were sent to clients.",
        |l| l.replies,
    ),
    (
        "vip_syn_cookies_total",
        "counter",
        "SYNs that were answered with a cookie.",
        |l| l.cookies_sent,
    ),
    (
        "vip_proved_sources_total",
        "counter",
        "Sources that proved themselves by a cookie.",
        |l| l.cookies_proved,
    ),
    (
        "vip_wrong_cookies_total",
        "counter",
        "Resets whose cookie was wrong or old, or that had none.",
        |l| l.cookies_wrong,
    ),
    (
        "vip_too_big_told_packets_total",
        "counter",
        "Packets too big for the way to the backend whose sender was told.",
        |l| l.too_big_told,
    ),
    (
        "vip_too_big_dropped_packets_total",
        "counter",
        "Packets too big whose sender was not told.",
        |l| l.too_big_dropped,
    ),
    (
        "vip_panic_state",
        "gauge",
        "1 while too few backends are healthy, and all serve.",
        |l| u64::from(l.panic),
    ),
];

const BACKENDS: [OfBackend; 7] = [
    (
        "backend_packets_total",
        "counter",
        "Packets that were sent to it.",
        |b| b.packets,
    ),
    ("backend_bytes_total", "counter", "Their bytes.", |b| {
        b.bytes
    }),
    (
        "backend_flows_total",
        "counter",
        "Flows that were begun.",
        |b| b.flows,
    ),
    ("backend_open_flows", "gauge", "Flows that are open.", |b| {
        b.open_flows
    }),
    (
        "backend_healthy_state",
        "gauge",
        "1 unless checks say that it is unhealthy.",
        |b| u64::from(b.health != "unhealthy"),
    ),
    (
        "backend_up_state",
        "gauge",
        "1 while it gets new flows.",
        |b| u64::from(b.state == "up"),
    ),
    (
        "backend_next_hop_state",
        "gauge",
        "1 while the way to it is known.",
        |b| u64::from(b.next_hop_known),
    ),
];

/// A label's value, as Prometheus' text has it.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

impl BalancerService {
    /// Prometheus text.
    pub async fn prometheus(&self) -> String {
        match self.everything().await {
            Some((status, seen)) => prometheus(&status, &seen),
            None => String::new(),
        }
    }
}

/// What a metric is, before its values. Writing to a String cannot fail, here and below.
fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(
        text,
        "# HELP uc_fiberlb_{name} {help}\n# TYPE uc_fiberlb_{name} {kind}"
    );
}

/// All listeners, with their labels.
fn listeners(status: &v1::Status) -> Vec<(String, &v1::ListenerStatus)> {
    let of_balancer = |balancer: &v1::BalancerStatus| {
        let (owner, name) = (label(&balancer.owner), &balancer.name);
        format!("owner=\"{owner}\",balancer=\"{name}\"")
    };
    let mut all = Vec::new();
    for balancer in &status.balancers {
        for listener in &balancer.listeners {
            let (labels, name) = (of_balancer(balancer), &listener.name);
            all.push((format!("{labels},listener=\"{name}\""), listener));
        }
    }
    all
}

fn prometheus(status: &v1::Status, seen: &Seen) -> String {
    let mut text = String::new();
    let listeners = listeners(status);
    for (name, kind, help, value) in LISTENERS {
        head(&mut text, name, kind, help);
        for (labels, listener) in &listeners {
            let _ = writeln!(text, "uc_fiberlb_{name}{{{labels}}} {}", value(listener));
        }
    }
    for (name, kind, help, value) in BACKENDS {
        head(&mut text, name, kind, help);
        for (labels, listener) in &listeners {
            for backend in &listener.backends {
                let (pool, of_it) = (&backend.pool, &backend.name);
                let labels = format!("{labels},pool=\"{pool}\",backend=\"{of_it}\"");
                let _ = writeln!(text, "uc_fiberlb_{name}{{{labels}}} {}", value(backend));
            }
        }
    }
    of_tables(&mut text, status, seen);
    let (name, help) = (
        "interface_attached_state",
        "1 while packets of it are balanced.",
    );
    head(&mut text, name, "gauge", help);
    for interface in &status.interfaces {
        let labels = format!("interface=\"{}\"", label(&interface.name));
        let value = u8::from(interface.error.is_empty());
        let _ = writeln!(text, "uc_fiberlb_{name}{{{labels}}} {value}");
    }
    text
}

fn of_tables(text: &mut String, status: &v1::Status, seen: &Seen) {
    let (wanted, applied) = (status.generation, status.applied_generation);
    for (name, kind, help, value) in [
        (
            "wanted_generation",
            "gauge",
            "The state that is wanted.",
            u64::from(wanted),
        ),
        (
            "applied_generation",
            "gauge",
            "The state that the tables have.",
            u64::from(applied),
        ),
        (
            "expired_flows_total",
            "counter",
            "Flows removed as nobody used them.",
            seen.expired,
        ),
        (
            "flow_events_total",
            "counter",
            "New flows that were told one by one.",
            seen.events,
        ),
        (
            "open_flows_count",
            "gauge",
            "Open flows at the last walk over the table.",
            seen.open,
        ),
    ] {
        head(text, name, kind, help);
        let _ = writeln!(text, "uc_fiberlb_{name} {value}");
    }
}

/// What the tables' owner sees, for people.
pub async fn debug(service: &BalancerService) -> Value {
    let Some((status, seen)) = service.everything().await else {
        return json!({ "status": null });
    };
    let shown = |addr: Addr| IpAddr::from(addr.octets()).to_canonical().to_string();
    let events = seen.last.iter().map(|event| {
        json!({
            "src": format!("{} port {}", shown(event.key.src), u16::from_be(event.key.sport)),
            "dst": format!("{} port {}", shown(event.key.dst), u16::from_be(event.key.dport)),
            "protocol": event.key.proto,
            "remembered": event.kind == event_kind::NEW_FLOW,
            "vip_slot": event.vip,
            "backend_id": event.real,
        })
    });
    json!({
        "status": status,
        "sweeps": seen.sweeps,
        "expired_flows": seen.expired,
        "open_flows": seen.open,
        "events": seen.events,
        "last_events": events.collect::<Vec<_>>(),
    })
}
