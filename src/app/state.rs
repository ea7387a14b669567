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

/// Whether what is kept there is gone when the machine stops: it lies in memory.
#[cfg(target_os = "linux")]
pub(super) fn is_passing(folder: &Path) -> bool {
    const TMPFS: u32 = 0x0102_1994;
    const RAMFS: u32 = 0x8584_58f6;
    // The field's type differs from machine to machine.
    let kind = rustix::fs::statfs(folder).ok().and_then(|s| u32::try_from(s.f_type).ok());
    matches!(kind, Some(TMPFS | RAMFS))
}

/// Whether what is kept there is gone when the machine stops. Here nobody can tell.
#[cfg(not(target_os = "linux"))]
pub(super) fn is_passing(_: &Path) -> bool {
    false
}

/// This machine's host name.
pub(super) fn host_name() -> Option<String> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn what_lies_in_memory_is_told_from_what_lies_on_a_disk() {
        // As the kernel says it in words.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mut seen = 0;
        for line in mounts.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [_, at, kind, ..] = words[..] else { continue };
            let covered = mounts.lines().filter(|l| l.split(' ').nth(1) == Some(at)).count() > 1;
            if covered || !matches!(kind, "tmpfs" | "ramfs" | "ext4" | "xfs" | "overlay" | "proc") {
                continue;
            }
            if rustix::fs::statfs(at).is_ok() {
                assert_eq!(
                    is_passing(Path::new(at)),
                    matches!(kind, "tmpfs" | "ramfs"),
                    "{at} is {kind}"
                );
                seen += 1;
            }
        }
        assert!(seen > 0 && !is_passing(Path::new("/nowhere")));
    }

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
