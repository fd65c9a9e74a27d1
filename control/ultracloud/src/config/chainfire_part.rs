//! ChainFire's part of the config.

use std::net::SocketAddr;

use anyhow::{Result, bail};
use chainfire::node::{ChainfireConfig, ClusterState, InitialMember};
use control_kit::config::Source;
use control_kit::tls::TlsFiles;
use serde::Deserialize;
use toml::Spanned;

use super::address;
use crate::{ClusterStateArg, NodeArgs};

const LISTEN: &str = "127.0.0.1:2379";
const PEER_LISTEN: &str = "127.0.0.1:2380";
const NAME: &str = "default";
const TOKEN: &str = "ultracloud";
/// etcd's default, too.
const QUOTA_MIB: u64 = 2048;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawChainfire {
    name: Option<String>,
    listen: Option<SocketAddr>,
    peer_listen: Option<SocketAddr>,
    advertise_client_urls: Vec<String>,
    advertise_peer_url: Option<String>,
    initial_cluster: Option<String>,
    initial_cluster_state: Option<ClusterStateArg>,
    initial_cluster_token: Option<String>,
    quota_mib: Option<Spanned<u64>>,
    client_tls: Option<TlsFiles>,
    peer_tls: Option<TlsFiles>,
}

pub(super) fn validate(
    raw: RawChainfire,
    args: &NodeArgs,
    source: Source<'_>,
) -> Result<ChainfireConfig> {
    let given = &args.chainfire;
    let quota_mib = source.number(raw.quota_mib, QUOTA_MIB, 16..65_537, "chainfire.quota_mib")?;
    let members = given.initial_cluster.clone().or(raw.initial_cluster);
    let initial_cluster = members.as_deref().map_or(Ok(Vec::new()), initial_cluster)?;
    let state = given.initial_cluster_state.or(raw.initial_cluster_state);
    let name = given
        .name
        .clone()
        .or(raw.name)
        .unwrap_or_else(|| NAME.into());
    let own = initial_cluster.iter().find(|member| member.name == name);
    let own_url = own.map(|member| member.peer_url.clone());
    Ok(ChainfireConfig {
        data_dir: args.data_dir.join("chainfire"),
        listen: address(given.listen.or(raw.listen), LISTEN)?,
        peer_listen: address(given.peer_listen.or(raw.peer_listen), PEER_LISTEN)?,
        advertise_client_urls: raw.advertise_client_urls,
        advertise_peer_url: raw.advertise_peer_url.or(own_url),
        initial_cluster,
        initial_cluster_state: match state {
            None | Some(ClusterStateArg::New) => ClusterState::New,
            Some(ClusterStateArg::Existing) => ClusterState::Existing,
        },
        initial_cluster_token: raw.initial_cluster_token.unwrap_or_else(|| TOKEN.into()),
        force_new_cluster: given.force_new_cluster,
        client_tls: raw.client_tls,
        peer_tls: raw.peer_tls,
        quota_bytes: quota_mib << 20,
        name,
    })
}

fn initial_cluster(text: &str) -> Result<Vec<InitialMember>> {
    let member = |part: &str| match part.split_once('=') {
        Some((name, url)) if !name.is_empty() && url.contains("://") => Ok(InitialMember {
            name: name.into(),
            peer_url: url.into(),
        }),
        _ => bail!("the initial cluster has {part:?}; each member is NAME=http://HOST:PORT"),
    };
    text.split(',').map(member).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_members_are_names_and_urls() {
        let members = initial_cluster("a=http://h1:2380,b=https://h2:2380").unwrap();
        assert_eq!(members.len(), 2);
        assert_eq!(members[1].name, "b");
        assert_eq!(members[1].peer_url, "https://h2:2380");
        for wrong in ["", "a", "=http://h:1", "a=h:1"] {
            let said = initial_cluster(wrong).unwrap_err().to_string();
            assert!(said.contains("NAME=http"), "{wrong}: {said}");
        }
    }
}
