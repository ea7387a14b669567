//! Who may ask from inside a web browser.
//!
//! Any web page can send requests to loopback, and DNS rebinding lets it choose the `Host`
//! under which they come. So `Host` and `Origin` are checked on every listener, as Ollama
//! does and more strictly in two places: a name that an attacker's DNS could own passes only
//! where no browser speaks, and an origin is never allowed because it equals `Host`.
//!
//! A refusal is a 403 with an empty body.

use std::net::IpAddr;

use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::types::glob;

/// What `Host` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostVerdict {
    /// This machine, by a name no page can take over.
    Allowed,
    /// A private address or name: fine for programs, not for browsers.
    NotForBrowsers,
    /// Somebody else.
    Refused,
}

/// Judges a `Host` header: loopback, `localhost`, this machine's own names and addresses, and
/// `allowed` (globs) are this machine.
pub fn host_allowed(
    host: Option<&str>,
    own_names: &[String],
    own_addrs: &[IpAddr],
    allowed: &[String],
) -> HostVerdict {
    // Only HTTP/1.0 programs leave it out.
    let Some(host) = host.filter(|h| !h.is_empty()) else { return HostVerdict::NotForBrowsers };
    let name = without_port(host);
    if let Some(ip) = address(name) {
        let is_own = ip.is_loopback() || own_addrs.contains(&ip);
        return if is_own || allowed.iter().any(|a| glob(a, name)) {
            HostVerdict::Allowed
        } else if is_private(ip) {
            HostVerdict::NotForBrowsers
        } else {
            HostVerdict::Refused
        };
    }
    let is_own = name.eq_ignore_ascii_case("localhost")
        || own_names.iter().any(|own| own.eq_ignore_ascii_case(name))
        || allowed.iter().any(|a| glob(a, name));
    if is_own {
        HostVerdict::Allowed
    } else if ["*.localhost", "*.local", "*.internal"].iter().any(|p| glob(p, name)) {
        HostVerdict::NotForBrowsers
    } else {
        HostVerdict::Refused
    }
}

/// Which origins may read our answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origins {
    any: bool,
    exact: Vec<String>,
    /// What stands before and behind the `*`.
    wild: Vec<(String, String)>,
}

impl Origins {
    /// `extra` as in `OLLAMA_ORIGINS`, and those Ollama always allows.
    pub fn with_defaults(extra: &[String]) -> Origins {
        let mut origins = Origins::listed(extra);
        for host in ["localhost", "127.0.0.1", "0.0.0.0"] {
            for scheme in ["http", "https"] {
                origins.exact.push(format!("{scheme}://{host}"));
                origins.wild.push((format!("{scheme}://{host}:"), String::new()));
            }
        }
        for scheme in ["app", "file", "tauri", "vscode-webview", "vscode-file"] {
            origins.wild.push((format!("{scheme}://"), String::new()));
        }
        origins
    }

    /// Only `extra`.
    pub fn listed(extra: &[String]) -> Origins {
        let mut origins = Origins::default();
        for pattern in extra.iter().map(|p| p.trim().to_ascii_lowercase()) {
            match pattern.split_once('*') {
                Some(("", "")) => origins.any = true,
                Some((head, tail)) => origins.wild.push((head.to_owned(), tail.to_owned())),
                None => origins.exact.push(pattern),
            }
        }
        origins
    }

    /// Whether `origin` is one of them.
    pub fn allow(&self, origin: &str) -> bool {
        self.any
            || self.exact.iter().any(|o| o == origin)
            || self.wild.iter().any(|(head, tail)| {
                origin.len() >= head.len() + tail.len()
                    && origin.starts_with(head.as_str())
                    && origin.ends_with(tail.as_str())
            })
    }

    /// The value of `Access-Control-Allow-Origin` for an allowed origin.
    fn answer(&self, origin: &HeaderValue) -> HeaderValue {
        if self.any { HeaderValue::from_static("*") } else { origin.clone() }
    }
}

/// Why a request is not served. All are 403 without a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `Host` names another machine.
    #[error("host")]
    Host,
    /// A browser asks for a page that may not ask.
    #[error("origin")]
    Origin,
}

impl Refusal {
    /// The label in `tailherd_refused_total`.
    pub const fn label(self) -> &'static str {
        match self {
            Refusal::Host => "host",
            Refusal::Origin => "origin",
        }
    }
}

/// The check on apps listeners.
pub fn apps(headers: &HeaderMap, host: HostVerdict, origins: &Origins) -> Result<(), Refusal> {
    match host {
        HostVerdict::Refused => return Err(Refusal::Host),
        HostVerdict::NotForBrowsers if has_fetch_marks(headers) => return Err(Refusal::Host),
        HostVerdict::NotForBrowsers if headers.contains_key(header::ORIGIN) => {
            return Err(Refusal::Host);
        }
        HostVerdict::NotForBrowsers | HostVerdict::Allowed => {}
    }
    every_origin(headers, origins)
}

/// The check on mesh listeners: no page speaks for a node, unless its origin is listed in
/// the configuration ([`Origins::listed`]).
pub fn mesh(headers: &HeaderMap, listed: &Origins) -> Result<(), Refusal> {
    if headers.contains_key(header::ORIGIN) {
        return every_origin(headers, listed);
    }
    if headers.contains_key(header::REFERER) || has_fetch_marks(headers) {
        return Err(Refusal::Origin);
    }
    Ok(())
}

/// The check on the admin listener: a loopback `Host`, and pages of that listener only.
pub fn admin(headers: &HeaderMap) -> Result<(), Refusal> {
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok());
    if host_allowed(host, &[], &[], &[]) != HostVerdict::Allowed {
        return Err(Refusal::Host);
    }
    let same =
        |origin: &HeaderValue| origin.to_str().ok().and_then(|o| o.strip_prefix("http://")) == host;
    if headers.get_all(header::ORIGIN).iter().all(same)
        && headers.get_all("sec-fetch-site").iter().all(|s| s == "same-origin" || s == "none")
    {
        Ok(())
    } else {
        Err(Refusal::Origin)
    }
}

/// Adds to an answer what lets an allowed page read it. Without an `Origin` in the request
/// nothing is added.
pub fn cors(request: &HeaderMap, origins: &Origins, answer: &mut HeaderMap) {
    let Some(origin) = request.get(header::ORIGIN) else { return };
    answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origins.answer(origin));
    if !origins.any {
        answer.append(header::VARY, HeaderValue::from_static("Origin"));
    }
}

/// The head of the 204 to an `OPTIONS`, whose checks it has passed; `allow` from the route.
/// `None` = Ollama answers this one with 405 (or 404 where `allow` is empty): no page asks,
/// and `Host` is an address.
pub fn preflight(request: &HeaderMap, origins: &Origins, allow: &'static str) -> Option<HeaderMap> {
    let mut answer = HeaderMap::new();
    if !allow.is_empty() {
        answer.insert(header::ALLOW, HeaderValue::from_static(allow));
    }
    let Some(origin) = request.get(header::ORIGIN) else {
        let host = request.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
        return address(without_port(host)).is_none().then_some(answer);
    };
    let fixed = [
        (header::ACCESS_CONTROL_ALLOW_HEADERS, ALLOW_HEADERS),
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"),
        (header::ACCESS_CONTROL_MAX_AGE, "43200"),
    ];
    for (name, value) in fixed {
        answer.insert(name, HeaderValue::from_static(value));
    }
    answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origins.answer(origin));
    if !origins.any {
        for name in ["Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers"] {
            answer.append(header::VARY, HeaderValue::from_static(name));
        }
    }
    Some(answer)
}

/// Whether the admin listener has this method: it only reads.
pub fn is_read(method: &Method) -> bool {
    *method == Method::GET || *method == Method::HEAD
}

/// Ollama's fixed list, and the request headers a program may send to us.
const ALLOW_HEADERS: &str = "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,\
Openai-Beta,X-Stainless-Arch,X-Stainless-Async,X-Stainless-Custom-Poll-Interval,\
X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,X-Stainless-Package-Version,\
X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,\
X-Stainless-Runtime-Version,X-Stainless-Timeout,X-Tailherd-Peer,X-Tailherd-Session,\
X-Tailherd-Agent,X-Tailherd-Priority,X-Tailherd-Where,X-Tailherd-Explain";

/// All `Origin` headers have to be allowed; none is fine.
fn every_origin(headers: &HeaderMap, origins: &Origins) -> Result<(), Refusal> {
    let ok = |o: &HeaderValue| o.is_empty() || o.to_str().is_ok_and(|o| origins.allow(o));
    if headers.get_all(header::ORIGIN).iter().all(ok) { Ok(()) } else { Err(Refusal::Origin) }
}

fn has_fetch_marks(headers: &HeaderMap) -> bool {
    headers.keys().map(HeaderName::as_str).any(|name| name.starts_with("sec-fetch-"))
}

/// `host`, `host:port`, `[v6]:port` without the port.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => {
            if port.bytes().all(|b| b.is_ascii_digit()) { name } else { host }
        }
        _ => host,
    }
}

/// The address a `Host` is, if it is one.
fn address(name: &str) -> Option<IpAddr> {
    let inner = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    inner.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// What Go calls private, and the unspecified address.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unspecified(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn host(host: &str, want: HostVerdict) {
        let own = ["desk".to_owned(), "desk.tail1234.ts.net".to_owned()];
        let addrs = ["100.64.0.7".parse().unwrap(), "192.168.1.5".parse().unwrap()];
        let allowed = ["*.lan".to_owned(), "100.64.9.9".to_owned()];
        assert_eq!(host_allowed(Some(host), &own, &addrs, &allowed), want, "{host}");
    }

    #[test]
    fn a_host_is_this_machine_or_is_not() {
        use HostVerdict::*;
        for ok in [
            "127.0.0.1:11434",
            "localhost",
            "LOCALHOST:1",
            "[::1]:11434",
            "127.8.8.8",
            "Desk:1",
            "desk.tail1234.ts.net",
            "100.64.0.7:11434",
            "192.168.1.5",
            "nas.lan",
            "100.64.9.9",
            "[::ffff:127.0.0.1]:1",
        ] {
            host(ok, Allowed);
        }
        for plain in
            ["", "nas.local", "x.internal", "x.localhost", "10.1.2.3", "[fd00::1]:1", "0.0.0.0"]
        {
            host(plain, NotForBrowsers);
        }
        for bad in [
            "evil.example",
            "100.64.0.8",
            "8.8.8.8",
            "localhost.evil.example",
            "gpu.tail1234.ts.net",
            "localhost.",
            "local",
            "127.0.0.1.nip.io",
            "desk:x",
            "[::1",
            "2130706433",
        ] {
            host(bad, Refused);
        }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_str(v).unwrap()))
            .collect()
    }

    #[test]
    fn only_listed_origins_may_ask() {
        let origins = Origins::with_defaults(&[
            "https://*.example.org".to_owned(),
            "chrome-extension://*".to_owned(),
        ]);
        for ok in [
            "http://localhost",
            "http://localhost:3000",
            "https://127.0.0.1:8443",
            "tauri://localhost",
            "file://",
            "vscode-webview://abc",
            "https://chat.example.org",
            "chrome-extension://abc",
        ] {
            assert!(origins.allow(ok), "{ok}");
        }
        for bad in [
            "https://evil.example",
            "null",
            "http://localhost.evil.example",
            "https://example.org",
            "http://desk:11434",
            "moz-extension://abc",
            "https://.example.org.evil",
        ] {
            assert!(!origins.allow(bad), "{bad}");
        }
        assert!(Origins::with_defaults(&["*".to_owned()]).allow("https://evil.example"));
        assert!(!Origins::listed(&[]).allow("http://localhost"));
    }

    #[test]
    fn a_page_never_passes_under_a_name_its_dns_may_own() {
        let origins = Origins::with_defaults(&[]);
        let check = |pairs: &[_], host| apps(&headers(pairs), host, &origins);
        use HostVerdict::*;
        assert_eq!(check(&[], NotForBrowsers), Ok(()));
        assert_eq!(check(&[("sec-fetch-site", "same-origin")], NotForBrowsers), Err(Refusal::Host));
        assert_eq!(check(&[("origin", "http://localhost")], NotForBrowsers), Err(Refusal::Host));
        assert_eq!(check(&[("origin", "http://localhost")], Allowed), Ok(()));
        // Same origin as Host, and still not one of ours.
        let rebound = [("host", "desk:11434"), ("origin", "http://desk:11434")];
        assert_eq!(check(&rebound, Allowed), Err(Refusal::Origin));
        let two = [("origin", "http://localhost"), ("origin", "https://evil.example")];
        let mut both = headers(&two[..1]);
        both.append("origin", HeaderValue::from_static("https://evil.example"));
        assert_eq!(apps(&both, Allowed, &origins), Err(Refusal::Origin));
    }

    #[test]
    fn the_mesh_serves_no_page() {
        let none = Origins::listed(&[]);
        assert_eq!(mesh(&headers(&[("user-agent", "curl")]), &none), Ok(()));
        for mark in ["origin", "referer", "sec-fetch-mode", "sec-fetch-dest"] {
            let sent = headers(&[(mark, "http://localhost")]);
            assert_eq!(mesh(&sent, &none), Err(Refusal::Origin), "{mark}");
        }
        let listed = Origins::listed(&["https://chat.example".to_owned()]);
        let page = headers(&[("origin", "https://chat.example"), ("sec-fetch-mode", "cors")]);
        assert_eq!(mesh(&page, &listed), Ok(()));
    }

    #[test]
    fn the_admin_page_is_alone() {
        let ok = |pairs: &[_]| admin(&headers(pairs)).is_ok();
        assert!(ok(&[("host", "127.0.0.1:11437")]));
        assert!(ok(&[("host", "localhost:11437"), ("origin", "http://localhost:11437")]));
        assert!(ok(&[("host", "localhost:11437"), ("sec-fetch-site", "none")]));
        assert!(!ok(&[("host", "localhost:11437"), ("origin", "http://localhost:3000")]));
        assert!(!ok(&[("host", "localhost:11437"), ("sec-fetch-site", "cross-site")]));
        assert!(!ok(&[("host", "desk:11437")]));
        assert!(!ok(&[]));
    }

    #[test]
    fn an_options_without_a_page_is_answered_as_ollama_does() {
        let origins = Origins::with_defaults(&[]);
        let named = preflight(&headers(&[("host", "localhost")]), &origins, "POST").unwrap();
        assert_eq!((named.len(), &named["allow"]), (1, &HeaderValue::from_static("POST")));
        assert_eq!(preflight(&headers(&[("host", "127.0.0.1:1")]), &origins, "POST"), None);
    }
}
