//! A model of the program's tables: it holds what was written, fails when told so, and is read back as another
//! process reads the kernel's.

use std::collections::BTreeMap;

use fiberlb::desired::{BackendState, Desired, VipAt, mapped};
use fiberlb::tables::{Mirror, PrefixAt, SourceAt, Tables};
use fiberlb_abi::{Addr, PrefixVip, QuicKey, Real, RingLine, Vip, VipKey, real_flags, vip_flags};

#[derive(Debug, Default)]
pub struct Fake {
    written: Mirror,
    rings: BTreeMap<u16, Vec<RingLine>>,
    /// Writes that succeed before one fails.
    pub until_failure: Option<u32>,
}

impl Fake {
    fn write(&mut self) -> fiberlb::Result<()> {
        match &mut self.until_failure {
            Some(0) => {
                self.until_failure = None;
                // An error of that crate; which one does not matter.
                let twice = vec![super::web(1, |_| {}); 2];
                let vips = twice
                    .iter()
                    .map(|b| crate::spec::vip_of(&b.listeners[0], &b.pools[0]));
                let vips = vips.collect();
                Err(Desired {
                    generation: 1,
                    vips,
                }
                .check()
                .unwrap_err())
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// What another process reads back: no ring's origin.
    pub fn read(&self) -> Mirror {
        let used = self
            .written
            .reals
            .iter()
            .filter(|(_, real)| real.addr != Addr::default());
        Mirror {
            rings: BTreeMap::new(),
            names: used
                .map(|(id, real)| ((real.vip, real.addr, real.port), *id))
                .collect(),
            ..self.written.clone()
        }
    }

    /// Whoever is led to a VIP finds it live, with a ring of its own live backends.
    pub fn check(&self) {
        for slot in self.written.keys.values() {
            let vip = &self.written.vips[slot];
            assert_ne!(vip.flags & vip_flags::LIVE, 0, "slot {slot} is dead");
            for id in self.ring(*slot, vip.ring_len).filter(|id| *id != 0) {
                let real = &self.written.reals[&id];
                assert_eq!(real.vip, u32::from(*slot), "backend {id}");
                assert_ne!(real.flags & real_flags::ALIVE, 0, "backend {id}");
            }
        }
    }

    fn ring(&self, slot: u16, len: u32) -> impl Iterator<Item = u16> {
        let lines = &self.rings[&slot];
        lines.iter().flat_map(|line| line.reals).take(len as usize)
    }

    /// Whether the tables say what is desired, and nothing else.
    pub fn assert_reached(&self, desired: &Desired) {
        assert_eq!(self.written.keys.len(), desired.vips.len(), "VIPs");
        let reals: usize = desired.vips.iter().map(|vip| vip.backends.len()).sum();
        assert_eq!(self.read().names.len(), reals, "backends");
        for vip in &desired.vips {
            let VipAt::Port(addr, port) = vip.at else {
                panic!("the simulation has addresses alone");
            };
            let key = VipKey {
                addr: mapped(addr),
                port: port.to_be(),
                proto: vip.proto.number(),
            };
            let slot = self.written.keys[&key];
            let mut in_ring: Vec<Addr> = self
                .ring(slot, self.written.vips[&slot].ring_len)
                .filter(|id| *id != 0)
                .map(|id| self.written.reals[&id].addr)
                .collect();
            in_ring.sort_unstable();
            in_ring.dedup();
            let up = vip.backends.iter().filter(|b| b.state == BackendState::Up);
            let mut wanted: Vec<Addr> = up.map(|b| mapped(b.addr)).collect();
            wanted.sort_unstable();
            assert_eq!(in_ring, wanted, "the ring of {addr} port {port}");
            for backend in &vip.backends {
                let name = (
                    u32::from(slot),
                    mapped(backend.addr),
                    backend.port.unwrap_or(0).to_be(),
                );
                let real = self.written.reals[&self.read().names[&name]];
                let flags = match backend.state {
                    BackendState::Up => real_flags::ALIVE,
                    BackendState::Draining => real_flags::ALIVE | real_flags::DRAINING,
                    BackendState::Down => 0,
                };
                assert_eq!((real.flags, real.weight), (flags, backend.weight));
                assert_eq!(real.hop, backend.hop.unwrap_or_default());
            }
        }
    }
}

fn set<K: Ord + Copy, V>(map: &mut BTreeMap<K, V>, key: &K, value: Option<V>) {
    match value {
        Some(value) => map.insert(*key, value),
        None => map.remove(key),
    };
}

impl Tables for Fake {
    type Ring = Vec<RingLine>;

    fn set_real(&mut self, id: u16, real: &Real) -> fiberlb::Result<()> {
        self.write()?;
        self.written.reals.insert(id, *real);
        self.check();
        Ok(())
    }

    fn new_ring(&mut self, lines: u32) -> fiberlb::Result<Vec<RingLine>> {
        self.write()?;
        Ok(vec![RingLine::default(); lines as usize])
    }

    fn write_ring(&mut self, ring: &mut Vec<RingLine>, at: u32, lines: &[RingLine]) {
        ring[at as usize..][..lines.len()].copy_from_slice(lines);
    }

    fn swap_ring(&mut self, slot: u16, ring: Vec<RingLine>) -> fiberlb::Result<()> {
        self.write()?;
        self.rings.insert(slot, ring);
        self.check();
        Ok(())
    }

    fn set_vip(&mut self, slot: u16, vip: &Vip) -> fiberlb::Result<()> {
        self.write()?;
        self.written.vips.insert(slot, *vip);
        self.check();
        Ok(())
    }

    fn set_key(&mut self, key: &VipKey, slot: Option<u16>) -> fiberlb::Result<()> {
        self.write()?;
        set(&mut self.written.keys, key, slot);
        self.check();
        Ok(())
    }

    fn set_prefix(&mut self, at: &PrefixAt, vip: Option<PrefixVip>) -> fiberlb::Result<()> {
        self.write()?;
        set(&mut self.written.prefixes, at, vip);
        Ok(())
    }

    fn set_source(&mut self, at: &SourceAt, action: Option<u32>) -> fiberlb::Result<()> {
        self.write()?;
        set(&mut self.written.sources, at, action);
        Ok(())
    }

    fn set_quic(&mut self, key: &QuicKey, id: Option<u16>) -> fiberlb::Result<()> {
        self.write()?;
        set(&mut self.written.quic, key, id);
        Ok(())
    }
}
