//! Random work of concurrent clients beside compaction, power cut at any point, reopened, checked;
//! three times over.
//!
//! Fault model (the simulated disk's): unflushed sectors are lost, kept or torn one by one, also of
//! writes in flight; unflushed lengths and names are lost or kept. What must survive: every
//! acknowledged write, unless a later one on its key was acknowledged or in progress. What must not
//! appear: an object that nobody wrote, half a body, a removed object that was acknowledged as gone,
//! a block in two bodies (recovery refuses that), a write that was refused.
//!
//! `UC_SEED` runs one seed.

use std::cell::RefCell;
use std::time::Duration;

use engine::Rng;

use super::*;

const SEEDS: u64 = 120;
const CLIENTS: u64 = 4;
const KEYS: u64 = 6;
const GENERATIONS: u64 = 3;

/// What an operation would leave on its key.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Effect {
    Body { number: u64, len: usize },
    Parts(Vec<(u64, usize)>),
    Gone,
}

impl Effect {
    /// Whether it leaves what was seen; `None` is no object.
    fn is(&self, seen: Option<&[u8]>) -> bool {
        let parts = match self {
            Effect::Gone => return seen.is_none(),
            Effect::Body { number, len } => vec![(*number, *len)],
            Effect::Parts(parts) => parts.clone(),
        };
        let Some(mut rest) = seen else { return false };
        // Lengths first: most effects are told apart by them, and making bytes costs.
        rest.len() == parts.iter().map(|(_, len)| len).sum::<usize>()
            && parts.into_iter().all(|(number, len)| {
                let (part, behind) = rest.split_at(len);
                rest = behind;
                part == bytes(number, len)
            })
    }
}

/// An operation on a key: when it began and, once acknowledged, when it ended.
#[derive(Clone, Debug)]
struct Op {
    key: u64,
    effect: Effect,
    began: u64,
    ended: Option<u64>,
    refused: bool,
}

#[derive(Default)]
struct History {
    clock: u64,
    ops: Vec<Op>,
}

impl History {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn begin(&mut self, key: u64, effect: Effect) -> usize {
        let began = self.tick();
        self.ops.push(Op {
            key,
            effect,
            began,
            ended: None,
            refused: false,
        });
        self.ops.len() - 1
    }

    fn end(&mut self, op: usize, done: bool) {
        let now = self.tick();
        self.ops[op].ended = done.then_some(now);
        self.ops[op].refused = !done;
    }

    /// What a key may hold now: an operation that no acknowledged one certainly followed.
    fn possible(&self, key: u64) -> Vec<Effect> {
        let ops = || self.ops.iter().filter(|op| op.key == key && !op.refused);
        let overtaken = |op: &Op| {
            ops()
                .any(|later| later.ended.is_some() && op.ended.is_some_and(|end| end < later.began))
        };
        let mut found: Vec<Effect> = ops()
            .filter(|op| !overtaken(op))
            .map(|op| op.effect.clone())
            .collect();
        if ops().all(|op| op.ended.is_none()) {
            found.push(Effect::Gone);
        }
        found
    }

    /// After a crash the key holds this, whatever was in progress.
    fn settle(&mut self, key: u64, effect: Effect) {
        self.ops.retain(|op| op.key != key);
        let began = self.tick();
        let ended = Some(self.tick());
        self.ops.push(Op {
            key,
            effect,
            began,
            ended,
            refused: false,
        });
    }
}

fn name(key: u64) -> String {
    format!("key-{key}")
}

/// Errors that a client may see while nothing is broken.
fn is_refusal(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Busy | StoreError::PreconditionFailed | StoreError::NoSuchKey
    )
}

async fn multipart(store: &Partition, at: u64, parts: &[(u64, usize)]) -> Result<(), StoreError> {
    let upload = store
        .upload_create(BUCKET, key(&name(at)), meta(b""), None)
        .await?;
    let of = UploadRef {
        bucket: BUCKET,
        key: key(&name(at)),
        upload,
    };
    let mut listed = Vec::new();
    for (number, (content, len)) in (1..).zip(parts) {
        let data = bytes(*content, *len);
        let body = if *len > INLINE_MAX {
            PartBody::Write(stream(store, &data, true).await?)
        } else {
            PartBody::Small(Some(buf(&data)?))
        };
        let (etag, size) = (tag(&data), *len as u64);
        let part = PartPut {
            number,
            body,
            etag,
            size,
            checksum: None,
            modified_ms: 3,
        };
        store.part_put(of.clone(), part).await?;
        listed.push((number, etag));
    }
    store
        .upload_complete(of, listed, Condition::None, 4)
        .await
        .map(drop)
}

async fn client(store: Partition, history: Rc<RefCell<History>>, mut rng: Rng, id: u64) {
    for round in 0..1_000 {
        let at = rng.below(KEYS);
        let content = id << 32 | round << 8 | rng.below(256);
        let len = match rng.below(4) {
            0 => rng.below(300) as usize,
            1 => rng.below(INLINE_MAX as u64) as usize,
            2 => INLINE_MAX + rng.below(200_000) as usize,
            _ => rng.below(4096) as usize,
        };
        let choice = rng.below(10);
        let effect = match choice {
            0 | 1 => Effect::Gone,
            2 => Effect::Parts(vec![
                (content, 1000 + len),
                (content + 1, 2000),
                (content + 2, len),
            ]),
            _ => Effect::Body {
                number: content,
                len,
            },
        };
        if choice == 9 {
            // Reads what it may: the key's state between the two moments.
            let (before, since) = (history.borrow().possible(at), history.borrow().clock);
            let seen = match get(&store, &name(at)).await {
                Ok(body) => Some(body),
                Err(StoreError::NoSuchKey) => None,
                Err(StoreError::Busy) => continue,
                Err(error) => panic!("{error}"),
            };
            let after = history.borrow().ops.clone();
            let later = after.iter().filter(|op| op.key == at && op.began > since);
            let mut known = before.iter().chain(later.map(|op| &op.effect));
            assert!(
                known.any(|effect| effect.is(seen.as_deref())),
                "key {at}: {before:?}"
            );
            continue;
        }
        let op = history.borrow_mut().begin(at, effect.clone());
        let condition = if rng.below(4) == 0 {
            Condition::IfNoneMatchAny
        } else {
            Condition::None
        };
        let done = match &effect {
            Effect::Gone => store
                .delete(BUCKET, key(&name(at)), Condition::None)
                .await
                .map(drop),
            Effect::Parts(parts) => multipart(&store, at, parts).await,
            Effect::Body { number, len } => {
                put_if(&store, &name(at), &bytes(*number, *len), condition)
                    .await
                    .map(drop)
            }
        };
        if let Err(error) = &done {
            assert!(is_refusal(error), "{error}");
        }
        history.borrow_mut().end(op, done.is_ok());
    }
}

/// Every key holds something that it may hold; that is the history from now on.
async fn check(store: &Partition, history: &RefCell<History>, seed: u64) {
    let listed = names(store).await;
    assert!(
        listed.iter().all(|n| (0..KEYS).any(|k| name(k) == *n)),
        "seed {seed}: {listed:?}"
    );
    for at in 0..KEYS {
        let seen = match get(store, &name(at)).await {
            Ok(body) => Some(body),
            Err(StoreError::NoSuchKey) => None,
            Err(error) => panic!("seed {seed}: key {at}: {error}"),
        };
        assert_eq!(
            seen.is_some(),
            listed.contains(&name(at)),
            "seed {seed}: key {at}"
        );
        let possible = history.borrow().possible(at);
        let found = possible
            .iter()
            .find(|effect| effect.is(seen.as_deref()))
            .cloned();
        let len = seen.map(|body| body.len());
        let found = found
            .unwrap_or_else(|| panic!("seed {seed}: key {at} holds {len:?}, not {possible:?}"));
        history.borrow_mut().settle(at, found);
    }
    audit(store).await;
}

/// Checkpoints and compacts often, so that every run has some of both.
async fn reopen() -> Partition {
    let mut config = StoreConfig {
        checkpoint_log_bytes: 100 << 10,
        ..kept_up()
    };
    config.log.segment_bytes = 256 << 10;
    config.upkeep.live_percent = 80;
    config.upkeep.quiet_after = Duration::from_millis(3);
    open_with(&config).await.unwrap()
}

/// Numbers of checkpoints and of compacted segments.
fn run(seed: u64) -> (u64, u64) {
    let (sim, node) = world(seed);
    let mut rng = Rng::new(seed);
    let history = Rc::new(RefCell::new(History::default()));
    let (mut checkpoints, mut compacted) = (0, 0);
    for generation in 0..GENERATIONS {
        let store = sim.run(node, 0, reopen());
        let (known, seen) = (store.clone(), Rc::clone(&history));
        sim.run(node, 0, async move { check(&known, &seen, seed).await });
        for number in 0..CLIENTS {
            let id = generation * CLIENTS + number + 1;
            let client = client(
                store.clone(),
                Rc::clone(&history),
                Rng::new(rng.next_u64()),
                id,
            );
            sim.spawn(node, 0, client);
        }
        sim.run_for(Duration::from_micros(rng.below(120_000)));
        checkpoints += store.metrics().checkpoints;
        compacted += store.metrics().compacted_segments;
        sim.crash(node);
        drop(store);
        sim.start(node, engine_config(1)).unwrap();
    }
    sim.run(node, 0, async move {
        let store = reopen().await;
        check(&store, &history, seed).await;
        store.close().await.unwrap();
    });
    (checkpoints, compacted)
}

/// Seeds `quarter * SEEDS / 4` on; or the one that the environment names.
fn run_quarter(quarter: u64) {
    if let Some(seed) = std::env::var("UC_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
    {
        run(seed);
        return;
    }
    let seeds = SEEDS / 4;
    let runs = (quarter * seeds..(quarter + 1) * seeds).map(run);
    let (checkpoints, compacted) = runs.fold((0, 0), |sum, run| (sum.0 + run.0, sum.1 + run.1));
    assert!(
        checkpoints > seeds,
        "{checkpoints} checkpoints were written under load"
    );
    assert!(
        compacted > seeds,
        "{compacted} segments were compacted under load"
    );
}

#[test]
fn acknowledged_writes_survive_a_crash_at_any_point() {
    run_quarter(0);
}

#[test]
fn acknowledged_writes_survive_a_crash_at_any_point_second_quarter() {
    run_quarter(1);
}

#[test]
fn acknowledged_writes_survive_a_crash_at_any_point_third_quarter() {
    run_quarter(2);
}

#[test]
fn acknowledged_writes_survive_a_crash_at_any_point_fourth_quarter() {
    run_quarter(3);
}
