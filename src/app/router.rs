//! The mesh port and the local network: control requests of sidecars, observation, and
//! everything else to the proxy.
//!
//! Which control requests exist is fixed by the connection: hello only inside TLS over the
//! tailnet, a meeting only on the local network.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::sync::watch;
use tower::{Service, service_fn};

use crate::admin::Admin;
use crate::api::{attempt, browser, wire};
use crate::mesh::{self, Mesh};
use crate::net::{Body, Identity, full};
use crate::proxy::{self, Answer, Door, Proxy, Who};
use crate::trust::{Access, Granted};
use crate::types::{Caller, ListenerKind, PublicKey, Verb, Verbs};

use super::connections::Serves;

/// Why a control request is refused, as it is counted, and the answer.
type No = (&'static str, StatusCode);

/// What these doors need beside the proxy.
#[derive(Clone)]
pub(super) struct Router {
    pub(super) proxy: Arc<Proxy>,
    pub(super) mesh: Arc<Mesh>,
    pub(super) admin: Arc<Admin>,
    pub(super) access: watch::Receiver<Arc<Access>>,
}

impl Router {
    /// The service of one connection on the mesh port, or on the local network, where its other
    /// end proved to hold `key`.
    pub(super) fn service(
        &self,
        door: Door,
        identity: Arc<Identity>,
        key: Option<PublicKey>,
    ) -> impl Serves {
        let kind = door.kind;
        let rest = proxy::service(&self.proxy, door, Who::Connection(Arc::clone(&identity)));
        let router = self.clone();
        service_fn(move |request: Request<Incoming>| -> Answer {
            let path = request.uri().path();
            let ours = path.starts_with(mesh::PREFIX)
                || matches!(path, "/metrics" | "/status" | "/healthz" | "/readyz");
            if !ours {
                return Box::pin(rest.clone().call(request));
            }
            let (router, identity) = (router.clone(), Arc::clone(&identity));
            Box::pin(async move {
                Ok(match key {
                    Some(key) if Mesh::is_meeting(&request) => {
                        router.meeting(request, &identity, &key).await
                    }
                    Some(_) if request.uri().path() == wire::PING => {
                        router.alive(&request, &identity)
                    }
                    _ => router.control(request, kind, &identity).await,
                })
            })
        })
    }

    /// The service of one connection inside TLS on the mesh port, whose other end proved to
    /// hold `key`: for a hello, and nothing else.
    pub(super) fn greeting(&self, identity: Arc<Identity>, key: PublicKey) -> impl Serves {
        let router = self.clone();
        service_fn(move |request: Request<Incoming>| {
            let (router, identity) = (router.clone(), Arc::clone(&identity));
            async move {
                let kind = ListenerKind::Mesh;
                let answer = match router.known(request.headers(), kind, &identity).await {
                    Ok((caller, granted)) => {
                        router.mesh.hello(request, &caller, &granted, key).await
                    }
                    Err(no) => router.refuse(kind, no),
                };
                Ok::<_, Infallible>(answer)
            }
        })
    }

    async fn meeting(
        &self,
        request: Request<Incoming>,
        identity: &Identity,
        key: &PublicKey,
    ) -> Response<Body> {
        match self.no_browser(request.headers()) {
            Ok(()) => {
                let may = |caller: &Caller| self.access.borrow().of(caller).verbs() != Verbs::NONE;
                self.mesh.meet(request, identity, key, may).await
            }
            Err(no) => self.refuse(ListenerKind::Lan, no),
        }
    }

    /// A sign of life on the local network, for a request that waits there. It does not wait
    /// itself for whether the tailnet should have been used: that may take longer than anybody
    /// waits for a sign.
    fn alive(&self, request: &Request<Incoming>, identity: &Identity) -> Response<Body> {
        let pinned = self.no_browser(request.headers());
        match pinned.and_then(|()| identity.is_pinned().map_err(|no| (no.label(), no.status()))) {
            Ok(()) => self.mesh.alive(request),
            Err(no) => self.refuse(ListenerKind::Lan, no),
        }
    }

    fn refuse(&self, kind: ListenerKind, (reason, status): No) -> Response<Body> {
        self.proxy.metrics.refused(kind, reason);
        let mut response = text(status, "");
        // Tells the other sidecar what kind of no it is.
        response.headers_mut().insert(attempt::REFUSED, HeaderValue::from_static(reason));
        response
    }

    fn no_browser(&self, headers: &HeaderMap) -> Result<(), No> {
        browser::mesh(headers, &self.proxy.settings.load().listed)
            .map_err(|_| ("browser", StatusCode::FORBIDDEN))
    }

    /// Who asks, and what they may do here.
    async fn known(
        &self,
        headers: &HeaderMap,
        kind: ListenerKind,
        identity: &Identity,
    ) -> Result<(Arc<Caller>, Granted), No> {
        self.no_browser(headers)?;
        let caller = identity.caller().await.map_err(|no| (no.label(), no.status()))?;
        if kind == ListenerKind::Mesh {
            self.mesh.reached(&caller);
        }
        let granted = self.access.borrow().of(&caller);
        Ok((caller, granted))
    }

    async fn control(
        &self,
        request: Request<Incoming>,
        kind: ListenerKind,
        identity: &Arc<Identity>,
    ) -> Response<Body> {
        let (caller, granted) = match self.known(request.headers(), kind, identity).await {
            Ok(known) => known,
            Err(no) => return self.refuse(kind, no),
        };
        let path = request.uri().path();
        if path == mesh::WITHDRAW {
            return self.mesh.withdraw(request, &caller).await;
        }
        if path.starts_with(mesh::PREFIX) {
            return self.mesh.answer(&request, &caller, &granted, identity);
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "");
        }
        let needed =
            if matches!(path, "/metrics" | "/status") { Verb::Observe } else { Verb::List };
        if !granted.has(needed) {
            return self.refuse(kind, ("access", StatusCode::FORBIDDEN));
        }
        match path {
            "/status" => {
                let body = self.admin.reduced_status(&granted).to_string();
                let mut response = text(StatusCode::OK, body);
                response
                    .headers_mut()
                    .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            // It names every node and caller: too much for a network where rights shrink.
            "/metrics" if kind == ListenerKind::Lan => {
                self.refuse(kind, ("access", StatusCode::FORBIDDEN))
            }
            "/metrics" => self.admin.metrics(),
            "/readyz" => self.admin.ready(),
            _ => text(StatusCode::OK, "ok\n"),
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}
