//! What survives a restart: nodes, what they offered, how fast they were.
//!
//! One file for each tailnet (`directory-<control>.json`), so that home and work do not mix,
//! and one for this node and its configured servers (`directory-here.json`). A file is a
//! memory, never a permission: what it says of a node counts once discovery allows that node,
//! and no request goes there before a path answers. It holds no address and no key. A file
//! that cannot be read whole is ignored with a warning.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::event::{EngineListing, Length, ModelListing, Rates, Remembered, Uplink};
use crate::types::{ApiSet, Capabilities, ControlId, Dial, Digest, EngineKind, NodeId, NodeKind};

const VERSION: u32 = 1;

/// Largest file that is read.
const MOST_BYTES: u64 = 32 << 20;

/// Which file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// This node's own measured speeds and the configured servers.
    Here,
    /// The nodes of one tailnet.
    Tailnet(ControlId),
}

impl Scope {
    /// Where a node is kept.
    pub fn of(node: &NodeId) -> Scope {
        match node {
            NodeId::This | NodeId::Configured(_) | NodeId::Pin(_) => Scope::Here,
            NodeId::Tailnet { control, .. } => Scope::Tailnet(control.clone()),
        }
    }

    /// The file; `None` for a control id that is no plain word.
    pub fn file(&self, folder: &Path) -> Option<PathBuf> {
        match self {
            Scope::Here => Some(folder.join("directory-here.json")),
            Scope::Tailnet(ControlId(id)) => {
                let plain = !id.is_empty()
                    && id.len() <= 64
                    && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
                plain.then(|| folder.join(format!("directory-{id}.json")))
            }
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    v: u32,
    nodes: Vec<Node>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    node: NodeId,
    kind: NodeKind,
    was_rich: bool,
    version: Option<String>,
    /// Seconds since 1970.
    heard: u64,
    engines: Vec<Engine>,
    rates: Vec<Measured<Rates>>,
    #[serde(default)]
    lengths: Vec<Measured<Length>>,
    #[serde(default)]
    uplinks: Vec<Measured<Uplink>>,
}

/// Something that was measured, and when.
#[derive(Serialize, Deserialize)]
struct Measured<T> {
    #[serde(flatten)]
    what: T,
    /// Seconds since 1970.
    #[serde(default)]
    measured: u64,
}

/// Turns ages into times of day.
fn dated<T: Clone>(rows: &[T], wall: u64, age: impl Fn(&T) -> Duration) -> Vec<Measured<T>> {
    let row = |what: &T| Measured {
        what: what.clone(),
        measured: wall.saturating_sub(age(what).as_secs()),
    };
    rows.iter().map(row).collect()
}

/// Turns times of day into ages.
fn undated<T>(rows: Vec<Measured<T>>, wall: u64, age: impl Fn(&mut T) -> &mut Duration) -> Vec<T> {
    let row = |mut row: Measured<T>| {
        *age(&mut row.what) = Duration::from_secs(wall.saturating_sub(row.measured));
        row.what
    };
    rows.into_iter().map(row).collect()
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Engine {
    name: String,
    kind: EngineKind,
    apis: u8,
    version: Option<String>,
    slots: Option<u32>,
    default_ctx: Option<u64>,
    models: Vec<Model>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Model {
    name: String,
    digest: Option<Digest>,
    weights: Option<Digest>,
    content: Option<u64>,
    capabilities: Capabilities,
    context: Option<u64>,
    num_ctx: Option<u64>,
    size: u64,
    remote: bool,
    row: Value,
}

/// The bytes of a file. `wall` is the time of day as seconds since 1970.
pub fn encode(nodes: &[Remembered], wall: u64) -> Result<Vec<u8>, serde_json::Error> {
    let nodes = nodes.iter().map(|n| Node {
        node: n.node.clone(),
        kind: n.kind,
        was_rich: n.was_rich,
        version: n.version.clone(),
        heard: wall.saturating_sub(n.age.as_secs()),
        engines: n.engines.iter().map(write_engine).collect(),
        rates: dated(&n.rates, wall, |row| row.age),
        lengths: dated(&n.lengths, wall, |row| row.age),
        uplinks: dated(&n.uplinks, wall, |row| row.age),
    });
    serde_json::to_vec(&File { v: VERSION, nodes: nodes.collect() })
}

/// Reads a file's bytes. Nodes of another scope than the file's own are left out.
pub fn decode(bytes: &[u8], scope: &Scope, wall: u64) -> Result<Vec<Remembered>, String> {
    let file: File = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if file.v != VERSION {
        return Err(format!("version {}, expected {VERSION}", file.v));
    }
    let nodes = file.nodes.into_iter().filter(|n| Scope::of(&n.node) == *scope);
    Ok(nodes
        .map(|n| Remembered {
            node: n.node,
            kind: n.kind,
            was_rich: n.was_rich,
            version: n.version,
            // A clock that was set back makes nothing younger than now.
            age: Duration::from_secs(wall.saturating_sub(n.heard)),
            engines: n.engines.into_iter().map(read_engine).collect(),
            rates: undated(n.rates, wall, |row| &mut row.age),
            lengths: undated(n.lengths, wall, |row| &mut row.age),
            uplinks: undated(n.uplinks, wall, |row| &mut row.age),
        })
        .collect())
}

/// Reads what was saved. Nothing there, or nothing usable, is nothing remembered.
pub fn load(folder: &Path, scope: &Scope, wall: u64) -> Vec<Remembered> {
    let Some(path) = scope.file(folder) else { return Vec::new() };
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        std::fs::File::open(&path)?.take(MOST_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let decoded = match read() {
        Ok(bytes) => decode(&bytes, scope, wall),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => Err(error.to_string()),
    };
    decoded.unwrap_or_else(|error| {
        tracing::warn!(file = %path.display(), %error, "what was saved of the mesh is ignored");
        Vec::new()
    })
}

/// Writes a file so that a crash at any moment leaves the old one or the new one whole.
pub fn store(folder: &Path, scope: &Scope, bytes: &[u8]) -> io::Result<()> {
    let Some(path) = scope.file(folder) else { return Ok(()) };
    let mut file = tempfile::Builder::new().prefix(".directory-").tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(&path).map_err(|e| e.error)?;
    // The new name itself has to reach the disk.
    std::fs::File::open(folder)?.sync_all()
}

fn write_engine(engine: &EngineListing) -> Engine {
    Engine {
        name: engine.name.to_string(),
        kind: engine.kind,
        apis: engine.apis.bits(),
        version: engine.version.clone(),
        slots: engine.slots,
        default_ctx: engine.default_ctx,
        models: engine.models.iter().map(write_model).collect(),
    }
}

fn write_model(model: &ModelListing) -> Model {
    Model {
        name: model.name.to_string(),
        digest: model.digest.clone(),
        weights: model.weights.clone(),
        content: model.content,
        capabilities: model.capabilities,
        context: model.context,
        num_ctx: model.num_ctx,
        size: model.size,
        remote: model.remote,
        row: (*model.row).clone(),
    }
}

fn read_engine(engine: Engine) -> EngineListing {
    EngineListing {
        name: engine.name.into(),
        kind: engine.kind,
        apis: ApiSet::from_bits(engine.apis),
        version: engine.version,
        // Addresses are never remembered: the next answer says where it is.
        dial: Dial::Loopback(([127, 0, 0, 1], 0).into()),
        prefix: "".into(),
        slots: engine.slots,
        default_ctx: engine.default_ctx,
        up: true,
        url: String::new(),
        models: engine.models.into_iter().map(read_model).collect(),
        unlisted: Vec::new(),
    }
}

fn read_model(model: Model) -> ModelListing {
    ModelListing {
        name: model.name.into(),
        id: None,
        digest: model.digest,
        weights: model.weights,
        content: model.content,
        capabilities: model.capabilities,
        context: model.context,
        num_ctx: model.num_ctx,
        size: model.size,
        remote: model.remote,
        row: Arc::new(model.row),
        show: None,
        ps: None,
        loaded_ctx: 0,
        loading: false,
        running: 0,
        queued: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{engine, id, model};
    use super::*;
    use crate::balance::claims::Kept;
    use crate::types::{ClientKind, PathKind};

    fn gpu() -> Remembered {
        let mut engine = engine("ollama", vec![model("tiny")]);
        engine.dial = Dial::Loopback(([127, 0, 0, 1], 0).into());
        let rates = Rates {
            engine: "ollama".into(),
            model: "tiny".into(),
            digest: Some(Digest("d1".into())),
            size: 1000,
            decode: 42.5,
            per_byte: 0.5,
            kept: Some(Kept { last: vec![(9.0, true)], floor: 9.0, left: 500.0 }),
            age: Duration::from_secs(7),
            ..Rates::default()
        };
        let length = Length {
            model: "tiny".into(),
            client: ClientKind::OpenWebui,
            tokens: 321.5,
            age: Duration::from_secs(8),
        };
        let uplink =
            Uplink { kind: PathKind::Tailnet, bytes_per_second: 5e6, age: Duration::from_secs(9) };
        Remembered {
            node: id("gpu"),
            kind: NodeKind::Rich,
            was_rich: true,
            version: Some("0.1.0".into()),
            age: Duration::from_secs(100),
            engines: vec![engine],
            rates: vec![rates],
            lengths: vec![length],
            uplinks: vec![uplink],
        }
    }

    /// The same, its parts so many seconds old.
    fn aged(node: u64, rates: u64, length: u64, uplink: u64) -> Remembered {
        let mut gpu = gpu();
        gpu.age = Duration::from_secs(node);
        gpu.rates[0].age = Duration::from_secs(rates);
        gpu.lengths[0].age = Duration::from_secs(length);
        gpu.uplinks[0].age = Duration::from_secs(uplink);
        gpu
    }

    fn home() -> Scope {
        Scope::of(&id("gpu"))
    }

    #[test]
    fn what_is_saved_comes_back_older() {
        let bytes = encode(&[gpu()], 5_000).unwrap();
        assert_eq!(decode(&bytes, &home(), 5_060), Ok(vec![aged(160, 67, 68, 69)]));
        assert_eq!(
            decode(&bytes, &home(), 60),
            Ok(vec![aged(0, 0, 0, 0)]),
            "the clock was set back"
        );
    }

    #[test]
    fn a_file_of_before_there_were_ages_is_read_as_an_old_one() {
        let text = String::from_utf8(encode(&[gpu()], 5_000).unwrap()).unwrap();
        let mut file: Value = serde_json::from_str(&text).unwrap();
        let node = file["nodes"][0].as_object_mut().unwrap();
        node.remove("lengths");
        node.remove("uplinks");
        for field in ["measured", "perByte", "kept"] {
            node["rates"][0].as_object_mut().unwrap().remove(field);
        }
        let read = decode(file.to_string().as_bytes(), &home(), 5_060).unwrap();
        assert_eq!((read[0].rates[0].decode, read[0].rates[0].per_byte), (42.5, 0.0));
        assert_eq!(read[0].rates[0].age, Duration::from_secs(5_060));
        assert_eq!((read[0].lengths.len(), read[0].uplinks.len()), (0, 0));
    }

    #[test]
    fn a_file_speaks_of_its_own_tailnet_only() {
        let bytes = encode(&[gpu()], 0).unwrap();
        let work = Scope::Tailnet(ControlId("feed".into()));
        assert_eq!(decode(&bytes, &work, 0), Ok(vec![]));
        let folder = Path::new("/state");
        assert_ne!(home().file(folder), work.file(folder));
        for odd in ["../x", "", "a/b", "a.b"] {
            assert_eq!(Scope::Tailnet(ControlId(odd.into())).file(folder), None, "{odd}");
        }
    }

    #[test]
    fn a_torn_file_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let whole = encode(&[gpu()], 0).unwrap();
        store(folder.path(), &home(), &whole).unwrap();
        assert_eq!(load(folder.path(), &home(), 100), [aged(100, 100, 100, 100)]);
        let path = home().file(folder.path()).unwrap();
        for torn in [&whole[..whole.len() / 2], b"", b"{\"v\":9,\"nodes\":[]}", b"\0\0\0"] {
            std::fs::write(&path, torn).unwrap();
            assert_eq!(load(folder.path(), &home(), 100), []);
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(load(folder.path(), &home(), 100), []);
    }

    #[test]
    fn a_write_leaves_nothing_else_behind() {
        let folder = tempfile::tempdir().unwrap();
        store(folder.path(), &home(), b"one").unwrap();
        store(folder.path(), &home(), b"two").unwrap();
        let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(files.len(), 1);
        assert_eq!(std::fs::read(home().file(folder.path()).unwrap()).unwrap(), b"two");
    }

    #[test]
    fn no_address_is_kept() {
        let mut node = gpu();
        node.engines[0].url = "http://192.168.1.9:11434".into();
        node.engines[0].dial = Dial::Tailnet(([100, 64, 0, 2], 11436).into());
        let text = String::from_utf8(encode(&[node], 0).unwrap()).unwrap();
        assert!(!text.contains("192.168") && !text.contains("100.64"), "{text}");
    }
}
