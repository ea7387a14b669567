//! Store: one file that is either whole or not believed.
//!
//! In: a path, bytes without a line end (JSON as serde_json writes it). Out: those bytes
//! again, or why not. The file is a line with the bytes and a line with their SHA-256; one
//! that is torn or changed at any byte is put aside as `….unreadable` and never read. The
//! hash finds accidents, not forgers: who may write here may write the hash too.
//!
//! A write is whole or has not been: a new file of mode 0600 takes the old one's name once it
//! is on the disk.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// Largest file that is read.
const MOST_BYTES: u64 = 8 << 20;

/// What temporary files begin with.
const NEW: &str = ".trust-";

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// The system would not hand it out.
    #[error("{path}: {source}; what was trusted is not known until it can be read")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what was written; it now lies beside, as `aside`.
    #[error("{path}: torn or changed, not believed; put aside as {aside}")]
    Torn {
        /// The file.
        path: PathBuf,
        /// Where it is now.
        aside: PathBuf,
    },
}

/// The bytes that were written last; `None` if none ever were. They are wiped when dropped.
pub fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, Why> {
    let whole = |source| Why::Io { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(whole(e)),
    };
    // All the room at once: a vector that grows leaves a copy behind.
    let size = file.metadata().map_err(whole)?.len().min(MOST_BYTES);
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1));
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(whole)?;
    if let Some(length) = checked(&bytes).map(<[u8]>::len) {
        bytes.truncate(length);
        return Ok(Some(bytes));
    }
    let mut aside = path.as_os_str().to_owned();
    aside.push(".unreadable");
    let aside = PathBuf::from(aside);
    fs::rename(path, &aside).map_err(whole)?;
    Err(Why::Torn { path: path.to_owned(), aside })
}

/// Puts `bytes` in place of what was there. They hold no line end.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if bytes.contains(&b'\n') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "bytes with a line end"));
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new = tempfile::Builder::new();
    new.prefix(NEW);
    #[cfg(unix)]
    new.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600));
    let mut file = new.tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.write_all(seal(bytes).as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    // The new name itself has to reach the disk.
    File::open(folder)?.sync_all()
}

/// The bytes before the seal, if it is theirs to the last byte.
fn checked(file: &[u8]) -> Option<&[u8]> {
    let (bytes, end) = file.split_at_checked(file.len().checked_sub(SEAL)?)?;
    (end == seal(bytes).as_bytes() && !bytes.contains(&b'\n')).then_some(bytes)
}

/// A line end, 64 hex digits, a line end.
const SEAL: usize = 66;

fn seal(bytes: &[u8]) -> String {
    let mut text = String::from("\n");
    for byte in Sha256::digest(bytes) {
        // Writing into a text does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text + "\n"
}
