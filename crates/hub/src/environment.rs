//! What the variables of the Hugging Face tools say: where the Hub is, who asks, where its cache
//! is, and whether the network may be used. The names and their order are those of
//! `huggingface_hub`, so that what works for one works for the other.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::hf_cache::HfCache;
use crate::pull::{PullError, is_loopback};
use crate::text_file;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// No token comes near it.
const MAX_TOKEN_BYTES: usize = 4096;

/// Where the Hub is and how it is to be used.
#[derive(Debug, Clone)]
pub struct Environment {
    /// `scheme://host[:port][/path]`, without a slash at the end.
    pub endpoint: String,
    /// Who asks; only the endpoint itself ever sees it.
    pub token: Option<Token>,
    /// No network may be used.
    pub is_offline: bool,
    /// The Hugging Face cache.
    pub cache: HfCache,
}

/// A secret: it is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Environment {
    /// The variables of this process. A token that cannot be one is an error, not ignored.
    pub fn of_process() -> Result<Self, PullError> {
        Self::of(&|name| env::var_os(name).filter(|value| !value.is_empty()))
    }

    /// The cache folder alone, for what needs no network.
    pub fn cache_of_process() -> HfCache {
        cache(&|name| env::var_os(name).filter(|value| !value.is_empty()))
    }

    /// Whether the variables of this process forbid the network.
    pub fn is_offline_process() -> bool {
        is_offline(&|name| env::var_os(name).filter(|value| !value.is_empty()))
    }

    /// Whether there is a token that the endpoint cannot get, because everyone on the way could
    /// read it. On this machine nobody can.
    pub fn hides_token(&self) -> bool {
        self.token.is_some() && self.endpoint.starts_with("http://") && !is_loopback(&self.endpoint)
    }

    fn of(var: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, PullError> {
        let endpoint = match var("HF_ENDPOINT") {
            Some(endpoint) => parse_endpoint(&endpoint.to_string_lossy())?,
            None => DEFAULT_ENDPOINT.to_owned(),
        };
        Ok(Self { endpoint, token: token(var)?, is_offline: is_offline(var), cache: cache(var) })
    }
}

impl Token {
    /// Takes a secret as it came from a variable or a file.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        (!text.is_empty() && text.len() <= MAX_TOKEN_BYTES && is_plain)
            .then(|| Self(text.to_owned()))
    }

    /// The secret.
    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(secret)")
    }
}

fn parse_endpoint(text: &str) -> Result<String, PullError> {
    let bad = |reason: &'static str| PullError::BadVariable { name: "HF_ENDPOINT".into(), reason };
    let text = text.trim().trim_end_matches('/');
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let rest = rest.ok_or_else(|| bad("must begin with https:// or http://"))?;
    if rest.is_empty() || rest.starts_with('/') {
        return Err(bad("names no host"));
    }
    if rest.contains(['@', '?', '#', '\\']) || rest.chars().any(|c| !c.is_ascii_graphic()) {
        return Err(bad("must be scheme://host[:port][/path] and nothing else"));
    }
    Ok(text.to_owned())
}

fn token(var: &dyn Fn(&str) -> Option<OsString>) -> Result<Option<Token>, PullError> {
    const REASON: &str = "holds no token: a token is one word of printable ASCII characters";
    for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
        if let Some(text) = var(name) {
            let token = text.to_str().and_then(Token::parse);
            return match token {
                Some(token) => Ok(Some(token)),
                None => Err(PullError::BadVariable { name: name.into(), reason: REASON }),
            };
        }
    }
    let path = var("HF_TOKEN_PATH").map(PathBuf::from);
    let Some(path) = path.or_else(|| Some(hf_home(var)?.join("token"))) else { return Ok(None) };
    match text_file::read(&path) {
        // The file of someone who has logged out is empty.
        Ok(text) if text.as_deref().unwrap_or_default().trim().is_empty() => Ok(None),
        Ok(text) => match Token::parse(text.as_deref().unwrap_or_default()) {
            Some(token) => Ok(Some(token)),
            None => {
                Err(PullError::BadVariable { name: path.display().to_string(), reason: REASON })
            }
        },
        Err(source) => Err(PullError::Io { path, source }),
    }
}

fn is_offline(var: &dyn Fn(&str) -> Option<OsString>) -> bool {
    let value = var("HF_HUB_OFFLINE").unwrap_or_default().to_string_lossy().to_uppercase();
    ["1", "ON", "YES", "TRUE"].contains(&value.as_str())
}

fn cache(var: &dyn Fn(&str) -> Option<OsString>) -> HfCache {
    let named = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"].iter().find_map(|name| var(name));
    let root = named.map(PathBuf::from).or_else(|| Some(hf_home(var)?.join("hub")));
    // A cache that cannot be read is none.
    HfCache::new(root.filter(|root| fs::read_dir(root).is_ok()))
}

fn hf_home(var: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let below = |dir: &Path| dir.join("huggingface");
    let named = var("HF_HOME").map(PathBuf::from);
    let named = named.or_else(|| Some(below(Path::new(&var("XDG_CACHE_HOME")?))));
    named.or_else(|| Some(below(&dirs::home_dir()?.join(".cache"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(vars: &[(&str, &str)]) -> Result<Environment, PullError> {
        // Without a folder of its own it would read the user's.
        let vars = [&[("HF_HOME", "no/such/folder")], vars].concat();
        Environment::of(&|name| {
            let found = vars.iter().rev().find(|(var, _)| *var == name);
            found.map(|(_, value)| OsString::from(value)).filter(|value| !value.is_empty())
        })
    }

    #[test]
    fn the_endpoint_is_a_host_and_perhaps_a_path() {
        for (given, endpoint) in [
            ("", "https://huggingface.co"),
            ("https://mirror.example/", "https://mirror.example"),
            ("http://127.0.0.1:8080/hf", "http://127.0.0.1:8080/hf"),
        ] {
            assert_eq!(of(&[("HF_ENDPOINT", given)]).unwrap().endpoint, endpoint);
        }
        for bad in
            ["mirror.example", "ftp://a", "https://", "https:///a", "https://u:p@a", "http://a b"]
        {
            let error = of(&[("HF_ENDPOINT", bad)]).unwrap_err().to_string();
            assert!(error.contains("HF_ENDPOINT"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_token_comes_from_the_variable_or_the_file_and_is_never_printed() {
        let dir = tempfile::tempdir().unwrap();
        let home = ("HF_HOME", dir.path().to_str().unwrap());
        assert!(of(&[home]).unwrap().token.is_none());
        let file = dir.path().join("token");
        for (text, secret) in [("hf_file\n", Some("hf_file")), ("\n", None)] {
            fs::write(&file, text).unwrap();
            let token = of(&[home]).unwrap().token;
            assert_eq!(token.as_ref().map(Token::secret), secret);
        }
        let environment = of(&[home, ("HF_TOKEN", "hf_variable")]).unwrap();
        assert_eq!(environment.token.as_ref().unwrap().secret(), "hf_variable");
        assert!(!format!("{environment:?}").contains("hf_variable"));
        for bad in ["two words", "ä", "a\r\nHost: b"] {
            let error = of(&[("HF_TOKEN", bad)]).unwrap_err().to_string();
            assert!(error.contains("HF_TOKEN") && !error.contains(bad), "{error}");
        }
        fs::write(&file, "two words").unwrap();
        assert!(of(&[home]).is_err());
    }

    #[test]
    fn a_token_is_only_for_ways_that_nobody_can_read() {
        let hides = |endpoint, token| {
            of(&[("HF_ENDPOINT", endpoint), ("HF_TOKEN", token)]).unwrap().hides_token()
        };
        for (endpoint, hidden) in [
            ("https://mirror.example", false),
            ("http://mirror.example", true),
            ("http://127.0.0.1:8080", false),
        ] {
            assert_eq!(
                (hides(endpoint, "hf_x"), hides(endpoint, "")),
                (hidden, false),
                "{endpoint}"
            );
        }
    }

    #[test]
    fn the_cache_is_where_the_other_tools_have_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| {
            fs::create_dir_all(dir.path().join(name)).unwrap();
            dir.path().join(name).to_str().unwrap().to_owned()
        };
        let (a, home, xdg) = (path("a"), path("home/hub"), path("xdg/huggingface/hub"));
        let home_dir = path("home");
        let xdg_dir = path("xdg");
        let root = |vars: &[(&str, &str)]| {
            of(vars).unwrap().cache.root().map(|root| root.to_str().unwrap().to_owned())
        };
        let home_var = ("HF_HOME", home_dir.as_str());
        assert_eq!(root(&[home_var, ("HF_HUB_CACHE", &a)]), Some(a.clone()));
        assert_eq!(root(&[home_var]), Some(home));
        assert_eq!(root(&[("HF_HOME", ""), ("XDG_CACHE_HOME", &xdg_dir)]), Some(xdg));
        assert_eq!(root(&[("HF_HOME", "no/such/folder")]), None);
    }

    #[test]
    fn offline_is_what_the_other_tools_take_for_yes() {
        for (value, offline) in
            [("1", true), ("true", true), ("ON", true), ("0", false), ("", false)]
        {
            assert_eq!(of(&[("HF_HUB_OFFLINE", value)]).unwrap().is_offline, offline, "{value}");
        }
    }
}
