//! Word from the kernel that network devices changed.
//!
//! A network that is lost comes back as another one only some time later: association, a
//! lease. Whoever hears of the loss at once has that time to fall silent. What the word says is
//! not read; that there was one is enough to look.

#[cfg(target_os = "linux")]
use std::io;

#[cfg(target_os = "linux")]
use rustix::io::Errno;
#[cfg(target_os = "linux")]
use rustix::net::netlink::SocketAddrNetlink;
#[cfg(target_os = "linux")]
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
#[cfg(target_os = "linux")]
use tokio::net::UnixDatagram;
use tokio::time::sleep;

use super::leash::{LOOK, Leashes};

/// Follows the machine's links: connections whose network was lost end, and whoever waits on
/// the bell is told. Never ends.
pub(in crate::net) async fn follow(leashes: Leashes) {
    let mut words = Words::open();
    loop {
        let any = leashes.any();
        let told = tokio::select! {
            () = words.next() => true,
            () = sleep(LOOK), if any => false,
            () = leashes.opened(), if !any => false,
        };
        // First what may send something by itself.
        let lost = leashes.look();
        if lost > 0 {
            tracing::debug!(connections = lost, "the local network was lost");
        }
        if told || lost > 0 {
            leashes.ring();
        }
    }
}

/// The kernel's words, where it says any.
struct Words {
    #[cfg(target_os = "linux")]
    socket: Option<UnixDatagram>,
}

#[cfg(not(target_os = "linux"))]
impl Words {
    fn open() -> Words {
        Words {}
    }

    async fn next(&mut self) {
        std::future::pending().await
    }
}

#[cfg(target_os = "linux")]
impl Words {
    fn open() -> Words {
        let socket = subscribed();
        if let Err(error) = &socket {
            tracing::warn!("changes of network devices are looked for, not heard: {error}");
        }
        Words { socket: socket.ok() }
    }

    /// Waits for the next one and takes all that are there.
    async fn next(&mut self) {
        let Some(socket) = &self.socket else { return std::future::pending().await };
        let mut bytes = [0; 4096];
        match socket.recv(&mut bytes).await {
            Ok(_) => while socket.try_recv(&mut bytes).is_ok() {},
            // There were more than it can hold: that is a word, too.
            Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {}
            Err(error) => {
                tracing::warn!("changes of network devices are heard no more: {error}");
                self.socket = None;
            }
        }
    }
}

/// `RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR`: devices, and their addresses.
#[cfg(target_os = "linux")]
const GROUPS: u32 = 0x1 | 0x10 | 0x100;

/// The kernel's socket for that. Nothing but taking datagrams is done with it, which is the
/// same for all kinds.
#[cfg(target_os = "linux")]
fn subscribed() -> io::Result<UnixDatagram> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    // (No protocol named: the first one, which is that of devices and addresses.)
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    UnixDatagram::from_std(socket.into())
}
