//! What every request passes, and every answer: hosts and origins, keys, ids, one line of log, and
//! errors in the dialect of the route.
//!
//! Logs and metrics name routes, statuses and the names of keys; never what a caller wrote.

use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, VARY, WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::body::discard;
use super::keys::Caller;
use super::trace::{self, Trace};
use super::{App, OPEN, new_id};
use crate::dialect;
use crate::failure::{Failure, Kind};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

impl IntoResponse for Failure {
    /// The body is made later, in the dialect of the route.
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.kind.status()).unwrap_or_default();
        let mut response = status.into_response();
        if let Some(wait) = self.retry_after {
            let s = wait.as_millis().div_ceil(1000).max(1) as u64;
            response.headers_mut().insert(RETRY_AFTER, s.into());
        }
        if self.kind == Kind::Unauthorized {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Everything around the handlers.
pub(super) async fn guard(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let start = Instant::now();
    let id = request_id(request.headers());
    let trace = Trace::of(request.headers());
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = route.unwrap_or_else(|| "unknown".to_owned());
    let mut name = "-".to_owned();
    let origin = app.allowed.check(request.uri(), request.headers());
    let checked = origin.clone().and_then(|origin| {
        if method == Method::OPTIONS && origin.is_some() {
            return Ok(None);
        }
        let is_open = OPEN.contains(&path.as_str());
        let caller = match is_open {
            true => None,
            false => Some(app.keys.caller(key(request.headers()))?),
        };
        Ok(Some(caller))
    });
    let mut response = match checked {
        Err(failure) => {
            discard(request.into_body()).await;
            failure.into_response()
        }
        Ok(None) => preflight(),
        Ok(Some(caller)) => {
            if let Some(caller) = caller {
                name = caller.name().to_owned();
                request.extensions_mut().insert(caller);
            }
            next.run(request).await
        }
    };
    if let Some(failure) = response.extensions_mut().remove::<Failure>() {
        let body = dialect::of(&path).error(&failure).to_string();
        *response.body_mut() = Body::from(body);
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
    }
    if let Ok(Some(origin)) = origin
        && let Ok(value) = HeaderValue::from_str(&origin)
    {
        response.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, value);
        response.headers_mut().insert(VARY, HeaderValue::from_static("Origin"));
    }
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static("x-content-type-options"), no_sniff());
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, value);
    }
    if let Some(value) = trace.as_ref().and_then(Trace::response) {
        headers.insert(trace::RESPONSE, value);
    }
    let status = response.status().as_u16();
    app.generator.metrics.answered(&route, status);
    if app.logs_requests && !OPEN.contains(&path.as_str()) {
        let ms = start.elapsed().as_millis();
        let trace = trace.map(|trace| format!(", trace {} {}", trace.id, trace.span));
        let trace = trace.unwrap_or_default();
        eprintln!("{method} {route} {status} {ms} ms, key {name}, request {id}{trace}");
    }
    response
}

fn no_sniff() -> HeaderValue {
    HeaderValue::from_static("nosniff")
}

/// A page of an allowed origin asks first.
fn preflight() -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    let methods = HeaderValue::from_static("GET, POST, DELETE");
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
    let names = "authorization, content-type, x-api-key, x-request-id, anthropic-version, \
                 traceparent, tracestate";
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(names));
    response
}

/// The key that a request presents, in either of the usual headers; never in the address.
fn key(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    });
    bearer.or_else(|| headers.get("x-api-key")?.to_str().ok())
}

/// The caller's own id, if it is one; else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let is_id = |text: &&str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        (1..=128).contains(&text.len()) && text.chars().all(allowed)
    };
    given.filter(is_id).map_or_else(|| new_id("req"), str::to_owned)
}

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        _: &S,
    ) -> Result<Self, Failure> {
        let caller = parts.extensions.get::<Caller>().cloned();
        caller.ok_or_else(|| Failure::new(Kind::Ours, "the route has no caller"))
    }
}
