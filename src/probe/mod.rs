//! Looking: at this node's engines, at peers, at configured servers.
//!
//! In flow the nodes that may be used and requests for a look; out flow events to the
//! directory's writer and signs of life into path cells. Of peers with a sidecar the reports are
//! read along, which say at once what a look would find out later. Probes never generate anything, never
//! follow a redirect, and read no more of an answer than its bound. Whom they may look at is
//! decided before: a node outside `sendTo` gets no packet from here.

mod ask;
mod engines;
mod identify;
mod list;
mod peers;
mod reports;
mod schedule;
mod shows;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::config::{Config, LocalEngine};
use crate::directory::{Directory, Server};
use crate::net::Pool;
use crate::net::home::Homes;
use crate::telemetry::Clock;
use crate::types::{NodeName, Timing};

/// What probes need to know.
#[derive(Debug, Clone)]
pub struct ProbeConfig {
    /// This node's engines; `None` = look in the usual places.
    pub local: Option<Vec<LocalEngine>>,
    /// Configured servers.
    pub servers: Vec<Server>,
    /// Mesh ports, the one to try first first.
    pub mesh_ports: Vec<u16>,
    /// Port of bare Ollamas on peers.
    pub bare_port: u16,
    /// Where this program itself listens: no engine is looked for there.
    pub ours: watch::Receiver<Vec<SocketAddr>>,
    /// To which networks servers belong.
    pub homes: Arc<Homes>,
    /// All waits.
    pub timing: Timing,
}

impl ProbeConfig {
    /// From the configuration as run.
    pub fn of(
        config: &Config,
        ours: watch::Receiver<Vec<SocketAddr>>,
        homes: Arc<Homes>,
        timing: Timing,
    ) -> ProbeConfig {
        let server = |s: &crate::config::ConfiguredServer| Server {
            name: NodeName::from_dns(&s.name),
            dial: engines::dial_of(&s.server.host, s.server.port, s.server.tls),
            prefix: s.server.prefix.clone(),
        };
        ProbeConfig {
            local: config.local.clone(),
            servers: config.ollamas.iter().map(server).collect(),
            mesh_ports: config.tailnet.ports.clone(),
            bare_port: config.tailnet.bare_port,
            ours,
            homes,
            timing,
        }
    }
}

/// The running probes. Dropping it ends them.
#[derive(Debug)]
pub struct Probes {
    tasks: Vec<JoinHandle<()>>,
}

impl Probes {
    /// Starts looking. Nodes are looked at as soon as the directory lists them.
    pub fn start(
        config: ProbeConfig,
        directory: &Arc<Directory>,
        pool: &Pool,
        clock: Clock,
    ) -> Probes {
        let ask = ask::Asker { pool: pool.clone(), clock, timing: config.timing };
        let following = reports::run(ask.clone(), directory.clone());
        let shows = Arc::new(shows::Shows::default());
        let asked = Arc::new(Notify::new());
        let own = engines::Engines::new(
            ask.clone(),
            directory.clone(),
            shows.clone(),
            config.ours,
            asked.clone(),
            config.local.as_deref(),
        );
        let tools = Arc::new(peers::Tools {
            ask,
            directory: directory.clone(),
            shows,
            homes: config.homes,
            mesh_ports: config.mesh_ports,
            bare_port: config.bare_port,
        });
        let others = schedule::Schedule::new(tools, config.servers, asked);
        let tasks =
            vec![tokio::spawn(own.run()), tokio::spawn(others.run()), tokio::spawn(following)];
        Probes { tasks }
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
