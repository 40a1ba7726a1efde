//! Where data and talk go, and what the terminal can show.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant, SystemTime};

use crate::failure::{Failure, Result};

const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";
/// To the start of the line, and erase it.
const CLEAR_LINE: &str = "\r\x1b[K";

/// Progress is shown only for what takes longer than this.
const PROGRESS_AFTER: Duration = Duration::from_millis(500);
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Prints one line to standard error. That nobody reads it is no error.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Standard output.
pub struct Output {
    writer: Box<dyn Write>,
    /// A person reads it.
    pub is_terminal: bool,
    /// Dimmed text is possible.
    has_style: bool,
}

impl Output {
    /// This process's standard output.
    pub fn of_process() -> Self {
        let is_terminal = io::stdout().is_terminal();
        let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let is_dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        let has_style = is_terminal && !no_color && !is_dumb;
        Self { writer: Box::new(io::stdout().lock()), is_terminal, has_style }
    }

    /// Data that a person or a program reads now.
    pub fn write(&mut self, text: &str) -> Result<()> {
        let written = self.writer.write_all(text.as_bytes()).and_then(|()| self.writer.flush());
        written.map_err(|e| Failure::of_stdout(&e))
    }

    /// One line.
    pub fn line(&mut self, line: &str) -> Result<()> {
        self.write(&format!("{line}\n"))
    }

    /// All of it has arrived.
    pub fn flush(&mut self) -> Result<()> {
        self.writer.flush().map_err(|e| Failure::of_stdout(&e))
    }

    /// The marks around a model's thinking: dimmed, or tags where nothing can be dimmed.
    pub fn thinking_marks(&self) -> (&'static str, &'static str) {
        if self.has_style { (DIM, RESET) } else { ("<think>\n", "\n</think>") }
    }
}

/// A line on standard error that says how far something long is. Only on a terminal.
pub struct Progress {
    label: &'static str,
    start: Instant,
    drawn: Option<Instant>,
    is_terminal: bool,
}

impl Progress {
    /// Nothing is shown yet.
    pub fn new(label: &'static str) -> Self {
        let is_terminal = io::stderr().is_terminal();
        Self { label, start: Instant::now(), drawn: None, is_terminal }
    }

    /// `done` of `total`.
    pub fn update(&mut self, done: u64, total: u64) {
        let due = match self.drawn {
            Some(drawn) => drawn.elapsed() >= PROGRESS_EVERY,
            None => self.start.elapsed() >= PROGRESS_AFTER,
        };
        if self.is_terminal && due {
            let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0).min(100);
            let _ = write!(io::stderr(), "{CLEAR_LINE}{} {percent} %", self.label);
            self.drawn = Some(Instant::now());
        }
    }

    /// Erases the line.
    pub fn clear(&mut self) {
        if self.drawn.take().is_some() {
            let _ = write!(io::stderr(), "{CLEAR_LINE}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Bytes as people read them, e.g. `1.5 GB` (decimal).
pub fn bytes(n: u64) -> String {
    let units = ["kB", "MB", "GB", "TB"];
    if n < 1000 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1000.0;
    let mut unit = units[0];
    for next in &units[1..] {
        if value >= 999.95 {
            value /= 1000.0;
            unit = next;
        }
    }
    format!("{value:.1} {unit}")
}

/// How long ago that was, in whole units.
pub fn age(at: SystemTime, now: SystemTime) -> String {
    let s = now.duration_since(at).unwrap_or_default().as_secs();
    let (n, unit) = match s {
        0..60 => return "just now".to_owned(),
        60..3600 => (s / 60, "minute"),
        3600..86400 => (s / 3600, "hour"),
        _ => (s / 86400, "day"),
    };
    format!("{n} {unit}{} ago", if n == 1 { "" } else { "s" })
}

/// A table with columns as wide as they need to be.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let rows = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    line(header.to_vec()) + &rows.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_one_digit_after_the_point() {
        for (n, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1500, "1.5 kB"),
            (999_949, "999.9 kB"),
            (999_951, "1.0 MB"),
            (16_400_000_000, "16.4 GB"),
            (5_000_000_000_000_000, "5000.0 TB"),
        ] {
            assert_eq!(bytes(n), text);
        }
    }

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

    #[test]
    fn tables_align_their_columns() {
        let rows = vec![vec!["long name".into(), "1".into()], vec!["b".into(), "22".into()]];
        let expected = "NAME       N\nlong name  1\nb          22\n";
        assert_eq!(table(&["NAME", "N"], &rows), expected);
    }
}
