//! Where the local network may be used now, and which addresses on it may be dialled.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::interface::Interface;
use super::kind::Kind;
use crate::net::device::Device;
use crate::net::view::is_tailnet_range;

/// A network: the addresses that share their first bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Net {
    addr: IpAddr,
    prefix: u8,
}

impl Net {
    /// The network of `addr`, whose first `prefix` bits are shared.
    pub fn new(addr: IpAddr, prefix: u8) -> Net {
        let addr = addr.to_canonical();
        let prefix = prefix.min(if addr.is_ipv4() { 32 } else { 128 });
        let addr = match addr {
            IpAddr::V4(a) => IpAddr::V4(
                (a.to_bits() & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)).into(),
            ),
            IpAddr::V6(a) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V6((a.to_bits() & mask).into())
            }
        };
        Net { addr, prefix }
    }

    /// Whether `addr` is one of them.
    pub fn holds(&self, addr: IpAddr) -> bool {
        let addr = addr.to_canonical();
        addr.is_ipv4() == self.addr.is_ipv4() && Net::new(addr, self.prefix) == *self
    }

    /// Whether `addr` means nobody or everybody there: the first or the last one.
    fn is_edge(&self, addr: IpAddr) -> bool {
        match (self.addr, addr.to_canonical()) {
            // Of a network of two, both are nodes.
            (IpAddr::V4(net), IpAddr::V4(addr)) if self.prefix < 31 => {
                addr == net || addr.to_bits() == net.to_bits() | (u32::MAX >> self.prefix)
            }
            // The first one is the routers'.
            (IpAddr::V6(net), IpAddr::V6(addr)) if self.prefix < 127 => addr == net,
            _ => false,
        }
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

/// A link to a local network that may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LanLink {
    /// The network device.
    pub device: String,
    /// Its index.
    pub index: Option<u32>,
    /// Our address there.
    pub addr: IpAddr,
    /// How many bits of it all there have in common.
    pub prefix: u8,
    /// Who leads out of it.
    pub gateway: Option<IpAddr>,
    /// Which network it is: the keyed hash that the state folder knows it by.
    pub network: Arc<str>,
    /// Moves when the cable or the Wi-Fi was lost in between: what was made before is not used
    /// after, since nobody knows at once where it came back.
    pub epoch: u64,
}

impl LanLink {
    /// The link an interface is, on the network known as `network`.
    pub fn new(interface: &Interface, network: impl Into<Arc<str>>) -> LanLink {
        LanLink {
            device: interface.name.clone(),
            index: interface.index,
            addr: interface.addr,
            prefix: interface.prefix,
            gateway: interface.gateway.as_ref().map(|g| g.addr),
            network: network.into(),
            epoch: interface.epoch,
        }
    }

    /// The network it leads to.
    pub fn net(&self) -> Net {
        Net::new(self.addr, self.prefix)
    }

    pub(in crate::net) fn device(&self) -> Device {
        Device { name: self.device.clone(), index: self.index }
    }
}

/// Where the local network may be used now. The empty one is the beginning: nowhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LanView {
    /// The links that may be used.
    pub links: Vec<LanLink>,
    /// Why there are none, for people.
    pub off: Option<String>,
    /// Links to networks nobody has vouched for: the device, and the network's id.
    pub unknown: Vec<(String, Arc<str>)>,
    /// Addresses that are never dialled: our own on any device, and all gateways.
    pub never: Vec<IpAddr>,
    /// Networks that are never dialled: of tunnels, and of containers on this machine.
    pub elsewhere: Vec<Net>,
}

impl LanView {
    /// A view without links that knows what is never dialled on this machine. Whoever adds
    /// links begins with it.
    pub fn around(interfaces: &[Interface]) -> LanView {
        let gateways = interfaces.iter().filter_map(|i| i.gateway.as_ref()).map(|g| g.addr);
        let never = interfaces.iter().map(|i| i.addr.to_canonical()).chain(gateways).collect();
        let others = interfaces.iter().filter(|i| i.kind != Kind::Lan);
        LanView { never, elsewhere: others.map(Interface::net).collect(), ..LanView::default() }
    }

    /// The link on which `addr` may be dialled, or why it may not. Every word about an address
    /// comes from elsewhere (a peer, mDNS, the state folder), so each dial asks anew.
    pub fn allows(&self, addr: IpAddr) -> Result<&LanLink, &'static str> {
        let addr = addr.to_canonical();
        if !is_local(addr) {
            return Err("it is no private address");
        }
        let gateways = self.links.iter().filter_map(|l| l.gateway);
        if gateways.chain(self.never.iter().copied()).any(|never| never.to_canonical() == addr)
            || self.links.iter().any(|l| l.addr.to_canonical() == addr)
        {
            return Err("it is this machine's or a gateway's");
        }
        let Some(link) = self.links.iter().find(|l| l.net().holds(addr)) else {
            return Err("it is on no local network that may be used");
        };
        if link.net().is_edge(addr) {
            return Err("it means no single device");
        }
        // A wide network behind a tunnel does not swallow the narrower one at the cable.
        if self.elsewhere.iter().any(|net| net.prefix >= link.prefix && net.holds(addr)) {
            return Err("it is behind a tunnel or a container's");
        }
        Ok(link)
    }

    /// Whether a connection that was made over `link` may go on.
    pub fn still_has(&self, link: &LanLink) -> bool {
        self.links.contains(link)
    }
}

/// Whether an address can be one of a local network: private IPv4, or unique local IPv6, and
/// not a tailnet's.
pub(super) fn is_local(addr: IpAddr) -> bool {
    let private = match addr {
        IpAddr::V4(a) => a.is_private(),
        IpAddr::V6(a) => a.is_unique_local(),
    };
    private && !is_tailnet_range(addr)
}

#[cfg(test)]
mod tests {
    use super::super::interface::Gateway;
    use super::*;

    fn interface(name: &str, addr: &str, prefix: u8, gateway: &str, kind: Kind) -> Interface {
        let gateway = gateway.parse().ok().map(|addr| Gateway { addr, link: Some("aa".into()) });
        let addr = addr.parse().unwrap();
        Interface { name: name.to_owned(), index: None, addr, prefix, gateway, kind, epoch: 1 }
    }

    #[test]
    fn only_devices_on_a_link_that_may_be_used_are_dialled() {
        let home = interface("wlan0", "192.168.1.10", 24, "192.168.1.1", Kind::Lan);
        let home6 = interface("wlan0", "fd12::10", 64, "192.168.1.1", Kind::Lan);
        let wide = interface("eth1", "172.16.0.5", 12, "172.16.0.1", Kind::Lan);
        let cafe = interface("eth2", "192.168.7.10", 24, "192.168.7.1", Kind::Lan);
        let others = [
            cafe.clone(),
            interface("lo", "127.0.0.1", 8, "", Kind::Loopback),
            interface("docker0", "172.17.0.1", 16, "", Kind::Container),
            interface("tailscale0", "100.64.0.7", 32, "", Kind::Tunnel),
            interface("wg0", "10.8.0.2", 24, "10.8.0.1", Kind::Tunnel),
            interface("vpn0", "192.168.99.1", 16, "", Kind::Tunnel),
            interface("usb0", "192.168.55.2", 24, "192.168.1.254", Kind::Lan),
        ];
        let all: Vec<Interface> =
            [&home, &home6, &wide].into_iter().chain(&others).cloned().collect();
        let links = [&home, &home6, &wide].map(|i| LanLink::new(i, "net")).to_vec();
        let view = LanView { links, ..LanView::around(&all) };
        for (addr, want) in [
            ("192.168.1.20", Some("wlan0")),
            ("::ffff:192.168.1.20", Some("wlan0")),
            ("fd12::20", Some("wlan0")),
            ("172.20.0.9", Some("eth1")),
            // Our own, gateways, nobody, everybody.
            ("192.168.1.10", None),
            ("192.168.1.1", None),
            ("172.16.0.1", None),
            ("192.168.7.1", None),
            ("192.168.1.254", None),
            ("192.168.1.0", None),
            ("192.168.1.255", None),
            ("172.31.255.255", None),
            ("255.255.255.255", None),
            ("0.0.0.0", None),
            ("::", None),
            ("fd12::", None),
            // Loopback, link-local, multicast.
            ("127.0.0.1", None),
            ("127.0.0.2", None),
            ("::1", None),
            ("169.254.169.254", None),
            ("fe80::1", None),
            ("224.0.0.251", None),
            ("ff02::fb", None),
            // The tailnet.
            ("100.64.0.9", None),
            ("fd7a:115c:a1e0::9", None),
            // The world.
            ("8.8.8.8", None),
            ("2606:4700::1", None),
            // Off-link, or on a link that may not be used.
            ("192.168.2.20", None),
            ("fd13::20", None),
            ("192.168.7.20", None),
            ("10.0.0.9", None),
            // Containers, another tunnel.
            ("172.17.0.2", None),
            ("10.8.0.3", None),
        ] {
            let found = view.allows(addr.parse().unwrap()).map(|link| link.device.as_str());
            assert_eq!(found.ok(), want, "{addr}");
        }
        let nowhere = LanView::around(&all);
        assert!(nowhere.allows("192.168.1.20".parse().unwrap()).is_err());
        // Also where nothing is known of this machine but its links.
        let bare = LanView { links: vec![LanLink::new(&home, "net")], ..LanView::default() };
        for (addr, want) in
            [("192.168.1.20", true), ("192.168.1.1", false), ("192.168.1.10", false)]
        {
            assert_eq!(bare.allows(addr.parse().unwrap()).is_ok(), want, "{addr}");
        }
        // The tailnet's own range stays out even where somebody made a local network of it.
        let odd = interface("eth0", "fd7a:115c:a1e0::1", 64, "", Kind::Lan);
        let view = LanView { links: vec![LanLink::new(&odd, "n")], ..LanView::default() };
        assert!(view.allows("fd7a:115c:a1e0::9".parse().unwrap()).is_err());
    }

    #[test]
    fn a_network_is_its_first_bits() {
        for (addr, prefix, want) in [
            ("192.168.1.10", 24, "192.168.1.0/24"),
            ("10.1.2.3", 0, "0.0.0.0/0"),
            ("10.1.2.3", 32, "10.1.2.3/32"),
            ("10.1.2.3", 99, "10.1.2.3/32"),
            ("fd12::10", 64, "fd12::/64"),
            ("fd12::10", 0, "::/0"),
        ] {
            assert_eq!(Net::new(addr.parse().unwrap(), prefix).to_string(), want);
        }
        let pair = Net::new("10.0.0.0".parse().unwrap(), 31);
        assert!(!pair.is_edge("10.0.0.0".parse().unwrap()), "of two, both are nodes");
    }
}
