//! Promises of the whole: from text and environment to a configuration or one good error.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::Value;

use super::error::Finding;
use super::*;
use crate::types::{Class, Verb, Verbs, Who};

const FILE: &str = "/etc/tailherd/config.json5";

fn read(text: &str) -> Result<Config, ConfigError> {
    parse(text, Some(Path::new(FILE)), &FixedEnv::default())
}

#[track_caller]
fn good(text: &str) -> Config {
    read(text).unwrap_or_else(|e| panic!("{text}\n{e}"))
}

#[track_caller]
fn bad(text: &str) -> Finding {
    match read(text) {
        Err(ConfigError::Wrong(finding)) => *finding,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn nothing_written_is_the_documented_defaults() {
    let c = good("{}");
    assert_eq!(
        c.listen,
        ["127.0.0.1:11434", "[::1]:11434"].map(|a| ListenAt::Tcp(a.parse().unwrap()))
    );
    assert!(c.listen_is_default && !c.offline && !c.trust_serve);
    assert_eq!((c.local, c.access, c.send_to, c.tailnet.enabled), (None, None, None, None));
    assert_eq!((c.tailnet.ports, c.tailnet.bare_port), (vec![11436, 11434], 11434));
    assert_eq!((c.tailnet.socket, c.tailnet.socket_uid, c.tailnet.peers), (None, None, None));
    assert_eq!(c.tailnet.capability, "tailherd.dev/cap/use");
    assert_eq!(c.max_remote_keep_alive, Duration::from_secs(300));
    assert_eq!(c.admin_listen, Some(([127, 0, 0, 1], 11437).into()));
    assert_eq!(c.new_nodes, NewNodes::Auto);
    assert_eq!((c.variants, c.prefer_local), (Variants::Strict, 1.0));
    assert_eq!((c.models.show, c.models.replace), (vec!["*".to_owned()], false));
    assert_eq!(c.failover.cooldown, [30, 60, 300].map(Duration::from_secs));
    assert_eq!((c.limits.body_bytes, c.limits.replay_bytes), (128 << 20, 16 << 20));
    assert_eq!((c.limits.replay_total, c.limits.queue), (256 << 20, 512));
    assert_eq!((c.limits.inflight, c.limits.connections), (1024, 4096));
    assert_eq!((c.drain, c.log.json), (Duration::from_secs(30), false));
    assert_eq!(
        (c.lan.trust, c.lan.grant),
        (Duration::from_secs(14 * 86400), Duration::from_secs(86400))
    );
    assert_eq!((c.share.when, c.share.loads), (ShareWhen::Auto, ShareLoads::Fit));
    assert!(c.warnings.is_empty(), "{:?}", c.warnings);
}

#[test]
fn each_form_of_a_value_is_read() {
    let c = good(
        r#"{
          listen: ["127.0.0.1:0", "unix:/run/t.sock", "docker0"],
          local: [{ baseUrl: "http://127.0.0.1:11435", slots: 2 }],
          tailnet: { enabled: false, socket: "/run/ts.sock", socketUid: 7, peers: ["tag:gpu"] },
          ollamas: [{ name: "NAS", url: "http://192.168.1.100:11434/x/" }],
          lan: { networks: ["ab12"] },
          access: [{ from: ["owner:self", "user:a@b"], verbs: ["list"], maxInflight: 2, mayLoad: false }],
          sendTo: [{ to: ["tag:gpu"], kinds: ["bare"], models: ["qwen*"] }],
          newNodes: "hold", variants: "merge", preferLocal: 1.5,
          priority: [{ match: { path: "/api/embed" }, class: "batch" }],
          aliases: { "claude-*": "ollama/gpt-oss:20b", "claude-opus-*": "big", "gpt-4": "mid" },
          limits: { bodyBytes: 4096, replayBytes: "1KiB" },
          keepAlive: "-1", admin: { listen: null }, log: { level: "debug", format: "json" },
        }"#,
    );
    assert_eq!(
        c.listen[1..],
        [ListenAt::Unix("/run/t.sock".into()), ListenAt::Bridge("docker0".to_owned())]
    );
    assert!(!c.listen_is_default);
    let local = c.local.unwrap();
    assert_eq!((local[0].server.port, local[0].slots), (11435, Some(2)));
    assert_eq!((c.tailnet.enabled, c.tailnet.socket_uid), (Some(false), Some(7)));
    assert_eq!(c.tailnet.peers, Some(vec![Who::Tag("tag:gpu".into())]));
    assert_eq!((c.ollamas[0].name.as_str(), &*c.ollamas[0].server.prefix), ("nas", "/x"));
    assert_eq!(c.lan.networks, LanNetworks::Ids(vec!["ab12".to_owned()]));
    let rule = &c.access.unwrap()[0];
    assert_eq!(rule.from, [Who::OwnerSelf, Who::User("a@b".into())]);
    assert_eq!((rule.verbs, rule.max_inflight), (Verbs::NONE.with(Verb::List), Some(2)));
    assert!(!rule.may_load && rule.models == ["*"]);
    let rule = &c.send_to.unwrap()[0];
    assert!(rule.bare && !rule.rich && rule.models == ["qwen*"]);
    assert_eq!((c.new_nodes, c.variants), (NewNodes::Hold, Variants::Merge));
    assert_eq!(
        (c.priority[0].class, c.priority[0].path.as_deref()),
        (Class::Batch, Some("/api/embed"))
    );
    let names: Vec<&str> = c.aliases.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["gpt-4", "claude-opus-*", "claude-*"], "the most particular comes first");
    assert_eq!((c.limits.body_bytes, c.limits.replay_bytes), (4096, 1024));
    assert_eq!((c.keep_alive.as_deref(), c.admin_listen), (Some("-1"), None));
    assert_eq!((c.log.level.as_str(), c.log.json), ("debug", true));
}

/// Where an error stands, its path, a part of what it says, and what it suggests.
#[track_caller]
fn refused(text: &str, at: (usize, usize), path: &str, says: &str, nearest: Option<&str>) {
    let f = bad(text);
    assert_eq!((f.line, f.column), at, "{f}");
    assert_eq!(f.path, path, "{f}");
    assert!(f.what.contains(says), "{f}");
    assert_eq!(f.nearest.as_deref(), nearest, "{f}");
    assert!(!f.source.is_empty() || text.is_empty(), "{f}");
}

#[test]
fn an_error_says_where_what_and_what_was_meant() {
    let text = "{\n  access: [{ from: ['*'],\n    verbs: ['list', 'infr'] }],\n}";
    refused(text, (3, 21), "access[0].verbs[1]", "unknown word `infr`", Some("infer"));
    refused("{ lisen: [] }", (1, 3), "lisen", "unknown key `lisen`", Some("listen"));
    refused("{ lan: { mDNS: true } }", (1, 10), "lan.mDNS", "unknown key", Some("mdns"));
    refused("{ zzzzzzzz: 1 }", (1, 3), "zzzzzzzz", "unknown key", None);
    refused("{ newNodes: 'alow' }", (1, 13), "newNodes", "unknown word", Some("allow"));
    refused("{ access: 'atuo' }", (1, 11), "access", "unknown word", Some("auto"));
    refused("{ offline: 'yes' }", (1, 12), "offline", "expected true or false", None);
    refused("{ listen: '127.0.0.1:1' }", (1, 11), "listen", "expected a list", None);
    refused("{ tailnet: [] }", (1, 12), "tailnet", "expected an object", None);
    refused("{ access: true }", (1, 11), "access", "expected a list", None);
    refused("{ access: [3] }", (1, 12), "access[0]", "expected an object", None);
    refused("{ ollamas: [{ name: 'x' }] }", (1, 13), "ollamas[0]", "missing key `url`", None);
    refused("{ tailnet: { barePort: 70000 } }", (1, 24), "tailnet.barePort", "70000", None);
    refused("{\n  offline: true,\n  offline: false }", (3, 3), "offline", "twice", None);
    refused("{ log: { level: 'inof' } }", (1, 17), "log.level", "no level", Some("info"));
}

#[test]
fn what_is_no_json5_is_placed_too() {
    refused("{ drain: 8192 * 10 }", (1, 15), "", "expected a comma", None);
    refused("{ offline: tru }", (1, 15), "", "", None);
    refused("{\n  listen: [", (2, 12), "", "ends too early", None);
    refused("{} x", (1, 4), "", "trailing", None);
    refused("", (1, 1), "", "ends too early", None);
    refused("[]", (1, 1), "", "expected an object", None);
    refused(&"[".repeat(100_000), (1, 65), "", "nested too deep", None);
}

#[test]
fn impossible_values_are_refused_where_they_stand() {
    for (text, column, path) in [
        ("{ listen: ['127.0.0.1:1', '0.0.0.0:11434'] }", 27, "listen[1]"),
        ("{ listen: ['[::]:11434'] }", 12, "listen[0]"),
        ("{ listen: ['192.168.1.2:11434'] }", 12, "listen[0]"),
        ("{ admin: { listen: '0.0.0.0:1' } }", 20, "admin.listen"),
        ("{ drain: '-5s' }", 10, "drain"),
        ("{ maxRemoteKeepAlive: '-1m' }", 23, "maxRemoteKeepAlive"),
        ("{ keepAlive: 'long' }", 14, "keepAlive"),
        ("{ tailnet: { barePort: 0 } }", 24, "tailnet.barePort"),
        ("{ tailnet: { ports: [11436, 0] } }", 29, "tailnet.ports[1]"),
        ("{ tailnet: { ports: [1, 1] } }", 25, "tailnet.ports[1]"),
        ("{ tailnet: { ports: [] } }", 21, "tailnet.ports"),
        ("{ tailnet: { socket: 'ts.sock' } }", 22, "tailnet.socket"),
        ("{ tailnet: { peers: ['nobody'] } }", 22, "tailnet.peers[0]"),
        ("{ tailnet: { capability: 'x' } }", 26, "tailnet.capability"),
        ("{ ollamas: [{ name: 'self', url: 'x' }] }", 21, "ollamas[0].name"),
        ("{ ollamas: [{ name: 'a b', url: 'x' }] }", 21, "ollamas[0].name"),
        ("{ ollamas: [{ url: 'x:0', name: 'a' }] }", 20, "ollamas[0].url"),
        ("{ ollamas: [{ name: 'a', url: 'x' }, { name: 'A', url: 'y' }] }", 46, "ollamas[1].name"),
        ("{ local: [{ baseUrl: 'x', slots: 0 }] }", 34, "local[0].slots"),
        ("{ access: [{ from: [] }] }", 20, "access[0].from"),
        ("{ access: [{ from: ['owner:me'] }] }", 21, "access[0].from[0]"),
        ("{ access: [{ from: ['*'], models: ['q?'] }] }", 36, "access[0].models[0]"),
        ("{ access: [{ from: ['*'], maxInflight: 0 }] }", 40, "access[0].maxInflight"),
        ("{ sendTo: [{ to: ['tag:'] }] }", 19, "sendTo[0].to[0]"),
        ("{ models: { hide: [''] } }", 20, "models.hide[0]"),
        ("{ preload: ['a b'] }", 13, "preload[0]"),
        ("{ aliases: { 'a*b*': 'x' } }", 22, "aliases.a*b*"),
        ("{ aliases: { a: 'b c' } }", 17, "aliases.a"),
        ("{ preferLocal: 0 }", 16, "preferLocal"),
        ("{ preferLocal: NaN }", 16, "preferLocal"),
        ("{ failover: { maxAttempts: 0 } }", 28, "failover.maxAttempts"),
        ("{ failover: { cooldown: [] } }", 25, "failover.cooldown"),
        ("{ failover: { cooldown: ['1s', 'x'] } }", 32, "failover.cooldown[1]"),
        ("{ limits: { bodyBytes: '12 parsecs' } }", 24, "limits.bodyBytes"),
        ("{ limits: { queue: 0 } }", 20, "limits.queue"),
        ("{ share: { quiet: ['25:00-26:00'] } }", 20, "share.quiet[0]"),
        ("{ lan: { trustDays: 0 } }", 21, "lan.trustDays"),
        ("{ lan: { grantHours: 4000000000 } }", 22, "lan.grantHours"),
        ("{ priority: [{ match: {}, class: 'batch' }] }", 23, "priority[0].match"),
        ("{ origins: ['nas'] }", 13, "origins[0]"),
        ("{ allowedHosts: ['http://x'] }", 18, "allowedHosts[0]"),
        ("{ dns: { names: ['a b'] } }", 18, "dns.names[0]"),
        ("{ drain: '${NOT_SET}' }", 10, "drain"),
    ] {
        refused(text, (1, column), path, "", None);
    }
}

#[test]
fn an_error_is_shown_with_its_line_and_a_caret() {
    let error = read("{\n\tlog: { level: 'inof' },\r\n}").unwrap_err();
    assert_eq!(
        error.to_string(),
        "/etc/tailherd/config.json5:2:16: log.level: `inof` is no level: expected off, error, \
         warn, info, debug, trace or a filter\n  |\n2 | \tlog: { level: 'inof' },\n  | \t              ^\n  \
         = did you mean `info`?"
    );
    for odd in ['\u{1b}', '\u{202e}'] {
        for text in [format!("{{ \"a{odd}]52;c\": 1 }}"), format!("{{ drain: '{odd}x' }}")] {
            let shown = read(&text).unwrap_err().to_string();
            assert!(!shown.contains(odd), "{shown:?}");
        }
    }
}

#[test]
fn a_block_pasted_from_openclaw_works_and_what_is_unknown_warns() {
    let env = FixedEnv::default().with("KEY", "k");
    let c = parse(
        r#"{
          agents: {
            defaults: { model: { primary: "ollama/gpt-oss:20b", fallback: [] } },
            coding: { modle: { primary: "ollama/qwen3-coder" } },
          },
          models: { providers: {
            here: { baseUrl: "https://x", apiKey: "${KEY}", models: [{ id: "m", coast: {} }] },
            gone: { baseUrl: "https://y", apiKey: "${NO_KEY}" },
          } },
        }"#,
        None,
        &env,
    )
    .unwrap();
    assert_eq!(c.models.providers["here"].auth, Auth::Bearer(crate::types::Secret::new("k")));
    assert!(!c.models.providers.contains_key("gone"), "a provider without its key is off");
    for part in [
        "agents.defaults.model: unknown key `fallback` is not used (did you mean `fallbacks`?)",
        "agents.coding: unknown key `modle` is not used (did you mean `model`?)",
        "models.providers.here.models[0]: unknown key `coast` is not used (did you mean `cost`?)",
        "models.providers.gone is off: the environment variable `NO_KEY` is not set",
    ] {
        assert!(c.warnings.iter().any(|w| w.contains(part)), "{part}: {:?}", c.warnings);
    }
    assert!(!format!("{:?}", c.warnings).contains("\"k\""));
}

#[test]
fn keys_without_a_behaviour_say_so_when_they_are_set() {
    for (text, path) in [
        ("{ agents: { a: {} } }", None),
        ("{ priority: [{ match: { path: '/x' }, class: 'batch' }] }", None),
        ("{ share: { when: 'mine', quiet: ['22:00-07:00'], loads: 'any', inflight: 1 } }", None),
        ("{ share: { idleAfter: '1m', metered: true } }", None),
        ("{ lan: { mdns: false } }", None),
        ("{ local: [{ baseUrl: ':1', user: 'ollama' }] }", Some("local[0].user")),
        ("{ share: { when: 'auto' } }", None),
        ("{ offline: true, newNodes: 'allow' }", None),
    ] {
        let warnings = good(text).warnings;
        match path {
            Some(path) => assert!(warnings[0].starts_with(&format!("{path} has")), "{warnings:?}"),
            None => assert!(warnings.is_empty(), "{warnings:?}"),
        }
    }
}

#[test]
fn the_environment_has_the_last_word() {
    let env = FixedEnv::default()
        .with("TAILHERD_LISTEN", "127.0.0.1:5000, unix:/run/t.sock")
        .with("TAILHERD_LOCAL", "http://127.0.0.1:9999,nas:1")
        .with("TAILHERD_OFFLINE", "1")
        .with("TAILHERD_LOG", "debug")
        .with("OLLAMA_ORIGINS", "http://nas.local:3000,app://*,rubbish")
        .with("PORT", "7");
    let c = parse("{ listen: ['127.0.0.1:${PORT}'], offline: false }", None, &env).unwrap();
    assert_eq!(c.listen[0], ListenAt::Tcp(([127, 0, 0, 1], 5000).into()));
    assert_eq!((c.listen.len(), c.local.unwrap().len()), (2, 2));
    assert!(c.offline && c.log.level == "debug" && !c.listen_is_default);
    assert_eq!(c.origins, ["http://nas.local:3000", "app://*"]);
    assert!(c.warnings[0].contains("rubbish"));
    for name in ["TAILHERD_LISTEN", "TAILHERD_LOCAL", "TAILHERD_OFFLINE", "TAILHERD_LOG"] {
        let env = FixedEnv::default().with(name, "0.0.0.0:1 ?");
        let error = parse("{}", None, &env).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    let none = FixedEnv::default().with("TAILHERD_LOCAL", "none");
    assert_eq!(parse("{}", None, &none).unwrap().local, Some(Vec::new()));
}

#[test]
fn ollama_base_url_is_one_more_server_unless_it_is_us() {
    #[track_caller]
    fn check(text: &str, url: &str, count: usize) {
        let env = FixedEnv::default().with("OLLAMA_BASE_URL", url);
        let c = parse(text, None, &env).unwrap();
        assert_eq!(c.ollamas.len(), count, "{text} {url}: {:?}", c.ollamas);
    }
    check("{}", "http://nas:11434", 1);
    check("{}", "http://127.0.0.1:11434", 0);
    check("{}", "http://localhost:11434/", 0);
    check("{ listen: ['127.0.0.1:5000'] }", "http://127.0.0.1:5000", 0);
    check("{}", "http://127.0.0.1:11435", 0);
    check("{}", "http://127.0.0.1:7777", 1);
    check("{ ollamas: [{ name: 'nas', url: 'nas' }] }", "http://nas:11434", 1);
    check("{}", "ftp://nas", 0);
}

#[test]
fn the_file_is_found_in_its_usual_places() {
    let env = |files: &[&str]| {
        files.iter().fold(
            FixedEnv::default().with("HOME", "/people/me").with("XDG_CONFIG_HOME", "relative"),
            |env, f| env.with_file(f, "{ offline: true }"),
        )
    };
    let (home, etc) = ("/people/me/.config/tailherd/config.json5", FILE);
    for (env, want) in [
        (env(&[home, etc]), Some(home)),
        (env(&[etc]), Some(etc)),
        (env(&[]), None),
        (
            env(&["/x/tailherd/config.json5", home]).with("XDG_CONFIG_HOME", "/x"),
            Some("/x/tailherd/config.json5"),
        ),
        (env(&["/c", home]).with("TAILHERD_CONFIG", "/c"), Some("/c")),
    ] {
        let c = load(None, &env).unwrap();
        assert_eq!(c.origin.file.as_deref(), want.map(Path::new));
        assert_eq!(c.offline, want.is_some());
    }
    let c = load(Some(Path::new("/e")), &env(&["/e", home]).with("TAILHERD_CONFIG", "/c")).unwrap();
    assert_eq!(c.origin.file.as_deref(), Some(Path::new("/e")));
    let named = load(None, &env(&[home]).with("TAILHERD_CONFIG", "/c"));
    assert!(matches!(named, Err(ConfigError::Unreadable { .. })), "a named file has to be there");
}

#[test]
fn the_state_folder_is_found() {
    let env = FixedEnv::default;
    for (env, want) in [
        (env(), "/var/lib/tailherd"),
        (env().with("HOME", "/h"), "/h/.local/state/tailherd"),
        (env().with("HOME", "/h").with("STATE_DIRECTORY", "/var/lib/a:/b"), "/var/lib/a"),
        (env().with("STATE_DIRECTORY", "/a").with("TAILHERD_STATE", "/t"), "/t"),
    ] {
        assert_eq!(state_dir(&env), Path::new(want));
    }
}

/// Compares a committed file with what the program makes; `TAILHERD_BLESS=1` writes it.
#[track_caller]
fn committed(name: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
    if std::env::var_os("TAILHERD_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, made).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == made, "config/{name} is not current: run the tests with TAILHERD_BLESS=1");
}

#[test]
fn the_committed_example_and_schema_are_current() {
    committed("example.json5", &example());
    committed("schema.json", &schema());
}

#[test]
fn the_example_is_exactly_the_defaults() {
    let (example, nothing) = (good(&example()), good("{}"));
    assert_eq!(example, nothing);
}

/// Calls `each` with the path, the value and the schema of every key of the example.
fn keys(value: &Value, schema: &Value, path: &str, each: &mut impl FnMut(&str, &Value, &Value)) {
    let Some(map) = value.as_object() else { return };
    for (key, value) in map {
        let path = format!("{path}.{key}");
        let schema = &schema["properties"][key];
        each(&path, value, schema);
        if schema["properties"].is_object() {
            keys(value, schema, &path, each);
        }
    }
}

#[test]
fn the_example_and_the_schema_have_the_same_keys() {
    let example: Value = json5::from_str(&example()).unwrap();
    let schema: Value = serde_json::from_str(&schema()).unwrap();
    let mut seen = 0;
    keys(&example, &schema, "", &mut |path, value, schema| {
        seen += 1;
        assert!(schema.is_object(), "{path} is not in the schema");
        assert!(schema["description"].is_string(), "{path} says nothing about itself");
        assert_eq!(&schema["default"], value, "{path}");
    });
    let mut known = 0;
    fn count(schema: &Value, known: &mut i32) {
        for schema in schema["properties"].as_object().into_iter().flat_map(|m| m.values()) {
            *known += 1;
            count(schema, known);
        }
        let closed = schema["properties"].is_null() || schema["additionalProperties"] == false;
        assert!(closed, "unknown keys are refused: {schema}");
    }
    count(&schema, &mut known);
    assert_eq!(seen, known, "every key of the schema stands in the example");
    assert!(seen > 60, "{seen}");
}

#[test]
fn what_the_schema_gives_as_an_example_is_accepted() {
    let example: Value = json5::from_str(&example()).unwrap();
    let schema: Value = serde_json::from_str(&schema()).unwrap();
    let mut seen = 0;
    keys(&example, &schema, "", &mut |path, _, schema| {
        for given in schema["examples"].as_array().into_iter().flatten() {
            seen += 1;
            let nested = path[1..].rsplit('.').fold(given.clone(), |inner, key| {
                Value::Object([(key.to_owned(), inner)].into_iter().collect())
            });
            let c = good(&nested.to_string());
            let unknown: Vec<_> = c.warnings.iter().filter(|w| w.contains("unknown")).collect();
            assert!(unknown.is_empty(), "{unknown:?}");
        }
    });
    assert!(seen >= 10, "{seen}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_panics(text in "\\PC{0,80}") {
        let _ = read(&text).map_err(|e| e.to_string());
    }

    #[test]
    fn no_text_of_our_own_words_panics(
        words in proptest::collection::vec(proptest::sample::select(vec![
            "{", "}", "[", "]", ":", ",", "\"", "'", "\\", "//", "/*", "*/", "\n", "\r", "\u{2028}",
            "listen", "access", "from", "verbs", "auto", "tailnet", "ports", "local", "baseUrl",
            "aliases", "models", "providers", "agents", "limits", "bodyBytes", "lan", "networks",
            "'${X'", "'*'", "'0.0.0.0:1'", "-1", "0", "1e999", "0x", "null", "true", "NaN", "é",
        ]), 0..40)
    ) {
        let _ = read(&words.concat()).map_err(|e| e.to_string());
    }

    #[test]
    fn no_change_to_the_example_panics(cut in 0usize..9000, len in 0usize..40, put in "\\PC{0,4}") {
        let example = example();
        let chars: Vec<char> = example.chars().collect();
        let cut = cut.min(chars.len());
        let end = (cut + len).min(chars.len());
        let text: String = chars[..cut].iter().copied().chain(put.chars())
            .chain(chars[end..].iter().copied()).collect();
        let _ = read(&text).map_err(|e| e.to_string());
    }
}
