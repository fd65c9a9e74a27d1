//! The law: whatever states are asked for, and wherever a process dies or a write fails on the way, every
//! state between two writes is one that the program can forward by, and the last state is reached.
//!
//! May fail: any write; the process between any two writes, with all that it knew. Must survive: what
//! was written. Checked after each write: see [`Fake::check`].

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::desired::tests::{backend, vip};
use crate::desired::{Prefix, Proto, Sources};

/// Tables that check themselves, and fail when told so.
#[derive(Debug, Default)]
struct Fake {
    /// Holds what was written; its rings' origins are not known to it.
    mirror: Mirror,
    rings: BTreeMap<u16, Vec<RingLine>>,
    /// Writes that succeed before one fails.
    until_failure: Option<u32>,
    writes: u64,
}

impl Fake {
    fn write(&mut self) -> Result<()> {
        self.writes += 1;
        match &mut self.until_failure {
            Some(0) => {
                self.until_failure = None;
                Err(Error::new(ErrorKind::Kernel, "told to fail"))
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// What another process would read back.
    fn read(&self) -> Mirror {
        let mut mirror = Mirror {
            rings: BTreeMap::new(),
            ..self.mirror.clone()
        };
        mirror.index();
        mirror
    }

    /// Whoever is led to a VIP finds it live, with a ring as long as it says, of its own live backends.
    fn check(&self) {
        let keys = self.mirror.keys.values().copied();
        let prefixes = self.mirror.prefixes.values().map(|vip| vip.slot);
        for slot in keys.chain(prefixes) {
            assert!(self.mirror.is_live(slot), "slot {slot} is dead");
            let len = self.mirror.vips[&slot].ring_len as usize;
            let ids = self.ring(slot);
            assert!(len > 0 && len <= ids.len(), "slot {slot}: {len} slots");
            for id in ids[..len].iter().filter(|id| **id != 0) {
                let real = &self.mirror.reals[id];
                assert_eq!(real.vip, u32::from(slot), "backend {id}");
                assert_ne!(real.flags & real_flags::ALIVE, 0, "backend {id}");
            }
        }
    }

    fn ring(&self, slot: u16) -> Vec<u16> {
        let lines = &self.rings[&slot];
        lines.iter().flat_map(|line| line.reals).collect()
    }
}

impl Tables for Fake {
    type Ring = Vec<RingLine>;

    fn set_real(&mut self, id: u16, real: &Real) -> Result<()> {
        self.write()?;
        let old = self.mirror.reals.insert(id, *real).unwrap_or_default();
        let reused = crate::tables::is_used(&old) && old.addr != real.addr;
        assert!(
            !reused || !crate::tables::is_used(real),
            "backend {id} became another without being freed"
        );
        assert!(real.generation >= old.generation);
        self.check();
        Ok(())
    }

    fn new_ring(&mut self, lines: u32) -> Result<Vec<RingLine>> {
        self.write()?;
        Ok(vec![RingLine::default(); lines as usize])
    }

    fn write_ring(&mut self, ring: &mut Vec<RingLine>, at: u32, lines: &[RingLine]) {
        ring[at as usize..][..lines.len()].copy_from_slice(lines);
    }

    fn swap_ring(&mut self, slot: u16, ring: Vec<RingLine>) -> Result<()> {
        self.write()?;
        self.rings.insert(slot, ring);
        self.check();
        Ok(())
    }

    fn set_vip(&mut self, slot: u16, vip: &Entry) -> Result<()> {
        self.write()?;
        self.mirror.vips.insert(slot, *vip);
        self.check();
        Ok(())
    }

    fn set_key(&mut self, key: &VipKey, slot: Option<u16>) -> Result<()> {
        self.write()?;
        match slot {
            Some(slot) => self.mirror.keys.insert(*key, slot),
            None => self.mirror.keys.remove(key),
        };
        self.check();
        Ok(())
    }

    fn set_prefix(&mut self, at: &PrefixAt, vip: Option<PrefixVip>) -> Result<()> {
        self.write()?;
        match vip {
            Some(vip) => self.mirror.prefixes.insert(*at, vip),
            None => self.mirror.prefixes.remove(at),
        };
        self.check();
        Ok(())
    }

    fn set_source(&mut self, at: &SourceAt, action: Option<u32>) -> Result<()> {
        self.write()?;
        match action {
            Some(action) => self.mirror.sources.insert(*at, action),
            None => self.mirror.sources.remove(at),
        };
        Ok(())
    }

    fn set_quic(&mut self, key: &QuicKey, id: Option<u16>) -> Result<()> {
        self.write()?;
        match id {
            Some(id) => self.mirror.quic.insert(*key, id),
            None => self.mirror.quic.remove(key),
        };
        Ok(())
    }
}

fn desired(vips: Vec<Vip>) -> Desired {
    Desired {
        generation: 1,
        vips,
    }
}

fn apply(fake: &mut Fake, mirror: &mut Mirror, vips: Vec<Vip>) {
    let apply = Apply::new(desired(vips), mirror).unwrap();
    apply.finish(mirror, fake).unwrap();
}

/// What the tables say, in the words of what was asked for.
fn assert_reached(fake: &Fake, vips: &[Vip]) {
    let mut keys = 0;
    let mut reals = 0;
    let mut sources = 0;
    for vip in vips {
        let (own, prefix) = keys_of(vip);
        keys += own.len() + usize::from(prefix.is_some());
        let slot = slot_of(vip, &fake.mirror).expect("it is led to");
        assert!(own.iter().all(|key| fake.mirror.keys[key] == slot));
        let len = fake.mirror.vips[&slot].ring_len as usize;
        let addrs = fake.ring(slot)[..len]
            .iter()
            .filter(|id| **id != 0)
            .map(|id| fake.mirror.reals[id].addr)
            .collect::<BTreeSet<_>>();
        let up = vip
            .backends
            .iter()
            .filter(|backend| backend.state == BackendState::Up);
        let wanted = up.map(|backend| mapped(backend.addr)).collect();
        assert_eq!(addrs, wanted);
        assert_eq!(fake.mirror.sources_of(slot), rules(slot, vip));
        reals += vip.backends.len();
        sources += vip.sources.allow.len() + vip.sources.deny.len();
    }
    assert_eq!(fake.mirror.keys.len() + fake.mirror.prefixes.len(), keys);
    assert_eq!(fake.read().names.len(), reals);
    assert_eq!(fake.mirror.sources.len(), sources);
    assert_eq!(fake.mirror.slots().len(), vips.len());
}

#[test]
fn the_same_state_again_writes_nothing() {
    let mut fake = Fake::default();
    let mut mirror = Mirror::default();
    let state = vec![vip("192.0.2.1", 80, &["10.0.0.1", "10.0.0.2"])];
    apply(&mut fake, &mut mirror, state.clone());
    assert_reached(&fake, &state);
    let writes = fake.writes;
    apply(&mut fake, &mut mirror, state);
    assert_eq!(fake.writes, writes);
}

#[test]
fn a_backend_keeps_its_identifier_and_a_new_one_gets_another_generation() {
    let mut fake = Fake::default();
    let mut mirror = Mirror::default();
    let id = |fake: &Fake, addr: &str| {
        let addr = mapped(addr.parse::<IpAddr>().unwrap());
        let mut reals = fake.mirror.reals.iter();
        let found = reals.find(|(_, real)| real.addr == addr);
        found.map(|(id, real)| (*id, real.generation)).unwrap()
    };
    apply(
        &mut fake,
        &mut mirror,
        vec![vip("192.0.2.1", 80, &["10.0.0.1", "10.0.0.2"])],
    );
    let (one, two) = (id(&fake, "10.0.0.1"), id(&fake, "10.0.0.2"));
    apply(
        &mut fake,
        &mut mirror,
        vec![vip("192.0.2.1", 80, &["10.0.0.3", "10.0.0.2"])],
    );
    assert_eq!(id(&fake, "10.0.0.2"), two);
    apply(
        &mut fake,
        &mut mirror,
        vec![vip("192.0.2.1", 80, &["10.0.0.2", "10.0.0.4"])],
    );
    assert_eq!(id(&fake, "10.0.0.4"), (one.0, one.1 + 1));
}

#[test]
fn no_part_is_much_longer_than_its_budget() {
    let mut fake = Fake::default();
    let mut mirror = Mirror::default();
    let backends: Vec<String> = (0..100).map(|at| format!("10.0.0.{at}")).collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    let mut large = vip("192.0.2.1", 80, &backends);
    large.ring = crate::desired::RingSize::Large;
    let mut apply = Apply::new(desired(vec![large.clone()]), &mirror).unwrap();
    let mut parts = 1;
    while !apply.advance(&mut mirror, &mut fake, SLICE).unwrap() {
        parts += 1;
    }
    assert_reached(&fake, &[large]);
    // Coupon collecting: 65,537 slots take about ln(65,537) = 11 probes each.
    assert!((20..60).contains(&parts), "{parts} parts");
}

fn backends() -> impl Strategy<Value = Vec<Backend>> {
    let state = prop::sample::select(vec![
        BackendState::Up,
        BackendState::Up,
        BackendState::Draining,
        BackendState::Down,
    ]);
    let one = (0_u8..6, 1_u32..4, state);
    prop::collection::btree_map(0_u8..6, one, 0..5).prop_map(|all| {
        let all = all.into_iter();
        all.map(|(at, (_, weight, state))| Backend {
            weight,
            state,
            ..backend(&format!("10.0.0.{at}"))
        })
        .collect()
    })
}

fn a_vip() -> impl Strategy<Value = Vip> {
    let algorithm = prop::sample::select(vec![
        Algorithm::FiveTuple,
        Algorithm::RoundRobin,
        Algorithm::LeastFlows,
    ]);
    let fragments = prop::sample::select(vec![Fragments::Pass, Fragments::Forward]);
    let denied = prop::collection::btree_set(0_u8..4, 0..3);
    (backends(), algorithm, fragments, denied, any::<bool>()).prop_map(
        |(backends, algorithm, fragments, denied, tcp)| {
            let prefix = |at| Prefix {
                addr: format!("172.16.{at}.0").parse().unwrap(),
                len: 24,
            };
            Vip {
                algorithm,
                fragments,
                proto: if tcp { Proto::Tcp } else { Proto::Udp },
                sources: Sources {
                    deny: denied.into_iter().map(prefix).collect(),
                    ..Sources::default()
                },
                backends,
                ..vip("192.0.2.1", 80, &[])
            }
        },
    )
}

/// A few addresses and a prefix, each at most once.
fn state() -> impl Strategy<Value = Vec<Vip>> {
    prop::collection::btree_map(0_u8..4, a_vip(), 0..4).prop_map(|vips| {
        let place = |at: u8| {
            let addr: IpAddr = format!("192.0.2.{at}").parse().unwrap();
            match at {
                0 => VipAt::Prefix(Prefix { addr, len: 24 }, None),
                _ => VipAt::Port(addr, 80),
            }
        };
        let vips = vips.into_iter().map(|(at, vip)| Vip {
            at: place(at),
            fragments: if at == 0 {
                Fragments::Pass
            } else {
                vip.fragments
            },
            ..vip
        });
        vips.collect()
    })
}

/// How a state's way into the tables is disturbed.
#[derive(Clone, Debug)]
enum Fault {
    None,
    /// The process dies after so many parts.
    Death(usize),
    /// A write fails, and the same state goes on.
    Failure(u32),
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::None),
        (0_usize..40).prop_map(Fault::Death),
        (0_u32..20).prop_map(Fault::Failure),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn any_states_with_any_faults_end_as_the_last_one(
        states in prop::collection::vec((state(), fault()), 1..6),
        last in state(),
        budget in 1_u32..4000,
    ) {
        let mut fake = Fake::default();
        let mut mirror = Mirror::default();
        for (state, fault) in states {
            let mut apply = Apply::new(desired(state), &mirror).unwrap();
            let mut parts = 0;
            if let Fault::Failure(writes) = fault {
                fake.until_failure = Some(writes);
            }
            loop {
                match apply.advance(&mut mirror, &mut fake, budget) {
                    Ok(true) => break,
                    Ok(false) => parts += 1,
                    Err(error) => prop_assert_eq!(error.kind, ErrorKind::Kernel),
                }
                if matches!(fault, Fault::Death(after) if parts >= after) {
                    break;
                }
            }
            fake.until_failure = None;
            if matches!(fault, Fault::Death(_)) {
                mirror = fake.read();
            }
            let rings = std::mem::take(&mut mirror.rings);
            prop_assert_eq!(&mirror, &fake.read());
            mirror.rings = rings;
        }
        apply(&mut fake, &mut mirror, last.clone());
        assert_reached(&fake, &last);
    }
}
