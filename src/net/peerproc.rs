//! Whose socket is at the other end of a connection inside this machine.
//!
//! The kernel's own tables answer that, and only they can: what arrives on 127.0.0.1 may have
//! been forwarded by the tailnet daemon for somebody far away. Where the tables do not answer
//! (another platform, another process namespace, a socket that is gone), the answer is
//! [`OtherEnd::Unknown`], never a guess.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use super::localapi::Daemon;

/// Whose socket is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherEnd {
    /// A program's that is not the daemon.
    Program {
        /// The user it runs as.
        uid: u32,
    },
    /// The daemon's own.
    Daemon,
    /// It could be the daemon's by its user, but the daemon's process does not exist any more.
    Gone,
    /// It cannot be told.
    Unknown,
}

/// Looks up the other end of the connection that we see as `local` ← `remote`.
pub(super) fn other_end(local: SocketAddr, remote: SocketAddr, daemon: Option<Daemon>) -> OtherEnd {
    look(Path::new("/proc"), local, remote, daemon)
}

fn look(proc: &Path, local: SocketAddr, remote: SocketAddr, daemon: Option<Daemon>) -> OtherEnd {
    // Their socket is ours with the ends swapped.
    let find = || entry(proc, remote, local);
    decide(find, daemon, |pid, inode| holds(proc, pid, inode))
}

fn decide(
    find: impl Fn() -> Option<Entry>,
    daemon: Option<Daemon>,
    holds: impl Fn(i32, u64) -> io::Result<bool>,
) -> OtherEnd {
    let (Some(found), Some(daemon)) = (find(), daemon) else { return OtherEnd::Unknown };
    if found.uid != daemon.uid {
        return OtherEnd::Program { uid: found.uid };
    }
    let Some(pid) = daemon.pid else { return OtherEnd::Unknown };
    match holds(pid, found.inode) {
        Ok(true) => OtherEnd::Daemon,
        // A daemon that closed its socket in the meantime holds it no longer: only a socket that
        // is still there was somebody else's all along.
        Ok(false) if find() == Some(found) => OtherEnd::Program { uid: found.uid },
        Ok(false) => OtherEnd::Unknown,
        Err(error) if error.kind() == io::ErrorKind::NotFound => OtherEnd::Gone,
        Err(_) => OtherEnd::Unknown,
    }
}

/// The user behind the other end, for rules that name one; `None` if it cannot be told.
pub(super) fn uid_of(local: SocketAddr, remote: SocketAddr) -> Option<u32> {
    entry(Path::new("/proc"), remote, local).map(|found| found.uid)
}

/// How many bytes of our own connection `local` → `remote` wait to be sent or acknowledged.
pub(super) fn unacknowledged(local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    ["net/tcp", "net/tcp6"].iter().find_map(|table| {
        let text = fs::read_to_string(Path::new("/proc").join(table)).ok()?;
        text.lines().skip(1).find_map(|line| {
            let words = words_of(line, local, remote)?;
            let (unsent, _) = words.get(4)?.split_once(':')?;
            u64::from_str_radix(unsent, 16).ok()
        })
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    uid: u32,
    inode: u64,
}

/// The kernel's entry for the socket at `own` that is connected to `other`.
fn entry(proc: &Path, own: SocketAddr, other: SocketAddr) -> Option<Entry> {
    ["net/tcp", "net/tcp6"].iter().find_map(|table| {
        let text = fs::read_to_string(proc.join(table)).ok()?;
        text.lines().skip(1).find_map(|line| parse(line, own, other))
    })
}

/// Reads one line, if it is about these two ends:
/// `sl local remote state queues timers retransmits uid timeout inode …`.
fn parse(line: &str, own: SocketAddr, other: SocketAddr) -> Option<Entry> {
    let words = words_of(line, own, other)?;
    let uid = words.get(7)?.parse().ok()?;
    let inode = words.get(9)?.parse().ok()?;
    // A socket nobody holds any more has no inode, and its uid means nothing.
    (inode != 0).then_some(Entry { uid, inode })
}

/// The columns of a line, if it is that of the socket at `own` that is connected to `other`.
fn words_of(line: &str, own: SocketAddr, other: SocketAddr) -> Option<Vec<&str>> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let local = address(words.get(1)?)?;
    let remote = address(words.get(2)?)?;
    let same = |a: SocketAddr, b: SocketAddr| {
        a.port() == b.port() && a.ip().to_canonical() == b.ip().to_canonical()
    };
    (same(local, own) && same(remote, other)).then_some(words)
}

/// `0100007F:2CAA`: the address in words of 32 bits as the machine stores them, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let digits = ip.get(at * 8..at * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (i, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(i)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Whether the process holds the socket with that inode.
fn holds(proc: &Path, pid: i32, inode: u64) -> io::Result<bool> {
    let want = format!("socket:[{inode}]");
    for fd in fs::read_dir(proc.join(pid.to_string()).join("fd"))? {
        match fs::read_link(fd?.path()) {
            Ok(target) if target.as_os_str() == want.as_str() => return Ok(true),
            // Closed while we looked: it was not the one that is still connected.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2CAA 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 11 1 0 100 0 0 10 0
   1: 0100007F:9C40 0100007F:2CAA 01 00000000:00000000 00:00000000 00000000   977        0 4711 1 0 20 4 30 10 -1
   2: 0100007F:9C41 0100007F:2CAA 06 00000000:00000000 00:00000000 00000000     0        0 0 1 0 20 4 30 10 -1
";
    const TABLE6: &str = "  sl  local_address rem_address   st
   0: 0000000000000000FFFF00000100007F:9C42 0000000000000000FFFF00000100007F:2CAA 01 00000000:00000000 00:00000000 00000000  1001        0 4712 1
   1: 00000000000000000000000001000000:9C43 00000000000000000000000001000000:2CAA 01 00000000:00000000 00:00000000 00000000  1002        0 4713 1
";

    fn machine() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("net")).unwrap();
        fs::write(dir.path().join("net/tcp"), TABLE).unwrap();
        fs::write(dir.path().join("net/tcp6"), TABLE6).unwrap();
        for (pid, inode) in [(50, 4711), (51, 99)] {
            let fds = dir.path().join(format!("{pid}/fd"));
            fs::create_dir_all(&fds).unwrap();
            symlink("/dev/null", fds.join("0")).unwrap();
            symlink(format!("socket:[{inode}]"), fds.join("5")).unwrap();
        }
        dir
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn the_other_end_is_the_daemons_only_if_the_daemon_holds_it() {
        let machine = machine();
        let check = |ip: &str, port: u16, daemon: Option<(u32, Option<i32>)>, want| {
            let ip: IpAddr = ip.parse().unwrap();
            let daemon = daemon.map(|(uid, pid)| Daemon { uid, pid });
            let (local, remote) = (SocketAddr::new(ip, 11434), SocketAddr::new(ip, port));
            assert_eq!(look(machine.path(), local, remote, daemon), want, "{ip} {port} {daemon:?}");
        };
        check("127.0.0.1", 40000, Some((0, Some(50))), OtherEnd::Program { uid: 977 });
        check("127.0.0.1", 40000, Some((977, Some(50))), OtherEnd::Daemon);
        check("127.0.0.1", 40000, Some((977, Some(51))), OtherEnd::Program { uid: 977 });
        check("127.0.0.1", 40000, Some((977, Some(52))), OtherEnd::Gone);
        check("127.0.0.1", 40000, Some((977, None)), OtherEnd::Unknown);
        check("127.0.0.1", 40000, None, OtherEnd::Unknown);
        // Left over after a close, and never there.
        check("127.0.0.1", 40001, Some((977, Some(50))), OtherEnd::Unknown);
        check("127.0.0.1", 40009, Some((0, Some(50))), OtherEnd::Unknown);
        // An IPv4 connection from an IPv6 socket, and a real IPv6 one.
        check("127.0.0.1", 40002, Some((0, Some(50))), OtherEnd::Program { uid: 1001 });
        check("::1", 40003, Some((0, Some(50))), OtherEnd::Program { uid: 1002 });
    }

    #[test]
    fn a_socket_that_vanished_while_we_looked_proves_nothing() {
        let there = Some(Entry { uid: 977, inode: 4711 });
        for (then, want) in [(there, OtherEnd::Program { uid: 977 }), (None, OtherEnd::Unknown)] {
            let now = std::cell::Cell::new(there);
            let holds = |_, _| {
                now.set(then);
                Ok(false)
            };
            let daemon = Some(Daemon { uid: 977, pid: Some(50) });
            assert_eq!(decide(|| now.get(), daemon, holds), want);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machines_own_tables_are_understood() {
        for ip in ["127.0.0.1", "::1"] {
            let Ok(listener) = std::net::TcpListener::bind((ip, 0)) else { continue };
            let ours = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (local, remote) = (ours.peer_addr().unwrap(), ours.local_addr().unwrap());
            let uid = rustix::process::geteuid().as_raw();
            let me = i32::try_from(std::process::id()).unwrap();
            let end = |uid, pid| other_end(local, remote, Some(Daemon { uid, pid: Some(pid) }));
            assert_eq!(uid_of(local, remote), Some(uid), "{ip}");
            assert_eq!(end(uid, me), OtherEnd::Daemon, "{ip}");
            assert_eq!(end(uid + 1, me), OtherEnd::Program { uid }, "{ip}");
            drop(ours);
            assert_eq!(end(uid, me), OtherEnd::Unknown, "a closed socket proves nothing: {ip}");
        }
    }
}
