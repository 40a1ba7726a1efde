//! The greeting: the one thing that must never change its format, so that any two builds can at
//! least tell each other that they do not fit.
//!
//! Layout: `magic` (8 bytes) · `version` (u32, little-endian) · `build_len` (u8) · `build` (UTF-8).

use std::io::{self, Read, Write};

/// Version of every message after the hello. Raised by each change of an encoding.
pub const VERSION: u32 = 7;

const MAGIC: [u8; 8] = *b"OFFSHOOT";

/// What one side says about itself before anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Hello {
    /// The protocol version this side speaks.
    pub version: u32,
    /// Which build this is, for error messages only (cut to 255 bytes on the wire).
    pub build: String,
}

/// Why no conversation came about.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// The other end speaks, but not this protocol.
    #[error("the other side is not an offshoot program: its first bytes are {0:02x?}")]
    NotOurs([u8; 8]),
    /// The other end closed before its hello was complete.
    #[error("the other side closed the channel before it had introduced itself")]
    Closed,
    /// Two builds that do not fit.
    #[error(
        "protocol version {theirs} (build {their_build}) does not fit ours, {ours}: \
         install offshoot and offshoot-runner from the same build"
    )]
    VersionMismatch {
        /// Our [`VERSION`].
        ours: u32,
        /// The peer's.
        theirs: u32,
        /// The peer's build string.
        their_build: String,
    },
    /// The channel failed.
    #[error("the channel failed during the greeting: {0}")]
    Io(#[source] io::Error),
}

impl Hello {
    /// This build's hello.
    pub fn ours(build: impl Into<String>) -> Self {
        Self { version: VERSION, build: build.into() }
    }

    /// Sends this hello and flushes.
    pub fn write(&self, mut writer: impl Write) -> io::Result<()> {
        let mut build_len = self.build.len().min(usize::from(u8::MAX));
        while !self.build.is_char_boundary(build_len) {
            build_len -= 1;
        }
        let mut bytes = Vec::with_capacity(MAGIC.len() + 5 + build_len);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.push(u8::try_from(build_len).unwrap_or(u8::MAX));
        bytes.extend_from_slice(&self.build.as_bytes()[..build_len]);
        writer.write_all(&bytes)?;
        writer.flush()
    }

    /// Reads the peer's hello, of whatever version it is.
    pub fn read(mut reader: impl Read) -> Result<Self, HelloError> {
        let mut magic = [0; 8];
        fill(&mut reader, &mut magic)?;
        if magic != MAGIC {
            return Err(HelloError::NotOurs(magic));
        }
        let mut version = [0; 4];
        fill(&mut reader, &mut version)?;
        let mut build_len = [0; 1];
        fill(&mut reader, &mut build_len)?;
        let mut build = vec![0; usize::from(build_len[0])];
        fill(&mut reader, &mut build)?;
        Ok(Self {
            version: u32::from_le_bytes(version),
            build: String::from_utf8_lossy(&build).into_owned(),
        })
    }
}

/// Sends our hello, reads the peer's and requires the same version. Returns the peer's.
pub fn exchange(
    mut reader: impl Read,
    mut writer: impl Write,
    build: &str,
) -> Result<Hello, HelloError> {
    let ours = Hello::ours(build);
    // A peer that is already gone is reported by the read below, with a clearer error.
    match ours.write(&mut writer) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => return Err(HelloError::Io(e)),
        _ => {}
    }
    let theirs = Hello::read(&mut reader)?;
    if theirs.version != ours.version {
        return Err(HelloError::VersionMismatch {
            ours: ours.version,
            theirs: theirs.version,
            their_build: theirs.build,
        });
    }
    Ok(theirs)
}

fn fill(reader: &mut impl Read, buf: &mut [u8]) -> Result<(), HelloError> {
    reader.read_exact(buf).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => HelloError::Closed,
        _ => HelloError::Io(e),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_hello_survives(hello: Hello) {
            let mut bytes = Vec::new();
            hello.write(&mut bytes).unwrap();
            let back = Hello::read(bytes.as_slice()).unwrap();
            prop_assert_eq!(back.version, hello.version);
            prop_assert!(hello.build.starts_with(&back.build));
            prop_assert!(back.build.len() + 3 >= hello.build.len().min(255));
        }

        #[test]
        fn a_cut_hello_is_an_error(hello: Hello, cut in any::<prop::sample::Index>()) {
            let mut bytes = Vec::new();
            hello.write(&mut bytes).unwrap();
            bytes.truncate(cut.index(bytes.len()));
            prop_assert!(matches!(Hello::read(bytes.as_slice()), Err(HelloError::Closed)));
        }
    }

    #[test]
    fn a_stranger_is_named_by_its_first_bytes() {
        let error = Hello::read(b"Usage: foo [OPTIONS]".as_slice()).unwrap_err();
        assert!(matches!(error, HelloError::NotOurs(b) if &b == b"Usage: f"));
    }

    #[test]
    fn another_version_is_refused_with_both_numbers() {
        let mut bytes = Vec::new();
        Hello { version: VERSION + 41, build: "9.9.9".into() }.write(&mut bytes).unwrap();
        let error = exchange(bytes.as_slice(), Vec::new(), "test").unwrap_err().to_string();
        assert!(error.contains(&format!("version {}", VERSION + 41)), "{error}");
        assert!(error.contains("9.9.9") && error.contains(&VERSION.to_string()), "{error}");
    }
}
