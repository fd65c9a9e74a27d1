//! What stands behind a refusal: who holds what, when it ends, and what helps.

use std::fmt;

use crate::book::Book;
use crate::id::TransferId;
use crate::refusal::Shortage;
use crate::transfer::State;

/// The most reservations that an explanation names.
pub const HOLDS_MAX: usize = 8;

/// A reservation that is pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Which.
    pub reservation: TransferId,
    /// How much it holds.
    pub amount: u64,
    /// When its time is over, in milliseconds since 1970.
    pub expires_ms: u64,
}

/// Why a limit was in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What was asked, and what there is.
    pub shortage: Shortage,
    /// The reservations that hold something, the first to expire first; at most [`HOLDS_MAX`].
    pub holds: Vec<Hold>,
    /// Whether there are more of them.
    pub more: bool,
    /// When this was so, in milliseconds since 1970.
    pub now_ms: u64,
}

impl Explanation {
    /// What to do about it.
    pub fn next(&self) -> String {
        let Shortage {
            unit, limit, used, ..
        } = &self.shortage;
        let asked = u128::from(self.shortage.asked);
        let wanted = used.saturating_add(asked);
        if wanted > *limit {
            return format!(
                "give back {} {unit}, or have the limit raised to at least {wanted}: no reservation's end \
                 is enough",
                wanted - limit
            );
        }
        let mut free = self.shortage.free();
        for hold in &self.holds {
            free = free.saturating_add(u128::from(hold.amount));
            if free >= asked {
                return format!(
                    "try again in {}, release what is not needed, or have the limit raised",
                    self.wait(hold)
                );
            }
        }
        "try again when reservations have ended, release what is not needed, or have the limit raised"
            .to_owned()
    }

    fn wait(&self, hold: &Hold) -> String {
        let left_ms = hold.expires_ms.saturating_sub(self.now_ms);
        format!("{} s", left_ms.div_ceil(1000))
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.shortage)?;
        let Shortage { unit, limit, .. } = &self.shortage;
        for hold in &self.holds {
            let (amount, id, wait) = (hold.amount, hold.reservation, self.wait(hold));
            write!(
                f,
                "; {amount} of {limit} {unit} held by reservation {id}, expires in {wait}"
            )?;
        }
        if self.more {
            f.write_str("; more is held by others")?;
        }
        Ok(())
    }
}

impl Book {
    /// Explains a refusal from a book that has all transfers of the account.
    pub fn explain(&self, now_ms: u64, shortage: &Shortage) -> Explanation {
        let hold = |transfer: &crate::transfer::Transfer| match transfer.state {
            State::Pending { expires_ms } if transfer.debit == shortage.debit => Some(Hold {
                reservation: transfer.id,
                amount: transfer.amount,
                expires_ms,
            }),
            _ => None,
        };
        let mut holds: Vec<Hold> = self.transfers().filter_map(hold).collect();
        holds.sort_by_key(|hold| (hold.expires_ms, hold.reservation));
        let more = holds.len() > HOLDS_MAX;
        holds.truncate(HOLDS_MAX);
        Explanation {
            shortage: shortage.clone(),
            holds,
            more,
            now_ms,
        }
    }
}
