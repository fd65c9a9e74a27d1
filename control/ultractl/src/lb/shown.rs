//! Answers about load balancers as text.

use std::fmt::Write as _;

use fiberlb_api::v1;

use crate::output::table;

/// A load balancer in a line.
pub fn row(balancer: &v1::LoadBalancer) -> Vec<String> {
    let vips = balancer.listeners.iter().map(|listener| {
        let (proto, vip) = (&listener.protocol, &listener.vip);
        place(proto, vip, listener.port)
    });
    let backends: usize = balancer.pools.iter().map(|pool| pool.backends.len()).sum();
    vec![
        balancer.name.clone(),
        balancer.owner.clone(),
        balancer.set.clone(),
        vips.collect::<Vec<_>>().join(" "),
        backends.to_string(),
    ]
}

fn place(proto: &str, vip: &str, port: u32) -> String {
    match (vip.contains(':'), port) {
        (_, 0) => format!("{proto}://{vip}"),
        (true, port) => format!("{proto}://[{vip}]:{port}"),
        (false, port) => format!("{proto}://{vip}:{port}"),
    }
}

/// What an apply changes.
pub fn applied(answer: &v1::ApplyResponse) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for change in &answer.changes {
        let object = &change.object;
        let _ = match &*change.action {
            "add" => writeln!(text, "+ {object}"),
            "remove" => writeln!(text, "- {object}"),
            _ => {
                let none = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
                let (before, after) = (none(&change.before), none(&change.after));
                writeln!(text, "~ {object}: {} {before} -> {after}", change.field)
            }
        };
    }
    let _ = match (answer.dry_run, answer.changes.len()) {
        (true, 0) => writeln!(text, "it would change nothing"),
        (true, count) => writeln!(text, "it would make {count} changes; nothing was done"),
        (false, 0) => writeln!(text, "nothing has changed"),
        (false, count) => writeln!(text, "{count} changes, generation {}", answer.generation),
    };
    text
}

/// What runs.
pub fn status(status: &v1::Status) -> String {
    let mut text = String::new();
    let (wanted, has) = (status.generation, status.applied_generation);
    let _ = match (&*status.error, wanted == has) {
        ("", true) => writeln!(text, "generation {has}"),
        ("", false) => writeln!(text, "generation {has}, on the way to {wanted}"),
        (why, _) => writeln!(text, "generation {has}, NOT {wanted}: {why}"),
    };
    for interface in &status.interfaces {
        let (name, attached) = (&interface.name, &interface.attached);
        let purpose = match &*interface.purpose {
            "end-tunnels" => ", where tunnels end",
            _ => "",
        };
        let _ = match &*interface.error {
            "" => writeln!(text, "interface {name}: {attached}{purpose}"),
            why => writeln!(text, "interface {name}: NOT ATTACHED: {why}"),
        };
    }
    for balancer in &status.balancers {
        let _ = writeln!(
            text,
            "load balancer {} of {}",
            balancer.name, balancer.owner
        );
        for listener in &balancer.listeners {
            self::listener(&mut text, listener);
        }
    }
    text
}

fn listener(text: &mut String, listener: &v1::ListenerStatus) {
    let at = place(&listener.protocol, &listener.vip, listener.port);
    let panic = if listener.panic {
        ", PANIC: too few backends are healthy, all serve"
    } else {
        ""
    };
    let (name, pool) = (&listener.name, &listener.pool);
    let _ = writeln!(text, "  listener {name} at {at}, pool {pool}{panic}");
    let _ = writeln!(
        text,
        "    {} packets, {} bytes, {} flows, {} replies; dropped: {} for their source, {} without a backend, \
         {} otherwise",
        listener.packets,
        listener.bytes,
        listener.flows,
        listener.replies,
        listener.refused,
        listener.no_backend,
        listener.dropped,
    );
    answers(text, listener);
    let rows: Vec<Vec<String>> = listener.backends.iter().map(backend_row).collect();
    let heads = [
        "BACKEND", "ADDRESS", "STATE", "HEALTH", "WEIGHT", "OPEN", "FLOWS", "PACKETS", "HOP", "WHY",
    ];
    for line in table(&heads, &rows).lines() {
        let _ = writeln!(text, "    {line}");
    }
}

/// What the program answered itself.
fn answers(text: &mut String, listener: &v1::ListenerStatus) {
    if !listener.syn_cookies.is_empty() {
        let _ = writeln!(
            text,
            "    SYN cookies {}: {} sent, {} sources proved, {} wrong",
            listener.syn_cookies,
            listener.cookies_sent,
            listener.cookies_proved,
            listener.cookies_wrong,
        );
    }
    let (told, dropped) = (listener.too_big_told, listener.too_big_dropped);
    if told + dropped > 0 {
        let _ = writeln!(
            text,
            "    too big for the tunnel: {told} packets whose sender was told, {dropped} that were dropped"
        );
    }
}

fn backend_row(backend: &v1::BackendStatus) -> Vec<String> {
    let address = match (backend.port, backend.address.contains(':')) {
        (0, _) => backend.address.clone(),
        (port, true) => format!("[{}]:{port}", backend.address),
        (port, false) => format!("{}:{port}", backend.address),
    };
    let hop = if backend.next_hop_known {
        "known"
    } else {
        "stack"
    };
    vec![
        backend.name.clone(),
        address,
        backend.state.clone(),
        backend.health.clone(),
        backend.weight.to_string(),
        backend.open_flows.to_string(),
        backend.flows.to_string(),
        backend.packets.to_string(),
        hop.to_owned(),
        backend.why.clone(),
    ]
}

/// A backend after a drain or its end.
pub fn backend(backend: &v1::BackendStatus) -> String {
    let v1::BackendStatus {
        name,
        pool,
        state,
        health,
        open_flows,
        drain_left_s,
        ..
    } = backend;
    let until = match drain_left_s {
        0 => String::new(),
        seconds => format!(", cut off in {seconds} s"),
    };
    format!("backend {name} of pool {pool} is {state} ({health}), {open_flows} flows open{until}\n")
}

/// Where a packet goes.
pub fn explanation(answer: &v1::Explanation) -> String {
    let mut text = String::new();
    let to = match &*answer.verdict {
        "balanced" if answer.address.is_empty() => "to one of the backends".to_owned(),
        "balanced" => {
            let name = match &*answer.backend {
                "" => "a backend that is no more wanted",
                name => name,
            };
            format!(
                "to {name} at {}",
                place("", &answer.address, answer.port).replace("://", "")
            )
        }
        "refused" => "nowhere: its source is refused".to_owned(),
        "no-backend" => "nowhere: there is no backend".to_owned(),
        _ => "to the node's own stack".to_owned(),
    };
    let _ = writeln!(text, "the packet goes {to}");
    if !answer.balancer.is_empty() {
        let (balancer, owner) = (&answer.balancer, &answer.owner);
        let listener = &answer.listener;
        let _ = writeln!(
            text,
            "  listener {listener} of load balancer {balancer} of {owner}"
        );
    }
    for step in &answer.steps {
        let _ = writeln!(text, "  {step}");
    }
    text
}
