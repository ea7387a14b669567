//! Known local networks as people see and change them.
//!
//! In: what is remembered of networks, on which this machine is now, and what a person wants.
//! Out: rows to show, and changes that are on the disk before they are said. A network that
//! this machine is not on has no name but the keyed hash it is remembered by.

use std::io;
use std::time::Duration;

use super::App;
use super::control::{NetworkRow, Said, Which};
use crate::discover::networks_here;
use crate::net::lan::Interface;
use crate::telemetry::wall;
use crate::trust::Networks;
use crate::types::Wall;

impl App {
    pub(super) fn lan_list(&self) -> Said {
        Said::Networks(rows(&self.networks, &self.sockets.interfaces(), wall()))
    }

    pub(super) async fn lan_allow(&self, seconds: Option<u64>) -> Said {
        let unknown = self.lan.borrow().unknown.clone();
        if unknown.is_empty() {
            let lan = self.lan.borrow();
            return Said::Failed(match &lan.off {
                Some(off) => format!("no local network waits to be allowed: {off}"),
                None => "the local networks this machine is on are in use already".to_owned(),
            });
        }
        let until = seconds.map(|seconds| wall() + Duration::from_secs(seconds));
        let (devices, ids): (Vec<_>, Vec<_>) = unknown.into_iter().unzip();
        let allow = move |networks: &Networks| {
            ids.iter().try_for_each(|network| networks.allow(network, until, wall()))
        };
        if let Err(error) = self.written(allow).await {
            return Said::Failed(format!("the known networks could not be written: {error}"));
        }
        let long = if until.is_some() { "for that time" } else { "for good" };
        self.done(format!("the local network of {} is allowed {long}", devices.join(", ")))
    }

    pub(super) async fn lan_forget(&self, which: &Which) -> Said {
        let rows = rows(&self.networks, &self.sockets.interfaces(), wall());
        let ids = match meant(&rows, which) {
            Ok(ids) => ids,
            Err(why) => return Said::Failed(why),
        };
        let count = ids.len();
        if let Err(error) = self.written(move |networks| networks.forget(&ids)).await {
            let text = format!("forgotten, but the next start knows it again: {error}");
            return Said::Failed(text);
        }
        let what =
            if count == 1 { "1 network is".to_owned() } else { format!("{count} networks are") };
        self.done(format!(
            "{what} forgotten; known again once a pinned peer is met there, or after `tailherd lan \
             allow`"
        ))
    }

    /// Changes what is remembered, on a thread that may wait for the disk.
    async fn written(
        &self,
        change: impl FnOnce(&Networks) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let networks = self.networks.clone();
        let change = tokio::task::spawn_blocking(move || change(&networks));
        change.await.unwrap_or_else(|error| Err(error.into()))
    }
}

/// The networks that are known, and those this machine is on: these first.
pub fn rows(known: &Networks, interfaces: &[Interface], now: Wall) -> Vec<NetworkRow> {
    let mut here = networks_here(known, interfaces);
    let mut rows: Vec<NetworkRow> = Vec::new();
    for (network, kept) in known.list() {
        rows.push(NetworkRow {
            here: here.remove(&network).unwrap_or_default(),
            network,
            how: if kept.holds(now) { kept.how.label() } else { "over" }.to_owned(),
            since: Some(now.since(kept.since).as_secs()),
            seen: Some(now.since(kept.last).as_secs()),
            ends: kept.until.map(|until| until.since(now).as_secs()),
        });
    }
    let unknown = here.into_iter().map(|(network, here)| {
        let how = "unknown".to_owned();
        NetworkRow { network, here, how, since: None, seen: None, ends: None }
    });
    rows.extend(unknown);
    rows.sort_by_key(|row| (row.here.is_empty(), row.seen));
    rows
}

/// The known networks that a person means.
fn meant(rows: &[NetworkRow], which: &Which) -> Result<Vec<String>, String> {
    let known = rows.iter().filter(|row| row.since.is_some());
    let ids = |found: Vec<&NetworkRow>| found.iter().map(|row| row.network.clone()).collect();
    let found: Vec<&NetworkRow> = match which {
        Which::All => known.collect(),
        Which::Here => known.filter(|row| !row.here.is_empty()).collect(),
        Which::Named(name) => {
            let is_at = |at: &String| at.split(' ').any(|word| word == name);
            let found: Vec<_> = known
                .filter(|row| {
                    !name.is_empty() && row.network.starts_with(name) || row.here.iter().any(is_at)
                })
                .collect();
            if found.len() > 1 && !found.iter().any(|row| row.network == *name) {
                return Err(format!(
                    "`{name}` may be {} networks: say more of its id",
                    found.len()
                ));
            }
            found
        }
    };
    match (found.is_empty(), which) {
        (false, _) => Ok(ids(found)),
        (true, Which::All) => Err("no local network is known".to_owned()),
        (true, Which::Here) => Err("no local network this machine is on is known".to_owned()),
        (true, Which::Named(name)) => {
            Err(format!("no known network is `{name}`: see `tailherd lan list`"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::lan::{Gateway, Kind};

    const NOW: Wall = Wall(1_800_000_000);

    fn interface(name: &str, addr: &str, link: &str) -> Interface {
        Interface {
            name: name.to_owned(),
            index: None,
            addr: addr.parse().unwrap(),
            prefix: 24,
            gateway: Some(Gateway { addr: [10, 9, 0, 1].into(), link: Some(link.to_owned()) }),
            kind: Kind::Lan,
            epoch: 1,
        }
    }

    #[test]
    fn networks_are_shown_by_device_where_this_machine_is_and_forgotten_by_what_is_shown() {
        let (known, _) = Networks::open(None);
        let at_home = [interface("wlan0", "10.9.0.7", "aa")];
        let id = |link: &str| known.id_of(link, "10.9.0.0/24");
        let hour = Duration::from_secs(3600);
        let earlier = Wall(NOW.0 - 7200);
        known.learn(&id("aa"), earlier).unwrap();
        known.allow(&id("bb"), Some(NOW + hour), earlier).unwrap();
        known.allow(&id("cc"), Some(Wall(NOW.0 - 3600)), earlier).unwrap();
        let shown = |interfaces: &[Interface]| -> Vec<(String, String, String, Option<u64>)> {
            let rows = rows(&known, interfaces, NOW);
            rows.into_iter().map(|r| (r.network, r.here.join(" "), r.how, r.ends)).collect()
        };
        let home = (id("aa"), "wlan0 10.9.0.0/24".to_owned(), "met".to_owned(), None);
        let hotel = (id("bb"), String::new(), "allowed".to_owned(), Some(3600));
        let cafe = (id("cc"), String::new(), "over".to_owned(), Some(0));
        let at = shown(&at_home);
        assert_eq!(at[0], home);
        assert!(at.len() == 3 && at.contains(&hotel) && at.contains(&cafe), "{at:?}");
        let at = shown(&[interface("eth0", "10.9.0.7", "dd")]);
        let new = (id("dd"), "eth0 10.9.0.0/24".to_owned(), "unknown".to_owned(), None);
        assert_eq!((at.len(), &at[0]), (4, &new));

        let rows = rows(&known, &at_home, NOW);
        let named = |name: &str| meant(&rows, &Which::Named(name.to_owned()));
        for name in ["wlan0", "10.9.0.0/24", &id("aa"), &id("aa")[..12]] {
            assert_eq!(named(name), Ok(vec![id("aa")]), "{name}");
        }
        assert_eq!(meant(&rows, &Which::Here), Ok(vec![id("aa")]));
        assert_eq!(meant(&rows, &Which::All).unwrap().len(), 3);
        for wrong in ["", "wlan", "10.9.0.0", &id("dd")] {
            assert!(named(wrong).is_err(), "{wrong}");
        }
    }
}
