//! The next hops to backends, as the kernel's routes and neighbours have them.
//!
//! They are looked up when the backends change, when the kernel tells that routes, neighbours or links did,
//! and now and then. A neighbour that nobody knows is made known by a packet to it; one that the kernel
//! has not heard of for a while is asked again in the same way. Backends on this machine and behind links
//! without addresses have no next hop: the stack takes their packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use fiberlb_abi::Hop;
use futures_util::StreamExt as _;
use futures_util::stream::TryStreamExt as _;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::model::{Way, Ways};

/// Between two look-ups at most.
const REFRESH: Duration = Duration::from_secs(15);
/// While neighbours are missing.
const MISSING: Duration = Duration::from_millis(250);
/// Between two look-ups at least: a burst of the kernel's news is one.
const SETTLE: Duration = Duration::from_millis(50);
/// Between two tries to reach the kernel.
const RECONNECT: Duration = Duration::from_secs(1);
/// Port of the packets that make neighbours known: discard.
const PROBE_PORT: u16 = 9;

/// Tells ways whenever they change, until nobody listens.
pub async fn follow(addresses: watch::Receiver<BTreeSet<IpAddr>>, tell: mpsc::Sender<Ways>) {
    let mut told = None;
    while !tell.is_closed() {
        if let Err(error) = follow_once(addresses.clone(), &tell, &mut told).await {
            tracing::warn!(%error, "the kernel's routes cannot be read");
        }
        sleep(RECONNECT).await;
    }
}

async fn follow_once(
    mut addresses: watch::Receiver<BTreeSet<IpAddr>>,
    tell: &mpsc::Sender<Ways>,
    told: &mut Option<Ways>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (connection, handle, mut news) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ])?;
    let connection = tokio::spawn(connection);
    let _ends = Ends(connection);
    let probe = Probe::new().await?;
    loop {
        let wanted = addresses.borrow_and_update().clone();
        let (ways, missing) = look_up(&handle, &wanted, &probe).await?;
        if told.as_ref() != Some(&ways) {
            *told = Some(ways.clone());
            if tell.send(ways).await.is_err() {
                return Ok(());
            }
        }
        let next = Instant::now() + if missing { MISSING } else { REFRESH };
        tokio::select! {
            changed = addresses.changed() => changed?,
            _ = news.next(), if !missing => sleep(SETTLE).await,
            () = sleep_until(next) => {}
        }
        // What has come meanwhile is in the next look-up.
        while news.try_recv().is_ok() {}
    }
}

/// Ends a task with its owner.
struct Ends(tokio::task::JoinHandle<()>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends packets that make the kernel look for a neighbour.
struct Probe {
    v4: UdpSocket,
    v6: Option<UdpSocket>,
}

impl Probe {
    async fn new() -> std::io::Result<Probe> {
        Ok(Probe {
            v4: UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?,
            // A kernel may have no IPv6.
            v6: UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await.ok(),
        })
    }

    async fn send(&self, to: IpAddr) {
        let socket = if to.is_ipv4() {
            Some(&self.v4)
        } else {
            self.v6.as_ref()
        };
        if let Some(socket) = socket {
            // An error is that of an earlier packet, or of the way; the next look-up tells.
            let _ = socket.send_to(&[], SocketAddr::new(to, PROBE_PORT)).await;
        }
    }
}

struct Link {
    mac: Option<[u8; 6]>,
    mtu: u32,
}

/// A neighbour's address of the link layer, and whether it should be asked again.
type Neighbours = BTreeMap<(u32, IpAddr), ([u8; 6], bool)>;

/// Ways to addresses, and whether some may come to be known soon.
async fn look_up(
    handle: &Handle,
    addresses: &BTreeSet<IpAddr>,
    probe: &Probe,
) -> Result<(Ways, bool), rtnetlink::Error> {
    let mut ways = Ways::new();
    let mut missing = false;
    if addresses.is_empty() {
        return Ok((ways, missing));
    }
    let links = links(handle).await?;
    let neighbours = neighbours(handle).await?;
    for addr in addresses {
        let Some(route) = route(handle, *addr).await else {
            // No route: the stack would drop it, too.
            ways.insert(*addr, None);
            continue;
        };
        let link = route.index.and_then(|index| links.get(&index));
        let way = match (route.index, link) {
            (
                Some(index),
                Some(Link {
                    mac: Some(own),
                    mtu,
                }),
            ) if route.is_unicast => {
                let next = route.gateway.unwrap_or(*addr);
                let known = neighbours.get(&(index, next));
                if known.is_none_or(|(_, stale)| *stale) {
                    probe.send(*addr).await;
                }
                known.map(|(mac, _)| Way {
                    hop: Hop::new(*mac, *own, index),
                    mtu: route.mtu.unwrap_or(*mtu),
                })
            }
            _ => {
                ways.insert(*addr, None);
                continue;
            }
        };
        match way {
            Some(way) => {
                ways.insert(*addr, Some(way));
            }
            None => missing = true,
        }
    }
    Ok((ways, missing))
}

struct Route {
    is_unicast: bool,
    index: Option<u32>,
    gateway: Option<IpAddr>,
    mtu: Option<u32>,
}

fn of_route(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(addr) => Some((*addr).into()),
        RouteAddress::Inet6(addr) => Some((*addr).into()),
        _ => None,
    }
}

/// The route that a packet to an address takes.
async fn route(handle: &Handle, addr: IpAddr) -> Option<Route> {
    let message = match addr {
        IpAddr::V4(addr) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(addr, 32)
            .build(),
        IpAddr::V6(addr) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(addr, 128)
            .build(),
    };
    let mut found = std::pin::pin!(handle.route().get(message).execute());
    // An error is that there is no route.
    let message: RouteMessage = found.try_next().await.ok()??;
    let mut route = Route {
        is_unicast: message.header.kind == RouteType::Unicast,
        index: None,
        gateway: None,
        mtu: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => route.index = Some(*index),
            RouteAttribute::Gateway(gateway) => route.gateway = of_route(gateway),
            RouteAttribute::Metrics(metrics) => {
                use rtnetlink::packet_route::route::RouteMetric;
                let mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
                route.mtu = mtu.filter(|mtu| *mtu != 0);
            }
            _ => {}
        }
    }
    Some(route)
}

async fn links(handle: &Handle) -> Result<BTreeMap<u32, Link>, rtnetlink::Error> {
    let mut links = BTreeMap::new();
    let mut all = std::pin::pin!(handle.link().get().execute());
    while let Some(message) = all.try_next().await? {
        let mut link = Link { mac: None, mtu: 0 };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Address(mac) => link.mac = mac_of(mac),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                _ => {}
            }
        }
        links.insert(message.header.index, link);
    }
    Ok(links)
}

/// A MAC address; that of a link without any is all zeros.
fn mac_of(bytes: &[u8]) -> Option<[u8; 6]> {
    bytes.try_into().ok().filter(|mac| *mac != [0; 6])
}

async fn neighbours(handle: &Handle) -> Result<Neighbours, rtnetlink::Error> {
    let mut known = Neighbours::new();
    let mut all = std::pin::pin!(handle.neighbours().get().execute());
    while let Some(message) = all.try_next().await? {
        let state = message.header.state;
        let usable = matches!(
            state,
            NeighbourState::Reachable
                | NeighbourState::Stale
                | NeighbourState::Delay
                | NeighbourState::Probe
                | NeighbourState::Permanent
        );
        let mut addr = None;
        let mut mac = None;
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                    addr = Some(IpAddr::from(*v4));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                    addr = Some(IpAddr::from(*v6));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = mac_of(bytes),
                _ => {}
            }
        }
        if let (true, Some(addr), Some(mac)) = (usable, addr, mac) {
            let stale = state == NeighbourState::Stale;
            known.insert((message.header.ifindex, addr), (mac, stale));
        }
    }
    Ok(known)
}
