"""LiteLLM, which puts one call before many APIs: here those of OpenAI and of Anthropic. (That of
Ollama it calls without saying that its body is JSON, which the server refuses: see Guards in
docs/server.md.)"""

import asyncio
import json
import os

# Else it asks the network for a list of prices when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm  # noqa: E402

from server import ADDRESS, CITY, CITY_QUESTION, KEY, MODEL, QUESTION, WEATHER, WORD, fails

litellm.suppress_debug_info = True
TOOL = {"type": "function", "function": WEATHER}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


def fields_of(question=QUESTION, **fields):
    base = {"model": f"openai/{MODEL}", "api_base": f"{ADDRESS}/v1", "api_key": KEY,
            "messages": [{"role": "user", "content": question}], "temperature": 0,
            "max_tokens": 48, "num_retries": 0}
    return {**base, **fields}


def ask(question=QUESTION, **fields):
    return litellm.completion(**fields_of(question, **fields))


def text_of(answer):
    return answer.choices[0].message.content


def joined_text(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def check_chat():
    answer = ask()
    assert WORD in text_of(answer), answer
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == (answer.usage.prompt_tokens
                                         + answer.usage.completion_tokens)


def check_stream():
    assert joined_text(ask(**USAGE)) == text_of(ask())


def check_async_stream():
    async def collect():
        stream = await litellm.acompletion(**fields_of(**USAGE))
        return joined_text([chunk async for chunk in stream])
    assert asyncio.run(collect()) == text_of(ask())


def check_strict_chunks():
    for fields in ({}, {"question": CITY_QUESTION, "tools": [TOOL]}):
        whole, chunks = ask(**fields), list(ask(**fields, **USAGE))
        joined = litellm.stream_chunk_builder(chunks)
        assert {chunk.id for chunk in chunks} == {joined.id}
        assert (text_of(joined) or None) == text_of(whole)
        calls = [[call.function for call in answer.choices[0].message.tool_calls or []]
                 for answer in (joined, whole)]
        assert calls[0] == calls[1]
        assert joined.choices[0].finish_reason == whole.choices[0].finish_reason
        assert joined.usage.completion_tokens == whole.usage.completion_tokens


def check_cached_tokens():
    ask()
    assert ask().usage.prompt_tokens_details.cached_tokens > 0


def check_tools():
    choice = ask(CITY_QUESTION, tools=[TOOL], tool_choice="auto").choices[0]
    assert choice.finish_reason == "tool_calls", choice
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == (
        WEATHER["name"], {"city": CITY})


def check_as_anthropic():
    fields = {"model": f"anthropic/{MODEL}", "api_base": ADDRESS}
    assert text_of(ask(**fields)) == text_of(ask())
    assert joined_text(ask(**fields, stream=True)) == text_of(ask())
    (call,) = ask(CITY_QUESTION, tools=[TOOL], **fields).choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": CITY}
    assert ask(**fields).usage.cache_read_input_tokens > 0


def check_errors():
    missing = fails(litellm.NotFoundError, lambda: ask(model="openai/nope"))
    assert missing.status_code == 404
    bad = fails(litellm.BadRequestError, lambda: ask(temperature=-1))
    assert "temperature" in bad.message
    fails(litellm.AuthenticationError, lambda: ask(api_key="nobody"))
    fields = {"model": f"anthropic/{MODEL}", "api_base": ADDRESS, "api_key": "nobody"}
    fails(litellm.AuthenticationError, lambda: ask(**fields))
