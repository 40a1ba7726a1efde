//! `offshoot stop`: has a server unload a model.

use clap::Args;
use serde_json::json;

use crate::failure::Result;
use crate::flags::ServerFlags;
use crate::output::say;
use crate::serving::Serving;

/// Have a server unload a model as soon as nobody uses it
#[derive(Debug, Args)]
pub struct Stop {
    /// Name as `offshoot ps` shows it
    model: String,
    #[command(flatten)]
    server: ServerFlags,
}

impl Stop {
    /// Runs the command.
    pub fn execute(self) -> Result<()> {
        Serving::new(&self.server)?.post("/models/unload", &json!({"model": self.model}))?;
        say(&format!("{} is unloaded when its requests have ended", self.model));
        Ok(())
    }
}
