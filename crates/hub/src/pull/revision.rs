//! Revisions: branches, tags and commits.

use std::fmt;

use super::error::PullError;
use crate::error::HubError;
use crate::name::ModelName;

const MAX_BYTES: usize = 128;

/// A branch, a tag or a commit of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision(String);

impl Revision {
    /// The branch that a repository has if it says nothing else.
    pub const DEFAULT: &str = "main";

    /// Takes letters, digits, `.`, `_`, `-` and, inside, `/`.
    pub fn parse(text: &str) -> Result<Self, PullError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
        let reason = if text.is_empty() {
            Some("it is empty")
        } else if text.len() > MAX_BYTES {
            Some("it is too long")
        } else if !text.chars().all(allowed) {
            Some("letters, digits, '.', '_', '-' and '/' are allowed")
        } else if text.split('/').any(|part| part.is_empty() || part.starts_with('.')) {
            Some("a part of it is empty or begins with a dot")
        } else {
            None
        };
        match reason {
            None => Ok(Self(text.to_owned())),
            Some(reason) => Err(PullError::BadRevision { revision: text.to_owned(), reason }),
        }
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is what a repository has if it says nothing else.
    pub fn is_default(&self) -> bool {
        self.0 == Self::DEFAULT
    }

    /// As one part of an address.
    pub(super) fn in_url(&self) -> String {
        self.0.replace('/', "%2F")
    }
}

impl Default for Revision {
    fn default() -> Self {
        Self(Self::DEFAULT.to_owned())
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Takes `name`, `org/name`, each perhaps with `@revision`.
pub fn parse_reference(text: &str) -> Result<(ModelName, Revision), PullError> {
    let (name, revision) = match text.split_once('@') {
        Some((name, revision)) => (name, Revision::parse(revision)?),
        None => (text, Revision::default()),
    };
    let name = ModelName::parse(name)?;
    if name.as_str() == crate::store::DEMO {
        let reason = "the demo comes with Offshoot and needs no pull".to_owned();
        return Err(HubError::InvalidName { name: name.to_string(), reason }.into());
    }
    Ok((name, revision))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_a_name_and_perhaps_a_revision() {
        for (text, name, revision) in [
            ("gpt2", "gpt2", "main"),
            ("org/name", "org/name", "main"),
            ("org/name@v1.0", "org/name", "v1.0"),
            ("org/name@refs/pr/1", "org/name", "refs/pr/1"),
        ] {
            let (found, at) = parse_reference(text).unwrap();
            assert_eq!((found.as_str(), at.as_str()), (name, revision));
        }
        let (_, revision) = parse_reference("a@refs/pr/1").unwrap();
        assert_eq!(revision.in_url(), "refs%2Fpr%2F1");
        let long = format!("a@{}", "x".repeat(129));
        for bad in
            ["", "a@", "a@b@c", "a@../b", "a@/b", "a@b/", "a@b c", "a@b?c", "../a", "demo", &long]
        {
            assert!(parse_reference(bad).is_err(), "{bad}");
        }
    }
}
