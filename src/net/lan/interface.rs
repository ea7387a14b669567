//! This machine's interfaces, and the gateways by which networks are told apart.
//!
//! Linux says all of this in `/proc` and `/sys`. Elsewhere (macOS and others) no gateway is
//! known, so no network is ever a known one there and the local network is not used.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use if_addrs::{IfAddr, IfOperStatus};
use parking_lot::Mutex;

use super::kind::{self, Kind};
use super::tables;
use super::view::Net;
use crate::net::view::is_tailnet_range;

/// Who leads out of a network.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Gateway {
    /// Its address.
    pub addr: IpAddr,
    /// Its link address (`aa:bb:cc:dd:ee:ff`), if it is known.
    pub link: Option<String>,
}

/// One address of one network device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Interface {
    /// The device's name (`wlan0`).
    pub name: String,
    /// The device's index. A device that was taken away and made again has another one.
    pub index: Option<u32>,
    /// Our address on it.
    pub addr: IpAddr,
    /// How many bits of it all on this network have in common.
    pub prefix: u8,
    /// The device's default gateway; also on its IPv6 addresses this is the IPv4 one, which is
    /// what a network is known by.
    pub gateway: Option<Gateway>,
    /// What it leads to.
    pub kind: Kind,
    /// Moves when the cable or the Wi-Fi was lost in between; 0 where the system does not say.
    pub epoch: u64,
}

impl Interface {
    /// The network this address is on.
    pub fn net(&self) -> Net {
        Net::new(self.addr, self.prefix)
    }

    /// Whether a local network that this program may use can be here at all, or why not. That
    /// it is a known one is for others to say.
    pub fn usable(&self) -> Result<(), &'static str> {
        match self.kind {
            Kind::Lan => {}
            Kind::Loopback => return Err("it leads to this machine"),
            Kind::Tunnel => return Err("it is a tunnel"),
            Kind::Container => return Err("only containers are on it"),
        }
        if !super::view::is_local(self.addr) {
            return Err("its address is no private one");
        }
        match &self.gateway {
            None => Err("it has no gateway to know the network by"),
            Some(Gateway { link: None, .. }) => Err("its gateway has not been heard yet"),
            Some(_) => Ok(()),
        }
    }
}

/// What is known of a gateway after the kernel has forgotten its link address.
type Memory = HashMap<(String, IpAddr, u8, Ipv4Addr), (u64, String)>;

/// Reads the interfaces of the machine this program runs on.
#[derive(Debug)]
pub(in crate::net) struct Machine {
    interfaces: PathBuf,
    tables: PathBuf,
    memory: Mutex<Memory>,
    /// What was read last: an error of a moment must not cut what runs.
    last: Mutex<Vec<Interface>>,
}

impl Default for Machine {
    fn default() -> Machine {
        Machine {
            interfaces: PathBuf::from("/sys/class/net"),
            tables: PathBuf::from("/proc/net"),
            memory: Mutex::default(),
            last: Mutex::default(),
        }
    }
}

impl Machine {
    /// The addresses of all devices that are up. Reads a few small files.
    pub(in crate::net) fn read(&self) -> Vec<Interface> {
        let Ok(all) = if_addrs::get_if_addrs() else { return self.last.lock().clone() };
        let up = all.into_iter().filter(|i| {
            !matches!(
                i.oper_status,
                IfOperStatus::Down | IfOperStatus::NotPresent | IfOperStatus::LowerLayerDown
            )
        });
        self.described(up.collect())
    }

    fn described(&self, addresses: Vec<if_addrs::Interface>) -> Vec<Interface> {
        let mut last = self.last.lock();
        if let Ok(found) = self.try_described(&addresses) {
            *last = found;
        }
        last.clone()
    }

    fn try_described(&self, addresses: &[if_addrs::Interface]) -> io::Result<Vec<Interface>> {
        let read = |name: &str| match fs::read_to_string(self.tables.join(name)) {
            // Not every system has them.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            read => read,
        };
        let (routes, arp) = (tables::routes(&read("route")?), read("arp")?);
        let carries_tailnet = |name: &str| {
            addresses.iter().any(|other| other.name == name && is_tailnet_range(other.ip()))
        };
        let mut memory = self.memory.lock();
        let mut fresh = Memory::new();
        let found = addresses
            .iter()
            .map(|address| {
                let kind = if address.is_loopback() {
                    Kind::Loopback
                } else if address.is_p2p() || carries_tailnet(&address.name) {
                    Kind::Tunnel
                } else {
                    self.kind(&address.name)
                };
                let changes = self.changes(&address.name);
                let prefix = match &address.addr {
                    IfAddr::V4(a) => a.prefixlen,
                    IfAddr::V6(a) => a.prefixlen,
                };
                let gateway = tables::gateway_of(&routes, &address.name).map(|addr| {
                    let key = (address.name.clone(), address.ip(), prefix, addr);
                    let heard = tables::link_of(&arp, addr, &address.name);
                    // The kernel forgets who it has not spoken to. As long as neither the cable
                    // nor any address has changed, the gateway is the one it was.
                    let link = heard.or_else(|| {
                        let (at, link) = memory.get(&key)?;
                        (Some(*at) == changes).then(|| link.clone())
                    });
                    if let (Some(changes), Some(link)) = (changes, &link) {
                        fresh.insert(key, (changes, link.clone()));
                    }
                    Gateway { addr: addr.into(), link }
                });
                Interface {
                    name: address.name.clone(),
                    index: address.index,
                    addr: address.ip(),
                    prefix,
                    gateway,
                    kind,
                    epoch: changes.unwrap_or(0),
                }
            })
            .collect();
        *memory = fresh;
        Ok(found)
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn kind(&self, name: &str) -> Kind {
        kind::of(&self.interfaces, name)
    }

    /// No gateway is known here, so this opens nothing.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn kind(&self, _: &str) -> Kind {
        Kind::Lan
    }

    /// How often the device lost or found its network since it was made.
    fn changes(&self, name: &str) -> Option<u64> {
        let text = fs::read_to_string(self.interfaces.join(name).join("carrier_changes")).ok()?;
        text.trim().parse().ok()
    }
}

#[cfg(test)]
#[cfg(all(target_os = "linux", target_endian = "little"))]
mod tests {
    use std::path::Path;

    use super::*;

    const ROUTES: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
";
    const HEARD: &str = "\
IP address       HW type     Flags       HW address            Mask     Device
192.168.1.1      0x1         0x2         aa:00:00:00:00:01     *        wlan0
";
    const SILENT: &str = "IP address HW type Flags HW address Mask Device\n";

    fn machine(at: &Path) -> Machine {
        let device = at.join("sys/wlan0");
        fs::create_dir_all(&device).unwrap();
        fs::write(device.join("type"), "1\n").unwrap();
        fs::write(device.join("carrier_changes"), "2\n").unwrap();
        fs::create_dir_all(at.join("proc")).unwrap();
        fs::write(at.join("proc/route"), ROUTES).unwrap();
        fs::write(at.join("proc/arp"), HEARD).unwrap();
        let (interfaces, tables) = (at.join("sys"), at.join("proc"));
        Machine { interfaces, tables, ..Machine::default() }
    }

    fn address(name: &str, ip: [u8; 4], prefixlen: u8) -> if_addrs::Interface {
        let addr = if_addrs::Ifv4Addr {
            ip: ip.into(),
            netmask: Ipv4Addr::UNSPECIFIED,
            prefixlen,
            broadcast: None,
        };
        if_addrs::Interface {
            name: name.to_owned(),
            addr: IfAddr::V4(addr),
            index: Some(3),
            oper_status: IfOperStatus::Up,
            is_p2p: false,
        }
    }

    #[test]
    fn a_silent_gateway_is_remembered_only_while_nothing_has_changed() {
        type Change = fn(&Path);
        let none: Change = |_| {};
        let carrier: Change = |at| fs::write(at.join("sys/wlan0/carrier_changes"), "4\n").unwrap();
        let unsaid: Change = |at| fs::remove_file(at.join("sys/wlan0/carrier_changes")).unwrap();
        let gateway: Change = |at| {
            fs::write(at.join("proc/route"), ROUTES.replace("0101A8C0", "0201A8C0")).unwrap();
        };
        let away: Change = |at| fs::write(at.join("proc/route"), "\n").unwrap();
        let home = || address("wlan0", [192, 168, 1, 10], 24);
        for (what, change, now, want) in [
            ("nothing", none, home(), Some("aa:00:00:00:00:01")),
            ("the carrier", carrier, home(), None),
            ("the carrier is not said", unsaid, home(), None),
            ("the gateway", gateway, home(), None),
            ("no gateway", away, home(), None),
            ("the address", none, address("wlan0", [192, 168, 1, 11], 24), None),
            ("the prefix", none, address("wlan0", [192, 168, 1, 10], 16), None),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let machine = machine(dir.path());
            let link = |addr| {
                let found = machine.described(vec![addr]);
                found[0].gateway.clone().and_then(|g| g.link)
            };
            assert_eq!(link(home()).as_deref(), Some("aa:00:00:00:00:01"));
            fs::write(dir.path().join("proc/arp"), SILENT).unwrap();
            assert_eq!(link(home()).as_deref(), Some("aa:00:00:00:00:01"), "{what}");
            change(dir.path());
            assert_eq!(link(now.clone()).as_deref(), want, "{what}");
            // What was forgotten once is not remembered later.
            if want.is_none() {
                machine.described(vec![now]);
                fs::write(dir.path().join("proc/route"), ROUTES).unwrap();
                fs::write(dir.path().join("sys/wlan0/carrier_changes"), "9\n").unwrap();
                assert_eq!(link(home()), None, "{what}");
            }
        }
    }

    #[test]
    fn tables_that_cannot_be_read_for_a_moment_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(dir.path());
        let home = || vec![address("wlan0", [192, 168, 1, 10], 24)];
        let before = machine.described(home());
        for table in ["route", "arp"] {
            let table = dir.path().join("proc").join(table);
            let text = fs::read_to_string(&table).unwrap();
            fs::remove_file(&table).unwrap();
            fs::create_dir(&table).unwrap();
            assert_eq!(machine.described(home()), before);
            fs::remove_dir(&table).unwrap();
            fs::write(&table, text).unwrap();
        }
        fs::write(dir.path().join("proc/arp"), SILENT).unwrap();
        assert_eq!(machine.described(home()), before, "the gateway is still remembered");
    }

    #[test]
    fn another_gateway_at_the_same_address_is_seen_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(dir.path());
        let home = || vec![address("wlan0", [192, 168, 1, 10], 24)];
        machine.described(home());
        let other = HEARD.replace("aa:00", "bb:00");
        fs::write(dir.path().join("proc/arp"), other).unwrap();
        let gateway = machine.described(home())[0].gateway.clone().unwrap();
        assert_eq!(gateway.link.as_deref(), Some("bb:00:00:00:00:01"));
    }

    #[test]
    fn a_device_with_a_tailnet_address_is_a_tunnel_with_all_its_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(dir.path());
        let both =
            vec![address("wlan0", [192, 168, 1, 10], 24), address("wlan0", [100, 64, 0, 9], 32)];
        for found in machine.described(both) {
            assert_eq!(found.kind, Kind::Tunnel, "{found:?}");
            assert!(found.usable().is_err());
        }
        let home = &machine.described(vec![address("wlan0", [192, 168, 1, 10], 24)])[0];
        assert_eq!((home.kind, home.usable()), (Kind::Lan, Ok(())));
        let unheard = home.gateway.clone().map(|gateway| Gateway { link: None, ..gateway });
        for gateway in [None, unheard] {
            assert!(Interface { gateway, ..home.clone() }.usable().is_err());
        }
        let cable = address("wlan0", [192, 168, 1, 10], 24);
        let cable = if_addrs::Interface { is_p2p: true, ..cable };
        assert_eq!(machine.described(vec![cable])[0].kind, Kind::Tunnel, "from point to point");
        let public = &machine.described(vec![address("wlan0", [198, 51, 100, 9], 24)])[0];
        assert!(public.usable().is_err());
    }

    #[test]
    fn this_machines_own_interfaces_are_understood() {
        let found = Machine::default().read();
        let lo = found.iter().find(|i| i.addr.is_loopback()).unwrap();
        assert_eq!(lo.kind, Kind::Loopback);
        assert!(lo.usable().is_err());
    }
}
