//! The state folder: ours alone, and used by one program at a time.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::StartError;

/// The right to use a state folder, until dropped.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "closing the file ends the lock")] File);

/// Makes the folder if it is not there, 0700, and takes it for this process.
pub(super) fn lock(folder: &Path) -> Result<Lock, StartError> {
    let named = || folder.display().to_string();
    let state = |source: io::Error| StartError::State { folder: named(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(state)?;
    let mode = fs::metadata(folder).map_err(state)?.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(state)?;
    }
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join("lock"))
        .map_err(state)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StartError::Running(named())),
        Err(error) => Err(state(error.into())),
    }
}

/// This machine's host name.
pub(super) fn host_name() -> Option<String> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_program_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let first = lock(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(matches!(lock(&path), Err(StartError::Running(_))));
        drop(first);
        assert!(lock(&path).is_ok());
    }
}
