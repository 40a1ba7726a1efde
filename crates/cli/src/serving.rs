//! Asks the server that runs on this machine, or another, what only it knows.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;
use ureq::http::Response;

use crate::failure::{Failure, Result};
use crate::flags::ServerFlags;

const PATIENCE: Duration = Duration::from_secs(10);

/// A server by its address.
pub struct Serving {
    agent: Agent,
    base: String,
    bearer: Option<String>,
}

impl Serving {
    /// The server that flags name. Nothing is sent yet.
    pub fn new(flags: &ServerFlags) -> Result<Self> {
        let config =
            Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false);
        // What is asked here is no proxy's business.
        let agent = Agent::new_with_config(config.proxy(None).build());
        let host = match flags.host {
            std::net::IpAddr::V4(ip) => ip.to_string(),
            std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        };
        let bearer = flags.api_key_file.as_ref().map(|path| -> Result<String> {
            let text = fs::read_to_string(path)
                .map_err(|e| Failure::new(format!("cannot read {}: {e}", path.display())))?;
            let key = text.split_whitespace().next();
            let none = || Failure::new(format!("{} holds no key", path.display()));
            Ok(format!("Bearer {}", key.ok_or_else(none)?))
        });
        let base = format!("http://{host}:{}", flags.port);
        Ok(Self { agent, base, bearer: bearer.transpose()? })
    }

    /// Asks for an object.
    pub fn get(&self, path: &str) -> Result<Value> {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(bearer) = &self.bearer {
            request = request.header("authorization", bearer);
        }
        self.read(request.call())
    }

    /// Asks for something to be done.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let mut request = self.agent.post(format!("{}{path}", self.base));
        request = request.header("content-type", "application/json");
        if let Some(bearer) = &self.bearer {
            request = request.header("authorization", bearer);
        }
        self.read(request.send(body.to_string()))
    }

    fn read(
        &self,
        answer: std::result::Result<Response<ureq::Body>, ureq::Error>,
    ) -> Result<Value> {
        let mut answer = answer.map_err(|e| {
            Failure::new(format!("no server answers at {}: {e}", self.base))
                .with_hint("start one: offshoot serve; --port names another")
        })?;
        let text = answer.body_mut().read_to_string();
        let text = text.map_err(|e| Failure::new(format!("{}: {e}", self.base)))?;
        let strange = || Failure::new(format!("{} is no server of Offshoot", self.base));
        let value: Value = serde_json::from_str(&text).map_err(|_| strange())?;
        match value["error"]["message"].as_str() {
            Some(message) => Err(Failure::new(message)),
            None if answer.status().is_success() => Ok(value),
            None => Err(strange()),
        }
    }
}
