//! Container bridges as doors for local programs.
//!
//! A container's programs count as programs of this machine, so the bridge they sit on must
//! not lead anywhere else: one physical port, and the whole network behind it would be let in
//! without a login.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use super::addresses_of;
use crate::net::device::Device;

/// Why an interface is no door.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BridgeError {
    /// There is no such interface.
    #[error("there is no network interface `{0}`")]
    None(String),
    /// It is something else.
    #[error("`{0}` is no bridge: listen on an address instead")]
    NotABridge(String),
    /// It leads out of this machine.
    #[error("`{name}` is not used: its port `{port}` leads out of this machine")]
    LeadsOut {
        /// The bridge.
        name: String,
        /// The port.
        port: String,
    },
    /// It has no address.
    #[error("the bridge `{0}` has no address yet")]
    NoAddress(String),
}

/// The addresses of a bridge that only containers and virtual machines of this machine sit on,
/// each with the device to bind to.
pub fn bridge(name: &str) -> Result<Vec<(IpAddr, Device)>, BridgeError> {
    check(Path::new("/sys/class/net"), name)?;
    let all = addresses_of(name);
    if all.is_empty() { Err(BridgeError::NoAddress(name.to_owned())) } else { Ok(all) }
}

fn check(interfaces: &Path, name: &str) -> Result<(), BridgeError> {
    let is_name = !name.is_empty() && !name.contains('/') && !name.starts_with('.');
    let bridge = interfaces.join(name);
    if !is_name || !bridge.exists() {
        return Err(BridgeError::None(name.to_owned()));
    }
    if !bridge.join("bridge").is_dir() {
        return Err(BridgeError::NotABridge(name.to_owned()));
    }
    let leads_out = |port: String| Err(BridgeError::LeadsOut { name: name.to_owned(), port });
    // A list that cannot be read is not an empty one.
    let Ok(ports) = fs::read_dir(bridge.join("brif")) else { return leads_out("?".to_owned()) };
    for port in ports {
        let Ok(port) = port else { return leads_out("?".to_owned()) };
        let port = port.file_name().to_string_lossy().into_owned();
        if !stays_inside(&interfaces.join(&port)) {
            return leads_out(port);
        }
    }
    Ok(())
}

/// Whether a port is one end of a virtual cable: it has no hardware of its own, lies on no
/// other interface (VLAN, bond), and is no tunnel, which the kernel names by a type.
fn stays_inside(port: &Path) -> bool {
    if port.join("device").exists() {
        return false;
    }
    let Ok(entries) = fs::read_dir(port) else { return false };
    let on_another = entries
        .filter_map(Result::ok)
        .any(|entry| entry.file_name().to_string_lossy().starts_with("lower_"));
    let Ok(about) = fs::read_to_string(port.join("uevent")) else { return false };
    !on_another && !about.lines().any(|line| line.starts_with("DEVTYPE="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bridge_that_stays_inside_is_a_door() {
        let dir = tempfile::tempdir().unwrap();
        let net = dir.path();
        let port = |name: &str, file: &str, uevent: &str| {
            fs::create_dir_all(net.join(name)).unwrap();
            fs::write(net.join(name).join("uevent"), uevent).unwrap();
            if !file.is_empty() {
                fs::write(net.join(name).join(file), "").unwrap();
            }
        };
        let bridge = |name: &str, ports: &[&str]| {
            fs::create_dir_all(net.join(name).join("bridge")).unwrap();
            for port in ports {
                fs::create_dir_all(net.join(name).join("brif").join(port)).unwrap();
            }
        };
        port("veth1", "", "INTERFACE=veth1\nIFINDEX=7\n");
        port("eth0", "device", "INTERFACE=eth0\n");
        port("eth0.7", "lower_eth0", "INTERFACE=eth0.7\n");
        port("vx0", "", "DEVTYPE=vxlan\nINTERFACE=vx0\n");
        bridge("docker0", &["veth1"]);
        bridge("br-lan", &["veth1", "eth0"]);
        bridge("br-vlan", &["eth0.7"]);
        bridge("br-overlay", &["vx0"]);
        bridge("br-odd", &["unknown"]);
        fs::create_dir_all(net.join("blind/bridge")).unwrap();
        let check = |name: &str| check(net, name);
        let out = |name: &str, port: &str| {
            Err(BridgeError::LeadsOut { name: name.into(), port: port.into() })
        };
        assert_eq!(check("docker0"), Ok(()));
        assert_eq!(check("br-lan"), out("br-lan", "eth0"));
        assert_eq!(check("br-vlan"), out("br-vlan", "eth0.7"));
        assert_eq!(check("br-overlay"), out("br-overlay", "vx0"));
        assert_eq!(check("br-odd"), out("br-odd", "unknown"));
        assert_eq!(check("blind"), out("blind", "?"));
        assert_eq!(check("eth0"), Err(BridgeError::NotABridge("eth0".into())));
        for none in ["", "nothing", "../net/docker0", "."] {
            assert_eq!(check(none), Err(BridgeError::None(none.into())));
        }
    }
}
