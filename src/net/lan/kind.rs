//! What kind of network an interface leads to.

use std::fs;
use std::path::Path;

/// What an interface leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A local network.
    Lan,
    /// This machine.
    Loopback,
    /// Another network through a tunnel (a VPN, the tailnet), or it cannot be told.
    Tunnel,
    /// Containers and virtual machines of this machine.
    Container,
}

/// `ARPHRD_ETHER`: Ethernet, Wi-Fi, bridges, virtual cables.
const ETHERNET: &str = "1";
/// `ARPHRD_LOOPBACK`.
const LOOPBACK: &str = "772";
/// Tunnels that look like Ethernet, by the type the kernel gives their devices.
const TUNNELS: [&str; 5] = ["vxlan", "geneve", "ppp", "wwan", "wireguard"];

/// The kind of the interface `name` as the folder `interfaces` (`/sys/class/net`) describes
/// it. One that is not described is no local network.
pub(super) fn of(interfaces: &Path, name: &str) -> Kind {
    let at = interfaces.join(name);
    let Ok(link) = fs::read_to_string(at.join("type")) else { return Kind::Tunnel };
    match link.trim() {
        LOOPBACK => return Kind::Loopback,
        ETHERNET => {}
        _ => return Kind::Tunnel,
    }
    if at.join("tun_flags").exists() || is_tunnel(&at) {
        // Also the cable of a virtual machine, which is no way to a local network either.
        return Kind::Tunnel;
    }
    // An address on a bridge's port is the bridge's business.
    if at.join("brport").exists() {
        return Kind::Container;
    }
    if at.join("bridge").is_dir() && !has_way_out(interfaces, &at) {
        return Kind::Container;
    }
    Kind::Lan
}

fn is_tunnel(at: &Path) -> bool {
    let about = fs::read_to_string(at.join("uevent")).unwrap_or_default();
    about.lines().filter_map(|l| l.strip_prefix("DEVTYPE=")).any(|t| TUNNELS.contains(&t))
}

/// Whether one of a bridge's ports is hardware, or lies on hardware (VLAN, bond).
fn has_way_out(interfaces: &Path, bridge: &Path) -> bool {
    let Ok(ports) = fs::read_dir(bridge.join("brif")) else { return false };
    ports.filter_map(Result::ok).any(|port| is_hardware(&interfaces.join(port.file_name()), 4))
}

fn is_hardware(at: &Path, depth: u32) -> bool {
    if at.join("device").exists() {
        return true;
    }
    let Ok(entries) = fs::read_dir(at) else { return false };
    // A bond of VLANs of a bond is as deep as anybody builds.
    depth > 0
        && entries
            .filter_map(Result::ok)
            .filter(|e| e.file_name().to_string_lossy().starts_with("lower_"))
            .any(|e| is_hardware(&e.path(), depth - 1))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_what_leads_to_a_local_network_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let net = dir.path();
        let make = |name: &str, link: &str, files: &[&str], uevent: &str| {
            fs::create_dir_all(net.join(name)).unwrap();
            fs::write(net.join(name).join("type"), format!("{link}\n")).unwrap();
            fs::write(net.join(name).join("uevent"), uevent).unwrap();
            for file in files {
                fs::write(net.join(name).join(file), "").unwrap();
            }
        };
        let bridge = |name: &str, ports: &[&str]| {
            make(name, "1", &[], "DEVTYPE=bridge\n");
            fs::create_dir_all(net.join(name).join("bridge")).unwrap();
            for port in ports {
                fs::create_dir_all(net.join(name).join("brif").join(port)).unwrap();
            }
        };
        make("lo", "772", &[], "");
        make("eth0", "1", &["device"], "");
        make("wlan0", "1", &["device"], "DEVTYPE=wlan\n");
        make("eth0.7", "1", &[], "DEVTYPE=vlan\n");
        symlink(net.join("eth0"), net.join("eth0.7/lower_eth0")).unwrap();
        make("veth-lab", "1", &[], "");
        make("veth-port", "1", &["brport"], "");
        make("tailscale0", "65534", &["tun_flags"], "");
        make("wg0", "65534", &[], "DEVTYPE=wireguard\n");
        make("ipip0", "768", &[], "");
        make("tap0", "1", &["tun_flags"], "");
        make("vx0", "1", &[], "DEVTYPE=vxlan\n");
        bridge("docker0", &["veth-port"]);
        bridge("empty", &[]);
        bridge("br-lan", &["veth-port", "eth0"]);
        bridge("br-vlan", &["eth0.7"]);
        bridge("br-overlay", &["vx0"]);
        for (name, want) in [
            ("lo", Kind::Loopback),
            ("eth0", Kind::Lan),
            ("wlan0", Kind::Lan),
            ("eth0.7", Kind::Lan),
            ("veth-lab", Kind::Lan),
            ("veth-port", Kind::Container),
            ("tailscale0", Kind::Tunnel),
            ("wg0", Kind::Tunnel),
            ("ipip0", Kind::Tunnel),
            ("tap0", Kind::Tunnel),
            ("vx0", Kind::Tunnel),
            ("docker0", Kind::Container),
            ("empty", Kind::Container),
            ("br-lan", Kind::Lan),
            ("br-vlan", Kind::Lan),
            ("br-overlay", Kind::Container),
            ("not-there", Kind::Tunnel),
        ] {
            assert_eq!(of(net, name), want, "{name}");
        }
    }
}
