//! The handle on trust: what is remembered of the tailnet in use, shared by the whole program.
//!
//! In: what LocalAPI lists, what hellos said, what a person says; each with the time of day.
//! Out: a [`View`] that readers take whole, a count that moves when it changes, and one file
//! per tailnet in the state folder. Thin: what each of these means is decided by the pure
//! modules beside it.
//!
//! Home and work do not mix: another tailnet is another file, with other keys and pins. While
//! no tailnet is named, the one used last is recalled.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::book::Book;
use super::filter::Filter;
use super::hello::{Heard, Hello, HelloRefused};
use super::keys::{KeyFault, Ring};
use super::netmap::Netmap;
use super::person::PinError;
use super::pins::{Bounds, ByHand, Own, Step};
use super::store;
use super::view::View;
use crate::api::hello::Departed;
use crate::types::{ControlId, NodeId, NodeName, PublicKey, Wall};

/// The handle. Clones share everything.
#[derive(Clone)]
pub struct Trust(Arc<Shared>);

impl std::fmt::Debug for Trust {
    /// Nothing of what it holds.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trust")
    }
}

struct Shared {
    state: Mutex<State>,
    view: ArcSwap<View>,
    changed: watch::Sender<u64>,
}

struct State {
    folder: Option<PathBuf>,
    bounds: Bounds,
    open: Option<Open>,
    dirty: bool,
    /// What was said last of a file that cannot be read.
    said: Option<String>,
}

/// One tailnet, as it is remembered.
#[derive(Clone)]
struct Open {
    book: Book,
    ring: Arc<Ring>,
}

impl PartialEq for Open {
    fn eq(&self, other: &Open) -> bool {
        Arc::ptr_eq(&self.ring, &other.ring) && self.book == other.book
    }
}

#[derive(Serialize)]
struct Write<'a> {
    v: u32,
    book: &'a Book,
    ring: &'a Ring,
}

#[derive(Deserialize)]
struct Read {
    v: u32,
    book: Book,
    ring: Ring,
}

impl Trust {
    /// What `folder` remembers; without one, nothing is kept. No tailnet is open yet.
    pub fn open(folder: Option<&Path>, bounds: Bounds) -> Trust {
        let view = View::of(None, &bounds);
        let state = State {
            folder: folder.map(Path::to_owned),
            bounds,
            open: None,
            dirty: false,
            said: None,
        };
        Trust(Arc::new(Shared {
            state: Mutex::new(state),
            view: ArcSwap::from_pointee(view),
            changed: watch::Sender::new(0),
        }))
    }

    /// What is trusted now.
    pub fn view(&self) -> Arc<View> {
        self.0.view.load_full()
    }

    /// Moves with each change of the view.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// The configuration was read again.
    pub fn set_bounds(&self, bounds: Bounds) {
        let mut state = self.0.state.lock();
        if let Some(open) = &mut state.open {
            open.book.bounds = bounds.clone();
        }
        state.bounds = bounds;
        self.show(&state);
    }

    /// LocalAPI names a tailnet and this node in it: what is remembered of that is now in use.
    /// What was learned as another node (a copied disk, a restored backup) is not believed: a
    /// new key, no pins. Returns what a person should hear of.
    pub fn enter(
        &self,
        control: &ControlId,
        own: &Own,
        people: Option<usize>,
        control_url: &str,
        now: Wall,
    ) -> Vec<String> {
        let mut told = Vec::new();
        let mut state = self.0.state.lock();
        if state.open.as_ref().is_none_or(|o| o.book.control != *control) {
            told.extend(state.leave());
            let file = state.file(control);
            match file.as_deref().map_or(Ok((None, None)), read) {
                Ok((open, said)) => {
                    told.extend(said);
                    state.put(open.filter(|o| o.book.control == *control));
                }
                Err(why) => {
                    told.extend(state.once(why));
                    self.show(&state);
                    return told;
                }
            }
        }
        let another = state.open.as_ref().is_some_and(|o| o.book.is_of_another(own));
        if another {
            told.push(format!(
                "{} is not the node that this state folder belongs to (a copied disk, a restored \
                 backup, or a node that joined anew): it has a new key now, and its pins are empty",
                own.name
            ));
        }
        if another || state.open.is_none() {
            match Ring::new(now) {
                Ok(ring) => {
                    let bounds = state.bounds.clone();
                    let book = Book::new(control.clone(), own.clone(), bounds, now);
                    state.open = Some(Open { book, ring: Arc::new(ring) });
                    state.dirty = true;
                }
                Err(fault) => {
                    state.open = None;
                    told.push(format!("no local network: {fault}"));
                }
            }
        }
        let before = state.open.clone();
        if let Some(Open { book, .. }) = &mut state.open {
            book.heed(now);
            book.own = own.clone();
            book.people = people.or(book.people);
            control_url.clone_into(&mut book.control_url);
        }
        state.dirty |= before != state.open;
        self.show(&state);
        told
    }

    /// No tailnet is named now: the one used last is, if it was under this coordinator; any,
    /// if that is not known either.
    pub fn recall(&self, control_url: Option<&str>, now: Wall) -> Vec<String> {
        let fits = |book: &Book| control_url.is_none_or(|url| book.control_url == url);
        let mut told = Vec::new();
        let mut state = self.0.state.lock();
        if !state.open.as_ref().is_some_and(|o| fits(&o.book)) {
            told.extend(state.leave());
            let mut last: Option<Open> = None;
            for file in state.files() {
                let (open, said) = read(&file).unwrap_or_else(|why| (None, state.once(why)));
                told.extend(said);
                let later = |o: &Open| last.as_ref().is_none_or(|l| o.book.wall > l.book.wall);
                if let Some(open) = open.filter(|o| fits(&o.book) && later(o)) {
                    last = Some(open);
                }
            }
            state.put(last);
        }
        if let Some(open) = &mut state.open {
            open.book.online = false;
            open.book.looked = None;
            open.book.heed(now);
        }
        self.show(&state);
        told
    }

    /// Takes note of the time, and saves it now and then: to be called each minute or so, or a
    /// clock set back is not seen as such after a restart.
    pub fn tick(&self, now: Wall) {
        self.change(|open| open.book.heed(now));
    }

    /// The tailnet's list of nodes, at each change and at least every half minute.
    pub fn netmap(&self, map: &Netmap<'_>, now: Wall) -> Vec<Step> {
        self.change(|open| open.book.netmap(map, now)).unwrap_or_default()
    }

    /// The packet filter, as the daemon shows it.
    pub fn heard_filter(&self, filter: Filter, now: Wall) {
        self.change(|open| open.book.heard_filter(filter, now));
    }

    /// The answer to a hello that this node dialled, over the tailnet.
    pub fn dialled(&self, hello: &Hello<'_>, now: Wall) -> Result<Vec<Step>, HelloRefused> {
        self.change(|open| open.book.dialled(hello, now)).unwrap_or(Err(HelloRefused::NoTailnet))
    }

    /// A hello that came in over the tailnet, from a node that the rules here let in or to
    /// which prompts go.
    pub fn heard(&self, hello: &Hello<'_>, now: Wall) -> Result<Heard, HelloRefused> {
        self.change(|open| open.book.heard(hello, now)).unwrap_or(Err(HelloRefused::NoTailnet))
    }

    /// A node reached this one's mesh port over the tailnet.
    pub fn reached(&self, node: &NodeId, now: Wall) {
        self.change(|open| open.book.reached(node, now));
    }

    /// A node was met at this address on a local network.
    pub fn address(&self, node: &NodeId, address: IpAddr) {
        self.change(|open| open.book.address(node, address));
    }

    /// What the device behind `to` is to be told of nodes that left the tailnet.
    pub fn suspensions_for(&self, to: &NodeId) -> Vec<Departed> {
        let state = self.0.state.lock();
        let Some(Open { book, .. }) = &state.open else { return Vec::new() };
        let pin = book.pins.iter().find(|p| p.node == *to);
        pin.map(|pin| book.suspensions_for(pin)).unwrap_or_default()
    }

    /// What the device behind `from` says of nodes that left the tailnet.
    pub fn told_suspended(&self, from: &NodeId, told: &[Departed], now: Wall) -> Vec<Step> {
        self.change(|open| open.book.told_suspended(from, told, now)).unwrap_or_default()
    }

    /// A person says that a node's changed key is its own (`tailherd trust accept`).
    pub fn accept(&self, name: &str) -> Result<NodeName, PinError> {
        self.change(|open| open.book.accept(name)).unwrap_or(Err(PinError::NoTailnet))
    }

    /// A person wants a pin gone (`tailherd trust forget`).
    pub fn forget(&self, name: &str) -> Result<NodeName, PinError> {
        self.change(|open| open.book.forget(name)).unwrap_or(Err(PinError::NoTailnet))
    }

    /// A person adds a key (`tailherd trust add`), and perhaps the addresses on local networks
    /// at which its holder is met.
    pub fn add(
        &self,
        name: &str,
        key: PublicKey,
        hand: ByHand,
        lan: &[IpAddr],
        now: Wall,
    ) -> Result<NodeName, PinError> {
        let add = |open: &mut Open| {
            let own: Vec<PublicKey> = open.ring.chain().iter().map(|l| l.key).collect();
            open.book.add((name, key), hand, lan, &own, now)
        };
        self.change(add).unwrap_or(Err(PinError::NoTailnet))
    }

    /// This node's name and key, to be added on another device (`tailherd trust export`).
    pub fn export(&self) -> Option<(NodeName, PublicKey)> {
        let view = self.view();
        Some((view.own.as_ref()?.name.clone(), view.ring.as_ref()?.current()))
    }

    /// Puts a new key in use if the one in use has served its time, and forgets those that no
    /// pinned node can still know. Only with the coordinator there: the new key is told by
    /// hellos over the tailnet. Says whether there is a new key.
    pub fn rotate_if_due(&self, now: Wall) -> bool {
        let rotate = |open: &mut Open| {
            let Open { book, ring } = open;
            if !book.online || !book.clock_ok {
                return false;
            }
            let mut next = Ring::clone(ring);
            let fault = |error: &KeyFault| tracing::warn!(%error, "the key stays as it is");
            let rotated = ring.due(now) && next.rotate(now).inspect_err(fault).is_ok();
            if next.drop_before(book.oldest_contact(now)) || rotated {
                *ring = Arc::new(next);
            }
            rotated
        };
        self.change(rotate).unwrap_or_default()
    }

    /// Writes what changed since it was last written.
    pub fn save(&self) -> std::io::Result<()> {
        self.0.state.lock().save()
    }

    fn change<T>(&self, f: impl FnOnce(&mut Open) -> T) -> Option<T> {
        let mut state = self.0.state.lock();
        let open = state.open.as_mut()?;
        let mut before = open.clone();
        let answer = f(open);
        before.book.let_time_pass(&open.book, self.view().marks());
        if before != *open {
            state.dirty = true;
            self.show(&state);
        }
        Some(answer)
    }

    fn show(&self, state: &State) {
        let open = state.open.as_ref().map(|o| (&o.book, &o.ring));
        self.0.view.store(Arc::new(View::of(open, &state.bounds)));
        self.0.changed.send_modify(|n| *n += 1);
    }
}

impl State {
    fn file(&self, control: &ControlId) -> Option<PathBuf> {
        let ok = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
        let id: String = control.0.chars().filter(ok).take(64).collect();
        Some(self.folder.as_ref()?.join(format!("trust-{id}.json")))
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = self.folder.iter().filter_map(|f| std::fs::read_dir(f).ok()).flatten();
        let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        files.retain(|f| {
            let name = f.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            name.starts_with("trust-") && name.ends_with(".json")
        });
        files.sort();
        files
    }

    /// What is to be said, unless it was said just before.
    fn once(&mut self, why: String) -> Option<String> {
        if self.said.as_ref() == Some(&why) {
            return None;
        }
        self.said = Some(why.clone());
        Some(why)
    }

    fn put(&mut self, open: Option<Open>) {
        self.open = open;
        if let Some(open) = &mut self.open {
            open.book.bounds = self.bounds.clone();
        }
    }

    /// Writes the tailnet in use before another one takes its place.
    fn leave(&mut self) -> Option<String> {
        let said = self.save().err().map(|e| format!("pins could not be saved: {e}"));
        self.open = None;
        self.dirty = false;
        said
    }

    fn save(&mut self) -> std::io::Result<()> {
        if !self.dirty {
            return Ok(());
        }
        let Some(open) = &self.open else { return Ok(()) };
        let Some(file) = self.file(&open.book.control) else { return Ok(()) };
        let write = Write { v: 1, book: &open.book, ring: &open.ring };
        // Room for all of it at once: a text that grows leaves copies of keys behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(256 * 1024));
        serde_json::to_writer(&mut *bytes, &write)?;
        store::write(&file, &bytes)?;
        self.dirty = false;
        Ok(())
    }
}

/// What a file holds; `None` if there is nothing to be believed in it, which is then put aside.
/// The error is that it could not be read at all, so that it must not be written either.
fn read(file: &Path) -> Result<(Option<Open>, Option<String>), String> {
    let bytes = match store::read(file) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok((None, None)),
        Err(why @ store::Why::Torn { .. }) => return Ok((None, Some(told(&why)))),
        Err(why @ store::Why::Io { .. }) => return Err(told(&why)),
    };
    let why = match serde_json::from_slice::<Read>(&bytes) {
        Ok(Read { v: 1, book, ring }) => {
            return Ok((Some(Open { book, ring: Arc::new(ring) }), None));
        }
        Ok(Read { v, .. }) => format!("written by another version of the program ({v})"),
        Err(error) => error.to_string(),
    };
    match store::put_aside(file) {
        Ok(aside) => {
            let (file, aside) = (file.display(), aside.display());
            Ok((None, Some(told(&format!("{file}: {why}; put aside as {aside}")))))
        }
        Err(error) => Err(told(&format!("{}: {why}; {error}", file.display()))),
    }
}

fn told(why: &dyn std::fmt::Display) -> String {
    format!("pins are not known: {why}")
}
