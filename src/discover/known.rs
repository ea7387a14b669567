//! Nodes met so far, and what `newNodes` makes of one met for the first time.
//!
//! In: the list of a tailnet's nodes, each time it changes. Out: which of them are new (an
//! event), and which must wait for `tailherd trust accept NAME` before a prompt may go there.
//! The list is kept per tailnet, in `nodes-CONTROL.json` in the state folder, so that home and
//! work do not mix. It only ever holds nodes back: whether one may be sent to at all is
//! `trust`'s decision, made before and anew each time.
//!
//! A coordinator can add a node to an account. It cannot make this list call it an old friend:
//! a node is the same only with the same stable id, the same time of creation (a wiped
//! Headscale starts counting at 1 again) and the same owner.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::NewNodes;
use crate::types::{ControlId, NodeName, Principal};

/// After how many days without being listed a node is forgotten, unless it was accepted.
const FORGET_DAYS: u64 = 90;

/// The nodes met so far in one tailnet.
#[derive(Debug, Clone)]
pub struct Known {
    /// `None` = nothing is kept.
    file: Option<PathBuf>,
    state: State,
    /// Whether no list was ever seen: the next one is the first.
    empty: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    v: u32,
    nodes: BTreeMap<String, Entry>,
}

/// What is remembered of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    name: String,
    created: String,
    owner: String,
    met: Met,
    /// Days since 1970.
    last_listed: u64,
}

/// How a node came to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Met {
    /// It was in the first list of an empty state.
    First,
    /// It came later.
    Later,
    /// A person accepted it.
    Accepted,
}

/// A node as the list has it.
#[derive(Debug, Clone, Copy)]
pub struct Listed<'a> {
    /// Its stable id.
    pub stable: &'a str,
    /// When the coordinator made it, in the coordinator's own writing.
    pub created: &'a str,
    /// Its name.
    pub name: &'a NodeName,
    /// Its owner or tags.
    pub principal: &'a Principal,
    /// Whether it belongs to this node's owner.
    pub own: bool,
}

/// Why a node could not be accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// No such node was ever listed.
    #[error("no node `{0}` was seen in this tailnet: `tailherd status --all` lists them")]
    Unknown(String),
    /// Several nodes have the name.
    #[error("`{name}` names {} nodes: say which by id, one of {}", ids.len(), ids.join(", "))]
    Ambiguous {
        /// The name.
        name: String,
        /// Their stable ids.
        ids: Vec<String>,
    },
    /// The list could not be written.
    #[error("cannot write {}: {source}", file.display())]
    Write {
        /// The list's file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Known {
    /// The list of the tailnet `control` in the folder `state`.
    ///
    /// A file that cannot be read is not an empty state: it is put aside, and nobody gets in
    /// on the strength of its absence. The text says what happened.
    pub fn open(state: &Path, control: &ControlId) -> (Known, Option<String>) {
        let file = state.join(file_name(control));
        Known::read(file)
    }

    /// A list that is never written: each start is a first one.
    pub(super) fn forgetful() -> Known {
        Known { file: None, state: State::default(), empty: true }
    }

    /// The list of the tailnet `control`, only to look at: a file that cannot be read is left
    /// where it is, and is `None`, as is one that is not there.
    pub fn peek(state: &Path, control: &ControlId) -> Option<Known> {
        let file = state.join(file_name(control));
        let state: State = serde_json::from_slice(&std::fs::read(&file).ok()?).ok()?;
        (state.v == 1).then_some(Known { file: None, state, empty: false })
    }

    /// Every tailnet's list in the folder `state`.
    pub fn open_all(state: &Path) -> Vec<Known> {
        let Ok(folder) = std::fs::read_dir(state) else { return Vec::new() };
        folder
            .flatten()
            .filter(|e| {
                let name = e.file_name();
                let name = name.to_string_lossy();
                name.starts_with("nodes-") && name.ends_with(".json")
            })
            .map(|e| Known::read(e.path()).0)
            .collect()
    }

    fn read(file: PathBuf) -> (Known, Option<String>) {
        let unread = |why: String, file: PathBuf| {
            let aside = file.with_extension("json.unreadable");
            let kept = std::fs::rename(&file, &aside).is_ok();
            let told = format!(
                "{}: {why}; {}nodes other than own devices wait for `tailherd trust accept NAME`",
                file.display(),
                if kept { format!("kept as {}; ", aside.display()) } else { String::new() },
            );
            let file = Some(file);
            (Known { file, state: State::default(), empty: false }, Some(told))
        };
        match std::fs::read(&file) {
            Ok(bytes) => match serde_json::from_slice::<State>(&bytes) {
                Ok(state) if state.v == 1 => {
                    (Known { file: Some(file), state, empty: false }, None)
                }
                Ok(state) => unread(format!("version {} is not known here", state.v), file),
                Err(e) => unread(e.to_string(), file),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // Put aside a moment ago and not written again yet: no empty state either.
                let empty = !file.with_extension("json.unreadable").exists();
                (Known { file: Some(file), state: State::default(), empty }, None)
            }
            Err(e) => unread(e.to_string(), file),
        }
    }

    /// Takes in a whole list of the tailnet's nodes, on the day `today` (days since 1970).
    /// Returns the names of those met for the first time (none of the very first list), and
    /// whether there is something to [`Known::save`].
    pub fn list<'a>(
        &mut self,
        nodes: impl IntoIterator<Item = Listed<'a>>,
        today: u64,
    ) -> (Vec<NodeName>, bool) {
        let first = std::mem::take(&mut self.empty);
        let mut changed = first;
        let mut new = Vec::new();
        self.state.v = 1;
        for node in nodes {
            let owner = owner(node.principal);
            match self.state.nodes.get_mut(node.stable) {
                Some(e) if e.created == node.created && e.owner == owner => {
                    changed |= e.last_listed != today || e.name != node.name.as_str();
                    e.last_listed = today;
                    node.name.as_str().clone_into(&mut e.name);
                }
                _ => {
                    changed = true;
                    if !first {
                        new.push(node.name.clone());
                    }
                    let entry = Entry {
                        name: node.name.as_str().to_owned(),
                        created: node.created.to_owned(),
                        owner,
                        met: if first { Met::First } else { Met::Later },
                        last_listed: today,
                    };
                    self.state.nodes.insert(node.stable.to_owned(), entry);
                }
            }
        }
        let before = self.state.nodes.len();
        self.state.nodes.retain(|_, e| {
            e.met == Met::Accepted || today.saturating_sub(e.last_listed) <= FORGET_DAYS
        });
        (new, changed || self.state.nodes.len() != before)
    }

    /// Whether `node` need not wait. One that was never listed waits.
    pub fn allows(&self, node: &Listed<'_>, new_nodes: NewNodes) -> bool {
        let met = self
            .state
            .nodes
            .get(node.stable)
            .filter(|e| e.created == node.created && e.owner == owner(node.principal))
            .map(|e| e.met);
        match new_nodes {
            NewNodes::Allow => true,
            NewNodes::Auto => node.own || matches!(met, Some(Met::First | Met::Accepted)),
            NewNodes::Hold => met == Some(Met::Accepted),
        }
    }

    /// Whether a node with this name or stable id was met.
    pub fn knows(&self, name: &str) -> bool {
        self.ids(name).next().is_some()
    }

    fn ids<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a String> {
        let nodes = self.state.nodes.iter();
        nodes.filter(move |(id, e)| *id == name || e.name.eq_ignore_ascii_case(name)).map(|n| n.0)
    }

    /// Accepts the node with this name or stable id, and writes it down. Returns its name.
    pub fn accept(&mut self, name: &str) -> Result<NodeName, AcceptError> {
        let mut ids: Vec<String> = self.ids(name).cloned().collect();
        if ids.len() > 1 {
            return Err(AcceptError::Ambiguous { name: name.to_owned(), ids });
        }
        let entry = ids.pop().and_then(|id| self.state.nodes.get_mut(&id));
        let Some(entry) = entry else { return Err(AcceptError::Unknown(name.to_owned())) };
        entry.met = Met::Accepted;
        let name = NodeName::from_dns(&entry.name);
        self.save().map_err(|source| {
            let file = self.file.clone().unwrap_or_default();
            AcceptError::Write { file, source }
        })?;
        Ok(name)
    }

    /// Writes the list: aside, then moved in, so that a reader never sees half of one.
    pub fn save(&self) -> io::Result<()> {
        let Some(path) = &self.file else { return Ok(()) };
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer_pretty(&mut file, &self.state)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        Ok(())
    }
}

fn file_name(control: &ControlId) -> String {
    let id: String =
        control.0.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(64).collect();
    format!("nodes-{id}.json")
}

/// The owner as it is compared: a number, or that there is none. Tags may change without
/// making another node of it; what they allow is decided anew each time.
fn owner(principal: &Principal) -> String {
    match principal {
        Principal::User { id, .. } => format!("user:{id}"),
        Principal::Tags { .. } => "tags".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TODAY: u64 = 20_000;

    struct Node {
        stable: &'static str,
        created: &'static str,
        name: NodeName,
        principal: Principal,
        own: bool,
    }

    fn control() -> ControlId {
        ControlId("0123456789abcdef".into())
    }

    fn node(stable: &'static str, name: &str, user: i64, own: bool) -> Node {
        Node {
            stable,
            created: "2026-01-01T00:00:00Z",
            name: NodeName::from_dns(name),
            principal: Principal::User { control: control(), id: user, login: "x@x".into() },
            own,
        }
    }

    impl Node {
        fn listed(&self) -> Listed<'_> {
            Listed {
                stable: self.stable,
                created: self.created,
                name: &self.name,
                principal: &self.principal,
                own: self.own,
            }
        }
    }

    fn known(dir: &Path) -> Known {
        let (known, told) = Known::open(dir, &control());
        assert_eq!(told, None);
        known
    }

    fn waits(known: &Known, node: &Node) -> [bool; 3] {
        [NewNodes::Auto, NewNodes::Allow, NewNodes::Hold]
            .map(|new_nodes| !known.allows(&node.listed(), new_nodes))
    }

    #[test]
    fn a_node_that_comes_later_waits_and_an_own_device_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let [old, own, new] =
            [node("1", "old", 2, false), node("2", "studio", 1, true), node("3", "new", 2, false)];
        let mut list = known(dir.path());
        let (met, changed) = list.list([old.listed()], TODAY);
        assert!(met.is_empty() && changed, "the first list is no news");
        list.save().unwrap();
        let mut list = known(dir.path());
        let (met, _) = list.list([old.listed(), own.listed(), new.listed()], TODAY);
        assert_eq!(met, [own.name.clone(), new.name.clone()]);
        assert_eq!(waits(&list, &old), [false, false, true]);
        assert_eq!(waits(&list, &own), [false, false, true]);
        assert_eq!(waits(&list, &new), [true, false, true]);
        list.accept("NEW").unwrap();
        let mut list = known(dir.path());
        assert_eq!(waits(&list, &new), [false, false, false]);
        let (met, changed) = list.list([old.listed(), own.listed(), new.listed()], TODAY);
        assert!(met.is_empty() && !changed, "accepting wrote down the whole list");
    }

    #[test]
    fn a_wiped_database_makes_new_nodes_of_old_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let old = node("1", "gpu", 2, false);
        let mut list = known(dir.path());
        list.list([old.listed()], TODAY);
        let reborn = Node { created: "2026-06-01T00:00:00Z", ..node("1", "gpu", 2, false) };
        assert!(waits(&list, &reborn)[0], "before it was listed");
        assert_eq!(list.list([reborn.listed()], TODAY).0, [NodeName::from_dns("gpu")]);
        assert!(waits(&list, &reborn)[0]);
        let sold = node("1", "gpu", 3, false);
        assert!(waits(&list, &sold)[0], "another owner");
    }

    #[test]
    fn a_list_that_cannot_be_read_is_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(file_name(&control()));
        for bad in ["", "{", "[]", r#"{"v":2,"nodes":{}}"#] {
            std::fs::write(&file, bad).unwrap();
            let (mut list, told) = Known::open(dir.path(), &control());
            assert!(told.is_some_and(|t| t.contains("trust accept")), "{bad}");
            let a = node("1", "a", 2, false);
            assert_eq!(list.list([a.listed()], TODAY).0.len(), 1);
            assert!(waits(&list, &a)[0], "{bad}");
            assert!(dir.path().join("nodes-0123456789abcdef.json.unreadable").exists());
            let mut again = known(dir.path());
            again.list([a.listed()], TODAY);
            assert!(waits(&again, &a)[0], "started again before anything was written");
        }
    }

    #[test]
    fn a_name_that_two_nodes_have_is_not_guessed() {
        let dir = tempfile::tempdir().unwrap();
        let mut list = known(dir.path());
        list.list([], TODAY);
        let [a, b] = [node("7", "twin", 2, false), node("8", "twin", 3, false)];
        list.list([a.listed(), b.listed()], TODAY);
        let told = list.accept("twin").unwrap_err().to_string();
        assert_eq!(told, "`twin` names 2 nodes: say which by id, one of 7, 8");
        assert_eq!(list.accept("8").unwrap().as_str(), "twin");
        assert_eq!((waits(&list, &a)[0], waits(&list, &b)[0]), (true, false));
        assert!(matches!(list.accept("nobody"), Err(AcceptError::Unknown(_))));
    }

    #[test]
    fn nodes_long_gone_are_forgotten_unless_a_person_accepted_them() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = [node("1", "a", 2, false), node("2", "b", 2, false)];
        let mut list = known(dir.path());
        list.list([a.listed(), b.listed()], TODAY);
        list.accept("b").unwrap();
        list.list([], TODAY + FORGET_DAYS);
        assert!(!waits(&list, &a)[0]);
        let (_, changed) = list.list([], TODAY + FORGET_DAYS + 1);
        assert!(changed && waits(&list, &a)[0] && !waits(&list, &b)[0]);
    }

    #[test]
    fn a_quiet_list_is_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let a = node("1", "a", 2, false);
        let mut list = known(dir.path());
        assert!(list.list([a.listed()], TODAY).1);
        assert!(!list.list([a.listed()], TODAY).1);
        assert!(list.list([a.listed()], TODAY + 1).1);
    }
}
