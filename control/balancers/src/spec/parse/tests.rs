//! What is refused of a document, and by which words.

use super::*;
use fiberlb_api::v1;

fn backend(name: &str, address: &str) -> v1::Backend {
    v1::Backend {
        name: name.into(),
        address: address.into(),
        port: 8080,
        ..Default::default()
    }
}

fn web() -> v1::LoadBalancer {
    v1::LoadBalancer {
        name: "web".into(),
        listeners: vec![v1::Listener {
            name: "http".into(),
            protocol: "tcp".into(),
            vip: "192.0.2.1".into(),
            port: 80,
            pool: "web".into(),
            ..Default::default()
        }],
        pools: vec![v1::Pool {
            name: "web".into(),
            backends: vec![backend("b1", "10.0.0.1"), backend("b2", "10.0.0.2")],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn parse_alone(balancers: &[v1::LoadBalancer]) -> Result<Vec<Balancer>, Vec<Fault>> {
    parse(
        ("root", "default"),
        balancers,
        &Hosts::new(),
        std::iter::empty(),
    )
}

fn faults(balancers: &[v1::LoadBalancer]) -> Vec<(String, String)> {
    let faults = parse_alone(balancers).err().unwrap_or_default();
    faults
        .into_iter()
        .map(|fault| (fault.path, fault.what))
        .collect()
}

#[test]
fn a_short_document_gets_defaults() {
    let balancers = parse_alone(&[web()]).unwrap();
    let listener = &balancers[0].listeners[0];
    assert_eq!(listener.algorithm, Algorithm::FiveTuple);
    assert_eq!(
        (listener.mode, listener.ring),
        (Mode::Dnat, RingSize::Large)
    );
    assert_eq!(listener.flows, FlowTable::Kept);
    let pool = &balancers[0].pools[0];
    assert_eq!(
        (pool.backends[0].weight, pool.backends[0].port),
        (1, Some(8080))
    );
    assert_eq!(balancers[0].written.owner, "root");
}

#[test]
fn every_published_algorithm_and_mode_has_its_word() {
    for (word, algorithm) in ALGORITHMS {
        let mut of_pool = web();
        of_pool.pools[0].algorithm = word.into();
        assert_eq!(
            parse_alone(&[of_pool]).unwrap()[0].listeners[0].algorithm,
            algorithm
        );
        let mut own = web();
        own.pools[0].algorithm = "source".into();
        own.listeners[0].algorithm = word.into();
        assert_eq!(
            parse_alone(&[own]).unwrap()[0].listeners[0].algorithm,
            algorithm
        );
    }
    for (word, mode) in MODES {
        let mut balancer = web();
        balancer.listeners[0].mode = word.into();
        for backend in &mut balancer.pools[0].backends {
            backend.port = 0;
        }
        assert_eq!(parse_alone(&[balancer]).unwrap()[0].listeners[0].mode, mode);
    }
}

#[test]
fn syn_cookies_are_auto_unless_the_document_says_otherwise() {
    let of = |word: &str| {
        let mut balancer = web();
        balancer.listeners[0].syn_cookies = word.into();
        parse_alone(&[balancer]).unwrap()[0].listeners[0].syn_cookies
    };
    assert_eq!(of(""), SynCookies::Auto);
    for (word, cookies) in SYN_COOKIES {
        assert_eq!(of(word), cookies);
        assert_eq!(crate::spec::shown_cookies(Proto::Tcp, cookies), word);
    }
}

type Change = fn(&mut v1::LoadBalancer);

/// Each makes one fault, at one place.
const CHANGES: [(Change, &str, &str); 26] = [
    (|b| b.name = "Web".into(), "balancers[0].name", "a-z"),
    (
        |b| b.owner = "alice".into(),
        "balancers[0].owner",
        "the document's is root",
    ),
    (
        |b| b.listeners[0].syn_cookies = "maybe".into(),
        ".listeners[0].syn_cookies",
        "none of auto, always, off",
    ),
    (
        |b| {
            b.listeners[0].protocol = "udp".into();
            b.listeners[0].syn_cookies = "always".into();
        },
        ".listeners[0]",
        "SYN cookies are TCP's",
    ),
    (
        |b| b.listeners[0].protocol = "sctp".into(),
        ".listeners[0].protocol",
        "sctp",
    ),
    (
        |b| b.listeners[0].protocol = "https".into(),
        ".listeners[0].protocol",
        "not served yet",
    ),
    (
        |b| b.listeners[0].vip = "nowhere".into(),
        ".listeners[0].vip",
        "nowhere",
    ),
    (
        |b| b.listeners[0].vip = "192.0.2.1/24".into(),
        ".listeners[0].vip",
        "behind its length",
    ),
    (
        |b| b.listeners[0].vip = "192.0.2.0/33".into(),
        ".listeners[0].vip",
        "no prefix",
    ),
    (
        |b| b.listeners[0].vip = "0.0.0.0".into(),
        ".listeners[0].vip",
        "no host's",
    ),
    (|b| b.listeners[0].port = 0, ".listeners[0].port", "missing"),
    (
        |b| b.listeners[0].port = 70_000,
        ".listeners[0].port",
        "65535",
    ),
    (
        |b| b.listeners[0].pool = "other".into(),
        ".listeners[0].pool",
        "no pool other",
    ),
    (
        |b| b.listeners[0].algorithm = "best".into(),
        ".listeners[0].algorithm",
        "5-tuple",
    ),
    (
        |b| b.listeners[0].mode = "direct".into(),
        ".listeners[0]",
        "needs DNAT",
    ),
    (|b| b.listeners[0].quic = true, ".listeners[0]", "QUIC"),
    (
        |b| {
            b.listeners[0].sources = Some(v1::Sources {
                deny: vec!["10.0.0.0/8".into(), "x".into()],
                ..Default::default()
            });
        },
        ".listeners[0].sources.deny[1]",
        "no prefix",
    ),
    (
        |b| b.pools[0].backends[1].name = "b1".into(),
        ".backends[1].name",
        "another backend",
    ),
    (
        |b| b.pools[0].backends[1].address = "10.0.0.1".into(),
        ".backends[1].address",
        "b1",
    ),
    (
        |b| b.pools[0].backends[0].address = "::1".into(),
        ".listeners[0]",
        "needs a tunnel",
    ),
    (
        |b| b.pools[0].backends[0].address = "no.example".into(),
        ".backends[0].address",
        "looked up",
    ),
    (
        |b| b.pools[0].backends[0].weight = 1001,
        ".backends[0].weight",
        "1000",
    ),
    (
        |b| b.pools[0].backends[0].admin_state = "off".into(),
        ".admin_state",
        "drain",
    ),
    (
        |b| {
            b.pools[0].health_check = Some(v1::HealthCheck {
                kind: "ping".into(),
                ..Default::default()
            });
        },
        ".pools[0].health_check.kind",
        "ping",
    ),
    (
        |b| {
            b.pools[0].health_check = Some(v1::HealthCheck {
                kind: "tcp".into(),
                fall: 101,
                ..Default::default()
            });
        },
        ".pools[0].health_check.fall",
        "1 to 100",
    ),
    (
        |b| b.pools[0].panic_threshold_percent = 101,
        ".panic_threshold_percent",
        "100",
    ),
];

#[test]
fn each_fault_is_found_and_says_where_it_stands() {
    assert!(faults(&[web()]).is_empty());
    for (change, path, what) in CHANGES {
        let mut balancer = web();
        change(&mut balancer);
        let found = faults(&[balancer]);
        assert_eq!(found.len(), 1, "{path}: {found:?}");
        assert!(
            found[0].0.ends_with(path) && found[0].1.contains(what),
            "{path} {what}: {found:?}"
        );
        assert!(found[0].1.starts_with("load balancer "), "{found:?}");
    }
}

#[test]
fn all_faults_are_told_at_once() {
    let mut balancer = web();
    balancer.listeners[0].vip = "x".into();
    balancer.listeners[0].pool = "y".into();
    balancer.pools[0].backends[0].address = "!".into();
    assert_eq!(faults(&[balancer.clone(), balancer]).len(), 7);
}

#[test]
fn a_vip_and_a_name_are_taken_once_on_the_node() {
    let first = parse_alone(&[web()]).unwrap();
    let in_another_set = |balancer: v1::LoadBalancer| {
        parse(("root", "two"), &[balancer], &Hosts::new(), first.iter())
    };
    let faults = in_another_set(web()).unwrap_err();
    assert!(
        faults[0].what.contains("taken already, in default"),
        "{faults:?}"
    );
    assert!(
        faults[1].what.contains("that of listener http"),
        "{faults:?}"
    );
    let mut other = web();
    other.name = "other".into();
    other.listeners[0].protocol = "udp".into();
    in_another_set(other.clone()).unwrap();
    other.listeners[0].protocol = "tcp".into();
    other.listeners[0].vip = "192.0.2.0/24".into();
    in_another_set(other.clone()).unwrap();
    // Another user may have the name, and not the VIP.
    let of_alice = parse(("alice", "default"), &[web()], &Hosts::new(), first.iter());
    assert_eq!(of_alice.unwrap_err().len(), 1);
}

#[test]
fn hosts_are_named_with_their_places_and_taken_from_what_was_looked_up() {
    let mut balancer = web();
    balancer.pools[0].backends[1].address = "b.example".into();
    let named = host_names(std::slice::from_ref(&balancer));
    let place = "balancers[0].pools[0].backends[1].address";
    assert_eq!(named, [(place.to_owned(), "b.example".to_owned())]);
    let hosts = Hosts::from([("b.example".to_owned(), "10.0.0.9".parse().unwrap())]);
    let parsed = parse(("root", "default"), &[balancer], &hosts, std::iter::empty()).unwrap();
    assert_eq!(parsed[0].pools[0].backends[1].addr.to_string(), "10.0.0.9");
}

#[test]
fn checks_know_their_port() {
    let check = v1::HealthCheck {
        kind: "tcp".into(),
        ..Default::default()
    };
    let port_of = |balancer: v1::LoadBalancer| {
        let parsed = parse_alone(&[balancer]);
        parsed.map(|parsed| parsed[0].pools[0].backends[0].check_port)
    };
    let mut balancer = web();
    balancer.pools[0].health_check = Some(check);
    assert_eq!(port_of(balancer.clone()), Ok(8080));
    balancer.pools[0].backends[0].port = 0;
    assert_eq!(
        port_of(balancer.clone()),
        Ok(80),
        "the port of the only listener"
    );
    let second = v1::Listener {
        name: "https".into(),
        port: 443,
        ..balancer.listeners[0].clone()
    };
    balancer.listeners.push(second);
    let faults = port_of(balancer.clone()).unwrap_err();
    assert!(faults[0].what.contains("which port to check"), "{faults:?}");
    balancer.pools[0].health_check.as_mut().unwrap().port = 81;
    assert_eq!(port_of(balancer), Ok(81));
}
