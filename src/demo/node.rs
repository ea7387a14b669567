//! One device of the demo: a stand-in tailscaled, perhaps a stand-in engine, and the real
//! program between them.
//!
//! The program is the same [`App`] that `tailherd serve` runs. Only its [`Sockets`] differ:
//! every listener takes a free port of 127.0.0.1, the stand-in daemon is told which one, and
//! connections that this daemon forwarded are known as its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Error;
use super::client::{Call, Stream};
use super::engine::{Engine, EngineSpec};
use super::lan::{Plug, Switch};
use super::machine::Machine;
use super::tailscaled::{Owner, Tailnet, Tailscaled};
use crate::app::control::{Said, Wish};
use crate::app::{App, Setup};
use crate::config::{self, FixedEnv};
use crate::net::{Io, LocalApi, OtherEnd, Sockets};
use crate::types::{ListenerKind, Timing};

/// The port a bare Ollama has on its own machine, and so in the tailnet.
const BARE_PORT: u16 = 11434;

/// A device before it is switched on.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// Its name in the tailnet.
    pub name: String,
    /// Whose it is.
    pub owner: Owner,
    /// Its engine, if it has one.
    pub engine: Option<EngineSpec>,
    /// Whether the program runs there; without it, the engine itself stands on the tailnet's
    /// port 11434 (a bare peer).
    pub sidecar: bool,
    /// The local network it is on, and its address there.
    pub lan: Option<(Switch, Ipv4Addr)>,
    /// What it says of its battery, its clock and its use.
    pub machine: Machine,
    /// In which folder its state folder is made; `None` = where temporary ones are.
    pub state_in: Option<PathBuf>,
    /// What its configuration says beyond where engine, socket and listeners are.
    pub config: Value,
}

impl NodeSpec {
    /// A device with the program and, perhaps, an engine.
    pub fn new(name: &str, owner: Owner, engine: Option<EngineSpec>) -> Self {
        NodeSpec {
            name: name.to_owned(),
            owner,
            engine,
            sidecar: true,
            lan: None,
            machine: Machine::default(),
            state_in: None,
            config: json!({}),
        }
    }

    /// A device with an engine and without the program.
    pub fn bare(name: &str, owner: Owner, engine: EngineSpec) -> Self {
        NodeSpec { sidecar: false, ..NodeSpec::new(name, owner, Some(engine)) }
    }

    /// The same on a local network, under this address.
    #[must_use]
    pub fn on(mut self, switch: &Switch, addr: Ipv4Addr) -> Self {
        self.lan = Some((switch.clone(), addr));
        self
    }

    /// The same with these keys in its configuration.
    #[must_use]
    pub fn with(mut self, config: Value) -> Self {
        self.config = config;
        self
    }
}

/// A device that runs.
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its tailscaled.
    pub daemon: Arc<Tailscaled>,
    engine: Option<Engine>,
    lan: Option<Plug>,
    machine: Machine,
    sidecar: bool,
    app: Mutex<Option<App>>,
    bound: Bound,
    config: config::Config,
    timing: Timing,
    state: TempDir,
}

type Bound = Arc<Mutex<Vec<(ListenerKind, SocketAddr)>>>;

impl Node {
    /// Lets a device join the tailnet and runs what it has to run.
    pub async fn start(net: &Tailnet, spec: NodeSpec, timing: Timing) -> Result<Node, Error> {
        let node = Node::join(net, spec, timing).await?;
        node.run().await?;
        Ok(node)
    }

    /// Lets a device join the tailnet; its program does not run yet. Nodes that are to know
    /// each other from the start join before the first of them runs: whoever comes later is a
    /// newcomer.
    pub async fn join(net: &Tailnet, spec: NodeSpec, timing: Timing) -> Result<Node, Error> {
        let daemon = Arc::new(net.join(&spec.name, spec.owner).await?);
        let engine = match spec.engine {
            Some(engine) => Some(Engine::start(engine).await?),
            None => None,
        };
        let place = spec.state_in.unwrap_or_else(std::env::temp_dir);
        let state = tempfile::Builder::new().prefix("tailherd-demo-").tempdir_in(place)?;
        let config = configuration(&daemon, engine.as_ref(), spec.config)?;
        let lan_daemon = Arc::clone(&daemon);
        let node = Node {
            name: spec.name,
            daemon,
            engine,
            lan: spec.lan.map(|(switch, addr)| switch.plug(addr, lan_daemon)),
            machine: spec.machine,
            sidecar: spec.sidecar,
            app: Mutex::new(None),
            bound: Bound::default(),
            config,
            timing,
            state,
        };
        if let (false, Some(engine)) = (node.sidecar, &node.engine) {
            node.daemon.port(BARE_PORT, Some(engine.addr()));
        }
        Ok(node)
    }

    /// Starts the program, if it has one; again after [`Node::quit`].
    pub async fn run(&self) -> Result<(), Error> {
        if !self.sidecar {
            return Ok(());
        }
        let app = App::start(Setup {
            config: self.config.clone(),
            sockets: self.sockets(),
            timing: self.timing.clone(),
            state: Some(self.state.path().to_owned()),
            name: self.name.clone(),
        })
        .await?;
        *self.app.lock() = Some(app);
        Ok(())
    }

    /// Ends the program at once, as a kill does.
    pub fn quit(&self) {
        *self.app.lock() = None;
        for port in [11434, 11436, 11437] {
            self.daemon.port(port, None);
        }
        self.bound.lock().clear();
        if let Some(lan) = &self.lan {
            lan.quiet();
        }
    }

    /// Ends the program as a service manager does: its requests end first.
    pub async fn stop(&self) {
        let app = self.app.lock().take();
        if let Some(app) = app {
            app.stop().await;
        }
        self.quit();
    }

    /// Puts the device to sleep: whatever way a connection came, it stands still.
    pub fn asleep(&self, asleep: bool) {
        self.daemon.asleep(asleep);
        if let Some(lan) = &self.lan {
            lan.cut(asleep);
        }
    }

    /// Where programs on this device reach it.
    pub fn apps(&self) -> SocketAddr {
        self.listener(ListenerKind::Apps)
    }

    /// Where metrics and status are.
    pub fn admin(&self) -> SocketAddr {
        self.listener(ListenerKind::Admin)
    }

    /// Where other nodes reach it, past its tailscaled.
    pub fn mesh(&self) -> SocketAddr {
        self.listener(ListenerKind::Mesh)
    }

    /// Its engine.
    pub fn engine(&self) -> Option<&Engine> {
        self.engine.as_ref()
    }

    /// Its state folder.
    pub fn state(&self) -> &std::path::Path {
        self.state.path()
    }

    /// Its configuration.
    pub fn config(&self) -> &config::Config {
        &self.config
    }

    /// What it says of itself.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Its place on the local network.
    pub fn lan(&self) -> Result<&Plug, Error> {
        self.lan.as_ref().ok_or_else(|| Error::step("lan", "the node is on no local network"))
    }

    /// Gives the program another configuration while it runs: these keys beyond where engine,
    /// socket and listeners are. A later start has the first one again.
    pub fn configure(&self, more: Value) -> Result<(), Error> {
        let config = configuration(&self.daemon, self.engine.as_ref(), more)?;
        if let Some(app) = &*self.app.lock() {
            app.reload(config);
        }
        Ok(())
    }

    /// Tells the program what a person wants, as its socket does; `None` while it does not run.
    pub async fn obey(&self, wish: Wish) -> Option<Said> {
        // Taken out for the time: nothing waits with a lock held.
        let app = self.app.lock().take()?;
        let said = app.obey(wish).await;
        *self.app.lock() = Some(app);
        Some(said)
    }

    /// Sends a call to a tailnet port of another node, as a program on this device that is
    /// not ours would.
    pub async fn across(&self, to: &Node, port: u16, call: Call) -> Result<Stream, Error> {
        Ok(call.open_on(self.wire(to, port).await?).await?)
    }

    /// Opens a connection to a tailnet port of another node through this device's tailscaled.
    pub async fn wire(&self, to: &Node, port: u16) -> Result<Box<dyn Io>, Error> {
        let api = LocalApi::find(&self.config.tailnet, &self.timing).await?;
        let ip = *to
            .daemon
            .addrs()
            .first()
            .ok_or_else(|| Error::step("dial", "the node has no address"))?;
        Ok(api.dial(ip, port, self.timing.connect_tailnet).await?)
    }

    fn listener(&self, kind: ListenerKind) -> SocketAddr {
        let bound = self.bound.lock();
        let found = bound.iter().find(|(k, _)| *k == kind).map(|(_, a)| *a);
        // Nothing listens on port 0: whoever asks too early is refused, not misled.
        found.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    fn sockets(&self) -> Sockets {
        let uid = rustix::process::geteuid().as_raw();
        let (bound, daemon, owner) = (self.bound.clone(), self.daemon.clone(), self.daemon.clone());
        let (listens, sees) = (self.lan.clone(), self.lan.clone());
        let (reaches, comes) = (self.lan.clone(), self.lan.clone());
        let sockets = self.machine.lend(Sockets::real());
        sockets
            .placed(|_, _| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
            .on_bound(move |kind, wanted, actual| {
                if kind == ListenerKind::Lan {
                    if let Some(lan) = &listens {
                        lan.listening(wanted, actual);
                    }
                    return;
                }
                bound.lock().push((kind, actual));
                // In userspace mode every port of the machine is reachable from the tailnet.
                daemon.port(wanted.port(), Some(actual));
            })
            .with_other_end(move |_, remote, _| {
                if owner.owns(remote) { OtherEnd::Daemon } else { OtherEnd::Program { uid } }
            })
            .with_interfaces(move || sees.as_ref().map_or_else(Vec::new, Plug::interfaces))
            .with_reach(move |kind, addr| reaches.as_ref().map_or(addr, |p| p.reach(kind, addr)))
            .with_source(move |remote| comes.as_ref().map_or(remote, |p| p.source(remote)))
    }
}

fn configuration(
    daemon: &Tailscaled,
    engine: Option<&Engine>,
    more: Value,
) -> Result<config::Config, Error> {
    let local: Vec<Value> = engine.iter().map(|e| json!({ "baseUrl": e.url() })).collect();
    let mut text = json!({
        "listen": ["127.0.0.1:11434"],
        "local": local,
        "tailnet": {"socket": daemon.socket()},
    });
    if let (Some(text), Value::Object(more)) = (text.as_object_mut(), more) {
        text.extend(more);
    }
    Ok(config::parse(&text.to_string(), None, &FixedEnv::default())?)
}
