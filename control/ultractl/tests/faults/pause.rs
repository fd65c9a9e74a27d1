//! A leader whose process stands still, as on a machine that is frozen or migrated.

use std::time::Instant;

use crate::cluster::Cluster;
use crate::judge::judge;
use crate::load::Load;
use crate::network::isolated;

#[test]
fn a_leader_that_was_stopped_answers_no_read_with_what_is_old() {
    isolated(
        a_leader_that_was_stopped_answers_no_read_with_what_is_old,
        |network| {
            let cluster = Cluster::start(network);
            let load = Load::start(cluster.urls());
            load.progress(50);
            for _ in 0..2 {
                let leads = cluster.leader();
                cluster.members[leads].signal("STOP");
                let struck = Instant::now();
                println!(
                    "leader stopped: served again after {:?}",
                    load.served_since(struck)
                );
                load.progress(50);
                // They wait in the sockets of the stopped process, which still believes that it leads.
                let asked = load.ask(leads);
                load.progress(20);
                cluster.members[leads].signal("CONT");
                load.join(asked);
                load.progress(20);
            }
            cluster.leader();
            judge(&cluster.urls(), &load.end());
        },
    );
}
