//! Where the daemon listens on this platform.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::LocalApi;
use super::believe::{self, Believed, Distrust};
use super::transport::{ApiError, Daemon, Place, Transport};
use crate::config;
use crate::types::Timing;

/// Why no LocalAPI can be used.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// Nothing is where a daemon would listen.
    #[error("no tailscaled socket at {0}")]
    None(String),
    /// Somebody is there whom we do not believe.
    #[error("{distrust}")]
    Distrust {
        /// Why not.
        distrust: Distrust,
        /// Whose process it is, if that could be told.
        daemon: Option<Daemon>,
    },
    /// A socket is there, and the daemon behind it does not answer.
    #[error(transparent)]
    Silent(ApiError),
}

impl FindError {
    /// Whether there is no sign of a daemon at all.
    pub fn is_none(&self) -> bool {
        matches!(self, FindError::None(_))
    }
}

/// Sockets of the platforms, none of them in a folder everybody may write to: those have to
/// be named in the configuration.
const SOCKETS: &[&str] = if cfg!(target_os = "macos") {
    &["/var/run/tailscaled.socket"]
} else {
    &[
        "/var/run/tailscale/tailscaled.sock",
        // Synology DSM 7 and 6.
        "/var/packages/Tailscale/var/tailscaled.sock",
        "/var/packages/Tailscale/etc/tailscaled.sock",
        // Gokrazy.
        "/perm/tailscaled/tailscaled.sock",
    ]
};

/// Where the macOS apps leave their port and token.
const TOKEN_FOLDER: Option<&str> =
    if cfg!(target_os = "macos") { Some("/Library/Tailscale") } else { None };

impl LocalApi {
    /// Finds the daemon: where `tailnet.socket` says, else in the platform's places. The one
    /// that is found is believed, and answered a connect.
    pub async fn find(config: &config::Tailnet, timing: &Timing) -> Result<LocalApi, FindError> {
        let token_folder = TOKEN_FOLDER.map(Path::new);
        find_in(config, timing, SOCKETS, token_folder, 0).await
    }
}

/// Looks in these places. `token_owner` is root; tests have another one.
pub(in crate::net) async fn find_in(
    config: &config::Tailnet,
    timing: &Timing,
    sockets: &[&str],
    token_folder: Option<&Path>,
    token_owner: u32,
) -> Result<LocalApi, FindError> {
    let believed =
        Believed { ours: rustix::process::geteuid().as_raw(), configured: config.socket_uid };
    let api = |place| LocalApi {
        capability: Arc::from(config.capability.as_str()),
        transport: Arc::new(Transport {
            place,
            believed,
            connect_limit: timing.localapi_connect,
            read_limit: timing.localapi_read,
            daemon: Mutex::new(None),
        }),
    };
    let named = config.socket.as_deref();
    let places: Vec<&Path> =
        named.map_or_else(|| sockets.iter().map(Path::new).collect(), |path| vec![path]);
    let mut silent = None;
    for path in &places {
        if !path.exists() {
            continue;
        }
        let api = api(Place::Unix(path.to_path_buf()));
        // Connect first: even of a daemon that is not believed it has to be known who it is.
        let connected = api.transport.connect().await;
        let daemon = *api.transport.daemon.lock();
        match connected {
            Ok(_) => {}
            Err(ApiError::Distrust(distrust)) => {
                return Err(FindError::Distrust { distrust, daemon });
            }
            Err(error) => {
                silent.get_or_insert(error);
                continue;
            }
        }
        return match believe::check_folders(&believe::folders_of(path), named.is_some()) {
            Ok(()) => Ok(api),
            Err(distrust) => Err(FindError::Distrust { distrust, daemon }),
        };
    }
    if let (None, Some(folder)) = (named, token_folder) {
        match token(folder, token_owner) {
            Ok(Some(place)) => {
                let api = api(place);
                return match api.transport.connect().await {
                    Ok(_) => Ok(api),
                    Err(error) => Err(FindError::Silent(error)),
                };
            }
            Ok(None) => {}
            Err(distrust) => return Err(FindError::Distrust { distrust, daemon: None }),
        }
    }
    Err(silent.map_or_else(
        || {
            let places: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
            FindError::None(places.join(", "))
        },
        FindError::Silent,
    ))
}

/// The macOS app's port and token: the port is the target of the link `ipnport`, the token
/// the content of `sameuserproof-PORT`, which has to be root's.
fn token(folder: &Path, owner: u32) -> Result<Option<Place>, Distrust> {
    let read = || -> io::Result<(PathBuf, u16, u32, String)> {
        let link = std::fs::read_link(folder.join("ipnport"))?;
        let port = link.to_str().and_then(|t| t.parse::<u16>().ok());
        let port = port.ok_or(io::ErrorKind::InvalidData)?;
        let path = folder.join(format!("sameuserproof-{port}"));
        // Not through a link: the file itself has to be root's.
        let uid = std::fs::symlink_metadata(&path)?.uid();
        let token = std::fs::read_to_string(&path)?;
        Ok((path, port, uid, token.trim().to_owned()))
    };
    let Ok((path, port, uid, token)) = read() else { return Ok(None) };
    if uid != owner {
        return Err(Distrust::Token(path));
    }
    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    Ok(Some(Place::Tcp { addr, token }))
}
