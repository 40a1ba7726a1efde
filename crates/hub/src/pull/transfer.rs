//! Brings one file here, however often the connection breaks.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Watch;
use super::client::{Reply, cut};
use super::error::PullError;
use super::listing::{Asked, RemoteFile};
use super::part::{BUFFER_BYTES, Part};
use super::patience::{Patience, Trouble};

/// One file on its way.
pub(super) struct Transfer<'a> {
    pub asked: &'a Asked<'a>,
    pub commit: &'a str,
    pub file: &'a RemoteFile,
    pub patience: &'a Patience,
    /// Set when another file has failed.
    pub stop: &'a AtomicBool,
    pub watch: &'a dyn Watch,
}

impl Transfer<'_> {
    /// Fetches what is missing of `part` and gives the complete, checked file its `name`. Bytes
    /// that an earlier run left are given up once, if the whole is not what it should be.
    pub fn fetch(&self, part: &Path, name: &Path) -> Result<(), PullError> {
        let left = self.open(part)?;
        let was_begun = left.len > 0;
        let result = match self.complete(left, name) {
            Err(PullError::WrongHash { .. }) if was_begun => self.complete(self.open(part)?, name),
            result => result,
        };
        // A file that nothing has come of is no download that could go on.
        if result.is_err() && part.metadata().is_ok_and(|meta| meta.len() == 0) {
            let _ = fs::remove_file(part);
        }
        result
    }

    /// Takes a local file that is said to be the same: linked, if the disk is the same, else
    /// copied. An error, if it is not what it is said to be.
    pub fn take(&self, source: &Path, part: &Path, name: &Path) -> Result<(), PullError> {
        let mut hasher = self.file.digest.hasher(self.file.size_bytes);
        self.read(source, &mut |bytes| {
            hasher.update(bytes);
            Ok(())
        })?;
        if !hasher.matches(&self.file.digest) {
            let (file, expected) = (self.file.name.clone(), self.file.digest.to_string());
            return Err(PullError::WrongHash { file, expected });
        }
        if fs::hard_link(source, name).is_ok() {
            return Ok(());
        }
        let mut part = self.open(part)?;
        part.restart()?;
        self.read(source, &mut |bytes| part.append(bytes))?;
        part.finish(name)
    }

    fn read(
        &self,
        source: &Path,
        on_bytes: &mut dyn FnMut(&[u8]) -> Result<(), PullError>,
    ) -> Result<(), PullError> {
        let failed = |e| PullError::Io { path: source.to_owned(), source: e };
        let mut file = File::open(source).map_err(failed)?;
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut n_read = 0;
        loop {
            self.check_stop()?;
            let n = file.read(&mut buffer).map_err(failed)?;
            if n == 0 {
                return Ok(());
            }
            on_bytes(&buffer[..n])?;
            n_read += n as u64;
            self.watch.has(&self.file.name, n_read);
        }
    }

    fn open(&self, part: &Path) -> Result<Part<'_>, PullError> {
        let on_bytes = |bytes| self.watch.has(&self.file.name, bytes);
        Part::open(part.to_owned(), self.file, &on_bytes)
    }

    fn complete(&self, mut part: Part<'_>, name: &Path) -> Result<(), PullError> {
        let on_wait = |error: &PullError, wait| self.watch.waits(error, wait);
        self.patience.insist(self.stop, &on_wait, &mut || {
            let before = part.len;
            self.attempt(&mut part).map_err(|trouble| (trouble, part.len > before))
        })?;
        part.finish(name)
    }

    fn attempt(&self, part: &mut Part<'_>) -> Result<(), Trouble> {
        if part.is_complete() {
            return Ok(());
        }
        let Asked { client, name, .. } = self.asked;
        let url = format!(
            "{}/{name}/resolve/{}/{}",
            client.endpoint(),
            self.commit,
            in_url(&self.file.name)
        );
        let mut reply = client.get(&url, part.len)?;
        match reply.status {
            // The server does not know ranges.
            200 => part.restart()?,
            206 => {}
            416 => {
                part.restart()?;
                return Err(cut(&reply.host, &"it has no such range"));
            }
            _ => return Err(self.asked.refused(&reply)),
        }
        check_length(&reply, part, self.file.size_bytes)?;
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut body = reply.body.as_reader();
        loop {
            self.check_stop()?;
            match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => part.append(&buffer[..n])?,
                Err(error) => return Err(cut(&reply.host, &error)),
            }
            self.watch.has(&self.file.name, part.len);
        }
        if part.is_complete() {
            return Ok(());
        }
        Err(cut(&reply.host, &"the connection was closed early"))
    }

    fn check_stop(&self) -> Result<(), PullError> {
        if self.stop.load(Ordering::Relaxed) { Err(PullError::Stopped) } else { Ok(()) }
    }
}

/// Whether the answer is about the file that was listed, and begins where it should. Found out
/// before gigabytes have come.
fn check_length(reply: &Reply, part: &Part<'_>, size_bytes: u64) -> Result<(), Trouble> {
    let total = if reply.status == 206 {
        let Some((start, total)) = reply.header("content-range").and_then(content_range) else {
            return Err(cut(&reply.host, &"it does not say which part of the file it sends"));
        };
        if start != part.len {
            return Err(cut(&reply.host, &"it sends another part of the file"));
        }
        Some(total)
    } else {
        reply.header("content-length").and_then(|length| length.parse().ok())
    };
    match total {
        Some(total) if total != size_bytes => Err(part.wrong_size(total).into()),
        _ => Ok(()),
    }
}

/// Start and whole length of `bytes 5-9/10`.
fn content_range(text: &str) -> Option<(u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()?))
}

/// A plain file name as one part of an address.
fn in_url(name: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    name.bytes()
        .map(|byte| match is_plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_a_start_and_a_length() {
        for (text, expected) in [
            ("bytes 5-9/10", Some((5, 10))),
            ("bytes 5-9/*", None),
            ("bytes */10", None),
            ("items 5-9/10", None),
        ] {
            assert_eq!(content_range(text), expected, "{text}");
        }
    }

    #[test]
    fn names_are_one_part_of_an_address() {
        assert_eq!(in_url("a-b_c.d"), "a-b_c.d");
        assert_eq!(in_url("a b?#%ä"), "a%20b%3F%23%25%C3%A4");
    }
}
