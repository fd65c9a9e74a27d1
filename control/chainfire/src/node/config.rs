//! What a member is told.

use std::net::SocketAddr;
use std::path::PathBuf;

use control_kit::tls::TlsFiles;

use crate::consensus::Member;

/// Whether the cluster is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClusterState {
    /// The first members make it.
    #[default]
    New,
    /// It is there, and this member was added to it.
    Existing,
}

/// A first member, or one of a cluster to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialMember {
    /// Its name.
    pub name: String,
    /// Where other members reach it.
    pub peer_url: String,
}

/// What a member works by.
#[derive(Clone, Debug)]
pub struct ChainfireConfig {
    /// Where it keeps everything.
    pub data_dir: PathBuf,
    /// Its name.
    pub name: String,
    /// Where clients are served.
    pub listen: SocketAddr,
    /// Where other members are served.
    pub peer_listen: SocketAddr,
    /// What clients are told to use; what it listens on, when empty.
    pub advertise_client_urls: Vec<String>,
    /// What other members are told to use; what it listens on, when not given.
    pub advertise_peer_url: Option<String>,
    /// The first members; this one alone, when empty. Only a member's first start looks at them.
    pub initial_cluster: Vec<InitialMember>,
    /// Whether the cluster is there already.
    pub initial_cluster_state: ClusterState,
    /// Tells clusters apart that were made of the same members.
    pub initial_cluster_token: String,
    /// Makes the member of the data directory the only one of its cluster: for one survivor, after a
    /// majority of the voters was lost for good.
    pub force_new_cluster: bool,
    /// TLS towards clients.
    pub client_tls: Option<TlsFiles>,
    /// TLS between members.
    pub peer_tls: Option<TlsFiles>,
    /// Bytes of keys and values, with history, at most.
    pub quota_bytes: u64,
}

impl ChainfireConfig {
    /// With what it listens on put in where nothing else was said.
    pub(super) fn with_addresses(mut self, client: SocketAddr, peer: SocketAddr) -> Self {
        let scheme = |tls: &Option<TlsFiles>| if tls.is_some() { "https" } else { "http" };
        if self.advertise_client_urls.is_empty() {
            self.advertise_client_urls = vec![format!("{}://{client}", scheme(&self.client_tls))];
        }
        let own = || format!("{}://{peer}", scheme(&self.peer_tls));
        let peer_url = self.advertise_peer_url.take().unwrap_or_else(own);
        if self.initial_cluster.is_empty() {
            self.initial_cluster = vec![InitialMember {
                name: self.name.clone(),
                peer_url: peer_url.clone(),
            }];
        }
        self.advertise_peer_url = Some(peer_url);
        self
    }

    /// This member's own peer URL.
    pub(super) fn peer_url(&self) -> &str {
        self.advertise_peer_url.as_deref().unwrap_or_default()
    }

    /// This member as the cluster should know it. Its peer URL is the cluster's own matter.
    pub(super) fn own_member(&self, id: u64) -> Member {
        Member {
            id,
            name: self.name.clone(),
            client_urls: self.advertise_client_urls.clone(),
            ..Member::default()
        }
    }
}
