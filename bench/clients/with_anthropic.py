"""Anthropic's own client."""

import asyncio
import json

import anthropic

from server import ADDRESS, CITY, CITY_QUESTION, KEY, MODEL, NUMBER, QUESTION, WEATHER, WORD, fails

CLIENT = anthropic.Anthropic(base_url=ADDRESS, api_key=KEY, max_retries=0)
MESSAGES = [{"role": "user", "content": QUESTION}]
TOOL = {"name": "look_up", "description": "Looks a word up",
        "input_schema": {"type": "object", "properties": {"word": {"type": "string"}}}}
CITY_TOOL = {"name": WEATHER["name"], "description": WEATHER["description"],
             "input_schema": WEATHER["parameters"]}
LONG = "You answer in short sentences. " * 8


def fields_of(cache_salt=None, **fields):
    # The client has no arguments for these two.
    extra = {"temperature": 0, "cache_salt": cache_salt}
    base = {"model": MODEL, "max_tokens": 24, "messages": MESSAGES, "extra_body": extra}
    return {**base, **fields}


def ask(**fields):
    return CLIENT.messages.create(**fields_of(**fields))


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


def prompt_tokens(usage):
    return (usage.input_tokens + usage.cache_read_input_tokens
            + usage.cache_creation_input_tokens)


def check_message():
    message = ask()
    assert WORD in text_of(message), message
    assert (message.role, message.model) == ("assistant", MODEL)
    assert message.stop_reason in ("end_turn", "max_tokens")
    assert message.usage.output_tokens > 0


def check_stream():
    with CLIENT.messages.stream(**fields_of()) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == text_of(final) == text_of(ask())
    assert final.stop_reason and final.usage.output_tokens > 0


def check_raw_events():
    events = list(CLIENT.messages.create(**fields_of(stream=True)))
    kinds = [event.type for event in events]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"], kinds
    start, end = events[0].message.usage, events[-2].usage
    assert prompt_tokens(start) == prompt_tokens(end)


def check_async_stream():
    async def collect():
        client = anthropic.AsyncAnthropic(base_url=ADDRESS, api_key=KEY, max_retries=0)
        async with client.messages.stream(**fields_of()) as stream:
            return "".join([text async for text in stream.text_stream])
    assert asyncio.run(collect()) == text_of(ask())


def check_count_tokens():
    fields = {"system": LONG, "messages": MESSAGES, "tools": [TOOL]}
    counted = CLIENT.messages.count_tokens(model=MODEL, **fields).input_tokens
    assert counted == prompt_tokens(ask(**fields).usage)


def check_cache_control():
    mark = {"type": "ephemeral"}
    system = [{"type": "text", "text": LONG, "cache_control": mark}]
    first = ask(system=system, cache_salt="cache control").usage
    other = [{"role": "user", "content": "Hello."}]
    second = ask(system=system, messages=other, cache_salt="cache control").usage
    assert first.cache_read_input_tokens == 0 < first.cache_creation_input_tokens, first
    assert second.cache_read_input_tokens >= first.cache_creation_input_tokens, (first, second)
    assert second.cache_creation_input_tokens == 0, second


def check_billing_line():
    def system(n):
        line = f"x-anthropic-billing-header: cc_version=2.1.{n}; cch={n:05x};"
        return [{"type": "text", "text": line}, {"type": "text", "text": LONG}]
    ask(system=system(1), cache_salt="billing line")
    usage = ask(system=system(2), cache_salt="billing line").usage
    assert usage.cache_read_input_tokens > 0, usage


def check_stop_sequence():
    message = ask(stop_sequences=["never", WORD])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", WORD)
    assert WORD not in text_of(message)


def check_max_tokens():
    message = ask(max_tokens=2)
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 2)


def check_thinking():
    message = ask(max_tokens=1100, thinking={"type": "enabled", "budget_tokens": 1024})
    kinds = [block.type for block in message.content]
    assert set(kinds) <= {"thinking", "text", "tool_use"} and kinds, message
    # What was thought can be sent back.
    again = MESSAGES + [{"role": "assistant", "content": message.content},
                        {"role": "user", "content": "Go on."}]
    assert ask(messages=again).usage.output_tokens > 0


def check_tools():
    call = {"type": "tool_use", "id": "c1", "name": "look_up", "input": {"word": "twig"}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": "a small branch"}
    messages = MESSAGES + [{"role": "assistant", "content": [call]},
                           {"role": "user", "content": [result]}]
    message = ask(messages=messages, tools=[TOOL], tool_choice={"type": "auto"})
    assert prompt_tokens(message.usage) > prompt_tokens(ask().usage)


def check_calls():
    fields = {"messages": [{"role": "user", "content": CITY_QUESTION}], "tools": [CITY_TOOL],
              "max_tokens": 48}
    with CLIENT.messages.stream(**fields_of(**fields)) as stream:
        streamed = stream.get_final_message()
    for message in (ask(**fields), streamed):
        assert message.stop_reason == "tool_use", message
        (call,) = [block for block in message.content if block.type == "tool_use"]
        assert (call.name, call.input) == (WEATHER["name"], {"city": CITY})


def check_forced_calls_and_forms():
    message = ask(tools=[TOOL], tool_choice={"type": "tool", "name": TOOL["name"]}, max_tokens=200)
    (call,) = [block for block in message.content if block.type == "tool_use"]
    assert (message.stop_reason, call.name) == ("tool_use", TOOL["name"]), message
    form = {"format": {"type": "json_schema", "schema": NUMBER}}
    assert json.loads(text_of(ask(output_config=form, max_tokens=100)))["n"] in range(1, 10)


def check_errors():
    missing = fails(anthropic.NotFoundError, lambda: ask(model="nope"))
    assert missing.body["error"]["type"] == "not_found_error", missing.body
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
    messages = [{"role": "user", "content": [image]}]
    bad = fails(anthropic.BadRequestError, lambda: ask(messages=messages))
    assert "messages[0].content[0].type" in bad.body["error"]["message"], bad.body
    other = {"type": "tool", "name": "other"}
    fails(anthropic.BadRequestError, lambda: ask(tools=[TOOL], tool_choice=other))
    stranger = anthropic.Anthropic(base_url=ADDRESS, api_key="nobody", max_retries=0)
    fails(anthropic.AuthenticationError, lambda: stranger.messages.create(**fields_of()))
