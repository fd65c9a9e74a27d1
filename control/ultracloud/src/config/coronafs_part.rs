//! CoronaFS's part of the config.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use control_kit::config::Source;
use control_kit::tls::{ClientTls, ServerTls, TlsFiles};
use coronafs::VolumeConfig;
use serde::Deserialize;
use toml::Spanned;
use volumes::NodeConfig;

use crate::credentials;

/// The directory of everything of CoronaFS, in the data directory.
const ROOT: &str = "coronafs";
const SOCKETS: &str = "sockets";
/// Longest path of a socket's directory: the kernel takes 107 bytes with the name, which has up to 42.
const SOCKET_DIR_BYTES_MAX: usize = 64;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawCoronaFs {
    socket_dir: Option<Spanned<PathBuf>>,
    partitions: Option<Spanned<u16>>,
    master_key_file: Option<PathBuf>,
    nbd_tls: Option<TlsFiles>,
    scrub_bytes_per_s: Option<u64>,
    image_bytes_per_s: Option<u64>,
    remote_tls: Option<TlsFiles>,
}

/// What CoronaFS is told, but for the number of shards.
#[derive(Clone, Debug)]
pub struct CoronaFsPart {
    root: PathBuf,
    sockets: PathBuf,
    partitions: Option<u16>,
    master_key_file: Option<PathBuf>,
    nbd_tls: Option<TlsFiles>,
    scrub_bytes_per_s: u64,
    image_bytes_per_s: u64,
    remote_tls: Option<TlsFiles>,
}

impl CoronaFsPart {
    /// What a node with so many shards is told.
    ///
    /// # Errors
    /// When the sockets' paths would be too long for the kernel, or the master key or a certificate cannot be
    /// read.
    pub fn node(&self, data_dir: &Path, shards: usize) -> Result<NodeConfig> {
        let bytes = self.sockets.as_os_str().len();
        anyhow::ensure!(
            bytes <= SOCKET_DIR_BYTES_MAX,
            "the directory of sockets {} has {bytes} bytes, and {SOCKET_DIR_BYTES_MAX} are allowed; \
             set coronafs.socket_dir to a shorter one",
            self.sockets.display()
        );
        Ok(NodeConfig {
            root: self.root.clone(),
            sockets: self.sockets.clone(),
            partitions: self.partitions.unwrap_or(shards as u16),
            volumes: VolumeConfig {
                master_key: Some(credentials::load_master_key(
                    data_dir,
                    self.master_key_file.as_deref(),
                )?),
                scrub_bytes_per_s: self.scrub_bytes_per_s,
                image_bytes_per_s: self.image_bytes_per_s,
                ..VolumeConfig::default()
            },
            nbd_tls: self.nbd_tls.clone().map(ServerTls::open).transpose()?,
            images: None,
            remote_tls: self.remote_tls.clone().map(ClientTls::open).transpose()?,
        })
    }
}

pub(super) fn validate(
    raw: RawCoronaFs,
    data_dir: &Path,
    source: Source<'_>,
) -> Result<CoronaFsPart> {
    let partitions = match raw.partitions {
        None => None,
        raw => Some(source.number(raw, 1, 1..1025, "coronafs.partitions")?),
    };
    let default = VolumeConfig::default();
    let root = data_dir.join(ROOT);
    let sockets = match raw.socket_dir {
        Some(given) if given.get_ref().as_os_str().is_empty() => {
            return source.refuse(&given.span(), "coronafs.socket_dir is empty");
        }
        Some(given) => given.into_inner(),
        None => root.join(SOCKETS),
    };
    // Guests are started from elsewhere.
    let sockets = std::path::absolute(&sockets)
        .with_context(|| format!("cannot tell where {} is", sockets.display()))?;
    Ok(CoronaFsPart {
        root,
        sockets,
        partitions,
        master_key_file: raw.master_key_file,
        nbd_tls: raw.nbd_tls,
        scrub_bytes_per_s: raw.scrub_bytes_per_s.unwrap_or(default.scrub_bytes_per_s),
        image_bytes_per_s: raw.image_bytes_per_s.unwrap_or(default.image_bytes_per_s),
        remote_tls: raw.remote_tls,
    })
}
