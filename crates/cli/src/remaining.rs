//! Progress of what takes minutes: a bar with the time that is left on a terminal, a line now and
//! then where nobody watches.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::{bytes, say};

const TEMPLATE: &str = "[{bar:24}] {percent:>3} %, {decimal_bytes} of {decimal_total_bytes}, \
                        {eta} left";
/// Lines of a log: one for each tenth, not more often than this.
const LOG_EVERY: Duration = Duration::from_secs(5);
/// Before this share of the work its speed says little.
const ESTIMATES_FROM: f64 = 0.01;

/// How far something long is, on standard error.
pub struct Remaining {
    start: Instant,
    /// What was there at the start: it says nothing about the speed.
    first: Option<u64>,
    /// On a terminal.
    bar: Option<ProgressBar>,
    /// When the last line was written, and the tenth that it was for.
    logged: (Instant, u64),
}

impl Remaining {
    /// Nothing is shown yet.
    pub fn new() -> Self {
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let bar = (io::stderr().is_terminal() && !is_dumb).then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            match ProgressStyle::with_template(TEMPLATE) {
                Ok(style) => bar.with_style(style.progress_chars("=> ")),
                Err(_) => bar,
            }
        });
        let start = Instant::now();
        Self { start, first: None, bar, logged: (start, 0) }
    }

    /// `done` of `total` bytes.
    pub fn update(&mut self, done: u64, total: u64) {
        let is_first = self.first.is_none();
        let first = *self.first.get_or_insert(done);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            if is_first {
                bar.reset_eta();
            }
            return;
        }
        let (logged, last_tenth) = self.logged;
        let tenth = done.saturating_mul(10).checked_div(total).unwrap_or(0);
        if tenth > last_tenth && logged.elapsed() >= LOG_EVERY {
            self.logged = (Instant::now(), tenth);
            let elapsed = self.start.elapsed();
            let left = left(elapsed, done.saturating_sub(first), total.saturating_sub(first));
            say(&line(done, total, left));
        }
    }
}

impl Drop for Remaining {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The time for the rest at the speed so far.
fn left(elapsed: Duration, done: u64, total: u64) -> Option<Duration> {
    let share = done as f64 / total.max(1) as f64;
    (share >= ESTIMATES_FROM).then(|| elapsed.mul_f64((1.0 - share).max(0.0) / share))
}

fn line(done: u64, total: u64, left: Option<Duration>) -> String {
    let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0).min(100);
    let left = left.map_or_else(String::new, |left| format!(", {} left", clock(left)));
    format!("{percent} % ({} of {}){left}", bytes(done), bytes(total))
}

/// `m:ss`, with hours where there are any.
pub fn clock(time: Duration) -> String {
    let s = time.as_secs();
    match s / 3600 {
        0 => format!("{}:{:02}", s / 60, s % 60),
        hours => format!("{hours}:{:02}:{:02}", s / 60 % 60, s % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_takes_as_long_as_the_speed_so_far_says() {
        let check = |s, done, total, wanted: Option<&str>| {
            let found = left(Duration::from_secs(s), done, total).map(clock);
            assert_eq!(found.as_deref(), wanted);
        };
        check(10, 0, 100, None);
        check(10, 25, 100, Some("0:30"));
        check(3600, 25, 100, Some("3:00:00"));
        check(10, 100, 100, Some("0:00"));
        check(10, 0, 0, None);
        let text = line(1_500_000_000, 6_000_000_000, Some(Duration::from_secs(95)));
        assert_eq!(text, "25 % (1.5 GB of 6.0 GB), 1:35 left");
    }
}
