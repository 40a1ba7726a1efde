//! `offshoot cache stats`: what the prefix cache has on disk.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use clap::builder::BoolishValueParser;
use kvstore::FolderStats;
use serde_json::{Value, json};

use crate::failure::Result;
use crate::output::{Output, age, bytes, say, table};

/// Digits of a folder's name that tell it from others.
const SHORT: usize = 12;

/// Show what the prefix cache has on disk, for each model and way to compute it
#[derive(Debug, Args)]
pub struct Stats {
    /// Print a JSON array
    #[arg(long, env = "OFFSHOOT_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

impl Stats {
    /// Runs the command.
    pub fn execute(self, out: &mut Output) -> Result<()> {
        let root = hub::cache_dir()?;
        let folders = kvstore::list(&root)?;
        if self.json {
            let objects = folders.iter().map(|folder| object(&root, folder));
            return out.line(&Value::from_iter(objects).to_string());
        }
        if folders.is_empty() {
            say(&format!("nothing is cached in {}", root.display()));
            return Ok(());
        }
        let rows: Vec<_> = folders.iter().map(row).collect();
        let header = ["MODEL", "FINGERPRINT", "EXTENTS", "TOKENS", "SIZE", "LAST USED", "STATE"];
        out.write(&table(&header, &rows))?;
        for folder in &folders {
            if let Some(problem) = &folder.problem {
                say(&format!("warning: {} cannot be used: {problem}", folder.folder));
            }
        }
        Ok(())
    }
}

/// What a folder is called.
pub fn name(folder: &FolderStats) -> &str {
    if folder.label.is_empty() { &folder.folder } else { &folder.label }
}

fn row(folder: &FolderStats) -> Vec<String> {
    let state = match (folder.is_in_use, &folder.problem) {
        (true, _) => "in use",
        (false, Some(_)) => "broken",
        (false, None) => "free",
    };
    let last_used = folder.last_used.map(|at| age(at, SystemTime::now()));
    vec![
        if folder.label.is_empty() { "-".to_owned() } else { folder.label.clone() },
        folder.folder.chars().take(SHORT).collect(),
        folder.n_extents.to_string(),
        folder.n_tokens.to_string(),
        bytes(folder.n_bytes),
        last_used.unwrap_or_else(|| "-".to_owned()),
        state.to_owned(),
    ]
}

fn object(root: &Path, folder: &FolderStats) -> Value {
    let since_1970 = folder.last_used.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let known = (!folder.label.is_empty()).then_some(&folder.label);
    json!({
        "model": known,
        "fingerprint": folder.folder,
        "depends_on": folder.fingerprint.lines().collect::<Vec<_>>(),
        "path": root.join(&folder.folder).to_string_lossy(),
        "n_extents": folder.n_extents,
        "n_tokens": folder.n_tokens,
        "size_bytes": folder.n_bytes,
        "last_used_unix_s": since_1970.map(|duration| duration.as_secs()),
        "in_use": folder.is_in_use,
        "problem": folder.problem,
    })
}
