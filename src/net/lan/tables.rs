//! The kernel's tables of routes and neighbours (`/proc/net/route`, `/proc/net/arp`), read as
//! text. They speak of IPv4 only.

use std::net::Ipv4Addr;

/// One line of the routing table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The network device.
    pub device: String,
    /// The first address it leads to.
    pub to: u32,
    /// Which bits of an address have to be those of `to`.
    pub mask: u32,
    /// Through whom; 0 = directly.
    pub gateway: u32,
    /// The lower one wins.
    pub metric: u32,
}

/// The lines of `/proc/net/route` that can be read.
pub fn routes(text: &str) -> Vec<Route> {
    text.lines().skip(1).filter_map(route).collect()
}

fn route(line: &str) -> Option<Route> {
    let mut fields = line.split_whitespace();
    // Numbers are in network order, written as the machine reads them.
    let number = |text: Option<&str>| Some(u32::from_be(u32::from_str_radix(text?, 16).ok()?));
    let device = fields.next()?.to_owned();
    let (to, gateway) = (number(fields.next())?, number(fields.next())?);
    let metric = fields.nth(3)?.parse().ok()?;
    let mask = number(fields.next())?;
    Some(Route { device, to, mask, gateway, metric })
}

/// The gateway of a device to everywhere: that of its best default route.
pub fn gateway_of(routes: &[Route], device: &str) -> Option<Ipv4Addr> {
    let default = |r: &&Route| r.device == device && r.mask == 0 && r.gateway != 0;
    routes.iter().filter(default).min_by_key(|r| r.metric).map(|r| Ipv4Addr::from(r.gateway))
}

/// The link address of a neighbour on `device`, out of `/proc/net/arp`; `None` if the kernel
/// has none that holds now.
pub fn link_of(arp: &str, ip: Ipv4Addr, device: &str) -> Option<String> {
    /// The entry is complete (`ATF_COM`): one that failed keeps the address it once had.
    const COMPLETE: u32 = 2;
    arp.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [address, _, flags, link, _, on] = fields[..] else { return None };
        let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok()?;
        let known = address.parse() == Ok(ip)
            && on == device
            && flags & COMPLETE != 0
            && link != "00:00:00:00:00:00";
        known.then(|| link.to_ascii_lowercase())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0201A8C0\t0003\t0\t0\t900\t00000000\t0\t0\t0
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
wlan0\t0001A8C0\t00000000\t0001\t0\t0\t600\t00FFFFFF\t0\t0\t0
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
nonsense
";
    const ARP: &str = "\
IP address       HW type     Flags       HW address            Mask     Device
192.168.1.1      0x1         0x2         AA:00:00:00:00:01     *        wlan0
192.168.1.7      0x1         0x0         aa:00:00:00:00:07     *        wlan0
192.168.1.8      0x1         0x2         00:00:00:00:00:00     *        wlan0
";

    #[cfg(target_endian = "little")]
    #[test]
    fn the_best_default_route_names_the_gateway() {
        let routes = routes(ROUTES);
        assert_eq!(routes.len(), 4);
        assert_eq!(gateway_of(&routes, "wlan0"), Some(Ipv4Addr::new(192, 168, 1, 1)));
        assert_eq!(gateway_of(&routes, "docker0"), None);
    }

    #[test]
    fn only_a_neighbour_that_is_known_now_has_a_link_address() {
        for (ip, device, want) in [
            ("192.168.1.1", "wlan0", Some("aa:00:00:00:00:01")),
            ("192.168.1.1", "eth0", None),
            ("192.168.1.7", "wlan0", None),
            ("192.168.1.8", "wlan0", None),
            ("192.168.1.9", "wlan0", None),
        ] {
            assert_eq!(link_of(ARP, ip.parse().unwrap(), device).as_deref(), want, "{ip} {device}");
        }
    }
}
