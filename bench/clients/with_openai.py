"""OpenAI's own client, which holds all that comes against its types."""

import json

import openai

from server import (
    ADDRESS, CITY, CITY_QUESTION, KEY, MODEL, NUMBER, QUESTION, REPORT, WEATHER, WORD, fails)

CLIENT = openai.OpenAI(base_url=f"{ADDRESS}/v1", api_key=KEY, max_retries=0,
                       _strict_response_validation=True)
MESSAGES = [{"role": "user", "content": QUESTION}]
TOOL = {"type": "function", "function": WEATHER}


def ask(messages, **fields):
    fields = {"temperature": 0, "max_tokens": 48, **fields}
    return CLIENT.chat.completions.create(model=MODEL, messages=messages, **fields)


def chat(**fields):
    return ask(MESSAGES, **fields)


def check_models():
    assert MODEL in [model.id for model in CLIENT.models.list()]
    assert CLIENT.models.retrieve(MODEL).id == MODEL


def check_chat():
    answer = chat()
    assert WORD in answer.choices[0].message.content, answer
    assert answer.choices[0].finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def check_stream():
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == chat().choices[0].message.content
    assert chunks[-1].usage.completion_tokens > 0


def check_cached_tokens():
    first, second = chat(), chat()
    assert second.usage.prompt_tokens_details.cached_tokens > 0
    assert first.choices[0].message.content == second.choices[0].message.content


def check_stop():
    choice = chat(stop=[WORD]).choices[0]
    assert WORD not in choice.message.content and choice.finish_reason == "stop"


def check_seed():
    def draw():
        return chat(temperature=1.2, seed=7).choices[0].message.content
    assert draw() == draw()


def check_several_answers():
    choices = chat(n=2, temperature=1, seed=1).choices
    assert [choice.index for choice in choices] == [0, 1]


def check_logprobs():
    choice = chat(logprobs=True, top_logprobs=3).choices[0]
    content = choice.logprobs.content
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in content)
    said = b"".join(bytes(token.bytes) for token in content)
    assert said.decode() == choice.message.content, choice
    assert all(top.bytes is not None for token in content for top in token.top_logprobs)


def check_logprobs_of_parts_of_characters():
    crab = "\N{CRAB}"
    answer = CLIENT.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, logprobs=True,
        extra_body={"structured_outputs": {"choice": [crab]}}).choices[0]
    parts = [bytes(token.bytes) for token in answer.logprobs.content]
    assert len(parts) > 1 and b"".join(parts) == crab.encode(), answer
    assert answer.logprobs.content[0].token == "\N{REPLACEMENT CHARACTER}", answer


def check_tools():
    messages = [{"role": "user", "content": CITY_QUESTION}]
    choice = ask(messages, tools=[TOOL], tool_choice="auto").choices[0]
    assert choice.finish_reason == "tool_calls", choice
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == (
        WEATHER["name"], {"city": CITY})
    result = {"role": "tool", "tool_call_id": call.id, "content": json.dumps(REPORT)}
    text = ask([*messages, choice.message, result], tools=[TOOL]).choices[0].message.content
    assert REPORT["condition"] in text and str(REPORT["temperature"]) in text, text


def check_tools_in_a_stream():
    fields = {"model": MODEL, "temperature": 0, "tools": [TOOL],
              "messages": [{"role": "user", "content": CITY_QUESTION}]}
    with CLIENT.chat.completions.stream(**fields) as stream:
        message = stream.get_final_completion().choices[0].message
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": CITY}


OTHER = {**WEATHER, "name": "look_outside"}


def check_allowed_tools():
    tools = [TOOL, {"type": "function", "function": OTHER}]

    def called(mode, name, question=CITY_QUESTION):
        allowed = [{"type": "function", "function": {"name": name}}]
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": allowed}}
        message = ask([{"role": "user", "content": question}], tools=tools, max_tokens=200,
                      tool_choice=choice, parallel_tool_calls=False).choices[0].message
        return message.tool_calls[0].function.name if message.tool_calls else message.content
    for name in (WEATHER["name"], OTHER["name"]):
        assert called("required", name) == name
    assert called("auto", WEATHER["name"]) == WEATHER["name"]
    assert called("auto", OTHER["name"]) != WEATHER["name"]
    assert WORD in called("auto", OTHER["name"], QUESTION)
    unknown = fails(openai.BadRequestError, lambda: called("auto", "nobody"))
    assert unknown.body["param"] == "tool_choice.allowed_tools.tools[0].function.name", unknown.body


FLAT_TOOL = {"type": "function", **TOOL["function"], "strict": False}


def respond(**fields):
    fields = {"input": QUESTION, "temperature": 0, "max_output_tokens": 24, **fields}
    return CLIENT.responses.create(model=MODEL, **fields)


def check_responses():
    response = respond(instructions="Be brief.", metadata={"a": "b"})
    assert WORD in response.output_text, response
    assert response.status in ("completed", "incomplete") and response.metadata == {"a": "b"}
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.input_tokens_details.cached_tokens < usage.input_tokens
    assert usage.output_tokens_details.reasoning_tokens <= usage.output_tokens


def check_responses_stream():
    events = list(respond(stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == events[-1].response.output_text == respond().output_text
    with CLIENT.responses.stream(model=MODEL, input=QUESTION, max_output_tokens=8) as stream:
        kinds = {event.type for event in stream}
    assert {"response.output_text.delta", "response.output_text.done"} <= kinds, kinds


def check_responses_tools():
    fields = {"tools": [FLAT_TOOL], "max_output_tokens": 200}
    first = respond(input=CITY_QUESTION, **fields)
    call = first.output[-1]
    assert (call.type, call.name) == ("function_call", WEATHER["name"]), first
    assert json.loads(call.arguments) == {"city": CITY}, call
    result = {"type": "function_call_output", "call_id": call.call_id,
              "output": json.dumps(REPORT)}
    after = respond(input=[result], previous_response_id=first.id, **fields)
    text = after.output_text
    assert REPORT["condition"] in text and str(REPORT["temperature"]) in text, text
    assert after.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens, after
    kinds = [event.type for event in respond(input=CITY_QUESTION, stream=True, **fields)]
    assert "response.function_call_arguments.done" in kinds, kinds


def check_responses_allowed_tools():
    other = {"type": "function", **OTHER, "strict": False}
    choice = {"type": "allowed_tools", "mode": "required",
              "tools": [{"type": "function", "name": other["name"]}]}
    response = respond(input=CITY_QUESTION, tools=[FLAT_TOOL, other], tool_choice=choice,
                       max_output_tokens=200)
    assert {item.name for item in response.output} == {other["name"]}, response
    assert response.tool_choice.mode == "required" and len(response.tools) == 2, response


def check_responses_logprobs():
    response = respond(include=["message.output_text.logprobs"], top_logprobs=2)
    tokens = response.output[-1].content[0].logprobs
    assert all(len(token.top_logprobs) == 2 for token in tokens), response
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == response.output_text


def check_responses_form():
    form = {"type": "json_schema", "name": "answer", "schema": NUMBER, "strict": True}
    response = respond(text={"format": form}, max_output_tokens=200)
    assert 1 <= json.loads(response.output_text)["n"] <= 9, response
    assert response.text.format.name == "answer"
    call = respond(tools=[{**FLAT_TOOL, "strict": True}], tool_choice="required",
                   max_output_tokens=200).output[-1]
    assert (call.type, call.name) == ("function_call", WEATHER["name"]), call
    assert set(json.loads(call.arguments)) == {"city"}, call


def check_responses_chain():
    first = respond()
    assert CLIENT.responses.retrieve(first.id).output_text == first.output_text
    after = respond(previous_response_id=first.id)
    assert after.previous_response_id == first.id
    # The second prompt begins with the first, which is not computed again.
    assert after.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens, after
    by_hand = respond(store=False, input=[{"role": "user", "content": QUESTION}, *first.output,
                                          {"role": "user", "content": QUESTION}])
    assert by_hand.usage.input_tokens == after.usage.input_tokens
    assert by_hand.output_text == after.output_text
    CLIENT.responses.delete(first.id)
    fails(openai.NotFoundError, lambda: CLIENT.responses.retrieve(first.id))
    gone = fails(openai.NotFoundError, lambda: respond(previous_response_id=first.id))
    assert gone.code == "previous_response_not_found", gone.body
    fails(openai.NotFoundError, lambda: CLIENT.responses.retrieve(by_hand.id))


def check_responses_input_items():
    first = respond()
    after = respond(previous_response_id=first.id)
    items = list(CLIENT.responses.input_items.list(after.id, limit=1, order="asc"))
    assert [item.id for item in items[1:-1]] == [item.id for item in first.output], items
    assert items[0].content[0].text == items[-1].content[0].text == QUESTION, items
    newest = CLIENT.responses.input_items.list(after.id).data
    assert [item.id for item in newest] == [item.id for item in reversed(items)]
    error = fails(openai.BadRequestError, lambda: CLIENT.responses.cancel(after.id))
    assert "background" in error.message, error.body
    fails(openai.NotFoundError, lambda: CLIENT.responses.input_items.list("resp_0"))


def check_responses_input_tokens():
    fields = {"model": MODEL, "input": QUESTION, "instructions": "Be brief.", "tools": [FLAT_TOOL]}
    counted = CLIENT.responses.input_tokens.count(**fields)
    made = CLIENT.responses.create(**fields, max_output_tokens=1)
    assert counted.input_tokens == made.usage.input_tokens > 0, counted


def check_completions():
    answer = CLIENT.completions.create(model=MODEL, prompt="Offshoot is", max_tokens=8)
    assert answer.choices[0].text


def check_forced_calls_and_forms():
    form = {"type": "json_schema", "json_schema": {"name": "number", "schema": NUMBER}}
    base = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]}
    answer = CLIENT.chat.completions.create(**base, response_format=form)
    assert json.loads(answer.choices[0].message.content)["n"] in range(1, 10), answer
    tools = [{"type": "function", "function": WEATHER}]
    answer = CLIENT.chat.completions.create(**base, tools=tools, tool_choice="required")
    (call, *_) = answer.choices[0].message.tool_calls
    assert call.function.name == WEATHER["name"], answer


def check_errors():
    missing = fails(openai.NotFoundError,
                    lambda: CLIENT.chat.completions.create(model="nope", messages=MESSAGES))
    assert missing.body["param"] == "model", missing.body
    bad = fails(openai.BadRequestError, lambda: chat(temperature=-1))
    assert bad.body["param"] == "temperature", bad.body
    fails(openai.BadRequestError, lambda: CLIENT.embeddings.create(model=MODEL, input="x"))
    stranger = openai.OpenAI(base_url=f"{ADDRESS}/v1", api_key="nobody", max_retries=0)
    fails(openai.AuthenticationError, stranger.models.list)
