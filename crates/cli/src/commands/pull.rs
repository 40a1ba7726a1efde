//! `offshoot pull`: brings a model from the Hub.

use clap::Args;
use clap::builder::BoolishValueParser;
use hub::{Hub, Place, parse_reference};
use serde_json::json;

use crate::downloads;
use crate::failure::{Failure, Result};
use crate::interrupts::Interrupts;
use crate::output::{Output, say};

/// Fetch a model from the Hugging Face Hub, or go on with it
#[derive(Debug, Args)]
pub struct Pull {
    /// Repository on the Hub, with a branch, tag or commit if it is not to be the default one
    #[arg(value_name = "ORG/NAME[@REVISION]")]
    model: String,
    /// Files to fetch at the same time
    #[arg(long, env = "OFFSHOOT_PARALLEL", default_value_t = hub::DEFAULT_PARALLEL as u16,
          value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    parallel: u16,
    /// Show no progress
    #[arg(short, long, env = "OFFSHOOT_QUIET", value_parser = BoolishValueParser::new())]
    quiet: bool,
    /// Print a JSON object instead of the model's folder
    #[arg(long, env = "OFFSHOOT_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

impl Pull {
    /// Runs the command.
    pub fn execute(self, out: &mut Output, interrupts: &Interrupts) -> Result<()> {
        if self.model.contains("://") {
            return Err(Failure::usage(format!("{} is an address, not a name", self.model))
                .with_hint("write ORG/NAME; another Hub is named by HF_ENDPOINT"));
        }
        let (name, revision) = parse_reference(&self.model)?;
        let hub = Hub::of_user()?;
        let n_parallel = usize::from(self.parallel);
        let reference = (&name, &revision);
        let pulled = downloads::pull(&hub, reference, n_parallel, self.quiet, interrupts)?;
        let path = pulled.path.to_string_lossy();
        if self.json {
            let object = json!({
                "name": name.as_str(),
                "revision": revision.as_str(),
                "commit": pulled.commit,
                "path": path,
                "place": place(pulled.place),
                "was_here": pulled.was_here,
            });
            return out.line(&object.to_string());
        }
        if !self.quiet {
            let was_here = match (pulled.was_here, pulled.place) {
                (true, Place::HfCache) => ", in the Hugging Face cache",
                (true, _) => ", and nothing was to do",
                (false, _) => "",
            };
            say(&format!("{name} is here{was_here}: offshoot run {name}"));
        }
        out.line(&path)
    }
}

/// As it is written in JSON.
pub fn place(place: Place) -> &'static str {
    match place {
        Place::Store => "store",
        Place::HfCache => "hf-cache",
        Place::Bundled => "bundled",
        Place::Elsewhere => "elsewhere",
    }
}
