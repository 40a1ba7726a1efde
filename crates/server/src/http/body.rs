//! Bodies of requests: how large, how long, and their fields.

use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ORIGIN};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;

use super::fields::Fields;
use super::json;
use super::{App, Limits};
use crate::blocking::blocking;
use crate::failure::{Failure, Kind};

/// Of a body that is not wanted. The connection of a longer one ends.
const MAX_DISCARDED_BYTES: usize = 1 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(2);

/// The fields of a JSON body, as an argument of a handler.
pub struct Body(pub Fields);

impl FromRequest<App> for Body {
    type Rejection = Failure;

    async fn from_request(request: Request, app: &App) -> Result<Self, Failure> {
        let bytes = read(request, &app.limits).await?;
        // A large body takes milliseconds, in which others would wait.
        let value = blocking(move || json::parse(&bytes)).await?;
        Fields::of("", value).map(Self)
    }
}

/// Reads what nobody wants, within bounds, so that the next request of the connection is found
/// where it begins, and the answer is not lost in a reset of the connection.
pub(super) async fn discard(body: axum::body::Body) {
    let mut chunks = body.into_data_stream();
    let all = async {
        let mut n_bytes = 0;
        while let Some(Ok(chunk)) = chunks.next().await {
            n_bytes += chunk.len();
            if n_bytes > MAX_DISCARDED_BYTES {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD_TIME, all).await;
}

/// Answers every request so, whatever its body.
pub fn refused(
    kind: Kind,
    message: &'static str,
) -> impl Fn(Request) -> BoxFuture<'static, Failure> + Clone {
    move |request| {
        Box::pin(async move {
            discard(request.into_body()).await;
            Failure::new(kind, message)
        })
    }
}

async fn read(request: Request, limits: &Limits) -> Result<axum::body::Bytes, Failure> {
    if let Err(failure) = check_type(request.headers()) {
        discard(request.into_body()).await;
        return Err(failure);
    }
    let max_bytes = limits.body_bytes;
    let too_large = || Failure::new(Kind::TooLarge, format!("the body is over {max_bytes} bytes"));
    let length = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if length.and_then(|text| text.parse::<u64>().ok()).is_some_and(|n| n > max_bytes as u64) {
        return Err(too_large());
    }
    let body = to_bytes(request.into_body(), max_bytes);
    match tokio::time::timeout(limits.body_time, body).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            let mut cause: Option<&dyn std::error::Error> = Some(&error);
            while let Some(error) = cause {
                // The library tells this case by its text alone.
                if error.to_string().contains("length limit") {
                    return Err(too_large());
                }
                cause = error.source();
            }
            Err(Failure::new(Kind::Invalid, "the body ended before it was complete"))
        }
        Err(_) => {
            let s = limits.body_time.as_secs();
            Err(Failure::new(Kind::TimedOut, format!("the body did not come within {s} s")))
        }
    }
}

/// Pages of other servers can send texts and forms without asking first, but no JSON. Some clients
/// that are no pages, and so send no Origin, leave the type out.
fn check_type(headers: &HeaderMap) -> Result<(), Failure> {
    let value = headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    let essence = value.map(|value| value.split(';').next().unwrap_or_default().trim());
    let is_left_out = essence.is_none() && !headers.contains_key(ORIGIN);
    let is_json = essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json"));
    if !is_json && !is_left_out {
        let message = "the Content-Type must be application/json";
        return Err(Failure::new(Kind::UnsupportedMedia, message));
    }
    match headers.get(CONTENT_ENCODING) {
        None => Ok(()),
        Some(value) if value == "identity" => Ok(()),
        Some(_) => Err(Failure::new(Kind::UnsupportedMedia, "bodies cannot be compressed")),
    }
}
