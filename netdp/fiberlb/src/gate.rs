//! The gate before new flows, as user space feeds it: keys of cookies, the rate that closes it, and what the
//! program answered.

use std::io;

use aya::Ebpf;
use aya::maps::{Array, MapData, PerCpuArray};
use fiberlb_abi::{AnswerRules, AnswerStats, map};

use crate::error::Result;
use crate::kernel::{KernelTables, failed, failed_io, take, zero};

/// Senders that are told a second and CPU that a packet was too big.
const TELLINGS_PER_S: u32 = 1000;

/// The maps of all gates.
pub(crate) struct Gates {
    rules: Array<MapData, AnswerRules>,
    stats: PerCpuArray<MapData, AnswerStats>,
}

impl Gates {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            rules: take(ebpf, map::ANSWER_RULES)?,
            stats: take(ebpf, map::ANSWER_STATS)?,
        })
    }

    /// Forgets what was answered for a slot, which is another VIP's from now on.
    pub(crate) fn zero(&mut self, slot: u16) -> Result<()> {
        zero(&mut self.stats, slot)
    }

    fn rules(&self) -> Result<AnswerRules> {
        let read = self.rules.get(&0, 0);
        read.map_err(failed("cannot read the rules of gates"))
    }

    fn set_rules(&mut self, rules: &AnswerRules) -> Result<()> {
        let done = self.rules.set(0, rules, 0);
        done.map_err(failed("cannot write the rules of gates"))
    }
}

impl KernelTables {
    /// What all gates share.
    ///
    /// # Errors
    ///
    /// [`crate::ErrorKind::Kernel`].
    pub fn answer_rules(&self) -> Result<AnswerRules> {
        self.gates.rules()
    }

    /// Closes a VIP's gate when more than `syns_per_s` SYNs of new flows come
    /// to one CPU, of which a tenth of a second's may come at once. 0 is never.
    ///
    /// # Errors
    ///
    /// As [`KernelTables::answer_rules`].
    pub fn set_gate_rate(&mut self, syns_per_s: u32) -> Result<()> {
        let rules = AnswerRules {
            syn_cost_ns: 1_000_000_000_u64
                .checked_div(u64::from(syns_per_s))
                .unwrap_or(0),
            syn_burst_ns: 100_000_000,
            ..self.gates.rules()?
        };
        self.gates.set_rules(&rules)
    }

    /// Tells at most `per_s` senders a second and CPU that a packet was too big, of which a tenth of a
    /// second's may come at once. 0 tells nobody.
    ///
    /// # Errors
    ///
    /// As [`KernelTables::answer_rules`].
    pub fn set_tell_rate(&mut self, per_s: u32) -> Result<()> {
        let cost = 1_000_000_000_u64.checked_div(u64::from(per_s));
        let rules = AnswerRules {
            tell_cost_ns: cost.unwrap_or(u64::MAX),
            tell_burst_ns: 100_000_000,
            ..self.gates.rules()?
        };
        self.gates.set_rules(&rules)
    }

    /// Makes cookies with a new key. Those of the key before are taken until the next call.
    ///
    /// # Errors
    ///
    /// As [`KernelTables::answer_rules`], and when the kernel has no random bytes.
    pub fn rotate_cookie_key(&mut self) -> Result<()> {
        let rules = self.gates.rules()?;
        let key = random_key().map_err(failed_io("cannot make a key for cookies"))?;
        self.gates.set_rules(&AnswerRules {
            keys: [key, rules.keys[0]],
            ..rules
        })
    }

    /// Makes the first rules, with keys, unless there are some.
    pub(crate) fn fill_rules(&mut self) -> Result<()> {
        let [new, old] = self.gates.rules()?.keys;
        if new == [0; 2] || old == [0; 2] {
            self.rotate_cookie_key()?;
            self.rotate_cookie_key()?;
            self.set_tell_rate(TELLINGS_PER_S)?;
        }
        Ok(())
    }

    /// What the program answered itself for a VIP, summed over CPUs.
    ///
    /// # Errors
    ///
    /// As [`KernelTables::answer_rules`].
    pub fn answer_stats(&self, slot: u16) -> Result<AnswerStats> {
        let values = self.gates.stats.get(&u32::from(slot), 0);
        let values = values.map_err(failed("cannot read a VIP's counters of answers"))?;
        Ok(values
            .iter()
            .fold(AnswerStats::default(), |sum, cpu| AnswerStats {
                cookies_sent: sum.cookies_sent + cpu.cookies_sent,
                cookies_proved: sum.cookies_proved + cpu.cookies_proved,
                cookies_wrong: sum.cookies_wrong + cpu.cookies_wrong,
                too_big_told: sum.too_big_told + cpu.too_big_told,
                too_big_dropped: sum.too_big_dropped + cpu.too_big_dropped,
            }))
    }
}

fn random_key() -> io::Result<[u64; 2]> {
    let mut bytes = [0_u8; 16];
    // SAFETY: the kernel writes at most as many bytes as there are.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    match usize::try_from(got) {
        Err(_) => return Err(io::Error::last_os_error()),
        // Up to 256 bytes come whole, once there are any.
        Ok(got) => assert_eq!(
            got,
            bytes.len(),
            "the kernel gives small numbers of bytes whole"
        ),
    }
    let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|byte| bytes[at + byte]));
    Ok([word(0), word(8)])
}
