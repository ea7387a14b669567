//! Which headers pass: toward engines and peers, and back to clients.
//!
//! Headers are where secrets travel and where one proxy's word is taken for another's. So
//! what describes a connection ends with it, what only we may say is removed before we say
//! it, keys never leave this machine, and of an answer only known headers pass.

use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// To whom a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// An engine on this machine.
    Engine,
    /// A peer's sidecar.
    Mesh,
    /// A peer's engine, or a server named in the configuration.
    Bare,
    /// A hosted provider: it gets a key of its own, and only a few headers.
    Hosted,
}

/// Why an answer may not be passed on; the client gets a 502.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// It sends the client elsewhere.
    #[error("it answered with a redirect")]
    Redirect,
    /// It is nothing a model server says.
    #[error("it answered with a content type no model server sends")]
    ContentType,
    /// It changes the protocol.
    #[error("it answered with an unexpected 1xx")]
    Informational,
}

/// Headers that belong to one connection.
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// Parts of names of headers that may hold a secret.
const SECRET: &[&str] = &[
    "authorization",
    "cookie",
    "api-key",
    "apikey",
    "token",
    "secret",
    "password",
    "credential",
    "x-openwebui-user-",
    "baggage",
];

/// What a hosted provider gets to see.
const HOSTED: &[&str] =
    &["content-type", "content-length", "content-encoding", "accept", "user-agent"];

/// What passes of an answer, beside `x-ratelimit-*` and `anthropic-ratelimit-*`.
const ANSWER: &[&str] = &[
    "content-type",
    "content-length",
    "content-encoding",
    "cache-control",
    "date",
    "retry-after",
    "retry-after-ms",
    "allow",
    "request-id",
    "x-request-id",
    "openai-processing-ms",
    "openai-version",
];

/// Content types of model servers.
const TYPES: &[&str] =
    &["application/json", "application/x-ndjson", "text/event-stream", "text/plain"];

/// Prepares a client's headers for `target`. What the next one needs of ours (`Host`,
/// `x-tailherd-*`) is set by the caller afterwards, and `Content-Length` is his to change if
/// he changes the body.
pub fn request(headers: &mut HeaderMap, target: Target) {
    keep(headers, |name| {
        let passes = !is_ours_to_say(name) && !is_for_this_hop(name);
        match target {
            Target::Engine => passes,
            Target::Mesh | Target::Bare => passes && !is_secret(name),
            Target::Hosted => HOSTED.contains(&name),
        }
    });
}

/// Prepares an answer's headers for the client.
pub fn response(status: StatusCode, headers: &mut HeaderMap) -> Result<(), Reject> {
    if status.is_redirection() {
        return Err(Reject::Redirect);
    }
    if status.is_informational() {
        return Err(Reject::Informational);
    }
    for value in headers.get_all(header::CONTENT_TYPE) {
        let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
        if !TYPES.iter().any(|t| essence.trim().eq_ignore_ascii_case(t)) {
            return Err(Reject::ContentType);
        }
    }
    keep(headers, |name| {
        ANSWER.contains(&name)
            || name.starts_with("x-ratelimit-")
            || name.starts_with("anthropic-ratelimit-")
    });
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(())
}

/// Whether somebody in front of us (`tailscale serve`, a reverse proxy) has spoken for the
/// client. On apps such a request is refused unless `trustServe`.
pub fn is_forwarded(headers: &HeaderMap) -> bool {
    headers.keys().map(HeaderName::as_str).any(|name| {
        name.starts_with("tailscale-") || name.starts_with("x-forwarded-") || name == "forwarded"
    })
}

/// Whether only a sidecar may say this.
fn is_ours_to_say(name: &str) -> bool {
    name.starts_with("x-tailherd-")
        || name.starts_with("tailscale-")
        || name.starts_with("x-forwarded-")
        || name == "forwarded"
        || name == "x-real-ip"
        || name == "via"
}

/// Whether this was meant for us: the checks a browser's request passed here, what we decode
/// ourselves, and the name we were called by.
fn is_for_this_hop(name: &str) -> bool {
    matches!(name, "host" | "origin" | "referer" | "accept-encoding" | "expect")
        || name.starts_with("sec-fetch-")
        || name.starts_with("access-control-")
}

fn is_secret(name: &str) -> bool {
    SECRET.iter().any(|part| name.contains(part))
}

/// Removes what belongs to one connection, what `Connection` says does, and what does not pass.
fn keep(headers: &mut HeaderMap, passes: impl Fn(&str) -> bool) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        // Content-Length is how the body is framed, whatever a client claims.
        .filter(|name| *name != header::CONTENT_LENGTH)
        .collect();
    let stays = |name: &HeaderName| {
        !HOP_BY_HOP.contains(&name.as_str()) && !named.contains(name) && passes(name.as_str())
    };
    let gone: Vec<HeaderName> = headers.keys().filter(|name| !stays(name)).cloned().collect();
    for name in gone {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[&str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            let name = HeaderName::try_from(name).unwrap();
            map.append(name, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn what_belongs_to_a_connection_ends_with_it() {
        let mut h = map(&[
            "Connection: close, X-Mine",
            "Connection: Content-Length, x-also",
            "X-Mine: 1",
            "X-Also: 1",
            "Keep-Alive: 5",
            "TE: trailers",
            "Transfer-Encoding: chunked",
            "Upgrade: h2c",
            "Content-Length: 5",
            "User-Agent: ollama/0.32",
        ]);
        request(&mut h, Target::Engine);
        assert_eq!(names(&h), ["content-length", "user-agent"]);
    }

    #[test]
    fn no_secret_leaves_this_machine() {
        let secrets = [
            "Authorization: s",
            "Cookie: s",
            "x-api-key: s",
            "api-key: s",
            "x-goog-api-key: s",
            "X-OpenWebUI-User-Email: s",
            "X-OpenWebUI-User-Id: s",
            "baggage: s",
            "X-Auth-Token: s",
            "Proxy-Authorization: s",
            "X-Tailherd-Hop: s",
            "x-tailherd-attempt: s",
            "Tailscale-User-Login: s",
            "X-Forwarded-For: s",
            "Forwarded: s",
            "Origin: s",
        ];
        let kept = ["Content-Type: application/json", "User-Agent: x"];
        for target in [Target::Engine, Target::Mesh, Target::Bare, Target::Hosted] {
            for secret in secrets {
                let mut h = map(&[secret, kept[0], kept[1]]);
                request(&mut h, target);
                let name = secret.split(':').next().unwrap().to_lowercase();
                let stays = target == Target::Engine
                    && ["authorization", "cookie", "key", "openwebui", "baggage", "token"]
                        .iter()
                        .any(|s| name.contains(s))
                    && !name.starts_with("proxy-");
                assert_eq!(h.contains_key(&name), stays, "{name} to {target:?}");
                assert!(h.contains_key("content-type") && h.contains_key("user-agent"));
            }
        }
    }

    #[test]
    fn an_engine_gets_what_a_client_meant_for_it() {
        let mut h = map(&[
            "Host: x",
            "Accept: */*",
            "Accept-Encoding: gzip",
            "anthropic-version: 1",
            "OpenAI-Beta: x",
            "traceparent: 00",
            "Sec-Fetch-Mode: cors",
            "Referer: x",
        ]);
        request(&mut h, Target::Engine);
        assert_eq!(names(&h), ["accept", "anthropic-version", "openai-beta", "traceparent"]);
        request(&mut h, Target::Hosted);
        assert_eq!(names(&h), ["accept"]);
    }

    #[test]
    fn answers_say_only_what_model_servers_say() {
        let mut h = map(&[
            "Content-Type: application/json; charset=utf-8",
            "Content-Length: 2",
            "Set-Cookie: a=b",
            "Location: http://x",
            "Refresh: 0",
            "X-Tailherd-Served-By: evil",
            "Server: x",
            "Access-Control-Allow-Origin: *",
            "Connection: close",
            "Retry-After: 1",
            "X-RateLimit-Remaining-Tokens: 1",
            "Content-Security-Policy: x",
        ]);
        assert_eq!(response(StatusCode::OK, &mut h), Ok(()));
        assert_eq!(
            names(&h),
            [
                "content-length",
                "content-type",
                "retry-after",
                "x-content-type-options",
                "x-ratelimit-remaining-tokens"
            ]
        );
    }

    #[test]
    fn answers_no_model_server_gives_are_rejected() {
        let check = |status, lines: &[&str]| {
            response(StatusCode::from_u16(status).unwrap(), &mut map(lines))
        };
        for status in [300, 301, 302, 303, 304, 307, 308] {
            assert_eq!(check(status, &[]), Err(Reject::Redirect), "{status}");
        }
        assert_eq!(check(101, &[]), Err(Reject::Informational));
        for kind in [
            "text/html",
            "text/html; charset=utf-8",
            "image/svg+xml",
            "application/javascript",
            "x",
        ] {
            let line = format!("Content-Type: {kind}");
            assert_eq!(check(200, &[&line]), Err(Reject::ContentType), "{kind}");
        }
        let two = ["Content-Type: application/json", "Content-Type: text/html"];
        assert_eq!(check(200, &two), Err(Reject::ContentType));
        assert_eq!(check(200, &[]), Ok(()));
    }

    #[test]
    fn words_of_a_proxy_in_front_are_seen() {
        assert!(is_forwarded(&map(&["Tailscale-User-Login: a@b"])));
        assert!(is_forwarded(&map(&["X-Forwarded-For: 1.1.1.1"])));
        assert!(is_forwarded(&map(&["Forwarded: for=x"])));
        assert!(!is_forwarded(&map(&["X-Request-Id: 1"])));
    }
}
