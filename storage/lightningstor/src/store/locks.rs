//! One writer at a time for each key of a partition, in order of arrival.
//!
//! Invariant: a key is in the table exactly while someone holds it or waits for it. Keys and waiters
//! are bounded; past the bound the answer is Busy.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use engine::sync::{Semaphore, SemaphorePermit};

use super::error::StoreError;
use super::types::BucketId;

type Name = (BucketId, Box<str>);

struct KeyLock {
    turn: Semaphore,
    users: Cell<usize>,
}

/// The keys that are being written.
pub(super) struct KeyLocks {
    keys: Rc<RefCell<BTreeMap<Name, Rc<KeyLock>>>>,
    keys_max: usize,
    waiters_max: usize,
}

/// A place in a key's line.
struct User {
    keys: Rc<RefCell<BTreeMap<Name, Rc<KeyLock>>>>,
    name: Name,
    lock: Rc<KeyLock>,
}

/// The right to write a key; ends when dropped.
pub(super) struct KeyGuard {
    // Given back before the user leaves, so that the next in line finds the same lock.
    _permit: SemaphorePermit,
    _user: User,
}

impl KeyLocks {
    pub(super) fn new(keys_max: usize, waiters_max: usize) -> KeyLocks {
        KeyLocks {
            keys: Rc::default(),
            keys_max,
            waiters_max,
        }
    }

    /// Waits for the key. Cancel-safe.
    pub(super) async fn acquire(
        &self,
        bucket: BucketId,
        key: &str,
    ) -> Result<KeyGuard, StoreError> {
        let user = self.user(bucket, key)?;
        let permit = user
            .lock
            .turn
            .acquire(1)
            .await
            .map_err(|_| StoreError::Busy)?;
        Ok(KeyGuard {
            _permit: permit,
            _user: user,
        })
    }

    fn user(&self, bucket: BucketId, key: &str) -> Result<User, StoreError> {
        let name: Name = (bucket, key.into());
        let mut keys = self.keys.borrow_mut();
        if keys.len() >= self.keys_max && !keys.contains_key(&name) {
            return Err(StoreError::Busy);
        }
        let lock = keys.entry(name.clone()).or_insert_with(|| {
            let turn = Semaphore::new(1, self.waiters_max);
            Rc::new(KeyLock {
                turn,
                users: Cell::new(0),
            })
        });
        lock.users.set(lock.users.get() + 1);
        Ok(User {
            keys: Rc::clone(&self.keys),
            name,
            lock: Rc::clone(lock),
        })
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.keys.borrow().len()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let users = self.lock.users.get() - 1;
        self.lock.users.set(users);
        if users == 0 {
            self.keys.borrow_mut().remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn writers_of_a_key_wait_in_line_and_others_do_not() {
        let locks = KeyLocks::new(8, 8);
        let mut first = Box::pin(locks.acquire(BucketId(1), "a"));
        let Poll::Ready(Ok(held)) = poll(first.as_mut()) else {
            panic!("the key is free")
        };
        let mut second = pin!(locks.acquire(BucketId(1), "a"));
        let mut other = pin!(locks.acquire(BucketId(2), "a"));
        assert!(poll(second.as_mut()).is_pending());
        let Poll::Ready(Ok(apart)) = poll(other.as_mut()) else {
            panic!("another bucket's key")
        };
        drop(held);
        let Poll::Ready(Ok(next)) = poll(second.as_mut()) else {
            panic!("the line moves on")
        };
        drop((next, apart));
        assert_eq!(locks.len(), 0);
    }

    #[test]
    fn lines_and_the_table_are_bounded() {
        let locks = KeyLocks::new(1, 1);
        let mut first = pin!(locks.acquire(BucketId(1), "a"));
        let Poll::Ready(Ok(_held)) = poll(first.as_mut()) else {
            panic!("the key is free")
        };
        let mut waits = Box::pin(locks.acquire(BucketId(1), "a"));
        assert!(poll(waits.as_mut()).is_pending());
        let mut third = pin!(locks.acquire(BucketId(1), "a"));
        assert!(matches!(
            poll(third.as_mut()),
            Poll::Ready(Err(StoreError::Busy))
        ));
        let mut key = pin!(locks.acquire(BucketId(1), "b"));
        assert!(matches!(
            poll(key.as_mut()),
            Poll::Ready(Err(StoreError::Busy))
        ));
        drop(waits);
        assert_eq!(locks.len(), 1);
    }
}
