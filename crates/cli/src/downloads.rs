//! Shows a pull on standard error: a bar per file and one for all on a terminal, a line per file
//! elsewhere.

use std::collections::HashMap;
use std::env;
use std::io::{self, IsTerminal};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hub::{
    Environment, Hub, ModelFolder, ModelName, Plan, PullError, PullOptions, Pulled, Revision, Watch,
};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::failure::Result;
use crate::interrupts::Interrupts;
use crate::output::{bytes, say};

/// How much is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Detail {
    Bars,
    Lines,
    Nothing,
}

/// Brings a model here and shows how that goes. Ctrl-C ends the process and keeps what has come.
pub fn pull(
    hub: &Hub,
    (name, revision): (&ModelName, &Revision),
    n_parallel: usize,
    is_quiet: bool,
    interrupts: &Interrupts,
) -> Result<Pulled> {
    let environment = Environment::of_process()?;
    if environment.hides_token() {
        say("warning: the token is not sent, because HF_ENDPOINT is not encrypted (http://)");
    }
    let options = PullOptions { n_parallel, ..PullOptions::default() };
    let downloads = Downloads::new(name, is_quiet);
    interrupts.end_process_saying("stopped; the same command goes on from here");
    let pulled = hub.puller(&environment, options).pull(name, revision, &downloads);
    interrupts.end_process();
    downloads.clear();
    let pulled = pulled?;
    if let Err(error) = ModelFolder::open(&pulled.path)?.tokenizer() {
        say(&format!("warning: only `bench` and `logits` can use it: {error}"));
    }
    Ok(pulled)
}

struct Downloads {
    name: String,
    detail: Detail,
    bars: MultiProgress,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    total: Option<ProgressBar>,
    files: HashMap<String, FileState>,
}

struct FileState {
    size_bytes: u64,
    has_bytes: u64,
    /// From the first byte to the last.
    bar: Option<ProgressBar>,
}

impl Downloads {
    fn new(name: &ModelName, is_quiet: bool) -> Self {
        let is_dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        let detail = match (is_quiet, io::stderr().is_terminal() && !is_dumb) {
            (true, _) => Detail::Nothing,
            (false, true) => Detail::Bars,
            (false, false) => Detail::Lines,
        };
        let target = match detail {
            Detail::Bars => ProgressDrawTarget::stderr(),
            Detail::Lines | Detail::Nothing => ProgressDrawTarget::hidden(),
        };
        let bars = MultiProgress::with_draw_target(target);
        Self { name: name.to_string(), detail, bars, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, line: &str) {
        match self.detail {
            Detail::Bars => self.bars.suspend(|| say(line)),
            Detail::Lines => say(line),
            Detail::Nothing => {}
        }
    }

    fn clear(&self) {
        let _ = self.bars.clear();
    }

    fn bar(&self, size_bytes: u64, name: &str, template: &str) -> ProgressBar {
        let bar = ProgressBar::new(size_bytes).with_message(name.to_owned());
        match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style.progress_chars("=> ")),
            Err(_) => bar,
        }
    }
}

const FILE_TEMPLATE: &str = "{msg:34!} [{bar:20}] {decimal_bytes:>10} of {decimal_total_bytes}";
const TOTAL_TEMPLATE: &str = "{msg:34!} [{bar:20}] {decimal_bytes:>10} of {decimal_total_bytes}, \
                              {decimal_bytes_per_sec}, {eta} left";

impl Watch for Downloads {
    fn planned(&self, plan: &Plan) {
        let total_bytes = plan.files.iter().map(|file| file.size_bytes).sum();
        let present_bytes: u64 = plan.files.iter().map(|file| file.present_bytes).sum();
        let commit: String = plan.commit.chars().take(12).collect();
        let here = match present_bytes {
            0 => String::new(),
            n => format!(", {} are here", bytes(n)),
        };
        let n_files = plan.files.len();
        self.say(&format!(
            "pulling {} at {commit}: {n_files} files, {}{here}",
            self.name,
            bytes(total_bytes)
        ));
        let total = self.bar(total_bytes, "in total", TOTAL_TEMPLATE);
        let total = self.bars.add(total);
        total.set_position(present_bytes);
        // What was here before says nothing about the speed.
        total.reset_eta();
        let mut state = self.lock();
        state.total = Some(total);
        for file in &plan.files {
            let (size_bytes, has_bytes) = (file.size_bytes, file.present_bytes);
            let file_state = FileState { size_bytes, has_bytes, bar: None };
            state.files.insert(file.name.clone(), file_state);
        }
    }

    fn has(&self, file: &str, bytes: u64) {
        let mut state = self.lock();
        let State { total: Some(total), files } = &mut *state else { return };
        let Some(file_state) = files.get_mut(file) else { return };
        let bar = file_state.bar.get_or_insert_with(|| {
            let bar = self.bar(file_state.size_bytes, file, FILE_TEMPLATE);
            self.bars.insert_before(total, bar)
        });
        bar.set_position(bytes);
        file_state.has_bytes = bytes;
        let sum = files.values().map(|file| file.has_bytes).sum();
        total.set_position(sum);
    }

    fn done(&self, file: &str) {
        let bar = self.lock().files.get_mut(file).and_then(|state| state.bar.take());
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let size_bytes = self.lock().files.get(file).map_or(0, |state| state.size_bytes);
        if self.detail == Detail::Lines {
            say(&format!("{file}, {}", bytes(size_bytes)));
        }
    }

    fn waits(&self, error: &PullError, wait: Duration) {
        self.say(&format!("{error}; trying again in {:.0} s", wait.as_secs_f64().ceil()));
    }
}
