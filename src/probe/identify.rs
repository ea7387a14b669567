//! What kind of server answers at an address.

use std::net::IpAddr;

use serde_json::Value;

use super::ask::{Answer, AskError, Asker, Target};
use super::list;
use crate::api::wire;
use crate::types::{Api, ApiSet, EngineKind};

/// What was found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) kind: EngineKind,
    pub(super) apis: ApiSet,
    pub(super) version: Option<String>,
    pub(super) slots: Option<u32>,
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoEngine {
    /// Nothing answered.
    #[error(transparent)]
    Silent(#[from] AskError),
    /// A sidecar answered, ours or another user's: asking it would go round in circles.
    #[error("a tailherd answers there, not an engine")]
    Tailherd,
    /// A server wants a key.
    #[error("it wants a key")]
    Locked,
    /// Some other server.
    #[error("no model server of a known kind")]
    Unknown,
}

/// Asks until the kind is clear. A sidecar is told by its answer to a ping, whatever address
/// it was reached by: comparing addresses alone would miss forwards and other users' sidecars.
pub(super) async fn identify(ask: &Asker, to: &Target) -> Result<Identity, NoEngine> {
    let ping = ask.get(to, wire::PING, None).await?;
    if ping.status == http::StatusCode::NO_CONTENT || ping.is_tailherd() {
        return Err(NoEngine::Tailherd);
    }
    let root = ask.get(to, "/", None).await?;
    if root.is_tailherd() {
        return Err(NoEngine::Tailherd);
    }
    if root.is_ok() && root.body.starts_with(b"Ollama is running") {
        let version = version(&ask.get(to, "/api/version", None).await?);
        let apis = ollama_apis(version.as_deref());
        return Ok(Identity { kind: EngineKind::Ollama, apis, version, slots: None });
    }
    let models = ask.get(to, "/v1/models", None).await?;
    if matches!(models.status.as_u16(), 401 | 403) {
        return Err(NoEngine::Locked);
    }
    if !models.is_ok() || list::openai(EngineKind::OpenAi, &models.body).is_none() {
        return Err(NoEngine::Unknown);
    }
    other(ask, to, &models).await
}

async fn other(ask: &Asker, to: &Target, models: &Answer) -> Result<Identity, NoEngine> {
    let kind = kind_of(models.header("server"), &models.body);
    let openai =
        ApiSet::NONE.with(Api::OpenAi).with(Api::Chat).with(Api::Completions).with(Api::Embeddings);
    let mut identity = Identity { kind, apis: openai, version: None, slots: None };
    match kind {
        EngineKind::LlamaCpp => {
            let props = ask.get(to, "/props", None).await?;
            let props: Value = serde_json::from_slice(&props.body).unwrap_or_default();
            let slots = props.get("total_slots").and_then(Value::as_u64);
            identity.slots = slots.and_then(|n| u32::try_from(n).ok());
            let build = props.get("build_info").and_then(Value::as_str);
            identity.version = build.map(str::to_owned);
        }
        EngineKind::Vllm => {
            identity.apis = openai.with(Api::Responses);
            identity.version = version(&ask.get(to, "/version", None).await?);
        }
        EngineKind::LmStudio => {
            identity.apis = openai.with(Api::Responses);
            // Its own second list came with the versions that speak Anthropic's dialect.
            let newer = ask.get(to, "/api/v1/models", None).await?;
            if newer.is_ok() && list::openai(kind, &newer.body).is_none() {
                identity.apis = identity.apis.with(Api::Messages);
            }
        }
        EngineKind::Ollama | EngineKind::OpenAi => {}
    }
    Ok(identity)
}

fn kind_of(server: &str, models: &[u8]) -> EngineKind {
    let body: Value = serde_json::from_slice(models).unwrap_or_default();
    let owner = body.pointer("/data/0/owned_by").and_then(Value::as_str).unwrap_or_default();
    match (server, owner) {
        ("llama.cpp", _) | (_, "llamacpp") => EngineKind::LlamaCpp,
        (_, "vllm") => EngineKind::Vllm,
        (_, "organization_owner") => EngineKind::LmStudio,
        _ => EngineKind::OpenAi,
    }
}

fn version(answer: &Answer) -> Option<String> {
    let body: Value = serde_json::from_slice(&answer.body).ok()?;
    body.get("version").and_then(Value::as_str).map(str::to_owned)
}

/// Ollama grew its dialects one by one. A build without a version (0.0.0) speaks them all.
fn ollama_apis(version: Option<&str>) -> ApiSet {
    let mut parts = version.unwrap_or("0.0.0").split(['.', '-']).map(|p| p.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0u32);
    let version = (next(), next(), next());
    let mut apis = ApiSet::ALL;
    if version != (0, 0, 0) && version < (0, 14, 0) {
        apis = apis.without(Api::Messages);
    }
    if version != (0, 0, 0) && version < (0, 13, 3) {
        apis = apis.without(Api::Responses);
    }
    apis
}

/// Whether two addresses can be one listener: the same port, and the same machine's loopback
/// or an address that takes all.
pub(super) fn is_ours(dial: std::net::SocketAddr, ours: &[std::net::SocketAddr]) -> bool {
    let everywhere = |ip: IpAddr| ip.is_unspecified();
    ours.iter()
        .any(|own| own.port() == dial.port() && (own.ip() == dial.ip() || everywhere(own.ip())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_what_they_say() {
        let owned = |by: &str| format!(r#"{{"data":[{{"id":"x","owned_by":"{by}"}}]}}"#);
        for (server, owner, want) in [
            ("llama.cpp", "x", EngineKind::LlamaCpp),
            ("", "llamacpp", EngineKind::LlamaCpp),
            ("uvicorn", "vllm", EngineKind::Vllm),
            ("", "organization_owner", EngineKind::LmStudio),
            ("uvicorn", "openai", EngineKind::OpenAi),
        ] {
            assert_eq!(kind_of(server, owned(owner).as_bytes()), want, "{server} {owner}");
        }
        assert_eq!(kind_of("", br#"{"data":[]}"#), EngineKind::OpenAi);
    }

    #[test]
    fn an_old_ollama_is_not_asked_in_dialects_it_does_not_know() {
        let speaks = |v: Option<&str>| {
            let apis = ollama_apis(v);
            (apis.has(Api::Responses), apis.has(Api::Messages), apis.has(Api::Chat))
        };
        assert_eq!(speaks(Some("0.32.15")), (true, true, true));
        assert_eq!(speaks(Some("0.13.5")), (true, false, true));
        assert_eq!(speaks(Some("0.13.3-rc1")), (true, false, true));
        assert_eq!(speaks(Some("0.9.0")), (false, false, true));
        assert_eq!(speaks(Some("0.0.0")), (true, true, true));
        assert_eq!(speaks(None), (true, true, true));
    }

    #[test]
    fn our_own_listeners_are_no_engines() {
        let at = |text: &str| text.parse().unwrap();
        let ours = [at("127.0.0.1:11434"), at("[::1]:11434"), at("0.0.0.0:8000")];
        for (dial, want) in [
            ("127.0.0.1:11434", true),
            ("127.0.0.1:11435", false),
            ("127.0.0.1:8000", true),
            ("127.0.0.2:11434", false),
        ] {
            assert_eq!(is_ours(at(dial), &ours), want, "{dial}");
        }
    }
}
