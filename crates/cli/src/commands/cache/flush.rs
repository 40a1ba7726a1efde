//! `offshoot cache flush`: deletes what the prefix cache has on disk.

use clap::Args;
use kvstore::FolderStats;

use super::stats::name;
use crate::failure::{Failure, Result};
use crate::output::{bytes, say};

/// Delete what the prefix cache has on disk and nobody uses
#[derive(Debug, Args)]
pub struct Flush {
    /// Model, or beginning of a fingerprint, from `offshoot cache stats`
    #[arg(required_unless_present = "all", value_name = "MODEL_OR_FINGERPRINT")]
    which: Option<String>,
    /// Of all models
    #[arg(long, conflicts_with = "which")]
    all: bool,
}

impl Flush {
    /// Runs the command.
    pub fn execute(self) -> Result<()> {
        let flushed = kvstore::flush(&hub::cache_dir()?, |folder| self.is_chosen(folder))?;
        if flushed.is_empty() {
            let Some(which) = self.which else {
                say("nothing is cached");
                return Ok(());
            };
            let error = format!("nothing is cached of {which:?}");
            return Err(Failure::new(error).with_hint("offshoot cache stats shows what there is"));
        }
        let (mut in_use, mut failed) = (Vec::new(), None);
        for folder in flushed {
            let stats = &folder.stats;
            match folder.result {
                Ok(true) => say(&format!("deleted {}, {}", name(stats), bytes(stats.n_bytes))),
                Ok(false) => in_use.push(name(stats).to_owned()),
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            return Err(error.into());
        }
        match in_use.is_empty() {
            true => Ok(()),
            false => Err(Failure::new(format!("{} not deleted: in use", in_use.join(", ")))
                .with_hint("end the offshoot that runs it, and try again")),
        }
    }

    fn is_chosen(&self, folder: &FolderStats) -> bool {
        let is_named = |which: &String| {
            *which == folder.label || !which.is_empty() && folder.folder.starts_with(which.as_str())
        };
        self.all || self.which.as_ref().is_some_and(is_named)
    }
}
