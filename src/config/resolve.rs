//! From what was written to what the program needs.
//!
//! Every free text has its variables filled in, then is read; a value that cannot be is
//! refused with its path, and the caller finds the place.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::env::Env;
use super::error::{Step, Wrong};
use super::expand::expand;
use super::forms::{Size, WordOr};
use super::{chains, later, openclaw, read, run, written};
use crate::types::{Class, NodeName, Who};

/// Fills everything in.
pub(super) fn resolve(w: &written::Config, env: &dyn Env) -> Result<run::Config, Wrong> {
    let root = At { env, up: None };
    let mut warnings = later::warnings(w);
    let listen = root.key("listen").all(&w.listen, read::listen)?;
    let agents = openclaw::agents(&w.agents, &mut warnings);
    let models = models(&root.key("models"), &w.models, &mut warnings)?;
    let defaults = written::Config::default();
    Ok(run::Config {
        listen_is_default: w.listen == defaults.listen,
        listen,
        allowed_hosts: root.key("allowedHosts").all(&w.allowed_hosts, read::host)?,
        origins: root.key("origins").all(&w.origins, read::origin)?,
        local: match w.local.set() {
            None => None,
            Some(list) => Some(root.key("local").each(list, local)?),
        },
        preload: root.key("preload").all(&w.preload, read::model)?,
        keep_alive: root.key("keepAlive").maybe(w.keep_alive.as_ref(), read::keep_alive)?,
        max_remote_keep_alive: root
            .key("maxRemoteKeepAlive")
            .one(&w.max_remote_keep_alive, read::duration)?,
        offline: w.offline,
        tailnet: tailnet(&root.key("tailnet"), &w.tailnet)?,
        ollamas: ollamas(&root.key("ollamas"), &w.ollamas)?,
        dns_names: root.key("dns").key("names").all(&w.dns.names, read::host)?,
        lan: lan(&root.key("lan"), &w.lan)?,
        access: match w.access.set() {
            None => None,
            Some(rules) => Some(root.key("access").each(rules, access)?),
        },
        send_to: match w.send_to.set() {
            None => None,
            Some(rules) => Some(root.key("sendTo").each(rules, send)?),
        },
        new_nodes: match w.new_nodes {
            written::NewNodes::Auto => run::NewNodes::Auto,
            written::NewNodes::Allow => run::NewNodes::Allow,
            written::NewNodes::Hold => run::NewNodes::Hold,
        },
        trust_serve: w.trust_serve,
        share: share(&root.key("share"), &w.share)?,
        prefer_local: match w.prefer_local {
            f if (0.01..=100.0).contains(&f) => f,
            f => {
                let what = format!("{f} is not possible: expected a factor from 0.01 to 100");
                return Err(root.key("preferLocal").wrong(what));
            }
        },
        variants: match w.variants {
            written::Variants::Strict => run::Variants::Strict,
            written::Variants::Merge => run::Variants::Merge,
        },
        agents,
        models,
        aliases: aliases(&root.key("aliases"), w)?,
        priority: root.key("priority").each(&w.priority, priority)?,
        failover: failover(&root.key("failover"), &w.failover)?,
        limits: limits(&root.key("limits"), &w.limits)?,
        admin_listen: root.key("admin").key("listen").maybe(w.admin.listen.as_ref(), admin)?,
        prometheus_file: root
            .key("admin")
            .key("prometheusFile")
            .maybe(w.admin.prometheus_file.as_ref(), read::path)?,
        drain: root.key("drain").one(&w.drain, read::duration)?,
        log: log(&root.key("log"), &w.log)?,
        origin: run::Origin::default(),
        warnings,
    })
}

/// A place in the configuration: a chain of steps that lives on the stack.
struct At<'a> {
    env: &'a dyn Env,
    up: Option<(&'a At<'a>, Link<'a>)>,
}

#[derive(Clone, Copy)]
enum Link<'a> {
    Key(&'a str),
    Item(usize),
}

impl At<'_> {
    fn key<'b>(&'b self, key: &'b str) -> At<'b> {
        At { env: self.env, up: Some((self, Link::Key(key))) }
    }

    fn item(&self, at: usize) -> At<'_> {
        At { env: self.env, up: Some((self, Link::Item(at))) }
    }

    fn path(&self) -> Vec<Step> {
        let Some((up, link)) = &self.up else { return Vec::new() };
        let mut path = up.path();
        path.push(match link {
            Link::Key(key) => Step::Key((*key).to_owned()),
            Link::Item(at) => Step::Item(*at),
        });
        path
    }

    fn wrong(&self, what: impl Into<String>) -> Wrong {
        Wrong { path: self.path(), what: what.into(), nearest: None }
    }

    fn text(&self, text: &str) -> Result<String, Wrong> {
        expand(text, self.env).map_err(|what| self.wrong(what))
    }

    /// One text, read.
    fn one<T>(&self, text: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<T, Wrong> {
        read(&self.text(text)?).map_err(|what| self.wrong(what))
    }

    /// One text that may be missing.
    fn maybe<T>(
        &self,
        text: Option<&String>,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Wrong> {
        text.map(|text| self.one(text, read)).transpose()
    }

    /// A list of texts.
    fn all<T>(
        &self,
        texts: &[String],
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, Wrong> {
        self.each(texts, |at, text| at.one(text, &read))
    }

    /// A list of anything.
    fn each<W, T>(
        &self,
        list: &[W],
        read: impl Fn(&At<'_>, &W) -> Result<T, Wrong>,
    ) -> Result<Vec<T>, Wrong> {
        list.iter().enumerate().map(|(i, w)| read(&self.item(i), w)).collect()
    }

    /// A number that has to be above zero.
    fn positive<T: PartialEq + Default>(&self, number: T) -> Result<T, Wrong> {
        if number == T::default() {
            return Err(self.wrong("0 is not possible: expected at least 1"));
        }
        Ok(number)
    }

    fn positive_or_none<T: PartialEq + Default>(&self, n: Option<T>) -> Result<Option<T>, Wrong> {
        n.map(|n| self.positive(n)).transpose()
    }

    /// A list in which something has to stand.
    fn filled<T>(&self, list: Vec<T>, of: &str) -> Result<Vec<T>, Wrong> {
        if list.is_empty() {
            return Err(self.wrong(format!("an empty list is not possible: expected {of}")));
        }
        Ok(list)
    }
}

fn who(text: &str) -> Result<Who, String> {
    text.parse::<Who>().map_err(|e| e.to_string())
}

fn admin(text: &str) -> Result<SocketAddr, String> {
    read::address(text)
}

fn local(at: &At<'_>, w: &written::LocalEngine) -> Result<run::LocalEngine, Wrong> {
    Ok(run::LocalEngine {
        server: at.key("baseUrl").one(&w.base_url, read::server)?,
        slots: at.key("slots").positive_or_none(w.slots)?,
        context_length: at.key("contextLength").positive_or_none(w.context_length)?,
        user: w.user.as_ref().map(|user| at.key("user").text(user)).transpose()?,
    })
}

fn tailnet(at: &At<'_>, w: &written::Tailnet) -> Result<run::Tailnet, Wrong> {
    let ports = at.key("ports");
    for (i, port) in w.ports.iter().enumerate() {
        ports.item(i).positive(*port)?;
        if w.ports[..i].contains(port) {
            return Err(ports.item(i).wrong(format!("port {port} stands twice")));
        }
    }
    let socket = at.key("socket").text(&w.socket)?;
    Ok(run::Tailnet {
        enabled: w.enabled.set().copied(),
        socket: match socket.as_str() {
            "auto" => None,
            path => Some(
                read::path(path)
                    .map_err(|e| at.key("socket").wrong(format!("{e}; or \"auto\"")))?,
            ),
        },
        socket_uid: w.socket_uid,
        ports: ports.filled(w.ports.clone(), "at least one port")?,
        peers: match w.peers.set() {
            None => None,
            Some(list) => Some(at.key("peers").all(list, who)?),
        },
        bare_port: at.key("barePort").positive(w.bare_port)?,
        capability: at.key("capability").one(&w.capability, read::capability)?,
    })
}

fn ollamas(at: &At<'_>, list: &[written::Ollama]) -> Result<Vec<run::ConfiguredServer>, Wrong> {
    let mut servers: Vec<run::ConfiguredServer> = Vec::with_capacity(list.len());
    for (i, w) in list.iter().enumerate() {
        let at = at.item(i);
        let name = at.key("name").one(&w.name, node_name)?;
        if servers.iter().any(|s| s.name == name) {
            return Err(at.key("name").wrong(format!("the name `{name}` stands twice")));
        }
        let server = at.key("url").one(&w.url, |text| match text.trim() {
            "" => Err("no server: expected one such as http://192.168.1.100:11434".to_owned()),
            text => read::server(text),
        })?;
        servers.push(run::ConfiguredServer { name, server });
    }
    Ok(servers)
}

fn node_name(text: &str) -> Result<String, String> {
    match NodeName::parse(text) {
        Some(name) if name.is_self() => {
            Err("`self` always means this node: give the server another name".to_owned())
        }
        Some(name) => Ok(name.to_string()),
        None => Err(format!(
            "`{text}` cannot be a name: expected letters, digits, `-`, `_` and `.`, at most 63"
        )),
    }
}

fn lan(at: &At<'_>, w: &written::Lan) -> Result<run::Lan, Wrong> {
    let hours = |hours: u32| Duration::from_secs(u64::from(hours) * 3600);
    // As long as a hundred years are enough, no sum of it can overflow.
    let most = |at: At<'_>, n: u32, max: u32| match at.positive(n)? {
        n if n > max => Err(at.wrong(format!("{n} is too long: at most {max}"))),
        n => Ok(n),
    };
    Ok(run::Lan {
        enabled: w.enabled,
        mdns: w.mdns,
        networks: match &w.networks {
            WordOr::Word(written::NetworksWord::Known) => run::LanNetworks::Known,
            WordOr::Word(written::NetworksWord::Any) => run::LanNetworks::Any,
            WordOr::Value(ids) => run::LanNetworks::Ids(at.key("networks").all(ids, |id| {
                if id.is_empty() || !id.chars().all(|c| c.is_ascii_hexdigit()) {
                    return Err(format!("`{id}` is no network id (`tailherd doctor` shows them)"));
                }
                Ok(id.to_ascii_lowercase())
            })?),
        },
        trust: hours(most(at.key("trustDays"), w.trust_days, 36_500)? * 24),
        grant: hours(most(at.key("grantHours"), w.grant_hours, 876_000)?),
        when_logged_out: w.when_logged_out,
        when_stopped: w.when_stopped,
    })
}

fn access(at: &At<'_>, w: &written::AccessRule) -> Result<run::AccessRule, Wrong> {
    Ok(run::AccessRule {
        from: at.key("from").filled(at.key("from").all(&w.from, who)?, "whom the rule means")?,
        verbs: w.verbs.iter().copied().collect(),
        models: at.key("models").all(&w.models, read::pattern)?,
        max_inflight: at.key("maxInflight").positive_or_none(w.max_inflight)?,
        max_num_ctx: at.key("maxNumCtx").positive_or_none(w.max_num_ctx)?,
        max_predict: at.key("maxPredict").positive_or_none(w.max_predict)?,
        may_load: w.may_load,
    })
}

fn send(at: &At<'_>, w: &written::SendRule) -> Result<run::SendRule, Wrong> {
    Ok(run::SendRule {
        to: at.key("to").filled(at.key("to").all(&w.to, who)?, "whom the rule means")?,
        models: at.key("models").all(&w.models, read::pattern)?,
        rich: w.kinds.contains(&written::Kind::Rich),
        bare: w.kinds.contains(&written::Kind::Bare),
    })
}

fn share(at: &At<'_>, w: &written::Share) -> Result<run::Share, Wrong> {
    Ok(run::Share {
        when: match w.when {
            written::ShareWhen::Auto => run::ShareWhen::Auto,
            written::ShareWhen::All => run::ShareWhen::All,
            written::ShareWhen::Mine => run::ShareWhen::Mine,
            written::ShareWhen::None => run::ShareWhen::None,
            written::ShareWhen::Idle => run::ShareWhen::Idle,
        },
        idle_after: at.key("idleAfter").one(&w.idle_after, read::duration)?,
        quiet: at.key("quiet").all(&w.quiet, read::hours)?,
        inflight: w.inflight,
        loads: match w.loads {
            written::ShareLoads::Fit => run::ShareLoads::Fit,
            written::ShareLoads::Any => run::ShareLoads::Any,
            written::ShareLoads::None => run::ShareLoads::None,
        },
        metered: w.metered,
        self_measure: w.self_measure,
    })
}

fn models(
    at: &At<'_>,
    w: &written::Models,
    warnings: &mut Vec<String>,
) -> Result<run::Models, Wrong> {
    let (mut providers, mut off) = (BTreeMap::new(), Vec::new());
    for (name, provider) in &w.providers {
        // `ollama/x` is this mesh, whatever a block pasted from openclaw.json says of it.
        if name == chains::MESH {
            continue;
        }
        match openclaw::provider(name, provider, at.env, warnings) {
            Some(provider) => drop(providers.insert(name.clone(), Arc::new(provider))),
            None => off.push(name.clone()),
        }
    }
    Ok(run::Models {
        replace: w.mode == written::Mode::Replace,
        show: at.key("show").all(&w.show, read::pattern)?,
        hide: at.key("hide").all(&w.hide, read::pattern)?,
        providers,
        off,
    })
}

/// The most particular first: whole names, then patterns, the longer ones before.
fn aliases(at: &At<'_>, w: &written::Config) -> Result<Vec<(String, String)>, Wrong> {
    let mut aliases = Vec::with_capacity(w.aliases.len());
    for (name, target) in &w.aliases {
        let at = at.key(name);
        read::pattern(name).map_err(|what| at.wrong(what))?;
        if name.matches('*').count() > 1 {
            return Err(at.wrong("at most one `*` may stand in the name of an alias"));
        }
        let target = at.text(target)?;
        let hosted =
            target.split_once('/').is_some_and(|(p, _)| w.models.providers.contains_key(p));
        if !hosted {
            let model = target.strip_prefix("ollama/").unwrap_or(&target);
            read::model(model).map_err(|what| at.wrong(what))?;
        }
        aliases.push((name.clone(), target));
    }
    aliases.sort_by_key(|(name, _)| (name.contains('*'), usize::MAX - name.len()));
    Ok(aliases)
}

fn priority(at: &At<'_>, w: &written::PriorityRule) -> Result<run::PriorityRule, Wrong> {
    let wanted = at.key("match");
    if w.r#match == written::Match::default() {
        return Err(wanted.wrong("matches every request: expected path, model or agent"));
    }
    Ok(run::PriorityRule {
        path: wanted.key("path").maybe(w.r#match.path.as_ref(), |path| {
            if path.starts_with('/') {
                Ok(path.to_owned())
            } else {
                Err(format!("`{path}`: a path has to begin with `/`"))
            }
        })?,
        model: wanted.key("model").maybe(w.r#match.model.as_ref(), read::pattern)?,
        agent: wanted.key("agent").maybe(w.r#match.agent.as_ref(), |name| Ok(name.to_owned()))?,
        class: match w.class {
            written::PriorityClass::Interactive => Class::Interactive,
            written::PriorityClass::Batch => Class::Batch,
        },
    })
}

fn failover(at: &At<'_>, w: &written::Failover) -> Result<run::Failover, Wrong> {
    let attempts = at.key("maxAttempts");
    if attempts.positive(w.max_attempts)? > 32 {
        return Err(attempts.wrong("more than 32 tries help nobody"));
    }
    let cooldown = at.key("cooldown");
    Ok(run::Failover {
        max_attempts: w.max_attempts,
        cooldown: cooldown
            .filled(cooldown.all(&w.cooldown, read::duration)?, "at least one duration")?,
        billing_cooldown: at.key("billingCooldown").one(&w.billing_cooldown, read::duration)?,
    })
}

fn limits(at: &At<'_>, w: &written::Limits) -> Result<run::Limits, Wrong> {
    let size = |at: At<'_>, size: &Size| match size {
        Size::Bytes(n) => at.one(&n.to_string(), read::size),
        Size::Text(text) => at.one(text, read::size),
    };
    Ok(run::Limits {
        body_bytes: size(at.key("bodyBytes"), &w.body_bytes)?,
        replay_bytes: size(at.key("replayBytes"), &w.replay_bytes)?,
        replay_total: size(at.key("replayTotal"), &w.replay_total)?,
        inflight: at.key("inflight").positive(w.inflight)?,
        queue: at.key("queue").positive(w.queue)?,
        connections: at.key("connections").positive(w.connections)?,
    })
}

fn log(at: &At<'_>, w: &written::Log) -> Result<run::Log, Wrong> {
    let at = at.key("level");
    let level = read::level(&at.text(&w.level)?)
        .map_err(|(what, nearest)| Wrong { nearest, ..at.wrong(what) })?;
    Ok(run::Log { level, json: w.format == written::LogFormat::Json })
}
