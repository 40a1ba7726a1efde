//! Copies what a runner prints to our standard error, byte for byte, and keeps the end of it for
//! the report of a crash.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const KEPT_BYTES: usize = 8 << 10;
const SHOWN_LINES: usize = 12;

/// The end of a process's output.
#[derive(Debug)]
pub(crate) struct LogTail {
    kept: Arc<Mutex<VecDeque<u8>>>,
    /// Held by each copying thread and never used: it disconnects when the last one ends.
    copying: Sender<()>,
    ended: Receiver<()>,
}

impl LogTail {
    pub(crate) fn new() -> Self {
        let (copying, ended) = channel();
        Self { kept: Arc::default(), copying, ended }
    }

    /// Copies a stream to `to` until it ends, on a thread of its own.
    pub(crate) fn copy(
        &self,
        mut from: impl Read + Send + 'static,
        mut to: impl Write + Send + 'static,
    ) {
        let kept = Arc::clone(&self.kept);
        let copying = self.copying.clone();
        std::thread::spawn(move || {
            let _copying = copying;
            let mut buf = [0; 4096];
            loop {
                let n = match from.read(&mut buf) {
                    Ok(0) => return,
                    Ok(n) => n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => return,
                };
                // The process must not block because nobody reads our standard error.
                let _ = to.write_all(&buf[..n]).and_then(|()| to.flush());
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(&buf[..n]);
                let excess = kept.len().saturating_sub(KEPT_BYTES);
                kept.drain(..excess);
            }
        });
    }

    /// The last lines, after the streams have ended (a grandchild may hold them open: not for
    /// longer than `patience`).
    pub(crate) fn last_lines(&mut self, patience: Duration) -> Vec<String> {
        // Drop our own sender, so that only the threads hold one.
        self.copying = channel().0;
        let until = Instant::now() + patience;
        let _ = self.ended.recv_timeout(until.saturating_duration_since(Instant::now()));
        let kept: Vec<u8> = {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.iter().copied().collect()
        };
        let text = String::from_utf8_lossy(&kept);
        let lines: Vec<_> = text.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
        let shown = lines.len().saturating_sub(SHOWN_LINES);
        lines[shown..].iter().map(|line| (*line).to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn all_bytes_pass_and_the_last_lines_are_kept() {
        let mut input: Vec<u8> =
            (0..5000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
        input.extend(b"\xff no newline");
        let (to, mut tail) = (Shared::default(), LogTail::new());
        tail.copy(io::Cursor::new(input.clone()), to.clone());
        let lines = tail.last_lines(Duration::from_secs(60));
        assert_eq!(*to.0.lock().unwrap(), input);
        assert_eq!(lines.len(), SHOWN_LINES);
        assert_eq!(lines[SHOWN_LINES - 2..], ["line 4999", "\u{fffd} no newline"]);
        assert!(tail.kept.lock().unwrap().len() <= KEPT_BYTES);
    }
}
