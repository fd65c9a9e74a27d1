//! A service through its life, on simulated shards and once on real ones. Fault model: any phase
//! may fail on any shard, a drain may take for ever.

use std::cell::Cell;
use std::sync::mpsc::{Receiver, Sender, channel};

use engine::sim::{NodeId, Sim};
use engine::{Engine, EngineConfig};

use super::*;
use crate::outside::wait_for;

/// Which shard took which step, in order.
type Note = (u16, &'static str);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("disk is on fire in {0}")]
struct OnFire(&'static str);

/// What goes wrong, and where.
#[derive(Clone, Copy, Default)]
struct Fault {
    fails: Option<(u16, &'static str)>,
    hangs: Option<u16>,
}

struct Recorder {
    shard: u16,
    journal: Sender<Note>,
    steps: Cell<usize>,
    fault: Fault,
}

impl Recorder {
    async fn note(&self, what: &'static str) -> Result<(), OnFire> {
        let pause = engine::random() % 100;
        engine::sleep(Duration::from_micros(pause)).await;
        self.journal.send((self.shard, what)).unwrap();
        self.steps.set(self.steps.get() + 1);
        if self.fault.fails == Some((self.shard, what)) {
            Err(OnFire(what))
        } else {
            Ok(())
        }
    }
}

impl Service for Recorder {
    type Error = OnFire;
    type Metrics = usize;

    async fn start(self: Rc<Self>) -> Result<(), OnFire> {
        self.note("start").await
    }

    async fn recover(self: Rc<Self>) -> Result<(), OnFire> {
        self.note("recover").await
    }

    async fn serve(self: Rc<Self>) -> Result<(), OnFire> {
        self.note("serve").await
    }

    async fn drain(self: Rc<Self>) -> Result<(), OnFire> {
        if self.fault.hangs == Some(self.shard) {
            std::future::pending::<()>().await;
        }
        self.note("drain").await
    }

    fn metrics(&self) -> usize {
        self.steps.get()
    }
}

/// A factory of recorders, and what they will write.
fn recorders(
    fault: Fault,
) -> (
    impl Fn(ShardId) -> Rc<Recorder> + Clone + Send + 'static,
    Receiver<Note>,
) {
    let (sender, journal) = channel();
    let make = move |shard: ShardId| {
        let (journal, steps) = (sender.clone(), Cell::new(0));
        Rc::new(Recorder {
            shard: shard.0,
            journal,
            steps,
            fault,
        })
    };
    (make, journal)
}

fn world(seed: u64) -> (Sim, NodeId, EngineHandle) {
    let sim = Sim::new(seed);
    let node = sim.node("n");
    let engine = sim.start(node, EngineConfig::unpinned(3)).unwrap();
    (sim, node, engine)
}

/// The steps in order, each with the shards that took it; a step that mixes with another shows
/// up twice.
fn steps(journal: &Receiver<Note>) -> Vec<(&'static str, Vec<u16>)> {
    let mut steps: Vec<(&'static str, Vec<u16>)> = Vec::new();
    for (shard, what) in journal.try_iter() {
        match steps.last_mut() {
            Some((last, shards)) if *last == what => shards.push(shard),
            _ => steps.push((what, vec![shard])),
        }
    }
    for (_, shards) in &mut steps {
        shards.sort_unstable();
    }
    steps
}

#[test]
fn all_shards_end_a_phase_before_any_begins_the_next() {
    for seed in 0..20 {
        let (sim, node, engine) = world(seed);
        let (make, journal) = recorders(Fault::default());
        let metrics = sim.run(node, 0, async move {
            let mut lifecycle = Lifecycle::new(&engine);
            let readiness = lifecycle.readiness();
            assert!(!readiness.is_ready());
            assert!(
                lifecycle.metrics().await.is_empty(),
                "there are no values yet"
            );
            lifecycle.start(make).await.unwrap();
            assert!(readiness.is_ready());
            let metrics = lifecycle.metrics().await;
            lifecycle.drain(Duration::from_secs(1)).await.unwrap();
            assert_eq!(readiness.phase(), Phase::Stopped);
            metrics
        });
        let all = vec![0, 1, 2];
        let expected = ["start", "recover", "serve", "drain"].map(|step| (step, all.clone()));
        assert_eq!(steps(&journal), expected);
        assert_eq!(metrics, [0, 1, 2].map(|shard| (ShardId(shard), 3)));
    }
}

#[test]
fn a_failure_on_one_shard_stops_all_and_names_it() {
    let cases: [(&str, &[&str]); 3] = [
        ("start", &["start"]),
        ("recover", &["start", "recover"]),
        ("serve", &["start", "recover", "serve", "drain"]),
    ];
    for (seed, (fails, expected)) in cases.into_iter().enumerate() {
        let (sim, node, engine) = world(seed as u64);
        let (make, journal) = recorders(Fault {
            fails: Some((1, fails)),
            hangs: None,
        });
        let (error, phase) = sim.run(node, 0, async move {
            let mut lifecycle = Lifecycle::new(&engine);
            let error = lifecycle.start(make).await.unwrap_err();
            (error, lifecycle.readiness().phase())
        });
        assert_eq!(
            (error.kind(), error.shard()),
            (LifecycleErrorKind::Failed, Some(ShardId(1)))
        );
        assert_eq!(
            error.source().unwrap().to_string(),
            format!("disk is on fire in {fails}")
        );
        assert!(
            !error.to_string().contains("fire"),
            "a source is not repeated: {error}"
        );
        assert_eq!(phase, Phase::Stopped);
        let taken: Vec<&str> = steps(&journal).iter().map(|(step, _)| *step).collect();
        assert_eq!(taken, expected);
    }
}

#[test]
fn a_drain_ends_at_its_deadline_and_the_other_shards_drain() {
    let (sim, node, engine) = world(1);
    let (make, journal) = recorders(Fault {
        fails: None,
        hangs: Some(2),
    });
    let (error, took, phase) = sim.run(node, 0, async move {
        let lifecycle = Lifecycle::start_all(&engine, make).await.unwrap();
        let began = engine::now();
        let error = lifecycle.drain(Duration::from_secs(5)).await.unwrap_err();
        (
            error,
            engine::now().since(began),
            lifecycle.readiness().phase(),
        )
    });
    assert_eq!(
        (error.kind(), error.shard()),
        (LifecycleErrorKind::Deadline, Some(ShardId(2)))
    );
    assert_eq!(
        error.to_string(),
        "shard 2 was still draining at its deadline"
    );
    assert!((5_000..5_010).contains(&took.as_millis()), "{took:?}");
    assert_eq!(phase, Phase::Stopped);
    assert_eq!(steps(&journal).last().unwrap(), &("drain", vec![0, 1]));
}

#[test]
fn what_comes_out_of_order_is_refused_and_does_nothing() {
    let (sim, node, engine) = world(1);
    let (make, journal) = recorders(Fault::default());
    sim.run(node, 0, async move {
        let mut lifecycle = Lifecycle::new(&engine);
        let limit = Duration::from_secs(1);
        let error = lifecycle.drain(limit).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the service is starting and cannot become draining"
        );
        lifecycle.start(make.clone()).await.unwrap();
        let error = lifecycle.start(make).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.phase()),
            (LifecycleErrorKind::Illegal, Phase::Serving)
        );
        lifecycle.drain(limit).await.unwrap();
        let error = lifecycle.drain(limit).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.phase()),
            (LifecycleErrorKind::Illegal, Phase::Stopped)
        );
    });
    assert_eq!(steps(&journal).len(), 4);
}

#[test]
fn a_phase_leads_only_where_the_table_says() {
    let legal: Vec<(Phase, Phase)> = Phase::ALL
        .iter()
        .flat_map(|from| Phase::ALL.iter().map(move |to| (*from, *to)))
        .filter(|(from, to)| from.may_become(*to))
        .collect();
    let expected = [
        (Phase::Starting, Phase::Recovering),
        (Phase::Starting, Phase::Stopped),
        (Phase::Recovering, Phase::Serving),
        (Phase::Recovering, Phase::Draining),
        (Phase::Recovering, Phase::Stopped),
        (Phase::Serving, Phase::Draining),
        (Phase::Draining, Phase::Stopped),
    ];
    assert_eq!(legal, expected);
    assert!(
        Phase::ALL
            .iter()
            .enumerate()
            .all(|(number, phase)| *phase as usize == number)
    );
}

#[test]
fn an_engine_that_is_gone_is_an_error_with_its_reason() {
    let (sim, node, engine) = world(1);
    let (other, elsewhere, second) = world(2);
    sim.stop(node);
    let (make, _journal) = recorders(Fault::default());
    let error = other.run(elsewhere, 0, async move {
        let _second = second;
        Lifecycle::start_all(&engine, make).await.unwrap_err()
    });
    assert_eq!(error.kind(), LifecycleErrorKind::Unreachable);
    assert_eq!(error.source().unwrap().to_string(), "the shard is gone");
}

#[test]
fn a_thread_of_the_control_layer_drives_real_shards() {
    let engine = Engine::start(EngineConfig::unpinned(2)).unwrap();
    let (make, journal) = recorders(Fault::default());
    let lifecycle = wait_for(Lifecycle::start_all(&engine.handle(), make)).unwrap();
    assert!(lifecycle.readiness().is_ready());
    assert_eq!(wait_for(lifecycle.metrics()).len(), 2);
    wait_for(lifecycle.drain(Duration::from_secs(10))).unwrap();
    let all = vec![0, 1];
    let expected = ["start", "recover", "serve", "drain"].map(|step| (step, all.clone()));
    assert_eq!(steps(&journal), expected);
    engine.shutdown().unwrap();
}
