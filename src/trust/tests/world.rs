//! One node, the nodes it meets, its coordinator's list, and a clock that a test moves.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use super::super::filter::{Filter, FilterDst, FilterRule};
use super::super::keys::Ring;
use super::super::*;
use crate::api::hello::{Departed, HelloSay};
use crate::types::{Caller, ControlId, NodeId, NodeName, Principal, PublicKey, Wall};

pub(super) const MINUTE: u64 = 60;
pub(super) const HOUR: u64 = 3600;
pub(super) const DAY: u64 = 24 * HOUR;
pub(super) const START: Wall = Wall(1_800_000_000);
pub(super) const URL: &str = "https://home.example";

/// Another node, with its own sidecar.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) stable: String,
    pub(super) created: String,
    pub(super) name: NodeName,
    pub(super) principal: Principal,
    pub(super) shared: bool,
    pub(super) node_key: String,
    pub(super) expires: Option<Wall>,
    pub(super) expired: bool,
    pub(super) addrs: Vec<IpAddr>,
    pub(super) ring: Ring,
    pub(super) ephemeral: bool,
    pub(super) lan: Vec<IpAddr>,
}

pub(super) fn control(name: &str) -> ControlId {
    ControlId(name.into())
}

pub(super) fn bounds() -> Bounds {
    Bounds {
        trust: Duration::from_secs(14 * DAY),
        grant: Duration::from_secs(DAY),
        ports: vec![11436, 11434],
    }
}

fn node(name: &str, number: u8, principal: Principal) -> Node {
    Node {
        stable: format!("n{number}"),
        created: "2026-01-01T00:00:00Z".to_owned(),
        name: NodeName::from_dns(name),
        principal,
        shared: false,
        node_key: format!("nodekey:{number}"),
        expires: None,
        expired: false,
        addrs: vec![format!("100.64.0.{number}").parse().unwrap()],
        ring: Ring::new(START).unwrap(),
        ephemeral: false,
        lan: vec![format!("192.168.1.{number}").parse().unwrap()],
    }
}

pub(super) fn person(name: &str, number: u8, id: i64) -> Node {
    let login = format!("u{id}@x").into();
    node(name, number, Principal::User { control: control("home"), id, login })
}

pub(super) fn tagged(name: &str, number: u8) -> Node {
    let set = ["tag:ollama".into()].into();
    node(name, number, Principal::Tags { control: control("home"), set })
}

impl Node {
    pub(super) fn id(&self) -> NodeId {
        NodeId::Tailnet { control: control("home"), stable: self.stable.as_str().into() }
    }

    pub(super) fn key(&self) -> PublicKey {
        self.ring.current()
    }

    pub(super) fn own(&self) -> Own {
        Own {
            stable: self.stable.clone(),
            created: self.created.clone(),
            name: self.name.clone(),
            principal: self.principal.clone(),
            node_key: self.node_key.clone(),
            addrs: self.addrs.clone(),
        }
    }

    pub(super) fn listed(&self) -> ListedPeer<'_> {
        ListedPeer {
            stable: &self.stable,
            created: &self.created,
            name: &self.name,
            dns: "",
            principal: &self.principal,
            shared: self.shared,
            node_key: &self.node_key,
            expires: self.expires,
            expired: self.expired,
            addrs: &self.addrs,
        }
    }

    pub(super) fn departed(&self, since: Wall) -> Departed {
        Departed { stable: self.stable.clone(), created: self.created.clone(), since }
    }
}

/// A node whose trust is looked at, and what it sees of its tailnet.
pub(super) struct World {
    pub(super) trust: Trust,
    pub(super) me: Node,
    /// Those the coordinator lists.
    pub(super) nodes: Vec<Node>,
    pub(super) online: bool,
    pub(super) now: Wall,
}

impl World {
    /// A laptop of person 1 that is online and lists `nodes`; the policy lets all of them in.
    pub(super) fn of(nodes: Vec<Node>) -> World {
        World::kept(nodes, None)
    }

    /// The same, with a state folder.
    pub(super) fn kept(nodes: Vec<Node>, folder: Option<&Path>) -> World {
        let trust = Trust::open(folder, bounds());
        let me = person("laptop", 1, 1);
        let mut world = World { trust, me, nodes, online: true, now: START };
        assert_eq!(world.enter(), Vec::<String>::new());
        world.trust.heard_filter(open_to("100.64.0.0/10"), world.now);
        world.look();
        world
    }

    /// The same, with a live pin of each.
    pub(super) fn pinned(nodes: Vec<Node>) -> World {
        let mut world = World::of(nodes);
        world.hello_all();
        world
    }

    pub(super) fn hello_all(&mut self) {
        for node in self.nodes.clone() {
            self.hello(&node).unwrap();
        }
    }

    pub(super) fn enter(&mut self) -> Vec<String> {
        self.trust.enter(&control("home"), &self.me.own(), Some(1), URL, self.now)
    }

    /// The program starts again, while no tailnet is named.
    pub(super) fn restart(&mut self, folder: &Path) -> Vec<String> {
        self.trust.save().unwrap();
        self.trust = Trust::open(Some(folder), bounds());
        self.trust.recall(Some(URL), self.now)
    }

    pub(super) fn node(&self, name: &str) -> Node {
        self.nodes.iter().find(|n| n.name.as_str() == name).unwrap().clone()
    }

    pub(super) fn change(&mut self, name: &str, change: impl Fn(&mut Node)) {
        change(self.nodes.iter_mut().find(|n| n.name.as_str() == name).unwrap());
    }

    /// Takes nodes off the coordinator's list, and gives them back.
    pub(super) fn unlist(&mut self, names: &[&str]) -> Vec<Node> {
        let off = |n: &Node| names.contains(&n.name.as_str());
        let gone = self.nodes.iter().filter(|n| off(n)).cloned().collect();
        self.nodes.retain(|n| !off(n));
        gone
    }

    /// The list is read.
    pub(super) fn look(&mut self) -> Vec<String> {
        let nodes: Vec<ListedPeer<'_>> = self.nodes.iter().map(Node::listed).collect();
        let map = Netmap { control: &control("home"), online: self.online, nodes: &nodes };
        said(self.trust.netmap(&map, self.now))
    }

    /// Time goes on, and the list is read each half minute (more seldom while it is frozen).
    pub(super) fn wait(&mut self, seconds: u64) -> Vec<String> {
        let step = if self.online { 30 } else { 10 * MINUTE };
        let mut steps = Vec::new();
        let mut left = seconds;
        while left > 0 {
            let next = step.min(left);
            left -= next;
            self.now.0 += next;
            steps.extend(self.look());
        }
        steps
    }

    /// Time goes on, and nobody looks: this machine sleeps.
    pub(super) fn sleep(&mut self, seconds: u64) {
        self.now.0 += seconds;
    }

    /// What a node says in a hello.
    pub(super) fn say(&self, node: &Node) -> HelloSay {
        HelloSay {
            control: "home".to_owned(),
            me: node.stable.clone(),
            you: self.me.stable.clone(),
            my_node_key: node.node_key.clone(),
            your_node_key: self.me.node_key.clone(),
            version: String::new(),
            ephemeral: node.ephemeral,
            chain: node.ring.chain(),
            holds: Some(self.key()),
            lan: node.lan.clone(),
            port: 0,
            departed: Vec::new(),
        }
    }

    pub(super) fn key(&self) -> PublicKey {
        self.trust.view().ring.as_ref().unwrap().current()
    }

    /// We dial its mesh port, and it answers.
    pub(super) fn hello(&mut self, node: &Node) -> Result<Vec<String>, HelloRefused> {
        self.hello_as(node, &self.say(node))
    }

    pub(super) fn hello_as(
        &mut self,
        node: &Node,
        say: &HelloSay,
    ) -> Result<Vec<String>, HelloRefused> {
        let hello = Hello {
            node: node.listed(),
            said: say,
            key: node.key(),
            own_key: self.key(),
            port: Some(11434),
            grants: None,
        };
        self.trust.dialled(&hello, self.now).map(said)
    }

    /// It says hello to us. Whether it is to be called back.
    pub(super) fn heard(&mut self, node: &Node) -> Result<bool, HelloRefused> {
        self.heard_as(node, &self.say(node))
    }

    pub(super) fn heard_as(&mut self, node: &Node, say: &HelloSay) -> Result<bool, HelloRefused> {
        let grants = ["{}".to_owned()];
        let hello = Hello {
            node: node.listed(),
            said: say,
            key: node.key(),
            own_key: self.key(),
            port: None,
            grants: Some(&grants),
        };
        self.trust.heard(&hello, self.now).map(|h| h.callback)
    }

    pub(super) fn pin(&self, node: &Node) -> Option<Pin> {
        self.trust.view().pin(&node.id()).cloned()
    }

    pub(super) fn verdict(&self, key: &PublicKey) -> Verdict {
        self.trust.view().judge(key, self.now)
    }

    /// What a node's key is worth on the local network.
    pub(super) fn worth(&self, node: &Node) -> &'static str {
        self.verdict(&node.key()).label()
    }

    /// The caller that a node's key stands for.
    pub(super) fn caller(&self, node: &Node) -> Caller {
        match self.verdict(&node.key()) {
            Verdict::Admit(caller, _) => *caller,
            other => panic!("{}: {other:?}", node.name),
        }
    }
}

pub(super) fn said(steps: Vec<Step>) -> Vec<String> {
    steps.into_iter().map(|s| format!("{}: {}", s.name, s.what)).collect()
}

/// A filter that lets these addresses reach every port.
pub(super) fn open_to(srcs: &str) -> Filter {
    let dst = FilterDst { net: "0.0.0.0/0".parse().unwrap(), first: 0, last: 65535 };
    let srcs = srcs.split_whitespace().map(|p| p.parse().unwrap()).collect();
    let rule = FilterRule { srcs, by_capability: false, dsts: vec![dst], tcp: true };
    Filter { rules: vec![rule] }
}

/// A filter that names sources by a capability only.
pub(super) fn by_capability() -> Filter {
    let mut filter = open_to("");
    filter.rules[0].by_capability = true;
    filter
}
