//! `CONNECT`: a proxy is asked to open a stream to somebody else.
//!
//! In flow a stream to the proxy and whom it is to reach; the same stream is the tunnel
//! afterwards. Not a byte more is read than the proxy's answer: what follows is the other end's.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Io;
use crate::types::Secret;

/// Longest answer of a proxy.
const LONGEST: usize = 8 * 1024;

/// Asks the proxy at the other end of `io` for a stream to `host`.
pub(super) async fn open(
    io: &mut Box<dyn Io>,
    host: &str,
    port: u16,
    login: Option<&Secret>,
) -> io::Result<()> {
    let login = login
        .map_or_else(String::new, |login| format!("Proxy-Authorization: {}\r\n", login.expose()));
    let asked = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n{login}\r\n");
    io.write_all(asked.as_bytes()).await?;
    let mut head = Vec::with_capacity(256);
    // A byte at a time: the tunnel begins right after the blank line.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > LONGEST {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the proxy's answer is too long",
            ));
        }
        head.push(io.read_u8().await?);
    }
    let status = std::str::from_utf8(&head).ok().and_then(|head| head.split(' ').nth(1));
    match status {
        Some(status) if status.starts_with('2') => Ok(()),
        Some(status) if status.len() == 3 => {
            Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("it answered {status}")))
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it does not speak HTTP")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the proxy was told, and what came of it, if it answers so.
    async fn check(answer: &str) -> (String, io::Result<()>, Vec<u8>) {
        let (ours, mut proxy) = tokio::io::duplex(4096);
        let mut io: Box<dyn Io> = Box::new(ours);
        proxy.write_all(answer.as_bytes()).await.unwrap();
        let login = Secret::new("Basic eDp5");
        let opened = open(&mut io, "api.example.com", 443, Some(&login)).await;
        let mut rest = vec![0; 5];
        let read = io.read(&mut rest);
        let n = tokio::time::timeout(std::time::Duration::from_millis(50), read).await;
        rest.truncate(n.map_or(0, |n| n.unwrap_or(0)));
        let mut told = vec![0; 4096];
        let n = proxy.read(&mut told).await.unwrap();
        (String::from_utf8_lossy(&told[..n]).into_owned(), opened, rest)
    }

    #[tokio::test]
    async fn a_proxy_is_told_the_host_and_the_tunnel_begins_after_its_answer() {
        let (told, opened, rest) = check("HTTP/1.1 200 OK\r\nX: y\r\n\r\nHELLO").await;
        assert!(opened.is_ok());
        assert_eq!(rest, b"HELLO", "the other end's first bytes are not lost");
        assert!(told.starts_with("CONNECT api.example.com:443 HTTP/1.1\r\n"), "{told}");
        assert!(told.contains("Proxy-Authorization: Basic eDp5\r\n"), "{told}");
        for bad in ["HTTP/1.1 407 No\r\n\r\n", "SSH-2.0-x\r\n\r\n"] {
            assert!(check(bad).await.1.is_err(), "{bad}");
        }
    }
}
