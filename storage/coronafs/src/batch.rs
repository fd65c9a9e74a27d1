//! Transfers of an encrypted volume that lie side by side: one operation of the kernel for all that a driver
//! asks for at once.
//!
//! Such a transfer goes through a buffer of ours, and several can share one. The first of a batch lets the
//! others of its task's turn come, then does them all, run by run; the others wait for it. What fails together
//! is tried alone, so that nobody hears of another's memory, or of another's place on the disk.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use engine::GuestList;
use futures_util::future::join_all;

use crate::attach::Attachment;
use crate::data::{BOUNCE, Going, bad_memory, take_buf};
use crate::error::VolumeError;

/// Shorter transfers are done at once: waiting for others costs more than it saves. Tests have short ones.
const BATCHED_MIN: u64 = if cfg!(test) { 512 } else { 32 << 10 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Read,
    Write,
}

/// A volume's transfers that wait for the one that does them.
#[derive(Default)]
pub(crate) struct Batches {
    reads: Batch,
    writes: Batch,
}

#[derive(Default)]
struct Batch {
    waiting: RefCell<Vec<Transfer>>,
}

/// What became of a transfer.
#[derive(Clone, Default)]
enum State {
    #[default]
    Waits,
    /// Whoever was to do it is gone.
    Left,
    Ended(Result<(), VolumeError>),
}

/// Told to whoever asked for a transfer.
#[derive(Default)]
struct Ticket {
    state: RefCell<State>,
    waker: Cell<Option<Waker>>,
}

impl Ticket {
    fn waits(&self) -> bool {
        matches!(*self.state.borrow(), State::Waits)
    }

    fn set(&self, state: State) {
        *self.state.borrow_mut() = state;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn end(&self, outcome: Result<(), VolumeError>) {
        self.set(State::Ended(outcome));
    }

    /// The outcome; none when nobody is going to do it.
    async fn ended(&self) -> Option<Result<(), VolumeError>> {
        poll_fn(|cx| match self.state.take() {
            State::Ended(outcome) => Poll::Ready(Some(outcome)),
            State::Left => Poll::Ready(None),
            State::Waits => {
                self.waker.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }
}

/// A transfer in a batch.
struct Transfer {
    list: GuestList,
    /// Where it lies in the data file.
    place: u64,
    /// Where it lies in the volume.
    offset: u64,
    ticket: Rc<Ticket>,
}

impl Transfer {
    fn end(&self) -> u64 {
        self.place + self.list.len()
    }

    /// Whether nobody waits for it any more.
    fn is_left(&self) -> bool {
        Rc::strong_count(&self.ticket) == 1
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if self.ticket.waits() {
            self.ticket.set(State::Left);
        }
    }
}

/// The right to do a batch, which ends when it is taken, or the one that has it is dropped.
struct Lead<'a>(&'a Batch);

impl Lead<'_> {
    fn take(self) -> Vec<Transfer> {
        self.0.waiting.take()
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        drop(self.0.waiting.take());
    }
}

/// A transfer that somebody waits for. Dropped before it is begun, it is taken out of its batch.
struct Asked<'a> {
    batch: &'a Batch,
    ticket: Rc<Ticket>,
    /// For a write.
    going: Option<Going<'a>>,
}

impl Asked<'_> {
    async fn ended(mut self) -> Option<Result<(), VolumeError>> {
        let outcome = self.ticket.ended().await;
        if let Some(going) = self.going.take() {
            going.end();
        }
        outcome
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut waiting = self.batch.waiting.borrow_mut();
        let mut tickets = waiting.iter().map(|transfer| &transfer.ticket);
        let place = tickets.position(|ticket| Rc::ptr_eq(ticket, &self.ticket));
        let withdrawn = place.map(|place| waiting.remove(place));
        drop(waiting);
        if let Some(going) = self.going.take()
            && (withdrawn.is_some() || !self.ticket.waits())
        {
            going.end();
        }
    }
}

/// Transfers that each begin where the one before ends, as many as fit a buffer.
fn runs(mut transfers: Vec<Transfer>) -> Vec<Vec<Transfer>> {
    transfers.sort_by_key(|transfer| transfer.place);
    let mut runs: Vec<Vec<Transfer>> = Vec::new();
    let mut bytes = 0;
    for transfer in transfers {
        let len = transfer.list.len();
        match runs.last_mut() {
            Some(run)
                if bytes + len <= BOUNCE
                    && run.last().map(Transfer::end) == Some(transfer.place) =>
            {
                bytes += len;
                run.push(transfer);
            }
            _ => {
                bytes = len;
                runs.push(vec![transfer]);
            }
        }
    }
    runs
}

impl Attachment {
    /// Reads or writes what lies in one piece, together with what is asked for beside it.
    pub(crate) async fn transfer(
        &self,
        way: Way,
        list: GuestList,
        place: u64,
        offset: u64,
    ) -> Result<(), VolumeError> {
        let batched = (BATCHED_MIN..BOUNCE).contains(&list.len());
        if self.coding(offset).is_none() || !batched {
            return self.transfer_alone(way, list, place, offset).await;
        }
        let batch = match way {
            Way::Read => &self.batches.reads,
            Way::Write => &self.batches.writes,
        };
        let asked = Asked {
            batch,
            ticket: Rc::default(),
            going: (way == Way::Write).then(|| self.inner.data.going()),
        };
        let leads = {
            let mut waiting = batch.waiting.borrow_mut();
            waiting.push(Transfer {
                list: list.clone(),
                place,
                offset,
                ticket: Rc::clone(&asked.ticket),
            });
            waiting.len() == 1
        };
        if leads {
            let lead = Lead(batch);
            engine::yield_now().await;
            let runs = runs(lead.take());
            join_all(runs.iter().map(|run| self.transfer_run(way, run))).await;
        }
        match asked.ended().await {
            Some(outcome) => outcome,
            None => self.transfer_alone(way, list, place, offset).await,
        }
    }

    async fn transfer_alone(
        &self,
        way: Way,
        list: GuestList,
        place: u64,
        offset: u64,
    ) -> Result<(), VolumeError> {
        let (data, coding) = (&self.inner.data, self.coding(offset));
        match way {
            Way::Read => data.read(list, place, coding).await,
            Way::Write => data.write(list, place, coding).await,
        }
    }

    async fn transfer_run(&self, way: Way, run: &[Transfer]) {
        if run.len() > 1 && self.transfer_together(way, run).await.is_ok() {
            for one in run {
                one.ticket.end(Ok(()));
            }
            return;
        }
        for one in run {
            let list = one.list.clone();
            let alone = self.transfer_alone(way, list, one.place, one.offset);
            let outcome = alone.await;
            one.ticket.end(outcome);
        }
    }

    async fn transfer_together(&self, way: Way, run: &[Transfer]) -> Result<(), VolumeError> {
        let data = &self.inner.data;
        let bytes = run.iter().map(|one| one.list.len()).sum();
        let _right = data.bouncing(bytes).await?;
        let mut buf = take_buf(bytes).await?;
        if way == Way::Read {
            buf = data.read_buf(buf, run[0].place).await?;
        }
        let mut rest = &mut buf[..];
        for one in run {
            let part = rest.split_off_mut(..one.list.len() as usize);
            let (Some(part), Some(coding)) = (part, self.coding(one.offset)) else {
                return Err(VolumeError::Internal("a batch has no cipher".to_owned()));
            };
            let moved = match way {
                Way::Write => coding.encrypt_out(&one.list, 0, part),
                // Nobody is to find anything in memory that it has back.
                Way::Read if one.is_left() => Ok(()),
                Way::Read => coding.decrypt_in(part, &one.list, 0),
            };
            moved.map_err(|e| bad_memory(&e))?;
        }
        if way == Way::Write {
            data.write_buf(buf, run[0].place).await?;
        }
        let count = run.len() as u64;
        data.bounces.set(data.bounces.get() + count);
        data.joined.set(data.joined.get() + count);
        Ok(())
    }
}
