//! The task that says where the local network may be used, and speaks mDNS there.
//!
//! It looks at this machine's interfaces every two seconds and when something moved, and
//! publishes the view that listeners, dials and mDNS follow. While the coordinator vouches for
//! everybody it learns networks: one on which a pinned peer answers directly is known from
//! then on. A tag that a pinned peer's key made tells that peer's present address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::lan::{self, Standing};
use super::tailnet::Setup;
use crate::config::Config;
use crate::directory::Directory;
use crate::net::lan::{Interface, LanView};
use crate::net::mdns::{Heard, Mdns, Place, Say};
use crate::net::{Sockets, TailnetView, Task, localapi};
use crate::telemetry::events::Events;
use crate::telemetry::{Clock, wall};
use crate::trust::{Networks, Trust, tag};
use crate::types::{NodeId, PublicKey, Wall};

/// Who is on the link answers in milliseconds, and links that went are not seen meanwhile.
const ANSWER: Duration = Duration::from_secs(1);

/// While a pinned peer is missing, who is there is asked anew this often, at first.
const MISS: Duration = Duration::from_secs(20);
const MISSES: u32 = 15;

/// Most tags looked at in a second: each costs a few hashes for each pin.
const TAGS: u32 = 50;

/// Most addresses whose last tag is remembered.
const REMEMBERED: usize = 256;

/// Starts the task on the current runtime. It ends with the directory.
pub(super) fn start(setup: &Setup) {
    let (places, at) = watch::channel(Arc::default());
    let (say, said) = watch::channel(None);
    let links = Links {
        config: setup.config.clone(),
        view: setup.view.subscribe(),
        said: TailnetView::default(),
        trust: setup.trust.clone(),
        networks: setup.networks.clone(),
        sockets: setup.sockets.clone(),
        localapi: Arc::clone(&setup.localapi),
        directory: Arc::clone(&setup.directory),
        events: Arc::clone(&setup.events),
        lan: setup.lan.clone(),
        places,
        say,
        said_at: None,
        asked: None,
        pace: setup.timing.network_ask,
        heard: Tags::default(),
        missing: Missing::default(),
    };
    let changes = setup.sockets.follow_links();
    let bell = setup.bell.subscribe();
    let (clock, every) = (setup.clock, setup.timing.tailnet_poll);
    tokio::spawn(links.run(Mdns::follow(at, said), changes, bell, clock, every));
}

struct Links {
    config: watch::Receiver<Arc<Config>>,
    view: watch::Receiver<Arc<TailnetView>>,
    /// What LocalAPI said when it last said something.
    said: TailnetView,
    trust: Trust,
    networks: Networks,
    sockets: Sockets,
    localapi: localapi::Current,
    directory: Arc<Directory>,
    events: Arc<Events>,
    lan: watch::Sender<Arc<LanView>>,
    places: watch::Sender<Arc<Vec<Place>>>,
    say: watch::Sender<Option<Arc<Say>>>,
    /// In which hour, of which keys and for which port was last said something.
    said_at: Option<(u64, Vec<PublicKey>, u16)>,
    /// When a peer was last asked whether it is on an unknown network.
    asked: Option<Instant>,
    /// How long it is not asked again.
    pace: Duration,
    heard: Tags,
    missing: Missing,
}

impl Links {
    async fn run(
        mut self,
        mut mdns: Mdns,
        (_followed, mut changes): (Task, watch::Receiver<u64>),
        mut bell: watch::Receiver<u64>,
        clock: Clock,
        every: Duration,
    ) {
        let mut due = Instant::now();
        let mut directory = self.directory.changed();
        let mut trust = self.trust.changed();
        loop {
            let heard = tokio::select! {
                () = sleep_until(due) => {
                    due = clock.next(every);
                    None
                }
                heard = mdns.heard() => heard,
                Ok(()) = self.view.changed() => None,
                Ok(()) = self.config.changed() => None,
                Ok(()) = bell.changed() => None,
                Ok(()) = changes.changed() => None,
                // What was nobody's may be somebody's now.
                Ok(()) = trust.changed() => {
                    self.heard.last.clear();
                    None
                }
                changed = directory.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    continue;
                }
            };
            if let Some(heard) = heard {
                self.take(&heard);
                continue;
            }
            let interfaces = self.publish();
            self.learn(&interfaces).await;
            if self.misses() {
                mdns.ask();
            }
        }
    }

    /// Publishes where the local network may be used now.
    fn publish(&mut self) -> Vec<Interface> {
        let now = wall();
        let config = Arc::clone(&self.config.borrow_and_update());
        let view = Arc::clone(&self.view.borrow_and_update());
        if !view.state.is_empty() {
            self.said = TailnetView { peers: Vec::new(), ..(*view).clone() };
        }
        let interfaces = self.sockets.interfaces();
        let trust = self.trust.view();
        let standing = Standing {
            config: &config.lan,
            tailnet: config.tailnet.enabled != Some(false),
            said: &self.said,
            trusted: trust.control.as_ref(),
            clock_ok: trust.clock_ok,
            pinned: trust.pins.iter().filter(|pin| trust.standing(pin, now).is_ok()).count(),
        };
        let id_of = |gateway: &str, net: &str| self.networks.id_of(gateway, net).into();
        let is_known = |id: &str| self.networks.is_known(id, now);
        let new = lan::view(&standing, &interfaces, id_of, is_known);
        let old = Arc::clone(&self.lan.borrow());
        if *old != new {
            self.tell(&old, &new);
            self.lan.send_replace(Arc::new(new.clone()));
        }
        self.sockets.settle(&new);
        self.announce(&config, &new, now);
        interfaces
    }

    fn tell(&self, old: &LanView, new: &LanView) {
        for link in new.links.iter().filter(|link| !old.links.contains(link)) {
            let (device, network) = (&link.device, &link.network);
            tracing::info!(device, %network, addr = %link.addr, "the local network is used");
            self.events.note("lan", format!("used on {device} ({}/{})", link.addr, link.prefix));
        }
        if new.links.is_empty() && new.off != old.off {
            let off = new.off.as_deref().unwrap_or_default();
            tracing::info!("the local network is not used: {off}");
            self.events.note("lan", format!("not used: {off}"));
        }
    }

    /// Says who is here, on the links that may be used: anew each hour.
    fn announce(&mut self, config: &Config, lan: &LanView, now: Wall) {
        let spoken = config.lan.mdns && self.sockets.multicast() && !lan.links.is_empty();
        let ring = self.trust.view().ring.clone().filter(|_| spoken);
        let port = config.tailnet.ports.first().copied();
        let (Some(ring), Some(port)) = (ring, port) else {
            if self.said_at.take().is_some() {
                self.places.send_replace(Arc::default());
                self.say.send_replace(None);
            }
            return;
        };
        let places: Vec<Place> = lan
            .links
            .iter()
            .filter_map(|link| {
                let IpAddr::V4(addr) = link.addr else { return None };
                let (device, prefix) = (link.device.clone(), link.prefix);
                Some(Place { device, index: link.index?, addr, prefix, epoch: link.epoch })
            })
            .collect();
        let keys: Vec<PublicKey> = ring.all().map(|own| own.key()).collect();
        let at = Some((now.0 / 3600, keys, port));
        if self.said_at != at {
            let tags = ring.all().map(|own| tag::announce(&own.key(), now, rand::random()));
            self.say.send_replace(Some(Arc::new(Say { tags: tags.collect(), port })));
            self.said_at = at;
        }
        self.places.send_if_modified(|old| {
            let moved = **old != places;
            if moved {
                *old = Arc::new(places);
            }
            moved
        });
    }

    /// Whoever made a tag with a pinned key is at the address that it came from. The first to
    /// speak to it there finds out whether that is true.
    fn take(&mut self, heard: &Heard) {
        let addr = IpAddr::V4(heard.addr);
        if self.lan.borrow().allows(addr).is_err() || !self.heard.is_new(heard) {
            return;
        }
        let now = wall();
        let trust = self.trust.view();
        let live = trust.pins.iter().filter(|pin| trust.standing(pin, now).is_ok());
        let known: Vec<(NodeId, PublicKey)> = live.map(|p| (p.node.clone(), p.key)).collect();
        let whose = tag::recognise(&heard.tag, &known, now).and_then(|i| known.get(i));
        if let Some((node, _)) = whose {
            tracing::debug!(%node, %addr, "announced on the local network");
            self.trust.announced(node, addr);
        }
    }

    /// Asks a peer that seems to be on an unknown network whether it is, and calls the network
    /// known if it answers from there while this machine is where it was.
    async fn learn(&mut self, interfaces: &[Interface]) {
        if self.asked.is_some_and(|at| at.elapsed() < self.pace) {
            return;
        }
        let Some(api) = self.localapi.load_full() else { return };
        let id_of = |gateway: &str, net: &str| self.networks.id_of(gateway, net).into();
        let met = {
            let (trust, now) = (self.trust.view(), wall());
            let view = self.view.borrow();
            let pinned = |node: &crate::net::TailnetNode| {
                trust.control == view.control && trust.live(&node.id, now).is_some()
            };
            lan::met(&view, pinned, interfaces, &self.lan.borrow(), id_of)
        };
        for met in met {
            self.asked = Some(Instant::now());
            let answer = tokio::time::timeout(ANSWER, api.ping(met.ask)).await;
            let direct = answer.ok().and_then(Result::ok).and_then(|ping| ping.direct);
            let Some(from) = direct else { continue };
            let who = tokio::time::timeout(ANSWER, api.whois(SocketAddr::new(met.ask, 0))).await;
            let own = who.ok().and_then(Result::ok).flatten().map(|who| who.endpoints);
            let there = met.is_there(from.ip(), &own.unwrap_or_default());
            if !there || self.sockets.interfaces() != interfaces {
                continue;
            }
            let (networks, network) = (self.networks.clone(), met.network.to_string());
            // (A disk may take its time.)
            let learn = tokio::task::spawn_blocking(move || networks.learn(&network, wall()));
            match learn.await.unwrap_or_else(|error| Err(error.into())) {
                Ok(()) => {
                    let network = &met.network;
                    tracing::info!(%network, "a pinned peer is on this local network: known now");
                    self.events.note("lan", format!("network {network} is known now"));
                    self.asked = None;
                }
                Err(error) => tracing::warn!("local networks could not be written: {error}"),
            }
            self.publish();
        }
    }

    /// Whether to ask who is there: a pinned peer is in use and answers nowhere.
    fn misses(&mut self) -> bool {
        if self.lan.borrow().links.is_empty() {
            return false;
        }
        let (trust, now) = (self.trust.view(), wall());
        let snapshot = self.directory.load();
        let missing = snapshot.nodes.iter().filter(|node| {
            trust.live(&node.id, now).is_some() && !node.paths.iter().any(|p| p.cell.is_alive())
        });
        self.missing.asks(missing.map(|node| node.id.clone()).collect(), Instant::now())
    }
}

/// Tags heard lately.
#[derive(Debug, Default)]
struct Tags {
    last: HashMap<Ipv4Addr, String>,
    /// The second that is counted in, and how many came in it.
    window: Option<(Instant, u32)>,
}

impl Tags {
    /// Whether a tag is worth a look: one repeated from the same address is not, nor is any of
    /// a flood.
    fn is_new(&mut self, heard: &Heard) -> bool {
        if self.last.get(&heard.addr) == Some(&heard.tag) {
            return false;
        }
        let now = Instant::now();
        let (begun, count) = match self.window {
            Some((at, count)) if now.duration_since(at) < Duration::from_secs(1) => (at, count),
            _ => (now, 0),
        };
        self.window = Some((begun, count.saturating_add(1)));
        if count >= TAGS {
            return false;
        }
        if self.last.len() >= REMEMBERED {
            self.last.clear();
        }
        self.last.insert(heard.addr, heard.tag.clone());
        true
    }
}

/// Peers that are missed.
#[derive(Debug, Default)]
struct Missing {
    nodes: Vec<NodeId>,
    asked: Option<Instant>,
    times: u32,
}

impl Missing {
    /// Whether to ask now: at once when somebody is missed anew, then for a while.
    fn asks(&mut self, nodes: Vec<NodeId>, now: Instant) -> bool {
        let anew = nodes.iter().any(|node| !self.nodes.contains(node));
        self.nodes = nodes;
        if anew {
            self.times = 0;
        } else if self.nodes.is_empty()
            || self.times >= MISSES
            || self.asked.is_some_and(|at| now.duration_since(at) < MISS)
        {
            return false;
        }
        self.asked = Some(now);
        self.times += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, FixedEnv};
    use crate::directory::testing::who;
    use crate::directory::{DirectoryConfig, Settings};
    use crate::net::lan::{Gateway, Kind, LanLink};
    use crate::trust::{Bounds, ByHand, Own};
    use crate::types::{ControlId, Verb};

    const NOW: Wall = Wall(1_795_262_400);

    fn home() -> LanView {
        let here = Interface {
            name: "lan0".to_owned(),
            index: Some(2),
            addr: [192, 168, 1, 10].into(),
            prefix: 24,
            gateway: Some(Gateway { addr: [192, 168, 1, 1].into(), link: Some("aa".into()) }),
            kind: Kind::Lan,
            epoch: 1,
        };
        LanView { links: vec![LanLink::new(&here, "home")], ..LanView::around(&[here]) }
    }

    /// The task of a node with a key, before it runs.
    fn links() -> Links {
        let control = ControlId("home".into());
        let own = Own::laptop(&control);
        let trust = Trust::open(None, Bounds { ports: vec![11436], ..Bounds::default() });
        trust.enter(&control, &own, Some(1), "https://c", wall());
        let directory = DirectoryConfig {
            settings: Settings::default(),
            this: who("laptop"),
            state: None,
            save: Duration::from_secs(5),
        };
        let config = config::parse("{}", None, &FixedEnv::default()).unwrap();
        Links {
            config: watch::channel(Arc::new(config)).1,
            view: watch::channel(Arc::default()).1,
            said: TailnetView::default(),
            trust,
            networks: Networks::open(None).0,
            sockets: Sockets::real(),
            localapi: Arc::default(),
            directory: Directory::start(directory, Clock::start()),
            events: Events::new(),
            lan: watch::channel(Arc::new(home())).0,
            places: watch::channel(Arc::default()).0,
            say: watch::channel(None).0,
            said_at: None,
            asked: None,
            pace: Duration::ZERO,
            heard: Tags::default(),
            missing: Missing::default(),
        }
    }

    #[tokio::test]
    async fn what_is_announced_is_another_each_hour_and_nothing_without_a_link() {
        let mut links = links();
        let config = Arc::clone(&links.config.borrow());
        let key = links.trust.view().ring.as_ref().unwrap().current();
        let mut tags = |lan: &LanView, minutes: u64| {
            let now = NOW + Duration::from_secs(60 * minutes);
            links.announce(&config, lan, now);
            let said = links.say.borrow().as_ref().map(|say| say.tags.clone());
            assert_eq!(said.is_some(), !links.places.borrow().is_empty());
            if let Some(said) = &said {
                assert_eq!(tag::recognise(&said[0], &[((), key)], now), Some(0));
            }
            said
        };
        let first = tags(&home(), 0);
        assert!(first.is_some());
        assert_eq!(tags(&home(), 59), first);
        let next = tags(&home(), 60);
        assert!(next.is_some() && next != first);
        assert_eq!(tags(&LanView::default(), 61), None);
        let again = tags(&home(), 62);
        assert!(again.is_some() && again != next, "no two announcements are alike");
    }

    #[tokio::test]
    async fn an_announcement_is_heard_only_from_an_address_that_may_be_dialled() {
        let mut links = links();
        let (now, key) = (wall(), PublicKey::new([7; 32]));
        let until = now + Duration::from_secs(3600);
        let hand = ByHand { verbs: vec![Verb::List], models: vec!["*".to_owned()], until };
        links.trust.add("pi", key, hand, &[], now).unwrap();
        for (addr, want) in [
            ([192, 168, 1, 20], true),
            ([192, 168, 1, 1], false),
            ([192, 168, 2, 20], false),
            ([172, 17, 0, 2], false),
        ] {
            let addr = Ipv4Addr::from(addr);
            links.take(&Heard { tag: tag::announce(&key, now, rand::random()), addr });
            let found = links.trust.view().by_key(&key).unwrap().addresses(|_| true);
            assert_eq!(found.contains(&addr.into()), want, "{addr}");
        }
        let addr = Ipv4Addr::new(192, 168, 1, 30);
        let other = PublicKey::new([8; 32]);
        links.take(&Heard { tag: tag::announce(&other, now, rand::random()), addr });
        let found = links.trust.view().by_key(&key).unwrap().addresses(|_| true);
        assert!(!found.contains(&addr.into()), "nobody's tag");
    }

    fn heard(tag: &str, last: u8) -> Heard {
        Heard { tag: tag.to_owned(), addr: Ipv4Addr::new(192, 168, 1, last) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_tags_costs_a_bounded_number_of_looks() {
        let mut tags = Tags::default();
        assert!(tags.is_new(&heard("a", 1)));
        assert!(!tags.is_new(&heard("a", 1)), "said again");
        assert!(tags.is_new(&heard("a", 2)), "said elsewhere");
        let looks = (0..10_000).filter(|i| tags.is_new(&heard(&format!("t{i}"), 3))).count();
        assert_eq!(looks, 48);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(tags.is_new(&heard("b", 1)));
        assert!(tags.last.len() <= REMEMBERED);
    }

    #[tokio::test(start_paused = true)]
    async fn a_missed_peer_is_asked_for_at_once_then_now_and_then_and_not_for_ever() {
        let node = |name: &str| NodeId::Pin(name.into());
        let mut missing = Missing::default();
        let start = Instant::now();
        assert!(!missing.asks(vec![], start));
        let mut asks = Vec::new();
        for secs in 0..1000 {
            if missing.asks(vec![node("desk")], start + Duration::from_secs(secs)) {
                asks.push(secs);
            }
        }
        assert_eq!((&asks[..3], asks.len()), (&[0, 20, 40][..], 15));
        let later = start + Duration::from_secs(1001);
        assert!(missing.asks(vec![node("desk"), node("gpu")], later), "another one");
        assert!(!missing.asks(vec![node("desk"), node("gpu")], later));
        assert!(!missing.asks(vec![node("gpu")], later), "one came back");
        assert!(missing.asks(vec![node("gpu"), node("desk")], later), "and went again");
    }
}
