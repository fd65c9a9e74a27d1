//! Users of LightningStor: `[[lightningstor.user]]`.

use std::fmt;

use anyhow::Result;
use control_kit::auth::{Principal, Tokens};
use control_kit::config::Source;
use lightningstor::access::ROOT_ID;
use lightningstor::http::User;
use serde::Deserialize;
use toml::Spanned;

use crate::credentials::{check_access_key, check_token};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawUser {
    id: Option<Spanned<String>>,
    name: Spanned<String>,
    access_key: Spanned<String>,
    secret_key: Spanned<String>,
    token: Option<Spanned<String>>,
}

/// A user's token for the node's API.
#[derive(Clone)]
pub struct UserToken {
    user: Box<str>,
    token: Box<str>,
}

impl fmt::Debug for UserToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserToken")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Who shows one of these tokens, or root's, is that user.
pub fn authenticate(users: &[UserToken], root: &str) -> Tokens {
    let principal = |id: &str| Principal {
        name: id.into(),
        tenant: id.into(),
        is_operator: id == ROOT_ID,
    };
    let tokens = Tokens::default().token(root, principal(ROOT_ID));
    users.iter().fold(tokens, |tokens, one| {
        tokens.token(&one.token, principal(&one.user))
    })
}

/// The users, and the tokens of those that have one.
pub fn users(raw: Vec<RawUser>, source: Source<'_>) -> Result<(Vec<User>, Vec<UserToken>)> {
    let mut users: Vec<User> = Vec::with_capacity(raw.len());
    let mut tokens: Vec<UserToken> = Vec::new();
    for mut raw in raw {
        let key = raw.access_key.span();
        let shown = raw.id.as_ref().unwrap_or(&raw.name).span();
        let token = raw.token.take();
        let user = user(raw, source)?;
        if users
            .iter()
            .any(|other| other.access_key == user.access_key)
        {
            let what = "this access_key is listed already; each entry needs its own";
            return source.refuse(&key, what);
        }
        if users
            .iter()
            .any(|other| other.id == user.id && other.name != user.name)
        {
            let what = "this id has another name above; the entries of a user share id and name";
            return source.refuse(&shown, what);
        }
        if let Some(token) = token {
            if let Err(error) = check_token(token.get_ref()) {
                return source.refuse(&token.span(), &error.to_string());
            }
            if tokens.iter().any(|other| *other.token == **token.get_ref()) {
                let what = "this token is listed already; each entry needs its own";
                return source.refuse(&token.span(), what);
            }
            tokens.push(UserToken {
                user: user.id.clone(),
                token: token.into_inner().into(),
            });
        }
        users.push(user);
    }
    Ok((users, tokens))
}

/// Without an id the name is the identity, as it was before there were ids.
fn user(raw: RawUser, source: Source<'_>) -> Result<User> {
    let id = raw.id.unwrap_or_else(|| raw.name.clone());
    for (what, text) in [("name", &raw.name), ("id", &id)] {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.@".contains(&b);
        let value = text.get_ref();
        if !value.bytes().all(plain) || !(1..=64).contains(&value.len()) {
            let what = format!("a user's {what} has 1 to 64 letters, digits and -_.@");
            return source.refuse(&text.span(), &what);
        }
    }
    if *id.get_ref() == ROOT_ID {
        let what = "the id root is the node's own user; give this one another id";
        return source.refuse(&id.span(), what);
    }
    if let Err(error) = check_access_key(raw.access_key.get_ref()) {
        return source.refuse(&raw.access_key.span(), &error.to_string());
    }
    if raw.secret_key.get_ref().len() < 8 {
        let what = "a secret_key has at least 8 characters";
        return source.refuse(&raw.secret_key.span(), what);
    }
    Ok(User {
        id: id.into_inner().into(),
        name: raw.name.into_inner().into(),
        access_key: raw.access_key.into_inner().into(),
        secret_key: raw.secret_key.into_inner().into(),
    })
}
