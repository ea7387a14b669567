//! Doors: the listeners, each with its kind, and what serves the connections of each.
//!
//! A door that cannot be opened is a line in the status, not the end of the program, as long
//! as programs on this machine have one to come in by.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tower::service_fn;

use crate::admin::Admin;
use crate::config::{Config, ListenAt};
use crate::net::listen::{HANDSHAKE_FAILED, TOO_MANY, bind, bridge, is_tls, tls_hello, unix};
use crate::net::{
    Accepted, Callers, LanAccepted, LanListeners, Listener, MeshListeners, MeshPort, Sockets,
};
use crate::proxy::{self, Door, Proxy, Who};
use crate::trust::Trust;
use crate::types::{Caller, ListenerKind, Timing};

use super::StartError;
use super::connections::{Connections, Place};
use super::router::Router;

/// Where apps are served if another program holds Ollama's port and nothing else was asked
/// for.
const SECOND_PORT: u16 = 11534;

/// Most TLS handshakes with nodes of the tailnet at once.
const HANDSHAKES: usize = 8;

/// All listeners.
pub(super) struct Doors {
    sockets: Sockets,
    callers: Callers,
    connections: Arc<Connections>,
    router: Router,
    admin: Arc<Admin>,
    open: Mutex<Vec<(ListenerKind, SocketAddr)>>,
    /// What could not be opened, for people.
    troubles: Mutex<Vec<String>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    /// Own addresses, for probes that must not take us for an engine.
    own: watch::Sender<Vec<SocketAddr>>,
    mesh: Mutex<Option<watch::Receiver<Vec<MeshPort>>>>,
    lan: Mutex<Option<watch::Receiver<Vec<MeshPort>>>>,
    trust: Trust,
    timing: Arc<Timing>,
    /// TLS handshakes on the mesh port that may be under way at once.
    handshakes: Semaphore,
}

impl Doors {
    pub(super) fn new(
        sockets: Sockets,
        callers: Callers,
        connections: Arc<Connections>,
        router: Router,
        admin: Arc<Admin>,
        trust: Trust,
        timing: Arc<Timing>,
    ) -> Arc<Doors> {
        Arc::new(Doors {
            sockets,
            callers,
            connections,
            router,
            admin,
            open: Mutex::default(),
            troubles: Mutex::default(),
            tasks: Mutex::default(),
            own: watch::channel(Vec::new()).0,
            mesh: Mutex::default(),
            lan: Mutex::default(),
            trust,
            timing,
            handshakes: Semaphore::new(HANDSHAKES),
        })
    }

    /// Opens the doors for programs on this machine. At least one has to open.
    pub(super) async fn open_apps(self: &Arc<Self>, config: &Config) -> Result<(), StartError> {
        let port = config
            .listen
            .iter()
            .find_map(|l| if let ListenAt::Tcp(a) = l { Some(a.port()) } else { None });
        let mut opened = 0_usize;
        for listen in &config.listen {
            match listen {
                ListenAt::Tcp(wanted) => opened += usize::from(self.tcp(*wanted)),
                ListenAt::Unix(path) => match unix(path, 0o660) {
                    Ok(door) => {
                        self.unix(door);
                        opened += 1;
                    }
                    Err(error) => self.trouble(error.to_string()),
                },
                ListenAt::Bridge(name) => match bridge(name) {
                    Ok(addresses) => {
                        for (ip, device) in addresses {
                            let wanted = SocketAddr::new(ip, port.unwrap_or(11434));
                            match bind(&self.sockets, ListenerKind::Apps, wanted, Some(&device)) {
                                Ok(listener) => self.apps(listener),
                                Err(error) => self.trouble(error.to_string()),
                            }
                        }
                    }
                    Err(error) => self.trouble(error.to_string()),
                },
            }
        }
        if opened == 0 && config.listen_is_default {
            let wanted = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), SECOND_PORT);
            if self.tcp(wanted) {
                self.trouble(format!(
                    "another program holds port 11434: apps are served at {wanted} until it lets go (tailherd doctor)"
                ));
                return Ok(());
            }
        }
        if opened == 0 {
            return Err(StartError::Listen(self.troubles.lock().join("; ")));
        }
        Ok(())
    }

    fn tcp(self: &Arc<Self>, wanted: SocketAddr) -> bool {
        match bind(&self.sockets, ListenerKind::Apps, wanted, None) {
            Ok(listener) => {
                self.apps(listener);
                true
            }
            // A machine without IPv6 lacks nothing it would miss.
            Err(error) if wanted.is_ipv6() && !error.is_in_use() => {
                tracing::debug!(%error, "no IPv6 loopback");
                false
            }
            Err(error) => {
                self.trouble(error.to_string());
                false
            }
        }
    }

    fn apps(self: &Arc<Self>, listener: Listener) {
        self.note(ListenerKind::Apps, listener.local);
        let doors = Arc::clone(self);
        self.keep(async move {
            loop {
                let (stream, local, remote) = listener.accept().await;
                let Some(place) = doors.connections.place(ListenerKind::Apps, None) else {
                    continue;
                };
                let identity = doors.callers.connection(ListenerKind::Apps, local, remote);
                let door = Door { kind: ListenerKind::Apps, local: Some(local) };
                let who = Who::Connection(Arc::new(identity));
                place.serve(stream, proxy::service(doors.proxy(), door, who));
            }
        });
    }

    fn unix(self: &Arc<Self>, listener: crate::net::UnixDoor) {
        let doors = Arc::clone(self);
        self.keep(async move {
            loop {
                let (stream, uid) = listener.accept().await;
                let Some(place) = doors.connections.place(ListenerKind::Apps, None) else {
                    continue;
                };
                let door = Door { kind: ListenerKind::Apps, local: None };
                let who = Who::Known(Arc::new(Caller::local(uid, None)));
                place.serve(stream, proxy::service(doors.proxy(), door, who));
            }
        });
    }

    /// Opens the door for metrics and status.
    pub(super) fn open_admin(self: &Arc<Self>, wanted: Option<SocketAddr>) {
        let Some(wanted) = wanted else { return };
        let listener = match bind(&self.sockets, ListenerKind::Admin, wanted, None) {
            Ok(listener) => listener,
            Err(error) => return self.trouble(error.to_string()),
        };
        self.note(ListenerKind::Admin, listener.local);
        let loopback = listener.local.ip().is_loopback();
        let doors = Arc::clone(self);
        self.keep(async move {
            loop {
                let (stream, local, remote) = listener.accept().await;
                let Some(place) = doors.connections.place(ListenerKind::Admin, None) else {
                    continue;
                };
                let identity =
                    Arc::new(doors.callers.connection(ListenerKind::Admin, local, remote));
                let admin = Arc::clone(&doors.admin);
                let service = service_fn(move |request| {
                    let (admin, identity) = (Arc::clone(&admin), Arc::clone(&identity));
                    async move {
                        // Off loopback there is nothing to see but numbers, and Prometheus
                        // need not be a node of the tailnet.
                        match identity.caller().await {
                            Err(refusal) if loopback => Ok(admin.refuse(refusal.status())),
                            _ => Ok(admin.serve(&request, loopback).await),
                        }
                    }
                });
                place.serve(stream, service);
            }
        });
    }

    /// Serves the nodes of the tailnet, on its addresses as they come and go.
    pub(super) fn open_mesh(self: &Arc<Self>, mut listeners: MeshListeners) {
        *self.mesh.lock() = Some(listeners.state());
        let doors = Arc::clone(self);
        self.keep(async move {
            // Those of whom it is not known yet what they speak; they end with this door.
            let mut arriving = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listeners.accept() => {
                        let Some(accepted) = accepted else { return };
                        let Some(place) = doors.connections.place(ListenerKind::Mesh, Some(accepted.remote.ip())) else { continue };
                        arriving.spawn(Arc::clone(&doors).arrive(accepted, place));
                    }
                    Some(_) = arriving.join_next() => {}
                }
            }
        });
    }

    /// Plain HTTP, or TLS for a hello: the first byte tells.
    async fn arrive(self: Arc<Self>, accepted: Accepted, place: Place) {
        let Accepted { stream, local, remote } = accepted;
        let identity = Arc::new(self.callers.connection(ListenerKind::Mesh, local, remote));
        let door = Door { kind: ListenerKind::Mesh, local: Some(local) };
        match timeout(self.timing.head, is_tls(&stream)).await {
            Ok(false) => place.serve(stream, self.router.service(door, identity, None)),
            Ok(true) => {
                // Over the limit they wait for each other, and not for long.
                let limit = self.timing.handshake;
                let refused = |why| self.router.proxy.metrics.refused(ListenerKind::Mesh, why);
                let Ok(Ok(_turn)) = timeout(limit, self.handshakes.acquire()).await else {
                    return refused(TOO_MANY);
                };
                match tls_hello(stream, &self.trust, limit).await {
                    Ok((io, key)) => place.serve(io, self.router.greeting(identity, key)),
                    Err(error) => {
                        refused(HANDSHAKE_FAILED);
                        tracing::debug!(%remote, %error, "no TLS on the mesh port");
                    }
                }
            }
            // Connected, and never said anything.
            Err(_) => {}
        }
    }

    /// Serves pinned peers on the local network, wherever that may be used.
    pub(super) fn open_lan(self: &Arc<Self>, mut listeners: LanListeners) {
        *self.lan.lock() = Some(listeners.state());
        let doors = Arc::clone(self);
        self.keep(async move {
            while let Some(LanAccepted { io, key, local, remote }) = listeners.accept().await {
                doors.router.mesh.came_from(&key, remote.ip());
                let Some(place) = doors.connections.place(ListenerKind::Lan, Some(remote.ip()))
                else {
                    continue;
                };
                let identity = doors.callers.pinned(&doors.trust, key, local, remote);
                let door = Door { kind: ListenerKind::Lan, local: Some(local) };
                let service = doors.router.service(door, Arc::new(identity), Some(key));
                place.serve(io, service);
            }
        });
    }

    /// The addresses that are open, in the order in which they were opened.
    pub(super) fn bound(&self, kind: ListenerKind) -> Vec<SocketAddr> {
        self.open.lock().iter().filter(|(k, _)| *k == kind).map(|(_, at)| *at).collect()
    }

    /// Own addresses as they come.
    pub(super) fn own_addresses(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.own.subscribe()
    }

    /// What could not be opened, also on the mesh.
    pub(super) fn troubles(&self) -> Vec<String> {
        let mut troubles = self.troubles.lock().clone();
        for (kind, ports) in [("mesh", &self.mesh), ("lan", &self.lan)] {
            if let Some(ports) = &*ports.lock() {
                let ports = ports.borrow();
                let failed = ports.iter().filter_map(|p| Some((p.addr, p.error.as_ref()?)));
                troubles.extend(failed.map(|(addr, error)| format!("{kind} {addr}: {error}")));
            }
        }
        troubles
    }

    /// What a person who starts the program wants to read.
    pub(super) fn greeting(&self) -> Vec<String> {
        let list = |kind| {
            let at: Vec<String> = self.bound(kind).iter().map(ToString::to_string).collect();
            at.join(", ")
        };
        let mut lines = vec![format!("apps are served at {}", list(ListenerKind::Apps))];
        if !self.bound(ListenerKind::Admin).is_empty() {
            lines.push(format!("status and metrics are at {}", list(ListenerKind::Admin)));
        }
        lines.extend(self.troubles());
        lines
    }

    /// Closes all doors. Connections that are open live on.
    pub(super) fn close(&self) {
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
    }

    fn proxy(&self) -> &Arc<Proxy> {
        &self.router.proxy
    }

    fn note(&self, kind: ListenerKind, at: SocketAddr) {
        self.open.lock().push((kind, at));
        self.own.send_modify(|own| own.push(at));
    }

    fn trouble(&self, text: String) {
        tracing::warn!("{text}");
        self.troubles.lock().push(text);
    }

    fn keep(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().push(tokio::spawn(task));
    }
}
