"""Ollama's own client."""

import json

import ollama

from server import ADDRESS, CITY, CITY_QUESTION, KEY, MODEL, NUMBER, QUESTION, WEATHER, WORD, fails

CLIENT = ollama.Client(host=ADDRESS, headers={"Authorization": f"Bearer {KEY}"})
MESSAGES = [{"role": "user", "content": QUESTION}]
OPTIONS = {"temperature": 0, "num_predict": 24}


def look_up(word: str) -> str:
    """Looks a word up.

    Args:
        word: The word.
    """
    return word


def chat(**fields):
    return CLIENT.chat(**{"model": MODEL, "messages": MESSAGES, "options": OPTIONS, **fields})


def check_list():
    model = next(model for model in CLIENT.list().models if model.model == MODEL)
    assert model.size > 1_000_000 and len(model.digest) == 64 and model.modified_at.year > 2000
    assert model.details.format == "safetensors"


def check_show():
    shown = CLIENT.show(MODEL)
    family = shown.modelinfo["general.architecture"]
    assert shown.modelinfo[f"{family}.context_length"] > 0
    assert "completion" in shown.capabilities and shown.template


def check_chat():
    answer = chat()
    assert WORD in answer.message.content, answer
    assert answer.done and answer.done_reason in ("stop", "length")
    assert answer.prompt_eval_count > 0 and answer.eval_count > 0
    assert answer.total_duration >= answer.eval_duration > 0


def check_stream():
    parts = list(chat(stream=True))
    text = "".join(part.message.content for part in parts)
    assert text == chat().message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def check_generate():
    answer = CLIENT.generate(model=MODEL, prompt=QUESTION, options=OPTIONS)
    assert WORD in answer.response, answer
    streamed = CLIENT.generate(model=MODEL, prompt=QUESTION, options=OPTIONS, stream=True)
    assert "".join(part.response for part in streamed) == answer.response


def check_raw_and_system():
    raw = CLIENT.generate(model=MODEL, prompt=QUESTION, raw=True, options=OPTIONS)
    plain = CLIENT.generate(model=MODEL, prompt=QUESTION, options=OPTIONS)
    system = CLIENT.generate(model=MODEL, prompt=QUESTION, system="Be brief.", options=OPTIONS)
    assert raw.prompt_eval_count < plain.prompt_eval_count < system.prompt_eval_count


def check_options():
    assert chat(options={**OPTIONS, "num_predict": 2}).done_reason == "length"
    assert WORD not in chat(options={**OPTIONS, "stop": [WORD]}).message.content
    drawn = {"temperature": 1.2, "seed": 7, "num_predict": 16, "repeat_penalty": 1.1,
             "repeat_last_n": 32, "num_ctx": 512}
    assert chat(options=drawn).message.content == chat(options=drawn).message.content


def check_logprobs():
    logprobs = chat(logprobs=True, top_logprobs=2).logprobs
    assert logprobs and all(len(token.top_logprobs) == 2 for token in logprobs)


def check_think():
    answer = chat(think=True, options={"temperature": 0, "num_predict": 64})
    assert answer.message.content or answer.message.thinking
    assert not chat(think=False).message.thinking


def check_tools():
    call = {"function": {"name": "look_up", "arguments": {"word": "twig"}}}
    messages = MESSAGES + [{"role": "assistant", "content": "", "tool_calls": [call]},
                           {"role": "tool", "content": "a small branch", "tool_name": "look_up"}]
    answer = chat(messages=messages, tools=[look_up])
    assert answer.prompt_eval_count > chat().prompt_eval_count


def check_calls():
    fields = {"messages": [{"role": "user", "content": CITY_QUESTION}],
              "tools": [{"type": "function", "function": WEATHER}],
              "options": {"temperature": 0, "num_predict": 48}}
    streamed = [call for part in chat(**fields, stream=True)
                for call in part.message.tool_calls or []]
    for calls in (chat(**fields).message.tool_calls, streamed):
        assert [(call.function.name, call.function.arguments) for call in calls] == [
            (WEATHER["name"], {"city": CITY})]


def check_loading():
    assert CLIENT.generate(model=MODEL, keep_alive="10m").done_reason == "load"
    loaded = next(model for model in CLIENT.ps().models if model.model == MODEL)
    assert loaded.expires_at and loaded.context_length > 0
    CLIENT.generate(model=MODEL, keep_alive=-1)
    assert next(model for model in CLIENT.ps().models).expires_at is None
    assert CLIENT.generate(model=MODEL, keep_alive=0).done_reason == "unload"
    assert chat().load_duration > 0, "it had to be loaded again"


def check_forms():
    options = {"temperature": 0, "num_predict": 100}
    answer = chat(format=NUMBER, options=options)
    assert json.loads(answer.message.content)["n"] in range(1, 10), answer
    assert chat(format="json").message.content.startswith("{")


def check_errors():
    missing = fails(ollama.ResponseError, lambda: CLIENT.chat(model="nope", messages=MESSAGES))
    assert missing.status_code == 404, missing
    form = fails(ollama.ResponseError, lambda: chat(format={"type": "objekt"}))
    assert form.status_code == 400 and "format" in form.error
    pull = fails(ollama.ResponseError, lambda: CLIENT.pull("org/name"))
    assert pull.status_code == 403 and "offshoot pull" in pull.error
    embed = fails(ollama.ResponseError, lambda: CLIENT.embed(model=MODEL, input="x"))
    assert embed.status_code == 400
