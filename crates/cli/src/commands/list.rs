//! `offshoot list`: the models there are.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use clap::builder::BoolishValueParser;
use hub::{Entry, Hub, HubError, ModelFolder, Weights};
use serde_json::{Value, json};

use crate::commands::pull::place;
use crate::failure::Result;
use crate::output::{Output, age, bytes, say, table};

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
        let lines: Vec<_> = hub.list()?.into_iter().map(Line::of).collect();
        if self.json {
            return out.line(&Value::from_iter(lines.iter().map(Line::object)).to_string());
        }
        if lines.is_empty() {
            say("no models; to fetch one: offshoot pull ORG/NAME");
            return Ok(());
        }
        let rows: Vec<_> = lines.iter().map(Line::row).collect();
        out.write(&table(&["NAME", "FAMILY", "SIZE", "BITS", "WHERE", "MODIFIED"], &rows))?;
        for problem in lines.iter().filter_map(|line| line.facts.as_ref().err()) {
            say(&format!("warning: {problem}"));
            if let Some(hint) = problem.hint() {
                say(&format!("hint: {hint}"));
            }
        }
        Ok(())
    }
}

/// A model, with what its files say.
struct Line {
    name: String,
    path: PathBuf,
    place: &'static str,
    modified: Option<SystemTime>,
    facts: std::result::Result<Facts, HubError>,
}

struct Facts {
    folder: ModelFolder,
    weights: Weights,
    disk_bytes: u64,
}

impl Line {
    fn of(entry: Entry) -> Self {
        let facts = entry.folder.and_then(|folder| {
            let (weights, disk_bytes) = (folder.weights()?, folder.disk_bytes()?);
            Ok(Facts { folder, weights, disk_bytes })
        });
        let place = place(entry.place);
        Self { name: entry.name, path: entry.path, place, modified: entry.modified, facts }
    }

    fn row(&self) -> Vec<String> {
        let (family, size, bits) = match &self.facts {
            Ok(facts) => (
                facts.folder.family().to_owned(),
                bytes(facts.disk_bytes),
                facts.weights.bits_per_weight().map(|bits| format!("{bits:.1}")),
            ),
            Err(HubError::Incomplete { .. }) => ("(incomplete)".into(), "-".into(), None),
            Err(_) => ("(broken)".into(), "-".into(), None),
        };
        let modified = self.modified.map(|at| age(at, SystemTime::now()));
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let place = self.place.to_owned();
        vec![self.name.clone(), family, size, or_dash(bits), place, or_dash(modified)]
    }

    fn object(&self) -> Value {
        let facts = self.facts.as_ref().ok();
        let folder = facts.map(|facts| &facts.folder);
        let since_1970 = self.modified.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        json!({
            "name": self.name,
            "family": folder.map(|folder| folder.family()),
            "size_bytes": folder.map(|folder| folder.weight_bytes()),
            "disk_bytes": facts.map(|facts| facts.disk_bytes),
            "quantization": folder.and_then(|folder| folder.quantization()),
            "n_params": facts.map(|facts| facts.weights.n_params),
            "bits_per_weight": facts.and_then(|facts| facts.weights.bits_per_weight()),
            "place": self.place,
            "path": self.path.to_string_lossy(),
            "modified_unix_s": since_1970.map(|duration| duration.as_secs()),
            "problem": self.facts.as_ref().err().map(ToString::to_string),
        })
    }
}
