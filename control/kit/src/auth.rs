//! Who calls: a bearer token's principal, or the one that a verified certificate names.
//!
//! Tokens are kept as SHA-256 alone, and looked up by it, so that neither memory nor timing tells one.

use std::collections::HashMap;
use std::sync::Arc;

use axum::http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};
use tonic::Code;

use crate::api_error::ApiError;
use crate::server::Peer;

/// Who calls, and for which tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Principal {
    /// A person's or program's name.
    pub name: Box<str>,
    /// Whose objects it sees and changes.
    pub tenant: Box<str>,
    /// Whether it sees every tenant's.
    pub is_operator: bool,
}

/// Tells who calls.
pub trait Authenticate: Send + Sync + 'static {
    /// Who calls, by what a request's head and its connection show.
    ///
    /// # Errors
    /// `Unauthenticated`, with what to do.
    fn authenticate(
        &self,
        headers: &HeaderMap,
        peer: Option<&Peer>,
    ) -> Result<Arc<Principal>, ApiError>;
}

/// Tokens and certificates' names that a config lists.
#[derive(Debug, Default)]
pub struct Tokens {
    by_digest: HashMap<[u8; 32], Arc<Principal>>,
    by_common_name: HashMap<Box<str>, Arc<Principal>>,
}

impl Tokens {
    /// Whoever shows this token is this principal.
    pub fn token(mut self, token: &str, principal: Principal) -> Tokens {
        self.by_digest.insert(digest(token), Arc::new(principal));
        self
    }

    /// Whoever shows a certificate with this common name, and no token, is this principal.
    pub fn common_name(mut self, name: &str, principal: Principal) -> Tokens {
        self.by_common_name.insert(name.into(), Arc::new(principal));
        self
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

impl Authenticate for Tokens {
    fn authenticate(
        &self,
        headers: &HeaderMap,
        peer: Option<&Peer>,
    ) -> Result<Arc<Principal>, ApiError> {
        let refused = |what: &str| {
            ApiError::new(Code::Unauthenticated, "not-authenticated", what)
                .next("send `authorization: Bearer TOKEN` with a token of this service")
        };
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            let name = peer.and_then(|peer| peer.common_name.as_deref());
            let named = name.and_then(|name| self.by_common_name.get(name));
            return named
                .cloned()
                .ok_or_else(|| refused("the request shows no token"));
        };
        let token = value.to_str().ok().and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token)
        });
        let token = token.ok_or_else(|| refused("the authorization is no bearer token"))?;
        let known = self.by_digest.get(&digest(token)).cloned();
        known.ok_or_else(|| refused("the token is not known"))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn principal(name: &str) -> Principal {
        Principal {
            name: name.into(),
            tenant: "t".into(),
            is_operator: false,
        }
    }

    fn with(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        headers
    }

    #[test]
    fn a_token_names_its_principal_and_nothing_else_does() {
        let tokens = Tokens::default()
            .token("secret", principal("ann"))
            .common_name("node-7", principal("node"));
        let ann = tokens.authenticate(&with("bearer secret"), None).unwrap();
        assert_eq!(&*ann.name, "ann");
        for wrong in ["Bearer secre", "Bearer ", "Basic secret", "secret"] {
            let error = tokens.authenticate(&with(wrong), None).unwrap_err();
            assert_eq!(error.code(), "not-authenticated");
        }
        let peer = |name: &str| Peer {
            addr: "127.0.0.1:1".parse().unwrap(),
            common_name: Some(name.into()),
        };
        let none = HeaderMap::new();
        assert_eq!(
            &*tokens
                .authenticate(&none, Some(&peer("node-7")))
                .unwrap()
                .name,
            "node"
        );
        assert!(tokens.authenticate(&none, Some(&peer("node-8"))).is_err());
        // A wrong token is not mended by a certificate.
        assert!(
            tokens
                .authenticate(&with("Bearer x"), Some(&peer("node-7")))
                .is_err()
        );
    }
}
