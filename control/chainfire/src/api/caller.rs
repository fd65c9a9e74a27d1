//! Who asks: a token, made for a user whose password was right, and checked at each request.
//!
//! A token names its user, the auth revision at which it was made and when it ends, and is signed with
//! a key that the state machine keeps. So each member takes the tokens of all, and keeps none.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use chainfire_store::{Auth, Identity};
use etcd_wire::RpcError;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// How long a token holds: etcd's time for its simple tokens.
const TOKEN_TTL: Duration = Duration::from_mins(5);

/// On whose behalf a request comes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Empty: nobody.
    pub user: String,
    /// The auth revision when the user was authenticated; 0: nobody.
    pub auth_revision: u64,
}

impl Caller {
    /// As the store takes it.
    pub fn identity(&self) -> Identity<'_> {
        Identity {
            user: &self.user,
            revision: self.auth_revision,
        }
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// `InvalidAuthToken` for one that was not made here or has ended.
    pub fn of_token(auth: &Auth, token: &str) -> Result<Caller, RpcError> {
        verify(auth.token_key(), token, unix_s()).ok_or(RpcError::InvalidAuthToken)
    }

    /// A token for a user.
    pub fn token(&self, auth: &Auth) -> String {
        sign(auth.token_key(), self, unix_s() + TOKEN_TTL.as_secs())
    }
}

fn unix_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn mac(key: &[u8], text: &str) -> Hmac<Sha256> {
    let mac = Hmac::<Sha256>::new_from_slice(key);
    let mut mac = mac.expect("HMAC takes keys of any length");
    mac.update(text.as_bytes());
    mac
}

/// User in base64, auth revision and end in decimal, signature in base64, between dots.
fn sign(key: &[u8], caller: &Caller, end_s: u64) -> String {
    let user = BASE64.encode(&caller.user);
    let text = format!("{user}.{}.{end_s}", caller.auth_revision);
    let signature = BASE64.encode(mac(key, &text).finalize().into_bytes());
    format!("{text}.{signature}")
}

fn verify(key: &[u8], token: &str, now_s: u64) -> Option<Caller> {
    let (text, signature) = token.rsplit_once('.')?;
    let signature = BASE64.decode(signature).ok()?;
    mac(key, text).verify_slice(&signature).ok()?;
    let mut parts = text.split('.');
    let user = String::from_utf8(BASE64.decode(parts.next()?).ok()?).ok()?;
    let auth_revision = parts.next()?.parse().ok()?;
    let end_s: u64 = parts.next()?.parse().ok()?;
    (now_s < end_s).then_some(Caller {
        user,
        auth_revision,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_holds_until_its_end_and_only_under_its_key() {
        let caller = Caller {
            user: "a.b".into(),
            auth_revision: 7,
        };
        let token = sign(b"key", &caller, 100);
        assert_eq!(verify(b"key", &token, 99), Some(caller));
        assert_eq!(verify(b"key", &token, 100), None);
        assert_eq!(verify(b"other", &token, 99), None);
        let forged = token.replacen(".7.", ".8.", 1);
        assert_eq!(verify(b"key", &forged, 99), None);
        for broken in ["", ".", "a.b.c.d", "YQ.1.200."] {
            assert_eq!(verify(b"key", broken, 99), None, "{broken}");
        }
    }
}
