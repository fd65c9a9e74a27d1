//! What a new volume is to be.

use bytesize::ByteSize;
use coronafs_api::v1;

use super::Limits;

/// A new volume.
#[derive(Debug, clap::Args)]
pub struct Create {
    /// Its name.
    name: String,
    /// Its size, as 10GiB; a multiple of 4 KiB [default: the image's].
    #[arg(long, required_unless_present = "image")]
    size: Option<ByteSize>,
    /// An object of LightningStor on the same node that it is to hold. It can be used at once, and is
    /// filled when something is read, and in the background.
    #[arg(long, value_name = "BUCKET/KEY")]
    image: Option<String>,
    /// The image's SHA-256 [default: the one kept with the object, if there is one].
    #[arg(long, value_name = "HEX", requires = "image")]
    image_sha256: Option<String>,
    #[command(flatten)]
    limits: Limits,
    /// Encrypts its blocks on disk, by a key of its own.
    #[arg(long)]
    encrypted: bool,
    /// Keeps a checksum of each block, which every read verifies.
    #[arg(long)]
    checksums: bool,
}

impl Create {
    /// What the node is asked.
    pub fn request(self, owner: String) -> v1::CreateVolumeRequest {
        v1::CreateVolumeRequest {
            name: self.name,
            owner,
            bytes: self.size.map_or(0, |size| size.as_u64()),
            limits: Some(self.limits.into()),
            encrypted: self.encrypted,
            checksums: self.checksums,
            from_image: self.image.unwrap_or_default(),
            image_sha256: self.image_sha256.unwrap_or_default(),
            ..v1::CreateVolumeRequest::default()
        }
    }
}
