//! `offshoot list`: the models there are.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use clap::builder::BoolishValueParser;
use hub::{Entry, Hub};
use serde_json::{Value, json};

use crate::failure::Result;
use crate::output::{Output, bytes, say, table};

/// List the models there are
#[derive(Debug, Args)]
pub struct List {
    /// Print a JSON array
    #[arg(long, env = "OFFSHOOT_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

impl List {
    /// Runs the command.
    pub fn execute(self, out: &mut Output) -> Result<()> {
        let hub = Hub::of_user()?;
        let entries = hub.list()?;
        if self.json {
            return out.line(&Value::from_iter(entries.iter().map(object)).to_string());
        }
        if entries.is_empty() {
            say(&format!("no models; a folder in {} is one", hub.models_dir().display()));
            return Ok(());
        }
        let rows: Vec<_> = entries.iter().map(row).collect();
        out.write(&table(&["NAME", "FAMILY", "SIZE", "QUANTIZATION", "MODIFIED"], &rows))?;
        for entry in &entries {
            if let Err(problem) = &entry.folder {
                say(&format!("warning: {problem}"));
            }
        }
        Ok(())
    }
}

fn row(entry: &Entry) -> Vec<String> {
    let modified = entry.modified.map_or_else(|| "-".to_owned(), |at| age(at, SystemTime::now()));
    match &entry.folder {
        Ok(folder) => vec![
            entry.name.clone(),
            folder.family().to_owned(),
            bytes(folder.weight_bytes()),
            folder.quantization().unwrap_or_else(|| "-".to_owned()),
            modified,
        ],
        Err(_) => vec![entry.name.clone(), "(broken)".into(), "-".into(), "-".into(), modified],
    }
}

fn object(entry: &Entry) -> Value {
    let folder = entry.folder.as_ref().ok();
    let since_1970 = entry.modified.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    json!({
        "name": entry.name,
        "family": folder.map(|folder| folder.family()),
        "size_bytes": folder.map(|folder| folder.weight_bytes()),
        "quantization": folder.and_then(|folder| folder.quantization()),
        "path": entry.path.to_string_lossy(),
        "modified_unix_s": since_1970.map(|duration| duration.as_secs()),
        "problem": entry.folder.as_ref().err().map(ToString::to_string),
    })
}

fn age(at: SystemTime, now: SystemTime) -> String {
    let s = now.duration_since(at).unwrap_or_default().as_secs();
    let (n, unit) = match s {
        0..60 => return "just now".to_owned(),
        60..3600 => (s / 60, "minute"),
        3600..86400 => (s / 3600, "hour"),
        _ => (s / 86400, "day"),
    };
    format!("{n} {unit}{} ago", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn ages_are_whole_units() {
        for (s, text) in [
            (59, "just now"),
            (60, "1 minute ago"),
            (7199, "1 hour ago"),
            (86400 * 40, "40 days ago"),
        ] {
            let now = SystemTime::now();
            assert_eq!(age(now - Duration::from_secs(s), now), text);
        }
        let now = SystemTime::now();
        assert_eq!(age(now + Duration::from_secs(5), now), "just now", "a clock that runs ahead");
    }
}
