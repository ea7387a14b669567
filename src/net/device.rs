//! Network devices by the addresses they carry.

use std::net::IpAddr;

/// A network device of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name (`tailscale0`).
    pub name: String,
    /// Its index. A device that was taken away and made again has another one.
    pub index: Option<u32>,
}

/// The device that carries `address` now; `None` if no device does.
pub fn device_of(address: IpAddr) -> Option<Device> {
    let all = if_addrs::get_if_addrs().ok()?;
    let found = all.into_iter().find(|i| i.ip() == address)?;
    Some(Device { name: found.name, index: found.index })
}
