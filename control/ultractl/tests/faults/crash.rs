//! Members that are killed, as by a power cut of their machines.

use std::time::Instant;

use crate::cluster::{Cluster, others};
use crate::judge::judge;
use crate::load::Load;
use crate::network::isolated;

#[test]
fn a_killed_leader_and_a_killed_follower_lose_nothing() {
    isolated(
        a_killed_leader_and_a_killed_follower_lose_nothing,
        |network| {
            let mut cluster = Cluster::start(network);
            let load = Load::start(cluster.urls());
            load.progress(50);
            let leads = cluster.leader();
            cluster.members[leads].kill();
            let struck = Instant::now();
            println!(
                "leader killed: served again after {:?}",
                load.served_since(struck)
            );
            load.progress(50);
            cluster.members[leads].restart();
            let leads = cluster.leader();
            let follower = others(leads).next().unwrap();
            cluster.members[follower].kill();
            load.progress(50);
            cluster.members[follower].restart();
            load.progress(20);
            cluster.leader();
            judge(&cluster.urls(), &load.end());
        },
    );
}

#[test]
fn all_members_killed_at_once_come_back_with_everything() {
    isolated(
        all_members_killed_at_once_come_back_with_everything,
        |network| {
            let mut cluster = Cluster::start(network);
            let load = Load::start(cluster.urls());
            load.progress(100);
            for member in &mut cluster.members {
                member.kill();
            }
            for member in &mut cluster.members {
                member.restart();
            }
            load.progress(50);
            cluster.leader();
            judge(&cluster.urls(), &load.end());
        },
    );
}
