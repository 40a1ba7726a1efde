//! The least HTTP client that shows what is on the wire.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

/// An answer whose body is still to be read.
pub struct Opened {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub reader: BufReader<TcpStream>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The data of server-sent events, without the last `[DONE]`, which has to be there.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        let mut data: Vec<_> =
            self.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{self:?}");
        data.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The data of named events; the name of each is its `type`.
    #[track_caller]
    pub fn named_events(&self) -> Vec<Value> {
        let mut events = Vec::new();
        let mut name = None;
        for line in self.body.lines() {
            if let Some(given) = line.strip_prefix("event: ") {
                name = Some(given);
            }
            if let Some(data) = line.strip_prefix("data: ") {
                let event: Value = serde_json::from_str(data).unwrap();
                assert_eq!(event["type"].as_str(), name.take(), "{self:?}");
                events.push(event);
            }
        }
        events
    }

    /// `error.param` of a failure, which has this status.
    #[track_caller]
    pub fn refused(&self, status: u16) -> Option<String> {
        assert_eq!(self.status, status, "{self:?}");
        let json = self.json();
        assert!(json["error"]["message"].is_string(), "{self:?}");
        json["error"]["param"].as_str().map(str::to_owned)
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A request as bytes, as it should be.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let mut text = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    let has = |name: &str| headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    let mut add = |name: &str, value: &str| text.push_str(&format!("{name}: {value}\r\n"));
    if !has("host") {
        add("host", "localhost");
    }
    if !body.is_empty() {
        if !has("content-type") {
            add("content-type", "application/json");
        }
        add("content-length", &body.len().to_string());
    }
    for (name, value) in headers {
        add(name, value);
    }
    format!("{text}\r\n{body}")
}

/// Sends bytes and reads the head of the answer; none if the server closes instead.
pub fn open(address: SocketAddr, bytes: &[u8]) -> Option<Opened> {
    let mut stream = connect(address);
    // A server that refuses early does not read all.
    let _ = stream.write_all(bytes);
    read_head(stream)
}

/// Reads the head of an answer.
pub fn read_head(stream: TcpStream) -> Option<Opened> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return None;
    }
    let status = line.split(' ').nth(1)?.parse().ok()?;
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            None => break,
            Some((name, value)) => headers.push((name.to_lowercase(), value.to_owned())),
        }
    }
    Some(Opened { status, headers, reader })
}

impl Opened {
    /// Reads until a line begins so.
    pub fn wait_for(&mut self, start: &str) {
        let mut line = String::new();
        while !line.starts_with(start) {
            line.clear();
            assert!(self.reader.read_line(&mut line).unwrap() > 0, "no line {start:?}");
        }
    }

    /// Reads to the end.
    pub fn reply(mut self) -> Reply {
        let is_chunked = self.headers.iter().any(|(n, _)| n == "transfer-encoding");
        let mut bytes = Vec::new();
        if is_chunked {
            loop {
                let mut size = String::new();
                if self.reader.read_line(&mut size).unwrap_or(0) == 0 {
                    break;
                }
                let n = usize::from_str_radix(size.trim(), 16).unwrap();
                let mut chunk = vec![0; n + 2];
                if n == 0 || self.reader.read_exact(&mut chunk).is_err() {
                    break;
                }
                bytes.extend(&chunk[..n]);
            }
        } else {
            let _ = self.reader.read_to_end(&mut bytes);
        }
        let body = String::from_utf8(bytes).unwrap();
        Reply { status: self.status, headers: self.headers, body }
    }
}
