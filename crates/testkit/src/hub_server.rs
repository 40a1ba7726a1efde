//! A Hub on this machine: the part of its API that a download uses, with faults on demand.
//!
//! It listens on a port of its own on the loopback address, answers every request on a thread of
//! its own, and ends when it is dropped.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use ring::digest::{Algorithm, Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use serde_json::{Value, json};

/// What goes wrong, or otherwise than usual, with an answer.
#[derive(Debug, Clone)]
pub enum Fault {
    /// This status and these headers, and nothing else.
    Status(u16, Vec<(&'static str, String)>),
    /// A redirection to the same path at this origin.
    RedirectTo(String),
    /// This body with status 200, whatever was asked.
    Body(Vec<u8>),
    /// The body ends after so many bytes of what was announced.
    CutAfter(usize),
    /// After so many bytes of the body nothing comes any more.
    HangAfter(usize),
    /// The whole file, though a part was asked for.
    IgnoresRange,
    /// Nothing is like what was asked for: another part of the file.
    WrongRange,
    /// The answer waits until so many such answers wait.
    Together(usize),
    /// A body that does not end.
    Endless,
}

/// A request as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubRequest {
    /// With its query.
    pub path: String,
    /// What follows `Authorization:`.
    pub authorization: Option<String>,
    /// What follows `Range:`.
    pub range: Option<String>,
}

/// A Hub with the repositories that a test publishes.
pub struct HubServer {
    address: SocketAddr,
    state: Arc<State>,
    listener: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    inner: Mutex<Inner>,
    /// Something in `inner` has changed.
    changed: Condvar,
    is_over: AtomicBool,
}

#[derive(Default)]
struct Inner {
    repos: Vec<Repo>,
    faults: Vec<(String, Fault, usize)>,
    requests: Vec<HubRequest>,
    /// Answers that have come to their `HangAfter`.
    n_hanging: usize,
    /// Answers that have come to their `Together`.
    n_together: usize,
    /// Entries on a page of a list of files.
    page_entries: Option<usize>,
}

#[derive(Clone)]
struct Repo {
    name: String,
    revision: String,
    commit: String,
    files: Vec<(String, Arc<Vec<u8>>)>,
    /// The token that opens it.
    token: Option<String>,
}

impl HubServer {
    /// Begins to listen.
    ///
    /// # Panics
    /// If the loopback address cannot be listened on.
    pub fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port of loopback");
        let address = listener.local_addr().expect("a bound socket has an address");
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let listener = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let state = Arc::clone(&shared);
                // A client that has gone away is its own business.
                thread::spawn(move || drop(state.serve(&stream)));
            }
        });
        Self { address, state, listener: Some(listener) }
    }

    /// What `HF_ENDPOINT` has to be.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds a revision of a repository; its commit. The same name and revision again move the
    /// revision.
    pub fn publish(&self, name: &str, revision: &str, files: &[(&str, &[u8])]) -> String {
        let content = files.iter().flat_map(|(name, content)| [name.as_bytes(), content]);
        let content = content.collect::<Vec<_>>().concat();
        let commit = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[name.as_bytes(), &content]);
        let files =
            files.iter().map(|(name, content)| ((*name).to_owned(), Arc::new(content.to_vec())));
        let mut inner = self.state.lock();
        inner.repos.retain(|repo| (repo.name.as_str(), repo.revision.as_str()) != (name, revision));
        inner.repos.push(Repo {
            name: name.to_owned(),
            revision: revision.to_owned(),
            commit: commit.clone(),
            files: files.collect(),
            token: None,
        });
        commit
    }

    /// From now on the files of a repository need a token.
    pub fn gate(&self, name: &str, token: &str) {
        for repo in self.state.lock().repos.iter_mut().filter(|repo| repo.name == name) {
            repo.token = Some(token.to_owned());
        }
    }

    /// The next `times` requests whose path contains `needle` go wrong.
    pub fn fault(&self, needle: &str, fault: Fault, times: usize) {
        self.state.lock().faults.push((needle.to_owned(), fault, times));
    }

    /// Lists of files come in pages of so many entries.
    pub fn set_page_entries(&self, n: usize) {
        self.state.lock().page_entries = Some(n);
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<HubRequest> {
        self.state.lock().requests.clone()
    }

    /// Waits until an answer hangs.
    pub fn wait_until_hanging(&self) {
        let inner = self.state.lock();
        let waited = self.state.changed.wait_while(inner, |inner| inner.n_hanging == 0);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::SeqCst);
        drop(self.state.lock());
        self.state.changed.notify_all();
        // The listener looks up when somebody knocks.
        let _ = TcpStream::connect(self.address);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

/// An answer to be.
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn json(value: &Value) -> Self {
        Self { status: 200, headers: Vec::new(), body: value.to_string().into_bytes() }
    }

    /// As the Hub names failures.
    fn error(status: u16, code: &str) -> Self {
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let headers =
            vec![header("X-Error-Code", code), header("X-Error-Message", "the server's own words")];
        Self { status, headers, body: Vec::new() }
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, stream: &TcpStream) -> std::io::Result<()> {
        let Some(request) = read_request(stream)? else { return Ok(()) };
        let (answer, fault) = {
            let mut inner = self.lock();
            inner.requests.push(request.clone());
            let fault = inner.take_fault(&request.path);
            let ranged = match fault {
                Some(Fault::IgnoresRange) => HubRequest { range: None, ..request.clone() },
                Some(Fault::WrongRange) => {
                    HubRequest { range: Some("bytes=1-".into()), ..request.clone() }
                }
                _ => request.clone(),
            };
            (inner.answer(&ranged), fault)
        };
        match fault {
            Some(Fault::Status(status, headers)) => {
                let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), value));
                let answer = Answer { status, headers: headers.collect(), body: Vec::new() };
                send(stream, &answer, None)
            }
            Some(Fault::RedirectTo(origin)) => {
                let location = ("Location".to_owned(), format!("{origin}{}", request.path));
                let answer = Answer { status: 302, headers: vec![location], body: Vec::new() };
                send(stream, &answer, None)
            }
            Some(Fault::Body(body)) => {
                send(stream, &Answer { status: 200, headers: Vec::new(), body }, None)
            }
            Some(Fault::CutAfter(n)) => send(stream, &answer, Some(n)),
            Some(Fault::HangAfter(n)) => {
                send_some(stream, &answer, n)?;
                self.hang();
                Ok(())
            }
            Some(Fault::Together(n)) => {
                self.wait_for_others(n);
                send(stream, &answer, None)
            }
            Some(Fault::Endless) => endless(stream),
            Some(Fault::IgnoresRange | Fault::WrongRange) | None => send(stream, &answer, None),
        }
    }

    fn wait_for_others(&self, n: usize) {
        let mut inner = self.lock();
        inner.n_together += 1;
        self.changed.notify_all();
        let waits =
            |inner: &mut Inner| inner.n_together < n && !self.is_over.load(Ordering::SeqCst);
        drop(self.changed.wait_while(inner, waits).unwrap_or_else(PoisonError::into_inner));
    }

    fn hang(&self) {
        let mut inner = self.lock();
        inner.n_hanging += 1;
        self.changed.notify_all();
        let over = |_: &mut Inner| !self.is_over.load(Ordering::SeqCst);
        drop(self.changed.wait_while(inner, over).unwrap_or_else(PoisonError::into_inner));
    }
}

impl Inner {
    fn take_fault(&mut self, path: &str) -> Option<Fault> {
        let found =
            self.faults.iter_mut().find(|(needle, _, left)| *left > 0 && path.contains(needle));
        let (_, fault, left) = found?;
        *left -= 1;
        Some(fault.clone())
    }

    fn answer(&self, request: &HubRequest) -> Answer {
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let api = path.strip_prefix("/api/models/");
        if let Some((name, revision)) = api.and_then(|rest| rest.split_once("/revision/")) {
            return match self.find(name, revision) {
                Ok(repo) => Answer::json(&json!({ "id": name, "sha": repo.commit })),
                Err(answer) => answer,
            };
        }
        if let Some((name, revision)) = api.and_then(|rest| rest.split_once("/tree/")) {
            return match self.find(name, revision) {
                Ok(repo) => self.tree(repo, path, query),
                Err(answer) => answer,
            };
        }
        let resolved = path.split_once("/resolve/").and_then(|(name, rest)| {
            let (revision, file) = rest.split_once('/')?;
            Some((name.trim_start_matches('/'), revision, file))
        });
        match resolved {
            Some((name, revision, file)) => match self.find(name, revision) {
                Ok(repo) => repo.resolve(file, request),
                Err(answer) => answer,
            },
            None => Answer::error(404, "EntryNotFound"),
        }
    }

    fn find(&self, name: &str, revision: &str) -> Result<&Repo, Answer> {
        let revision = revision.replace("%2F", "/");
        let mut named = self.repos.iter().filter(|repo| repo.name == name).peekable();
        if named.peek().is_none() {
            return Err(Answer::error(404, "RepoNotFound"));
        }
        named
            .find(|repo| repo.revision == revision || repo.commit == revision)
            .ok_or_else(|| Answer::error(404, "RevisionNotFound"))
    }

    /// Files at the root; what is deeper shows as its folder.
    fn tree(&self, repo: &Repo, path: &str, query: &str) -> Answer {
        let mut entries: Vec<Value> = Vec::new();
        for (name, content) in &repo.files {
            let entry = match name.split_once('/') {
                Some((folder, _)) => {
                    json!({"type": "directory", "oid": "0".repeat(40), "size": 0, "path": folder})
                }
                None => entry(name, content),
            };
            if !entries.contains(&entry) {
                entries.push(entry);
            }
        }
        let start =
            query.strip_prefix("cursor=").and_then(|cursor| cursor.parse().ok()).unwrap_or(0);
        let n = self.page_entries.unwrap_or(usize::MAX);
        let page: Vec<_> = entries.iter().skip(start).take(n).cloned().collect();
        let end = start + page.len();
        let mut answer = Answer::json(&Value::Array(page));
        if end < entries.len() {
            let link = format!("<https://elsewhere.example{path}?cursor={end}>; rel=\"next\"");
            answer.headers.push(("Link".into(), link));
        }
        answer
    }
}

/// Weights are kept as large files.
fn is_lfs(name: &str) -> bool {
    name.ends_with(".safetensors")
}

fn sha256(content: &[u8]) -> String {
    digest(&SHA256, &[content])
}

fn git_blob(content: &[u8]) -> String {
    let header = format!("blob {}\0", content.len());
    digest(&SHA1_FOR_LEGACY_USE_ONLY, &[header.as_bytes(), content])
}

/// The hash that the Hub lists for a file, and that caches name it by.
pub fn hub_digest(name: &str, content: &[u8]) -> String {
    if is_lfs(name) { sha256(content) } else { git_blob(content) }
}

fn entry(name: &str, content: &[u8]) -> Value {
    let size = content.len();
    let mut entry = json!({"type": "file", "oid": git_blob(content), "size": size, "path": name});
    if is_lfs(name) {
        entry["oid"] = json!("1".repeat(40));
        entry["lfs"] = json!({"oid": sha256(content), "size": size, "pointerSize": 134});
    }
    entry
}

impl Repo {
    fn resolve(&self, file: &str, request: &HubRequest) -> Answer {
        if let Some(token) = &self.token {
            match &request.authorization {
                None => return Answer::error(401, "GatedRepo"),
                Some(given) if *given != format!("Bearer {token}") => {
                    return Answer::error(403, "GatedRepo");
                }
                Some(_) => {}
            }
        }
        let Some((name, content)) = self.files.iter().find(|(name, _)| name == file) else {
            return Answer::error(404, "EntryNotFound");
        };
        let etag = hub_digest(name, content);
        let mut headers = vec![
            ("ETag".to_owned(), format!("\"{etag}\"")),
            ("X-Linked-Etag".to_owned(), format!("\"{etag}\"")),
            ("X-Repo-Commit".to_owned(), self.commit.clone()),
            ("Accept-Ranges".to_owned(), "bytes".to_owned()),
        ];
        let from = request.range.as_deref().and_then(|range| {
            range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok()
        });
        match from {
            None => Answer { status: 200, headers, body: content.to_vec() },
            Some(from) if from < content.len() => {
                let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
                headers.push(("Content-Range".into(), range));
                Answer { status: 206, headers, body: content[from..].to_vec() }
            }
            Some(_) => Answer { status: 416, headers, body: Vec::new() },
        }
    }
}

fn digest(algorithm: &'static Algorithm, parts: &[&[u8]]) -> String {
    let mut context = Context::new(algorithm);
    for part in parts {
        context.update(part);
    }
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_request(stream: &TcpStream) -> std::io::Result<Option<HubRequest>> {
    let mut lines = BufReader::new(stream).lines();
    let Some(first) = lines.next().transpose()? else { return Ok(None) };
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut request = HubRequest { path, authorization: None, range: None };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => request.authorization = Some(value.to_owned()),
            "range" => request.range = Some(value.to_owned()),
            _ => {}
        }
    }
    Ok(Some(request))
}

fn head(answer: &Answer) -> String {
    let mut head = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head + &format!("Content-Length: {}\r\n\r\n", answer.body.len())
}

/// Sends an answer, or so many bytes of its body, and closes the connection.
fn send(stream: &TcpStream, answer: &Answer, n: Option<usize>) -> std::io::Result<()> {
    send_some(stream, answer, n.unwrap_or(usize::MAX))?;
    stream.shutdown(Shutdown::Both)
}

fn send_some(mut stream: &TcpStream, answer: &Answer, n: usize) -> std::io::Result<()> {
    stream.write_all(head(answer).as_bytes())?;
    stream.write_all(&answer.body[..n.min(answer.body.len())])
}

fn endless(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n[")?;
    loop {
        stream.write_all(&[b' '; 1 << 16])?;
    }
}
