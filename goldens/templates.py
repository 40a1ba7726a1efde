"""Writes the goldens of crates/text: what transformers and tokenizers do with our test inputs.

    python3 goldens/templates.py templates    # needs transformers 5.23, jinja2 (no torch)
    python3 goldens/templates.py tokenizers   # needs tokenizers 0.22.2, as the crate
The first writes crates/text/tests/goldens/templates.json: every chat template under
crates/text/tests/templates, rendered by transformers' own `render_jinja_template`. The second
trains three small tokenizers and writes the ids that the library gives to a few texts.
Training breaks ties at random, so the vocabularies differ from run to run; the tests do not care.
"""

import datetime
import json
import pathlib
import sys

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors, trainers

ROOT = pathlib.Path(__file__).resolve().parent.parent / "crates" / "text" / "tests"
NOW_UNIX_S = 1_767_312_305  # 2026-01-02 00:05:05
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
# These know only texts: parts are joined by newlines before they see them.
TEXT_ONLY = {
    "chatml",
    "llama3",
    "mistral",
    "qwen3",
    "qwen3_coder",
    "harmony",
    "deepseek",
    "hermes",
    "command_r",
}


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOW_UNIX_S, datetime.timezone.utc)


def weather_tool():
    return {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'Weather of a place — °C or °F, "as measured" <now> & here\'s more',
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "Town, e.g. Zürich 北京"},
                    "unit": {"type": "string", "enum": ["c", "f"], "default": "c"},
                    "days": {
                        "type": "array",
                        "items": {"type": "integer"},
                        "description": "offsets",
                    },
                    "where": {
                        "type": "object",
                        "properties": {
                            "lat": {"type": "number", "minimum": -90.0, "step": 1e-07},
                            "lon": {"type": "number", "maximum": 1e20},
                        },
                        "required": ["lat"],
                    },
                    "note": {"type": ["string", "null"], "nullable": True, "default": None},
                },
                "required": ["place"],
            },
        },
    }


def plain_tool():
    return {
        "type": "function",
        "function": {
            "name": "now",
            "description": "The time",
            "parameters": {"type": "object", "properties": {}},
        },
    }


def call(name, arguments, call_id="abc123XYZ"):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def conversations():
    system = {"role": "system", "content": "Be kind.  "}
    ask = {"role": "user", "content": '  What\'s 1 < 2 & "why"?\tÜber 🦀\n'}
    answer = {"role": "assistant", "content": "\nBecause.\n "}
    nested = {
        "place": 'Zürich "Altstadt"\n',
        "days": [0, 1, -2],
        "where": {"lat": 47.0, "lon": None},
        "deep": {"a": [{"b": True, "c": 1e-07}, []], "e": {}},
    }
    one_call = {"role": "assistant", "content": "", "tool_calls": [call("get_weather", nested)]}
    result = {
        "role": "tool",
        "content": '{"t": 21.5, "sky": "☀"}',
        "tool_call_id": "abc123XYZ",
        "name": "get_weather",
    }
    thought = {
        "role": "assistant",
        "content": "Fine.",
        "reasoning_content": "Let me see.\n\nYes.\n",
    }
    inline = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nInline."}
    two_calls = {
        "role": "assistant",
        "content": "I look.",
        "reasoning_content": "Two calls.",
        "tool_calls": [call("get_weather", {"place": "A"}), call("now", {}, "abc123XYW")],
    }
    return {
        "one_user_turn": {"messages": [ask]},
        "system_and_user": {"messages": [system, ask]},
        "several_turns": {"messages": [system, ask, answer, ask]},
        "ends_with_the_assistant": {"messages": [ask, answer]},
        "empty_text": {"messages": [{"role": "user", "content": ""}]},
        "tools_without_a_call": {"messages": [ask], "tools": [weather_tool(), plain_tool()]},
        "system_and_tools": {"messages": [system, ask], "tools": [weather_tool()]},
        "a_call_and_its_result": {"messages": [ask, one_call, result], "tools": [weather_tool()]},
        "a_call_that_was_answered": {
            "messages": [system, ask, one_call, result, thought, ask],
            "tools": [weather_tool()],
        },
        "two_calls_and_two_results": {
            "messages": [ask, two_calls, result, {**result, "content": "noon", "name": "now"}],
            "tools": [weather_tool(), plain_tool()],
        },
        "thought_then_answer": {"messages": [ask, thought]},
        "thoughts_of_earlier_turns": {"messages": [ask, thought, ask, inline, ask, inline]},
        "roles_do_not_alternate": {"messages": [ask, ask]},
        "a_result_nobody_asked_for": {"messages": [ask, result]},
        "a_late_system_message": {"messages": [ask, answer, system, ask]},
        "developer": {"messages": [{"role": "developer", "content": "Terse."}, ask]},
        "parts": {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "first "},
                        {"type": "text", "text": "second"},
                    ],
                }
            ]
        },
        "documents": {
            "messages": [ask],
            "documents": [
                {"title": "Crabs", "text": "They walk sideways.", "year": 2020, "score": 0.5},
                {"title": "Ünïcode", "text": '"q"'},
            ],
        },
        "shouting_system": {
            "messages": [{"role": "system", "content": "BE LOUD, it's o'clock".upper()}, ask]
        },
    }


VARIANTS = [
    (True, {}),
    (False, {}),
    (True, {"enable_thinking": False}),
    (True, {"enable_thinking": True}),
    (
        True,
        {"reasoning_effort": "high", "model_identity": "You are Ü.", "date_string": "1 Jan 2030"},
    ),
]


def as_template_sees(name, messages):
    out = []
    for message in messages:
        if name in TEXT_ONLY and isinstance(message["content"], list):
            texts = [part["text"] for part in message["content"]]
            message = {**message, "content": "\n".join(texts)}
        out.append(message)
    return out


def render(render_jinja_template, name, source, conversation, add_generation_prompt, kwargs):
    try:
        texts, _ = render_jinja_template(
            conversations=[as_template_sees(name, conversation["messages"])],
            tools=conversation.get("tools"),
            documents=conversation.get("documents"),
            chat_template=source,
            add_generation_prompt=add_generation_prompt,
            **TOKENS,
            **kwargs,
        )
        return {"text": texts[0]}
    except Exception as error:  # noqa: BLE001: whatever the engine throws is an outcome
        if type(error).__name__ == "TemplateError":
            return {"raises": str(error)}
        return {"fails": f"{type(error).__name__}: {error}"}


def write_templates():
    from transformers.utils import chat_template_utils

    chat_template_utils.datetime = FixedClock
    cases = []
    for path in sorted((ROOT / "templates").glob("*.jinja")):
        for name, conversation in conversations().items():
            for add_generation_prompt, kwargs in VARIANTS:
                if kwargs and name not in (
                    "several_turns",
                    "tools_without_a_call",
                    "thought_then_answer",
                ):
                    continue
                outcome = render(
                    chat_template_utils.render_jinja_template,
                    path.stem,
                    path.read_text(),
                    conversation,
                    add_generation_prompt,
                    kwargs,
                )
                cases.append(
                    {
                        "template": path.stem,
                        "conversation": name,
                        "add_generation_prompt": add_generation_prompt,
                        "kwargs": kwargs,
                        **outcome,
                    }
                )
    golden = {
        "now_unix_s": NOW_UNIX_S,
        "tokens": TOKENS,
        "conversations": conversations(),
        "cases": cases,
    }
    text = json.dumps(golden, ensure_ascii=False, indent=0)
    (ROOT / "goldens" / "templates.json").write_text(text + "\n")


CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox runs on and on.",
    "Ein Übergrößenträger läuft über die Straße. Größe, Maße, Süße.",
    'fn main() { println!("hello, {}", name); }  // comment\n\tindent\n',
    "今日はいい天気ですね。明日も晴れるでしょう。 naïve café 🦀🎉",
] * 4
SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]"]
ADDED = ["<think>", "</think>", "<tool_call>"]
TEXTS = [
    "",
    "Hello, fox!",
    " two  spaces ",
    "naïve 🦀🦀 日",
    "a\n\n\tb",
    "<|im_start|>user\nhi<|im_end|>",
    "[INST] x [/INST]<think>y</think>",
    "   ",
    "e\u0301 \u212b",
    "x" * 50,
]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ADDED])
    return tokenizer


def byte_fallback():
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        limit_alphabet=40,
        show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)],
    )
    tokenizer.train_from_iterator(
        (line.replace(" ", "▁ ").replace(" ", "") for line in CORPUS), trainer
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    # The byte tokens are entries of the model, not added tokens.
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=True) for t in ADDED])
    return tokenizer


def metaspace():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=300, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=True) for t in ADDED])
    return tokenizer


def write_tokenizers():
    cases = {}
    for build in (byte_level, byte_fallback, metaspace):
        name, tokenizer = build.__name__, build()
        (ROOT / "goldens" / f"{name}.json").write_text(tokenizer.to_str() + "\n")
        cases[name] = [
            {
                "text": text,
                "ids": (ids := tokenizer.encode(text).ids),
                "plain_ids": tokenizer.encode(text, add_special_tokens=False).ids,
                "decoded": tokenizer.decode(ids),
                "decoded_all": tokenizer.decode(ids, skip_special_tokens=False),
            }
            for text in TEXTS
        ]
    text = json.dumps(cases, ensure_ascii=False, indent=0)
    (ROOT / "goldens" / "tokenizers.json").write_text(text + "\n")


if __name__ == "__main__":
    (ROOT / "goldens").mkdir(exist_ok=True)
    {"templates": write_templates, "tokenizers": write_tokenizers}[sys.argv[1]]()
