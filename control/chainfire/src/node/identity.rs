//! Who a member is: made at its first start, kept in `member.json`, and never changed.
//!
//! The first members' ids are digests of names, URLs and the cluster's token, so that each of them finds
//! the same without asking. A member that was added later asks the cluster, by its peer URL.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use control_kit::tls::ClientTls;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::config::{ChainfireConfig, ClusterState, InitialMember};
use crate::consensus::Member;
use crate::error::{Error, ErrorKind};
use crate::raft::join;

const FILE: &str = "member.json";

/// A first member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct First {
    id: u64,
    name: String,
    peer_url: String,
}

/// Who a member is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: u64,
    /// The member.
    pub member_id: u64,
    /// The first members, for one of them: until the cluster is made, they may have to make it.
    pub initial: Vec<First>,
}

impl Identity {
    /// The first members, as consensus takes them. All of them have to begin with the same, so that each
    /// tells later where its clients are served; one by itself tells it at once.
    pub fn initial_members(&self, own: &Member) -> BTreeMap<u64, chainfire_core::Member> {
        let client_urls = if self.initial.len() == 1 {
            own.client_urls.clone()
        } else {
            Vec::new()
        };
        let member = |first: &First| chainfire_core::Member {
            name: first.name.clone(),
            peer_urls: vec![first.peer_url.clone()],
            client_urls: client_urls.clone(),
            ..chainfire_core::Member::default()
        };
        self.initial
            .iter()
            .map(|first| (first.id, member(first)))
            .collect()
    }
}

/// Who the member of a data directory is; a new one in an empty directory.
pub async fn take(config: &ChainfireConfig, tls: Option<&ClientTls>) -> Result<Identity, Error> {
    let dir = &config.data_dir;
    let failed = |error: io::Error| {
        let what = format!("cannot use the directory {}", dir.display());
        Error::caused(ErrorKind::Storage, what, error)
    };
    fs::create_dir_all(dir).map_err(failed)?;
    match fs::read(dir.join(FILE)) {
        Ok(text) => {
            return serde_json::from_slice(&text).map_err(|error| {
                let what = format!("{} is damaged", dir.join(FILE).display());
                Error::caused(ErrorKind::Storage, what, error)
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let identity = match config.initial_cluster_state {
        ClusterState::New => first(config)?,
        ClusterState::Existing => added(config, tls).await?,
    };
    keep(dir, &identity).map_err(failed)?;
    Ok(identity)
}

fn keep(dir: &Path, identity: &Identity) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(identity).map_err(io::Error::other)?;
    let new = dir.join("member.json.new");
    let mut file = File::create(&new)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&new, dir.join(FILE))?;
    File::open(dir)?.sync_all()
}

/// Half of a digest of the parts, never 0.
fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    let digest: [u8; 32] = digest.finalize().into();
    let half = digest.first_chunk().expect("32 bytes hold 8");
    u64::from_be_bytes(*half).max(1)
}

fn first(config: &ChainfireConfig) -> Result<Identity, Error> {
    let token = config.initial_cluster_token.as_bytes();
    let id = |member: &InitialMember| {
        digest([token, member.name.as_bytes(), member.peer_url.as_bytes()])
    };
    let mut initial: Vec<First> = config
        .initial_cluster
        .iter()
        .map(|member| First {
            id: id(member),
            name: member.name.clone(),
            peer_url: member.peer_url.clone(),
        })
        .collect();
    initial.sort_by_key(|first| first.id);
    let ids: Vec<[u8; 8]> = initial.iter().map(|first| first.id.to_le_bytes()).collect();
    let own = initial.iter().find(|first| first.name == config.name);
    let Some(own) = own else {
        return Err(Error::new(
            ErrorKind::Config,
            format!(
                "the initial cluster has no member named {}, this one's name",
                config.name
            ),
        ));
    };
    if own.peer_url != config.peer_url() {
        return Err(Error::new(
            ErrorKind::Config,
            format!(
                "the initial cluster has {} at {}, but this member is reached at {}",
                config.name,
                own.peer_url,
                config.peer_url()
            ),
        ));
    }
    Ok(Identity {
        cluster_id: digest(
            [token]
                .into_iter()
                .chain(ids.iter().map(<[u8; 8]>::as_slice)),
        ),
        member_id: own.id,
        initial,
    })
}

async fn added(config: &ChainfireConfig, tls: Option<&ClientTls>) -> Result<Identity, Error> {
    let own = config.peer_url();
    let mut refused = Vec::new();
    for member in &config.initial_cluster {
        if member.peer_url == own {
            continue;
        }
        match join(&member.peer_url, tls, vec![own.to_owned()]).await {
            Ok(answer) => {
                return Ok(Identity {
                    cluster_id: answer.cluster_id,
                    member_id: answer.member_id,
                    initial: Vec::new(),
                });
            }
            Err(status) => refused.push(format!("{}: {}", member.peer_url, status.message())),
        }
    }
    Err(Error::new(
        ErrorKind::Cluster,
        format!(
            "no member of the cluster knows this one at {own}: {}",
            refused.join("; ")
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str, token: &str) -> ChainfireConfig {
        let member = |name: &str, port: u16| InitialMember {
            name: name.into(),
            peer_url: format!("http://127.0.0.1:{port}"),
        };
        ChainfireConfig {
            data_dir: "unused".into(),
            name: name.into(),
            listen: "127.0.0.1:0".parse().unwrap(),
            peer_listen: "127.0.0.1:0".parse().unwrap(),
            advertise_client_urls: Vec::new(),
            advertise_peer_url: Some("http://127.0.0.1:1".into()),
            initial_cluster: vec![member("a", 1), member("b", 2)],
            initial_cluster_state: ClusterState::New,
            initial_cluster_token: token.into(),
            force_new_cluster: false,
            client_tls: None,
            peer_tls: None,
            quota_bytes: 1,
        }
    }

    #[test]
    fn first_members_find_the_same_cluster_and_another_token_another() {
        let a = first(&config("a", "one")).unwrap();
        let mut b = config("b", "one");
        b.advertise_peer_url = Some("http://127.0.0.1:2".into());
        b.initial_cluster.reverse();
        let b = first(&b).unwrap();
        assert_eq!((a.cluster_id, &a.initial), (b.cluster_id, &b.initial));
        assert_ne!(a.member_id, b.member_id);
        let other = first(&config("a", "two")).unwrap();
        assert_ne!(a.cluster_id, other.cluster_id);
        assert_ne!(a.member_id, other.member_id);
    }

    #[test]
    fn a_member_has_to_be_in_its_initial_cluster_where_it_is_reached() {
        let stranger = first(&config("c", "one")).unwrap_err();
        assert!(stranger.to_string().contains("no member named c"));
        let mut moved = config("a", "one");
        moved.advertise_peer_url = Some("http://127.0.0.1:9".into());
        let moved = first(&moved).unwrap_err();
        assert!(moved.to_string().contains("reached at http://127.0.0.1:9"));
    }

    #[tokio::test]
    async fn an_identity_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config("a", "one");
        config.data_dir = dir.path().join("chainfire");
        let made = take(&config, None).await.unwrap();
        config.initial_cluster_token = "two".into();
        assert_eq!(take(&config, None).await.unwrap(), made);
    }
}
