//! LocalAPI's JSON, in the shapes recorded from tailscaled 1.102.5.

use serde_json::{Map, Value, json};

use super::state::{NodeEntry, NodeNumber, Owner, State};

pub(super) const VERSION: &str = "1.102.5";
const NEVER: &str = "0001-01-01T00:00:00Z";

fn key(kind: &str, number: NodeNumber) -> String {
    format!("{kind}:{:064x}", number * 0x0101)
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
fn peer_status(state: &State, node: &NodeEntry, me: bool) -> Value {
    let ips = json!([node.v4().to_string(), node.v6().to_string()]);
    let mut out = json!({
        "ID": node.number.to_string(), "NodeID": node.number,
        "PublicKey": key("nodekey", node.number), "HostName": node.name, "DNSName": dns(node),
        "OS": node.os, "UserID": state.netmap().user_of(node).0, "TailscaleIPs": ips,
        "AllowedIPs": allowed(node), "Addrs": if me { json!([]) } else { Value::Null },
        "CurAddr": "", "Relay": "demo", "PeerRelay": "", "RxBytes": 0, "TxBytes": 0,
        "Created": node.created, "LastWrite": NEVER, "LastSeen": NEVER, "LastHandshake": NEVER,
        "Online": if me { state.coordinator() } else { node.online },
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
    out
}

/// `status`, as the daemon of this node says it.
pub(super) fn status(state: &State, number: NodeNumber, peers: bool) -> Value {
    let daemon = state.daemons.get(&number).cloned().unwrap_or_default();
    let netmap = state.netmap();
    let me = netmap.nodes.get(&number).filter(|_| daemon.state != "NoState");
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
            list.insert(key("nodekey", peer.number), peer_status(state, peer, false));
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
        |me| peer_status(state, me, true),
    );
    let mut out = json!({
        "Version": VERSION, "BackendState": daemon.state, "HaveNodeKey": true, "AuthURL": "",
        "TailscaleIPs": own["TailscaleIPs"], "Self": own,
        "Health": if daemon.state == "Stopped" { json!(["Tailscale is stopped."]) } else { json!([]) },
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
        "User": state.netmap().user_of(node).0, "Key": key("nodekey", node.number),
        "Machine": key("mkey", node.number), "DiscoKey": key("discokey", node.number),
        "Addresses": own_prefixes(node), "AllowedIPs": allowed(node), "Endpoints": [],
        "HomeDERP": 900,
        "Hostinfo": {"IPNVersion": VERSION, "OS": node.os, "Hostname": node.name, "Services": []},
        "Created": node.created, "Cap": 142, "Online": node.online, "MachineAuthorized": true,
        "ComputedName": node.name, "ComputedNameWithHost": node.name,
    });
    if let (Some(tags), Some(map)) = (tags(node), out.as_object_mut()) {
        map.insert("Tags".into(), json!(tags));
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

/// `prefs`.
pub(super) fn prefs(state: &State, number: NodeNumber) -> Value {
    let name = state.netmap().nodes.get(&number).map_or("", |n| n.name.as_str());
    json!({
        "ControlURL": state.control_url, "RouteAll": false, "ExitNodeID": "", "ExitNodeIP": "",
        "ExitNodeAllowLANAccess": false, "CorpDNS": true, "WantRunning": true,
        "LoggedOut": false, "ShieldsUp": false, "AdvertiseTags": null, "Hostname": name,
        "AdvertiseRoutes": null, "NetfilterMode": 0,
    })
}

/// The bus's first message under mask 2.
pub(super) fn first_notice(state: &State, number: NodeNumber) -> Value {
    let name = state.daemons.get(&number).map_or("NoState", |d| d.state);
    let code = match name {
        "NoState" => 0,
        "NeedsLogin" => 2,
        "Stopped" => 4,
        "Starting" => 5,
        _ => 6,
    };
    notice(json!({"SessionID": format!("{number:016x}"), "State": code}))
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

/// `ping`.
pub(super) fn pong(node: &NodeEntry, ip: &str) -> Value {
    json!({
        "IP": ip, "NodeIP": ip, "NodeName": node.name, "Err": "", "LatencySeconds": 0.0004,
        "Endpoint": "", "PeerRelay": "", "DERPRegionID": 0, "DERPRegionCode": "",
    })
}
