//! `tailherd access`: who may use this node, and to whom its prompts go.
//!
//! Made from the configuration and this machine's tailscaled by the same rules as the running
//! program, so it answers before the program is started as well.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::bail;

use super::table::{Column, Side, table};
use super::tailnet::{self, NoTailnet};
use super::{Context, Failure};
use crate::config::{self, Config};
use crate::discover::{self, Known};
use crate::net::localapi::LocalApi;
use crate::net::{TailnetNode, TailnetView};
use crate::trust::{Access, Granted, Limits, SendTo, Tailnet};
use crate::types::{Caller, CallerKind, NodeId, NodeName, Principal, Verb, Who};

/// Most nodes whose grants are asked for.
const MOST_ASKED: usize = 256;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Say what one caller may do, and by which rule: a node's name, or a word of a rule
    /// (`user:a@b`, `tag:x`, `local`, `uid:1000`).
    #[arg(long = "as", value_name = "WHO")]
    who: Option<String>,
}

pub(super) async fn run(args: Args, context: Context<'_>) -> Result<(), Failure> {
    let config = context.load()?;
    let seen = match tailnet::look(&config).await {
        Ok((api, view)) => Ok(Seen::ask(api, view).await),
        Err(why) => Err(why),
    };
    let facts = seen.as_ref().map_or_else(|_| Tailnet::default(), |s| discover::facts(&s.view));
    let access = Access::resolve(&config, &facts);
    let text = match &args.who {
        Some(word) => one(&access, &facts, seen.as_ref().ok(), word)?,
        None => {
            let known = seen.as_ref().ok().and_then(|s| {
                Known::peek(&config::state_dir(&*context.env), s.view.control.as_ref()?)
            });
            all(&config, &access, &facts, seen.as_ref(), known.as_ref())
        }
    };
    write!(context.out, "{text}")?;
    Ok(())
}

/// The tailnet, with the grants each node has here.
struct Seen {
    view: TailnetView,
    grants: Vec<Arc<[String]>>,
}

impl Seen {
    /// Only WhoIs names grants, so each node is asked for.
    async fn ask(api: LocalApi, view: TailnetView) -> Seen {
        let mut grants = Vec::with_capacity(view.peers.len());
        for (n, node) in view.peers.iter().enumerate() {
            let of = match node.addrs.first() {
                Some(ip) if n < MOST_ASKED => api.whois(SocketAddr::new(*ip, 1)).await.ok(),
                _ => None,
            };
            grants.push(of.flatten().map_or_else(|| Arc::from([]), |who| Arc::from(who.caps)));
        }
        Seen { view, grants }
    }

    fn callers(&self) -> impl Iterator<Item = (&TailnetNode, Caller)> {
        self.view.peers.iter().zip(&self.grants).map(|(n, grants)| (n, caller(n, grants.clone())))
    }
}

fn caller(node: &TailnetNode, grants: Arc<[String]>) -> Caller {
    let kind = CallerKind::Node {
        id: node.id.clone(),
        name: node.name.clone(),
        dns: node.dns.as_str().into(),
        principal: node.principal.clone(),
        shared: node.shared,
        grants,
    };
    Caller { kind, addr: None, lan: None }
}

fn all(
    config: &Config,
    access: &Access,
    facts: &Tailnet,
    seen: Result<&Seen, &NoTailnet>,
    known: Option<&Known>,
) -> String {
    let me = facts.me.as_ref();
    let name = me.map_or_else(|| "this machine".to_owned(), |me| me.name.to_string());
    let mut out = format!("Who may use {name}\n");
    out.push_str("  programs on this machine: everything rules do not keep for others\n");
    let left = |heading| Column(heading, Side::Left);
    let rules: Vec<Vec<String>> = access
        .rules()
        .map(|r| {
            vec![
                r.name.clone(),
                r.from.iter().map(Who::to_string).collect::<Vec<_>>().join(" "),
                words(r.verbs.iter()),
                r.models.join(" "),
                limits(r.limits),
            ]
        })
        .collect();
    let heads = [left("RULE"), left("FROM"), left("MAY"), left("MODELS"), left("LIMITS")];
    out.push_str(&indent(&table(&heads, &rules)));
    let send_to = SendTo::resolve(config, facts);
    match seen {
        Err(why) => out.push_str(&format!("\nNo node is known: {why}\n")),
        Ok(seen) => {
            let rows: Vec<Vec<String>> = seen
                .callers()
                .map(|(node, caller)| {
                    let granted = access.of(&caller);
                    let by: Vec<&str> = granted.rules().map(|r| r.name.as_str()).collect();
                    let may = words(granted.verbs().iter());
                    row(node, [may, or_dash(&by.join(", "))])
                })
                .collect();
            out.push('\n');
            let heads = [left("NODE"), left("OWNER"), left("MAY"), left("BY")];
            out.push_str(&indent(&table(&heads, &rows)));
        }
    }
    out.push_str(&format!("\nTo whom prompts of {name} go\n"));
    let rules: Vec<Vec<String>> = send_to
        .rules()
        .map(|(name, r)| {
            let to: Vec<String> = r.to.iter().map(Who::to_string).collect();
            let kinds = [(r.rich, "rich"), (r.bare, "bare")];
            let kinds: Vec<&str> = kinds.iter().filter(|k| k.0).map(|k| k.1).collect();
            vec![name.to_owned(), to.join(" "), r.models.join(" "), kinds.join(" ")]
        })
        .collect();
    let heads = [left("RULE"), left("TO"), left("MODELS"), left("KINDS")];
    out.push_str(&indent(&table(&heads, &rules)));
    if let Ok(seen) = seen {
        let rows: Vec<Vec<String>> = seen
            .view
            .peers
            .iter()
            .map(|node| row(node, [sends(config, &send_to, known, node)]))
            .collect();
        out.push('\n');
        let heads = [left("NODE"), left("OWNER"), left("PROMPTS")];
        out.push_str(&indent(&table(&heads, &rows)));
    }
    for server in &config.ollamas {
        let at = format!("{}:{}", server.server.host, server.server.port);
        out.push_str(&format!("  {} ({at}): yes, named in `ollamas`\n", server.name));
    }
    out
}

fn sends(config: &Config, send_to: &SendTo, known: Option<&Known>, node: &TailnetNode) -> String {
    match send_to.allows(&discover::subject(node)) {
        Err(why) => format!("no: {why}"),
        Ok(_) if known.is_some_and(|k| discover::waits(node, send_to, k, config.new_nodes)) => {
            format!("no: waits for: tailherd trust accept {}", node.name)
        }
        Ok(grant) => format!("yes: {}", grant.by.join(", ")),
    }
}

fn row<const N: usize>(node: &TailnetNode, rest: [String; N]) -> Vec<String> {
    let shared = if node.shared { " (shared in)" } else { "" };
    let mut row = vec![node.name.to_string(), format!("{}{shared}", node.principal)];
    row.extend(rest);
    row
}

/// What one caller may do, verb by verb.
fn one(
    access: &Access,
    facts: &Tailnet,
    seen: Option<&Seen>,
    word: &str,
) -> anyhow::Result<String> {
    let (shown, caller) = resolve(facts, seen, word)?;
    let granted = access.of(&caller);
    let mut out = format!("{shown}\n");
    for verb in Verb::ALL {
        let line = if granted.has(verb) {
            format!("yes  {}", by(&granted, verb))
        } else {
            format!("no   {}", granted.why_not(verb, None))
        };
        out.push_str(&format!("  {:<8} {line}\n", verb.label()));
    }
    Ok(out)
}

fn by(granted: &Granted, verb: Verb) -> String {
    let rules: Vec<String> = granted
        .rules()
        .filter(|r| r.verbs.has(verb))
        .map(|r| {
            let limits =
                if granted.is_own() { Limits { max_inflight: None, ..r.limits } } else { r.limits };
            format!("{}: models {}; {}", r.name, r.models.join(" "), self::limits(limits))
        })
        .collect();
    if rules.is_empty() {
        "a program on this machine; no rule keeps it for others".to_owned()
    } else {
        rules.join("; ")
    }
}

/// The caller a word means, and how to name it.
fn resolve(facts: &Tailnet, seen: Option<&Seen>, word: &str) -> anyhow::Result<(String, Caller)> {
    let who = word.parse::<Who>().ok();
    match &who {
        Some(Who::Local) => return Ok((word.to_owned(), Caller::local(None, None))),
        Some(Who::Uid(uid)) => return Ok((word.to_owned(), Caller::local(Some(*uid), None))),
        _ => {}
    }
    let Some((seen, me)) = seen.zip(facts.me.as_ref()) else {
        bail!("no tailnet is known here, so only `local` and `uid:N` can be asked for");
    };
    let named = Who::Node(word.into());
    let means = |node: &TailnetNode| {
        let subject = discover::subject(node);
        // A guest's short name is no name in a rule, but a person may ask for it here.
        facts.means(who.as_ref().unwrap_or(&named), &subject)
            || (who.is_none() && node.name.as_str().eq_ignore_ascii_case(word))
    };
    if let Some((node, caller)) = seen.callers().find(|(node, _)| means(node)) {
        let guest = if node.shared { ", shared in from another tailnet" } else { "" };
        return Ok((format!("{} ({}{guest})", node.name, node.principal), caller));
    }
    // Nobody of that kind is in the tailnet now: somebody who would be.
    let control = me.principal.control().clone();
    let principal = match who {
        Some(Who::User(login)) => Principal::User { control: control.clone(), id: i64::MIN, login },
        Some(Who::Tag(tag)) => Principal::Tags { control: control.clone(), set: [tag].into() },
        _ => bail!("no node `{word}` is in the tailnet (tailherd status --all)"),
    };
    let id = NodeId::Tailnet { control, stable: "".into() };
    let node = TailnetNode::new(id, NodeName::from_dns("nobody-yet"), principal);
    Ok((format!("{word} (no such node is in the tailnet now)"), caller(&node, Arc::from([]))))
}

fn words(verbs: impl Iterator<Item = Verb>) -> String {
    or_dash(&verbs.map(Verb::label).collect::<Vec<_>>().join(" "))
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

fn limits(limits: Limits) -> String {
    let mut words = Vec::new();
    words.extend(limits.max_inflight.map(|n| format!("{n} at once (own devices: no bound)")));
    words.extend(limits.max_num_ctx.map(|n| format!("num_ctx up to {n}")));
    words.extend(limits.max_predict.map(|n| format!("num_predict up to {n}")));
    if !limits.may_load {
        words.push("only what is loaded".to_owned());
    }
    if words.is_empty() { "no bound".to_owned() } else { words.join(", ") }
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
