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
///
/// To be called before this program writes there: what a write that was cut short left behind
/// holds keys, and is removed.
pub fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, Why> {
    sweep(path);
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
    let aside = put_aside(path).map_err(whole)?;
    Err(Why::Torn { path: path.to_owned(), aside })
}

/// Moves a file that is not to be believed aside, and says where to. An earlier one there goes.
pub fn put_aside(path: &Path) -> io::Result<PathBuf> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".unreadable");
    let aside = PathBuf::from(aside);
    // It holds keys all the same.
    #[cfg(unix)]
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    fs::rename(path, &aside)?;
    Ok(aside)
}

/// Puts `bytes` in place of what was there. They hold no line end.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if bytes.contains(&b'\n') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "bytes with a line end"));
    }
    let (folder, name) = (folder(path), unfinished(path));
    let mut new = tempfile::Builder::new();
    new.prefix(&name);
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

fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What the names of files begin with that are to take this one's place.
fn unfinished(path: &Path) -> String {
    format!(".{}-new-", path.file_name().unwrap_or_default().to_string_lossy())
}

/// Removes what earlier writes of `path` left behind.
fn sweep(path: &Path) {
    let name = unfinished(path);
    for entry in fs::read_dir(folder(path)).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&name) {
            // What cannot be removed now is tried again at the next start.
            let _ = fs::remove_file(entry.path());
        }
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BYTES: &[u8] = br#"{"v":1,"pins":[{"name":"desk"},{"name":"gpu-box"}]}"#;

    fn at(folder: &tempfile::TempDir) -> PathBuf {
        folder.path().join("trust-0f.json")
    }

    fn names(folder: &tempfile::TempDir) -> Vec<String> {
        let entries = fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_written_last_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = at(&folder);
        assert!(read(&path).unwrap().is_none(), "none yet");
        for bytes in [b"{}".as_slice(), BYTES, b""] {
            write(&path, bytes).unwrap();
            assert_eq!(read(&path).unwrap().unwrap().as_slice(), bytes);
            assert_eq!(names(&folder), ["trust-0f.json"], "nothing else is left behind");
        }
    }

    #[test]
    fn a_file_changed_at_any_bit_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = at(&folder);
        write(&path, BYTES).unwrap();
        let whole = fs::read(&path).unwrap();
        for (byte, bit) in (0..whole.len()).flat_map(|byte| (0..8).map(move |bit| (byte, bit))) {
            let mut changed = whole.clone();
            changed[byte] ^= 1 << bit;
            fs::write(&path, &changed).unwrap();
            assert!(matches!(read(&path), Err(Why::Torn { .. })), "byte {byte}, bit {bit}");
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_file_torn_at_any_byte_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = at(&folder);
        write(&path, BYTES).unwrap();
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            let zeroed = [&whole[..length], &vec![0; whole.len() - length]].concat();
            for torn in [&whole[..length], &whole[whole.len() - length..], &zeroed] {
                fs::write(&path, torn).unwrap();
                assert!(matches!(read(&path), Err(Why::Torn { .. })), "{length} bytes");
            }
        }
        for more in [&b"\n"[..], b"\0", &whole] {
            fs::write(&path, [&whole, more].concat()).unwrap();
            assert!(matches!(read(&path), Err(Why::Torn { .. })), "more than was written");
        }
        fs::write(&path, &whole).unwrap();
        assert_eq!(read(&path).unwrap().unwrap().as_slice(), BYTES);
    }

    #[test]
    fn an_unreadable_file_is_put_aside_and_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = at(&folder);
        fs::write(&path, "half a fi").unwrap();
        let said = read(&path).unwrap_err().to_string();
        assert!(said.contains("trust-0f.json.unreadable"), "{said}");
        assert!(!said.contains("half a fi"), "{said}");
        assert_eq!(names(&folder), ["trust-0f.json.unreadable"]);
        assert_eq!(fs::read(folder.path().join("trust-0f.json.unreadable")).unwrap(), b"half a fi");
        assert!(read(&path).unwrap().is_none(), "it starts anew");
        write(&path, BYTES).unwrap();
        assert_eq!(read(&path).unwrap().unwrap().as_slice(), BYTES);
    }

    #[test]
    fn a_file_the_system_keeps_back_stays_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = at(&folder);
        fs::create_dir(&path).unwrap();
        assert!(matches!(read(&path), Err(Why::Io { .. })));
        assert!(path.exists());
    }

    #[test]
    fn a_file_that_has_grown_beyond_bounds_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = at(&folder);
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(matches!(read(&path), Err(Why::Torn { .. })));
    }

    #[test]
    fn a_write_that_fails_leaves_what_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = at(&folder);
        write(&path, BYTES).unwrap();
        assert!(write(&path, b"two\nlines").is_err());
        assert_eq!(read(&path).unwrap().unwrap().as_slice(), BYTES);
        assert!(write(&folder.path().join("absent").join("x.json"), BYTES).is_err());
        let taken = folder.path().join("taken.json");
        fs::create_dir(&taken).unwrap();
        assert!(write(&taken, BYTES).is_err());
        assert_eq!(names(&folder), ["taken.json", "trust-0f.json"], "no new file is left");
    }

    #[test]
    fn what_a_cut_write_left_goes_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = at(&folder);
        write(&path, BYTES).unwrap();
        for name in [".trust-0f.json-new-Xy12", ".trust-0f.json-new-", ".trust-aa.json-new-Xy12"] {
            fs::write(folder.path().join(name), "a key").unwrap();
        }
        assert_eq!(read(&path).unwrap().unwrap().as_slice(), BYTES);
        assert_eq!(names(&folder), [".trust-aa.json-new-Xy12", "trust-0f.json"], "only its own");
    }

    #[cfg(unix)]
    #[test]
    fn only_its_user_reads_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = at(&folder);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        write(&path, BYTES).unwrap();
        assert_eq!(mode(&path), 0o600);
        // Put aside, it still holds keys.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(&path, "torn").unwrap();
        read(&path).unwrap_err();
        assert_eq!(mode(&folder.path().join("trust-0f.json.unreadable")), 0o600);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_come_back_or_are_refused(bytes: Vec<u8>, other: Vec<u8>) {
            let file = [&bytes[..], seal(&bytes).as_bytes()].concat();
            let line_end = bytes.contains(&b'\n');
            prop_assert_eq!(checked(&file), (!line_end).then_some(&bytes[..]));
            prop_assert_eq!(checked(&other), None);
            prop_assume!(bytes != other);
            let swapped = [&other[..], seal(&bytes).as_bytes()].concat();
            prop_assert_eq!(checked(&swapped), None);
        }
    }
}
