//! The interactive chat of `offshoot run`.

use std::fs;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use server::prompter::{Conversation, Prompter};
use text::{Message, Role};

use crate::commands::run::{Answer, Style, answer};
use crate::failure::{Failure, Result};
use crate::interrupts::Interrupts;
use crate::output::{Output, say};
use crate::session::Session;

const HELP: &str = r#"/help          this help
/clear         forget the conversation
/system TEXT   new instructions, and forget the conversation (no TEXT: none)
/exit          leave (also Ctrl-D)
"""            begins and ends a text of several lines
Ctrl-C         stops an answer, or clears the line"#;

const QUOTES: &str = r#"""""#;
const HISTORY_LINES: usize = 1000;

/// What a line editor gives.
#[derive(Debug, PartialEq)]
enum Line {
    Text(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D, or the terminal is gone.
    End,
}

/// What the user wants next.
#[derive(Debug, PartialEq)]
enum Input {
    Say(String),
    Help,
    Clear,
    System(String),
    Unknown(String),
    Nothing,
    Leave,
}

/// Chats until the user leaves.
pub fn chat(
    session: &mut Session,
    prompter: &Prompter,
    style: &Style,
    system: Option<String>,
    out: &mut Output,
    interrupts: &Interrupts,
) -> Result<()> {
    let mut editor = Editor::open(interrupts)?;
    let mut reader = Reader { read: |prompt: &str| editor.read(prompt), interrupted: false };
    let mut talk = Talk::new(system);
    say(&format!("{} on {}; /help for help", session.info.family, session.info.device.device));
    loop {
        match reader.next()? {
            Input::Say(text) => {
                let messages = talk.with_user(text);
                let conversation = Conversation::of(messages.clone()).thinking(style.thinking);
                let prompt = prompter.chat(conversation, 0).map_err(Failure::from);
                let answered =
                    prompt.and_then(|prompt| answer(session, prompter, prompt, style, out));
                match answered {
                    Ok(answer) => talk.keep(messages, answer),
                    // The runner lives on after what went wrong with one request.
                    Err(Failure::Failed(message)) if session.is_alive() => {
                        say(&format!("error: {}", message.error));
                        if talk.has_turns() {
                            say("hint: /clear forgets the conversation and makes room");
                        }
                    }
                    Err(failure) => return Err(failure),
                }
            }
            Input::Help => say(HELP),
            Input::Clear => talk.clear(),
            Input::System(text) => talk = Talk::new(Some(text).filter(|text| !text.is_empty())),
            Input::Unknown(command) => say(&format!("error: there is no {command}; see /help")),
            Input::Nothing => {}
            Input::Leave => return Ok(()),
        }
    }
}

/// The conversation so far.
#[derive(Debug)]
struct Talk {
    messages: Vec<Message>,
}

impl Talk {
    fn new(system: Option<String>) -> Self {
        let messages = system.map(|text| Message::new(Role::System, text)).into_iter().collect();
        Self { messages }
    }

    fn has_turns(&self) -> bool {
        self.messages.iter().any(|message| message.role != Role::System)
    }

    fn clear(&mut self) {
        self.messages.retain(|message| message.role == Role::System);
    }

    fn with_user(&self, text: String) -> Vec<Message> {
        let mut messages = self.messages.clone();
        messages.push(Message::new(Role::User, text));
        messages
    }

    /// An answer that was stopped before its first word leaves no trace.
    fn keep(&mut self, mut messages: Vec<Message>, answer: Answer) {
        if answer.text.is_empty() && answer.thinking.is_empty() {
            return;
        }
        let mut message = Message::new(Role::Assistant, answer.text);
        message.reasoning_content = Some(answer.thinking).filter(|text| !text.is_empty());
        messages.push(message);
        self.messages = messages;
    }
}

/// Makes inputs out of lines.
struct Reader<F> {
    read: F,
    /// The last line was an interrupted one.
    interrupted: bool,
}

impl<F: FnMut(&str) -> Result<Line>> Reader<F> {
    fn next(&mut self) -> Result<Input> {
        let was_interrupted = std::mem::take(&mut self.interrupted);
        let text = match (self.read)("> ")? {
            Line::End => return Ok(Input::Leave),
            Line::Interrupted if was_interrupted => return Ok(Input::Leave),
            Line::Interrupted => {
                self.interrupted = true;
                say("(Ctrl-C again or Ctrl-D to leave)");
                return Ok(Input::Nothing);
            }
            Line::Text(text) => text,
        };
        match text.trim().strip_prefix(QUOTES) {
            Some(rest) => self.quoted(rest),
            None => Ok(parse(text.trim())),
        }
    }

    fn quoted(&mut self, first: &str) -> Result<Input> {
        let mut lines = vec![first.to_owned()];
        loop {
            let last = lines.last_mut().map(|line| line.trim_end().to_owned()).unwrap_or_default();
            if let Some(text) = last.strip_suffix(QUOTES) {
                lines.pop();
                lines.push(text.to_owned());
                let text = lines.join("\n").trim().to_owned();
                return Ok(if text.is_empty() { Input::Nothing } else { Input::Say(text) });
            }
            match (self.read)("… ")? {
                Line::Text(line) => lines.push(line),
                Line::Interrupted => return Ok(Input::Nothing),
                Line::End => return Ok(Input::Leave),
            }
        }
    }
}

fn parse(line: &str) -> Input {
    if line.is_empty() {
        return Input::Nothing;
    }
    if !line.starts_with('/') {
        return Input::Say(line.to_owned());
    }
    let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    match (command, rest.trim()) {
        ("/help", "") => Input::Help,
        ("/clear", "") => Input::Clear,
        ("/exit", "") => Input::Leave,
        ("/system", text) => Input::System(text.to_owned()),
        _ => Input::Unknown(line.to_owned()),
    }
}

/// The terminal's line editor, with the lines of earlier chats where they can be kept.
struct Editor<'a> {
    /// Oldest first.
    history: Vec<String>,
    interrupts: &'a Interrupts,
}

impl<'a> Editor<'a> {
    fn open(interrupts: &'a Interrupts) -> Result<Self> {
        let mut editor = new_editor(&[])?;
        if let Some(path) = history_path() {
            // There is none before the first chat.
            let _ = editor.load_history(&path);
        }
        Ok(Self { history: editor.history().iter().cloned().collect(), interrupts })
    }

    /// A line editor takes over SIGINT for as long as it lives, so each lives for one line.
    fn read(&mut self, prompt: &str) -> Result<Line> {
        self.interrupts.leave_to_editor();
        let line = new_editor(&self.history)?.readline(prompt);
        self.interrupts.end_process();
        match line {
            Ok(text) => {
                if !text.trim().is_empty() {
                    self.history.push(text.clone());
                }
                Ok(Line::Text(text))
            }
            Err(ReadlineError::Interrupted | ReadlineError::Signal(_)) => Ok(Line::Interrupted),
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(error) => Err(terminal_error(&error)),
        }
    }
}

impl Drop for Editor<'_> {
    fn drop(&mut self) {
        let Some(path) = history_path() else { return };
        let folder_is_there = path.parent().is_some_and(|dir| fs::create_dir_all(dir).is_ok());
        if folder_is_there && let Ok(mut editor) = new_editor(&self.history) {
            let _ = editor.save_history(&path);
        }
    }
}

fn new_editor(history: &[String]) -> Result<DefaultEditor> {
    let config = rustyline::Config::builder().max_history_size(HISTORY_LINES);
    let editor = config.and_then(|config| DefaultEditor::with_config(config.build()));
    let mut editor = editor.map_err(|e| terminal_error(&e))?;
    for line in history {
        let _ = editor.add_history_entry(line.as_str());
    }
    Ok(editor)
}

fn history_path() -> Option<std::path::PathBuf> {
    Some(hub::data_dir().ok()?.join("history"))
}

fn terminal_error(error: &ReadlineError) -> Failure {
    Failure::new(format!("cannot read from the terminal: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Ending;
    use protocol::{FinishReason, Timings, Usage};

    fn inputs(lines: &[Line]) -> Vec<Input> {
        let mut lines = lines.iter();
        let read = |_: &str| {
            Ok(match lines.next() {
                Some(Line::Text(text)) => Line::Text(text.clone()),
                Some(Line::Interrupted) => Line::Interrupted,
                Some(Line::End) | None => Line::End,
            })
        };
        let mut reader = Reader { read, interrupted: false };
        let mut inputs = Vec::new();
        loop {
            inputs.push(reader.next().unwrap());
            if inputs.last() == Some(&Input::Leave) {
                return inputs;
            }
        }
    }

    fn text(line: &str) -> Line {
        Line::Text(line.to_owned())
    }

    fn said(text: &str) -> Input {
        Input::Say(text.to_owned())
    }

    #[test]
    fn lines_become_inputs() {
        let check = |line: &str, input: Input| {
            assert_eq!(inputs(&[text(line)]), [input, Input::Leave], "{line:?}");
        };
        check(" hello ", said("hello"));
        check("", Input::Nothing);
        check("/help", Input::Help);
        check("/clear", Input::Clear);
        check("/system Be  brief.", Input::System("Be  brief.".into()));
        check("/system", Input::System(String::new()));
        check("/clear all", Input::Unknown("/clear all".into()));
        check("/etc/passwd?", Input::Unknown("/etc/passwd?".into()));
        assert_eq!(inputs(&[text("/exit")]), [Input::Leave]);
    }

    #[test]
    fn quotes_hold_several_lines() {
        let lines = [text(r#"""" one"#), text("/two"), text(""), text(r#"three"""  "#)];
        assert_eq!(inputs(&lines), [said("one\n/two\n\nthree"), Input::Leave]);
        assert_eq!(inputs(&[text(&QUOTES.repeat(2))]), [Input::Nothing, Input::Leave]);
        let stopped = [text(r#""""one"#), Line::Interrupted, text("two")];
        assert_eq!(inputs(&stopped), [Input::Nothing, said("two"), Input::Leave]);
    }

    #[test]
    fn two_interrupts_in_a_row_leave() {
        let lines = [Line::Interrupted, text("a"), Line::Interrupted, Line::Interrupted];
        let expected = [Input::Nothing, said("a"), Input::Nothing, Input::Leave];
        assert_eq!(inputs(&lines), expected);
    }

    #[test]
    fn a_talk_keeps_what_was_answered() {
        let answer = |text: &str| Answer {
            text: text.to_owned(),
            thinking: String::new(),
            ending: Ending {
                reason: FinishReason::Cancelled,
                usage: Usage::default(),
                timings: Timings::default(),
            },
        };
        let roles = |talk: &Talk| talk.messages.iter().map(|m| m.role).collect::<Vec<_>>();
        let mut talk = Talk::new(Some("be brief".into()));
        talk.keep(talk.with_user("a".into()), answer(""));
        assert_eq!(roles(&talk), [Role::System]);
        talk.keep(talk.with_user("a".into()), answer("b"));
        assert_eq!(roles(&talk), [Role::System, Role::User, Role::Assistant]);
        talk.clear();
        assert_eq!(roles(&talk), [Role::System]);
    }
}
