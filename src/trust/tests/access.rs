//! Who may do what, as tables.

use std::sync::Arc;

use super::super::*;
use crate::config::{AccessRule, SendRule};
use crate::types::{
    Caller, CallerKind, ControlId, ModelKey, NodeId, NodeName, Principal, Verb, Verbs, Who,
};

/// A node of the fleet, as LocalAPI would name it.
#[derive(Clone)]
struct Node {
    id: NodeId,
    name: NodeName,
    dns: String,
    principal: Principal,
    shared: bool,
}

const HOME: &str = "home";

fn control(name: &str) -> ControlId {
    ControlId(name.into())
}

fn person(name: &str, id: i64, login: &str) -> Node {
    node(name, HOME, Principal::User { control: control(HOME), id, login: login.into() })
}

fn tagged(name: &str, tags: &[&str]) -> Node {
    let set = tags.iter().map(|t| Arc::from(*t)).collect();
    node(name, HOME, Principal::Tags { control: control(HOME), set })
}

fn node(name: &str, coordinator: &str, principal: Principal) -> Node {
    let stable = format!("n-{name}").into();
    Node {
        id: NodeId::Tailnet { control: control(coordinator), stable },
        name: NodeName::from_dns(name),
        dns: format!("{name}.{coordinator}.ts.net."),
        principal,
        shared: false,
    }
}

/// The same node as another tailnet's guest: our coordinator lists it, with its own people.
fn shared(name: &str, id: i64, login: &str) -> Node {
    Node { shared: true, dns: format!("{name}.elsewhere.ts.net."), ..person(name, id, login) }
}

impl Node {
    fn subject(&self) -> Subject<'_> {
        Subject {
            id: &self.id,
            name: &self.name,
            dns: &self.dns,
            principal: &self.principal,
            shared: self.shared,
        }
    }

    fn caller(&self, grants: &[&str]) -> Caller {
        Caller {
            kind: CallerKind::Node {
                id: self.id.clone(),
                name: self.name.clone(),
                dns: self.dns.as_str().into(),
                principal: self.principal.clone(),
                shared: self.shared,
                grants: grants.iter().map(|g| (*g).to_owned()).collect(),
            },
            addr: None,
            lan: None,
        }
    }

    /// The tailnet as this node sees it.
    fn tailnet(&self, others: &[&Node]) -> Tailnet {
        let me = Me { principal: self.principal.clone(), name: self.name.clone() };
        Tailnet::new(Some(me), Some(others.iter().map(|o| o.subject())))
    }
}

fn rule(from: &[&str], verbs: &[Verb], models: &[&str]) -> AccessRule {
    AccessRule {
        from: words(from),
        verbs: verbs.iter().copied().collect(),
        models: models.iter().map(|m| (*m).to_owned()).collect(),
        max_inflight: None,
        max_num_ctx: None,
        max_predict: None,
        may_load: true,
    }
}

fn send(to: &[&str], models: &[&str], rich: bool, bare: bool) -> SendRule {
    SendRule { to: words(to), models: models.iter().map(|m| (*m).to_owned()).collect(), rich, bare }
}

fn words(words: &[&str]) -> Vec<Who> {
    words.iter().map(|w| w.parse().unwrap()).collect()
}

fn model(name: &str) -> ModelKey {
    ModelKey::parse(name).unwrap()
}

fn verbs(granted: &Granted) -> String {
    granted.verbs().iter().map(Verb::label).collect::<Vec<_>>().join(" ")
}

/// The fleet of the README: a laptop, a tagged GPU box, a tagged NAS, a colleague's desktop.
fn fleet() -> [Node; 4] {
    [
        person("macbook", 1, "me@x"),
        tagged("gpu", &["tag:ollama"]),
        tagged("nas", &["tag:ollama", "tag:nas"]),
        person("desk", 2, "dev@x"),
    ]
}

#[test]
fn with_no_file_the_fleet_uses_the_boxes_and_nobody_uses_each_other() {
    let [laptop, gpu, nas, desk] = fleet();
    let all = [&laptop, &gpu, &nas, &desk];
    #[track_caller]
    fn check(here: &Node, all: &[&Node], caller: &Node, may: &str, sends: bool) {
        let tailnet = here.tailnet(all);
        let got = verbs(&Access::new(None, &tailnet).of(&caller.caller(&[])));
        assert_eq!(got, may, "{} asks {}", caller.name, here.name);
        let to = SendTo::new(None, None, &tailnet).allows(&caller.subject());
        assert_eq!(to.is_ok(), sends, "{} sends to {}: {to:?}", here.name, caller.name);
    }
    check(&gpu, &all, &laptop, "list infer", false);
    check(&gpu, &all, &desk, "list infer", false);
    check(&gpu, &all, &nas, "list infer", true);
    check(&nas, &all, &laptop, "list infer", false);
    check(&laptop, &all, &gpu, "list infer", true);
    check(&laptop, &all, &nas, "list infer", true);
    check(&desk, &all, &gpu, "list infer", true);
    check(&laptop, &all, &desk, "", false);
    check(&desk, &all, &laptop, "", false);
    let second = person("studio", 1, "me@x");
    check(&laptop, &all, &second, "list infer observe load", true);
}

#[test]
fn tagged_counts_only_in_the_tailnet_of_one_person() {
    let me = person("macbook", 1, "me@x");
    let mine = person("studio", 1, "me@x");
    let lab = tagged("lab", &["tag:lab"]);
    let dev = person("desk", 2, "dev@x");
    let guest = shared("guest", 9, "guest@y");
    let sends = |t: &Tailnet| SendTo::new(None, None, t).allows(&lab.subject()).is_ok();
    let may = |t: &Tailnet| Access::new(None, t).of(&lab.caller(&[])).has(Verb::Infer);
    for (others, alone) in
        [(vec![&mine, &lab], true), (vec![&lab, &guest], true), (vec![&mine, &lab, &dev], false)]
    {
        let t = me.tailnet(&others);
        assert_eq!((sends(&t), may(&t)), (alone, alone));
    }
    // The peers are not known yet: nobody may be left out of the count.
    let early = Tailnet { people: None, ..me.tailnet(&[]) };
    assert!(!sends(&early) && !may(&early));
}

#[test]
fn two_tagged_nodes_have_no_owner_in_common() {
    let a = tagged("a", &["tag:a"]);
    let b = tagged("b", &["tag:b"]);
    let [one, two] = [person("x", 1, "x@x"), person("y", 2, "y@x")];
    let t = a.tailnet(&[&b, &one, &two]);
    let own = [rule(&["owner:self"], &Verb::ALL, &["*"])];
    assert_eq!(verbs(&Access::new(Some(&own), &t).of(&b.caller(&[]))), "");
    assert_eq!(verbs(&Access::new(Some(&own), &t).of(&a.caller(&[]))), "");
    assert_eq!(verbs(&Access::new(None, &t).of(&b.caller(&[]))), "");
    assert!(SendTo::new(None, None, &t).allows(&b.subject()).is_err());
    assert!(!t.is_own(&b.subject()));
    let by_word = [rule(&["tagged"], &[Verb::Infer], &["*"])];
    assert_eq!(verbs(&Access::new(Some(&by_word), &t).of(&b.caller(&[]))), "infer");
}

#[test]
fn the_same_number_at_another_coordinator_is_another_person() {
    let me = person("macbook", 1, "me@x");
    let stranger = Node {
        principal: Principal::User { control: control("other"), id: 1, login: "me@x".into() },
        ..node("macbook", "other", me.principal.clone())
    };
    let t = me.tailnet(&[]);
    for words in [&["owner:self"][..], &["user:me@x"], &["person"], &["*"], &["node:macbook"]] {
        let rules = [rule(words, &Verb::ALL, &["*"])];
        assert_eq!(verbs(&Access::new(Some(&rules), &t).of(&stranger.caller(&["{}"]))), "");
        let sends = [send(words, &["*"], true, true)];
        assert!(SendTo::new(Some(&sends), None, &t).allows(&stranger.subject()).is_err());
    }
}

#[test]
fn a_login_name_makes_no_owner() {
    let me = person("macbook", 1, "me@x");
    let namesake = person("evil", 7, "me@x");
    let t = me.tailnet(&[&namesake]);
    assert!(!t.is_own(&namesake.subject()));
    assert_eq!(verbs(&Access::new(None, &t).of(&namesake.caller(&[]))), "");
}

#[test]
fn a_sharee_is_nobody_until_a_rule_names_it() {
    let me = person("macbook", 1, "me@x");
    // Shared in by a second account of ours, and called like a device of ours.
    let guest = shared("desk", 1, "me@x");
    let t = me.tailnet(&[&guest]);
    #[track_caller]
    fn check(t: &Tailnet, guest: &Node, word: &str, named: bool) {
        let rules = [rule(&[word], &[Verb::Infer], &["*"])];
        let may = Access::new(Some(&rules), t).of(&guest.caller(&[])).has(Verb::Infer);
        let sends = [send(&[word], &["*"], true, true)];
        let gets = SendTo::new(Some(&sends), None, t).allows(&guest.subject()).is_ok();
        assert_eq!((may, gets), (named, named), "{word}");
    }
    for word in ["owner:self", "person", "tagged", "tag:ollama", "*", "node:desk", "local"] {
        check(&t, &guest, word, false);
    }
    for word in ["user:me@x", "user:ME@X", "node:desk.elsewhere.ts.net", "node:n-desk"] {
        check(&t, &guest, word, true);
    }
    assert_eq!(verbs(&Access::new(None, &t).of(&guest.caller(&["{}"]))), "", "a grant");
    assert!(SendTo::new(None, None, &t).allows(&guest.subject()).is_err());
}

#[test]
fn without_a_tailnet_no_node_is_anybody() {
    let some = person("desk", 1, "me@x");
    let rules = [rule(&["*"], &Verb::ALL, &["*"])];
    let access = Access::new(Some(&rules), &Tailnet::default());
    assert_eq!(verbs(&access.of(&some.caller(&["{}"]))), "");
    assert!(SendTo::new(None, None, &Tailnet::default()).allows(&some.subject()).is_err());
}

#[test]
fn grants_widen_access_and_never_where_prompts_go() {
    let me = person("macbook", 1, "me@x");
    let dev = person("desk", 2, "dev@x");
    let t = me.tailnet(&[&dev]);
    let access = Access::new(None, &t);
    let grant = r#"{"verbs":["infer"],"models":["qwen3:*"],"maxNumCtx":8192,"mayLoad":false}"#;
    let granted = access.of(&dev.caller(&[grant, "{\"role\":\"admin\"}"]));
    assert_eq!(verbs(&granted), "infer");
    let limits = granted.may(Verb::Infer, &model("qwen3:8b")).unwrap();
    assert_eq!(
        limits,
        Limits {
            max_inflight: Some(4),
            max_num_ctx: Some(8192),
            max_predict: None,
            may_load: false
        }
    );
    assert_eq!(granted.may(Verb::Infer, &model("llama3.3")), None);
    assert!(SendTo::new(None, None, &t).allows(&dev.subject()).is_err());
}

#[test]
fn what_any_rule_gives_is_given_within_the_widest_limits() {
    let me = person("macbook", 1, "me@x");
    let dev = person("desk", 2, "dev@x");
    let t = me.tailnet(&[&dev]);
    let rules = [
        AccessRule {
            max_inflight: Some(1),
            max_num_ctx: Some(4096),
            may_load: false,
            ..rule(&["person"], &[Verb::List, Verb::Infer], &["*"])
        },
        AccessRule {
            max_inflight: Some(2),
            max_predict: Some(100),
            ..rule(&["user:dev@x"], &[Verb::Infer], &["qwen*"])
        },
    ];
    let access = Access::new(Some(&rules), &t);
    let granted = access.of(&dev.caller(&[]));
    let limits = |name: &str| granted.may(Verb::Infer, &model(name)).unwrap();
    assert_eq!((limits("llama").max_inflight, limits("llama").max_num_ctx), (Some(1), Some(4096)));
    assert!(!limits("llama").may_load);
    assert_eq!((limits("qwen3").max_inflight, limits("qwen3").max_num_ctx), (Some(2), None));
    assert!(limits("qwen3").may_load);
    assert_eq!(granted.may(Verb::Load, &model("qwen3")), None);
    assert_eq!(granted.may_all(Verb::Infer).and_then(|l| l.max_inflight), Some(1));
    // An own device is never counted.
    let own = access.of(&person("studio", 1, "me@x").caller(&[]));
    assert_eq!(own.may(Verb::Infer, &model("x")).unwrap().max_inflight, None);
}

#[test]
fn a_glob_is_held_against_the_canonical_name() {
    let me = person("macbook", 1, "me@x");
    let dev = person("desk", 2, "dev@x");
    let t = me.tailnet(&[&dev]);
    #[track_caller]
    fn check(t: &Tailnet, dev: &Node, pattern: &str, name: &str, covered: bool) {
        let rules = [rule(&["person"], &[Verb::Infer], &[pattern])];
        let granted = Access::new(Some(&rules), t).of(&dev.caller(&[]));
        assert_eq!(granted.may(Verb::Infer, &model(name)).is_some(), covered, "{pattern} {name}");
    }
    check(&t, &dev, "qwen3", "QWEN3:latest", true);
    check(&t, &dev, "qwen3:*", "registry.ollama.ai/library/qwen3", true);
    check(&t, &dev, "qwen3", "qwen3:8b", false);
    check(&t, &dev, "qwen3:8b", "me/qwen3:8b", false);
    check(&t, &dev, "hf.co/*", "hf.co/a/b", true);
    check(&t, &dev, "", "qwen3", false);
}

#[test]
fn a_program_here_may_everything_but_what_rules_keep_for_others() {
    let me = person("macbook", 1, "me@x");
    let t = me.tailnet(&[]);
    let all = "list infer observe load manage spend";
    let of = |rules: Option<&[AccessRule]>, uid| {
        verbs(&Access::new(rules, &t).of(&Caller::local(uid, None)))
    };
    assert_eq!(of(None, Some(1000)), all);
    assert_eq!(of(Some(&[rule(&["person"], &[Verb::Infer], &["*"])]), None), all);
    let spend = [rule(&["uid:1000"], &[Verb::Spend], &["*"])];
    assert_eq!(of(Some(&spend), Some(1000)), all);
    assert_eq!(of(Some(&spend), Some(1001)), "list infer observe load manage");
    assert_eq!(of(Some(&spend), None), "list infer observe load manage");
    let local = [rule(&["local"], &[Verb::Infer], &["qwen*"])];
    let granted = Access::new(Some(&local), &t).of(&Caller::local(None, None));
    assert_eq!(granted.may(Verb::Infer, &model("llama")), None);
    assert_eq!(granted.may(Verb::Infer, &model("qwen3")).unwrap().max_inflight, None);
    assert_eq!(granted.may(Verb::Manage, &model("llama")), Some(Limits::NONE));
}

#[test]
fn send_to_tells_a_sidecar_from_a_bare_engine() {
    let me = person("macbook", 1, "me@x");
    let dev = person("desk", 2, "dev@x");
    let t = me.tailnet(&[&dev]);
    let rules = [
        send(&["user:dev@x"], &["qwen*"], true, false),
        send(&["node:desk"], &["tiny"], false, true),
    ];
    let grant = SendTo::new(Some(&rules), None, &t).allows(&dev.subject()).unwrap();
    assert_eq!((grant.rich, grant.bare), (vec!["qwen*".to_owned()], vec!["tiny".to_owned()]));
    assert_eq!(grant.by, ["sendTo[0]", "sendTo[1]"]);
    let looked_at = words(&["tag:ollama"]);
    assert_eq!(
        SendTo::new(Some(&rules), Some(&looked_at), &t).allows(&dev.subject()),
        Err(Refused::NotLookedAt)
    );
}

#[test]
fn a_key_added_by_hand_is_sent_only_what_a_rule_that_names_it_gives() {
    let me = person("macbook", 1, "me@x");
    let t = me.tailnet(&[]);
    let check = |rules: Option<&[SendRule]>, peers: Option<&[Who]>, want| {
        let models = SendTo::new(rules, peers, &t).allows_pin("box").map(|g| (g.rich, g.bare));
        assert_eq!(models, want, "{rules:?} {peers:?}");
    };
    let named = [send(&["pin:BOX"], &["qwen*"], true, true)];
    let given = Ok((vec!["qwen*".to_owned()], Vec::new()));
    check(Some(&named), None, given.clone());
    check(Some(&named), Some(&words(&["owner:self", "pin:box"])), given);
    check(Some(&named), Some(&words(&["*"])), Err(Refused::NotLookedAt));
    check(None, None, Err(Refused::NotInSendTo));
    for to in ["*", "owner:self", "person", "tagged", "node:box", "pin:other"] {
        check(Some(&[send(&[to], &["*"], true, true)]), None, Err(Refused::NotInSendTo));
    }
    // An engine cannot prove that it holds a key.
    check(Some(&[send(&["pin:box"], &["*"], false, true)]), None, Err(Refused::NotInSendTo));
}

#[test]
fn a_refusal_names_the_rule_and_whom_to_ask() {
    let [laptop, gpu, _, desk] = fleet();
    let t = laptop.tailnet(&[&gpu, &desk]);
    let access = Access::new(None, &t);
    assert_eq!(
        access.of(&desk.caller(&[])).why_not(Verb::Infer, Some(&model("tiny"))),
        "no rule lets desk (dev@x) in: `access: \"auto\"` on macbook admits owner:self, \
         tag:ollama; ask me@x"
    );
    let rules = [rule(&["person"], &[Verb::Infer], &["qwen*"])];
    let granted = Access::new(Some(&rules), &gpu.tailnet(&[&desk])).of(&desk.caller(&[]));
    assert_eq!(
        granted.why_not(Verb::Infer, Some(&model("tiny"))),
        "desk (dev@x) may not use `infer` on tiny:latest: `access[0]` covers qwen*"
    );
    assert_eq!(
        granted.why_not(Verb::Manage, None),
        "desk (dev@x) may infer here, not `manage`: `access` on gpu admits person; \
         ask whoever runs gpu"
    );
}

#[test]
fn all_verbs_have_a_place_in_a_set() {
    assert_eq!(Verb::ALL.into_iter().collect::<Verbs>(), Verbs::ALL);
}
