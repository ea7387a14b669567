//! `tailherd pipe`: a loopback address for programs that have no network, such as those in a
//! container without one.
//!
//! In flow connections to 127.0.0.1:11434 of where it runs; each goes on, byte for byte, over a
//! unix socket which the tailherd outside listens on (`listen: ["unix:PATH"]`) and which was
//! mounted inside. It reads nothing of what passes, and knows no node. When either end closes,
//! so does the other: a client that leaves still stops its engine.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use tokio::io::copy_bidirectional;

use super::{Context, Failure};
use crate::net::{Listener, Sockets, listen};
use crate::types::ListenerKind;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The socket on which the tailherd outside listens.
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,
    /// Where programs here reach it; a loopback address.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:11434", value_parser = loopback)]
    listen: SocketAddr,
}

pub(super) async fn run(args: Args, context: Context<'_>) -> Result<(), Failure> {
    let listener = listen::bind(&Sockets::real(), ListenerKind::Apps, args.listen, None)
        .map_err(|error| anyhow!(error))?;
    let Context { out, .. } = context;
    writeln!(out, "tailherd: {} goes to {}", listener.local, args.socket.display())?;
    if let Err(error) = listen::call(&args.socket).await {
        // Which of the two starts first does not matter.
        writeln!(out, "tailherd: nobody answers at {} yet: {error}", args.socket.display())?;
    }
    out.flush()?;
    carry(&listener, &args.socket).await
}

/// Carries connections for as long as it is polled.
async fn carry(listener: &Listener, socket: &Path) -> ! {
    loop {
        let (mut inside, ..) = listener.accept().await;
        let socket = socket.to_owned();
        tokio::spawn(async move {
            // Nobody there: the program sees its connection closed, as when Ollama is down.
            let Ok(mut outside) = listen::call(&socket).await else { return };
            // How a connection ended is for its two ends to know.
            let _ = copy_bidirectional(&mut inside, &mut outside).await;
        });
    }
}

/// Whoever reaches it is a program here, without a login; so nothing else may reach it.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|_| "not an address and a port, such as 127.0.0.1:11434")?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("not a loopback address: whoever reaches it needs no login".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpStream, UnixListener};
    use tokio::time::timeout;

    use super::*;

    #[test]
    fn only_programs_here_may_reach_it() {
        let check = |text: &str, ok: bool| assert_eq!(loopback(text).is_ok(), ok, "{text}");
        check("127.0.0.1:11434", true);
        check("[::1]:0", true);
        check("0.0.0.0:11434", false);
        check("10.0.0.2:11434", false);
        check("11434", false);
    }

    async fn carried(folder: &Path) -> (SocketAddr, UnixListener) {
        let path = folder.join("s");
        let outside = UnixListener::bind(&path).unwrap();
        let wanted = "127.0.0.1:0".parse().unwrap();
        let listener = listen::bind(&Sockets::real(), ListenerKind::Apps, wanted, None).unwrap();
        let at = listener.local;
        tokio::spawn(async move { carry(&listener, &path).await });
        (at, outside)
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_each_connection_is_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let (at, outside) = carried(folder.path()).await;
        let mut first = TcpStream::connect(at).await.unwrap();
        let (mut first_out, _) = outside.accept().await.unwrap();
        let mut second = TcpStream::connect(at).await.unwrap();
        let (mut second_out, _) = outside.accept().await.unwrap();
        let mut read = [0; 4];
        second.write_all(b"ask2").await.unwrap();
        first.write_all(b"ask1").await.unwrap();
        first_out.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"ask1");
        second_out.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"ask2");
        first_out.write_all(b"told").await.unwrap();
        first.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"told");
    }

    #[tokio::test]
    async fn who_leaves_is_seen_at_the_other_end() {
        let folder = tempfile::tempdir().unwrap();
        let (at, outside) = carried(folder.path()).await;
        let soon = Duration::from_secs(20);
        let client = TcpStream::connect(at).await.unwrap();
        let (mut server, _) = outside.accept().await.unwrap();
        drop(client);
        assert_eq!(timeout(soon, server.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
        let mut client = TcpStream::connect(at).await.unwrap();
        drop(outside.accept().await.unwrap());
        assert_eq!(timeout(soon, client.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
        // Nobody is there any more.
        drop(outside);
        let mut client = TcpStream::connect(at).await.unwrap();
        assert!(matches!(timeout(soon, client.read(&mut [0; 1])).await.unwrap(), Ok(0) | Err(_)));
    }
}
