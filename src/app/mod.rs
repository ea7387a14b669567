//! The program as a whole: configuration in, listeners and tasks out.
//!
//! [`App::start`] puts the floors together, once, in one order: what counts, what connects,
//! what is known, who asks, what answers, and at last the doors. `main`, the demo and the
//! tests start the same [`App`]; what differs between them comes in with [`Setup`]. Nothing
//! here decides anything about a request.

mod connections;
pub mod control;
mod doors;
mod measure;
mod networks;
mod observe;
mod offline;
mod pins;
mod preload;
mod reload;
mod router;
mod serve;
mod sharing;
mod spend;
mod state;
mod wishes;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::admin::{self, Admin};
use crate::config::Config;
use crate::directory::{Directory, DirectoryConfig, Identity};
use crate::discover::{self, Discovery};
use crate::gate::{Gates, GatesConfig, OllamaLoader};
use crate::mesh::{self, Hellos, Meets, Mesh};
use crate::net::home::Homes;
use crate::net::localapi;
use crate::net::{
    Callers, Connector, LanListeners, LanView, MeshListeners, Pool, Sockets, TailnetView, Task,
};
use crate::probe::Probes;
use crate::proxy::{self, Proxy};
use crate::telemetry::{Clock, Events, Metrics};
use crate::trust::{Access, Bounds, Networks, Tailnet, Trust};
use crate::types::{ListenerKind, NodeName, Timing};

use connections::Connections;
use doors::Doors;
use offline::Offline;
use router::Router;
use sharing::Sharing;
use spend::Spend;

pub use networks::rows as network_rows;
pub use pins::rows as pin_rows;
pub use serve::serve;
pub use wishes::export;

/// What an [`App`] is started from.
#[derive(Debug)]
pub struct Setup {
    /// The configuration.
    pub config: Config,
    /// The machine's ports and its knowledge of connections.
    pub sockets: Sockets,
    /// All waits.
    pub timing: Timing,
    /// The folder that is kept over restarts; `None` = nothing is kept.
    pub state: Option<PathBuf>,
    /// What this node is called without a tailnet.
    pub name: String,
}

/// Why the program could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state folder cannot be used.
    #[error("the state folder {folder}: {source}")]
    State {
        /// Which folder.
        folder: String,
        /// What is wrong with it.
        source: std::io::Error,
    },
    /// Another tailherd uses the state folder.
    #[error("another tailherd runs with the state folder {0} (tailherd status)")]
    Running(String),
    /// No apps listener could be opened.
    #[error("no address in `listen` could be opened: {0}")]
    Listen(String),
    /// Two metrics of one name: a defect of the program.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// Signals cannot be received.
    #[error("signals: {0}")]
    Signals(std::io::Error),
}

/// The running program. Dropping it stops everything at once; [`App::stop`] lets requests end.
pub struct App {
    clock: Clock,
    proxy: Arc<Proxy>,
    directory: Arc<Directory>,
    discovery: Discovery,
    doors: Arc<Doors>,
    connections: Arc<Connections>,
    config: watch::Sender<Arc<Config>>,
    settings: Arc<ArcSwap<proxy::Settings>>,
    gates: Arc<Gates>,
    offline: Offline,
    spend: Spend,
    sharing: Arc<Sharing>,
    draining: watch::Sender<bool>,
    drain: Duration,
    tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
    probes: Mutex<Option<Probes>>,
    looking: reload::Looking,
    trust: Trust,
    events: Arc<Events>,
    networks: Networks,
    sockets: Sockets,
    lan: watch::Receiver<Arc<LanView>>,
    _sidecars: (Hellos, Meets),
    _host: Option<Task>,
    _lock: Option<state::Lock>,
}

impl App {
    /// Starts everything. Returns when the apps listeners are open; what the mesh has shows as
    /// it is found.
    pub async fn start(setup: Setup) -> Result<App, StartError> {
        let Setup { mut config, sockets, timing, state, name } = setup;
        config.origin.loaded_at = Some(SystemTime::now());
        let lock = state.as_deref().map(state::lock).transpose()?;
        let clock = Clock::start();
        let metrics = Metrics::new()?;
        let events = Events::new();
        let offline = Offline::open(state.clone(), &mut config, &events);
        let spend = Spend::open(state.clone(), &events);
        let homes = Arc::new(Homes::load(state.as_deref()));
        let timing = Arc::new(timing);
        let name = NodeName::from_dns(&name);
        let config = Arc::new(config);
        let (config_tx, config_rx) = watch::channel(Arc::clone(&config));

        let (view_tx, view) = watch::channel(Arc::new(TailnetView::default()));
        let (bell_tx, bell) = watch::channel(0_u64);
        let nobody = Access::resolve(&config, &Tailnet::default());
        let (access_tx, access) = watch::channel(Arc::new(nobody));
        let localapi = localapi::Current::default();
        let trust = Trust::open(state.as_deref(), Bounds::of(&config));
        let (networks, said) = Networks::open(state.as_deref());
        if let Some(said) = said {
            tracing::warn!("{said}");
            events.note("lan", said);
        }
        let (lan_tx, lan) = watch::channel(Arc::new(LanView::default()));
        let connector = Connector::with_lan(
            view.clone(),
            Arc::clone(&localapi),
            lan.clone(),
            trust.clone(),
            sockets.clone(),
            Timing::clone(&timing),
        );
        let pool = Pool::new(connector.clone(), clock, &timing);

        let directory = Directory::start(
            DirectoryConfig {
                settings: reload::directory_settings(&config, &timing),
                this: Identity::lone(name.clone()),
                state: state.clone(),
                save: timing.save,
            },
            clock,
        );
        let discovery = discover::start(discover::Setup {
            config: config_rx.clone(),
            timing: Timing::clone(&timing),
            clock,
            directory: Arc::clone(&directory),
            metrics: Arc::clone(&metrics),
            events: Arc::clone(&events),
            state: state.clone(),
            name,
            localapi: Arc::clone(&localapi),
            view: view_tx,
            bell: bell_tx,
            access: access_tx,
            trust: trust.clone(),
            networks: networks.clone(),
            sockets: sockets.clone(),
            lan: lan_tx,
        });

        let gates_config = GatesConfig {
            queue: config.limits.queue,
            num_parallel: std::env::var("OLLAMA_NUM_PARALLEL").ok().and_then(|n| n.parse().ok()),
        };
        let loads = pool.clone();
        let gates = Gates::new(gates_config, clock, Arc::clone(&metrics), move |endpoint| {
            Arc::new(OllamaLoader::new(loads.clone(), clock, endpoint))
        });

        let settings = Arc::new(ArcSwap::from_pointee(proxy::Settings::new(Arc::clone(&config))));
        // Before the first prompt, not after it.
        settings.load().chains.said().iter().for_each(|line| tracing::info!("{line}"));
        let own = Arc::new(ArcSwap::from_pointee(proxy::Own::default()));
        let proxy = Proxy::new(proxy::Parts {
            directory: Arc::clone(&directory),
            pool: pool.clone(),
            gates: Arc::clone(&gates),
            metrics: Arc::clone(&metrics),
            events: Arc::clone(&events),
            clock,
            timing: Arc::clone(&timing),
            settings: Arc::clone(&settings),
            access: access.clone(),
            accounts: Arc::clone(&spend.accounts),
            homes: Arc::clone(&homes),
            own: Arc::clone(&own),
        });

        let (_host, host) = sockets.follow_host();
        let sharing = Sharing::open(sharing::Parts {
            config: config_rx.clone(),
            gates: Arc::clone(&gates),
            directory: Arc::clone(&directory),
            sockets: sockets.clone(),
            host,
            events: Arc::clone(&events),
            state: state.clone(),
            clock,
            every: timing.machine,
        });

        let instance: Arc<str> = format!("{:032x}", rand::random::<u128>()).into();
        let (draining, drained) = watch::channel(false);
        let admin = Admin::new(admin::Parts {
            directory: Arc::clone(&directory),
            metrics: Arc::clone(&metrics),
            events: Arc::clone(&events),
            clock,
            config: config_rx.clone(),
            trust: trust.clone(),
            tailnet: view.clone(),
            lan: lan.clone(),
            share: gates.share(),
            accounts: Arc::clone(&spend.accounts),
            draining: drained.clone(),
            timing: Arc::clone(&timing),
        });
        let parts = mesh::Parts {
            directory: Arc::clone(&directory),
            trust: trust.clone(),
            tailnet: view.clone(),
            lan: lan.clone(),
            connector,
            events: Arc::clone(&events),
            clock,
            timing: Arc::clone(&timing),
            ephemeral: state.as_deref().is_none_or(state::is_passing),
        };
        let reports = mesh::Sources {
            gates: Arc::clone(&gates),
            directory: Arc::clone(&directory),
            access: access.clone(),
            draining: drained.clone(),
            clock,
            timing: Arc::clone(&timing),
        };
        let (mesh, callbacks) = Mesh::new(parts.clone(), reports, Arc::clone(&instance));
        let mesh = Arc::new(mesh);
        let router = Router { proxy: Arc::clone(&proxy), mesh, admin: Arc::clone(&admin), access };

        let connections = Connections::new(config.limits.connections, Arc::clone(&timing), drained);
        let callers = Callers::new(
            view.clone(),
            localapi,
            config.tailnet.clone(),
            sockets.clone(),
            clock,
            Timing::clone(&timing),
            bell,
        );
        callers.look_up_users(config.names_users());
        let doors = Doors::new(
            sockets.clone(),
            callers,
            Arc::clone(&connections),
            router,
            admin,
            trust.clone(),
            Arc::clone(&timing),
        );
        doors.open_apps(&config).await?;
        doors.open_admin(config.admin_listen);
        let ports = config.tailnet.ports.clone();
        let mesh_ports =
            MeshListeners::follow(view.clone(), ports.clone(), sockets.clone(), clock, &timing);
        doors.open_mesh(mesh_ports);
        if let Some(port) = ports.first() {
            doors.open_lan(LanListeners::follow(
                lan.clone(),
                trust.clone(),
                *port,
                sockets.clone(),
                Arc::clone(&metrics),
                clock,
                &timing,
            ));
        }
        let hellos = Hellos::start(parts.clone(), ports, callbacks);
        let meets = Meets::start(parts);

        let tasks = vec![
            tokio::spawn(names(view, own)),
            tokio::spawn(observe::tell(Arc::clone(&directory), Arc::clone(&gates))),
            tokio::spawn(preload::keep(
                config_rx.clone(),
                Arc::clone(&directory),
                Arc::clone(&gates),
            )),
            tokio::spawn(measure::keep(measure::Parts {
                config: config_rx.clone(),
                directory: Arc::clone(&directory),
                gates: Arc::clone(&gates),
                pool: pool.clone(),
                sockets: sockets.clone(),
                clock,
                idle: timing.measure,
            })),
            tokio::spawn(Arc::clone(&sharing).keep()),
            tokio::spawn(pins::keep(trust.clone(), Arc::clone(&events), timing.save)),
            tokio::spawn(spend.clone().keep(clock, timing.save)),
        ];
        let ours = doors.own_addresses();
        let looking = reload::Looking { ours, homes, pool, clock };
        let probes = looking.start(&config, &directory, &timing);
        Ok(App {
            clock,
            proxy,
            directory,
            discovery,
            doors,
            connections,
            config: config_tx,
            settings,
            gates,
            offline,
            spend,
            sharing,
            draining,
            drain: timing.drain,
            tasks: Mutex::new(tasks),
            probes: Mutex::new(Some(probes)),
            looking,
            trust,
            events,
            networks,
            sockets,
            lan,
            _sidecars: (hellos, meets),
            _host,
            _lock: lock,
        })
    }

    /// Where programs on this machine reach us: the first apps listener.
    pub fn apps(&self) -> Option<SocketAddr> {
        self.doors.bound(ListenerKind::Apps).first().copied()
    }

    /// Where metrics and status are.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.doors.bound(ListenerKind::Admin).first().copied()
    }

    /// What is known of the mesh.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// Requests that are being answered.
    pub fn running(&self) -> u32 {
        self.proxy.running()
    }

    /// What a person who starts the program wants to read.
    pub fn greeting(&self) -> Vec<String> {
        self.doors.greeting()
    }

    /// Stops: no new connection, running requests end, at most for the time of `drain`.
    pub async fn stop(&self) {
        self.doors.close();
        self.draining.send_replace(true);
        let deadline = tokio::time::Instant::now() + self.drain;
        while self.connections.open() > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.directory.save().await;
        self.spend.save().await;
        if let Some(error) = pins::save_last(&self.trust).await {
            tracing::warn!("pins could not be saved: {error}");
        }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.doors.close();
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
    }
}

/// Keeps the names by which this machine may be called in `Host`.
async fn names(mut view: watch::Receiver<Arc<TailnetView>>, own: Arc<ArcSwap<proxy::Own>>) {
    loop {
        let mut now = proxy::Own::default();
        now.names.extend(state::host_name());
        if let Ok(interfaces) = if_addrs::get_if_addrs() {
            now.addrs.extend(interfaces.iter().map(if_addrs::Interface::ip));
        }
        if let Some(me) = &view.borrow_and_update().me {
            now.names.push(me.name.to_string());
            now.names.push(me.dns.clone());
            now.addrs.extend(&me.addrs);
        }
        own.store(Arc::new(now));
        // Addresses come and go without the tailnet knowing.
        let again = tokio::time::sleep(Duration::from_secs(30));
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            () = again => {}
        }
    }
}
