//! What a request asks for, from its method and path alone.
//!
//! In flows the path as it stands in the request line, without the query; out flows a
//! [`Route`]. Ollama's own routes, redirects, 404s and 405s are met exactly. Nothing is
//! forwarded by the spelling a client chose: a known route carries the path an engine is to
//! be asked as a constant, and an unknown one is only a route if its path is plain.

use std::borrow::Cow;

use http::Method;

use super::path;
use crate::types::{Api, EngineKind, NodeName, Op, Verb};

/// What is done with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Class {
    /// Answered here: root, version, preflight (any `OPTIONS`).
    Here,
    /// Answered from the directory: tags, models, ps.
    Union,
    /// Goes to a node that has the model it names.
    Routed,
    /// Goes to this node's own engine, unless pinned by somebody who may.
    ThisNode,
    /// Our own paths: never forwarded.
    Reserved,
    /// A `POST` nobody knows: routed by its top-level `model`, for programs on this machine.
    UnknownPost,
    /// Ollama does not have it: [`super::error::NOT_FOUND`] as `text/plain`.
    NotFound,
    /// Ollama has the path and not the method: [`super::error::METHOD_NOT_ALLOWED`] as
    /// `text/plain`, and [`Route::allow`].
    MethodNotAllowed,
    /// Ollama sends such a path elsewhere. [`redirect_body`] is what stands in the answer.
    Redirect {
        /// 301 or 307.
        status: u16,
        /// The path; the query stays as it was.
        to: String,
    },
    /// A path behind `/node/NAME` that is written so that readers may differ about it.
    Refused,
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// What is done with it.
    pub class: Class,
    /// The dialect, also that of an error.
    pub api: Api,
    /// What it asks.
    pub op: Op,
    /// The model in the path (`/v1/models/:model`), percent-decoded.
    pub path_model: Option<String>,
    /// The path an engine is asked, without the query. Empty if none is.
    pub upstream: Cow<'static, str>,
    /// The node named by `/node/NAME/…`.
    pub node: Option<NodeName>,
    /// The methods the path has, as in Ollama's `Allow`: for 405 and for preflights. Empty
    /// for a path it does not have.
    pub allow: &'static str,
}

impl Route {
    fn new(class: Class, api: Api, op: Op) -> Route {
        Route {
            class,
            api,
            op,
            path_model: None,
            upstream: Cow::Borrowed(""),
            node: None,
            allow: "",
        }
    }

    /// What a caller has to be allowed at an engine of `kind` for this route. (A bare request
    /// that unloads needs [`Verb::Load`] as well: [`super::peek::Peeked::unloads`].)
    pub fn need(&self, kind: EngineKind) -> Need {
        match self.class {
            Class::Here | Class::Union => return Need::Verb(Verb::List),
            Class::Routed | Class::ThisNode | Class::UnknownPost => {}
            _ => return Need::Never,
        }
        let ollama = kind == EngineKind::Ollama;
        let verb = match self.op {
            Op::Model => Verb::List,
            Op::Chat
            | Op::Completions
            | Op::Responses
            | Op::Embed
            | Op::Messages
            | Op::CountTokens
                if ollama || self.api != Api::Ollama =>
            {
                Verb::Infer
            }
            _ if !ollama => return Need::Never,
            Op::Show => Verb::List,
            Op::Generate => Verb::Infer,
            Op::Pull => Verb::Load,
            Op::Push | Op::Create | Op::Copy | Op::Delete | Op::Blob => Verb::Manage,
            _ if self.upstream.starts_with("/v1/") => return Need::Own,
            _ => return Need::Local,
        };
        Need::Verb(verb)
    }
}

/// What a caller has to be, or be allowed, for a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// This verb.
    Verb(Verb),
    /// A program on this machine, or a device of the same owner.
    Own,
    /// A program on this machine.
    Local,
    /// Nobody: this engine is not asked such things.
    Never,
}

struct Row {
    path: &'static str,
    /// As in `Allow`, in Ollama's order.
    allow: &'static str,
    class: Class,
    api: Api,
    op: Op,
}

const fn row(path: &'static str, allow: &'static str, class: Class, api: Api, op: Op) -> Row {
    Row { path, allow, class, api, op }
}

/// Every route of Ollama, and those of its neighbours that are routed by model. A path that
/// ends in `/` has one more segment.
const TABLE: &[Row] = &[
    row("/", "HEAD, GET", Class::Here, Api::Ollama, Op::Root),
    row("/api/version", "HEAD, GET", Class::Here, Api::Ollama, Op::Version),
    row("/api/tags", "HEAD, GET", Class::Union, Api::Ollama, Op::Tags),
    row("/api/ps", "GET", Class::Union, Api::Ollama, Op::Ps),
    row("/v1/models", "GET", Class::Union, Api::OpenAi, Op::Models),
    row("/api/chat", "POST", Class::Routed, Api::Ollama, Op::Chat),
    row("/api/generate", "POST", Class::Routed, Api::Ollama, Op::Generate),
    row("/api/embed", "POST", Class::Routed, Api::Ollama, Op::Embed),
    row("/api/embeddings", "POST", Class::Routed, Api::Ollama, Op::Embed),
    row("/api/show", "POST", Class::Routed, Api::Ollama, Op::Show),
    row("/v1/chat/completions", "POST", Class::Routed, Api::Chat, Op::Chat),
    row("/v1/completions", "POST", Class::Routed, Api::Completions, Op::Completions),
    row("/v1/responses", "POST", Class::Routed, Api::Responses, Op::Responses),
    row("/v1/embeddings", "POST", Class::Routed, Api::Embeddings, Op::Embed),
    row("/v1/messages", "POST", Class::Routed, Api::Messages, Op::Messages),
    row("/v1/messages/count_tokens", "POST", Class::Routed, Api::Messages, Op::CountTokens),
    row("/v1/models/", "GET", Class::Routed, Api::OpenAi, Op::Model),
    row("/api/pull", "POST", Class::ThisNode, Api::Ollama, Op::Pull),
    row("/api/push", "POST", Class::ThisNode, Api::Ollama, Op::Push),
    row("/api/create", "POST", Class::ThisNode, Api::Ollama, Op::Create),
    row("/api/copy", "POST", Class::ThisNode, Api::Ollama, Op::Copy),
    row("/api/delete", "DELETE", Class::ThisNode, Api::Ollama, Op::Delete),
    row("/api/blobs/", "HEAD, POST", Class::ThisNode, Api::Ollama, Op::Blob),
    row("/api/status", "GET", Class::ThisNode, Api::Ollama, Op::Account),
    row("/api/me", "POST", Class::ThisNode, Api::Ollama, Op::Account),
    row("/api/signout", "POST", Class::ThisNode, Api::Ollama, Op::Account),
    row("/api/user/keys/", "DELETE", Class::ThisNode, Api::Ollama, Op::Account),
    row("/api/experimental/web_search", "POST", Class::ThisNode, Api::Ollama, Op::Account),
    row("/api/experimental/web_fetch", "POST", Class::ThisNode, Api::Ollama, Op::Account),
    row(
        "/api/experimental/model-recommendations",
        "GET",
        Class::ThisNode,
        Api::Ollama,
        Op::Account,
    ),
    // Its model stands in a multipart form, which nobody here reads.
    row("/v1/audio/transcriptions", "POST", Class::ThisNode, Api::OpenAi, Op::Other),
];

/// Paths some clients use when their base URL lacks `/v1`.
const ALIASES: &[(&str, &str)] = &[
    ("/chat/completions", "/v1/chat/completions"),
    ("/completions", "/v1/completions"),
    ("/responses", "/v1/responses"),
    ("/embeddings", "/v1/embeddings"),
    ("/models", "/v1/models"),
];

/// Ours, and everything below them.
const RESERVED: &[&str] = &["/mesh", "/metrics", "/status", "/healthz", "/readyz"];

/// Reads a request line. `raw_path` is the path as sent, without `?` and what follows.
pub fn classify(method: &Method, raw_path: &str) -> Route {
    if let Some(rest) = raw_path.strip_prefix("/node/") {
        return behind_node(method, rest);
    }
    // A path just as the table has it needs no tidying up.
    if is_known(raw_path)
        && let Some(route) = known(method, raw_path, raw_path)
    {
        return route;
    }
    let Some(decoded) = path::decode(raw_path) else { return not_found(method, raw_path) };
    let clean = path::clean(&decoded);
    // Some readers take a backslash for a slash.
    if is_reserved(&path::clean(&decoded.replace('\\', "/"))) {
        return Route::new(Class::Reserved, Api::Ollama, Op::Other);
    }
    if clean != decoded {
        let mut route = not_found(method, &clean);
        // Under `/node/` nothing is tidied up, it is refused.
        route.class = match clean.starts_with("/node/") {
            true => Class::Refused,
            false => Class::Redirect { status: 307, to: path::encode(&clean) },
        };
        return route;
    }
    if let Some(route) = known(method, &decoded, raw_path) {
        return route;
    }
    if *method == Method::POST && path::is_plain(raw_path) {
        let mut route = not_found(method, &decoded);
        route.class = Class::UnknownPost;
        route.upstream = Cow::Owned(raw_path.to_owned());
        return route;
    }
    not_found(method, &decoded)
}

/// The HTML Ollama sends with a redirect of a `GET` (type `text/html; charset=utf-8`; other
/// methods get none). `location` includes the query.
pub fn redirect_body(status: u16, location: &str) -> String {
    let text = if status == 301 { "Moved Permanently" } else { "Temporary Redirect" };
    let mut escaped = String::with_capacity(location.len());
    for c in location.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&#34;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    format!("<a href=\"{escaped}\">{text}</a>.\n\n")
}

/// `/node/NAME/rest`: the rest is read as if it were the whole path.
fn behind_node(method: &Method, rest: &str) -> Route {
    let (name, rest) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, "/"),
    };
    let Some(node) = NodeName::parse(name) else { return not_found(method, "/") };
    let mut route = if path::is_unambiguous(rest) && !rest.starts_with("/node/") {
        classify(method, rest)
    } else {
        Route::new(Class::Refused, api_of(rest), Op::Other)
    };
    if let Class::Redirect { to, .. } = &mut route.class {
        to.insert_str(0, &format!("/node/{node}"));
    }
    route.node = Some(node);
    route
}

/// Whether a path stands in the table letter by letter.
fn is_known(raw: &str) -> bool {
    // One that ends in a slash has another segment yet.
    raw == "/" || (!raw.ends_with('/') && TABLE.iter().any(|row| row.path == raw))
}

/// A route of the table, its 405, or its trailing slash.
fn known(method: &Method, decoded: &str, raw: &str) -> Option<Route> {
    if let Some((row, tail)) = find(decoded, raw) {
        let mut route = Route::new(row.class.clone(), row.api, row.op);
        route.allow = row.allow;
        if *method == Method::OPTIONS {
            route.class = Class::Here;
            route.op = Op::Preflight;
        } else if !allows(row, method) {
            route.class = Class::MethodNotAllowed;
        }
        route.upstream = match tail {
            None => Cow::Borrowed(row.path),
            Some(tail) => Cow::Owned(format!("{}{tail}", row.path)),
        };
        if row.op == Op::Model {
            route.path_model = tail.and_then(path::decode);
        }
        return Some(route);
    }
    let (shorter, raw) = (decoded.strip_suffix('/')?, raw.strip_suffix('/')?);
    let (row, _) = find(shorter, raw)?;
    let status = if *method == Method::GET { 301 } else { 307 };
    let mut route = Route::new(Class::NotFound, row.api, row.op);
    if allows(row, method) {
        route.class = Class::Redirect { status, to: path::encode(shorter) };
    } else if *method == Method::OPTIONS {
        route = not_found(method, shorter);
    }
    Some(route)
}

/// The row of a path, and the raw last segment if the row has one.
fn find<'a>(decoded: &str, raw: &'a str) -> Option<(&'static Row, Option<&'a str>)> {
    let alias = ALIASES.iter().find_map(|(from, to)| {
        let rest = decoded.strip_prefix(from)?;
        (rest.is_empty() || *from == "/models" && rest.starts_with('/')).then_some((*to, rest))
    });
    let (head, rest) = alias.unwrap_or((decoded, ""));
    TABLE.iter().find_map(|row| {
        let Some(parent) = row.path.strip_suffix('/').filter(|p| !p.is_empty()) else {
            return (rest.is_empty() && head == row.path).then_some((row, None));
        };
        // One more segment, as it was written: a `/` in it has to be escaped.
        let (raw_parent, segment) = raw.rsplit_once('/')?;
        let same = match alias {
            Some((to, _)) => to == parent && raw_parent == "/models",
            None => raw_parent == parent,
        };
        (same && !segment.is_empty()).then_some((row, Some(segment)))
    })
}

fn allows(row: &Row, method: &Method) -> bool {
    row.allow.split(", ").any(|m| m == method.as_str())
}

fn not_found(method: &Method, path: &str) -> Route {
    match *method {
        Method::OPTIONS => Route::new(Class::Here, api_of(path), Op::Preflight),
        _ => Route::new(Class::NotFound, api_of(path), Op::Other),
    }
}

/// The dialect of an error about a path nobody knows.
fn api_of(path: &str) -> Api {
    if path.starts_with("/v1/messages") {
        Api::Messages
    } else if path.starts_with("/v1/") {
        Api::OpenAi
    } else {
        Api::Ollama
    }
}

fn is_reserved(clean: &str) -> bool {
    RESERVED.iter().any(|name| {
        clean.get(..name.len()).is_some_and(|head| head.eq_ignore_ascii_case(name))
            && matches!(clean.as_bytes().get(name.len()), None | Some(b'/' | b';'))
    })
}

#[cfg(test)]
mod tests;
