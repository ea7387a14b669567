//! `dns.names`: names that say where a known node's server is.
//!
//! In: SRV names (`_ollama._tcp.example.net`: address and port) and plain ones (an address).
//! Out: places, each held against LocalAPI's own list before anything is made of it. DNS is
//! anybody's to forge on a strange network, so an answer only ever picks among the addresses
//! the coordinator lists for a node that may be used; an address that is nobody's there is
//! dropped, and no answer makes a node known.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::RData;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::config::Config;

/// Most places taken from one name.
const MOST: usize = 64;

/// Where a name points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) ip: IpAddr,
    /// Only SRV names say one.
    pub(super) port: Option<u16>,
}

/// Resolves the names of the configuration now, every `refresh`, and when `bell` or the
/// configuration changes, until the receiver is dropped.
pub(super) fn watch_names(
    mut config: watch::Receiver<Arc<Config>>,
    mut bell: watch::Receiver<u64>,
    refresh: Duration,
    limit: Duration,
) -> watch::Receiver<Arc<Vec<Place>>> {
    let (places, receiver) = watch::channel(Arc::default());
    tokio::spawn(async move {
        loop {
            let names = config.borrow_and_update().dns_names.clone();
            bell.mark_unchanged();
            let found = if names.is_empty() { Vec::new() } else { resolve(&names, limit).await };
            places.send_if_modified(|old: &mut Arc<Vec<Place>>| {
                let new = **old != found;
                if new {
                    *old = Arc::new(found);
                }
                new
            });
            // With no name there is nothing to wait for but another configuration.
            let again = async {
                if names.is_empty() {
                    std::future::pending::<()>().await;
                }
                tokio::select! {
                    () = sleep(refresh) => {}
                    Ok(()) = bell.changed() => {}
                }
            };
            tokio::select! {
                () = again => {}
                changed = config.changed() => if changed.is_err() { return },
                () = places.closed() => return,
            }
        }
    });
    receiver
}

async fn resolve(names: &[String], limit: Duration) -> Vec<Place> {
    // Read anew each time: /etc/resolv.conf follows the network and the tailnet.
    let resolver = match TokioResolver::builder_tokio().and_then(|b| b.build()) {
        Ok(resolver) => resolver,
        Err(error) => {
            tracing::debug!("dns.names: {error}");
            return Vec::new();
        }
    };
    let mut places = Vec::new();
    for name in names {
        match timeout(limit, one(&resolver, name)).await {
            Ok(Ok(found)) => places.extend(found.into_iter().take(MOST)),
            Ok(Err(error)) => tracing::debug!(name, "dns.names: {error}"),
            Err(_) => tracing::debug!(name, "dns.names: no answer within {limit:?}"),
        }
    }
    places.sort_unstable();
    places.dedup();
    places
}

async fn one(
    resolver: &TokioResolver,
    name: &str,
) -> Result<Vec<Place>, hickory_resolver::net::NetError> {
    if !name.starts_with('_') {
        let found = resolver.lookup_ip(name).await?;
        return Ok(found.iter().map(|ip| Place { ip, port: None }).collect());
    }
    let mut places = Vec::new();
    for record in resolver.srv_lookup(name).await?.answers().iter().take(MOST) {
        let RData::SRV(srv) = &record.data else { continue };
        let port = Some(srv.port);
        match resolver.lookup_ip(srv.target.clone()).await {
            Ok(found) => places.extend(found.iter().map(|ip| Place { ip, port })),
            Err(error) => tracing::debug!(name, target = %srv.target, "dns.names: {error}"),
        }
    }
    Ok(places)
}

/// What the names say of a node with these addresses: its addresses, those the names give
/// first, and the further ports to look at.
pub(super) fn told(places: &[Place], addrs: &[IpAddr]) -> (Vec<IpAddr>, Vec<SocketAddr>) {
    let mut ours: Vec<&Place> = places.iter().filter(|p| addrs.contains(&p.ip)).collect();
    ours.sort_by_key(|p| (addrs.iter().position(|a| *a == p.ip), p.port));
    let mut order: Vec<IpAddr> = addrs.to_vec();
    order.sort_by_key(|a| !ours.iter().any(|p| p.ip == *a));
    let ports = ours.iter().filter_map(|p| Some(SocketAddr::new(p.ip, p.port?))).collect();
    (order, ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn place(text: &str, port: Option<u16>) -> Place {
        Place { ip: ip(text), port }
    }

    #[test]
    fn a_forged_name_points_nowhere() {
        let addrs = [ip("100.64.0.2"), ip("fd7a:115c:a1e0::2")];
        let forged = [
            place("8.8.8.8", Some(11434)),
            place("127.0.0.1", Some(22)),
            place("100.64.0.3", None),
            place("169.254.169.254", Some(80)),
        ];
        assert_eq!(told(&forged, &addrs), (addrs.to_vec(), vec![]));
    }

    #[test]
    fn a_name_picks_among_listed_addresses_and_adds_a_port() {
        let addrs = [ip("100.64.0.2"), ip("fd7a:115c:a1e0::2")];
        let (order, ports) = told(&[place("fd7a:115c:a1e0::2", None)], &addrs);
        assert_eq!((order, ports), (vec![addrs[1], addrs[0]], vec![]));
        let (order, ports) =
            told(&[place("100.64.0.2", Some(8080)), place("100.64.0.9", Some(1))], &addrs);
        assert_eq!((order, ports), (addrs.to_vec(), vec!["100.64.0.2:8080".parse().unwrap()]));
    }
}
