//! Who is who: 128-bit ids that the client makes, and names of tenants and units.
//!
//! An id of zero is what a forgotten field holds, and one of all ones what a search runs to; neither can
//! be made.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// What was given is no id or no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no {kind}: expected {expected}")]
pub struct Invalid {
    kind: &'static str,
    given: String,
    expected: &'static str,
}

/// The first half of SHA-256 over the kind and the parts, each behind its length, so that no two lists of
/// parts run into the same bytes.
fn derived<P: AsRef<[u8]>>(kind: &str, parts: impl IntoIterator<Item = P>) -> u128 {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    part(b"ultracloud ledger id 1");
    part(kind.as_bytes());
    for one in parts {
        part(one.as_ref());
    }
    let digest: [u8; 32] = hash.finalize().into();
    let (half, _) = digest
        .split_first_chunk::<16>()
        .expect("a digest has 32 bytes");
    // The two that are none are as likely as any other two: never seen, and still not made.
    u128::from_be_bytes(*half).clamp(1, u128::MAX - 1)
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(u128);

        impl $name {
            /// An id from what it is for: the same parts give the same id in every process and for ever,
            /// so that a step that is tried again names the same thing again.
            ///
            /// ```
            #[doc = concat!("use creditservice::", stringify!($name), ";")]
            #[doc = concat!("let first = ", stringify!($name), "::derive([\"saga 7\", \"step 2\"]);")]
            #[doc = concat!("assert_eq!(first, ", stringify!($name), "::derive([\"saga 7\", \"step 2\"]));")]
            #[doc = concat!("assert_ne!(first, ", stringify!($name), "::derive([\"saga 7s\", \"tep 2\"]));")]
            /// ```
            pub fn derive<P: AsRef<[u8]>>(parts: impl IntoIterator<Item = P>) -> Self {
                Self(derived($kind, parts))
            }

            /// As a number.
            pub fn get(self) -> u128 {
                self.0
            }

            /// As bytes, to derive other ids from.
            pub fn to_bytes(self) -> [u8; 16] {
                self.0.to_be_bytes()
            }
        }

        impl TryFrom<u128> for $name {
            type Error = Invalid;

            fn try_from(id: u128) -> Result<Self, Invalid> {
                match id {
                    0 | u128::MAX => Err(Invalid {
                        kind: concat!($kind, " id"),
                        given: format!("{id:032x}"),
                        expected: "neither zero nor all ones",
                    }),
                    id => Ok(Self(id)),
                }
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                let lower = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
                if text.len() != 32 || !text.as_bytes().iter().all(lower) {
                    return Err(Invalid {
                        kind: concat!($kind, " id"),
                        given: text.chars().take(NAME_BYTES_MAX).collect(),
                        expected: "32 lower-case hexadecimal digits",
                    });
                }
                let id = u128::from_str_radix(text, 16).expect("32 hexadecimal digits are 128 bits");
                Self::try_from(id)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;

            fn try_from(text: String) -> Result<Self, Invalid> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
    };
}

id! {
    /// Names an account. 32 hexadecimal digits as text.
    AccountId, "account"
}

id! {
    /// Names a transfer. 32 hexadecimal digits as text.
    TransferId, "transfer"
}

/// The name of a tenant or of a unit: at most [`NAME_BYTES_MAX`] ASCII letters, digits, `.`, `_` and `-`,
/// the first a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

impl Name {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Name, Invalid> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let first = text.bytes().next();
        if text.len() > NAME_BYTES_MAX
            || !first.is_some_and(|b| b.is_ascii_alphanumeric())
            || !text.bytes().all(fits)
        {
            return Err(Invalid {
                kind: "name",
                given: text.chars().take(NAME_BYTES_MAX).collect(),
                expected: "1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit",
            });
        }
        Ok(Name(text.into()))
    }
}

impl TryFrom<String> for Name {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Name, Invalid> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.as_str().to_owned()
    }
}

impl AsRef<[u8]> for Name {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_neither_zero_nor_all_ones_and_reads_as_it_is_shown() {
        assert!(TransferId::try_from(0).is_err());
        assert!(TransferId::try_from(u128::MAX).is_err());
        for id in [1, u128::MAX - 1] {
            let id = TransferId::try_from(id).unwrap();
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        for text in [
            "",
            "1",
            &"0".repeat(32),
            &"f".repeat(32),
            &"A".repeat(32),
            &"+".repeat(32),
        ] {
            let error = text.parse::<AccountId>().unwrap_err().to_string();
            assert!(error.contains("is no account id: expected"), "{error}");
        }
    }

    #[test]
    fn derived_ids_stay_what_they_are() {
        let id = TransferId::derive(["saga", "step"]);
        assert_eq!(id.to_string(), "3db9590b364e2c4ed05e3d5f2aaa8142");
        assert_ne!(id.get(), AccountId::derive(["saga", "step"]).get());
        assert_ne!(id, TransferId::derive(["sagas", "tep"]));
        assert_ne!(id, TransferId::derive(["saga", "step", ""]));
    }

    #[test]
    fn a_name_is_short_and_plain() {
        for text in ["t1", "a", "A.b_c-d", &"x".repeat(64)] {
            assert_eq!(text.parse::<Name>().unwrap().as_str(), text);
        }
        for text in ["", "-a", ".", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }
}
