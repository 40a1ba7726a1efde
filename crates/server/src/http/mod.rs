//! The HTTP server, without any API: what all of them share.
//!
//! Invariants:
//! - The listener and the end are arguments: nothing here opens a port or watches a signal.
//! - Every bound has a number: bodies, their depth and time, headers, connections, requests of a
//!   caller, time of a request, time of a reader that does not read.
//! - Every error has the form of the API whose route it is on.

pub mod body;
mod connection;
pub mod fields;
mod guard;
pub mod json;
pub mod keys;
pub mod name;
pub mod origin;
pub mod stream;
mod trace;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::middleware::from_fn_with_state;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::TcpListener;

use crate::dialect;
use crate::failure::Kind;
use crate::generation::Generator;
use crate::openai::StoredResponses;

use keys::Keys;
use origin::Allowed;

/// Routes without keys: probes of health have none, and whoever reads the document may not know yet
/// how a key is sent. It holds nothing but what the published code says.
pub const OPEN: [&str; 3] = ["/health", "/ready", "/openapi.json"];

/// Bounds of what one client can take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a body.
    pub body_bytes: usize,
    /// For a body to arrive.
    pub body_time: Duration,
    /// Responses that are kept for later requests.
    pub max_responses: usize,
    /// Bytes that they take.
    pub response_bytes: usize,
    /// For the headers of a request to arrive; also how long a connection may idle.
    pub header_time: Duration,
    /// Without any byte taken by the reader of an answer.
    pub write_time: Duration,
    /// Connections at the same time.
    pub max_connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 32 << 20,
            body_time: Duration::from_secs(60),
            max_responses: 1024,
            response_bytes: 128 << 20,
            header_time: Duration::from_secs(30),
            write_time: Duration::from_secs(60),
            max_connections: 1024,
        }
    }
}

/// What handlers work with. Cheap to clone.
pub type App = Arc<Server>;

/// A server's parts.
pub struct Server {
    /// What generates.
    pub generator: Generator,
    /// Who may ask.
    pub keys: Keys,
    /// From where.
    pub allowed: Allowed,
    /// How much.
    pub limits: Limits,
    /// What earlier requests left for later ones.
    pub responses: StoredResponses,
    /// A line of log for each request.
    pub logs_requests: bool,
    /// Named by `/version`.
    pub build: String,
}

/// Serves until `shutdown` ends, lets requests that run come to their end for `patience`, then ends
/// all runners.
pub async fn run(
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
    server: Server,
    patience: Duration,
) {
    let app = Arc::new(server);
    let models = app.generator.models.clone();
    let limits = app.limits.clone();
    let begins = async {
        shutdown.await;
        // Who asks now is told so, on connections that are there already.
        models.drain();
    };
    connection::serve(listener, router(app), &limits, begins, patience).await;
    models.end().await;
}

pub(crate) fn router(app: App) -> Router {
    let unknown = body::refused(Kind::NotFound, "there is no such route");
    let wrong = body::refused(Kind::MethodNotAllowed, "the route has other methods than this");
    let routes = dialect::ALL.iter().flat_map(|dialect| (dialect.routes)());
    routes
        .fold(Router::new(), |router, route| router.route(route.path, route.handler))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong)
        .layer(from_fn_with_state(Arc::clone(&app), guard::guard))
        .with_state(app)
}

/// An id that nobody can guess: a word and 128 random bits.
pub fn new_id(word: &str) -> String {
    format!("{word}-{}", random_hex())
}

/// 128 random bits as text.
pub fn random_hex() -> String {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).expect("the system has random numbers");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Seconds since 1970.
pub fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
