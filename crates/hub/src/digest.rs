//! The two hashes that the Hub names files by.

use std::fmt;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

/// What a file's content must hash to, in lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Digest {
    /// SHA-256 of the content: large files (Git LFS).
    Sha256(String),
    /// SHA-1 of the content behind git's own header: all other files.
    GitBlob(String),
}

/// A hash in the making.
pub(crate) struct Hasher(Context);

impl Digest {
    /// Takes the SHA-256 of a large file, with or without its prefix.
    pub fn parse_sha256(text: &str) -> Option<Self> {
        hex(text.strip_prefix("sha256:").unwrap_or(text), 64).map(Self::Sha256)
    }

    /// Takes the name of a git blob.
    pub fn parse_git_blob(text: &str) -> Option<Self> {
        hex(text, 40).map(Self::GitBlob)
    }

    /// The digits.
    pub fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }

    /// A hasher of the same kind for a file of `size_bytes`.
    pub fn hasher(&self, size_bytes: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher(Context::new(&SHA256)),
            Self::GitBlob(_) => {
                let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                context.update(format!("blob {size_bytes}\0").as_bytes());
                Hasher(context)
            }
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(hex) => write!(f, "sha256:{hex}"),
            Self::GitBlob(hex) => write!(f, "git:{hex}"),
        }
    }
}

impl Hasher {
    /// The next bytes of the file.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Whether all bytes together are what was expected.
    pub fn matches(self, expected: &Digest) -> bool {
        let digits: String =
            self.0.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        digits == expected.hex()
    }
}

fn hex(text: &str, length: usize) -> Option<String> {
    let is_hex = text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_sha256sum_and_of_git() {
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        // `printf abc | git hash-object --stdin`
        let git = "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f";
        for digest in [
            Digest::parse_sha256(sha256).unwrap(),
            Digest::parse_sha256(&format!("sha256:{}", sha256.to_uppercase())).unwrap(),
            Digest::parse_git_blob(git).unwrap(),
        ] {
            for (content, matches) in [("abc", true), ("abd", false)] {
                let mut hasher = digest.hasher(3);
                hasher.update(&content.as_bytes()[..1]);
                hasher.update(&content.as_bytes()[1..]);
                assert_eq!(hasher.matches(&digest), matches, "{digest}");
            }
        }
        for bad in ["", "../../etc", &sha256[1..], &format!("{}/", &sha256[1..])] {
            assert!(Digest::parse_sha256(bad).is_none(), "{bad}");
            assert!(Digest::parse_git_blob(bad).is_none(), "{bad}");
        }
    }
}
