//! Local networks that are known: where this node may show itself at all.
//!
//! In: the link address of a network's gateway and its prefix; that a pinned node was met
//! there, or that a person allows it. Out: whether a network is known. What is kept is a keyed
//! hash, so that the file does not say where its owner has been.
//!
//! The file is written outside the lock that questions wait for: whole, and never an older
//! state after a newer one. Whoever changes something waits for the disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ring::hmac;
use serde::{Deserialize, Serialize};

use super::book::is_set_back;
use super::store;
use crate::types::Wall;

/// Most networks that are remembered; the one seen longest ago goes first.
const MOST: usize = 256;
/// How old "last seen" may be before it is written again.
const SEEN: Duration = Duration::from_secs(24 * 3600);

/// The known networks. Clones share them.
#[derive(Debug, Clone)]
pub struct Networks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    file: Option<PathBuf>,
    held: Mutex<Held>,
    /// The count of changes that the file holds. Held while it is written.
    written: Mutex<u64>,
}

#[derive(Debug)]
struct Held {
    kept: Kept,
    /// How often it changed.
    changes: u64,
}

#[derive(Clone, Serialize, Deserialize)]
struct Kept {
    v: u32,
    salt: String,
    known: BTreeMap<String, KnownNetwork>,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} networks", self.known.len())
    }
}

/// A known network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KnownNetwork {
    /// How it became known.
    pub how: How,
    /// Since when it is.
    pub since: Wall,
    /// When it was last seen to be.
    pub last: Wall,
    /// Until when; `None` = for good.
    pub until: Option<Wall>,
}

/// How a network became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum How {
    /// A pinned node was met there, on-link, while the coordinator vouched for it.
    Met,
    /// A person allowed it.
    Allowed,
}

impl Networks {
    /// What `folder` remembers, and what a person should hear of.
    pub fn open(folder: Option<&Path>) -> (Networks, Option<String>) {
        let file = folder.map(|f| f.join("networks-lan.json"));
        let (kept, free, told) = file.as_deref().map_or((None, true, None), read);
        let file = file.filter(|_| free);
        let kept = kept.unwrap_or_else(|| Kept {
            v: 1,
            salt: format!("{:032x}", rand::random::<u128>()),
            known: BTreeMap::new(),
        });
        let held = Mutex::new(Held { kept, changes: 0 });
        (Networks(Arc::new(Shared { file, held, written: Mutex::new(0) })), told)
    }

    /// The id of the network behind a gateway with this link address, with this prefix
    /// (`192.168.1.0/24`).
    pub fn id_of(&self, gateway_link: &str, prefix: &str) -> String {
        let held = self.0.held.lock();
        let key = hmac::Key::new(hmac::HMAC_SHA256, held.kept.salt.as_bytes());
        let text = format!("{}\0{prefix}", gateway_link.to_ascii_lowercase());
        let tag = hmac::sign(&key, text.as_bytes());
        tag.as_ref().iter().take(8).fold(String::new(), |hex, b| hex + &format!("{b:02x}"))
    }

    /// Whether the network is known at `now`.
    pub fn is_known(&self, id: &str, now: Wall) -> bool {
        self.0.held.lock().kept.known.get(id).is_some_and(|n| n.holds(now))
    }

    /// A pinned node was reached on-link there while the coordinator vouched for it.
    pub fn learn(&self, id: &str, now: Wall) -> std::io::Result<()> {
        self.change(|kept| match kept.known.get_mut(id) {
            Some(n) if n.until.is_none() => {
                let news = now.since(n.last) >= SEEN;
                n.last = if news { now } else { n.last };
                news
            }
            _ => kept.put(id, KnownNetwork { how: How::Met, since: now, last: now, until: None }),
        })
    }

    /// A person allows it, for good or until a time. A network that is known for good stays so.
    pub fn allow(&self, id: &str, until: Option<Wall>, now: Wall) -> std::io::Result<()> {
        self.change(|kept| {
            if until.is_some() && kept.known.get(id).is_some_and(|n| n.until.is_none()) {
                return false;
            }
            kept.put(id, KnownNetwork { how: How::Allowed, since: now, last: now, until })
        })
    }

    /// A person wants these not to be known any more.
    pub fn forget(&self, ids: &[String]) -> std::io::Result<()> {
        self.change(|kept| {
            let before = kept.known.len();
            kept.known.retain(|id, _| !ids.contains(id));
            kept.known.len() < before
        })
    }

    /// All of them, for showing.
    pub fn list(&self) -> Vec<(String, KnownNetwork)> {
        self.0.held.lock().kept.known.iter().map(|(id, n)| (id.clone(), *n)).collect()
    }

    /// Changes something; `change` says whether it did. Returns once the file holds it.
    fn change(&self, change: impl FnOnce(&mut Kept) -> bool) -> std::io::Result<()> {
        {
            let mut held = self.0.held.lock();
            let changed = change(&mut held.kept);
            held.changes += u64::from(changed);
        }
        let Some(file) = &self.0.file else { return Ok(()) };
        let mut written = self.0.written.lock();
        // What others changed in the meantime goes with it; what they wrote need not again.
        let (bytes, changes) = {
            let held = self.0.held.lock();
            if held.changes == *written {
                return Ok(());
            }
            (serde_json::to_vec(&held.kept)?, held.changes)
        };
        store::write(file, &bytes)?;
        *written = changes;
        Ok(())
    }
}

impl How {
    /// In a word.
    pub const fn label(self) -> &'static str {
        match self {
            How::Met => "met",
            How::Allowed => "allowed",
        }
    }
}

impl KnownNetwork {
    /// Whether it holds at `now`. What has an end is not made longer by setting the clock back.
    pub fn holds(&self, now: Wall) -> bool {
        self.until.is_none_or(|until| now < until && !is_set_back(now, self.since))
    }
}

impl Kept {
    /// Says that this changed something.
    fn put(&mut self, id: &str, network: KnownNetwork) -> bool {
        self.known.retain(|_, n| n.holds(network.last));
        while self.known.len() >= MOST {
            let oldest = self.known.iter().min_by_key(|(_, n)| n.last).map(|(id, _)| id.clone());
            let Some(oldest) = oldest else { break };
            self.known.remove(&oldest);
        }
        self.known.insert(id.to_owned(), network);
        true
    }
}

/// What the file holds, if it can be believed; and whether a new one may take its place.
fn read(file: &Path) -> (Option<Kept>, bool, Option<String>) {
    let told = |why: &dyn std::fmt::Display| Some(format!("local networks are not known: {why}"));
    let why = match store::read(file) {
        Ok(None) => return (None, true, None),
        Err(why) => return (None, matches!(why, store::Why::Torn { .. }), told(&why)),
        Ok(Some(bytes)) => match serde_json::from_slice::<Kept>(&bytes) {
            Ok(kept) if kept.v == 1 => return (Some(kept), true, None),
            Ok(kept) => format!("written by another version of the program ({})", kept.v),
            Err(error) => error.to_string(),
        },
    };
    let free = store::put_aside(file).is_ok();
    (None, free, told(&format!("{}: {why}", file.display())))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn who_asks_does_not_wait_for_the_disk_and_the_file_ends_as_the_last_change_left_it() {
        let dir = tempfile::tempdir().unwrap();
        let (known, _) = Networks::open(Some(dir.path()));
        let now = Wall(1_800_000_000);
        known.learn("old", now).unwrap();
        let disk = known.0.written.lock();
        let change = |f: fn(&Networks, Wall)| {
            let known = known.clone();
            thread::spawn(move || f(&known, now))
        };
        let writers = [
            change(|known, now| known.learn("met", now).unwrap()),
            change(|known, now| known.allow("allowed", None, now).unwrap()),
            change(|known, _| known.forget(&["old".to_owned()]).unwrap()),
        ];
        let seen = |known: &Networks| ["met", "allowed", "old"].map(|id| known.is_known(id, now));
        let begun = tokio::time::Instant::now();
        while seen(&known) != [true, true, false] {
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", seen(&known));
            thread::yield_now();
        }
        assert!(writers.iter().all(|writer| !writer.is_finished()), "it is not on the disk yet");
        drop(disk);
        for writer in writers {
            writer.join().unwrap();
        }
        assert_eq!(seen(&Networks::open(Some(dir.path())).0), [true, true, false]);
        assert_eq!(*known.0.written.lock(), known.0.held.lock().changes);
    }
}
