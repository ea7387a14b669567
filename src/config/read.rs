//! Small texts: durations, sizes, times of day, servers, listeners, patterns.
//!
//! Every function takes a text whose variables are filled in and says in its error what it
//! expected, never where: the caller knows.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::nearest;
use super::run::{ListenAt, Server};
use crate::types::ModelKey;

/// The port of an Ollama when none is named.
pub(super) const OLLAMA_PORT: u16 = 11434;

/// A duration as Go writes it, and days: `30s`, `1m30s`, `500ms`, `14d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration: expected one such as 30s, 5m or 1h30m");
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.starts_with('-') {
        return Err(format!("`{text}`: a duration cannot be negative here"));
    }
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut seconds = 0.0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        seconds += number
            * match &rest[..unit] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86400.0,
                _ => return Err(wrong()),
            };
        rest = &rest[unit..];
    }
    // A hundred years: what is longer is a slip, and overflows somewhere later.
    if seconds > 3.2e9 {
        return Err(format!("`{text}` is too long for a duration"));
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

/// `keep_alive` as Ollama reads it: a duration or seconds; negative = for ever.
pub(super) fn keep_alive(text: &str) -> Result<String, String> {
    let text = text.trim();
    let positive = text.strip_prefix('-').unwrap_or(text);
    if positive.parse::<u32>().is_ok() || duration(positive).is_ok() {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is not a keep_alive: expected one such as 30m, 0, or -1 for ever"))
    }
}

/// A size: `128MiB`, `1GB`, `4096`.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let wrong = || format!("`{text}` is not a size: expected one such as 128MiB or 4096");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit: u64 = match text[digits..].trim_start() {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1000 * 1000,
        "GB" => 1000 * 1000 * 1000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    match number.checked_mul(unit) {
        Some(0) => Err("a size of nothing is not possible here".to_owned()),
        Some(bytes) if bytes <= 1 << 50 => Ok(bytes),
        _ => Err(format!("`{text}` is more than any machine has")),
    }
}

/// `22:00-07:00` as minutes of the day.
pub(super) fn hours(text: &str) -> Result<(u16, u16), String> {
    let minute = |t: &str| -> Option<u16> {
        let (h, m) = t.trim().split_once(':')?;
        let (h, m): (u16, u16) = (h.parse().ok()?, m.parse().ok()?);
        (h < 24 && m < 60).then_some(h * 60 + m)
    };
    text.split_once('-')
        .and_then(|(from, to)| Some((minute(from)?, minute(to)?)))
        .filter(|(from, to)| from != to)
        .ok_or_else(|| format!("`{text}` are no hours: expected hours such as 22:00-07:00"))
}

/// A server as `OLLAMA_HOST` names one: `host`, `host:port`, `[v6]:port`, `:port`,
/// `http://host` (port 80), `https://host` (port 443), each with a path.
pub(super) fn server(text: &str) -> Result<Server, String> {
    let text = text.trim().trim_matches(['"', '\'']);
    let wrong = |why: &str| {
        format!("`{text}` is no server: {why}; expected one such as http://192.168.1.100:11434")
    };
    let (tls, default, rest) = match text.split_once("://") {
        None => (false, OLLAMA_PORT, text),
        Some(("http", rest)) => (false, 80, rest),
        Some(("https", rest)) => (true, 443, rest),
        Some((scheme, _)) => return Err(wrong(&format!("`{scheme}` is neither http nor https"))),
    };
    if rest.contains(['?', '#']) {
        return Err(wrong("a base URL has no query"));
    }
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    if authority.contains('@') {
        return Err(wrong("a password in a URL ends up in logs"));
    }
    let (host, port) = if let Some(v6) = authority.strip_prefix('[') {
        let (host, port) = v6.split_once(']').ok_or_else(|| wrong("`[` is not closed"))?;
        host.parse::<std::net::Ipv6Addr>().map_err(|_| wrong("not an IPv6 address"))?;
        (
            host,
            port.strip_prefix(':')
                .or(port.is_empty().then_some(""))
                .ok_or_else(|| wrong("a port begins with a colon"))?,
        )
    } else if authority.parse::<std::net::Ipv6Addr>().is_ok() {
        (authority, "")
    } else {
        authority.split_once(':').unwrap_or((authority, ""))
    };
    let host = if host.is_empty() { "127.0.0.1" } else { host };
    if host.parse::<IpAddr>().is_err() && !is_host(host) {
        return Err(wrong("the host is neither an address nor a name"));
    }
    if host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified()) {
        return Err(wrong("nobody can be reached at an unspecified address"));
    }
    let port = match port {
        "" => default,
        port => match port.parse() {
            Ok(0) | Err(_) => return Err(wrong("the port is not between 1 and 65535")),
            Ok(port) => port,
        },
    };
    let prefix = path.trim_end_matches('/');
    if !prefix.chars().all(|c| c.is_ascii_graphic() && c != '\\') || prefix.contains("..") {
        return Err(wrong("the path holds characters it may not"));
    }
    Ok(Server { host: host.to_ascii_lowercase().into(), port, tls, prefix: prefix.into() })
}

/// Where programs reach us: `127.0.0.1:11434`, `[::1]:11434`, `unix:PATH`, `docker0`.
pub(super) fn listen(text: &str) -> Result<ListenAt, String> {
    let text = text.trim();
    if let Some(path) = text.strip_prefix("unix:") {
        let path = Path::new(path);
        return if path.is_absolute() {
            Ok(ListenAt::Unix(path.to_owned()))
        } else {
            Err(format!("`{text}`: a socket's path has to begin with `/`"))
        };
    }
    if !text.contains([':', '[']) && text.parse::<IpAddr>().is_err() {
        // What is left without a port is an interface.
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        return if (1..=15).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.chars().all(good)
        {
            Ok(ListenAt::Bridge(text.to_owned()))
        } else {
            Err(format!("`{text}` is neither address:port, unix:PATH nor a bridge such as docker0"))
        };
    }
    let addr = address(text)?;
    if !addr.ip().is_loopback() {
        return Err(format!(
            "`{text}` is not a loopback address: programs that come in here need no login. \
             Containers reach it by their bridge (\"docker0\"), other machines over the tailnet"
        ));
    }
    Ok(ListenAt::Tcp(addr))
}

/// An address and a port, never every address at once.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let text = text.trim();
    let addr = match text.strip_prefix("localhost:").or_else(|| text.strip_prefix(':')) {
        Some(port) => port.parse().ok().map(|p| SocketAddr::from((Ipv4Addr::LOCALHOST, p))),
        None => text.parse::<SocketAddr>().ok(),
    };
    let addr = addr.ok_or_else(|| {
        format!("`{text}` is not an address with a port: expected one such as 127.0.0.1:11434")
    })?;
    let everywhere = match addr.ip() {
        IpAddr::V4(ip) => ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_unspecified() || ip.to_ipv4_mapped().is_some(),
    };
    if everywhere || addr.ip().is_multicast() {
        return Err(format!("`{text}`: listening on every address at once is not possible"));
    }
    Ok(addr)
}

/// A pattern of model names, in which only `*` is special.
pub(super) fn pattern(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "*-_.:/@".contains(c);
    match text.chars().find(|c| !good(*c)) {
        Some(c) => Err(format!("`{text}`: `{c}` cannot stand in a pattern: only `*` is special")),
        None if text.is_empty() => Err("an empty pattern matches nothing".to_owned()),
        None if text.len() > 256 => Err("a pattern has at most 256 characters".to_owned()),
        None => Ok(text.to_owned()),
    }
}

/// The name of a model.
pub(super) fn model(text: &str) -> Result<String, String> {
    ModelKey::parse(text).map_err(|e| format!("`{text}`: {e}"))?;
    Ok(text.trim().to_owned())
}

/// A host name, for `Host` and DNS.
pub(super) fn host(text: &str) -> Result<String, String> {
    if is_host(text) || text.parse::<IpAddr>().is_ok() {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(format!("`{text}` is not a host name (without scheme, port and path)"))
    }
}

/// A browser origin as `OLLAMA_ORIGINS` has it; `*` may stand in it.
pub(super) fn origin(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text == "*" {
        return Ok(text.to_owned());
    }
    match text.split_once("://") {
        Some((scheme, rest))
            if !scheme.is_empty()
                && !rest.is_empty()
                && text.chars().all(|c| c.is_ascii_graphic())
                && !rest.trim_end_matches('/').contains('/') =>
        {
            Ok(text.trim_end_matches('/').to_owned())
        }
        _ => Err(format!("`{text}` is not an origin: expected one such as http://nas.local:3000")),
    }
}

/// The absolute path of a file.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if path.is_absolute() {
        Ok(path.to_owned())
    } else {
        Err(format!("`{text}`: a path has to begin with `/`"))
    }
}

/// The name of a tailnet app capability: `example.com/cap/use`.
pub(super) fn capability(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((domain, rest))
            if is_host(domain)
                && !rest.is_empty()
                && rest.chars().all(|c| c.is_ascii_graphic()) =>
        {
            Ok(text.to_owned())
        }
        _ => Err(format!("`{text}` is no capability: expected one such as example.com/cap/use")),
    }
}

/// A log level, or a filter such as `info,tailherd::gate=debug`.
pub(super) fn level(text: &str) -> Result<String, (String, Option<String>)> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let word = text.trim().to_ascii_lowercase();
    if LEVELS.contains(&word.as_str()) || word.contains(['=', ',']) {
        Ok(text.trim().to_owned())
    } else {
        Err((
            format!(
                "`{text}` is no level: expected off, error, warn, info, debug, trace or a filter"
            ),
            nearest(&word, LEVELS),
        ))
    }
}

/// Yes or no in an environment variable.
pub(super) fn yes(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(format!("`{text}` is neither yes nor no: expected 1 or 0")),
    }
}

fn is_host(text: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let ms = |n| Ok(Duration::from_millis(n));
        for (text, want) in [
            ("30s", ms(30_000)),
            ("1m30s", ms(90_000)),
            ("500ms", ms(500)),
            ("1.5h", ms(5_400_000)),
            ("14d", ms(1_209_600_000)),
            ("0", ms(0)),
            ("0s", ms(0)),
        ] {
            assert_eq!(duration(text), want, "{text}");
        }
        for bad in ["", "30", "s", "-5s", "5 apples", "1e9d", "999999999d", "..s", "5µs", "∞"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keep_alive_may_be_for_ever() {
        for (text, good) in
            [("30m", true), ("-1", true), ("-5m", true), ("0", true), ("300", true), ("x", false)]
        {
            assert_eq!(keep_alive(text).is_ok(), good, "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, want) in
            [("4096", 4096), ("1KiB", 1024), ("128MiB", 128 << 20), ("1 GB", 1_000_000_000)]
        {
            assert_eq!(size(text), Ok(want), "{text}");
        }
        for bad in ["", "MiB", "1TiB", "-1", "0", "1.5GiB", "99999999999999999999", "9999999999GiB"]
        {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn quiet_hours() {
        assert_eq!(hours("22:00-07:00"), Ok((1320, 420)));
        for bad in ["", "22-7", "24:00-01:00", "10:60-11:00", "10:00-10:00", "10:00"] {
            assert!(hours(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn servers_are_read_as_ollama_host_is() {
        #[track_caller]
        fn check(text: &str, host: &str, port: u16, tls: bool, prefix: &str) {
            let want = Server { host: host.into(), port, tls, prefix: prefix.into() };
            assert_eq!(server(text), Ok(want), "{text}");
        }
        check("nas", "nas", 11434, false, "");
        check("nas:8080", "nas", 8080, false, "");
        check(":11435", "127.0.0.1", 11435, false, "");
        check("", "127.0.0.1", 11434, false, "");
        check("http://nas", "nas", 80, false, "");
        check("https://nas/", "nas", 443, true, "");
        check("https://NAS.example.net:8443/ollama/", "nas.example.net", 8443, true, "/ollama");
        check("192.168.1.100:11434/base", "192.168.1.100", 11434, false, "/base");
        check("[fd00::1]", "fd00::1", 11434, false, "");
        check("http://[fd00::1]:9/x", "fd00::1", 9, false, "/x");
        check("::1", "::1", 11434, false, "");
        for bad in [
            "ftp://nas",
            "nas:0",
            "nas:99999",
            "nas:x",
            "http://u:p@nas",
            "nas?x=1",
            "[fd00::1",
            "[nas]:1",
            "na s",
            "0.0.0.0:1",
            "nas/../x",
            "http://",
            "[::1]x",
        ] {
            // A scheme alone is this machine, as with OLLAMA_HOST.
            assert_eq!(server(bad).is_err(), bad != "http://", "{bad}");
        }
    }

    #[test]
    fn listeners_are_never_open_to_the_network() {
        for (text, want) in [
            ("127.0.0.1:11434", ListenAt::Tcp(([127, 0, 0, 1], 11434).into())),
            ("localhost:1", ListenAt::Tcp(([127, 0, 0, 1], 1).into())),
            (":0", ListenAt::Tcp(([127, 0, 0, 1], 0).into())),
            ("unix:/run/t.sock", ListenAt::Unix("/run/t.sock".into())),
            ("docker0", ListenAt::Bridge("docker0".to_owned())),
        ] {
            assert_eq!(listen(text), Ok(want), "{text}");
        }
        assert!(matches!(listen("[::1]:11434"), Ok(ListenAt::Tcp(_))));
        for bad in [
            "0.0.0.0:11434",
            "[::]:11434",
            "[::ffff:0.0.0.0]:1",
            "192.168.1.5:11434",
            "unix:t.sock",
            "127.0.0.1",
            "127.0.0.1:99999",
            "nas:11434",
            "",
            "a-very-long-interface",
            "http://x",
        ] {
            assert!(listen(bad).is_err(), "{bad}");
        }
        assert!(address("100.64.0.1:11437").is_ok());
        assert!(address("0.0.0.0:11437").is_err());
    }

    #[test]
    fn patterns_hosts_and_origins() {
        for (text, good) in
            [("*", true), ("qwen3:*", true), ("", false), ("q?", false), ("[a]", false)]
        {
            assert_eq!(pattern(text).is_ok(), good, "{text}");
        }
        for (text, good) in
            [("nas.local", true), ("10.0.0.1", true), ("http://x", false), ("a b", false)]
        {
            assert_eq!(host(text).is_ok(), good, "{text}");
        }
        for (text, good) in [
            ("*", true),
            ("http://localhost", true),
            ("https://*.example.com:8443/", true),
            ("app://*", true),
            ("nas.local", false),
            ("http://a/b", false),
            ("http://", false),
        ] {
            assert_eq!(origin(text).is_ok(), good, "{text}");
        }
        for (text, good) in [("tailherd.dev/cap/use", true), ("cap", false), ("a/", false)] {
            assert_eq!(capability(text).is_ok(), good, "{text}");
        }
    }
}
