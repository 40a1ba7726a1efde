//! How calls of tools are written: one table, for parsers, for grammars and for tests.

use crate::{Json, JsonMap};

/// The syntax of a model's calls. A list of them reads
/// `before_all (before_name NAME after_name ARGUMENTS after_arguments) … after_all`, with
/// `between` between two calls. Parsers accept more than this; it is what a model was trained to
/// write, and what a grammar should make it write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallSyntax {
    /// Before the first call.
    pub before_all: &'static str,
    /// Before the name.
    pub before_name: &'static str,
    /// Between the name and the arguments.
    pub after_name: &'static str,
    /// How arguments are written.
    pub arguments: ArgumentSyntax,
    /// After the arguments.
    pub after_arguments: &'static str,
    /// Between two calls; `None` where an answer has one call at most.
    pub between: Option<&'static str>,
    /// After the last call; what follows is the end of the answer.
    pub after_all: &'static str,
}

/// How the arguments of a call are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArgumentSyntax {
    /// One JSON object.
    Json,
    /// For each argument `before_key KEY after_key VALUE after_value`. A string stands as it is
    /// and must not contain `after_value`; everything else is JSON.
    Tagged {
        /// Before the key.
        before_key: &'static str,
        /// Between key and value.
        after_key: &'static str,
        /// After the value.
        after_value: &'static str,
    },
    /// `{key:value,…}`: bare keys, strings between two `quote`s, numbers and the like as in JSON.
    Gemma {
        /// On either side of a string.
        quote: &'static str,
    },
}

/// What a parser needs to know of a syntax.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// JSON objects between `<tool_call>` and `</tool_call>`.
    Hermes,
    Qwen,
    Glm,
    Llama,
    Mistral,
    Gemma,
    DeepSeek,
    Harmony,
}

pub(super) const HERMES: CallSyntax = CallSyntax {
    before_all: "",
    before_name: "<tool_call>\n{\"name\": \"",
    after_name: "\", \"arguments\": ",
    arguments: ArgumentSyntax::Json,
    after_arguments: "}\n</tool_call>",
    between: Some("\n"),
    after_all: "",
};

pub(super) const QWEN: CallSyntax = CallSyntax {
    before_name: "<tool_call>\n<function=",
    after_name: ">\n",
    arguments: ArgumentSyntax::Tagged {
        before_key: "<parameter=",
        after_key: ">\n",
        after_value: "\n</parameter>\n",
    },
    after_arguments: "</function>\n</tool_call>",
    ..HERMES
};

pub(super) const GLM: CallSyntax = CallSyntax {
    before_name: "<tool_call>",
    after_name: "\n",
    arguments: ArgumentSyntax::Tagged {
        before_key: "<arg_key>",
        after_key: "</arg_key>\n<arg_value>",
        after_value: "</arg_value>\n",
    },
    after_arguments: "</tool_call>",
    ..HERMES
};

/// GLM since 4.7 leaves the line breaks out.
pub(super) const GLM_COMPACT: CallSyntax = CallSyntax {
    after_name: "",
    arguments: ArgumentSyntax::Tagged {
        before_key: "<arg_key>",
        after_key: "</arg_key><arg_value>",
        after_value: "</arg_value>",
    },
    between: Some(""),
    ..GLM
};

pub(super) const LLAMA: CallSyntax = CallSyntax {
    before_name: "{\"name\": \"",
    after_name: "\", \"parameters\": ",
    after_arguments: "}",
    between: None,
    ..HERMES
};

/// Mistral before 2025.
pub(super) const MISTRAL_LIST: CallSyntax = CallSyntax {
    before_all: "[TOOL_CALLS][",
    before_name: "{\"name\": \"",
    after_arguments: "}",
    between: Some(", "),
    after_all: "]",
    ..HERMES
};

pub(super) const MISTRAL: CallSyntax = CallSyntax {
    before_name: "[TOOL_CALLS]",
    after_name: "[ARGS]",
    after_arguments: "",
    between: Some(""),
    ..HERMES
};

pub(super) const GEMMA: CallSyntax = CallSyntax {
    before_name: "<|tool_call>call:",
    after_name: "",
    arguments: ArgumentSyntax::Gemma { quote: "<|\"|>" },
    after_arguments: "<tool_call|>",
    between: Some(""),
    ..HERMES
};

pub(super) const FUNCTION_GEMMA: CallSyntax = CallSyntax {
    before_name: "<start_function_call>call:",
    arguments: ArgumentSyntax::Gemma { quote: "<escape>" },
    after_arguments: "<end_function_call>",
    ..GEMMA
};

/// DeepSeek V3 and R1.
pub(super) const DEEPSEEK_FENCED: CallSyntax = CallSyntax {
    before_all: "<｜tool▁calls▁begin｜>",
    before_name: "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    after_name: "\n```json\n",
    after_arguments: "\n```<｜tool▁call▁end｜>",
    after_all: "<｜tool▁calls▁end｜>",
    ..HERMES
};

/// DeepSeek V3.1.
pub(super) const DEEPSEEK: CallSyntax = CallSyntax {
    before_name: "<｜tool▁call▁begin｜>",
    after_name: "<｜tool▁sep｜>",
    after_arguments: "<｜tool▁call▁end｜>",
    between: Some(""),
    ..DEEPSEEK_FENCED
};

pub(super) const HARMONY: CallSyntax = CallSyntax {
    before_name: "<|channel|>commentary to=functions.",
    after_name: " <|constrain|>json<|message|>",
    after_arguments: "<|call|>",
    between: None,
    ..HERMES
};

impl CallSyntax {
    /// The literal that begins a call of this function as the first one: what an answer that is
    /// to be a call starts with, once its reasoning is over.
    pub fn prefix(&self, name: &str) -> String {
        [self.before_all, self.before_name, name, self.after_name].concat()
    }

    /// Whether nothing but its content tells a call from other JSON.
    pub(super) fn is_json(&self) -> bool {
        self.before_all.is_empty() && self.before_name.starts_with('{')
    }

    pub(super) fn contains(&self, literal: &str) -> bool {
        let in_arguments = match self.arguments {
            ArgumentSyntax::Json => ["", "", ""],
            ArgumentSyntax::Tagged { before_key, after_key, after_value } => {
                [before_key, after_key, after_value]
            }
            ArgumentSyntax::Gemma { quote } => [quote, "", ""],
        };
        let around = [self.before_all, self.before_name, self.after_name];
        let behind = [self.after_arguments, self.between.unwrap_or_default(), self.after_all];
        [in_arguments, around, behind].iter().flatten().any(|text| text.contains(literal))
    }

    /// Calls as a model would write them.
    pub fn render(&self, calls: &[(&str, &JsonMap)]) -> String {
        let call = |(name, arguments): &(&str, &JsonMap)| {
            let arguments = self.arguments.render(arguments);
            [self.before_name, name, self.after_name, &arguments, self.after_arguments].concat()
        };
        let calls: Vec<_> = calls.iter().map(call).collect();
        [self.before_all, &calls.join(self.between.unwrap_or_default()), self.after_all].concat()
    }
}

impl ArgumentSyntax {
    fn render(&self, arguments: &JsonMap) -> String {
        match *self {
            ArgumentSyntax::Json => Json::Object(arguments.clone()).to_string(),
            ArgumentSyntax::Tagged { before_key, after_key, after_value } => {
                let argument = |(key, value): (&String, &Json)| {
                    let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    [before_key, key, after_key, &value, after_value].concat()
                };
                arguments.iter().map(argument).collect()
            }
            ArgumentSyntax::Gemma { quote } => gemma(&Json::Object(arguments.clone()), quote),
        }
    }
}

fn gemma(value: &Json, quote: &str) -> String {
    match value {
        Json::String(text) => [quote, text, quote].concat(),
        Json::Array(items) => {
            let items: Vec<_> = items.iter().map(|item| gemma(item, quote)).collect();
            format!("[{}]", items.join(","))
        }
        Json::Object(members) => {
            let member = |(key, value)| format!("{key}:{}", gemma(value, quote));
            let members: Vec<_> = members.iter().map(member).collect();
            format!("{{{}}}", members.join(","))
        }
        other => other.to_string(),
    }
}
