//! Answers with reasoning between tags, calls behind markup, and text around them.

use super::call::{CallReader, Found, Opener, Step};
use super::confusable::Openers;
use super::format::{AnswerFormat, ReasoningTags};
use super::markers::{Lexeme, MarkerScanner, begun_bytes};
use super::schema::ToolTypes;
use super::syntax::Family;
use super::{Kind, Part, Parts};
use crate::Json;

/// What a marker means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Open,
    /// A word behind the opening tag.
    Label,
    Close,
    Call(Opener),
    /// Behind a call: between it and another one of its block.
    Separator,
    /// The same in a list.
    Item,
    /// Behind a call: the end of the block.
    End,
}

/// A literal and what it means.
type Marker = (&'static str, Meaning);

/// The block in which calls stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    /// The calls are items of a list.
    is_list: bool,
}

/// Parses one answer.
#[derive(Debug)]
pub(super) struct TagParser {
    markers: Vec<Marker>,
    /// Markers that are special tokens; the others count in text.
    special: Vec<Marker>,
    types: ToolTypes,
    /// Where nothing is a call but what begins so.
    openers: Option<Openers>,
    state: State,
    /// Blanks that may turn out to stand before markup.
    blanks: String,
    scanner: MarkerScanner,
    call: Option<CallReader>,
    parts: Parts,
}

impl TagParser {
    pub(super) fn new(format: &AnswerFormat, tools: &[Json], prompt_tail: &str) -> TagParser {
        let family = format.family.filter(|_| !tools.is_empty());
        let mut markers = Vec::new();
        if let Some(ReasoningTags { open, label, close }) = format.reasoning {
            markers.extend([(open, Meaning::Open), (close, Meaning::Close)]);
            markers.extend((!label.is_empty()).then_some((label, Meaning::Label)));
        }
        markers.extend(family.map(markers_of).unwrap_or_default());
        let is_special = |marker: &Marker| format.special_markup().contains(&marker.0);
        let (special, markers) = markers.into_iter().partition(is_special);
        let opened = |tags: ReasoningTags| {
            let tail = prompt_tail.trim_end();
            tail.strip_suffix(tags.label).is_some_and(|tail| tail.ends_with(tags.open))
        };
        let is_open = format.reasoning.is_some_and(opened);
        let types = ToolTypes::new(tools);
        TagParser {
            markers,
            special,
            openers: format.has_exact_calls().then(|| Openers::new(types.names())),
            types,
            state: State {
                kind: if is_open { Kind::Reasoning } else { Kind::Text },
                has_begun: !is_open,
                has_spoken: false,
                label_due: false,
                is_unclosed: false,
                block: None,
                family,
            },
            blanks: String::new(),
            scanner: MarkerScanner::default(),
            call: None,
            parts: Parts::default(),
        }
    }

    pub(super) fn in_reasoning(&self) -> bool {
        self.state.kind == Kind::Reasoning
    }

    pub(super) fn push(&mut self, text: &str) -> Vec<Part> {
        for c in text.chars() {
            self.character(c);
        }
        self.parts.take()
    }

    pub(super) fn push_special(&mut self, literal: &str) -> Vec<Part> {
        let meaning = self.special.iter().find(|(known, _)| *known == literal).map(|found| found.1);
        match (meaning, &self.call) {
            (Some(Meaning::Call(Opener::Block) | Meaning::Open | Meaning::Close), _)
            | (Some(_), None) => {
                self.release();
                self.give_up_call();
                if let Some(meaning) = meaning.filter(|meaning| self.state.counts(*meaning)) {
                    self.marker(literal, meaning);
                }
            }
            (_, Some(_)) => literal.chars().for_each(|c| self.character(c)),
            (None, None) => {}
        }
        self.parts.take()
    }

    pub(super) fn finish(&mut self) -> Vec<Part> {
        self.release();
        self.give_up_call();
        self.release();
        self.flush_blanks();
        self.parts.take()
    }

    fn character(&mut self, c: char) {
        let Some(call) = &mut self.call else { return self.scan(c) };
        match call.step(c, &self.types) {
            Step::More => {
                let may_become = |all: &mut Openers| all.may_become(&call.raw);
                if !self.openers.as_mut().is_none_or(may_become) {
                    self.bad_call();
                }
            }
            Step::Bad => self.bad_call(),
            Step::Done(found) => self.done(found),
        }
    }

    fn scan(&mut self, c: char) {
        self.scanner.push(c);
        loop {
            let state = self.state;
            let active = self.markers.iter().filter(|(_, meaning)| state.counts(*meaning));
            let Some(lexeme) = self.scanner.next(active.map(|marker| (marker.0, *marker))) else {
                return;
            };
            match lexeme {
                Lexeme::Marker((literal, meaning)) => self.marker(literal, meaning),
                Lexeme::Char(c) => self.show(c),
            }
        }
    }

    fn marker(&mut self, literal: &str, meaning: Meaning) {
        let was_reasoning = self.state.kind == Kind::Reasoning;
        match meaning {
            Meaning::Open => {
                if !was_reasoning && self.state.has_spoken {
                    self.flush_blanks();
                }
                self.turn_to(Kind::Reasoning);
                self.state.label_due = true;
            }
            Meaning::Label => self.state.label_due = false,
            Meaning::Close => {
                self.state.is_unclosed = false;
                self.turn_to(Kind::Text);
            }
            Meaning::Call(opener) => self.open_call(literal, opener),
            Meaning::Separator | Meaning::Item => self.blanks.clear(),
            Meaning::End => {
                self.blanks.clear();
                self.state.block = None;
            }
        }
    }

    fn turn_to(&mut self, kind: Kind) {
        self.state.kind = kind;
        self.blanks.clear();
        self.state.has_begun = false;
        self.state.block = None;
    }

    fn open_call(&mut self, literal: &str, opener: Opener) {
        let Some(family) = self.state.family else { return };
        if let Some(openers) = &mut self.openers {
            openers.reset();
        }
        let is_bare = opener == Opener::Bare;
        self.call = Some(CallReader::new(family, opener, if is_bare { "" } else { literal }));
        if is_bare {
            literal.chars().for_each(|c| self.character(c));
        }
    }

    fn done(&mut self, found: Found) {
        let Some(call) = &self.call else { return };
        let is_known =
            call.n_markup_bytes > 0 || self.state.block.is_some() || self.types.knows(&found.name);
        let is_exact = self.openers.as_ref().is_none_or(|all| all.make(&call.raw));
        if !is_known || !is_exact {
            return self.bad_call();
        }
        let is_list = call.is_list || self.state.block.is_some_and(|block| block.is_list);
        self.call = None;
        self.parts.call(found);
        self.state.is_unclosed |= self.state.kind == Kind::Reasoning;
        self.turn_to(Kind::Text);
        self.state.has_spoken = true;
        self.state.block = Some(Block { is_list });
    }

    /// What was read is text, but for its end where that begins other markup.
    fn bad_call(&mut self) {
        let Some(call) = self.call.take() else { return };
        let literals = self.markers.iter().map(|(literal, _)| *literal);
        let n_again = begun_bytes(&call.raw[call.n_markup_bytes..], literals);
        let (text, again) = call.raw.split_at(call.raw.len() - n_again);
        text.chars().for_each(|c| self.show(c));
        again.chars().for_each(|c| self.character(c));
    }

    /// Nothing more will make a call of it.
    fn give_up_call(&mut self) {
        let Some(call) = self.call.take() else { return };
        call.raw.chars().for_each(|c| self.show(c));
    }

    fn release(&mut self) {
        while let Some(Lexeme::Char(c)) = self.scanner.pop::<()>() {
            self.show(c);
        }
    }

    fn show(&mut self, c: char) {
        let may_belong_to_markup = match self.state.kind {
            Kind::Reasoning => true,
            Kind::Text => self.state.family.is_some() || !self.state.has_spoken,
        };
        match c.is_whitespace() {
            true if !self.state.has_begun => {}
            true if may_belong_to_markup => self.blanks.push(c),
            _ => {
                self.flush_blanks();
                self.parts.push(self.state.kind, c.encode_utf8(&mut [0; 4]));
                self.state.has_begun = true;
                self.state.has_spoken |= self.state.kind == Kind::Text;
                self.state.label_due = false;
                self.state.block = None;
            }
        }
    }

    fn flush_blanks(&mut self) {
        self.parts.push(self.state.kind, &self.blanks);
        self.blanks.clear();
    }
}

/// Where in the answer the parser is: what decides whether a marker is one here.
#[derive(Debug, Clone, Copy)]
struct State {
    kind: Kind,
    /// Whether this part's text has begun: blanks beside markup belong to it.
    has_begun: bool,
    /// Whether the answer has said anything but reasoning.
    has_spoken: bool,
    /// A label may follow.
    label_due: bool,
    /// A call ended the reasoning before its closing tag came.
    is_unclosed: bool,
    /// A call has ended and nothing visible has followed.
    block: Option<Block>,
    /// The syntax of the calls that are looked for.
    family: Option<Family>,
}

impl State {
    fn counts(&self, meaning: Meaning) -> bool {
        let is_list = self.block.is_some_and(|block| block.is_list);
        match meaning {
            // Models open again what the prompt has opened.
            Meaning::Open => self.kind == Kind::Text || !self.has_begun,
            Meaning::Label => self.label_due,
            Meaning::Close => self.kind == Kind::Reasoning || self.is_unclosed,
            Meaning::Call(Opener::Bare) if self.block.is_some() => true,
            Meaning::Call(Opener::Bare) => {
                self.family == Some(Family::Llama) && self.kind == Kind::Text && !self.has_spoken
            }
            Meaning::Call(_) => true,
            Meaning::Item => is_list,
            Meaning::Separator | Meaning::End => self.block.is_some(),
        }
    }
}

/// Whether `literal` is markup of this family's calls, besides what its syntax lists.
pub(super) fn marks_calls(family: Family, literal: &str) -> bool {
    let variants = match family {
        Family::Mistral => &["[ARGS]", "[CALL_ID]"][..],
        Family::Harmony => &super::harmony::MARKUP,
        _ => &[],
    };
    variants.contains(&literal) || markers_of(family).iter().any(|(marker, _)| *marker == literal)
}

/// The markup of calls.
fn markers_of(family: Family) -> &'static [Marker] {
    use Meaning::{Call, End, Item, Separator};
    const BLOCK: Meaning = Call(Opener::Block);
    const NAME: Meaning = Call(Opener::Name);
    const BARE: Meaning = Call(Opener::Bare);
    match family {
        Family::Hermes => {
            &[("<tool_call>", BLOCK), ("{", BARE), (",", Item), ("]", Item), ("</tool_call>", End)]
        }
        Family::Qwen => &[("<tool_call>", BLOCK), ("<function=", NAME), ("</tool_call>", End)],
        Family::Glm => &[("<tool_call>", BLOCK), ("</tool_call>", End)],
        Family::Llama => &[("<|python_tag|>", BLOCK), ("{", BARE), (";", Separator)],
        Family::Mistral => &[("[TOOL_CALLS]", BLOCK), ("{", BARE), (",", Item), ("]", Item)],
        Family::Gemma => &[
            ("<|tool_call>", BLOCK),
            ("<start_function_call>", BLOCK),
            ("<tool_call|>", End),
            ("<end_function_call>", End),
        ],
        Family::DeepSeek => &[
            ("<｜tool▁calls▁begin｜>", BLOCK),
            ("<｜tool▁call▁begin｜>", NAME),
            ("```", Separator),
            ("<｜tool▁call▁end｜>", Separator),
            ("<｜tool▁calls▁end｜>", End),
        ],
        Family::Harmony => &[],
    }
}
