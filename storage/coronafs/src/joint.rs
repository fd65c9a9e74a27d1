//! Joint transfers: what is asked of an encrypted volume at once, and lies side by side on disk, goes through one
//! buffer of ours and is one operation of the kernel.
//!
//! Who asks first gathers what others ask for until the shard polls it again. Then the first of each run of
//! neighbours does all of it, and who has no neighbour does its own part. So nobody waits for what lies elsewhere.
//!
//! Invariants:
//! - `Done` is told behind the operation that did the part. Whatever else ends a run, an error or the drop of
//!   its first, makes each do its own part alone, and hear of its own memory and place on the disk only.
//! - No memory is written for somebody who is gone.
//! - When somebody is dropped whose write the kernel may have, the partition takes no more writes.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use engine::GuestList;

use crate::attach::Attachment;
use crate::data::{BOUNCE, DataFile, bad_memory};
use crate::error::VolumeError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Read,
    Write,
}

/// What lies in one piece, to be read or written.
#[derive(Clone)]
pub(crate) struct Transfer {
    pub(crate) way: Way,
    pub(crate) list: GuestList,
    /// Where it lies in the data file.
    pub(crate) place: u64,
    /// Where it lies in the volume.
    pub(crate) offset: u64,
}

/// What is asked of a volume, by those that come before the one that gathers goes on.
#[derive(Default)]
pub(crate) struct Asked {
    reads: RefCell<Vec<Part>>,
    writes: RefCell<Vec<Part>>,
}

/// One's part of a joint transfer.
struct Part {
    transfer: Transfer,
    ticket: Rc<Ticket>,
}

/// What one is told about its part.
#[derive(Default)]
struct Ticket {
    news: RefCell<News>,
    waker: Cell<Option<Waker>>,
    /// Whether the kernel may have the write.
    begun: Cell<bool>,
}

#[derive(Default)]
enum News {
    #[default]
    None,
    /// It is the first of a run, and does all of it.
    Leads(Vec<Part>),
    /// Nobody does its part but itself.
    Alone,
    Done,
}

impl Ticket {
    fn tell(&self, news: News) {
        self.begun.set(false);
        *self.news.borrow_mut() = news;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    async fn told(&self) -> News {
        poll_fn(|cx| match self.news.take() {
            News::None => {
                self.waker.set(Some(cx.waker().clone()));
                Poll::Pending
            }
            news => Poll::Ready(news),
        })
        .await
    }
}

impl Part {
    fn end(&self) -> u64 {
        self.transfer.place + self.bytes()
    }

    fn bytes(&self) -> u64 {
        self.transfer.list.len()
    }

    fn is_gone(&self) -> bool {
        Rc::strong_count(&self.ticket) == 1
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let untold = matches!(*self.ticket.news.borrow(), News::None);
        if untold {
            self.ticket.tell(News::Alone);
        }
    }
}

/// Who gathers. Dropped before the time, it leaves each to itself.
struct Gathers<'a>(&'a RefCell<Vec<Part>>);

impl Gathers<'_> {
    fn end(self) {
        for run in runs(self.0.take()) {
            if let [first, _, ..] = &run[..] {
                let ticket = Rc::clone(&first.ticket);
                ticket.tell(News::Leads(run));
            }
        }
    }
}

impl Drop for Gathers<'_> {
    fn drop(&mut self) {
        drop(self.0.take());
    }
}

/// Parts that each begin where the one before ends, as many as fit a buffer.
fn runs(mut parts: Vec<Part>) -> Vec<Vec<Part>> {
    parts.sort_by_key(|part| part.transfer.place);
    let mut runs: Vec<Vec<Part>> = Vec::new();
    let mut bytes = 0;
    for part in parts {
        bytes += part.bytes();
        match runs.last_mut() {
            Some(run)
                if bytes <= BOUNCE && run.last().map(Part::end) == Some(part.transfer.place) =>
            {
                run.push(part);
            }
            _ => {
                bytes = part.bytes();
                runs.push(vec![part]);
            }
        }
    }
    runs
}

/// Who waits for its part.
struct Waits<'a> {
    data: &'a DataFile,
    asked: &'a RefCell<Vec<Part>>,
    ticket: Rc<Ticket>,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let begun = self.ticket.begun.get();
        let mut asked = self.asked.borrow_mut();
        let mut tickets = asked.iter().map(|part| &part.ticket);
        let place = tickets.position(|ticket| Rc::ptr_eq(ticket, &self.ticket));
        let part = place.map(|place| asked.remove(place));
        drop(asked);
        // A run that it was to do as well: its ticket and the part in there have each other.
        drop((part, self.ticket.news.take()));
        if begun {
            drop(self.data.going());
        }
    }
}

impl Attachment {
    /// Alone, or as a part of a joint one.
    pub(crate) async fn transfer(&self, transfer: Transfer) -> Result<(), VolumeError> {
        let joins = self.inner.config.joined_bytes_min..BOUNCE;
        if self.coding(transfer.offset).is_none() || !joins.contains(&transfer.list.len()) {
            return self.transfer_alone(transfer).await;
        }
        let waits = Waits {
            data: &self.inner.data,
            asked: match transfer.way {
                Way::Read => &self.asked.reads,
                Way::Write => &self.asked.writes,
            },
            ticket: Rc::default(),
        };
        waits.asked.borrow_mut().push(Part {
            transfer: transfer.clone(),
            ticket: Rc::clone(&waits.ticket),
        });
        if waits.asked.borrow().len() == 1 {
            let gathers = Gathers(waits.asked);
            engine::yield_now().await;
            gathers.end();
        }
        loop {
            match waits.ticket.told().await {
                News::None => {}
                News::Leads(run) => {
                    if self.transfer_run(&run).await.is_ok() {
                        for part in &run {
                            part.ticket.tell(News::Done);
                        }
                    }
                }
                News::Alone => break,
                News::Done => return Ok(()),
            }
        }
        self.transfer_alone(transfer).await
    }

    async fn transfer_alone(&self, transfer: Transfer) -> Result<(), VolumeError> {
        let (data, coding) = (&self.inner.data, self.coding(transfer.offset));
        let Transfer { list, place, .. } = transfer;
        match transfer.way {
            Way::Read => data.read(list, place, coding).await,
            Way::Write => data.write(list, place, coding).await,
        }
    }

    /// Does all parts of a run, or fails.
    async fn transfer_run(&self, run: &[Part]) -> Result<(), VolumeError> {
        let (data, first) = (&self.inner.data, &run[0].transfer);
        let (way, place) = (first.way, first.place);
        let bytes = run.iter().map(Part::bytes).sum();
        let _right = data.bouncing(bytes).await?;
        // Where there is none of that size, there may be smaller ones.
        let mut buf = engine::take_buf(bytes as usize)?;
        if way == Way::Read {
            buf = data.read_buf(buf, place).await?;
        }
        let mut rest = &mut buf[..];
        for part in run {
            let (bytes, after) = rest.split_at_mut(part.bytes() as usize);
            rest = after;
            let Transfer { list, offset, .. } = &part.transfer;
            let coding = self
                .coding(*offset)
                .expect("only encrypted parts are joined");
            let moved = match way {
                Way::Write => coding.encrypt_out(list, 0, bytes),
                Way::Read if part.is_gone() => Ok(()),
                Way::Read => coding.decrypt_in(bytes, list, 0),
            };
            moved.map_err(|e| bad_memory(&e))?;
        }
        if way == Way::Write {
            for part in run {
                part.ticket.begun.set(true);
            }
            data.write_buf(buf, place).await?;
        }
        let count = run.len() as u64;
        data.bounces.set(data.bounces.get() + count);
        data.joined.set(data.joined.get() + count);
        Ok(())
    }
}
