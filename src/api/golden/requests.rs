//! Requests: routes, bodies, browsers.

use http::{HeaderMap, HeaderValue, Method};
use serde_json::Value;

use super::samples;
use crate::api::browser::{self, HostVerdict, Origins, host_allowed};
use crate::api::peek::{Problem, Scanner};
use crate::api::route::Class;
use crate::types::{Api, Op};

#[test]
fn every_recorded_request_has_its_class() {
    for s in samples().values() {
        let route = s.route();
        let want = match (s.method.as_str(), s.path.as_str()) {
            ("GET" | "HEAD", "/" | "/api/version") | ("OPTIONS", _) => Class::Here,
            ("GET" | "HEAD", "/api/tags" | "/api/ps" | "/v1/models") => Class::Union,
            ("PUT", "/api/tags") => Class::MethodNotAllowed,
            ("GET", "/api/nothing") => Class::NotFound,
            ("GET", "/v1/models/tiny" | "/v1/models/nope")
            | (
                "POST",
                "/api/show"
                | "/api/chat"
                | "/api/generate"
                | "/api/embed"
                | "/api/embeddings"
                | "/v1/chat/completions"
                | "/v1/completions"
                | "/v1/responses"
                | "/v1/messages"
                | "/v1/embeddings",
            ) => Class::Routed,
            _ => Class::ThisNode,
        };
        assert_eq!(route.class, want, "{}", s.name);
        if want == Class::MethodNotAllowed {
            assert_eq!(s.headers["allow"], route.allow, "{}", s.name);
            assert_eq!(s.body, crate::api::error::METHOD_NOT_ALLOWED);
            assert_eq!(s.kind(), "text/plain");
        }
        if want == Class::NotFound {
            assert_eq!(s.body, crate::api::error::NOT_FOUND);
            assert_eq!(s.kind(), "text/plain");
        }
        if !matches!(want, Class::NotFound | Class::MethodNotAllowed) && route.op != Op::Preflight {
            assert_eq!(route.upstream, s.path, "{}", s.name);
        }
    }
}

#[test]
fn every_recorded_body_is_read() {
    for s in samples().values() {
        let mut scanner = Scanner::new();
        s.request.as_bytes().chunks(3).for_each(|frame| scanner.feed(frame));
        let peeked = scanner.finish();
        let Ok(body) = serde_json::from_str::<Value>(&s.request) else {
            let want = if s.request.is_empty() { Problem::Empty } else { Problem::Cut };
            assert_eq!(peeked.problem, Some(want), "{}", s.name);
            continue;
        };
        let want = body.get("model").or(body.get("name")).and_then(Value::as_str);
        assert_eq!(peeked.wanted().map(|at| at.value.as_str()), want, "{}", s.name);
        assert_eq!((peeked.problem, peeked.conflict), (None, None), "{}", s.name);
        let route = s.route();
        // What was asked to stream and went well is a stream.
        let streams = peeked.streams(route.api, route.op) && !peeked.is_bare(route.api, route.op);
        if route.class == Class::Routed && route.op != Op::Show && s.status == 200 {
            assert_eq!(streams, s.is_stream(), "{}", s.name);
        }
        let unload = s.body.contains(r#""done_reason":"unload""#);
        assert_eq!(peeked.unloads(route.api, route.op), unload, "{}", s.name);
        let bare = unload || s.body.contains(r#""done_reason":"load""#);
        if s.status == 200 && route.api == Api::Ollama {
            assert_eq!(peeked.is_bare(route.api, route.op), bare, "{}", s.name);
        }
    }
}

#[test]
fn hosts_and_origins_are_judged_as_recorded() {
    let all = samples();
    let origins = Origins::with_defaults(&[]);
    for version in ["0.24.0", "0.32.15"] {
        for (case, host) in [
            ("host-tailnet", "desk.tail1234.ts.net"),
            ("host-cgnat", "100.64.0.7:11434"),
            ("host-private", "192.168.1.5"),
            ("host-local", "desk.local"),
        ] {
            let verdict = host_allowed(Some(host), &[], &[], &[]);
            let refused = browser::apps(&HeaderMap::new(), verdict, &origins).is_err();
            let sample = &all[&format!("{version}/{case}")];
            assert_eq!(refused, sample.status == 403, "{case}");
        }
        for (case, origin) in
            [("cors-evil", "https://evil.example"), ("cors-local", "http://localhost:3000")]
        {
            let sample = &all[&format!("{version}/{case}")];
            let mut request = HeaderMap::new();
            request.insert("origin", HeaderValue::from_static(origin));
            let refused = browser::apps(&request, HostVerdict::Allowed, &origins).is_err();
            assert_eq!(refused, sample.status == 403, "{case}");
            if !refused {
                let mut answer = HeaderMap::new();
                browser::cors(&request, &origins, &mut answer);
                for name in ["access-control-allow-origin", "vary"] {
                    assert_eq!(answer.get(name), sample.headers.get(name), "{case}");
                }
            }
        }
    }
}

#[test]
fn a_preflight_is_ollamas_and_lets_our_headers_in() {
    let all = samples();
    for version in ["0.24.0", "0.32.15"] {
        let sample = &all[&format!("{version}/cors-preflight")];
        let mut request = HeaderMap::new();
        request.insert("origin", HeaderValue::from_static("http://localhost:3000"));
        let route = crate::api::route::classify(&Method::OPTIONS, &sample.path);
        let answer =
            browser::preflight(&request, &Origins::with_defaults(&[]), route.allow).unwrap();
        for name in sample.headers.keys().filter(|n| *n != "date") {
            let all = |h: &HeaderMap| -> Vec<_> { h.get_all(name).iter().cloned().collect() };
            let (ours, theirs) = (all(&answer), all(&sample.headers));
            if name == "access-control-allow-headers" {
                let (ours, theirs) = (ours[0].to_str().unwrap(), theirs[0].to_str().unwrap());
                assert!(ours.starts_with(theirs), "{ours}");
                assert!(ours.contains("X-Tailherd-Peer"));
            } else {
                assert_eq!(ours, theirs, "{name}");
            }
        }
    }
}
