//! `offshoot logits`: every position's logits as a NumPy file, for porters and parity tests.

use std::path::{Path, PathBuf};

use clap::Args;
use protocol::{CacheSettings, Command, Event, FinishReason, LogitsRequest};

use crate::failure::{Failure, Result};
use crate::flags::BackendFlags;
use crate::interrupts::Interrupts;
use crate::model::resolve;
use crate::npy::NpyWriter;
use crate::session::{Session, source};

/// Write the logits of every position as a NumPy file (f32, [tokens, vocabulary])
#[derive(Debug, Args)]
pub struct Logits {
    /// Folder, name from `offshoot list`, or shape:NAME:QUANT
    model: String,
    /// Token ids
    #[arg(long, value_delimiter = ',', required = true, value_name = "ID,...")]
    tokens: Vec<u32>,
    /// Compute this many tokens at a time (without it: as the runner likes)
    #[arg(long, env = "OFFSHOOT_CHUNK", value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..))]
    chunk: Option<u32>,
    /// The file to write; it appears when it is complete
    #[arg(long, value_name = "F.npy")]
    out: PathBuf,
    #[command(flatten)]
    backend: BackendFlags,
}

impl Logits {
    /// Runs the command.
    pub fn execute(self, interrupts: &Interrupts) -> Result<()> {
        let model = resolve(&self.model, interrupts)?;
        check_out(&self.out)?;
        let mut session = Session::start(
            source(&model, None)?,
            CacheSettings::default(),
            false,
            &self.backend,
            interrupts,
        )?;
        let id = session.next_id();
        let n_tokens = self.tokens.len();
        let request = LogitsRequest { id, tokens: self.tokens, chunk_tokens: self.chunk };
        request.fits(&session.info)?;
        let n_cols = session.info.vocab_size;
        let path = self.out;
        let failed = |e| Failure::new(format!("cannot write {}: {e}", path.display()));
        let mut file = NpyWriter::create(&path, n_tokens, n_cols as usize).map_err(failed)?;
        let mut next_row = 0;
        let ending = session.request(id, &Command::Logits(request), &mut |event| {
            if let Event::LogitsRows(rows) = event {
                if (rows.first_row, rows.n_cols) != (next_row, n_cols) {
                    return Err(Failure::new("the runner sent rows of logits out of order"));
                }
                next_row += rows.values.len() as u32 / n_cols;
                file.append(&rows.values).map_err(failed)?;
            }
            Ok(())
        })?;
        match ending.reason {
            FinishReason::Cancelled => Err(Failure::Interrupted),
            FinishReason::Stop | FinishReason::Length => file.finish().map_err(failed),
        }
    }
}

/// The finished file is moved over what has its name: only a file may have it.
fn check_out(out: &Path) -> Result<()> {
    let what = match out.metadata() {
        Ok(there) if there.is_dir() => "a folder",
        Ok(there) if !there.is_file() => "a device, a pipe or a socket",
        _ => return Ok(()),
    };
    Err(Failure::usage(format!("--out {} is {what}", out.display())).with_hint("name a file"))
}
