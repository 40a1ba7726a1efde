//! Reads text files up to a limit.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// No JSON file of a real model comes near it (tokenizers are a few tens of MB).
pub(crate) const MAX_BYTES: u64 = 64 << 20;

/// The text of a regular file, or `None` when there is no such file.
pub(crate) fn read(path: &Path) -> io::Result<Option<String>> {
    read_up_to(path, MAX_BYTES)
}

fn read_up_to(path: &Path, max_bytes: u64) -> io::Result<Option<String>> {
    // Opening a named pipe would wait for its writer.
    match path.metadata() {
        Ok(meta) if meta.is_file() => {}
        Ok(_) => return Err(io::Error::other("it is not a regular file")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(max_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        return Err(io::Error::other(format!("it is larger than {max_bytes} bytes")));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| io::Error::other("it is not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_utf8_files_up_to_the_limit_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        assert!(read_up_to(&path, 4).unwrap().is_none());
        for (content, readable) in [(&b"abcd"[..], true), (b"abcde", false), (b"\xff", false)] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(read_up_to(&path, 4).is_ok(), readable, "{content:?}");
        }
        assert!(read(dir.path()).is_err());
    }
}
