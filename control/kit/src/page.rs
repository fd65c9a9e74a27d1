//! Paging: a list is read in pages, and `next` of one is `after` of the following.
//!
//! The token is the last key that was looked at, in hex: it stays right whatever is added or deleted
//! meanwhile, also when that key goes.

use tonic::Code;

use crate::api_error::ApiError;

/// Objects of a page that asks for none in particular.
pub const LIMIT_DEFAULT: usize = 100;
/// Objects of a page at most.
pub const LIMIT_MAX: usize = 1000;

/// How many objects a page holds; 0 asks for the default.
///
/// # Errors
/// `InvalidArgument` when it is too many.
pub fn limit(asked: u32) -> Result<usize, ApiError> {
    match asked as usize {
        0 => Ok(LIMIT_DEFAULT),
        asked if asked <= LIMIT_MAX => Ok(asked),
        asked => {
            let what = format!("a page has at most {LIMIT_MAX} objects, not {asked}");
            Err(ApiError::new(Code::InvalidArgument, "page-too-long", what)
                .object("limit")
                .next("ask for the next page with `after`"))
        }
    }
}

/// The token of the page behind a key; empty without one.
pub fn token(last: Option<&str>) -> String {
    last.map_or_else(String::new, hex::encode)
}

/// The key in a token; `None` in an empty one, which asks for the first page.
///
/// # Errors
/// `InvalidArgument` when it is no token.
pub fn key(token: &str) -> Result<Option<String>, ApiError> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes = hex::decode(token).ok();
    let key = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    key.map(Some).ok_or_else(no_token)
}

/// The key, if it lies below a prefix, as keys of that list do.
///
/// # Errors
/// `InvalidArgument` when it does not: it is another list's.
pub fn below<'a>(prefix: &str, key: &'a str) -> Result<&'a str, ApiError> {
    let known = key.starts_with(prefix);
    known.then_some(key).ok_or_else(no_token)
}

fn no_token() -> ApiError {
    let what = "this is not the `next` of a page";
    ApiError::new(Code::InvalidArgument, "invalid-page-token", what)
        .object("after")
        .next("begin without `after`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_gives_its_key_back_and_anything_else_is_refused() {
        let key = "saga/open/ä";
        assert_eq!(super::key(&token(Some(key))).unwrap().as_deref(), Some(key));
        assert_eq!(super::key("").unwrap(), None);
        assert_eq!(token(None), "");
        for wrong in ["6", "zz", "ff", "6+", "é1"] {
            assert!(super::key(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_page_has_a_length() {
        assert_eq!(limit(0).unwrap(), LIMIT_DEFAULT);
        assert_eq!(limit(1000).unwrap(), 1000);
        assert_eq!(limit(1001).unwrap_err().code(), "page-too-long");
    }
}
