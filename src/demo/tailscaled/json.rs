//! LocalAPI's JSON, in the shapes recorded from tailscaled 1.102.5.

use serde_json::{Map, Value, json};

use super::state::{Netmap, NodeEntry, NodeNumber, Owner, State};
use crate::types::Wall;

pub(super) const VERSION: &str = "1.102.5";
const NEVER: &str = "0001-01-01T00:00:00Z";

fn key(kind: &str, number: NodeNumber) -> String {
    format!("{kind}:{:064x}", number * 0x0101)
}

fn node_key(node: &NodeEntry) -> String {
    key("nodekey", node.number + (node.renewed << 32))
}

/// What is said of a key's end; nothing of one that does not expire.
fn expiry(node: &NodeEntry, me: bool) -> Map<String, Value> {
    let mut out = Map::new();
    if let Some(at) = node.expires {
        out.insert("KeyExpiry".into(), json!(rfc3339(at)));
    }
    // The daemon never says it of its own node.
    if node.expired() && !me {
        out.insert("Expired".into(), json!(true));
    }
    out
}

/// A time as Go writes it.
fn rfc3339(at: Wall) -> String {
    let (days, rest) = (at.0 / 86_400, at.0 % 86_400);
    // Years that begin in March, so that the leap day is the last one.
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * march + 2) / 5 + 1, (march + 2) % 12 + 1);
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn dns(node: &NodeEntry) -> String {
    format!("{}.{}.", node.name, node.suffix)
}

fn own_prefixes(node: &NodeEntry) -> Vec<String> {
    vec![format!("{}/32", node.v4()), format!("{}/128", node.v6())]
}

fn allowed(node: &NodeEntry) -> Vec<String> {
    own_prefixes(node).into_iter().chain(node.routes.iter().cloned()).collect()
}

fn tags(node: &NodeEntry) -> Option<Vec<String>> {
    match &node.owner {
        Owner::Tags(tags) => Some(tags.clone()),
        Owner::User(_) => None,
    }
}

/// `Self` and the values of `Peer`.
fn peer_status(state: &State, node: &NodeEntry, at: NodeNumber) -> Value {
    let me = node.number == at;
    let current = state.direct(at, node.number).map_or(String::new(), |addr| addr.to_string());
    let ips = json!([node.v4().to_string(), node.v6().to_string()]);
    let mut out = json!({
        "ID": node.number.to_string(), "NodeID": node.number,
        "PublicKey": node_key(node), "HostName": node.name, "DNSName": dns(node),
        "OS": node.os, "UserID": state.netmap().user_of(node).0, "TailscaleIPs": ips,
        "AllowedIPs": allowed(node), "Addrs": if me { json!(node.endpoints) } else { Value::Null },
        "CurAddr": current, "Relay": "demo", "PeerRelay": "", "RxBytes": 0, "TxBytes": 0,
        "Created": node.created, "LastWrite": NEVER, "LastSeen": NEVER, "LastHandshake": NEVER,
        "Online": if me { state.coordinator() && state.running(at) } else { node.online },
        "ExitNode": false, "ExitNodeOption": false, "Active": !me, "PeerAPIURL": [],
        "TaildropTarget": 0, "NoFileSharingReason": "", "InNetworkMap": true,
        "InMagicSock": !me, "InEngine": !me,
    });
    if let (Some(tags), Some(map)) = (tags(node), out.as_object_mut()) {
        map.insert("Tags".into(), json!(tags));
    }
    if let (true, Some(map)) = (node.shared, out.as_object_mut()) {
        map.insert("ShareeNode".into(), json!(true));
    }
    if let Some(map) = out.as_object_mut() {
        map.extend(expiry(node, me));
    }
    out
}

/// `status`, as the daemon of this node says it.
pub(super) fn status(state: &State, number: NodeNumber, peers: bool) -> Value {
    let daemon = state.daemons.get(&number).cloned().unwrap_or_default();
    let netmap = state.netmap();
    let backend = state.backend(number);
    let me = state.seen_by(number);
    let mut users = Map::new();
    let mut list = Map::new();
    let mut seen = |node: &NodeEntry| {
        let (id, login) = netmap.user_of(node);
        users.insert(id.to_string(), json!({"ID": id, "LoginName": login, "DisplayName": login}));
    };
    if let Some(me) = me {
        seen(me);
        for peer in netmap.nodes.values().filter(|n| peers && n.number != number) {
            seen(peer);
            list.insert(node_key(peer), peer_status(state, peer, number));
        }
    }
    let none = |map: Map<String, Value>| if map.is_empty() { Value::Null } else { map.into() };
    let own = me.map_or_else(
        || {
            json!({
                "ID": "", "NodeID": 0, "PublicKey": key("nodekey", 0), "HostName": "demo",
                "DNSName": "", "OS": "linux", "UserID": 0, "TailscaleIPs": null, "Addrs": [],
                "Online": false, "Created": NEVER, "InNetworkMap": false,
            })
        },
        |me| peer_status(state, me, number),
    );
    let mut out = json!({
        "Version": VERSION, "BackendState": backend, "HaveNodeKey": !daemon.logged_out, "AuthURL": "",
        "TailscaleIPs": own["TailscaleIPs"], "Self": own,
        "Health": if backend == "Stopped" { json!(["Tailscale is stopped."]) } else { json!([]) },
        "MagicDNSSuffix": if me.is_some() { state.suffix.as_str() } else { "" },
        "CurrentTailnet": me.map(|_| json!({
            "Name": state.suffix, "MagicDNSSuffix": state.suffix, "MagicDNSEnabled": true,
        })),
        "CertDomains": null, "ExtraRecords": null, "Peer": none(list), "User": none(users),
        "ClientVersion": null,
    });
    if let (Some(tun), Some(map)) = (daemon.tun, out.as_object_mut()) {
        map.insert("TUN".into(), json!(tun));
    }
    out
}

/// `Node` of whois and of the bus.
pub(super) fn node(state: &State, node: &NodeEntry) -> Value {
    let mut out = json!({
        "ID": node.number, "StableID": node.number.to_string(), "Name": dns(node),
        "User": state.netmap().user_of(node).0, "Key": node_key(node),
        "Machine": key("mkey", node.number), "DiscoKey": key("discokey", node.number),
        "Addresses": own_prefixes(node), "AllowedIPs": allowed(node),
        "Endpoints": node.endpoints,
        "HomeDERP": 900,
        "Hostinfo": {"IPNVersion": VERSION, "OS": node.os, "Hostname": node.name, "Services": []},
        "Created": node.created, "Cap": 142, "Online": node.online, "MachineAuthorized": true,
        "ComputedName": node.name, "ComputedNameWithHost": node.name,
    });
    if let (Some(tags), Some(map)) = (tags(node), out.as_object_mut()) {
        map.insert("Tags".into(), json!(tags));
    }
    if let Some(map) = out.as_object_mut() {
        map.extend(expiry(node, false));
    }
    out
}

/// `whois` of `of`, as the daemon of `at` says it.
pub(super) fn whois(state: &State, of: &NodeEntry, at: NodeNumber) -> Value {
    let (id, login) = state.netmap().user_of(of);
    json!({
        "Node": node(state, of),
        "UserProfile": {"ID": id, "LoginName": login, "DisplayName": login},
        "CapMap": state.netmap().grants.get(&(of.number, at)),
    })
}

/// `prefs`. A logout leaves those of a new profile.
pub(super) fn prefs(state: &State, number: NodeNumber) -> Value {
    let daemon = state.daemons.get(&number).cloned().unwrap_or_default();
    let name = state.seen_by(number).map_or("", |n| n.name.as_str());
    let url = if daemon.logged_out { "" } else { state.control_url.as_str() };
    json!({
        "ControlURL": url, "RouteAll": false,
        "ExitNodeID": if daemon.exit_node.is_some() { "99" } else { "" }, "ExitNodeIP": "",
        "ExitNodeAllowLANAccess": daemon.exit_node == Some(true), "CorpDNS": true,
        "WantRunning": !daemon.logged_out && daemon.state != "Stopped",
        "LoggedOut": daemon.logged_out, "ShieldsUp": false, "AdvertiseTags": null,
        "Hostname": name, "AdvertiseRoutes": null, "NetfilterMode": 0,
    })
}

/// The bus's first message: the state under mask 2, the netmap under mask 8.
pub(super) fn first_notice(state: &State, number: NodeNumber, mask: u64) -> Value {
    let code = match state.backend(number) {
        "NoState" => 0,
        "NeedsLogin" => 2,
        "Stopped" => 4,
        "Starting" => 5,
        _ => 6,
    };
    let mut fields = Map::new();
    if mask & 2 != 0 {
        fields.insert("SessionID".into(), json!(format!("{number:016x}")));
        fields.insert("State".into(), json!(code));
    }
    if let (true, Some(me)) = (mask & 8 != 0, state.seen_by(number)) {
        fields.insert("SelfChange".into(), node(state, me));
        fields.insert("NetMap".into(), netmap(state, me));
    }
    notice(fields.into())
}

fn netmap(state: &State, me: &NodeEntry) -> Value {
    let netmap = state.netmap();
    let others = || netmap.nodes.values().filter(|n| n.number != me.number);
    let peers: Vec<Value> = others().map(|n| node(state, n)).collect();
    json!({
        "Cached": state.daemons.get(&me.number).is_some_and(|d| d.cached),
        "SelfNode": node(state, me), "NodeKey": node_key(me),
        "MachineKey": key("mkey", me.number), "Peers": peers,
        "PacketFilter": packet_filter(netmap, me), "SSHPolicy": null,
        "CollectServices": false, "TKAEnabled": false, "Domain": state.suffix,
    })
}

/// Who may connect to this node, as its daemon was told: everybody in the tailnet's range
/// unless some are shut out, and then those who are not. What grants give comes in rules of
/// its own that open no port.
fn packet_filter(netmap: &Netmap, me: &NodeEntry) -> Value {
    let rule = |srcs: Vec<String>, dsts: Value, caps: Vec<Value>| json!({"IPProto": [6, 17, 1, 58], "Srcs": srcs, "SrcCaps": null, "Dsts": dsts, "Caps": caps});
    let everything = |nets: &[String]| -> Value {
        let port = |net| json!({"Net": net, "Ports": {"First": 0, "Last": 65535}});
        nets.iter().map(port).collect()
    };
    let shut = |n: &NodeEntry| netmap.closed.contains(&(n.number, me.number));
    let mut rules = Vec::new();
    if netmap.nodes.values().any(shut) {
        let open = netmap.nodes.values().filter(|n| n.number != me.number && !shut(n));
        let srcs: Vec<String> = open.flat_map(own_prefixes).collect();
        if !srcs.is_empty() {
            rules.push(rule(srcs, everything(&own_prefixes(me)), vec![]));
        }
    } else {
        let srcs = ["100.64.0.0/10", "fd7a:115c:a1e0::/48"].map(str::to_owned).to_vec();
        rules.push(rule(srcs, everything(&["0.0.0.0/0".to_owned(), "::/0".to_owned()]), vec![]));
    }
    for ((from, _), granted) in netmap.grants.iter().filter(|((_, to), _)| *to == me.number) {
        let srcs = netmap.nodes.get(from).map_or_else(Vec::new, own_prefixes);
        let caps = granted.iter().flat_map(|(cap, values)| {
            own_prefixes(me)
                .into_iter()
                .map(move |dst| json!({"Dst": dst, "Cap": cap, "Values": values}))
        });
        rules.push(rule(srcs, json!([]), caps.collect()));
    }
    rules.into()
}

/// The bus's message that some peers changed.
pub(super) fn peers_changed(state: &State) -> Value {
    let peers: Vec<Value> = state.netmap().nodes.values().map(|n| node(state, n)).collect();
    notice(json!({ "PeersChanged": peers }))
}

fn notice(fields: Value) -> Value {
    let mut out = json!({
        "Version": VERSION, "ErrMessage": null, "LoginFinished": null, "State": null,
        "Prefs": null, "NetMap": null, "Engine": null, "BrowseToURL": null, "DriveShares": null,
    });
    if let (Some(map), Value::Object(fields)) = (out.as_object_mut(), fields) {
        map.extend(fields);
    }
    out
}

/// `ping` that was answered, straight or through the relay.
pub(super) fn pong(state: &State, node: &NodeEntry, from: NodeNumber, ip: &str) -> Value {
    let direct = state.direct(from, node.number).map_or(String::new(), |addr| addr.to_string());
    let relay = if direct.is_empty() { (900, "demo") } else { (0, "") };
    json!({
        "IP": ip, "NodeIP": ip, "NodeName": node.name, "Err": "", "LatencySeconds": 0.0004,
        "Endpoint": direct, "PeerRelay": "", "DERPRegionID": relay.0, "DERPRegionCode": relay.1,
    })
}

/// `ping` of an address the daemon knows nobody at.
pub(super) fn nobody(ip: &str) -> Value {
    json!({
        "IP": ip, "NodeIP": "", "NodeName": "", "Err": "no matching peer", "LatencySeconds": 0,
        "Endpoint": "", "PeerRelay": "", "DERPRegionID": 0, "DERPRegionCode": "",
    })
}
