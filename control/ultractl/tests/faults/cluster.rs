//! Three members, each on a host of its own.

use std::path::PathBuf;

use crate::network::{Network, enter, host};
use crate::support::cluster::{initial, leader};
use crate::support::{Member, Setup};

/// How many there are.
pub const MEMBERS: usize = 3;
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;

/// The members; the one at place 0 is on host 1.
pub struct Cluster<'a> {
    pub network: &'a Network,
    pub members: Vec<Member>,
}

/// The host of the member at a place.
pub fn number(place: usize) -> u16 {
    place as u16 + 1
}

impl<'a> Cluster<'a> {
    /// Starts them and waits for a leader.
    pub fn start(network: &'a Network) -> Cluster<'a> {
        Cluster::with_data(network, |_| None)
    }

    /// Starts them, each with its data where `data` says.
    pub fn with_data(network: &'a Network, data: impl Fn(usize) -> Option<PathBuf>) -> Cluster<'a> {
        let entry = |place: usize| {
            let number = number(place);
            format!("m{number}=http://{}:{PEER_PORT}", host(number))
        };
        let all: Vec<String> = (0..MEMBERS).map(entry).collect();
        let member = |place: usize| {
            let number = number(place);
            network.add(number);
            Member::of(Setup {
                name: format!("m{number}"),
                listen: format!("{}:{CLIENT_PORT}", host(number)),
                peer_listen: format!("{}:{PEER_PORT}", host(number)),
                args: initial(&all.join(","), "new"),
                enter: enter(number),
                data: data(place),
                ..Setup::default()
            })
        };
        let members = (0..MEMBERS).map(member).collect();
        let cluster = Cluster { network, members };
        cluster.leader();
        cluster
    }

    /// Who leads, once all that run agree.
    pub fn leader(&self) -> usize {
        leader(&self.members)
    }

    /// Where clients are served, member by member.
    pub fn urls(&self) -> Vec<String> {
        let url = |member: &Member| format!("http://{}", member.client);
        self.members.iter().map(url).collect()
    }
}

/// The places of the others.
pub fn others(place: usize) -> impl Iterator<Item = usize> {
    (0..MEMBERS).filter(move |other| *other != place)
}
