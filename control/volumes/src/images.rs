//! Images that volumes are made from. Where they are kept is the node's affair: it says so by a catalogue.

use std::rc::Rc;

use control_kit::api::Caller;
use control_kit::api_error::ApiError;
use coronafs::{ImagePhase, ImageRef, ImageResolver, ImageState};
use coronafs_api::v1;
use futures_util::future::BoxFuture;

/// Finds images for users, and their bytes for shards.
pub trait ImageCatalog: Send + Sync + 'static {
    /// An image by the name that a user gives it, who must be allowed to read it.
    fn find<'a>(
        &'a self,
        caller: &'a Caller,
        name: &'a str,
    ) -> BoxFuture<'a, Result<ImageRef, ApiError>>;

    /// What finds the bytes of images on the shard that calls it.
    fn resolver(&self) -> Rc<dyn ImageResolver>;
}

/// An image as its volume's users see it.
pub(crate) fn shown(image: ImageState) -> v1::VolumeImage {
    let phase = match image.phase {
        ImagePhase::Filling => "filling",
        ImagePhase::Filled => "filled",
        ImagePhase::Failed => "failed",
    };
    v1::VolumeImage {
        identity: image.identity,
        phase: phase.to_owned(),
        filled_bytes: image.filled_bytes,
        total_bytes: image.total_bytes,
        verified: image.verified,
        error: image.error.unwrap_or_default(),
    }
}

/// SHA-256 in hexadecimal digits, also with `sha256:` before them.
pub(crate) fn parse_digest(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let mut digest = [0; 32];
    hex::decode_to_slice(digits, &mut digest).ok()?;
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_64_digits() {
        let digits = "0123456789abcdef".repeat(4);
        let digest = parse_digest(&digits).expect("a digest");
        assert_eq!((digest[0], digest[31]), (0x01, 0xEF));
        assert_eq!(parse_digest(&format!("sha256:{digits}")), Some(digest));
        for wrong in ["", "sha256:", &digits[1..], &digits.replace('f', "g")] {
            assert_eq!(parse_digest(wrong), None, "{wrong}");
        }
    }
}
