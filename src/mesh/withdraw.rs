//! `POST /mesh/v1/withdraw`: a sidecar takes back a request that still waits here.
//!
//! In flows the attempt's number; out flows whether it was still waiting. Whoever sent an attempt
//! may take it back, and nobody else: to others it does not exist. The request itself is answered
//! where it came in, as refused.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};

use super::{Mesh, call, empty, is_ours, no_access};
use crate::api::attempt::{MOST_BYTES, No, Withdraw, Withdrawn, number};
use crate::gate::Attempt;
use crate::net::{Body, BoxError};
use crate::types::Caller;

impl Mesh {
    /// Answers a caller that wants to take an attempt back.
    pub async fn withdraw<B>(&self, request: Request<B>, caller: &Caller) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let (head, body) = request.into_parts();
        if !is_ours(&head.headers) {
            return empty(StatusCode::NOT_FOUND);
        }
        if head.method != Method::POST {
            return empty(StatusCode::METHOD_NOT_ALLOWED);
        }
        // Programs of this machine have no attempts.
        let Some(from) = caller.node_id() else { return no_access() };
        let limit = self.parts.timing.probe_limit;
        let wish: Withdraw = match call::said(body, MOST_BYTES, limit).await {
            Ok(wish) => wish,
            Err(why) => return no(StatusCode::BAD_REQUEST, why),
        };
        let Some(id) = number(&wish.attempt) else {
            return no(StatusCode::BAD_REQUEST, "`attempt` is not 32 hex digits".to_owned());
        };
        match self.reports.gates().withdraw(&Attempt { id, from }) {
            Some(waiting) => call::answer(StatusCode::OK, &Withdrawn { waiting }),
            None => no(StatusCode::NOT_FOUND, "no such attempt of yours is here".to_owned()),
        }
    }
}

fn no(status: StatusCode, error: String) -> Response<Body> {
    call::answer(status, &No { error })
}
