//! `tailherd doctor`: what is wrong on this machine, and the command that mends it.
//!
//! Facts are gathered first (tailscaled, what `tailscale serve` forwards, who answers at the
//! usual ports); what they mean is decided by [`judge`], which is pure. A finding that lets
//! somebody past the rules, or leaves programs here without the mesh, makes the exit code 1.

mod mesh;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::SystemTime;

use anyhow::anyhow;
use serde_json::Value;

use super::tailnet::{self, NoTailnet};
use super::{Context, Failure, ask};
use crate::config::{Config, ListenAt};
use crate::net::localapi::believe::Distrust;
use crate::net::localapi::{FindError, LocalApi, ServeTarget};
use crate::telemetry::plain;

/// Where engines usually listen.
const USUAL: [u16; 5] = [11435, 11434, 1234, 8000, 8080];

/// Where every client of Ollama looks.
const OLLAMA: u16 = 11434;

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) async fn run(_args: Args, context: Context<'_>) -> Result<(), Failure> {
    let facts = Facts::gather(&context.load()?).await;
    let lines = judge(&facts);
    for line in &lines {
        write!(context.out, "{line}")?;
    }
    match lines.iter().filter(|l| l.level == Level::Bad).count() {
        0 => Ok(writeln!(context.out, "nothing is wrong")?),
        1 => Err(anyhow!("one thing to mend").into()),
        n => Err(anyhow!("{n} things to mend").into()),
    }
}

/// What was seen on this machine.
#[derive(Debug)]
struct Facts {
    /// `listen`, as far as it is TCP.
    apps: Vec<SocketAddr>,
    admin: Option<SocketAddr>,
    mesh: Vec<u16>,
    trust_serve: bool,
    tailnet: Tailnet,
    /// Where a running tailherd serves programs; `None` = none runs.
    serving: Option<Vec<SocketAddr>>,
    /// The status of the one that runs.
    status: Value,
    /// Who answers on loopback.
    at: Vec<(SocketAddr, Found)>,
    /// Ports on which somebody listens on every network.
    open: Vec<u16>,
}

#[derive(Debug)]
enum Tailnet {
    Off,
    /// No sign of a tailscaled. `wanted`: the configuration asks for one.
    None {
        why: String,
        wanted: bool,
    },
    Untrusted {
        why: String,
        uid: Option<u32>,
    },
    Silent(String),
    Stopped(String),
    Runs {
        place: String,
        tun: Option<bool>,
        /// Whether it has our loopback; `None` = could not be told.
        shared: Option<bool>,
        serve: Result<Vec<ServeTarget>, String>,
    },
}

/// Who answers at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    Tailherd,
    Engine(String),
    Other,
}

impl Facts {
    async fn gather(config: &Config) -> Facts {
        let apps: Vec<SocketAddr> = config
            .listen
            .iter()
            .filter_map(|l| if let ListenAt::Tcp(at) = l { Some(*at) } else { None })
            .collect();
        let mut places: Vec<SocketAddr> = match &config.local {
            Some(engines) => engines
                .iter()
                .filter_map(|e| {
                    let host =
                        if &*e.server.host == "localhost" { "127.0.0.1" } else { &e.server.host };
                    Some(SocketAddr::new(host.parse().ok()?, e.server.port))
                })
                .filter(|at| at.ip().is_loopback())
                .collect(),
            None => USUAL.map(loopback).to_vec(),
        };
        places.extend(apps.iter().filter(|at| at.is_ipv4()).chain([&loopback(OLLAMA)]));
        places.sort_unstable();
        places.dedup();
        let status = ask::status(config).await.ok();
        let mut at = Vec::new();
        for place in places {
            at.extend(who_answers(place).await.map(|found| (place, found)));
        }
        Facts {
            apps,
            admin: config.admin_listen,
            mesh: config.tailnet.ports.clone(),
            trust_serve: config.trust_serve,
            tailnet: Tailnet::look(config).await,
            serving: status.as_ref().map(serving),
            status: status.unwrap_or_default(),
            at,
            open: open_ports(),
        }
    }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

impl Tailnet {
    async fn look(config: &Config) -> Tailnet {
        match tailnet::look(config).await {
            Ok((api, view)) => Tailnet::Runs {
                place: api.place(),
                tun: view.tun,
                shared: shares_loopback(&api),
                serve: api.serve_config().await.map_err(|e| e.to_string()),
            },
            Err(NoTailnet::Off) => Tailnet::Off,
            Err(NoTailnet::Stopped(state)) => Tailnet::Stopped(state),
            Err(NoTailnet::Ask(error)) => Tailnet::Silent(error.to_string()),
            Err(NoTailnet::Find(error)) => match &error {
                FindError::Distrust { distrust, .. } => Tailnet::Untrusted {
                    why: error.to_string(),
                    uid: match distrust {
                        Distrust::Owner { uid } => Some(*uid),
                        _ => None,
                    },
                },
                FindError::Silent(_) => Tailnet::Silent(error.to_string()),
                FindError::None(_) => Tailnet::None {
                    why: error.to_string(),
                    wanted: config.tailnet.enabled == Some(true) || config.tailnet.socket.is_some(),
                },
            },
        }
    }
}

/// Whether tailscaled lives in our network namespace; `None` if its process cannot be seen.
fn shares_loopback(api: &LocalApi) -> Option<bool> {
    let pid = api.daemon()?.pid?;
    let theirs = std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    Some(std::fs::read_link("/proc/self/ns/net").ok()? == theirs)
}

fn serving(status: &Value) -> Vec<SocketAddr> {
    let listen = status["listen"].as_array().into_iter().flatten();
    listen.filter_map(|at| at.as_str()?.parse().ok()).collect()
}

async fn who_answers(at: SocketAddr) -> Option<Found> {
    let answer = match ask::look(at, "/").await {
        Ok(answer) => answer,
        // Something took the connection and speaks no HTTP.
        Err(_) => return ask::is_open(at).await.then_some(Found::Other),
    };
    if answer.is_tailherd() {
        return Some(Found::Tailherd);
    }
    if answer.body.starts_with(b"Ollama is running") {
        let version = ask::look(at, "/api/version").await.ok();
        let version = version.and_then(|a| serde_json::from_slice::<Value>(&a.body).ok());
        let version = version.as_ref().and_then(|v| v["version"].as_str()).unwrap_or("");
        return Some(Found::Engine(format!("Ollama {}", plain(version)).trim_end().to_owned()));
    }
    match ask::look(at, "/v1/models").await {
        Ok(models) if models.is_list() => Some(Found::Engine("a model server".to_owned())),
        _ => Some(Found::Other),
    }
}

/// Ports that are open on every network, from the kernel's table; empty where there is none.
fn open_ports() -> Vec<u16> {
    let mut open = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        open.extend(text.lines().skip(1).filter_map(listens_everywhere));
    }
    open.sort_unstable();
    open.dedup();
    open
}

/// The port of a line of that table, if it is a listener on the address that takes all.
fn listens_everywhere(line: &str) -> Option<u16> {
    let mut words = line.split_ascii_whitespace();
    let (ip, port) = words.nth(1)?.split_once(':')?;
    // 0A: listening.
    let listens = words.nth(1)? == "0A" && ip.bytes().all(|b| b == b'0');
    listens.then(|| u16::from_str_radix(port, 16).ok()).flatten()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Good,
    Note,
    Bad,
}

/// One line of the report, and what mends it.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    level: Level,
    text: String,
    mend: Option<String>,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mark = match self.level {
            Level::Good => "ok  ",
            Level::Note => "note",
            Level::Bad => "BAD ",
        };
        writeln!(f, "{mark}  {}", self.text)?;
        for line in self.mend.iter().flat_map(|m| m.lines()) {
            writeln!(f, "        {line}")?;
        }
        Ok(())
    }
}

fn good(text: impl Into<String>) -> Line {
    Line { level: Level::Good, text: text.into(), mend: None }
}

fn note(text: impl Into<String>, mend: &str) -> Line {
    Line { level: Level::Note, text: text.into(), mend: Some(mend.to_owned()) }
}

fn bad(text: impl Into<String>, mend: &str) -> Line {
    Line { level: Level::Bad, text: text.into(), mend: Some(mend.to_owned()) }
}

/// What the facts mean.
fn judge(facts: &Facts) -> Vec<Line> {
    let mut lines = vec![judge_tailnet(&facts.tailnet)];
    let engines: Vec<(SocketAddr, &str)> = facts
        .at
        .iter()
        .filter_map(|(at, f)| if let Found::Engine(name) = f { Some((*at, &**name)) } else { None })
        .collect();
    if let Tailnet::Runs { tun, shared, serve, .. } = &facts.tailnet {
        if *tun != Some(true) && *shared != Some(false) {
            lines.extend(engines.iter().map(|(at, name)| exposed(*at, name, *tun)));
        }
        match serve {
            Ok(targets) => {
                lines.extend(targets.iter().filter_map(|t| forwarded(facts, &engines, t)))
            }
            Err(why) => lines.push(note(
                format!("what `tailscale serve` forwards could not be read: {why}"),
                "tailscale serve status",
            )),
        }
    }
    if engines.is_empty() {
        lines.push(note(
            "no engine answers on this machine: it only uses those of others",
            "none is needed; if there is one, name it in `local`",
        ));
    }
    for (at, name) in &engines {
        lines.push(good(format!("{name} at {at}")));
        if facts.open.contains(&at.port()) {
            lines.push(note(
                format!(
                    "{name} listens on every network at port {}: whoever is on one uses it past \
                     the rules of `access`",
                    at.port()
                ),
                "let it listen on this machine alone: OLLAMA_HOST=127.0.0.1:11435",
            ));
        }
    }
    lines.extend(judge_apps(facts));
    lines.extend(mesh::judge(&facts.status, SystemTime::now()));
    lines
}

fn judge_tailnet(tailnet: &Tailnet) -> Line {
    match tailnet {
        Tailnet::Off => note(
            "the tailnet is switched off by `tailnet.enabled: false`",
            "take that line out of the configuration, if it is not meant",
        ),
        Tailnet::None { why, wanted: false } => note(
            format!("this machine is in no tailnet: {why}"),
            "install Tailscale and run `tailscale up`, or name its socket in `tailnet.socket`",
        ),
        Tailnet::None { why, wanted: true } => bad(
            format!("there is no tailscaled where the configuration wants one: {why}"),
            "start it (sudo systemctl start tailscaled), or mend `tailnet.socket`",
        ),
        Tailnet::Untrusted { why, uid } => bad(
            format!("tailscaled is not believed: {why}"),
            &match uid {
                Some(uid) => format!(
                    "run tailscaled as root, or say that it is meant: tailnet: {{ socketUid: {uid} }}"
                ),
                None => {
                    "sudo chmod o-w that folder, or name the socket in `tailnet.socket`".to_owned()
                }
            },
        ),
        Tailnet::Silent(why) => {
            bad(format!("tailscaled does not answer: {why}"), "sudo systemctl restart tailscaled")
        }
        Tailnet::Stopped(state) => bad(
            format!("the tailnet does not run: tailscaled says `{}`", plain(state)),
            "tailscale up",
        ),
        Tailnet::Runs { place, tun, .. } => {
            let mode = match tun {
                Some(true) => "with a network device",
                Some(false) => "in userspace mode",
                None => "and does not say in which mode",
            };
            good(format!("tailscaled runs at {place}, {mode}"))
        }
    }
}

/// An engine on the loopback of a userspace tailscaled.
fn exposed(at: SocketAddr, name: &str, tun: Option<bool>) -> Line {
    let sure = if tun.is_none() { " (or may run: it does not say)" } else { "" };
    bad(
        format!(
            "{name} at {at} can be reached past every rule: tailscaled runs in userspace \
             mode{sure} and hands port {} of this node on to 127.0.0.1",
            at.port()
        ),
        "give tailscaled a network device (in a container: TS_USERSPACE=false, --device \
         /dev/net/tun, --cap-add NET_ADMIN),\nor run the engine in a network namespace of its \
         own and name it in `local`",
    )
}

/// A forward of `tailscale serve` or Funnel that ends at a port of ours.
fn forwarded(facts: &Facts, engines: &[(SocketAddr, &str)], target: &ServeTarget) -> Option<Line> {
    let port = local_port(&target.to)?;
    let on = |at: &SocketAddr| at.port() == port;
    let apps = facts.serving.as_ref().unwrap_or(&facts.apps);
    let what = if facts.admin.as_ref().is_some_and(on) {
        "tailherd's status and metrics"
    } else if apps.iter().any(on) || facts.apps.iter().any(on) {
        if facts.trust_serve && !target.funnel {
            return Some(note(
                format!(
                    "`tailscale serve` port {} leads to programs' own door, and `trustServe` \
                     takes whoever comes by it for a program here",
                    target.port
                ),
                "nothing, if that is meant",
            ));
        }
        "the door of this machine's own programs"
    } else if engines.iter().any(|(at, _)| on(at)) {
        "an engine, past every rule"
    } else if facts.mesh.contains(&port) {
        "the mesh port"
    } else {
        return None;
    };
    let (who, command) = if target.funnel {
        ("Funnel opens to the whole internet", "tailscale funnel reset")
    } else {
        ("`tailscale serve` opens to the tailnet", "tailscale serve reset")
    };
    Some(bad(
        format!("{who}, on port {}: {what} ({})", target.port, plain(&target.to)),
        &format!("{command}   (tailscale serve status shows each)"),
    ))
}

/// The port of a target on this machine: `127.0.0.1:1`, `http://localhost:1/x`, `1`.
fn local_port(to: &str) -> Option<u16> {
    let rest = to.split_once("://").map_or(to, |(_, rest)| rest);
    let rest = rest.split('/').next()?;
    let (host, port) = rest.rsplit_once(':').unwrap_or(("localhost", rest));
    let host = host.trim_matches(['[', ']']);
    let local = host == "localhost"
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified());
    if local { port.parse().ok() } else { None }
}

/// Whether programs here find the mesh where they look.
fn judge_apps(facts: &Facts) -> Vec<Line> {
    let there = loopback(OLLAMA);
    let holder = facts.at.iter().find(|(at, _)| *at == there).map(|(_, found)| found);
    let wanted = facts.apps.contains(&there);
    let served = facts.serving.as_ref().is_some_and(|at| at.contains(&there));
    let mut lines = Vec::new();
    match &facts.serving {
        Some(at) if !at.is_empty() => {
            let at: Vec<String> = at.iter().map(ToString::to_string).collect();
            lines.push(good(format!("tailherd serves programs here at {}", at.join(", "))));
        }
        Some(_) => {}
        None => lines.push(note("no tailherd runs here", "tailherd serve")),
    }
    let (true, false, Some(found)) = (wanted, served, holder) else { return lines };
    lines.push(match found {
        Found::Engine(name) => bad(
            format!("{name} holds {there}, where programs look: they do not see the mesh"),
            "move it: sudo systemctl edit ollama, add\n  [Service]\n  \
             Environment=OLLAMA_HOST=127.0.0.1:11435\nthen: sudo systemctl restart ollama tailherd",
        ),
        Found::Tailherd => bad(
            format!("another tailherd, not the one asked for here, holds {there}"),
            "tailherd --config FILE doctor, with the file it runs with; or stop one of them",
        ),
        Found::Other => bad(
            format!("another program holds {there}, where programs look for Ollama"),
            "ss -ltnp sport = :11434   (shows which one)",
        ),
    });
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine on which all is well.
    fn well() -> Facts {
        Facts {
            apps: vec![loopback(OLLAMA)],
            admin: Some(loopback(11437)),
            mesh: vec![11436, OLLAMA],
            trust_serve: false,
            tailnet: runs(Some(true), Some(true), vec![]),
            serving: Some(vec![loopback(OLLAMA)]),
            status: Value::Null,
            at: vec![
                (loopback(11435), Found::Engine("Ollama 0.32.3".to_owned())),
                (loopback(OLLAMA), Found::Tailherd),
            ],
            open: vec![22],
        }
    }

    fn runs(tun: Option<bool>, shared: Option<bool>, serve: Vec<ServeTarget>) -> Tailnet {
        Tailnet::Runs { place: "/s".to_owned(), tun, shared, serve: Ok(serve) }
    }

    fn forward(port: u16, to: &str, funnel: bool) -> Tailnet {
        runs(Some(true), None, vec![ServeTarget { port, to: to.to_owned(), funnel }])
    }

    /// The bad lines, each with what mends it.
    fn wrong(facts: &Facts) -> Vec<String> {
        let bad = judge(facts).into_iter().filter(|l| l.level == Level::Bad);
        bad.map(|l| format!("{} -> {}", l.text, l.mend.unwrap())).collect()
    }

    #[track_caller]
    fn finds(facts: &Facts, words: &[&str]) {
        let wrong = wrong(facts);
        let [one] = wrong.as_slice() else { panic!("{wrong:?}") };
        for word in words {
            assert!(one.contains(word), "{word}: {one}");
        }
    }

    #[test]
    fn a_machine_that_is_well_has_nothing_to_mend() {
        assert_eq!(wrong(&well()), Vec::<String>::new());
        let alone = Tailnet::None { why: "no socket".to_owned(), wanted: false };
        assert_eq!(wrong(&Facts { tailnet: alone, at: vec![], ..well() }), Vec::<String>::new());
    }

    #[test]
    fn an_engine_on_a_userspace_tailscaleds_loopback_is_bad() {
        for (tun, shared) in [(Some(false), Some(true)), (Some(false), None), (None, None)] {
            let facts = Facts { tailnet: runs(tun, shared, vec![]), ..well() };
            finds(&facts, &["127.0.0.1:11435", "past every rule", "TS_USERSPACE=false"]);
        }
        let apart = Facts { tailnet: runs(Some(false), Some(false), vec![]), ..well() };
        assert!(wrong(&apart).is_empty());
    }

    #[test]
    fn a_forward_to_our_ports_is_bad() {
        for (to, words) in [
            ("127.0.0.1:11434", "own programs"),
            ("http://127.0.0.1:11434", "own programs"),
            ("http://localhost:11435/v1", "an engine"),
            ("http://[::1]:11437", "status and metrics"),
            ("127.0.0.1:11436", "the mesh port"),
        ] {
            let facts = Facts { tailnet: forward(443, to, false), ..well() };
            finds(&facts, &["tailscale serve reset", "443", words]);
            let facts = Facts { tailnet: forward(443, to, true), ..well() };
            finds(&facts, &["whole internet", "tailscale funnel reset", words]);
        }
        for to in ["127.0.0.1:3000", "http://192.168.1.2:11434", "nonsense"] {
            assert!(wrong(&Facts { tailnet: forward(443, to, true), ..well() }).is_empty(), "{to}");
        }
        let meant = |funnel| Facts {
            tailnet: forward(443, "127.0.0.1:11434", funnel),
            trust_serve: true,
            ..well()
        };
        assert!(wrong(&meant(false)).is_empty());
        finds(&meant(true), &["Funnel"]);
    }

    #[test]
    fn whoever_holds_ollamas_port_is_named() {
        let held = |found: Found, serving| {
            let mut at = well().at;
            at[1].1 = found;
            Facts { at, serving, ..well() }
        };
        let second = Some(vec![loopback(11534)]);
        let ollama = || Found::Engine("Ollama 0.32.3".to_owned());
        finds(&held(ollama(), second.clone()), &["Ollama 0.32.3 holds", "OLLAMA_HOST"]);
        finds(&held(ollama(), None), &["Ollama 0.32.3 holds", "systemctl edit ollama"]);
        finds(&held(Found::Other, second), &["another program", "ss -ltnp"]);
        finds(&held(Found::Tailherd, None), &["another tailherd"]);
        // On a node whose configuration leaves that port alone it is nobody's business.
        let elsewhere = Facts { apps: vec![loopback(8888)], ..held(ollama(), None) };
        assert!(wrong(&elsewhere).is_empty());
    }

    #[test]
    fn a_tailscaled_that_cannot_be_used_is_named_with_what_mends_it() {
        let with = |tailnet| Facts { tailnet, ..well() };
        let text = || "why".to_owned();
        finds(&with(Tailnet::None { why: text(), wanted: true }), &["tailscaled"]);
        let uid = Some(1001);
        finds(&with(Tailnet::Untrusted { why: text(), uid }), &["not believed", "socketUid: 1001"]);
        finds(&with(Tailnet::Untrusted { why: text(), uid: None }), &["chmod o-w"]);
        finds(&with(Tailnet::Silent(text())), &["restart tailscaled"]);
        finds(&with(Tailnet::Stopped("NeedsLogin".to_owned())), &["NeedsLogin", "tailscale up"]);
    }

    #[test]
    fn the_kernels_table_says_what_is_open_to_all() {
        let line = |at: &str, state: &str| format!("   0: {at} 00000000:0000 {state} 0:0 0 0 0");
        assert_eq!(listens_everywhere(&line("00000000:2CAA", "0A")), Some(11434));
        let six = "00000000000000000000000000000000:2CAB";
        assert_eq!(listens_everywhere(&line(six, "0A")), Some(11435));
        assert_eq!(listens_everywhere(&line("0100007F:2CAA", "0A")), None);
        assert_eq!(listens_everywhere(&line("00000000:2CAA", "01")), None);
        let open = Facts { open: vec![11435], ..well() };
        let said = judge(&open).into_iter().any(|l| l.text.contains("every network"));
        assert!(said && wrong(&open).is_empty());
    }
}
