//! Whether whoever listens at LocalAPI's place is believed.
//!
//! LocalAPI says who a caller is, so whoever can pose as it decides what everybody may do.
//! It is believed if its process belongs to root, to us, or to the user the configuration
//! names, and if nobody else could have put the socket there.

use std::path::{Path, PathBuf};

/// Why a LocalAPI is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// Its process belongs to somebody else.
    #[error(
        "LocalAPI's process belongs to user {uid}, which is neither root nor us: if that is right, set tailnet.socketUid to {uid}"
    )]
    Owner {
        /// The user.
        uid: u32,
    },
    /// Anybody could have put it there.
    #[error(
        "everybody may write to {0}, so anybody could have put a socket there: move it, or (for a sticky folder such as /tmp) name it in tailnet.socket"
    )]
    Folder(PathBuf),
    /// The token file belongs to somebody else.
    #[error("the token file {0} does not belong to root")]
    Token(PathBuf),
}

/// Which users' daemons are believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Believed {
    /// Our own user id.
    pub ours: u32,
    /// The one the configuration names.
    pub configured: Option<u32>,
}

impl Believed {
    /// Whether a daemon of this user is believed.
    pub fn check_uid(&self, uid: u32) -> Result<(), Distrust> {
        if uid == 0 || uid == self.ours || self.configured == Some(uid) {
            Ok(())
        } else {
            Err(Distrust::Owner { uid })
        }
    }
}

/// A folder on the way to the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// Where it is.
    pub path: PathBuf,
    /// Its mode bits.
    pub mode: u32,
}

const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Whether only trusted users could have put a socket below these folders. A folder in which
/// everybody may write but only owners may replace (`/tmp`) will do if the configuration
/// names the socket itself.
pub fn check_folders(folders: &[Folder], named: bool) -> Result<(), Distrust> {
    for folder in folders {
        let open = folder.mode & OTHERS_WRITE != 0;
        let sticky = folder.mode & STICKY != 0;
        if open && !(named && sticky) {
            return Err(Distrust::Folder(folder.path.clone()));
        }
    }
    Ok(())
}

/// The folders on the way to `socket`, as written and as they really are. A path element that
/// cannot be looked at is left out: then the connect fails too.
pub fn folders_of(socket: &Path) -> Vec<Folder> {
    let real = std::fs::canonicalize(socket).unwrap_or_else(|_| socket.to_owned());
    let mut all: Vec<Folder> = Vec::new();
    for path in socket.ancestors().skip(1).chain(real.ancestors().skip(1)) {
        if path.as_os_str().is_empty() || all.iter().any(|f| f.path == path) {
            continue;
        }
        if let Ok(stat) = rustix::fs::stat(path) {
            all.push(Folder { path: path.to_owned(), mode: stat.st_mode });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_roots_ours_and_the_named_users_daemon_is_believed() {
        let check = |uid, configured, want| {
            let believed = Believed { ours: 1000, configured };
            assert_eq!(believed.check_uid(uid).is_ok(), want, "{uid} {configured:?}");
        };
        check(0, None, true);
        check(1000, None, true);
        check(1001, None, false);
        check(1001, Some(1001), true);
        check(1002, Some(1001), false);
        check(65534, None, false);
    }

    #[test]
    fn a_folder_open_to_everybody_is_refused() {
        let check = |modes: &[u32], named, want| {
            let folders: Vec<Folder> =
                modes.iter().map(|mode| Folder { path: "/x".into(), mode: *mode }).collect();
            assert_eq!(check_folders(&folders, named).is_ok(), want, "{modes:?} {named}");
        };
        check(&[0o40755, 0o40755], false, true);
        check(&[0o40775, 0o40750], false, true);
        check(&[0o41777, 0o40755], false, false);
        check(&[0o41777, 0o40755], true, true);
        check(&[0o40777, 0o40755], true, false);
    }

    #[test]
    fn the_way_to_a_socket_is_followed_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        std::fs::create_dir(&real).unwrap();
        std::fs::write(real.join("s"), "").unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
        let paths: Vec<_> =
            folders_of(&dir.path().join("link/s")).into_iter().map(|f| f.path).collect();
        let real = std::fs::canonicalize(&real).unwrap();
        assert!(paths.contains(&dir.path().join("link")) && paths.contains(&real), "{paths:?}");
        assert!(paths.contains(&PathBuf::from("/")));
    }
}
