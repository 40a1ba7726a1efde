//! What the Hub says is in a repository, and which of it a model needs.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use super::client::{Client, Reading, Reply};
use super::error::PullError;
use super::patience::Trouble;
use super::revision::Revision;
use crate::digest::Digest;
use crate::folder::{INDEX, is_plain_file_name, shards_of_index};
use crate::hf_cache::is_commit;
use crate::name::ModelName;
use crate::text_file;

/// Bounds on what a server can make us read.
const MAX_INFO_BYTES: u64 = 4 << 20;
const MAX_PAGE_BYTES: u64 = 4 << 20;
pub(super) const MAX_PAGES: usize = 64;
const MAX_CURSOR_BYTES: usize = 1024;
/// No model comes near it (the largest are a few TB).
const MAX_TOTAL_BYTES: u64 = 1 << 46;

/// The files beside the weights that Offshoot, or another program that is given the folder, reads.
const COMPANIONS: &[&str] = &[
    "config.json",
    "generation_config.json",
    "hf_quant_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    INDEX,
];

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemoteFile {
    /// A plain name, not a path.
    pub name: String,
    pub size_bytes: u64,
    pub digest: Digest,
}

/// The files at the root of a repository at one commit.
#[derive(Debug)]
pub(super) struct Listing {
    pub commit: String,
    pub files: Vec<RemoteFile>,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

/// One question about a repository.
pub(super) struct Asked<'a> {
    pub client: &'a Client,
    pub name: &'a ModelName,
    pub revision: &'a Revision,
}

impl Asked<'_> {
    /// The commit that the revision stands for.
    pub fn commit(&self) -> Result<String, Trouble> {
        let Self { client, name, revision } = self;
        let url = format!("{}/api/models/{name}/revision/{}", client.endpoint(), revision.in_url());
        let (_, bytes) =
            client.get_json(&url, MAX_INFO_BYTES).map_err(|reading| self.unread(reading))?;
        let info: Info = self.parse(&bytes)?;
        if !is_commit(&info.sha) {
            return Err(self.bad("it names no commit").into());
        }
        Ok(info.sha)
    }

    /// One page of the files at the root of a commit.
    pub fn page(&self, commit: &str, cursor: Option<&str>) -> Result<Page, Trouble> {
        let cursor = cursor.map(|cursor| format!("?cursor={cursor}")).unwrap_or_default();
        let Self { client, name, .. } = self;
        let url = format!("{}/api/models/{name}/tree/{commit}{cursor}", client.endpoint());
        let (headers, bytes) =
            client.get_json(&url, MAX_PAGE_BYTES).map_err(|reading| self.unread(reading))?;
        let entries: Vec<Entry> = self.parse(&bytes)?;
        let files = entries.into_iter().filter_map(|entry| self.file(entry).transpose());
        let link = headers.get("link").and_then(|value| value.to_str().ok());
        Ok(Page { files: files.collect::<Result<_, _>>()?, next: link.and_then(next_cursor) })
    }

    /// A file at the root; none for folders and what is in them. No model needs those.
    fn file(&self, entry: Entry) -> Result<Option<RemoteFile>, PullError> {
        let path = &entry.path;
        if !is_relative(path) {
            return Err(self.bad(format!("it lists {path:?}, a path that leads elsewhere")));
        }
        if entry.kind != "file" || !is_plain_file_name(path) {
            return Ok(None);
        }
        let (digest, size_bytes) = match &entry.lfs {
            Some(lfs) => (Digest::parse_sha256(&lfs.oid), lfs.size),
            None => (Digest::parse_git_blob(&entry.oid), entry.size),
        };
        let digest = digest.ok_or_else(|| self.bad(format!("it gives no hash of {path}")))?;
        Ok(Some(RemoteFile { name: entry.path, size_bytes, digest }))
    }

    /// All pages together, if they can be one model's.
    pub fn checked(&self, files: Vec<RemoteFile>) -> Result<Vec<RemoteFile>, PullError> {
        // Two names that differ in case are one file on some disks.
        let names: BTreeSet<_> = files.iter().map(|file| file.name.to_lowercase()).collect();
        if names.len() < files.len() {
            return Err(self.bad("it lists a file twice"));
        }
        let total = files.iter().try_fold(0u64, |sum, file| sum.checked_add(file.size_bytes));
        if total.is_none_or(|total| total > MAX_TOTAL_BYTES) {
            return Err(self.bad("its files are larger than any model is"));
        }
        Ok(files)
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, PullError> {
        serde_json::from_slice(bytes).map_err(|e| self.bad(format!("it is not as expected: {e}")))
    }

    /// An answer that cannot be used.
    pub fn bad(&self, reason: impl Into<String>) -> PullError {
        PullError::BadListing { name: self.name.to_string(), reason: reason.into() }
    }

    fn unread(&self, reading: Reading) -> Trouble {
        match reading {
            Reading::Trouble(trouble) => trouble,
            Reading::Refused(reply) => self.refused(&reply),
            Reading::TooLarge => self.bad("it is too large").into(),
        }
    }

    /// What a status other than success means.
    pub fn refused(&self, reply: &Reply) -> Trouble {
        let name = self.name.to_string();
        let has_token = self.client.has_token();
        if !reply.is_endpoint {
            return reply.trouble();
        }
        Trouble::Final(match (reply.status, reply.error_code()) {
            (401 | 404, "RevisionNotFound") => {
                PullError::NoRevision { name, revision: self.revision.to_string() }
            }
            (401 | 404, "RepoNotFound") => PullError::NotFound { name, has_token },
            (401 | 403, code) => PullError::NoAccess {
                status: reply.status,
                message: reply.error_message(),
                is_gated: code == "GatedRepo",
                has_token,
                page: format!("{}/{name}", self.client.endpoint()),
                name,
            },
            (404, _) => PullError::NotFound { name, has_token },
            _ => return reply.trouble(),
        })
    }
}

/// Part of a list of files.
pub(super) struct Page {
    pub files: Vec<RemoteFile>,
    /// Where the next page begins, if there is one.
    pub next: Option<String>,
}

/// The cursor in `<https://...?cursor=X>; rel="next"`. Only it is taken: where to ask is known.
fn next_cursor(link: &str) -> Option<String> {
    let next = link.split(',').find(|part| part.contains("rel=\"next\""))?;
    let (_, rest) = next.split_once(['?', '&']).and_then(|(_, query)| {
        let query = query.split('>').next()?;
        query.split('&').find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == "cursor"))
    })?;
    let is_plain = rest.len() <= MAX_CURSOR_BYTES
        && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"%-_.~=+/".contains(&b));
    (is_plain && !rest.is_empty()).then(|| rest.to_owned())
}

/// Whether a path stays below where it begins, on every system.
fn is_relative(path: &str) -> bool {
    let is_plain = !path.contains(['\\', ':']) && !path.chars().any(char::is_control);
    let is_inside = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    is_plain && is_inside && !Path::new(path).is_absolute()
}

impl Listing {
    /// A file by name.
    pub fn find(&self, name: &str) -> Option<&RemoteFile> {
        self.files.iter().find(|file| file.name == name)
    }

    /// What a model needs. `index` is the content of the index file, if the repository has one.
    pub fn needed(
        &self,
        asked: &Asked<'_>,
        index: Option<&str>,
    ) -> Result<Vec<RemoteFile>, PullError> {
        self.check_kind(asked.name)?;
        let is_companion = |file: &&RemoteFile| COMPANIONS.contains(&file.name.as_str());
        let mut needed: Vec<_> = self.files.iter().filter(is_companion).cloned().collect();
        if let Some(large) = needed.iter().find(|file| file.size_bytes > text_file::MAX_BYTES) {
            return Err(asked.bad(format!("{} is larger than any such file is", large.name)));
        }
        needed.extend(match index {
            Some(index) => self.shards(asked, index)?,
            None => self.unindexed_weights(),
        });
        Ok(needed)
    }

    fn shards(&self, asked: &Asked<'_>, index: &str) -> Result<Vec<RemoteFile>, PullError> {
        let shards =
            shards_of_index(index).map_err(|reason| asked.bad(format!("{INDEX} {reason}")))?;
        if let Some(name) = shards.iter().find(|name| !name.ends_with(".safetensors")) {
            return Err(asked.bad(format!("{INDEX} names {name} as weights")));
        }
        let find = |name: &String| {
            let missing = || asked.bad(format!("{name} is in its index and not among its files"));
            self.find(name).cloned().ok_or_else(missing)
        };
        shards.iter().map(find).collect()
    }

    /// Without an index: the usual file, else those that begin like it, else all.
    fn unindexed_weights(&self) -> Vec<RemoteFile> {
        let named = |chosen: &dyn Fn(&str) -> bool| {
            let is_chosen =
                |file: &&RemoteFile| file.name.ends_with(".safetensors") && chosen(&file.name);
            self.files.iter().filter(is_chosen).cloned().collect::<Vec<_>>()
        };
        let choices: [&dyn Fn(&str) -> bool; 3] =
            [&|name| name == "model.safetensors", &|name| name.starts_with("model"), &|_| true];
        choices
            .iter()
            .map(|chosen| named(chosen))
            .find(|files| !files.is_empty())
            .unwrap_or_default()
    }

    /// Refuses what cannot become a model, and says what it is.
    fn check_kind(&self, name: &ModelName) -> Result<(), PullError> {
        let any = |endings: &[&str]| {
            self.files.iter().any(|file| endings.iter().any(|end| file.name.ends_with(end)))
        };
        let not = |reason, hint| Err(PullError::NotAModel { name: name.to_string(), reason, hint });
        if any(&["adapter_config.json"]) && self.find("config.json").is_none() {
            return not("it is an adapter", "pull the model that the adapter was made for");
        }
        if any(&[".safetensors"]) {
            return match self.find("config.json") {
                Some(_) => Ok(()),
                None => not("it has no config.json", "look for the model in Hugging Face layout"),
            };
        }
        const HINT: &str = "look for the same model as safetensors, e.g. the original or one by \
                            mlx-community";
        if any(&[".gguf"]) {
            not("it holds GGUF weights only", HINT)
        } else if any(&[".bin", ".pt", ".pth"]) {
            not("it holds PyTorch weights only, which can run code when opened", HINT)
        } else {
            not("it has no weights (*.safetensors)", "look for a repository that holds a model")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_cursor_is_taken_from_a_link() {
        for (link, cursor) in [
            ("<https://evil.example/x?cursor=abc%3D>; rel=\"next\"", Some("abc%3D")),
            ("<https://h/x?limit=5&cursor=abc>; rel=\"next\"", Some("abc")),
            ("<https://h/x?cursor=abc>; rel=\"prev\"", None),
            ("<https://h/x?limit=5>; rel=\"next\"", None),
            ("<https://h/x?cursor=a b>; rel=\"next\"", None),
            ("<https://h/x?cursor=>; rel=\"next\"", None),
            ("", None),
        ] {
            assert_eq!(next_cursor(link).as_deref(), cursor, "{link}");
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_are_told_from_folders() {
        for inside in ["a", "a/b.json", ".gitattributes"] {
            assert!(is_relative(inside), "{inside}");
        }
        for outside in ["", "/a", "..", "a/../../b", "a//b", "./a", "C:a", "a\\b", "a\0b", "a\n"] {
            assert!(!is_relative(outside), "{outside:?}");
        }
    }

    fn listing(names: &[&str]) -> Listing {
        let digest = Digest::parse_git_blob(&"0".repeat(40)).unwrap();
        let file = |name: &&str| RemoteFile {
            name: (*name).to_owned(),
            size_bytes: 1,
            digest: digest.clone(),
        };
        Listing { commit: String::new(), files: names.iter().map(file).collect() }
    }

    fn asked<T>(check: impl Fn(&Asked<'_>) -> T) -> T {
        let environment = crate::environment::Environment {
            endpoint: "http://127.0.0.1:1".into(),
            token: None,
            is_offline: false,
            cache: crate::hf_cache::HfCache::default(),
        };
        let client = Client::new(&environment, std::time::Duration::from_secs(1));
        let name = ModelName::parse("a/b").unwrap();
        check(&Asked { client: &client, name: &name, revision: &Revision::default() })
    }

    #[test]
    fn a_model_needs_its_text_files_and_one_set_of_weights() {
        let check = |names: &[&str], index: Option<&str>, expected: &[&str]| {
            let needed = asked(|asked| listing(names).needed(asked, index).unwrap());
            let found: Vec<_> = needed.iter().map(|file| file.name.as_str()).collect();
            assert_eq!(found, expected);
        };
        let clutter =
            ["README.md", "pytorch_model.bin", "model.gguf", "model.onnx", "flax.msgpack"];
        let model =
            ["config.json", "model.safetensors", "model.fp16.safetensors", "tokenizer.json"];
        let expected = ["config.json", "tokenizer.json", "model.safetensors"];
        check(&[&clutter[..], &model].concat(), None, &expected);
        let sharded =
            ["config.json", "consolidated.safetensors", "m-1.safetensors", "m-2.safetensors"];
        let index = r#"{"weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors"}}"#;
        check(&sharded, Some(index), &["config.json", "m-1.safetensors", "m-2.safetensors"]);
        check(
            &["config.json", "weights.safetensors"],
            None,
            &["config.json", "weights.safetensors"],
        );
    }

    #[test]
    fn what_is_no_model_is_named() {
        for (names, says) in [
            (&["model.gguf"][..], "GGUF"),
            (&["config.json", "pytorch_model.bin"], "PyTorch"),
            (&["adapter_config.json", "adapter_model.safetensors"], "adapter"),
            (&["config.json"], "no weights"),
            (&["model.safetensors"], "no config.json"),
        ] {
            let error = asked(|asked| listing(names).needed(asked, None).unwrap_err());
            assert!(error.to_string().contains(says), "{names:?}: {error}");
            assert!(error.hint().is_some());
        }
        for (index, says) in [
            (r#"{"weight_map": {"a": "gone.safetensors"}}"#, "gone.safetensors"),
            (r#"{"weight_map": {"a": "../a.safetensors"}}"#, "outside"),
            (r#"{"weight_map": {"a": "config.json"}}"#, "as weights"),
            ("[", "not valid JSON"),
        ] {
            let listing = listing(&["config.json", "a.safetensors"]);
            let error = asked(|asked| listing.needed(asked, Some(index)).unwrap_err());
            assert!(error.to_string().contains(says), "{index}: {error}");
        }
    }
}
