//! A leader that is cut off from the other members, in both directions and in either one. Clients reach
//! all members all the time.

use std::time::Instant;

use crate::cluster::{Cluster, number, others};
use crate::judge::judge;
use crate::load::Load;
use crate::network::isolated;

/// What the leader loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Both,
    /// Nobody hears it.
    Outgoing,
    /// It hears nobody.
    Incoming,
}

fn cut_off(cluster: &Cluster, cut: Cut) {
    let load = Load::start(cluster.urls());
    load.progress(50);
    let leads = cluster.leader();
    for other in others(leads) {
        let (leads, other) = (number(leads), number(other));
        if cut != Cut::Incoming {
            cluster.network.cut(leads, other);
        }
        if cut != Cut::Outgoing {
            cluster.network.cut(other, leads);
        }
    }
    let struck = Instant::now();
    // Only a write that needs no answer of the old leader can be acknowledged now.
    println!(
        "{cut:?} lost: served again after {:?}",
        load.served_since(struck)
    );
    load.progress(50);
    cluster.network.heal();
    cluster.leader();
    load.progress(50);
    judge(&cluster.urls(), &load.end());
}

#[test]
fn a_leader_that_is_cut_off_in_both_directions_is_replaced() {
    isolated(
        a_leader_that_is_cut_off_in_both_directions_is_replaced,
        |network| {
            cut_off(&Cluster::start(network), Cut::Both);
        },
    );
}

#[test]
fn a_leader_that_nobody_hears_is_replaced() {
    isolated(a_leader_that_nobody_hears_is_replaced, |network| {
        cut_off(&Cluster::start(network), Cut::Outgoing);
    });
}

#[test]
fn a_leader_that_hears_nobody_is_replaced() {
    isolated(a_leader_that_hears_nobody_is_replaced, |network| {
        cut_off(&Cluster::start(network), Cut::Incoming);
    });
}
