//! What the environment says over the file.

use super::ConfigError;
use super::env::Env;
use super::read;
use super::run::{Config, ConfiguredServer, ListenAt, LocalEngine, Server};

/// The name of the server that `OLLAMA_BASE_URL` adds.
const BASE_URL_NAME: &str = "ollama-base-url";

/// Ports at which this node's engines are looked for anyway.
const LOOKED_AT: [u16; 5] = [11435, 11434, 1234, 8000, 8080];

/// Takes the environment's word over the file's.
pub(super) fn apply(config: &mut Config, env: &dyn Env) -> Result<(), ConfigError> {
    if let Some(text) = env.var("TAILHERD_LISTEN") {
        config.listen = list(&text)
            .map(read::listen)
            .collect::<Result<_, _>>()
            .map_err(|what| ConfigError::Environment { name: "TAILHERD_LISTEN", what })?;
        config.listen_is_default = false;
    }
    if let Some(text) = env.var("TAILHERD_LOCAL") {
        config.local = local(&text)
            .map_err(|what| ConfigError::Environment { name: "TAILHERD_LOCAL", what })?;
    }
    if let Some(text) = env.var("TAILHERD_OFFLINE") {
        config.offline = read::yes(&text)
            .map_err(|what| ConfigError::Environment { name: "TAILHERD_OFFLINE", what })?;
    }
    if let Some(text) = env.var("TAILHERD_LOG") {
        config.log.level = read::level(&text)
            .map_err(|(what, _)| ConfigError::Environment { name: "TAILHERD_LOG", what })?;
    }
    // The next two are other programs' variables: what is odd in them is no error of ours.
    if let Some(text) = env.var("OLLAMA_ORIGINS") {
        for origin in list(&text) {
            match read::origin(origin) {
                Ok(origin) if config.origins.contains(&origin) => {}
                Ok(origin) => config.origins.push(origin),
                Err(what) => config.warnings.push(format!("OLLAMA_ORIGINS: {what}")),
            }
        }
    }
    if let Some(text) = env.var("OLLAMA_BASE_URL") {
        match read::server(&text) {
            Ok(server) => base_url(config, server),
            Err(what) => config.warnings.push(format!("OLLAMA_BASE_URL: {what}")),
        }
    }
    Ok(())
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// `auto`, `none`, or servers.
fn local(text: &str) -> Result<Option<Vec<LocalEngine>>, String> {
    match text.trim() {
        "auto" => Ok(None),
        "none" => Ok(Some(Vec::new())),
        text => {
            let engine = |text| {
                let server = read::server(text)?;
                Ok(LocalEngine { server, slots: None, context_length: None, user: None })
            };
            list(text).map(engine).collect::<Result<_, _>>().map(Some)
        }
    }
}

fn base_url(config: &mut Config, server: Server) {
    let loopback = is_loopback(&server.host);
    let is_us = |at: &ListenAt| match at {
        ListenAt::Tcp(addr) => loopback && addr.port() == server.port,
        ListenAt::Unix(_) | ListenAt::Bridge(_) => false,
    };
    let is_local = match &config.local {
        None => loopback && LOOKED_AT.contains(&server.port),
        Some(engines) => engines.iter().any(|e| {
            e.server.port == server.port
                && (e.server.host == server.host || loopback && is_loopback(&e.server.host))
        }),
    };
    let is_named = config.ollamas.iter().any(|o| o.server == server);
    let taken = config.ollamas.iter().any(|o| o.name == BASE_URL_NAME);
    if !is_local && !is_named && !taken && !config.listen.iter().any(is_us) {
        config.ollamas.push(ConfiguredServer { name: BASE_URL_NAME.to_owned(), server });
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
