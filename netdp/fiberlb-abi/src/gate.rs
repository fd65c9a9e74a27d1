//! The gate before new flows of TCP: cookies that a source has to send back, and when they are asked for.
//!
//! A cookie is the acknowledgement number of an answer to a SYN. Who gets it and never sent a byte with that
//! number resets, and the reset's sequence number is the cookie (RFC 9293, section 3.10.7.3).

use crate::{Addr, Bucket, FlowKey, layout};

/// A cookie holds in its own period and in the next one: 2^36 ns, 69 s.
const PERIOD_SHIFT: u32 = 36;
/// Nanoseconds of [`crate::Flow::tick`].
const TICK_SHIFT: u32 = 30;
/// For how many ticks a source is taken for proved: 300 of them are 322 s.
const PROVED_TICKS: u32 = 300;
/// How long a gate stays closed after the last SYN too many: 2^32 ns, 4 s.
const CLOSED_NS: u64 = 1 << 32;
/// Sources that are remembered as proved.
pub const PROVED_MAX: u32 = 1 << 16;

/// Rules of what the program answers itself; one entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct AnswerRules {
    /// Keys of cookies: the one that makes them, and the one before it, which is still taken.
    pub keys: [[u64; 2]; 2],
    /// A SYN costs a gate so many nanoseconds of credit; 0 never closes one.
    pub syn_cost_ns: u64,
    /// The most credit that a gate saves up, in nanoseconds.
    pub syn_burst_ns: u64,
    /// Telling a sender that a packet is too big costs a CPU so many nanoseconds of credit.
    pub tell_cost_ns: u64,
    /// The most credit for it that a CPU saves up, in nanoseconds.
    pub tell_burst_ns: u64,
}
layout!(AnswerRules, 64);

/// The gate of one VIP on one CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Gate {
    /// What SYNs cost; those of sources that proved themselves only while the gate is open.
    pub bucket: Bucket,
    /// It is closed until then, by the monotonic clock.
    pub closed_until_ns: u64,
}
layout!(Gate, 24);

impl Gate {
    /// Notes a SYN; whether its source has to prove itself. `full` is that there is no
    /// room for the flow anyhow.
    #[inline(always)]
    pub fn asks(&mut self, now_ns: u64, rules: &AnswerRules, full: bool) -> bool {
        let (cost, burst) = (rules.syn_cost_ns, rules.syn_burst_ns);
        let too_many = cost != 0 && !self.bucket.spend(now_ns, cost, burst);
        if too_many || full {
            self.closed_until_ns = now_ns.wrapping_add(CLOSED_NS);
        }
        self.is_closed(now_ns)
    }

    /// Whether sources have to prove themselves now.
    #[inline(always)]
    pub fn is_closed(&self, now_ns: u64) -> bool {
        now_ns < self.closed_until_ns
    }
}

/// The period of cookies that are made now.
#[inline(always)]
pub fn cookie_period(now_ns: u64) -> u32 {
    (now_ns >> PERIOD_SHIFT) as u32
}

/// Whether a cookie is one for a packet's addresses and ports. Cookies are compared as they are in packets.
#[inline(always)]
pub fn is_cookie(cookie: u32, rules: &AnswerRules, packet: &FlowKey, period: u32) -> bool {
    // A loop that stays one: unrolled, its words would not fit the program's stack.
    let mut turn = 0;
    while turn < 4 {
        let key = &rules.keys[turn & 1];
        if cookie == self::cookie(key, packet, period.wrapping_sub(turn as u32 >> 1)) {
            return true;
        }
        turn += 1;
    }
    false
}

/// The cookie for a SYN: SipHash-2-4 of its addresses, ports and the period, cut to 32 bits.
#[inline(always)]
pub fn cookie(key: &[u64; 2], packet: &FlowKey, period: u32) -> u32 {
    let pair = |high: u32, low: u32| (u64::from(high) << 32) | u64::from(low);
    let (src, dst) = (&packet.src.words, &packet.dst.words);
    let ports = (u32::from(packet.sport) << 16) | u32::from(packet.dport);
    let mut state = Sip::new(key);
    state.word(pair(src[0], src[1]));
    state.word(pair(src[2], src[3]));
    state.word(pair(dst[0], dst[1]));
    state.word(pair(dst[2], dst[3]));
    state.word(pair(ports, period));
    state.finish(5) as u32
}

/// SipHash-2-4 of whole words (Aumasson and Bernstein, 2012).
struct Sip([u64; 4]);

impl Sip {
    #[inline(always)]
    fn new([k0, k1]: &[u64; 2]) -> Self {
        Self([
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ])
    }

    #[inline(always)]
    fn round(&mut self) {
        let [a, b, c, d] = &mut self.0;
        *a = a.wrapping_add(*b);
        *b = b.rotate_left(13) ^ *a;
        *a = a.rotate_left(32);
        *c = c.wrapping_add(*d);
        *d = d.rotate_left(16) ^ *c;
        *a = a.wrapping_add(*d);
        *d = d.rotate_left(21) ^ *a;
        *c = c.wrapping_add(*b);
        *b = b.rotate_left(17) ^ *c;
        *c = c.rotate_left(32);
    }

    #[inline(always)]
    fn word(&mut self, word: u64) {
        self.0[3] ^= word;
        self.round();
        self.round();
        self.0[0] ^= word;
    }

    #[inline(always)]
    fn finish(mut self, words: u64) -> u64 {
        self.word((words * 8) << 56);
        self.0[2] ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.round();
        self.0[0] ^ self.0[1] ^ self.0[2] ^ self.0[3]
    }
}

/// Under what a source is remembered as proved: IPv4's address, of IPv6 the first 64 bits, as who has
/// one address of these has them all.
#[inline(always)]
pub fn proved_as(src: &Addr) -> Addr {
    if src.is_v4() {
        return *src;
    }
    Addr {
        words: [src.words[0], src.words[1], 0, 0],
    }
}

/// The time that is noted of a proof.
#[inline(always)]
pub fn proved_tick(now_ns: u64) -> u32 {
    (now_ns >> TICK_SHIFT) as u32
}

/// Whether a source that proved itself at a time is still taken for proved.
#[inline(always)]
pub fn is_proved(at_tick: u32, now_ns: u64) -> bool {
    proved_tick(now_ns).wrapping_sub(at_tick) < PROVED_TICKS
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

    fn packet() -> FlowKey {
        FlowKey {
            src: Addr::v4(0x0900_000a),
            dst: Addr::v4(0x0102_00c0),
            sport: 4000_u16.to_be(),
            dport: 80_u16.to_be(),
            proto: 6,
        }
    }

    /// The vector for the message 00 01 .. 07 of the reference implementation.
    #[test]
    fn the_hash_is_siphash_2_4() {
        let mut state = Sip::new(&KEY);
        state.word(0x0706_0504_0302_0100);
        assert_eq!(state.finish(1), 0x93f5_f579_9a93_2462);
    }

    #[test]
    fn a_cookie_is_of_one_packet_one_key_and_two_periods() {
        let rules = AnswerRules {
            keys: [KEY, [1, 2]],
            ..AnswerRules::default()
        };
        let good = cookie(&KEY, &packet(), 7);
        let takes = |packet: &FlowKey, period| is_cookie(good, &rules, packet, period);
        assert!(takes(&packet(), 7) && takes(&packet(), 8));
        assert!(!takes(&packet(), 6) && !takes(&packet(), 9));
        for change in [
            |key: &mut FlowKey| key.src.words[3] ^= 1,
            |key: &mut FlowKey| key.dst.words[3] ^= 1,
            |key: &mut FlowKey| key.sport ^= 1,
            |key: &mut FlowKey| key.dport ^= 1,
        ] {
            let mut other = packet();
            change(&mut other);
            assert!(!takes(&other, 7));
        }
        let rotated = |keys| AnswerRules { keys, ..rules };
        assert!(is_cookie(good, &rotated([[3, 4], KEY]), &packet(), 7));
        assert!(!is_cookie(good, &rotated([[5, 6], [3, 4]]), &packet(), 7));
    }

    #[test]
    fn a_gate_closes_past_its_rate_and_opens_a_while_after() {
        let rules = AnswerRules {
            syn_cost_ns: 1_000_000,
            syn_burst_ns: 10_000_000,
            ..AnswerRules::default()
        };
        let mut gate = Gate::default();
        let start = 1 << 40;
        let asked = (0..11).map(|_| gate.asks(start, &rules, false));
        assert_eq!(asked.filter(|asked| *asked).count(), 1);
        // As many as the rate lets through, and closed all the same: the flood may go on.
        assert!(gate.asks(start + 1_000_000, &rules, false));
        assert!(!gate.asks(start + CLOSED_NS, &rules, false));
        assert!(gate.asks(start + 2 * CLOSED_NS, &rules, true));
        assert!(gate.is_closed(start + 3 * CLOSED_NS - 1));
        let never = AnswerRules::default();
        assert!(!Gate::default().asks(start, &never, false));
    }

    #[test]
    fn a_proof_is_for_some_minutes_and_of_ipv6_for_64_bits() {
        let at = proved_tick(5 << 40);
        assert!(is_proved(at, (5 << 40) + 240_000_000_000));
        assert!(!is_proved(at, (5 << 40) + 330_000_000_000));
        let v4 = packet().src;
        assert_eq!(proved_as(&v4), v4);
        let v6 = |last| Addr {
            words: [1, 2, 3, last],
        };
        assert_eq!(proved_as(&v6(4)), proved_as(&v6(5)));
        assert_ne!(proved_as(&v6(4)), proved_as(&v4));
    }
}
