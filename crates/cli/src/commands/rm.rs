//! `offshoot rm`: deletes a model from the store.

use clap::Args;
use hub::Hub;

use crate::failure::{Failure, Result};
use crate::model::{ask, can_ask};
use crate::output::{bytes, say};

/// Delete a model from the store, and what has come of its download
#[derive(Debug, Args)]
pub struct Rm {
    /// Name from `offshoot list`
    model: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl Rm {
    /// Runs the command.
    pub fn execute(self) -> Result<()> {
        let removable = Hub::of_user()?.removable(&self.model)?;
        let paths: Vec<_> = removable.paths().map(|path| path.display().to_string()).collect();
        let paths = paths.join(" and ");
        let what = match removable.is_link() {
            true => format!("the link {paths} (what it leads to stays)"),
            false => format!("{}, {}, in {paths}", removable.name(), bytes(removable.bytes())),
        };
        if !self.yes {
            if !can_ask() {
                let error = format!("deleting {} needs a yes, and this is no terminal", self.model);
                return Err(Failure::usage(error).with_hint("say --yes"));
            }
            if !ask(&format!("Delete {what}?"))? {
                say("nothing was deleted");
                return Ok(());
            }
        }
        removable.remove()?;
        say(&format!("deleted {what}"));
        Ok(())
    }
}
