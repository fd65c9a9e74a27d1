//! The state machine of the simulation: registers that are set and compared-and-set, kept in one
//! file. Everything it applies is compared with what every other member applied at that index.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, checksum};

use crate::disk::{Disk as _, DiskFile as _};
use crate::machine::{Command, Standing, StateMachine};
use crate::sim::broken::Breakage;
use crate::sim::cluster::{self, Members};
use crate::sim::disk::SimDisk;
use crate::transport::SnapshotChunks;
use crate::types::NodeId;
use crate::wal::lock;

const FILE: &str = "state";
const NEXT: &str = "state.next";

/// An operation on a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Write {
    Set { key: u8, to: u32 },
    Swap { key: u8, from: u32, to: u32 },
}

impl Write {
    pub(crate) fn key(self) -> u8 {
        match self {
            Self::Set { key, .. } | Self::Swap { key, .. } => key,
        }
    }

    pub(crate) fn to(self) -> u32 {
        match self {
            Self::Set { to, .. } | Self::Swap { to, .. } => to,
        }
    }

    pub(crate) fn encode(self) -> Bytes {
        let mut bytes = BytesMut::new();
        match self {
            Self::Set { key, to } => {
                bytes.put_u8(0);
                bytes.put_u8(key);
                bytes.put_u32(0);
                bytes.put_u32(to);
            }
            Self::Swap { key, from, to } => {
                bytes.put_u8(1);
                bytes.put_u8(key);
                bytes.put_u32(from);
                bytes.put_u32(to);
            }
        }
        bytes.freeze()
    }

    fn decode(mut bytes: Bytes) -> Self {
        let (kind, key) = (bytes.get_u8(), bytes.get_u8());
        let (from, to) = (bytes.get_u32(), bytes.get_u32());
        match kind {
            0 => Self::Set { key, to },
            _ => Self::Swap { key, from, to },
        }
    }
}

/// What every member applied, by index.
pub(crate) type Ledger = Arc<Mutex<BTreeMap<u64, Bytes>>>;

/// Members that replicate registers, and nothing else.
#[derive(Debug, Default)]
pub(crate) struct Plain {
    ledger: Ledger,
    pub(crate) breakage: Option<Breakage>,
}

impl Plain {
    /// Of which something may be broken.
    pub(crate) fn with(breakage: Option<Breakage>) -> Self {
        Self {
            breakage,
            ..Self::default()
        }
    }
}

impl Members for Plain {
    type Machine = Machine;

    fn open(&self, id: NodeId, state: SimDisk) -> io::Result<Machine> {
        let mut machine = Machine::open(state, self.ledger.clone())?;
        machine.forgets = id == 1 && self.breakage == Some(Breakage::Command);
        Ok(machine)
    }
}

pub(crate) type World = cluster::World<Plain>;
pub(crate) type SimNode = cluster::SimNode<Plain>;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Registers {
    values: BTreeMap<u8, u32>,
    standing: Standing,
}

impl Registers {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for part in [&self.standing.applied, &self.standing.membership] {
            bytes.put_u32(part.len() as u32);
            bytes.put_slice(part);
        }
        for (key, value) in &self.values {
            bytes.put_u8(*key);
            bytes.put_u32(*value);
        }
        let sum = checksum(CrcAlgorithm::Crc32Iscsi, &bytes) as u32;
        bytes.put_u32(sum);
        bytes
    }

    fn decode(bytes: &[u8]) -> io::Result<Self> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the registers are damaged");
        let at = bytes.len().checked_sub(4).ok_or_else(damaged)?;
        let (mut bytes, mut sum) = bytes.split_at(at);
        if checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32 != sum.get_u32() {
            return Err(damaged());
        }
        let mut part = || {
            let len = bytes.get_u32() as usize;
            let part = bytes[..len].to_vec();
            bytes.advance(len);
            part
        };
        let standing = Standing {
            applied: part(),
            membership: part(),
        };
        let mut values = BTreeMap::new();
        while bytes.has_remaining() {
            let key = bytes.get_u8();
            values.insert(key, bytes.get_u32());
        }
        Ok(Self { values, standing })
    }
}

/// Reads the registers of one member.
#[derive(Debug, Clone)]
pub(crate) struct Reader(Arc<Mutex<BTreeMap<u8, u32>>>);

impl Reader {
    pub(crate) fn get(&self, key: u8) -> u32 {
        lock(&self.0).get(&key).copied().unwrap_or(0)
    }

    pub(crate) fn all(&self) -> BTreeMap<u8, u32> {
        lock(&self.0).clone()
    }
}

/// A member's registers.
#[derive(Debug)]
pub(crate) struct Machine {
    disk: SimDisk,
    registers: Registers,
    reader: Reader,
    ledger: Ledger,
    /// Whether it answers some commands without applying them.
    forgets: bool,
}

impl Machine {
    pub(crate) fn open(disk: SimDisk, ledger: Ledger) -> io::Result<Self> {
        let registers = match disk.open(FILE) {
            Ok(file) => {
                let mut bytes = vec![0; file.size()? as usize];
                file.read_at(0, &mut bytes)?;
                Registers::decode(&bytes)?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Registers::default(),
            Err(error) => return Err(error),
        };
        let reader = Reader(Arc::new(Mutex::new(registers.values.clone())));
        Ok(Self {
            disk,
            registers,
            reader,
            ledger,
            forgets: false,
        })
    }

    fn save(&self) -> io::Result<()> {
        let file = self.disk.create(NEXT)?;
        file.write_at(0, &self.registers.encode())?;
        file.sync()?;
        self.disk.rename(NEXT, FILE)?;
        self.disk.sync()
    }

    fn apply_one(&mut self, command: &Command) -> bool {
        let before = lock(&self.ledger).insert(command.index, command.bytes.clone());
        if let Some(before) = before {
            assert_eq!(
                before, command.bytes,
                "two commands were applied at {}",
                command.index
            );
        }
        match Write::decode(command.bytes.clone()) {
            Write::Set { .. } if self.forgets && command.index.is_multiple_of(8) => true,
            Write::Set { key, to } => {
                self.registers.values.insert(key, to);
                true
            }
            Write::Swap { key, from, to } => {
                let value = self.registers.values.entry(key).or_insert(0);
                let same = *value == from;
                if same {
                    *value = to;
                }
                same
            }
        }
    }

    fn publish(&self) {
        *lock(&self.reader.0) = self.registers.values.clone();
    }
}

impl StateMachine for Machine {
    type Outcome = bool;
    type Reader = Reader;

    fn reader(&self) -> Reader {
        self.reader.clone()
    }

    fn standing(&self) -> io::Result<Standing> {
        Ok(self.registers.standing.clone())
    }

    fn apply(
        &mut self,
        commands: &[Command],
        standing: &Standing,
        durable: bool,
    ) -> io::Result<Vec<bool>> {
        let outcomes = commands
            .iter()
            .map(|command| self.apply_one(command))
            .collect();
        self.registers.standing = standing.clone();
        if durable {
            self.save()?;
        }
        self.publish();
        Ok(outcomes)
    }

    fn snapshot(&mut self) -> io::Result<SnapshotChunks> {
        self.save()?;
        let bytes = Bytes::from(self.registers.encode());
        let chunks: Vec<_> = (0..bytes.len())
            .step_by(40)
            .map(|at| Ok(bytes.slice(at..(at + 40).min(bytes.len()))))
            .collect();
        Ok(Box::new(chunks.into_iter()))
    }

    fn restore(&mut self, chunks: SnapshotChunks, standing: &Standing) -> io::Result<()> {
        let mut bytes = Vec::new();
        for chunk in chunks {
            bytes.extend_from_slice(&chunk?);
        }
        let registers = Registers::decode(&bytes)?;
        assert_eq!(
            registers.standing.applied, standing.applied,
            "a snapshot says where it is"
        );
        self.registers = registers;
        self.save()?;
        self.publish();
        Ok(())
    }
}
