//! The client's side: signing requests and URLs, for tests, benchmarks and calls between nodes.

use sha2::{Digest as _, Sha256};

use super::canonical::{self, UNSIGNED_PAYLOAD};
use super::key::{ChunkSeed, SigningKey};
use crate::error::Result;
use crate::timestamp::amz_date;
use crate::uri;

/// Who signs, for which region, at what time.
#[derive(Clone, Copy)]
pub struct Signer<'a> {
    /// The access key.
    pub access_key: &'a str,
    /// Its secret.
    pub secret: &'a str,
    /// The session token, if any; [`presign`] puts it into the URL, and for [`sign_request`] it
    /// becomes the header `x-amz-security-token`, which the caller has to send.
    pub session_token: Option<&'a str>,
    /// The region of the scope.
    pub region: &'a str,
    /// The time of signing, in seconds since 1970.
    pub unix_s: i64,
}

/// A request to be signed.
#[derive(Debug, Clone, Copy)]
pub struct RequestToSign<'a> {
    /// GET, PUT, ...
    pub method: &'a str,
    /// The percent-coded path.
    pub path: &'a str,
    /// The percent-coded query, without `?`.
    pub query: &'a str,
    /// The headers to sign as (lower-case name, value), `host` among them, in any order. The
    /// functions here add x-amz-date, x-amz-content-sha256 and x-amz-security-token themselves.
    pub headers: &'a [(&'a str, &'a str)],
}

/// What to add to a request so that it is signed.
#[derive(Debug, Clone)]
pub struct SignedRequest {
    /// The Authorization header.
    pub authorization: String,
    /// The x-amz-date header.
    pub amz_date: String,
    /// The start of the chunk signature chain, for streamed bodies.
    pub seed: ChunkSeed,
}

impl Signer<'_> {
    fn stamp(&self) -> [u8; 16] {
        amz_date(self.unix_s)
    }

    fn scope(&self) -> String {
        format!("{}/{}/s3/aws4_request", self.date(), self.region)
    }

    fn date(&self) -> String {
        String::from_utf8_lossy(&self.stamp()[..8]).into_owned()
    }

    fn key(&self) -> SigningKey {
        SigningKey::derive(self.secret, &self.date(), self.region)
    }
}

/// Signs a request; `payload` is the value of x-amz-content-sha256.
///
/// # Errors
/// InvalidURI for a path or query that cannot be decoded.
pub fn sign_request(
    signer: &Signer<'_>,
    request: &RequestToSign<'_>,
    payload: &str,
) -> Result<SignedRequest> {
    let stamp = signer.stamp();
    let stamp_text = String::from_utf8_lossy(&stamp).into_owned();
    let mut headers = request.headers.to_vec();
    headers.push(("x-amz-date", &stamp_text));
    headers.push(("x-amz-content-sha256", payload));
    headers.extend(
        signer
            .session_token
            .map(|token| ("x-amz-security-token", token)),
    );
    let (signed, key, signature) = sign(signer, request, &mut headers, payload)?;
    let scope = signer.scope();
    Ok(SignedRequest {
        authorization: format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={signed},Signature={}",
            signer.access_key,
            hex::encode(signature)
        ),
        seed: ChunkSeed::new(&key, &stamp, &scope, signature),
        amz_date: stamp_text,
    })
}

/// The query of a presigned URL that lives for `expires_s` seconds.
///
/// # Errors
/// InvalidURI for a path or query that cannot be decoded.
pub fn presign(signer: &Signer<'_>, request: &RequestToSign<'_>, expires_s: u32) -> Result<String> {
    let mut names: Vec<&str> = request.headers.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    let credential = format!("{}/{}", signer.access_key, signer.scope());
    let mut query = request.query.as_bytes().to_vec();
    let stamp = signer.stamp();
    for (name, value) in [
        ("X-Amz-Algorithm", Some("AWS4-HMAC-SHA256")),
        ("X-Amz-Credential", Some(&*credential)),
        ("X-Amz-Date", Some(&*String::from_utf8_lossy(&stamp))),
        ("X-Amz-Expires", Some(itoa::Buffer::new().format(expires_s))),
        ("X-Amz-Security-Token", signer.session_token),
        ("X-Amz-SignedHeaders", Some(&*names.join(";"))),
    ] {
        let Some(value) = value else { continue };
        if !query.is_empty() {
            query.push(b'&');
        }
        query.extend_from_slice(name.as_bytes());
        query.push(b'=');
        uri::encode_query(&mut query, value);
    }
    let query = String::from_utf8_lossy(&query).into_owned();
    let request = RequestToSign {
        query: &query,
        ..*request
    };
    let (_, _, signature) = sign(
        signer,
        &request,
        &mut request.headers.to_vec(),
        UNSIGNED_PAYLOAD,
    )?;
    Ok(format!(
        "{query}&X-Amz-Signature={}",
        hex::encode(signature)
    ))
}

fn sign(
    signer: &Signer<'_>,
    request: &RequestToSign<'_>,
    headers: &mut [(&str, &str)],
    payload: &str,
) -> Result<(String, SigningKey, [u8; 32])> {
    headers.sort_unstable();
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let signed = names.join(";");
    let mut text = Vec::with_capacity(512);
    canonical::first_lines(
        &mut text,
        request.method,
        request.path,
        request.query,
        false,
    )?;
    for (name, value) in headers {
        text.extend_from_slice(name.as_bytes());
        text.push(b':');
        canonical::fold_spaces(&mut text, value);
        text.push(b'\n');
    }
    canonical::last_lines(&mut text, &signed, payload);
    let digest = Sha256::digest(&text);
    text.clear();
    canonical::string_to_sign(&mut text, &signer.stamp(), &signer.scope(), &digest.into());
    let key = signer.key();
    let signature = key.sign(&text);
    Ok((signed, key, signature))
}
