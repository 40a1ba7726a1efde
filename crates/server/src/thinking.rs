//! Tells a model's thinking from its answer while both stream.

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// What a piece of text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Between `<think>` and `</think>`.
    Thinking,
    /// Everything else.
    Answer,
}

/// Splits a stream. A tag may arrive in pieces; what could become one is held back.
#[derive(Debug)]
pub struct ThinkingSplitter {
    kind: Kind,
    held: String,
    /// Whether this part's text has begun: blank lines beside a tag belong to the tag.
    begun: bool,
}

impl ThinkingSplitter {
    /// A prompt may end inside the thinking, because some templates open it.
    pub fn after_prompt(prompt: &str) -> Self {
        let opened = prompt.trim_end().ends_with(OPEN);
        let kind = if opened { Kind::Thinking } else { Kind::Answer };
        Self { kind, held: String::new(), begun: !opened }
    }

    /// Takes the next text; what can be shown of it, in order.
    pub fn push(&mut self, text: &str) -> Vec<(Kind, String)> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while let Some(at) = self.held.find(self.tag()) {
            let rest = self.held.split_off(at + self.tag().len());
            self.held.truncate(at);
            let part = std::mem::replace(&mut self.held, rest);
            let part = match self.kind {
                Kind::Thinking => part.trim_end().to_owned(),
                Kind::Answer => part,
            };
            self.emit(part, &mut parts);
            self.kind = match self.kind {
                Kind::Thinking => Kind::Answer,
                Kind::Answer => Kind::Thinking,
            };
            self.begun = false;
        }
        let keep = self.held_back_bytes();
        let ready = self.held.drain(..self.held.len() - keep).collect();
        self.emit(ready, &mut parts);
        parts
    }

    /// The stream has ended: what was held back.
    pub fn finish(&mut self) -> Vec<(Kind, String)> {
        let mut parts = Vec::new();
        let rest = std::mem::take(&mut self.held);
        self.emit(rest, &mut parts);
        parts
    }

    /// The tag that ends the current part.
    fn tag(&self) -> &'static str {
        match self.kind {
            Kind::Thinking => CLOSE,
            Kind::Answer => OPEN,
        }
    }

    /// The longest end of `held` that begins a tag; in thinking with the blanks before it.
    fn held_back_bytes(&self) -> usize {
        let begins = |n: &usize| self.held.ends_with(&self.tag()[..*n]);
        let tag_bytes = (1..self.tag().len()).rev().find(begins).unwrap_or(0);
        let before = &self.held[..self.held.len() - tag_bytes];
        match self.kind {
            Kind::Thinking => tag_bytes + before.len() - before.trim_end().len(),
            Kind::Answer => tag_bytes,
        }
    }

    fn emit(&mut self, part: String, parts: &mut Vec<(Kind, String)>) {
        let shown = if self.begun { part.as_str() } else { part.trim_start() };
        if !shown.is_empty() {
            self.begun = true;
            parts.push((self.kind, shown.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(prompt: &str, pieces: &[&str]) -> (String, String) {
        let mut splitter = ThinkingSplitter::after_prompt(prompt);
        let mut parts: Vec<_> = pieces.iter().flat_map(|piece| splitter.push(piece)).collect();
        parts.extend(splitter.finish());
        let of = |kind| {
            let parts = parts.iter().filter(|(of, _)| *of == kind);
            parts.map(|(_, text)| text.as_str()).collect::<String>()
        };
        (of(Kind::Thinking), of(Kind::Answer))
    }

    #[test]
    fn thinking_and_answer_part_at_the_tags_however_they_arrive() {
        let check = |prompt: &str, text: &str, thinking: &str, answer: &str| {
            let whole = split(prompt, &[text]);
            assert_eq!(whole, (thinking.to_owned(), answer.to_owned()), "{text:?}");
            let characters: Vec<String> = text.chars().map(String::from).collect();
            let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
            assert_eq!(split(prompt, &characters), whole, "{text:?} by character");
        };
        check("", "plain", "", "plain");
        check("", " a < b, <thin air", "", " a < b, <thin air");
        check("", "<think>\nhm, so\n</think>\n\nYes.", "hm, so", "Yes.");
        check("", "<think>\n\n</think>\n\nNo.\n", "", "No.\n");
        check("...assistant\n<think>\n", "so\n\nthen\n</think>\nDone", "so\n\nthen", "Done");
        check("<think>\n\n</think>\n\n", "Done", "", "Done");
        check("", "<think>never closed", "never closed", "");
        check("", "é<think>é</think>é", "é", "éé");
    }

    #[test]
    fn text_is_shown_as_soon_as_it_cannot_be_a_tag() {
        let mut splitter = ThinkingSplitter::after_prompt("");
        assert_eq!(splitter.push("ab<"), [(Kind::Answer, "ab".to_owned())]);
        assert_eq!(splitter.push("c"), [(Kind::Answer, "<c".to_owned())]);
    }
}
