//! `models.providers`: from a block of openclaw.json to what is needed to ask a provider.
//!
//! In flows JSON as a person pasted it; out flows a [`Provider`], or why it is off. A block that
//! cannot be used is worth a warning and never an error: the rest of the program works without
//! it. A key leaves this file only as a [`Secret`], and only beside the one origin it was
//! written for.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value};

use super::env::Env;
use super::read;
use super::run::{Auth, Cost, HostedModel, Limit, Provider, Reach, Server};
use crate::types::{Compat, ProviderApi, Secret, Via, Who};

/// Reads one provider whose variables are filled in.
pub(super) fn read(
    name: &str,
    map: &Map<String, Value>,
    env: &dyn Env,
) -> Result<Provider, String> {
    let url = text(map, "baseUrl").ok_or("`baseUrl` is missing")?;
    let mut server = read::server(url)?;
    let said = text(map, "api").unwrap_or("openai-completions");
    let api = api(said).ok_or_else(|| format!("`api`: `{said}` is not spoken here"))?;
    server.prefix = prefix(&server.prefix, said).into();
    let reach = reach(&server.host, text(map, "scope"));
    let auth = auth(map, api, env)?;
    let headers = headers(map)?;
    if !server.tls {
        let secret = auth != Auth::None || headers.iter().any(|(name, _)| may_be_key(name));
        match reach {
            Reach::Here => {}
            Reach::Near if !secret => {}
            Reach::Near => {
                return Err(
                    "its key would cross the network in the clear: https is needed".to_owned()
                );
            }
            Reach::Far => {
                return Err(
                    "prompts would cross the internet in the clear: https is needed".to_owned()
                );
            }
        }
    }
    let via = match reach {
        Reach::Far => proxy(&server, env)?,
        Reach::Here | Reach::Near => None,
    };
    let models = map.get("models").and_then(Value::as_array);
    let list: Vec<HostedModel> = models.into_iter().flatten().filter_map(model).collect();
    Ok(Provider {
        name: name.into(),
        open: list.is_empty(),
        models: list,
        server,
        api,
        auth,
        headers,
        body: map.get("body").and_then(Value::as_object).cloned().unwrap_or_default(),
        limit: map.get("limit").map_or_else(Limit::default, limit),
        budget: map.get("budget").and_then(Value::as_f64).filter(|usd| *usd >= 0.0),
        users: users(map)?,
        timeout: map.get("timeoutSeconds").and_then(Value::as_u64).map(Duration::from_secs),
        reach,
        via,
    })
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    map.get(key).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty())
}

fn api(word: &str) -> Option<ProviderApi> {
    Some(match word {
        "openai-completions" | "google-generative-ai" => ProviderApi::Completions,
        "openai-responses" => ProviderApi::Responses,
        "anthropic-messages" => ProviderApi::Messages,
        "ollama" => ProviderApi::Ollama,
        _ => return None,
    })
}

/// The path below which a provider's routes stand: people write it with and without `/v1`.
fn prefix(written: &str, api: &str) -> String {
    let without = |end: &str| written.strip_suffix(end).unwrap_or(written);
    match api {
        "anthropic-messages" => without("/v1").to_owned(),
        "ollama" if written.ends_with("/api") => without("/api").to_owned(),
        "ollama" => without("/v1").to_owned(),
        // Gemini speaks OpenAI's dialect one folder below its own.
        "google-generative-ai" => format!("{}/openai", without("/openai")),
        _ => written.to_owned(),
    }
}

/// How far away a provider is. The host says it; `scope` may only make it farther, so that no
/// slip of the pen takes a server on the internet for one that `offline` leaves alone.
fn reach(host: &str, scope: Option<&str>) -> Reach {
    let near_name = host.ends_with(".local") || host.ends_with(".ts.net") || !host.contains('.');
    let seen = match host.parse::<IpAddr>() {
        Ok(ip) if ip.is_loopback() => Reach::Here,
        Ok(IpAddr::V4(ip)) if ip.is_private() || ip.is_link_local() => Reach::Near,
        Ok(IpAddr::V4(ip)) if ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64 => Reach::Near,
        Ok(IpAddr::V6(ip)) if ip.is_unique_local() || ip.is_unicast_link_local() => Reach::Near,
        Ok(_) => Reach::Far,
        Err(_) if host == "localhost" => Reach::Here,
        Err(_) if near_name => Reach::Near,
        Err(_) => Reach::Far,
    };
    let said = match scope {
        Some("internet") => Reach::Far,
        Some("lan" | "mesh") => Reach::Near,
        _ => Reach::Here,
    };
    seen.max(said)
}

/// How the provider is told who pays.
fn auth(map: &Map<String, Value>, api: ProviderApi, env: &dyn Env) -> Result<Auth, String> {
    let key = match (text(map, "apiKey"), text(map, "apiKeyFile")) {
        (Some(key), _) => Some(key.to_owned()),
        (None, Some(file)) => {
            let key = env.read(Path::new(file));
            let key = key.map_err(|e| format!("`apiKeyFile` cannot be read: {e}"))?;
            Some(key.trim().to_owned()).filter(|key| !key.is_empty())
        }
        (None, None) => None,
    };
    let how = text(map, "auth").unwrap_or("api-key");
    if how == "none" {
        return Ok(Auth::None);
    }
    // OpenClaw's own mark for "there is no key".
    let Some(key) = key.filter(|key| key != "ollama-local") else { return Ok(Auth::None) };
    if key.chars().any(|c| c.is_control() || c == ' ') {
        return Err("the key holds characters that no key has".to_owned());
    }
    match how {
        "api-key" if api == ProviderApi::Messages => {
            Ok(Auth::Header("x-api-key", Secret::new(key)))
        }
        "api-key" | "bearer" | "token" | "oauth" => Ok(Auth::Bearer(Secret::new(key))),
        other => Err(format!("`auth`: `{other}` is none of api-key, bearer, none")),
    }
}

fn headers(map: &Map<String, Value>) -> Result<Vec<(String, Secret)>, String> {
    let Some(headers) = map.get("headers").and_then(Value::as_object) else {
        return Ok(Vec::new());
    };
    headers
        .iter()
        .map(|(name, value)| {
            let named = http::HeaderName::try_from(name.as_str());
            let named = named.map_err(|_| format!("`headers`: `{name}` is no header's name"))?;
            let value = value.as_str().filter(|v| http::HeaderValue::from_str(v).is_ok());
            let value = value.ok_or_else(|| format!("`headers.{name}` is no header's value"))?;
            Ok((named.as_str().to_owned(), Secret::new(value)))
        })
        .collect()
}

fn may_be_key(name: &str) -> bool {
    ["auth", "key", "token", "secret", "cookie"].iter().any(|part| name.contains(part))
}

fn users(map: &Map<String, Value>) -> Result<Option<Vec<Who>>, String> {
    let Some(users) = map.get("users") else { return Ok(None) };
    let list = users.as_array().ok_or("`users` is no list")?;
    list.iter()
        .map(|who| who.as_str().unwrap_or_default().parse::<Who>().map_err(|e| e.to_string()))
        .collect::<Result<_, _>>()
        .map(Some)
}

fn limit(value: &Value) -> Limit {
    let number = |key: &str| value.get(key).and_then(Value::as_u64);
    let number = |key| number(key).and_then(|n| u32::try_from(n).ok());
    Limit { per_minute: number("perMinute"), per_day: number("perDay") }
}

fn model(value: &Value) -> Option<HostedModel> {
    // A name alone is a model, too.
    let Some(map) = value.as_object() else {
        return value.as_str().map(|id| HostedModel { id: id.into(), ..HostedModel::default() });
    };
    let id = text(map, "id").or_else(|| text(map, "name"))?;
    let cost = map.get("cost");
    let price = |key: &str| {
        let price = cost.and_then(|cost| cost.get(key)).and_then(Value::as_f64);
        price.filter(|price| price.is_finite() && *price >= 0.0).unwrap_or(0.0)
    };
    let input = map.get("input").and_then(Value::as_array);
    Some(HostedModel {
        id: id.into(),
        api: text(map, "api").and_then(api),
        context: map.get("contextWindow").and_then(Value::as_u64),
        max_tokens: map.get("maxTokens").and_then(Value::as_u64),
        vision: input.is_some_and(|input| input.iter().any(|kind| kind == "image")),
        reasoning: map.get("reasoning").and_then(Value::as_bool).unwrap_or(false),
        cost: Cost {
            input: price("input"),
            output: price("output"),
            cache_read: price("cacheRead"),
            cache_write: price("cacheWrite"),
        },
        compat: map.get("compat").map_or_else(Compat::default, compat),
    })
}

/// What of `compat` changes what is sent; the rest is about what OpenClaw itself does.
fn compat(map: &Value) -> Compat {
    let flag = |key: &str| map.get(key).and_then(Value::as_bool);
    let field = map.get("maxTokensField").and_then(Value::as_str);
    Compat {
        completion_tokens: match field {
            Some("max_completion_tokens") => Some(true),
            Some("max_tokens") => Some(false),
            _ => None,
        },
        developer: flag("supportsDeveloperRole"),
        store: flag("supportsStore"),
        effort: flag("supportsReasoningEffort"),
        temperature: flag("supportsTemperature"),
        tools: flag("supportsTools"),
        usage: flag("supportsUsageInStreaming"),
        strings: flag("requiresStringContent"),
    }
}

/// The proxy that the environment names for a server on the internet.
fn proxy(server: &Server, env: &dyn Env) -> Result<Option<Via>, String> {
    let var = |names: &[&str]| names.iter().find_map(|name| env.var(name));
    let Some(url) = var(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]) else {
        return Ok(None);
    };
    if var(&["NO_PROXY", "no_proxy"]).is_some_and(|list| is_excepted(&server.host, &list)) {
        return Ok(None);
    }
    let rest = match url.split_once("://") {
        Some(("http", rest)) => rest,
        None => &url,
        // Not by another way than the one that was asked for.
        Some((scheme, _)) => return Err(format!("a proxy of kind `{scheme}` is not supported")),
    };
    let (login, host) = match rest.rsplit_once('@') {
        Some((login, host)) => (Some(login), host),
        None => (None, rest),
    };
    let login = login.map(|login| {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(login);
        Secret::new(format!("Basic {text}"))
    });
    let proxy = read::server(&format!("http://{host}"));
    let proxy = proxy.map_err(|_| "HTTPS_PROXY names no proxy".to_owned())?;
    Ok(Some(Via { host: proxy.host, port: proxy.port, login }))
}

/// Whether `NO_PROXY` names the host: `*`, the name itself, or the end of it.
fn is_excepted(host: &str, list: &str) -> bool {
    list.split(',').map(|name| name.trim().trim_start_matches('.')).any(|name| {
        name == "*"
            || (!name.is_empty()
                && host
                    .strip_suffix(&name.to_ascii_lowercase())
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::FixedEnv;

    fn of(value: Value) -> Result<Provider, String> {
        read("p", value.as_object().unwrap(), &FixedEnv::default().with_file("/k", "sk-file\n"))
    }

    #[test]
    fn a_base_url_means_what_people_mean_by_it() {
        #[track_caller]
        fn check(api: &str, url: &str, prefix: &str) {
            let provider = of(json!({ "baseUrl": url, "api": api })).unwrap();
            assert_eq!(&*provider.server.prefix, prefix, "{api} {url}");
        }
        check("openai-completions", "https://api.openai.com/v1/", "/v1");
        check("openai-completions", "https://openrouter.ai/api/v1", "/api/v1");
        check("anthropic-messages", "https://api.anthropic.com", "");
        check("anthropic-messages", "https://api.anthropic.com/v1", "");
        check("ollama", "https://ollama.com/api", "");
        check("ollama", "http://127.0.0.1:11434/v1", "");
        check("google-generative-ai", "https://g.example/v1beta", "/v1beta/openai");
        check("google-generative-ai", "https://g.example/v1beta/openai/", "/v1beta/openai");
    }

    #[test]
    fn a_key_stands_where_the_provider_looks_for_it_and_shows_nowhere() {
        let of = |value| of(value).unwrap();
        let url = "https://x.example";
        let secret = || Secret::new("sk-canary");
        let anthropic =
            json!({ "baseUrl": url, "api": "anthropic-messages", "apiKey": "sk-canary" });
        assert_eq!(of(anthropic.clone()).auth, Auth::Header("x-api-key", secret()));
        let openai =
            json!({ "baseUrl": url, "apiKey": "sk-canary", "headers": { "X-Title": "sk-canary" } });
        assert_eq!(of(openai.clone()).auth, Auth::Bearer(secret()));
        let file = json!({ "baseUrl": url, "apiKeyFile": "/k" });
        assert_eq!(of(file).auth, Auth::Bearer(Secret::new("sk-file")));
        let none = json!({ "baseUrl": url, "apiKey": "k", "auth": "none" });
        assert_eq!(of(none).auth, Auth::None);
        for provider in [anthropic, openai] {
            let shown = format!("{:?}", of(provider));
            assert!(!shown.contains("canary"), "{shown}");
        }
    }

    #[test]
    fn what_is_secret_never_crosses_a_network_in_the_clear() {
        #[track_caller]
        fn check(url: &str, key: bool, good: bool) {
            let mut value = json!({ "baseUrl": url });
            if key {
                value["apiKey"] = json!("sk-canary");
            }
            let read = of(value);
            assert_eq!(read.is_ok(), good, "{url} {key}");
            assert!(!format!("{read:?}").contains("canary"));
        }
        check("https://api.example.com/v1", true, true);
        check("http://api.example.com/v1", true, false);
        check("http://api.example.com/v1", false, false);
        check("http://192.168.1.5:1234/v1", false, true);
        check("http://192.168.1.5:1234/v1", true, false);
        check("http://nas.local:8000/v1", true, false);
        check("http://127.0.0.1:4000", true, true);
        check("http://localhost:4000", true, true);
    }

    #[test]
    fn a_scope_only_makes_a_server_farther() {
        for (host, scope, want) in [
            ("api.openai.com", None, Reach::Far),
            ("api.openai.com", Some("lan"), Reach::Far),
            ("8.8.8.8", Some("local"), Reach::Far),
            ("192.168.1.5", None, Reach::Near),
            ("192.168.1.5", Some("internet"), Reach::Far),
            ("gpu.tail1234.ts.net", None, Reach::Near),
            ("100.100.1.2", None, Reach::Near),
            ("127.0.0.1", None, Reach::Here),
            ("localhost", Some("lan"), Reach::Near),
        ] {
            assert_eq!(reach(host, scope), want, "{host} {scope:?}");
        }
    }

    #[test]
    fn what_a_server_takes_is_read_and_the_rest_of_compat_is_openclaws() {
        let compat = json!({
            "maxTokensField": "max_completion_tokens", "supportsDeveloperRole": false,
            "supportsStore": false, "requiresStringContent": true, "thinkingFormat": "qwen",
        });
        let models = json!([{ "id": "m", "compat": compat }, { "id": "n" }]);
        let read = of(json!({ "baseUrl": "https://x.example", "models": models })).unwrap();
        let want = Compat {
            completion_tokens: Some(true),
            developer: Some(false),
            store: Some(false),
            strings: Some(true),
            ..Compat::default()
        };
        assert_eq!(read.models[0].compat, want);
        assert_eq!(read.models[1].compat, Compat::default());
    }

    #[test]
    fn the_environments_proxy_is_for_the_internet_only() {
        #[track_caller]
        fn check(url: &str, vars: &[(&str, &str)], want: Result<Option<&str>, ()>) {
            let env = vars.iter().fold(FixedEnv::default(), |env, (k, v)| env.with(k, v));
            let value = json!({ "baseUrl": url });
            let read = read("p", value.as_object().unwrap(), &env);
            let shown = format!("{read:?}");
            assert!(!shown.contains("s3cret"), "{shown}");
            let got = read.map(|p| p.via.map(|via| format!("{}:{}", via.host, via.port)));
            assert_eq!(got.as_ref().map(Option::as_deref).map_err(|_| ()), want, "{url} {vars:?}");
        }
        let proxy = ("HTTPS_PROXY", "http://u:s3cret@proxy.example:3128");
        check("https://api.example.com", &[proxy], Ok(Some("proxy.example:3128")));
        check("https://api.example.com", &[], Ok(None));
        check("https://api.example.com", &[proxy, ("NO_PROXY", "x, .example.com")], Ok(None));
        check(
            "https://notexample.com",
            &[proxy, ("NO_PROXY", "example.com")],
            Ok(Some("proxy.example:3128")),
        );
        check("http://127.0.0.1:4000", &[proxy], Ok(None));
        check("https://api.example.com", &[("HTTPS_PROXY", "socks5://x:1")], Err(()));
    }
}
