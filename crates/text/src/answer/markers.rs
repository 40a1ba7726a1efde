//! Literals in a stream of characters, found as soon as they are complete.

/// What comes next in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lexeme<T> {
    Marker(T),
    Char(char),
}

/// Holds back what may be the beginning of a marker. Each character goes in once and out once,
/// so work is linear, times the number of markers and their length.
#[derive(Debug, Default)]
pub(super) struct MarkerScanner {
    held: String,
}

impl MarkerScanner {
    /// Takes one more character; ask for [`MarkerScanner::next`] until there is none.
    pub(super) fn push(&mut self, c: char) {
        self.held.push(c);
    }

    /// What is certain by now. Markers may differ from call to call; none begins another.
    pub(super) fn next<'m, T: Copy>(
        &mut self,
        mut markers: impl Iterator<Item = (&'m str, T)>,
    ) -> Option<Lexeme<T>> {
        let mut begins_one = false;
        let whole = markers.find_map(|(literal, marker)| {
            let begins = literal.starts_with(&self.held);
            begins_one |= begins;
            (begins && literal.len() == self.held.len()).then_some(marker)
        });
        if self.held.is_empty() {
            return None;
        }
        if let Some(marker) = whole {
            self.held.clear();
            return Some(Lexeme::Marker(marker));
        }
        if begins_one { None } else { self.pop() }
    }

    /// The first character held back, when nothing more can make it a marker.
    pub(super) fn pop<T>(&mut self) -> Option<Lexeme<T>> {
        let first = self.held.chars().next()?;
        self.held.drain(..first.len_utf8());
        Some(Lexeme::Char(first))
    }
}

/// The longest end of `text` that begins one of `literals`, in bytes.
pub(super) fn begun_bytes<'m>(text: &str, literals: impl Iterator<Item = &'m str>) -> usize {
    let begun = |literal: &str| {
        let lengths = literal.char_indices().map(|(at, c)| at + c.len_utf8());
        lengths.rev().find(|n| text.ends_with(&literal[..*n])).unwrap_or(0)
    };
    literals.map(begun).max().unwrap_or(0)
}
