//! The mesh port: control requests of sidecars, observation, and everything else to the proxy.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::sync::watch;
use tower::util::BoxCloneSyncService;
use tower::{ServiceExt, service_fn};

use crate::admin::Admin;
use crate::api::browser;
use crate::mesh::{self, Mesh};
use crate::net::{Body, Identity, full};
use crate::proxy::{self, Door, Proxy, Who};
use crate::trust::Access;
use crate::types::{ListenerKind, Verb};

/// What the mesh port needs beside the proxy.
#[derive(Clone)]
pub(super) struct Router {
    pub(super) proxy: Arc<Proxy>,
    pub(super) mesh: Arc<Mesh>,
    pub(super) admin: Arc<Admin>,
    pub(super) access: watch::Receiver<Arc<Access>>,
}

impl Router {
    /// The service of one connection on the mesh port.
    pub(super) fn service(&self, door: Door, identity: Arc<Identity>) -> proxy::Service {
        let rest = proxy::service(&self.proxy, door, Who::Connection(Arc::clone(&identity)));
        let router = self.clone();
        BoxCloneSyncService::new(service_fn(move |request: Request<Incoming>| {
            let (router, rest, identity) = (router.clone(), rest.clone(), Arc::clone(&identity));
            async move {
                let path = request.uri().path();
                let ours = path.starts_with(mesh::PREFIX)
                    || matches!(path, "/metrics" | "/status" | "/healthz" | "/readyz");
                if ours {
                    Ok::<_, Infallible>(router.control(&request, &identity).await)
                } else {
                    rest.oneshot(request).await
                }
            }
        }))
    }

    async fn control(&self, request: &Request<Incoming>, identity: &Identity) -> Response<Body> {
        let refuse = |reason: &'static str, status| {
            self.proxy.metrics.refused(ListenerKind::Mesh, reason);
            text(status, "")
        };
        if browser::mesh(request.headers(), &self.proxy.settings.load().listed).is_err() {
            return refuse("browser", StatusCode::FORBIDDEN);
        }
        let caller = match identity.caller().await {
            Ok(caller) => caller,
            Err(refusal) => return refuse(refusal.label(), refusal.status()),
        };
        let granted = self.access.borrow().of(&caller);
        let path = request.uri().path();
        if path.starts_with(mesh::PREFIX) {
            return self.mesh.answer(request, &granted);
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "");
        }
        let needed =
            if matches!(path, "/metrics" | "/status") { Verb::Observe } else { Verb::List };
        if !granted.has(needed) {
            return refuse("access", StatusCode::FORBIDDEN);
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
