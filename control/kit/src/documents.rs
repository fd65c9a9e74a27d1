//! A service's objects in the store: JSON by tenant and name.
//!
//! Names are labels of 1 to 63 of `a-z`, `0-9` and `-`, so that a key is one object's and nobody else's.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::Code;

use crate::api_error::ApiError;
use crate::store::{self, Condition, Entry, Range, SharedStore, Txn, Write};

const NAME_LENGTH_MAX: usize = 63;

/// Objects of one kind.
pub struct Documents<T> {
    store: SharedStore,
    kind: &'static str,
    of: PhantomData<fn() -> T>,
}

/// An object as it was read.
#[derive(Clone, Debug)]
pub struct Document<T> {
    /// The object.
    pub value: T,
    /// That nobody has written it since.
    pub unchanged: Condition,
}

/// What is wrong with a name, if anything is.
///
/// # Errors
/// `InvalidArgument`.
pub fn check_name(name: &str) -> Result<(), ApiError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=NAME_LENGTH_MAX).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(());
    }
    let what = "a name has 1 to 63 characters out of a-z, 0-9 and -";
    Err(ApiError::new(Code::InvalidArgument, "invalid-name", what).object(name))
}

impl<T: Serialize + DeserializeOwned> Documents<T> {
    /// `kind` is what users call one, as `widget`.
    pub fn new(store: SharedStore, kind: &'static str) -> Documents<T> {
        Documents {
            store,
            kind,
            of: PhantomData,
        }
    }

    /// Where an object is; what an operation on it calls its object.
    pub fn key(&self, tenant: &str, name: &str) -> String {
        format!("{}/{tenant}/{name}", self.kind)
    }

    /// The write of an object.
    ///
    /// # Panics
    /// If the object has a map whose keys are no text.
    pub fn put(key: &str, value: &T) -> Write {
        let json = serde_json::to_vec(value).expect("an object's keys are text");
        Write::put(key, json)
    }

    /// An object that is to be there and is not yet.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that is none.
    pub fn created(&self, tenant: &str, name: &str, value: &T) -> Result<Txn, ApiError> {
        check_name(name)?;
        let key = self.key(tenant, name);
        let put = Documents::put(&key, value);
        Ok(Txn::when(Condition::Absent(key)).then(put))
    }

    /// Reads an object.
    ///
    /// # Errors
    /// `NotFound`; or the store failed, or holds something else.
    pub async fn get(&self, tenant: &str, name: &str) -> Result<Document<T>, ApiError> {
        check_name(name)?;
        let key = self.key(tenant, name);
        let entry = store::get(&*self.store, &key).await?;
        let missing = || {
            let what = format!("there is no such {}", self.kind);
            ApiError::new(Code::NotFound, "not-found", what).object(key.as_str())
        };
        read(&entry.ok_or_else(missing)?)
    }

    /// A tenant's objects by name: at most `limit` behind the name `after`. Says whether there are more.
    ///
    /// # Errors
    /// The store failed, or holds something else.
    pub async fn list(
        &self,
        tenant: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<T>, bool), ApiError> {
        let mut range = Range::prefix(self.key(tenant, ""), limit);
        if let Some(after) = after {
            check_name(after)?;
            range = range.after(&self.key(tenant, after));
        }
        let page = self.store.range(range).await?;
        let values = page.entries.iter().map(|entry| Ok(read(entry)?.value));
        Ok((values.collect::<Result<_, ApiError>>()?, page.more))
    }
}

fn read<T: DeserializeOwned>(entry: &Entry) -> Result<Document<T>, ApiError> {
    let value = serde_json::from_slice(&entry.value).map_err(|error| {
        let what = format!("what is stored cannot be read: {error}");
        ApiError::new(Code::DataLoss, "unreadable-object", what)
            .object(entry.key.as_str())
            .next("another version may have written it; see its log")
    })?;
    Ok(Document {
        value,
        unchanged: Condition::as_read(&entry.key, Some(entry)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_label() {
        check_name("web-1").unwrap();
        for wrong in ["", "Web", "a/b", "ä", &"a".repeat(64)] {
            assert_eq!(check_name(wrong).unwrap_err().code(), "invalid-name");
        }
    }
}
