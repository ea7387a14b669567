//! All tailscaleds of a run in one process, with ways between them as long as in the simulator.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tailherd::demo::tailscaled::{Owner, Tailnet, Tailscaled};

use super::crew;
use super::options::Options;
use crate::sim::fleet::Fleet;

/// The devices of a run: each machine, and for each machine without a sidecar its user's own.
pub(crate) fn devices(fleet: &Fleet) -> Vec<Device> {
    let machines = fleet.machines.iter().enumerate().map(|(node, machine)| Device {
        name: machine.name.clone(),
        node,
        sidecar: !machine.bare,
        engine: true,
    });
    let users = machines.clone().filter(|d| !d.sidecar).map(|d| Device {
        name: format!("user-{}", d.node),
        sidecar: true,
        engine: false,
        ..d
    });
    machines.collect::<Vec<_>>().into_iter().chain(users.collect::<Vec<_>>()).collect()
}

#[derive(Debug, Clone)]
pub(crate) struct Device {
    pub(crate) name: String,
    /// Where it stands.
    pub(crate) node: usize,
    pub(crate) sidecar: bool,
    pub(crate) engine: bool,
}

pub(crate) async fn run(options: &Options, seed: u64) -> Result<()> {
    let fleet = options.fleet()?;
    let devices = devices(&fleet);
    let net = Tailnet::default();
    let mut daemons: Vec<Tailscaled> = Vec::new();
    for device in &devices {
        let owner = Owner::user(&format!("user-{}@example.com", device.node));
        daemons.push(net.join(&device.name, owner).await?);
    }
    let round_trips = fleet.round_trips(seed);
    for (a, here) in devices.iter().zip(&daemons) {
        for (b, there) in devices.iter().zip(&daemons) {
            let way = Duration::from_secs_f64(round_trips[a.node][b.node]);
            net.way(here.number(), there.number(), way);
        }
    }
    let mut out = std::io::stdout();
    for daemon in &daemons {
        writeln!(out, "socket {}", daemon.socket().display())?;
    }
    let mut told = crew::told();
    while let Some(line) = told.next_line().await? {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["port", device, port, program] => {
                let daemon = daemons.get(device.parse::<usize>()?).context("no such device")?;
                daemon.port(port.parse()?, Some(program.parse()?));
            }
            ["carried"] => {
                let bytes: Vec<String> =
                    daemons.iter().map(|d| d.asked().bytes.to_string()).collect();
                writeln!(out, "carried {}", bytes.join(" "))?;
            }
            _ => bail!("{line:?} means nothing here"),
        }
    }
    Ok(())
}
