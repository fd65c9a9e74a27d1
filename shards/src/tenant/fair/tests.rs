//! Laws of fair queueing, on random shares, costs and orders of events.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const CONFIG: AdmissionConfig = AdmissionConfig {
    concurrent_max: 1,
    queue_per_tenant_max: 4,
    default_shares: 100,
};

/// A request as the model knows it.
#[derive(Clone, Copy, Debug)]
struct Request {
    tenant: TenantId,
    number: u64,
}

#[derive(Clone, Debug)]
enum Event {
    Arrive { tenant: u64, cost: u32 },
    End { which: usize },
    Leave { which: usize },
    Shares { tenant: u64, shares: u32 },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..5_u64, 0..50_u32).prop_map(|(tenant, cost)| Event::Arrive { tenant, cost }),
        3 => any::<usize>().prop_map(|which| Event::End { which }),
        1 => any::<usize>().prop_map(|which| Event::Leave { which }),
        1 => (0..5_u64, 0..20_000_u32).prop_map(|(tenant, shares)| Event::Shares { tenant, shares }),
    ]
}

/// Drives a [`Fair`] beside what it must be doing.
struct Model {
    fair: Fair<Request>,
    config: AdmissionConfig,
    arrived: u64,
    running: Vec<Request>,
    waiting: Vec<(Request, Ticket)>,
    refused: u64,
    left: u64,
    ended: u64,
    /// By tenant, the number of its latest request that ran.
    latest: BTreeMap<TenantId, u64>,
}

impl Model {
    fn new(config: AdmissionConfig) -> Model {
        Model {
            fair: Fair::new(config),
            config,
            arrived: 0,
            running: Vec::new(),
            waiting: Vec::new(),
            refused: 0,
            left: 0,
            ended: 0,
            latest: BTreeMap::new(),
        }
    }

    fn runs(&mut self, request: Request) {
        let before = self.latest.insert(request.tenant, request.number);
        assert!(
            before.is_none_or(|b| b < request.number),
            "{request:?} ran after number {before:?}"
        );
        self.running.push(request);
    }

    fn queued(&self, tenant: TenantId) -> u32 {
        self.waiting
            .iter()
            .filter(|(r, _)| r.tenant == tenant)
            .count() as u32
    }

    fn step(&mut self, event: &Event) {
        match *event {
            Event::Arrive { tenant, cost } => self.arrive(TenantId(tenant), cost),
            Event::End { which } if !self.running.is_empty() => {
                let ended = self.running.swap_remove(which % self.running.len());
                self.fair.end(ended.tenant);
                self.ended += 1;
                while let Some(next) = self.fair.next() {
                    let place = self
                        .waiting
                        .iter()
                        .position(|(r, _)| r.number == next.number);
                    self.waiting
                        .remove(place.expect("only waiting requests are given turns"));
                    self.runs(next);
                }
            }
            Event::Leave { which } if !self.waiting.is_empty() => {
                let (request, ticket) = self.waiting.remove(which % self.waiting.len());
                self.fair.leave(request.tenant, ticket);
                self.left += 1;
            }
            Event::Shares { tenant, shares } => {
                assert!(self.fair.set_shares(TenantId(tenant), shares));
            }
            Event::End { .. } | Event::Leave { .. } => {}
        }
        self.check();
    }

    fn arrive(&mut self, tenant: TenantId, cost: u32) {
        let request = Request {
            tenant,
            number: self.arrived,
        };
        self.arrived += 1;
        let queued = self.queued(tenant);
        match self.fair.arrive(tenant, cost, || request) {
            Arrival::Runs => self.runs(request),
            Arrival::Waits(ticket) => self.waiting.push((request, ticket)),
            Arrival::Refused { queued: said } => {
                assert_eq!((said, queued), (queued, self.config.queue_per_tenant_max));
                self.refused += 1;
            }
        }
    }

    fn check(&self) {
        let running = self.running.len() as u64;
        let waiting = self.waiting.len() as u64;
        assert!(running <= u64::from(self.config.concurrent_max));
        assert!(
            waiting == 0 || running == u64::from(self.config.concurrent_max),
            "a turn is idle"
        );
        assert_eq!(
            self.arrived,
            running + waiting + self.refused + self.left + self.ended
        );
        let metrics = self.fair.metrics();
        assert_eq!(u64::from(metrics.running), running);
        let sum =
            |f: fn(&TenantMetrics) -> u64| metrics.tenants.iter().map(|(_, t)| f(t)).sum::<u64>();
        assert_eq!(sum(|t| u64::from(t.queued)), waiting);
        assert_eq!(sum(|t| t.admitted), running + self.ended);
        assert_eq!(sum(|t| t.refused), self.refused);
        assert_eq!(sum(|t| t.left), self.left);
        for (tenant, seen) in &metrics.tenants {
            assert!(seen.queued <= self.config.queue_per_tenant_max);
            assert_eq!(seen.queued, self.queued(*tenant));
        }
    }
}

proptest! {
    #[test]
    fn no_turn_is_lost_no_bound_is_passed_and_a_tenant_is_served_in_order(
        concurrent_max in 1..5_u32,
        queue_per_tenant_max in 0..6_u32,
        events in prop::collection::vec(event(), 1..400),
    ) {
        let mut model = Model::new(AdmissionConfig { concurrent_max, queue_per_tenant_max, ..CONFIG });
        for event in &events {
            model.step(event);
        }
        while !model.running.is_empty() {
            model.step(&Event::End { which: 0 });
        }
        prop_assert!(model.waiting.is_empty());
    }

    /// Theorem 1 of the paper: over any stretch in which two tenants always wait, their work per
    /// share differs by at most one largest request of each.
    #[test]
    fn tenants_that_always_wait_get_work_by_their_shares(
        concurrent_max in 1..5_u32,
        tenants in prop::collection::vec((1..1000_u32, 1..100_u32), 2..8),
        costs in prop::collection::vec(any::<u32>(), 64),
        turns in 200..1500_usize,
    ) {
        let mut fair = Fair::new(AdmissionConfig { concurrent_max, ..CONFIG });
        let mut costs = costs.into_iter().cycle();
        let mut cost = |max: u32| 1 + costs.next().unwrap_or(0) % max;
        let mut running = std::collections::VecDeque::new();
        let filler = TenantId(u64::MAX);
        for _ in 0..concurrent_max {
            assert_eq!(fair.arrive(filler, 1, || (filler, 0)), Arrival::Runs);
            running.push_back(filler);
        }
        for (id, (shares, cost_max)) in tenants.iter().enumerate() {
            assert!(fair.set_shares(TenantId(id as u64), *shares));
            for _ in 0..3 {
                let (id, cost) = (TenantId(id as u64), cost(*cost_max));
                assert!(matches!(fair.arrive(id, cost, || (id, cost)), Arrival::Waits(_)));
            }
        }
        let mut work = vec![0_u64; tenants.len()];
        for _ in 0..turns {
            let ended = running.pop_front().expect("all turns are taken");
            fair.end(ended);
            let (id, used) = fair.next().expect("tenants always wait");
            running.push_back(id);
            let index = id.0 as usize;
            work[index] += u64::from(used);
            let cost = cost(tenants[index].1);
            prop_assert!(matches!(fair.arrive(id, cost, || (id, cost)), Arrival::Waits(_)));
            for (i, (i_shares, i_max)) in tenants.iter().enumerate() {
                for (j, (j_shares, j_max)) in tenants.iter().enumerate().take(i) {
                    let per_share = |w: u64, s: u32| w as f64 / f64::from(s);
                    let apart = per_share(work[i], *i_shares) - per_share(work[j], *j_shares);
                    let bound = per_share(u64::from(*i_max), *i_shares)
                        + per_share(u64::from(*j_max), *j_shares);
                    prop_assert!(apart.abs() <= bound + 1e-6, "{i}, {j}: {apart} of {bound}");
                }
            }
        }
    }

    #[test]
    fn a_tenant_that_comes_back_waits_for_one_request_of_each_other(
        others in 1..6_u64, alone in 1..200_u32,
    ) {
        let mut fair = Fair::new(CONFIG);
        let newcomer = TenantId(99);
        assert_eq!(fair.arrive(TenantId(0), 10, || TenantId(0)), Arrival::Runs);
        let mut running = TenantId(0);
        for _ in 0..alone {
            for id in (0..others).map(TenantId) {
                let _ = fair.arrive(id, 10, || id);
            }
            fair.end(running);
            running = fair.next().expect("others wait");
        }
        assert!(matches!(fair.arrive(newcomer, 10, || newcomer), Arrival::Waits(_)));
        let mut passed = 0;
        loop {
            fair.end(running);
            running = fair.next().expect("the newcomer waits");
            if running == newcomer {
                break;
            }
            passed += 1;
        }
        prop_assert!(passed <= others, "{passed} requests of {others} tenants");
    }
}

#[test]
fn a_busy_period_that_ended_is_forgotten() {
    let mut fair = Fair::new(CONFIG);
    let (heavy, light) = (TenantId(1), TenantId(2));
    assert_eq!(fair.arrive(heavy, 1_000_000, || heavy), Arrival::Runs);
    fair.end(heavy);
    assert_eq!(fair.arrive(light, 10, || light), Arrival::Runs);
    for _ in 0..2 {
        assert!(matches!(
            fair.arrive(light, 10, || light),
            Arrival::Waits(_)
        ));
        assert!(matches!(
            fair.arrive(heavy, 10, || heavy),
            Arrival::Waits(_)
        ));
    }
    let mut order = Vec::new();
    let mut running = light;
    for _ in 0..4 {
        fair.end(running);
        running = fair.next().unwrap();
        order.push(running);
    }
    assert_eq!(order, [heavy, light, heavy, light]);
}

#[test]
fn the_table_forgets_idle_tenants_and_keeps_their_counts() {
    let mut fair = Fair::new(CONFIG);
    let many = 3 * TENANTS_MAX as u64;
    for id in (0..many).map(TenantId) {
        assert_eq!(fair.arrive(id, 7, || id), Arrival::Runs);
        fair.end(id);
    }
    let metrics = fair.metrics();
    assert!(metrics.tenants.len() <= TENANTS_MAX);
    let admitted: u64 = metrics.tenants.iter().map(|(_, t)| t.admitted).sum();
    assert_eq!(admitted + metrics.forgotten.admitted, many);
}

#[test]
fn tenants_past_the_table_are_refused_until_one_idles() {
    let mut fair = Fair::new(CONFIG);
    for id in (0..TENANTS_MAX as u64).map(TenantId) {
        assert_ne!(fair.arrive(id, 1, || id), Arrival::Refused { queued: 0 });
    }
    let late = TenantId(TENANTS_MAX as u64);
    assert_eq!(
        fair.arrive(late, 1, || late),
        Arrival::Refused { queued: 0 }
    );
    fair.end(TenantId(0));
    assert_eq!(fair.next(), Some(TenantId(1)));
    assert!(matches!(fair.arrive(late, 1, || late), Arrival::Waits(_)));
    assert_eq!(fair.metrics().forgotten.refused, 1);
}

#[test]
fn own_shares_outlive_the_tenants_place_in_the_table_and_are_bounded() {
    let mut fair: Fair<TenantId> = Fair::new(CONFIG);
    for id in (0..TENANTS_MAX as u64).map(TenantId) {
        assert!(fair.set_shares(id, 7));
    }
    let late = TenantId(u64::MAX);
    assert!(!fair.set_shares(late, 7));
    assert!(
        fair.set_shares(late, CONFIG.default_shares),
        "the default takes no place"
    );
    assert!(fair.set_shares(TenantId(3), CONFIG.default_shares));
    assert!(fair.set_shares(late, 7));
}

#[test]
fn idling_saves_no_turns_up() {
    let mut fair = Fair::new(CONFIG);
    let (always, back) = (TenantId(1), TenantId(2));
    // The one that comes back is known already, and long idle.
    assert_eq!(fair.arrive(back, 1, || back), Arrival::Runs);
    fair.end(back);
    assert_eq!(fair.arrive(always, 1, || always), Arrival::Runs);
    for _ in 0..100 {
        assert!(matches!(
            fair.arrive(always, 1, || always),
            Arrival::Waits(_)
        ));
        fair.end(always);
        assert_eq!(fair.next(), Some(always));
    }
    let mut running = always;
    let mut turns = 0;
    for _ in 0..20 {
        for id in [always, back] {
            let _ = fair.arrive(id, 1, || id);
        }
        fair.end(running);
        running = fair.next().unwrap();
        turns += u32::from(running == back);
    }
    assert!((9..=11).contains(&turns), "{turns} of 20");
}
