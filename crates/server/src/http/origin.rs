//! Which hosts and web pages may ask: against pages that reach for servers of this machine
//! (drive-by requests, DNS rebinding).

use std::net::IpAddr;

use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, Uri};

use crate::failure::{Failure, Kind};

/// What is allowed beside addresses, `localhost` and pages of this server.
#[derive(Debug, Clone, Default)]
pub struct Allowed {
    /// Names by which this server may be called.
    pub hosts: Vec<String>,
    /// Pages of other servers, e.g. `https://app.example`.
    pub origins: Vec<String>,
}

impl Allowed {
    /// Whether a request may be answered; the origin to name in the answer, where it is another
    /// server's page.
    ///
    /// # Errors
    /// It may not.
    pub fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<Option<String>, Failure> {
        let text = |name| match headers.get_all(name).iter().collect::<Vec<_>>()[..] {
            [] => Ok(None),
            [value] => value.to_str().map(Some).map_err(|_| ()),
            _ => Err(()),
        };
        let forbidden = |message: String| Failure::new(Kind::Forbidden, message);
        let host = text(HOST).map_err(|()| forbidden("there must be one Host header".into()))?;
        let authority = uri.authority().map(|authority| authority.as_str());
        for host in host.into_iter().chain(authority) {
            if !self.allows_host(host) {
                let message = "the Host of the request is not allowed; see --allow-host";
                return Err(forbidden(message.into()));
            }
        }
        if host.is_none() && authority.is_none() {
            return Err(forbidden("there must be one Host header".into()));
        }
        let refused = || forbidden("this Origin is not allowed; see --allow-origin".into());
        let Some(origin) = text(ORIGIN).map_err(|()| refused())? else {
            // Browsers leave the origin out of some requests, but say where they come from.
            let site = headers.get("sec-fetch-site").and_then(|value| value.to_str().ok());
            return if site == Some("cross-site") { Err(refused()) } else { Ok(None) };
        };
        let is_same = host.is_some_and(|host| origin == format!("http://{host}"));
        if is_same {
            return Ok(None);
        }
        match self.origins.iter().any(|allowed| allowed == origin) {
            true => Ok(Some(origin.to_owned())),
            false => Err(refused()),
        }
    }

    /// Addresses cannot be rebound, names can.
    fn allows_host(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host.split(':').next().unwrap_or_default(),
        };
        name.parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || self.hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strange_hosts_and_origins_are_refused() {
        let allowed = Allowed {
            hosts: vec!["box.example".into()],
            origins: vec!["https://app.example".into()],
        };
        let check = |headers: &[(&'static str, &str)], expected: Result<Option<&str>, ()>| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(*name, value.parse().unwrap());
            }
            let found = allowed.check(&Uri::from_static("/v1/models"), &map).map_err(|_| ());
            assert_eq!(found, expected.map(|origin| origin.map(str::to_owned)), "{headers:?}");
        };
        for host in ["127.0.0.1:1", "[::1]:1", "localhost", "LOCALHOST:9", "box.example:1"] {
            check(&[("host", host)], Ok(None));
        }
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[x]"]
        {
            check(&[("host", host)], Err(()));
        }
        check(&[], Err(()));
        check(&[("host", "localhost"), ("host", "localhost")], Err(()));
        let local = ("host", "localhost:11435");
        check(&[local, ("origin", "http://localhost:11435")], Ok(None));
        check(&[local, ("origin", "https://app.example")], Ok(Some("https://app.example")));
        for origin in
            ["null", "http://evil.example", "http://localhost:80", "https://app.example.x"]
        {
            check(&[local, ("origin", origin)], Err(()));
        }
        check(&[local, ("sec-fetch-site", "cross-site")], Err(()));
        check(&[local, ("sec-fetch-site", "same-origin")], Ok(None));
    }
}
