//! The flow table: IPv4's flows in lines of our own (see `fiberlb_abi::Line`), IPv6's in the kernel's hash.

use core::arch::asm;
use core::ptr::{read_volatile, write_volatile};

use fiberlb_abi::{
    Addr, Back, Flow, FlowKey, FlowKeyV4, FlowV6, Hashes, LOCKS_MAX, Line, NO_HOME, Shape, WAYS,
};

use crate::maps::*;

/// Tries to get the lock of a bucket, each some nanoseconds; who holds it is done in some hundred.
const TRIES: u32 = 64;
/// No line: tables are smaller.
const NONE: u32 = u32::MAX;

/// What the table has of a packet.
pub struct Found {
    pub flow: &'static mut Flow,
    pub back: &'static Back,
    /// Reverse: the VIP's address.
    pub addr: Addr,
}

/// Looks a packet up.
///
/// Entries stay while the program runs, but another CPU or user space may write them too: fields are
/// single words, and each is good by itself.
#[inline(always)]
pub fn find(key: &FlowKey) -> Option<Found> {
    if key.src.is_v4() {
        let line = find_v4(&FlowKeyV4::of(key))?;
        return Some(Found {
            flow: &mut line.flow,
            back: &line.back,
            addr: Addr::v4(line.back.v4),
        });
    }
    let entry = FLOWS_V6.get_ptr_mut(key)?;
    // SAFETY: see above.
    let entry = unsafe { &mut *entry };
    Some(Found {
        flow: &mut entry.flow,
        back: &entry.back,
        addr: entry.addr,
    })
}

/// An entry is composed in this CPU's scratch: on the stack it would take a quarter of what there is.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: the entry is this CPU's, and programs on a CPU do not interrupt each other; each function
    // that composes here is done with it before another one begins.
    SCRATCH
        .get_ptr_mut(0)
        .map(|scratch| unsafe { &mut *scratch })
}

/// Puts what the scratch holds into the table, in the place of what the table has under its key.
#[inline(always)]
pub fn put() -> bool {
    fiberlb_put() != 0
}

/// See [`put`], and [`fiberlb_find`] for its form.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fiberlb_put() -> u32 {
    let Some(entry) = scratch() else {
        return 0;
    };
    let done = if entry.key.src.is_v4() {
        put_v4(entry)
    } else {
        FLOWS_V6.insert(&entry.key, &entry.value, 0).is_ok()
    };
    u32::from(done)
}

#[inline(always)]
fn line_at(at: u32) -> Option<&'static mut Line> {
    // SAFETY: the entry of an array stays; see `find` for who else writes it.
    FLOWS_V4.get_ptr_mut(at).map(|line| unsafe { &mut *line })
}

#[inline(always)]
fn shape() -> Option<&'static mut Shape> {
    // SAFETY: the entry of an array stays. Its words are written one by one, and each is good by itself.
    SHAPE.get_ptr_mut(0).map(|shape| unsafe { &mut *shape })
}

#[inline(always)]
fn is(line: &Line, key: &FlowKeyV4) -> bool {
    line.key.addrs == key.addrs && line.key.ports == key.ports
}

#[inline(always)]
fn find_v4(key: &FlowKeyV4) -> Option<&'static mut Line> {
    let shape = shape()?;
    let hashes = key.hashes(shape.seed);
    let home = hashes.home(shape.lines);
    let line = line_at(home)?;
    if is(line, key) {
        return Some(line);
    }
    if shape.lines == shape.floor {
        if line.hops == 0 && line.over == 0 {
            return None;
        }
        let second = hashes.second(shape.lines);
        return line_at(fiberlb_find_at(key.addrs, key.ports, home, second));
    }
    let line = line_at(fiberlb_find(key.addrs, key.ports))?;
    // As if a second had passed: who takes it from here puts it anew (see `settle`).
    line.flow.tick = line.flow.tick.wrapping_sub(1);
    Some(line)
}

/// What a look at a flow's home says.
pub enum Near {
    Known(&'static mut Line),
    /// It is not in the table; the version of what leads to VIPs, from before.
    New(u32),
}

/// As [`find`], without what is rare; `None` when only that would tell.
#[inline(always)]
pub fn near(key: &FlowKeyV4) -> Option<Near> {
    let shape = shape()?;
    let hashes = key.hashes(shape.seed);
    let home = hashes.home(shape.lines);
    let line = line_at(home)?;
    if is(line, key) {
        return Some(Near::Known(line));
    }
    if shape.lines != shape.floor {
        return None;
    }
    if line.hops == 0 && line.over == 0 {
        return Some(Near::New(shape.vips));
    }
    let second = hashes.second(shape.lines);
    let at = fiberlb_find_at(key.addrs, key.ports, home, second);
    if at == NONE {
        return Some(Near::New(shape.vips));
    }
    line_at(at).map(Near::Known)
}

/// The version of what leads to VIPs; see [`Shape::vips`].
#[inline(always)]
pub fn vips_version() -> u32 {
    // SAFETY: one aligned word; volatile, so that it is read before what it is the version of.
    shape().map_or(0, |shape| unsafe { read_volatile(&shape.vips) })
}

/// The number of the line of a flow. Functions with names are checked by the kernel once and by themselves, not with each caller; they take
/// and give words.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fiberlb_find(addrs: u64, ports: u64) -> u32 {
    let key = &FlowKeyV4 { addrs, ports };
    let Some(shape) = shape() else {
        return NONE;
    };
    let hashes = key.hashes(shape.seed);
    let mut lines = shape.lines;
    let mut turn = 0;
    while turn < SIZES {
        if lines < shape.floor {
            return NONE;
        }
        let found = fiberlb_find_at(addrs, ports, hashes.home(lines), hashes.second(lines));
        if found != NONE {
            return found;
        }
        lines /= 2;
        turn += 1;
    }
    NONE
}

/// More sizes than a table can have.
const SIZES: u32 = 32;

/// The number of the line of a flow by its home and second bucket.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fiberlb_find_at(addrs: u64, ports: u64, home: u32, second: u32) -> u32 {
    let key = &FlowKeyV4 { addrs, ports };
    let Some(line) = line_at(home) else {
        return NONE;
    };
    if is(line, key) {
        return home;
    }
    // A bit for each line of both buckets.
    let mut places = u32::from(line.hops) | if line.over == 0 { 0 } else { 0xff00 };
    let mut at = home & !(WAYS - 1);
    let mut step = 0;
    while step < 2 * WAYS && places != 0 {
        if step == WAYS {
            at = second;
        }
        if places & 1 != 0
            && let Some(line) = line_at(at)
            && is(line, key)
        {
            return at;
        }
        at += 1;
        places >>= 1;
        step += 1;
    }
    NONE
}

#[inline(always)]
fn put_v4(entry: &Scratch) -> bool {
    let key = FlowKeyV4::of(&entry.key);
    let Some(shape) = shape() else {
        return false;
    };
    let mut lines = shape.lines;
    let hashes = key.hashes(shape.seed);
    // Where it may be since the table was smaller.
    let old = if lines == shape.floor {
        NONE
    } else {
        fiberlb_find(key.addrs, key.ports)
    };
    let mut done = FULL;
    let mut turn = 0;
    while turn < GROWTHS_MAX && done == FULL {
        let early = lines < LINES_EARLY && lines < shape.lines_max && turn == 0;
        done = put_at(hashes, lines, if early { NEVER } else { SECOND });
        if done == FULL {
            if lines >= shape.lines_max {
                break;
            }
            if !grow(lines) {
                return false;
            }
            lines *= 2;
        }
        turn += 1;
    }
    if done == FULL {
        fiberlb_make_way(hashes.second(lines), lines);
        done = put_at(hashes, lines, LAST);
    }
    if done >= FULL {
        return false;
    }
    if old != NONE
        && old != done
        && let Some(old) = line_at(old)
        && is(old, &key)
    {
        free(old);
    }
    true
}

/// Puts what the scratch holds into a table of so many lines, and gives the line.
#[inline(always)]
fn put_at(hashes: Hashes, lines: u32, last: u32) -> u32 {
    let home = hashes.home(lines);
    let done = fiberlb_put_into(home, FIRST);
    if done != FULL || last == NEVER {
        return done;
    }
    // The home leads on first, so that nobody misses the flow in between.
    if let Some(line) = line_at(home) {
        line.over = 1;
    }
    fiberlb_put_into(hashes.second(lines), last)
}

/// A table of fewer lines grows as soon as a first bucket is full: its pages are few, and most flows then
/// lie at home.
const LINES_EARLY: u32 = 1 << 16;

/// Tries of a flow to find a place in ever larger tables, before it takes one that another flow has: flows that
/// have not moved yet lie in the lower half of a table that grew, which so may be full in places.
const GROWTHS_MAX: u32 = 4;

/// Makes room in a bucket by one flow that has not moved since the table was smaller, if there is one.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fiberlb_make_way(bucket: u32, lines: u32) -> u32 {
    let mut step = 0;
    while step < WAYS {
        if fiberlb_move(bucket + step, lines) != 0 {
            return 1;
        }
        step += 1;
    }
    0
}

/// Moves the flow of a line to its home in a table of so many lines, unless that is in the same bucket or full.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fiberlb_move(from: u32, lines: u32) -> u32 {
    let (Some(old), Some(shape)) = (line_at(from), shape()) else {
        return 0;
    };
    let key = old.key;
    let home = key.hashes(shape.seed).home(lines);
    if key.ports == 0 || home / WAYS == from / WAYS {
        return 0;
    }
    let Some(lock) = LOCKS.get_ptr_mut(home / WAYS % LOCKS_MAX) else {
        return 0;
    };
    if !acquire(lock) {
        return 0;
    }
    let moved = move_locked(old, &key, home);
    release(lock);
    u32::from(moved)
}

#[inline(always)]
fn move_locked(old: &mut Line, key: &FlowKeyV4, home: u32) -> bool {
    let chosen = choose(key, home);
    let (at, how) = (chosen as u32, (chosen >> 32) as u32);
    if how != FREE {
        return false;
    }
    unlink(at);
    link(at, home, FIRST);
    let Some(line) = line_at(at) else {
        return false;
    };
    line.flow = old.flow;
    line.back = old.back;
    name(line, key);
    if is(old, key) {
        free(old);
    }
    true
}

/// Takes a flow out of its line.
#[inline(always)]
fn free(line: &mut Line) {
    // SAFETY: a plain word; volatile, so that the flow is gone before its fields are written.
    unsafe { write_volatile(&mut line.key.ports, 0) };
}

/// Doubles the table, unless another CPU did. False when it cannot be told.
#[inline(always)]
fn grow(lines: u32) -> bool {
    let (Some(lock), Some(shape)) = (LOCKS.get_ptr_mut(LOCKS_MAX), shape()) else {
        return false;
    };
    if !acquire(lock) {
        return false;
    }
    if shape.lines == lines && lines < shape.lines_max {
        shape.lines = lines * 2;
    }
    release(lock);
    true
}

/// How [`fiberlb_put_into`] ends, but for the number of the line.
const FULL: u32 = u32::MAX - 1;
const FAILED: u32 = u32::MAX;

/// Which bucket it is to a flow. In the last one there always is a place: the oldest flow's.
const FIRST: u32 = 0;
const SECOND: u32 = 1;
const LAST: u32 = 2;
/// No second bucket.
const NEVER: u32 = 3;

/// Puts what the scratch holds into the bucket of a line, under its lock.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fiberlb_put_into(at: u32, which: u32) -> u32 {
    let (Some(entry), Some(lock)) = (scratch(), LOCKS.get_ptr_mut(at / WAYS % LOCKS_MAX)) else {
        return FAILED;
    };
    if !acquire(lock) {
        return FAILED;
    }
    let done = put_locked(entry, at, which);
    release(lock);
    done
}

/// Takes a lock. Programs on a CPU do not interrupt each other, and none ends while it holds one.
#[inline(always)]
fn acquire(lock: *mut u64) -> bool {
    let mut tries = 0;
    while tries < TRIES {
        if exchange(lock, 1) == 0 {
            return true;
        }
        tries += 1;
    }
    false
}

#[inline(always)]
fn release(lock: *mut u64) {
    exchange(lock, 0);
}

/// An atomic exchange, with a full barrier. `core` leaves atomics out for this target.
#[inline(always)]
fn exchange(at: *mut u64, value: u64) -> u64 {
    let mut value = value;
    // SAFETY: the entry of an array stays, is aligned, and everybody changes it like this.
    unsafe {
        asm!(
            "{value} = xchg_64({at} + 0, {value})",
            at = in(reg) at,
            value = inout(reg) value,
            options(nostack),
        );
    }
    value
}

#[inline(always)]
fn put_locked(entry: &Scratch, at: u32, which: u32) -> u32 {
    let key = FlowKeyV4::of(&entry.key);
    let chosen = choose(&key, at);
    let (line, how) = (chosen as u32, (chosen >> 32) as u32);
    if how == OLDEST && which != LAST {
        return FULL;
    }
    // A flow that was led to as to its second bucket is at home here since the table grew.
    let comes_home =
        how == KNOWN && which == FIRST && line_at(line).is_some_and(|line| line.home == NO_HOME);
    if how != KNOWN {
        unlink(line);
    }
    if how != KNOWN || comes_home {
        link(line, at, which);
    }
    write(entry, line)
}

/// How a line was chosen.
const OLDEST: u32 = 0;
const FREE: u32 = 1;
const KNOWN: u32 = 2;

/// The line for an entry in the bucket of a line, below how it was chosen: the one that has its key, else
/// a free one, its home first, else the one whose flow is oldest.
#[inline(always)]
fn choose(key: &FlowKeyV4, home: u32) -> u64 {
    let bucket = home & !(WAYS - 1);
    let mut free = NONE;
    let mut oldest = u64::MAX;
    let mut step = 0;
    while step < WAYS {
        let at = bucket + (home + step) % WAYS;
        if let Some(line) = line_at(at) {
            if is(line, key) {
                return (u64::from(KNOWN) << 32) | u64::from(at);
            }
            if line.key.ports == 0 && free == NONE {
                free = at;
            }
            oldest = oldest.min((u64::from(line.flow.tick) << 32) | u64::from(at));
        }
        step += 1;
    }
    if free != NONE {
        return (u64::from(FREE) << 32) | u64::from(free);
    }
    oldest & 0xffff_ffff
}

/// Ends what leads to a line.
#[inline(always)]
fn unlink(at: u32) {
    let Some(line) = line_at(at) else {
        return;
    };
    free(line);
    let (was, way) = (u32::from(line.home), at % WAYS);
    if was < WAYS
        && let Some(home) = line_at((at & !(WAYS - 1)) + was)
    {
        home.hops &= !(1 << way);
    }
}

/// Leads from a home to a line of its bucket.
#[inline(always)]
fn link(line: u32, at: u32, which: u32) {
    let Some(taken) = line_at(line) else {
        return;
    };
    if which != FIRST {
        taken.home = NO_HOME;
        return;
    }
    taken.home = (at % WAYS) as u8;
    if line != at
        && let Some(home) = line_at(at)
    {
        home.hops |= 1 << (line % WAYS);
    }
}

/// Writes an entry, its key last.
#[inline(always)]
fn write(entry: &Scratch, at: u32) -> u32 {
    let Some(line) = line_at(at) else {
        return FAILED;
    };
    let FlowV6 { flow, back, .. } = &entry.value;
    let key = FlowKeyV4::of(&entry.key);
    line.flow = *flow;
    line.back = *back;
    name(line, &key);
    at
}

/// Says whose a line is, when all else of it is written.
#[inline(always)]
fn name(line: &mut Line, key: &FlowKeyV4) {
    // SAFETY: plain words; volatile and in this order, so that the flow is whole before it is found.
    unsafe {
        write_volatile(&mut line.key.addrs, key.addrs);
        asm!("");
        write_volatile(&mut line.key.ports, key.ports);
    }
}

/// Puts a flow anew that may lie where it was put when the table was smaller. Is called with a packet of
/// each second of a flow, and mostly does nothing.
#[inline(always)]
pub fn settle(key: &FlowKey) {
    if shape().is_some_and(|shape| shape.lines != shape.floor) {
        put_anew(key);
    }
}

#[inline(never)]
fn put_anew(key: &FlowKey) {
    let (Some(found), Some(entry)) = (find(key), scratch()) else {
        return;
    };
    entry.key = *key;
    entry.value.flow = *found.flow;
    entry.value.back = *found.back;
    entry.value.addr = found.addr;
    put();
}

/// The time in the units of [`Flow::tick`]. Reading the clock costs as much as half a packet, so it is read
/// once in a tick of the kernel's, which costs nothing to read.
#[inline(always)]
pub fn tick() -> u32 {
    // SAFETY: the helper has no preconditions.
    let jiffies = unsafe { aya_ebpf::helpers::bpf_jiffies64() } as u32;
    let clock = &raw mut CLOCK;
    // SAFETY: one aligned word that is read and written whole; any CPU's value of the moment is good.
    let known = unsafe { read_volatile(clock) };
    if (known >> 32) as u32 == jiffies {
        return known as u32;
    }
    // SAFETY: as above.
    unsafe {
        let now = (aya_ebpf::helpers::bpf_ktime_get_coarse_ns() >> 30) as u32;
        write_volatile(clock, (u64::from(jiffies) << 32) | u64::from(now));
        now
    }
}

/// As [`tick`], when this tick of the kernel's is known already.
#[inline(always)]
pub fn known_tick() -> Option<u32> {
    // SAFETY: as in `tick`.
    let jiffies = unsafe { aya_ebpf::helpers::bpf_jiffies64() } as u32;
    // SAFETY: as in `tick`.
    let known = unsafe { read_volatile(&raw const CLOCK) };
    ((known >> 32) as u32 == jiffies).then_some(known as u32)
}

/// The kernel's tick above [`Flow::tick`] at it.
static mut CLOCK: u64 = 0;
