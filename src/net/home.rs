//! To which local network a server belongs that no pin tells from another: a bare one, a provider.
//!
//! `192.168.1.100` is another machine in every house. A server on a local address is used only
//! on the network where it first answered, told by the link addresses of the gateway and of the
//! server itself; elsewhere nothing is sent to it. What is kept is a salted hash.
//!
//! Linux says these in its tables of routes and neighbours. Where the system does not say,
//! networks cannot be told apart, and a server is used wherever it answers.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::lan::tables::{self, Route};
use crate::types::Dial;

/// Where a server stands, as far as this machine can tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The network: its gateway's link address and prefix.
    pub network: Option<String>,
    /// The server's own link address, if it is on-link and was spoken to lately.
    pub server: Option<String>,
}

/// Whether a server may be looked at here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Belongs {
    /// It may.
    Here,
    /// It first answered on another network.
    Elsewhere,
}

/// The networks of servers, kept in the state folder.
#[derive(Debug)]
pub struct Homes {
    file: Option<PathBuf>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    salt: String,
    /// By the server's URL.
    servers: BTreeMap<String, Home>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Home {
    network: Option<String>,
    server: Option<String>,
}

impl Homes {
    /// What was kept in `folder`; `None` = nothing is kept.
    pub fn load(folder: Option<&Path>) -> Homes {
        let file = folder.map(|f| f.join("networks.json"));
        let kept = file.as_ref().and_then(|file| {
            let text = std::fs::read(file).ok()?;
            serde_json::from_slice(&text)
                .map_err(|error| {
                    tracing::warn!(file = %file.display(), %error, "saved networks are ignored");
                })
                .ok()
        });
        let mut kept: Kept = kept.unwrap_or_default();
        if kept.salt.is_empty() {
            kept.salt = format!("{:032x}", rand::random::<u128>());
        }
        Homes { file, kept: Mutex::new(kept) }
    }

    /// Whether the server at `url` may be looked at from where this machine is now.
    pub fn belongs(&self, url: &str, now: &Place) -> Belongs {
        let kept = self.kept.lock();
        let Some(home) = kept.servers.get(url) else { return Belongs::Here };
        let now = hashed(&kept.salt, now);
        let other_network = home.network.is_some() && now.network != home.network;
        let other_server =
            home.server.is_some() && now.server.is_some() && now.server != home.server;
        if other_network || other_server { Belongs::Elsewhere } else { Belongs::Here }
    }

    /// It answered here: the first time decides where it belongs.
    pub fn answered(&self, url: &str, now: &Place) {
        let mut kept = self.kept.lock();
        let now = hashed(&kept.salt, now);
        let home = kept.servers.entry(url.to_owned()).or_default();
        let before = home.clone();
        home.network = home.network.take().or(now.network);
        home.server = home.server.take().or(now.server);
        if *home != before
            && let Err(error) = self.store(&kept)
        {
            tracing::warn!(%error, "the network of a server could not be saved");
        }
    }

    fn store(&self, kept: &Kept) -> std::io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let folder = file.parent().unwrap_or(Path::new("."));
        let mut new = tempfile::Builder::new().prefix(".networks-").tempfile_in(folder)?;
        new.write_all(&serde_json::to_vec(kept)?)?;
        new.as_file().sync_all()?;
        new.persist(file).map_err(|e| e.error)?;
        Ok(())
    }
}

fn hashed(salt: &str, place: &Place) -> Home {
    let hash = |text: &String| {
        let hash = Sha256::new().chain_update(salt).chain_update(text).finalize();
        hash[..12].iter().fold(String::new(), |hex, b| hex + &format!("{b:02x}"))
    };
    Home { network: place.network.as_ref().map(hash), server: place.server.as_ref().map(hash) }
}

/// Whether a server is bound to a network at all: one on this machine is not, nor one that
/// proves its name by TLS.
pub fn is_bound(dial: &Dial) -> bool {
    match dial {
        Dial::Loopback(_) | Dial::Tailnet(_) | Dial::Lan { .. } | Dial::Hosted { .. } => false,
        Dial::Configured { host, tls, .. } => match host.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) => ip.is_private() || ip.is_link_local(),
            Ok(IpAddr::V6(ip)) => ip.is_unique_local() || ip.is_unicast_link_local(),
            Err(_) => !tls && &**host != "localhost",
        },
    }
}

/// Where `dial` stands now.
pub fn place_of(dial: &Dial) -> Place {
    let read = |name: &str| std::fs::read_to_string(name).unwrap_or_default();
    let ip = match dial {
        Dial::Configured { host, .. } => host.parse::<Ipv4Addr>().ok(),
        Dial::Loopback(_) | Dial::Tailnet(_) | Dial::Lan { .. } | Dial::Hosted { .. } => None,
    };
    place(ip, &read("/proc/net/route"), &read("/proc/net/arp"))
}

fn place(ip: Option<Ipv4Addr>, routes: &str, arp: &str) -> Place {
    let routes = tables::routes(routes);
    let target = ip.map(u32::from);
    // The way to the server; for a name, the way to everywhere.
    let fits = |r: &&Route| {
        target.is_none_or(|ip| ip & r.mask == r.to) && (target.is_some() || r.mask == 0)
    };
    let Some(way) = routes.iter().filter(fits).max_by_key(|r| r.mask) else {
        return Place::default();
    };
    let on_device = |r: &&Route| r.device == way.device;
    let gateway = match way.gateway {
        0 => routes.iter().filter(on_device).map(|r| r.gateway).find(|g| *g != 0),
        gateway => Some(gateway),
    };
    let prefix = routes.iter().filter(on_device).find(|r| r.gateway == 0 && r.mask != 0);
    let prefix = prefix.map_or(String::new(), |r| format!("{:08x}/{:08x}", r.to, r.mask));
    let link = |ip: u32| tables::link_of(arp, Ipv4Addr::from(ip), &way.device);
    Place {
        network: gateway.and_then(link).map(|link| format!("{link} {prefix}")),
        server: target.filter(|_| way.gateway == 0).and_then(link),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
wlan0\t0001A8C0\t00000000\t0001\t0\t0\t600\t00FFFFFF\t0\t0\t0
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
";
    const ARP: &str = "\
IP address       HW type     Flags       HW address            Mask     Device
192.168.1.1      0x1         0x2         AA:00:00:00:00:01     *        wlan0
192.168.1.100    0x1         0x2         aa:00:00:00:00:64     *        wlan0
192.168.1.101    0x1         0x0         00:00:00:00:00:00     *        wlan0
";

    fn at(ip: &str, arp: &str) -> Place {
        place(Some(ip.parse().unwrap()), ROUTES, arp)
    }

    #[test]
    fn a_place_is_the_link_addresses_of_gateway_and_server() {
        let home = at("192.168.1.100", ARP);
        assert_eq!(home.network.as_deref(), Some("aa:00:00:00:00:01 c0a80100/ffffff00"));
        assert_eq!(home.server.as_deref(), Some("aa:00:00:00:00:64"));
        assert_eq!(at("192.168.1.101", ARP).server, None, "not resolved");
        let far = at("10.9.9.9", ARP);
        assert_eq!((far.network, far.server), (home.network.clone(), None), "behind the gateway");
        assert_eq!(place(None, ROUTES, ARP).network, home.network, "a name");
        assert_eq!(place(None, "", ""), Place::default());
    }

    #[test]
    fn a_server_belongs_where_it_first_answered() {
        let folder = tempfile::tempdir().unwrap();
        let networks = Homes::load(Some(folder.path()));
        let url = "http://192.168.1.100:11434";
        let home = at("192.168.1.100", ARP);
        let cafe = at("192.168.1.100", &ARP.replace("AA:00:00:00:00:01", "bb:00:00:00:00:01"));
        let other = at("192.168.1.100", &ARP.replace("aa:00:00:00:00:64", "bb:00:00:00:00:64"));
        assert_eq!(networks.belongs(url, &cafe), Belongs::Here, "nothing is known yet");
        networks.answered(url, &home);
        networks.answered(url, &cafe);
        // The same after a restart.
        for networks in [networks, Homes::load(Some(folder.path()))] {
            assert_eq!(networks.belongs(url, &home), Belongs::Here);
            assert_eq!(networks.belongs(url, &cafe), Belongs::Elsewhere);
            assert_eq!(networks.belongs(url, &other), Belongs::Elsewhere);
            assert_eq!(networks.belongs(url, &Place::default()), Belongs::Elsewhere);
            assert_eq!(networks.belongs("http://192.168.1.7", &cafe), Belongs::Here);
        }
        let text = std::fs::read_to_string(folder.path().join("networks.json")).unwrap();
        assert!(!text.contains("aa:00"), "only hashes are kept");
    }

    #[test]
    fn only_servers_of_a_local_network_are_bound_to_it() {
        let dial = |host: &str, tls| Dial::Configured { host: host.into(), port: 1, tls };
        for (host, tls, want) in [
            ("192.168.1.100", false, true),
            ("10.0.0.1", true, true),
            ("nas.local", false, true),
            ("ollama.example.com", true, false),
            ("8.8.8.8", false, false),
            ("fd00::1", false, true),
        ] {
            assert_eq!(is_bound(&dial(host, tls)), want, "{host}");
        }
        assert!(!is_bound(&Dial::Loopback(([127, 0, 0, 1], 1).into())));
    }
}
