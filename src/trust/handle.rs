//! The handle on trust: what is remembered of the tailnet in use, shared by the whole program.
//!
//! In: what LocalAPI lists, what hellos said, what a person says; each with the time of day.
//! Out: a [`View`] that readers take whole, a count that moves when it changes, and one file
//! per tailnet in the state folder. Thin: what each of these means is decided by the pure
//! modules beside it.
//!
//! A key of this node is on the disk before anybody is told of it: a program that forgot it in
//! a crash would be a stranger to all who were. Files are written outside the lock that
//! readers and hellos wait for.
//!
//! Home and work do not mix: another tailnet is another file, with other keys and pins. While
//! no tailnet is named, the one used last is recalled.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, broadcast, watch};
use zeroize::Zeroizing;

use super::book::Book;
use super::filter::Filter;
use super::hello::{Heard, Hello, HelloRefused};
use super::keys::{KeyFault, Ring};
use super::netmap::Netmap;
use super::person::PinError;
use super::pins::{Bounds, ByHand, Own, Pin, Step};
use super::store;
use super::view::View;
use crate::api::hello::Departed;
use crate::types::{ControlId, NodeId, NodeName, PublicKey, Wall};

/// How long to wait after a new key could not be saved.
const AGAIN: Duration = Duration::from_secs(60);

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
    /// Held while a file is read or written, and always taken before `state`: what is open is
    /// exchanged only by who holds it.
    disk: Mutex<()>,
    state: Mutex<State>,
    view: ArcSwap<View>,
    changed: watch::Sender<u64>,
    urgent: Notify,
    announced: broadcast::Sender<(NodeId, IpAddr)>,
}

struct State {
    folder: Option<PathBuf>,
    bounds: Bounds,
    open: Option<Open>,
    /// What its file holds; `None` if it has none yet.
    written: Option<Open>,
    /// Whether a file could not be read when one was looked for last.
    unread: bool,
    /// When a new key could not be made or saved.
    failed: Option<Wall>,
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
            written: None,
            unread: false,
            failed: None,
            said: None,
        };
        Trust(Arc::new(Shared {
            disk: Mutex::new(()),
            state: Mutex::new(state),
            view: ArcSwap::from_pointee(view),
            changed: watch::Sender::new(0),
            urgent: Notify::new(),
            announced: broadcast::Sender::new(64),
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

    /// Returns once a pin was lost that must not come back with a restart: to be saved at once.
    pub async fn urgent(&self) {
        self.0.urgent.notified().await;
    }

    /// Whether a file could not be read when one was looked for last, which may be over by
    /// and by.
    pub fn is_unread(&self) -> bool {
        self.0.state.lock().unread
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
        let _disk = self.0.disk.lock();
        let mut state = self.0.state.lock();
        let same = state.open.as_ref().is_some_and(|o| o.book.control == *control);
        let mut another = false;
        if let Some(Open { book, .. }) = state.open.as_mut().filter(|_| same) {
            another = book.is_of_another(own);
            if !another {
                book.enter(own, people, control_url, now);
                self.show(&state);
                return Vec::new();
            }
        }
        let (file, bounds) = (state.file(control), state.bounds.clone());
        drop(state);
        let mut told: Vec<String> = self.leave().into_iter().collect();
        let read = file.as_deref().map_or(Ok((None, None)), read);
        self.0.state.lock().unread = read.is_err();
        let found = match read {
            Ok((open, said)) => {
                told.extend(said);
                open.filter(|o| o.book.control == *control)
            }
            Err(why) => {
                told.extend(self.nothing(why));
                return told;
            }
        };
        another |= found.as_ref().is_some_and(|o| o.book.is_of_another(own));
        let found = found.filter(|_| !another);
        let written = found.clone();
        let mut open = match found {
            Some(open) => open,
            None => match begin(Book::new(control.clone(), own.clone(), bounds, now), now) {
                Ok(open) => open,
                Err(fault) => {
                    told.extend(self.nothing(format!("no local network: {fault}")));
                    return told;
                }
            },
        };
        open.book.enter(own, people, control_url, now);
        let is_new = written.is_none();
        if is_new && let Err(error) = write(file.as_deref(), &open) {
            // Without the name of the file, which is another one each time.
            let why = error.kind();
            let why = format!("no local network: this node's new key could not be saved: {why}");
            told.extend(self.nothing(why));
            return told;
        }
        if another {
            told.push(format!(
                "{} is not the node that this state folder belongs to (a copied disk, a restored \
                 backup, or a node that joined anew): it has a new key now, and its pins are empty",
                own.name
            ));
        }
        let mut state = self.0.state.lock();
        let written = if is_new { Some(open.clone()) } else { written };
        state.put(Some(open), written);
        self.show(&state);
        told
    }

    /// No tailnet is named now: the one used last is, if it was under this coordinator; any,
    /// if that is not known either.
    pub fn recall(&self, control_url: Option<&str>, now: Wall) -> Vec<String> {
        let fits = |book: &Book| control_url.is_none_or(|url| book.control_url == url);
        let _disk = self.0.disk.lock();
        let mut told = Vec::new();
        let mut state = self.0.state.lock();
        if !state.open.as_ref().is_some_and(|o| fits(&o.book)) {
            let files = state.files();
            drop(state);
            told.extend(self.leave());
            let mut last: Option<Open> = None;
            let mut unread = Vec::new();
            for file in files {
                let (open, said) = read(&file).unwrap_or_else(|why| {
                    unread.push(why);
                    (None, None)
                });
                told.extend(said);
                let later = |o: &Open| last.as_ref().is_none_or(|l| o.book.wall > l.book.wall);
                if let Some(open) = open.filter(|o| fits(&o.book) && later(o)) {
                    last = Some(open);
                }
            }
            state = self.0.state.lock();
            state.unread = !unread.is_empty();
            if !unread.is_empty() {
                told.extend(state.once(unread.join("; ")));
            }
            state.put(last.clone(), last);
        }
        if let Some(open) = &mut state.open {
            open.book.online = false;
            open.book.looked = None;
            open.book.heed(now);
        }
        self.show_once(&state);
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

    /// Somebody announced a node at this address on a local network. Nothing to be written.
    pub fn announced(&self, node: &NodeId, address: IpAddr) {
        self.hint(node, |pin| pin.announced_at(address));
        let _ = self.0.announced.send((node.clone(), address));
    }

    /// Who is announced where from now on, news or not.
    pub fn announcements(&self) -> broadcast::Receiver<(NodeId, IpAddr)> {
        self.0.announced.subscribe()
    }

    /// A node named its addresses on the local network. Nothing to be written.
    pub fn told_addresses(&self, node: &NodeId, addresses: &[IpAddr], now: Wall) {
        self.hint(node, |pin| pin.told(addresses, now));
    }

    fn hint(&self, node: &NodeId, f: impl FnOnce(&mut Pin) -> bool) {
        let mut state = self.0.state.lock();
        let pins = state.open.as_mut().map(|open| &mut open.book.pins);
        if pins.and_then(|pins| pins.iter_mut().find(|p| p.node == *node)).is_some_and(f) {
            self.show(&state);
        }
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

    /// Whether [`Trust::rotate_if_due`] would make a new key, and so write a file.
    pub fn is_rotation_due(&self, now: Wall) -> bool {
        self.0.state.lock().is_rotation_due(now)
    }

    /// Puts a new key in use if the one in use has served its time, and forgets those that no
    /// pinned node can still know. Only with the coordinator there: the new key is told by
    /// hellos over the tailnet. Only once it is saved. Says whether there is a new key.
    pub fn rotate_if_due(&self, now: Wall) -> bool {
        if !self.is_rotation_due(now) {
            self.change(|Open { book, ring }| {
                let mut next = Ring::clone(ring);
                if book.may_rotate() && next.drop_before(book.oldest_contact(now)) {
                    *ring = Arc::new(next);
                }
            });
            return false;
        }
        let _disk = self.0.disk.lock();
        let (next, file) = {
            let state = self.0.state.lock();
            let Some(open) = state.open.as_ref().filter(|_| state.is_rotation_due(now)) else {
                return false;
            };
            (open.clone(), state.file(&open.book.control))
        };
        let next = next.rotated(now).map_err(|fault| fault.to_string()).and_then(|next| {
            write(file.as_deref(), &next).map(|()| next).map_err(|error| error.to_string())
        });
        let mut state = self.0.state.lock();
        match next {
            Ok(next) => {
                state.failed = None;
                if let Some(open) = &mut state.open {
                    open.ring = Arc::clone(&next.ring);
                }
                state.written = Some(next);
                self.show(&state);
                true
            }
            Err(error) => {
                tracing::warn!("the key stays as it is: no new one could be saved: {error}");
                state.failed = Some(now);
                false
            }
        }
    }

    /// Writes what changed since it was last written, unless it is only that time goes on.
    pub fn save(&self) -> std::io::Result<()> {
        let _disk = self.0.disk.lock();
        let state = self.0.state.lock();
        let kept = |o: &Open| state.written.as_ref().is_some_and(|w| o.is_kept_by(w));
        let Some(open) = state.open.clone().filter(|o| !kept(o)) else { return Ok(()) };
        self.write(state, open)
    }

    /// Writes it as it is to the second: the program stops.
    pub fn save_last(&self) -> std::io::Result<()> {
        let _disk = self.0.disk.lock();
        let state = self.0.state.lock();
        let Some(open) = state.open.clone().filter(|o| state.written.as_ref() != Some(o)) else {
            return Ok(());
        };
        self.write(state, open)
    }

    /// Writes `open` without the lock, for who holds the disk.
    fn write(&self, state: MutexGuard<'_, State>, open: Open) -> std::io::Result<()> {
        let file = state.file(&open.book.control);
        drop(state);
        write(file.as_deref(), &open)?;
        self.0.state.lock().written = Some(open);
        Ok(())
    }

    /// Takes the tailnet in use out, and writes it, before another one takes its place.
    fn leave(&self) -> Option<String> {
        let mut state = self.0.state.lock();
        let (open, written) = (state.open.take()?, state.written.take());
        if written.is_some_and(|w| open.is_kept_by(&w)) {
            return None;
        }
        let file = state.file(&open.book.control);
        drop(state);
        write(file.as_deref(), &open).err().map(|e| format!("pins could not be saved: {e}"))
    }

    /// No tailnet could be opened, because of `why`: what is to be said of that.
    fn nothing(&self, why: String) -> Option<String> {
        let mut state = self.0.state.lock();
        self.show_once(&state);
        state.once(why)
    }

    fn change<T>(&self, f: impl FnOnce(&mut Open) -> T) -> Option<T> {
        let mut state = self.0.state.lock();
        let open = state.open.as_mut()?;
        let mut before = open.clone();
        let answer = f(open);
        before.book.let_time_pass(&open.book, self.view().marks());
        if before != *open {
            if before.book.loses(&open.book) {
                self.0.urgent.notify_one();
            }
            self.show(&state);
        }
        Some(answer)
    }

    /// Shows it, unless there is nothing, as before: who looks again and again moves no count.
    fn show_once(&self, state: &State) {
        if state.open.is_some() || self.view().control.is_some() {
            self.show(state);
        }
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

    fn put(&mut self, open: Option<Open>, written: Option<Open>) {
        self.open = open;
        self.written = written;
        if let Some(open) = &mut self.open {
            open.book.bounds = self.bounds.clone();
        }
    }

    fn is_rotation_due(&self, now: Wall) -> bool {
        let due = |o: &Open| o.book.may_rotate() && o.ring.due(now);
        let waits = |at: Wall| at <= now && now.since(at) < AGAIN;
        self.open.as_ref().is_some_and(due) && !self.failed.is_some_and(waits)
    }
}

impl Open {
    fn rotated(mut self, now: Wall) -> Result<Open, KeyFault> {
        let mut ring = Ring::clone(&self.ring);
        ring.rotate(now)?;
        ring.drop_before(self.book.oldest_contact(now));
        self.ring = Arc::new(ring);
        Ok(self)
    }

    /// Whether `written` is as good after a restart.
    fn is_kept_by(&self, written: &Open) -> bool {
        Arc::ptr_eq(&self.ring, &written.ring) && self.book.is_kept_by(&written.book)
    }
}

fn begin(book: Book, now: Wall) -> Result<Open, KeyFault> {
    Ok(Open { book, ring: Arc::new(Ring::new(now)?) })
}

fn write(file: Option<&Path>, open: &Open) -> std::io::Result<()> {
    let Some(file) = file else { return Ok(()) };
    let write = Write { v: 1, book: &open.book, ring: &open.ring };
    // Room for all of it at once: a text that grows leaves copies of keys behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(256 * 1024));
    serde_json::to_writer(&mut *bytes, &write)?;
    store::write(file, &bytes)
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
