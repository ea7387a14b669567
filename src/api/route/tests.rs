use super::*;

fn route(line: &str) -> Route {
    let (method, path) = line.split_once(' ').unwrap();
    classify(&method.parse().unwrap(), path)
}

#[track_caller]
fn check(line: &str, class: Class, op: Op, upstream: &str) {
    let r = route(line);
    assert_eq!((r.class, r.op, &*r.upstream), (class, op, upstream), "{line}");
}

#[test]
fn every_route_has_its_class() {
    check("HEAD /", Class::Here, Op::Root, "/");
    check("GET /api/version", Class::Here, Op::Version, "/api/version");
    check("OPTIONS /api/chat", Class::Here, Op::Preflight, "/api/chat");
    check("OPTIONS /nothing", Class::Here, Op::Preflight, "");
    check("HEAD /api/tags", Class::Union, Op::Tags, "/api/tags");
    check("GET /v1/models", Class::Union, Op::Models, "/v1/models");
    check("GET /api/ps", Class::Union, Op::Ps, "/api/ps");
    check("POST /api/show", Class::Routed, Op::Show, "/api/show");
    check("POST /v1/messages", Class::Routed, Op::Messages, "/v1/messages");
    check("POST /api/pull", Class::ThisNode, Op::Pull, "/api/pull");
    check("DELETE /api/user/keys/abc", Class::ThisNode, Op::Account, "/api/user/keys/abc");
    check("POST /api/blobs/sha256:ab", Class::ThisNode, Op::Blob, "/api/blobs/sha256:ab");
    check("POST /v1/systemone", Class::UnknownPost, Op::Other, "/v1/systemone");
    check("GET /api/nothing", Class::NotFound, Op::Other, "");
    check("GET /props", Class::NotFound, Op::Other, "");
}

#[test]
fn escapes_of_plain_letters_are_read_as_ollama_reads_them() {
    check("GET /api/%74ags", Class::Union, Op::Tags, "/api/tags");
    check("POST /%61pi/chat", Class::Routed, Op::Chat, "/api/chat");
}

#[test]
fn a_base_url_without_v1_works() {
    check("POST /chat/completions", Class::Routed, Op::Chat, "/v1/chat/completions");
    check("POST /completions", Class::Routed, Op::Completions, "/v1/completions");
    check("POST /responses", Class::Routed, Op::Responses, "/v1/responses");
    check("POST /embeddings", Class::Routed, Op::Embed, "/v1/embeddings");
    check("GET /models", Class::Union, Op::Models, "/v1/models");
    check("GET /models/a", Class::Routed, Op::Model, "/v1/models/a");
}

#[test]
fn the_model_in_a_path_is_decoded() {
    let model = |line| route(line).path_model;
    assert_eq!(model("GET /v1/models/tiny").as_deref(), Some("tiny"));
    assert_eq!(model("GET /v1/models/a%20b@desk").as_deref(), Some("a b@desk"));
    assert_eq!(model("GET /v1/models/hf.co%2Fu%2Fm").as_deref(), Some("hf.co/u/m"));
    assert_eq!(model("GET /models/tiny").as_deref(), Some("tiny"));
    check("GET /v1/models/a/b", Class::NotFound, Op::Other, "");
}

#[test]
fn wrong_methods_are_told_which_are_right() {
    for (line, allow) in [
        ("PUT /api/tags", "HEAD, GET"),
        ("POST /api/tags", "HEAD, GET"),
        ("GET /api/chat", "POST"),
        ("DELETE /api/blobs/x", "HEAD, POST"),
        ("HEAD /api/ps", "GET"),
        ("PATCH /", "HEAD, GET"),
    ] {
        let r = route(line);
        assert_eq!((r.class, r.allow), (Class::MethodNotAllowed, allow), "{line}");
    }
    assert_eq!(route("OPTIONS /api/chat").allow, "POST");
}

#[test]
fn untidy_paths_are_sent_on_as_ollama_does() {
    let to = |status, to: &str| Class::Redirect { status, to: to.to_owned() };
    for (line, want) in [
        ("GET //api/tags", to(307, "/api/tags")),
        ("POST //api/chat", to(307, "/api/chat")),
        ("GET /api/../api/tags", to(307, "/api/tags")),
        ("GET /api/tags/", to(301, "/api/tags")),
        ("HEAD /api/tags/", to(307, "/api/tags")),
        ("POST /api/chat/", to(307, "/api/chat")),
        ("GET /v1/models/", to(301, "/v1/models")),
        ("GET /v1/models/tiny/", to(301, "/v1/models/tiny")),
        ("GET /api/chat/", Class::NotFound),
        ("GET /node/desk/api/tags/", to(301, "/node/desk/api/tags")),
    ] {
        assert_eq!(route(line).class, want, "{line}");
    }
    assert_eq!(
        redirect_body(307, "/api/tags?x=1"),
        "<a href=\"/api/tags?x=1\">Temporary Redirect</a>.\n\n"
    );
    assert_eq!(redirect_body(301, "/api/tags"), "<a href=\"/api/tags\">Moved Permanently</a>.\n\n");
}

#[test]
fn a_path_may_name_a_node() {
    let r = route("POST /node/Desk/api/chat");
    assert_eq!((r.class, r.node.as_ref().map(NodeName::as_str)), (Class::Routed, Some("desk")));
    assert_eq!(r.upstream, "/api/chat");
    assert_eq!(route("HEAD /node/desk").op, Op::Root);
    assert_eq!(route("HEAD /node/desk/").op, Op::Root);
    assert_eq!(route("POST /node/desk/chat/completions").upstream, "/v1/chat/completions");
    assert_eq!(route("GET /node/!/api/tags").class, Class::NotFound);
}

#[test]
fn no_spelling_reaches_our_own_paths() {
    let spellings = [
        "/mesh/v1/hello",
        "/mesh",
        "/MESH/v1/hello",
        "/Mesh/",
        "//mesh/v1/hello",
        "/./mesh/v1",
        "/x/../mesh/v1/hello",
        "/%6desh/v1/hello",
        "/mesh%2fv1%2fhello",
        "/%2fmesh/v1/hello",
        "/mesh/../mesh/v1",
        "/..%2fmesh/v1",
        "/x/%2e%2e/mesh/v1/hello",
        "/x/%2E./mesh/v1",
        "/m%65sh/v1/hello",
        "/mesh\\v1",
        "/\\mesh/v1",
        "/%5cmesh/v1",
        "/mesh;x/v1",
        "/mesh//v1",
        "/metrics",
        "/status",
        "/healthz",
        "/readyz",
        "/metrics/",
        "/STATUS",
    ];
    for path in spellings {
        for prefix in ["", "/node/desk", "/node/desk/node/desk", "/x/..", "/node/desk/.."] {
            for method in ["GET", "POST", "OPTIONS", "DELETE"] {
                let line = format!("{method} {prefix}{path}");
                let r = route(&line);
                assert!(
                    matches!(
                        r.class,
                        Class::Reserved | Class::NotFound | Class::Refused | Class::Redirect { .. }
                    ) || r.op == Op::Preflight,
                    "{line}: {r:?}"
                );
                assert!(!r.upstream.to_lowercase().contains("mesh"), "{line}: {r:?}");
                if let Class::Redirect { to, .. } = &r.class {
                    assert!(!to.to_lowercase().contains("mesh"), "{line}: {r:?}");
                }
            }
        }
    }
}

#[test]
fn ambiguous_paths_behind_a_node_are_refused() {
    for rest in
        ["//api/tags", "/../api/tags", "/api/%2e%2e/tags", "/v1/models/a%2Fb", "/a%5Cb", "/a\\b"]
    {
        assert_eq!(route(&format!("GET /node/desk{rest}")).class, Class::Refused, "{rest}");
    }
    assert_eq!(route("GET /node/desk/node/gpu/api/tags").class, Class::Refused);
}

#[test]
fn verbs_follow_the_engine_and_the_path() {
    use EngineKind::*;
    let need = |line: &str, kind| route(line).need(kind);
    for (line, ollama, openai) in [
        ("POST /api/chat", Need::Verb(Verb::Infer), Need::Never),
        ("POST /api/embed", Need::Verb(Verb::Infer), Need::Never),
        ("POST /v1/chat/completions", Need::Verb(Verb::Infer), Need::Verb(Verb::Infer)),
        ("POST /v1/embeddings", Need::Verb(Verb::Infer), Need::Verb(Verb::Infer)),
        ("GET /v1/models/x", Need::Verb(Verb::List), Need::Verb(Verb::List)),
        ("POST /api/show", Need::Verb(Verb::List), Need::Never),
        ("POST /api/pull", Need::Verb(Verb::Load), Need::Never),
        ("DELETE /api/delete", Need::Verb(Verb::Manage), Need::Never),
        ("POST /api/blobs/x", Need::Verb(Verb::Manage), Need::Never),
        ("POST /api/me", Need::Local, Need::Never),
        ("GET /api/status", Need::Local, Need::Never),
        ("POST /v1/made-up", Need::Own, Need::Never),
        ("POST /v1/audio/transcriptions", Need::Own, Need::Never),
        ("POST /api/made-up", Need::Local, Need::Never),
        // Management of LM Studio, vLLM and llama.cpp.
        ("POST /api/v1/models/load", Need::Local, Need::Never),
        ("POST /v1/load_lora_adapter", Need::Own, Need::Never),
        ("POST /slots/0", Need::Local, Need::Never),
        ("GET /metrics", Need::Never, Need::Never),
    ] {
        assert_eq!(need(line, Ollama), ollama, "{line}");
        for kind in [LlamaCpp, Vllm, LmStudio, OpenAi] {
            assert_eq!(need(line, kind), openai, "{line} {kind:?}");
        }
    }
}
