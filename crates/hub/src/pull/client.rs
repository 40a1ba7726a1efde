//! Requests to the Hub: the token stays with the endpoint, redirections are followed by hand, and
//! every failure says whether trying again may help.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use ureq::http::{HeaderMap, Response};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body, Proxy};

use super::error::PullError;
use super::patience::{Trouble, retry_after};
use crate::environment::{Environment, Token};

const MAX_REDIRECTS: usize = 8;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How much of a server's own words is shown.
const MAX_MESSAGE_CHARS: usize = 200;

/// Speaks to one endpoint, and to where it redirects.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<Token>,
}

/// A status, its headers and a body that has not been read.
pub(super) struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Body,
    /// Who answered.
    pub host: String,
    /// Whether it was the endpoint itself.
    pub is_endpoint: bool,
}

impl Client {
    /// `stall` is how long a server may send nothing.
    pub fn new(environment: &Environment, stall: Duration) -> Self {
        // The first to be installed is as good: all that counts is that there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let config = Agent::config_builder()
            .tls_config(tls)
            // No proxy can reach this machine's own addresses.
            .proxy(Proxy::try_from_env().filter(|_| !is_loopback(&environment.endpoint)))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(stall))
            .timeout_per_read(Some(stall))
            .user_agent(concat!("offshoot/", env!("CARGO_PKG_VERSION")))
            .build();
        Self {
            agent: config.into(),
            endpoint: environment.endpoint.clone(),
            token: environment.token.clone().filter(|_| !environment.hides_token()),
        }
    }

    /// The endpoint, without a slash at the end.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Whether requests carry a token.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Asks for a resource, from a byte on if it is not 0. Any final status is a success here.
    pub fn get(&self, url: &str, from_byte: u64) -> Result<Reply, Trouble> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let is_endpoint = origin(&url) == origin(&self.endpoint);
            let host = host(&url).to_owned();
            let mut request = self.agent.get(&url);
            if let Some(token) = self.token.as_ref().filter(|_| is_endpoint) {
                request = request.header("authorization", format!("Bearer {}", token.secret()));
            }
            if from_byte > 0 {
                request = request.header("range", format!("bytes={from_byte}-"));
            }
            let response = request.call().map_err(|error| of_ureq(&host, error))?;
            if !response.status().is_redirection() {
                return Ok(Reply::new(response, host, is_endpoint));
            }
            url = self.target(&url, &host, &response)?;
        }
        let host = host(&url).to_owned();
        Err(Trouble::Final(PullError::Redirect { host, reason: "in a circle" }))
    }

    /// Asks the endpoint for JSON of at most so many bytes.
    pub fn get_json(&self, url: &str, max_bytes: u64) -> Result<(HeaderMap, Vec<u8>), Reading> {
        let mut reply = self.get(url, 0).map_err(Reading::Trouble)?;
        if reply.status != 200 {
            return Err(Reading::Refused(Box::new(reply)));
        }
        let mut bytes = Vec::new();
        let read = reply.body.as_reader().take(max_bytes + 1).read_to_end(&mut bytes);
        read.map_err(|error| Reading::Trouble(cut(&reply.host, &error)))?;
        if bytes.len() as u64 > max_bytes {
            return Err(Reading::TooLarge);
        }
        Ok((reply.headers, bytes))
    }

    fn target(&self, from: &str, host: &str, response: &Response<Body>) -> Result<String, Trouble> {
        let refuse =
            |reason| Err(Trouble::Final(PullError::Redirect { host: host.to_owned(), reason }));
        let location = response.headers().get("location").and_then(|value| value.to_str().ok());
        let Some(target) = location.and_then(|location| join(from, location)) else {
            return refuse("to nowhere");
        };
        if from.starts_with("https://") && !target.starts_with("https://") {
            return refuse("from https to an address that is not encrypted");
        }
        Ok(target)
    }
}

/// Why there is no JSON.
pub(super) enum Reading {
    /// No answer.
    Trouble(Trouble),
    /// A status other than 200.
    Refused(Box<Reply>),
    /// More than was allowed.
    TooLarge,
}

impl Reply {
    fn new(response: Response<Body>, host: String, is_endpoint: bool) -> Self {
        let (parts, body) = response.into_parts();
        let status = parts.status.as_u16();
        Self { status, headers: parts.headers, body, host, is_endpoint }
    }

    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What the Hub itself calls the failure.
    pub fn error_code(&self) -> &str {
        self.header("x-error-code").unwrap_or_default()
    }

    /// The Hub's own words, fit for a terminal.
    pub fn error_message(&self) -> String {
        let message = self.header("x-error-message").unwrap_or_default();
        message.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE_CHARS).collect()
    }

    /// What statuses mean that are nobody's fault here.
    pub fn trouble(&self) -> Trouble {
        let (host, status) = (self.host.clone(), self.status);
        match status {
            429 => {
                let wait = retry_after(&self.headers);
                let retry_after_s = wait.map(|wait| wait.as_secs());
                let error = PullError::TooManyRequests { host, retry_after_s };
                Trouble::Transient { error, wait }
            }
            408 | 500..=599 => {
                let wait = retry_after(&self.headers);
                Trouble::Transient { error: PullError::Server { host, status }, wait }
            }
            // A signed address has expired; the endpoint gives a new one.
            401 | 403 if !self.is_endpoint => {
                Trouble::Transient { error: PullError::Status { host, status }, wait: None }
            }
            _ => Trouble::Final(PullError::Status { host, status }),
        }
    }
}

/// A body that ended early.
pub(super) fn cut(host: &str, error: &dyn std::fmt::Display) -> Trouble {
    let error = PullError::Unreachable { host: host.to_owned(), reason: error.to_string() };
    Trouble::Transient { error, wait: None }
}

fn of_ureq(host: &str, error: ureq::Error) -> Trouble {
    let tls = |reason: String| Trouble::Final(PullError::Tls { host: host.to_owned(), reason });
    match error {
        ureq::Error::Rustls(error) => tls(error.to_string()),
        ureq::Error::Tls(reason) => tls(reason.to_owned()),
        ureq::Error::Io(error) if of_tls(&error) => tls(error.to_string()),
        error @ (ureq::Error::Io(_)
        | ureq::Error::Timeout(_)
        | ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed) => cut(host, &error),
        error => Trouble::Final(PullError::Unreachable {
            host: host.to_owned(),
            reason: error.to_string(),
        }),
    }
}

fn of_tls(error: &std::io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<rustls::Error>() || inner.is::<Arc<rustls::Error>>())
}

/// `scheme://host:port`: who sees a request.
fn origin(url: &str) -> String {
    let scheme = url.find("://").map_or(0, |at| at + 3);
    let end = url[scheme..].find(['/', '?', '#']).map_or(url.len(), |at| scheme + at);
    url[..end].to_ascii_lowercase()
}

/// The host and port of an address, for messages.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit('@').next().unwrap_or_default()
}

/// Whether an address is one of this machine itself.
pub(crate) fn is_loopback(url: &str) -> bool {
    let host = host(url);
    let name = host
        .strip_suffix(|c: char| c.is_ascii_digit())
        .map_or(host, |_| host.rsplit_once(':').map_or(host, |(name, _)| name));
    let address = name.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Where a `Location` leads; none if it is neither an address of the web nor a path.
fn join(from: &str, location: &str) -> Option<String> {
    let is_plain = location.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_plain || location.is_empty() {
        return None;
    }
    if location.starts_with("https://") || location.starts_with("http://") {
        return Some(location.to_owned());
    }
    if let Some(rest) = location.strip_prefix("//") {
        return Some(format!("{}//{rest}", &from[..=from.find(':')?]));
    }
    location.starts_with('/').then(|| format!("{}{location}", origin(from)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        for (url, expected) in [
            ("https://Hub.example/a?b", "https://hub.example"),
            ("https://hub.example:8443", "https://hub.example:8443"),
            ("http://hub.example?x", "http://hub.example"),
            ("https://hub.example@evil.example/", "https://hub.example@evil.example"),
        ] {
            assert_eq!(origin(url), expected);
        }
        assert_eq!(host("https://user:secret@a.example:1/b"), "a.example:1");
        for (url, expected) in [
            ("http://127.0.0.1:8080/x", true),
            ("http://127.0.0.1", true),
            ("http://localhost:1", true),
            ("http://[::1]:80", true),
            ("https://huggingface.co", false),
            ("http://10.0.0.1:80", false),
            ("http://127.0.0.1.example", false),
        ] {
            assert_eq!(is_loopback(url), expected, "{url}");
        }
    }

    #[test]
    fn locations_are_addresses_or_paths() {
        let from = "https://hub.example/api/x";
        for (location, expected) in [
            ("https://cdn.example/y", Some("https://cdn.example/y")),
            ("/api/z?q=1", Some("https://hub.example/api/z?q=1")),
            ("//cdn.example/y", Some("https://cdn.example/y")),
            ("file:///etc/passwd", None),
            ("z", None),
            ("", None),
            ("/a b", None),
        ] {
            assert_eq!(join(from, location).as_deref(), expected, "{location}");
        }
    }
}
