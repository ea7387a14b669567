//! Where the local network may be used now: a pure function of the configuration, what
//! tailscaled said last, this machine's interfaces and the networks that are known.
//!
//! A local network is used to keep a mesh together that a coordinator once vouched for, and
//! nowhere else: not on a network where no pinned peer was ever met, not while the user or
//! the coordinator took this node out of the tailnet, not past an exit node that forbids it.
//! Where it is not used there is no listener, no announcement and no dial.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::config::{Lan, LanNetworks};
use crate::ladder::Backend;
use crate::net::lan::{Interface, LanLink, LanView};
use crate::net::{TailnetNode, TailnetView};
use crate::trust::Networks;
use crate::types::{ControlId, Moment};

/// What decides besides the networks themselves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing<'a> {
    /// `lan` of the configuration.
    pub(super) config: &'a Lan,
    /// Whether the configuration lets a tailnet be used at all.
    pub(super) tailnet: bool,
    /// What LocalAPI said when it last said something. Killing the daemon is no way around it.
    pub(super) said: &'a TailnetView,
    /// Whose pins are in use.
    pub(super) trusted: Option<&'a ControlId>,
    /// Whether the clock may be believed.
    pub(super) clock_ok: bool,
    /// How many peers are pinned.
    pub(super) pinned: usize,
}

impl Standing<'_> {
    /// Why the local network is not used, whichever it is.
    pub(super) fn off(&self) -> Option<&'static str> {
        let Standing { config, said, .. } = *self;
        if !config.enabled {
            return Some("lan.enabled is false");
        }
        if !self.tailnet {
            return Some("tailnet.enabled is false");
        }
        // Since when does not matter here.
        match Backend::read(&said.state, Moment::ZERO) {
            Backend::LoggedOut if !config.when_logged_out => {
                return Some("logged out of the tailnet (lan.whenLoggedOut is false)");
            }
            Backend::Stopped if !config.when_stopped => {
                return Some("the tailnet is stopped (lan.whenStopped is false)");
            }
            _ => {}
        }
        if said.control.is_some() && said.control.as_ref() != self.trusted {
            return Some("the daemon names another tailnet than the one used last");
        }
        if said.exit_node_blocks_lan {
            return Some("the exit node in use forbids the local network");
        }
        if !self.clock_ok {
            return Some("the clock was set back: not before the tailnet was seen again");
        }
        (self.pinned == 0).then_some("no peer is pinned yet")
    }
}

/// The network an interface is on, as it is known by: the link address of its gateway, and
/// the IPv4 network that the gateway is in, which its IPv6 addresses go by too.
pub(super) fn known_by<'a>(
    interface: &'a Interface,
    all: &[Interface],
) -> Option<(&'a str, String)> {
    interface.usable().ok()?;
    let gateway = interface.gateway.as_ref()?;
    let net = all.iter().find(|i| i.name == interface.name && i.net().holds(gateway.addr))?.net();
    Some((gateway.link.as_deref()?, net.to_string()))
}

/// The networks this machine is on now, by the ids they are known by: which device leads to
/// each, and its prefix.
pub fn networks_here(known: &Networks, interfaces: &[Interface]) -> BTreeMap<String, Vec<String>> {
    let mut here: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for interface in interfaces {
        let Some((gateway, net)) = known_by(interface, interfaces) else { continue };
        let at = here.entry(known.id_of(gateway, &net)).or_default();
        let text = format!("{} {net}", interface.name);
        if !at.contains(&text) {
            at.push(text);
        }
    }
    here
}

/// The view: links on known networks, and which networks are not known.
pub(super) fn view(
    standing: &Standing<'_>,
    interfaces: &[Interface],
    id_of: impl Fn(&str, &str) -> Arc<str>,
    is_known: impl Fn(&str) -> bool,
) -> LanView {
    let mut view = LanView::around(interfaces);
    let mut known = Vec::new();
    for interface in interfaces {
        let Some((gateway, net)) = known_by(interface, interfaces) else { continue };
        let id = id_of(gateway, &net);
        let may = match &standing.config.networks {
            LanNetworks::Known => is_known(&id),
            LanNetworks::Any => true,
            LanNetworks::Ids(ids) => ids.iter().any(|i| **i == *id),
        };
        let unknown = (interface.name.clone(), id);
        if may {
            known.push(LanLink::new(interface, unknown.1));
        } else if !view.unknown.contains(&unknown) {
            view.unknown.push(unknown);
        }
    }
    view.off = match standing.off() {
        Some(why) => Some(why.to_owned()),
        None if !known.is_empty() => None,
        None => Some(match view.unknown.first() {
            Some((device, _)) => {
                format!("no peer was ever met on the network of {device} (tailherd lan allow)")
            }
            None => "no local network with a gateway".to_owned(),
        }),
    };
    if view.off.is_none() {
        view.links = known;
    }
    view
}

/// A peer that seems to be met directly on a network that is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Met {
    /// Its tailnet address, to ask it.
    pub(super) ask: IpAddr,
    /// The network.
    pub(super) network: Arc<str>,
    /// The link it is on.
    link: LanView,
}

impl Met {
    /// Whether an answer that came directly from `from` came over that link, from a node that
    /// has that address itself. (A gateway can make packets from elsewhere seem to come from a
    /// neighbour; what the node told its coordinator it cannot change.)
    pub(super) fn is_there(&self, from: IpAddr, own: &[SocketAddr]) -> bool {
        let is = |at: &SocketAddr| at.ip().to_canonical() == from.to_canonical();
        self.link.allows(from).is_ok() && own.iter().any(is)
    }
}

/// Pinned peers whose tunnel seems to lead directly over an unknown network right now. The
/// daemon's word for where a tunnel leads may be some seconds old, in which this machine may
/// have gone elsewhere: each has to be asked before the network is called known.
pub(super) fn met(
    tailnet: &TailnetView,
    is_pinned: impl Fn(&TailnetNode) -> bool,
    interfaces: &[Interface],
    now: &LanView,
    id_of: impl Fn(&str, &str) -> Arc<str>,
) -> Vec<Met> {
    if !tailnet.running || tailnet.online != Some(true) || now.unknown.is_empty() {
        return Vec::new();
    }
    let mut met: Vec<Met> = Vec::new();
    for interface in interfaces {
        let Some((gateway, net)) = known_by(interface, interfaces) else { continue };
        let network = id_of(gateway, &net);
        if !now.unknown.iter().any(|(_, id)| *id == network) {
            continue;
        }
        let links = vec![LanLink::new(interface, Arc::clone(&network))];
        let link = LanView { links, ..LanView::around(interfaces) };
        let here = |node: &&TailnetNode| {
            node.current.is_some_and(|at| link.allows(at.ip()).is_ok()) && is_pinned(node)
        };
        let ask = tailnet.peers.iter().find(here).and_then(|node| node.addrs.first().copied());
        if let Some(ask) = ask {
            met.push(Met { ask, network, link });
        }
    }
    met
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::net::lan::{Gateway, Kind};
    use crate::types::{NodeId, NodeName, Principal};

    const HOME: &str = "aa:aa:aa:aa:aa:aa";
    const CAFE: &str = "cc:cc:cc:cc:cc:cc";

    fn interface(name: &str, addr: &str, prefix: u8, gateway: Option<(&str, &str)>) -> Interface {
        Interface {
            name: name.to_owned(),
            index: Some(2),
            addr: addr.parse().unwrap(),
            prefix,
            gateway: gateway.map(|(addr, link)| Gateway {
                addr: addr.parse().unwrap(),
                link: Some(link.to_owned()),
            }),
            kind: Kind::Lan,
            epoch: 1,
        }
    }

    fn at(link: &str) -> Vec<Interface> {
        vec![
            interface("wlan0", "192.168.1.10", 24, Some(("192.168.1.1", link))),
            interface("wlan0", "fd12::10", 64, Some(("192.168.1.1", link))),
        ]
    }

    fn id_of(gateway: &str, net: &str) -> Arc<str> {
        format!("{gateway} {net}").into()
    }

    fn is_home(id: &str) -> bool {
        id == format!("{HOME} 192.168.1.0/24")
    }

    fn control() -> ControlId {
        ControlId("home".into())
    }

    fn running() -> TailnetView {
        TailnetView {
            state: "Running".into(),
            running: true,
            online: Some(true),
            control: Some(control()),
            ..TailnetView::default()
        }
    }

    fn lan_config() -> config::Config {
        config::parse("{}", None, &config::FixedEnv::default()).unwrap()
    }

    struct Case {
        config: Lan,
        tailnet: bool,
        said: TailnetView,
        clock_ok: bool,
        pinned: usize,
    }

    impl Case {
        fn good() -> Case {
            Case {
                config: lan_config().lan,
                tailnet: true,
                said: running(),
                clock_ok: true,
                pinned: 1,
            }
        }

        fn view(&self, interfaces: &[Interface]) -> LanView {
            let control = control();
            let standing = Standing {
                config: &self.config,
                tailnet: self.tailnet,
                said: &self.said,
                trusted: Some(&control),
                clock_ok: self.clock_ok,
                pinned: self.pinned,
            };
            view(&standing, interfaces, id_of, is_home)
        }
    }

    fn devices(view: &LanView) -> Vec<&str> {
        view.links.iter().map(|l| l.device.as_str()).collect()
    }

    #[test]
    fn the_local_network_is_used_where_it_is_known_and_nowhere_else() {
        let good = Case::good();
        let home = good.view(&at(HOME));
        assert_eq!((devices(&home), &home.off), (vec!["wlan0", "wlan0"], &None));
        let cafe = good.view(&at(CAFE));
        assert!(cafe.links.is_empty());
        assert!(cafe.off.unwrap().contains("tailherd lan allow"));
        assert_eq!(cafe.unknown, [("wlan0".to_owned(), id_of(CAFE, "192.168.1.0/24"))]);
        let mut silent = at(HOME);
        for interface in &mut silent {
            interface.gateway.as_mut().unwrap().link = None;
        }
        assert!(good.view(&silent).links.is_empty(), "a gateway that was not heard");
        assert!(good.view(&[]).links.is_empty());
    }

    #[test]
    fn what_is_no_local_network_makes_no_link() {
        let good = Case::good();
        let mut any = Case::good();
        any.config.networks = LanNetworks::Any;
        for (what, change) in [
            ("a tunnel", Kind::Tunnel),
            ("containers", Kind::Container),
            ("this machine", Kind::Loopback),
        ] {
            let mut all = at(HOME);
            all.iter_mut().for_each(|i| i.kind = change);
            assert!(good.view(&all).links.is_empty(), "{what}");
            assert!(any.view(&all).links.is_empty(), "{what}");
        }
        // Another VPN, or the provider, that has addresses of the tailnet's range.
        let other = interface("vpn0", "100.72.0.5", 10, Some(("100.64.0.1", HOME)));
        assert!(any.view(&[other]).links.is_empty());
        let public = interface("eth0", "8.8.4.4", 24, Some(("8.8.4.1", HOME)));
        assert!(any.view(&[public]).links.is_empty());
    }

    #[test]
    fn a_choice_of_networks_is_that_choice() {
        let mut case = Case::good();
        case.config.networks = LanNetworks::Any;
        assert_eq!(case.view(&at(CAFE)).links.len(), 2);
        let cafe = id_of(CAFE, "192.168.1.0/24").to_string();
        case.config.networks = LanNetworks::Ids(vec![cafe]);
        assert_eq!(case.view(&at(CAFE)).links.len(), 2);
        assert!(case.view(&at(HOME)).links.is_empty());
    }

    #[test]
    fn the_local_network_is_off_while_anything_speaks_against_it() {
        fn check(what: &str, change: impl Fn(&mut Case), word: Option<&str>) {
            let mut case = Case::good();
            change(&mut case);
            let view = case.view(&at(HOME));
            assert_eq!(view.links.is_empty(), word.is_some(), "{what}");
            let off = view.off.unwrap_or_default();
            assert!(off.contains(word.unwrap_or_default()), "{what}: {off}");
        }
        let says = |state: &'static str| move |c: &mut Case| c.said.state = state.to_owned();
        check("the daemon is silent", |c| c.said = TailnetView::default(), None);
        check("no netmap", says("NoState"), None);
        check("logged out", says("NeedsLogin"), Some("logged out"));
        check("waits for an admin", says("NeedsMachineAuth"), Some("logged out"));
        check("stopped", says("Stopped"), Some("stopped"));
        let wished = |state: &'static str| {
            move |c: &mut Case| {
                c.said.state = state.to_owned();
                c.config.when_logged_out = state == "NeedsLogin";
                c.config.when_stopped = state == "Stopped";
            }
        };
        check("logged out, and wished", wished("NeedsLogin"), None);
        check("stopped, and wished", wished("Stopped"), None);
        check("switched off", |c| c.config.enabled = false, Some("lan.enabled"));
        check("no tailnet wished", |c| c.tailnet = false, Some("tailnet.enabled"));
        check("exit node", |c| c.said.exit_node_blocks_lan = true, Some("exit node"));
        check("the clock", |c| c.clock_ok = false, Some("clock"));
        check("nobody", |c| c.pinned = 0, Some("no peer is pinned"));
        let work = Some(ControlId("work".into()));
        check("another tailnet", |c| c.said.control.clone_from(&work), Some("another tailnet"));
    }

    fn peer(current: &str) -> TailnetNode {
        let id = NodeId::Tailnet { control: control(), stable: "n1".into() };
        let me = Principal::User { control: control(), id: 1, login: "me@x".into() };
        TailnetNode {
            addrs: vec!["100.64.0.2".parse().unwrap()],
            os: "linux".into(),
            online: true,
            current: current.parse().ok(),
            ..TailnetNode::new(id, NodeName::from_dns("desk"), me)
        }
    }

    #[test]
    fn a_network_is_learned_from_a_pinned_peer_on_the_link_and_from_nobody_else() {
        let cafe = at(CAFE);
        let now = Case::good().view(&cafe);
        let look = |change: &dyn Fn(&mut TailnetView), pinned: bool, now: &LanView| {
            let mut tailnet = running();
            tailnet.peers = vec![peer("192.168.1.20:41641")];
            change(&mut tailnet);
            met(&tailnet, |_| pinned, &cafe, now, id_of)
        };
        let found = look(&|_| {}, true, &now);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].network, id_of(CAFE, "192.168.1.0/24"));
        assert_eq!(found[0].ask, "100.64.0.2".parse::<IpAddr>().unwrap());
        // Whoever then answers must answer from there, and have that address itself.
        let own = ["192.168.1.21", "192.168.2.20", "203.0.113.9"];
        let own = own.map(|ip| SocketAddr::new(ip.parse().unwrap(), 41641));
        for (from, want) in [
            ("192.168.1.21", true),
            ("::ffff:192.168.1.21", true),
            ("192.168.1.22", false),
            ("192.168.2.20", false),
            ("203.0.113.9", false),
        ] {
            assert_eq!(found[0].is_there(from.parse().unwrap(), &own), want, "{from}");
        }
        assert!(look(&|_| {}, false, &now).is_empty(), "not pinned");
        assert!(look(&|t| t.online = Some(false), true, &now).is_empty(), "no coordinator");
        assert!(look(&|t| t.running = false, true, &now).is_empty(), "not running");
        for elsewhere in ["", "192.168.2.20:41641", "203.0.113.9:41641", "192.168.1.1:41641"] {
            let moved = |t: &mut TailnetView| t.peers = vec![peer(elsewhere)];
            assert!(look(&moved, true, &now).is_empty(), "{elsewhere}");
        }
        let home = Case::good().view(&at(HOME));
        assert!(look(&|_| {}, true, &home).is_empty(), "nothing is unknown");
    }
}
