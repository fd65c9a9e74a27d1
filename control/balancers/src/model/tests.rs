//! The model's laws, by example; by seed they are in `simulation`.

mod fake;
mod simulation;

use super::*;
use crate::spec::{self, Hosts};
use fiberlb_api::v1;

/// A balancer `web` with one listener and a pool of so many backends.
pub(super) fn web(backends: usize, change: impl FnOnce(&mut v1::Pool)) -> Balancer {
    let backend = |at: usize| v1::Backend {
        name: format!("b{at}"),
        address: format!("10.0.0.{}", at + 1),
        port: 8080,
        ..Default::default()
    };
    let mut pool = v1::Pool {
        name: "web".into(),
        health_check: Some(v1::HealthCheck {
            kind: "tcp".into(),
            rise: 1,
            fall: 1,
            ..Default::default()
        }),
        backends: (0..backends).map(backend).collect(),
        ..Default::default()
    };
    change(&mut pool);
    let written = v1::LoadBalancer {
        name: "web".into(),
        listeners: vec![v1::Listener {
            name: "http".into(),
            protocol: "tcp".into(),
            vip: "192.0.2.1".into(),
            port: 80,
            pool: "web".into(),
            ring: "small".into(),
            ..Default::default()
        }],
        pools: vec![pool],
        ..Default::default()
    };
    let parsed = spec::parse(
        ("root", "default"),
        &[written],
        &Hosts::new(),
        std::iter::empty(),
    );
    parsed.unwrap().remove(0)
}

fn model_of(balancer: Balancer) -> Model {
    let mut model = Model::new(7);
    model.replace(&BTreeSet::new(), vec![balancer]);
    model
}

fn key(name: &str) -> BackendKey {
    BackendKey {
        balancer: BalancerKey {
            owner: "root".into(),
            name: "web".into(),
        },
        pool: "web".into(),
        name: name.into(),
    }
}

fn judge(model: &mut Model, name: &str, passed: bool, now: u64) -> bool {
    let addr = model.backend(&key(name)).unwrap().addr;
    let result = if passed {
        Ok(())
    } else {
        Err("refused".to_owned())
    };
    model.checked(&key(name), addr, result, now)
}

fn states(model: &Model) -> Vec<BackendState> {
    let vip = &model.desired().vips[0];
    vip.backends.iter().map(|backend| backend.state).collect()
}

fn weights(model: &Model) -> Vec<u32> {
    let vip = &model.desired().vips[0];
    vip.backends.iter().map(|backend| backend.weight).collect()
}

use BackendState::{Down, Draining, Up};

#[test]
fn a_generation_grows_with_changes_and_only_then() {
    let mut model = model_of(web(2, |_| {}));
    assert!(!model.is_committed());
    assert_eq!(model.commit(0), 8, "the tables are this process's now");
    assert_eq!(model.commit(1), 8);
    judge(&mut model, "b0", false, 2);
    assert_eq!(model.commit(2), 9);
    assert_eq!(model.commit(3), 9);
    let mut empty = Model::new(7);
    assert_eq!(empty.commit(0), 8, "tables of before are emptied");
}

#[test]
fn who_is_not_judged_serves_only_while_nobody_is_healthy() {
    let mut model = model_of(web(3, |_| {}));
    model.commit(0);
    assert_eq!(states(&model), [Up, Up, Up]);
    judge(&mut model, "b0", false, 1);
    model.commit(1);
    assert_eq!(states(&model), [Down, Up, Up]);
    judge(&mut model, "b1", true, 2);
    model.commit(2);
    assert_eq!(states(&model), [Down, Up, Down]);
    judge(&mut model, "b2", true, 3);
    judge(&mut model, "b0", true, 3);
    model.commit(3);
    assert_eq!(states(&model), [Up, Up, Up]);
}

#[test]
fn in_panic_all_serve_but_those_that_may_not() {
    let mut model = model_of(web(4, |pool| {
        pool.panic_threshold_percent = 50;
        pool.backends[3].admin_state = "down".into();
    }));
    for name in ["b0", "b1", "b2"] {
        judge(&mut model, name, true, 0);
    }
    model.commit(0);
    judge(&mut model, "b0", false, 1);
    model.commit(1);
    assert_eq!(states(&model), [Down, Up, Up, Down]);
    judge(&mut model, "b1", false, 2);
    model.commit(2);
    assert_eq!(
        states(&model),
        [Up, Up, Up, Down],
        "one of three is below half"
    );
    model.set_drain(&key("b0"), Some(Drain { deadline_ms: None }));
    model.commit(3);
    assert_eq!(
        states(&model)[0],
        Down,
        "a dead backend that drains has nothing to keep"
    );
}

#[test]
fn a_drain_ends_at_its_deadline_and_may_be_taken_back() {
    let mut model = model_of(web(2, |_| {}));
    judge(&mut model, "b0", true, 0);
    judge(&mut model, "b1", true, 0);
    model.commit(0);
    let deadline_ms = Some(1000);
    model.set_drain(&key("b0"), Some(Drain { deadline_ms }));
    model.commit(10);
    assert_eq!(states(&model), [Draining, Up]);
    assert_eq!(model.next_change_ms(10), Some(1000));
    model.commit(999);
    assert_eq!(states(&model), [Draining, Up]);
    model.commit(1000);
    assert_eq!(states(&model), [Down, Up]);
    assert_eq!(model.next_change_ms(1000), None);
    model.set_drain(&key("b0"), None);
    model.commit(1001);
    assert_eq!(states(&model), [Up, Up]);
}

#[test]
fn a_backend_that_comes_back_gets_its_share_in_steps() {
    let mut model = model_of(web(2, |pool| {
        pool.slow_start_s = 10;
        pool.backends[0].weight = 3;
    }));
    judge(&mut model, "b0", true, 0);
    judge(&mut model, "b1", true, 0);
    model.commit(0);
    assert_eq!(
        weights(&model),
        [30, 10],
        "a pool that is new has nobody else"
    );
    judge(&mut model, "b0", false, 1000);
    model.commit(1000);
    judge(&mut model, "b0", true, 2000);
    model.commit(2000);
    assert_eq!(weights(&model), [3, 10]);
    let mut now = 2000;
    let mut seen = vec![3];
    while let Some(next) = model.next_change_ms(now) {
        assert!(next > now);
        now = next;
        model.commit(now);
        seen.push(weights(&model)[0]);
    }
    assert_eq!(seen, [3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 30]);
    assert_eq!(now, 12_000);
}

#[test]
fn health_and_drains_stay_with_backends_over_documents() {
    let mut model = model_of(web(2, |_| {}));
    judge(&mut model, "b0", true, 0);
    judge(&mut model, "b1", false, 0);
    model.set_drain(&key("b0"), Some(Drain { deadline_ms: None }));
    model.commit(0);
    let gone = BTreeSet::from([key("b0").balancer]);
    model.replace(
        &gone,
        vec![web(3, |pool| pool.backends[1].address = "10.0.9.9".into())],
    );
    model.commit(1);
    assert_eq!(
        states(&model),
        [Draining, Up, Up],
        "b1 is another machine now"
    );
    model.replace(&gone, Vec::new());
    assert_eq!((model.drains().count(), model.checks().len()), (0, 0));
    // A result of a check that ran meanwhile is nobody's.
    let addr = "10.0.0.1".parse().unwrap();
    assert!(!model.checked(&key("b0"), addr, Ok(()), 2));
}

#[test]
fn next_hops_reach_the_tables_and_settle_the_start() {
    let mut model = model_of(web(1, |pool| pool.health_check = None));
    assert!(!model.is_settled());
    let addr: IpAddr = "10.0.0.1".parse().unwrap();
    let way = Way {
        hop: Hop::new([1; 6], [2; 6], 3),
        mtu: 1400,
    };
    model.set_ways(Ways::from([(addr, Some(way))]));
    assert!(model.is_settled());
    model.commit(0);
    let backend = &model.desired().vips[0].backends[0];
    assert_eq!((backend.hop, backend.mtu), (Some(way.hop), Some(1400)));
    model.set_ways(Ways::from([(addr, None)]));
    assert!(model.is_settled(), "it has no next hop, and that is known");
    model.commit(1);
    assert_eq!(model.desired().vips[0].backends[0].hop, None);
}
