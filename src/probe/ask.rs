//! One question to a server, with bounds on time and length.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, IF_NONE_MATCH};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};

use crate::net::{Body, ConnectError, Pool};
use crate::telemetry::Clock;
use crate::types::{Dial, NodeId, Timing};

/// Longest answer that is read.
const MOST_BYTES: usize = 8 << 20;

/// Asks.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    pub(super) pool: Pool,
    pub(super) clock: Clock,
    pub(super) timing: Timing,
}

/// Who is asked: a node, a way to it, and what stands before every path there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Target {
    pub(super) node: NodeId,
    pub(super) dial: Dial,
    pub(super) prefix: std::sync::Arc<str>,
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// From the sent request to the answer's head.
    pub(super) took: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("no whole answer within {0:?}")]
    TimedOut(Duration),
    #[error("the answer broke off: {0}")]
    Broken(String),
}

impl AskError {
    /// Whether the machine is up and says that nothing listens there.
    pub(super) fn is_refused(&self) -> bool {
        matches!(self, AskError::Connect(error) if error.is_refused())
    }

    /// Whether nobody was asked: the tailnet does not run, or does not list that address.
    pub(super) fn is_out_of_reach(&self) -> bool {
        use ConnectError::{NotListed, NotRunning};
        matches!(self, AskError::Connect(NotRunning(_) | NotListed(_)))
    }
}

impl Answer {
    pub(super) fn is_ok(&self) -> bool {
        self.status == StatusCode::OK
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    /// Whether a sidecar made it: ours or anybody's. An engine never sets these.
    pub(super) fn is_tailherd(&self) -> bool {
        self.headers.keys().any(|name| name.as_str().starts_with("x-tailherd-"))
            || self.header("content-type").starts_with(crate::api::wire::CONTENT_TYPE)
    }
}

impl Asker {
    /// `GET`, with an entity tag if the caller holds an older answer.
    pub(super) async fn get(
        &self,
        to: &Target,
        path: &str,
        tag: Option<&str>,
    ) -> Result<Answer, AskError> {
        self.ask(to, Method::GET, path, tag, Bytes::new()).await
    }

    /// `POST` of JSON.
    pub(super) async fn post(
        &self,
        to: &Target,
        path: &str,
        body: Bytes,
    ) -> Result<Answer, AskError> {
        self.ask(to, Method::POST, path, None, body).await
    }

    async fn ask(
        &self,
        to: &Target,
        method: Method,
        path: &str,
        tag: Option<&str>,
        body: Bytes,
    ) -> Result<Answer, AskError> {
        let limit = self.timing.probe_limit;
        let request = || request(to, method.clone(), path, tag, body.clone());
        let mut lease = self.pool.acquire(&to.node, &to.dial).await?;
        let exchange = async {
            let mut sent = self.clock.now();
            let reused = lease.reused;
            let response = match lease.send(request()?).await {
                // A kept connection that the other side had closed says nothing of its health.
                Err(_) if reused => {
                    lease = self.pool.fresh(&to.node, &to.dial).await?;
                    sent = self.clock.now();
                    lease.send(request()?).await
                }
                other => other,
            };
            let response = response.map_err(|e| AskError::Broken(e.to_string()))?;
            let took = self.clock.now().since(sent);
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MOST_BYTES).collect().await;
            let body = body.map_err(|e| AskError::Broken(e.to_string()))?.to_bytes();
            Ok(Answer { status: head.status, headers: head.headers, body, took })
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(AskError::TimedOut(limit)),
        }
    }
}

pub(super) fn request(
    to: &Target,
    method: Method,
    path: &str,
    tag: Option<&str>,
    body: Bytes,
) -> Result<Request<Body>, AskError> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("{}{path}", to.prefix))
        .header(HOST, to.dial.host())
        .header(ACCEPT, "*/*");
    if let Some(tag) = tag {
        request = request.header(IF_NONE_MATCH, tag);
    }
    // What tells a sidecar's own calls from a web page's.
    if path.starts_with("/mesh/") {
        request = request.header(CONTENT_TYPE, crate::api::wire::CONTENT_TYPE);
    } else if !body.is_empty() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
    request.body(body).map_err(|e| AskError::Broken(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    #[test]
    fn a_call_between_sidecars_says_so_and_a_list_does_not() {
        let to = Target {
            node: NodeId::This,
            dial: Dial::Tailnet(([100, 64, 0, 2], 11436).into()),
            prefix: "".into(),
        };
        let kind = |path| {
            let request = request(&to, Method::GET, path, None, Bytes::new()).unwrap();
            request.headers().get(CONTENT_TYPE).map(|v| v.to_str().unwrap().to_owned())
        };
        assert_eq!(kind("/mesh/v1/offers").as_deref(), Some(crate::api::wire::CONTENT_TYPE));
        assert_eq!(kind("/mesh/v1/ping").as_deref(), Some(crate::api::wire::CONTENT_TYPE));
        assert_eq!(kind("/api/tags"), None);
    }
}
