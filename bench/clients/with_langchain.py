"""LangChain's client of OpenAI's API."""

import asyncio
import functools
import json
import operator

import openai
from langchain_core.exceptions import ModelNotFoundError
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI

from server import ADDRESS, CITY, CITY_QUESTION, KEY, MODEL, QUESTION, REPORT, WORD, fails


def get_weather(city: str) -> str:
    """Get the weather in a city.

    Args:
        city: The city
    """
    return json.dumps(REPORT)


def connect(**fields):
    base = {"base_url": f"{ADDRESS}/v1", "api_key": KEY, "model": MODEL, "temperature": 0,
            "max_tokens": 48, "max_retries": 0, "stream_usage": True}
    return ChatOpenAI(**{**base, **fields})


CLIENT = connect()
WITH_TOOL = CLIENT.bind_tools([get_weather], tool_choice="auto")


def joined(chunks):
    return functools.reduce(operator.add, chunks)


def check_chat():
    answer = CLIENT.invoke(QUESTION)
    assert WORD in answer.content, answer
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    usage = answer.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def check_stream():
    chunks = list(CLIENT.stream(QUESTION))
    assert len([chunk for chunk in chunks if chunk.content]) > 1, "it did not stream"
    assert joined(chunks).content == CLIENT.invoke(QUESTION).content


def check_strict_chunks():
    for model, question in ((CLIENT, QUESTION), (WITH_TOOL, CITY_QUESTION)):
        whole, streamed = model.invoke(question), joined(model.stream(question))
        assert streamed.content == whole.content
        assert not streamed.invalid_tool_calls and not whole.invalid_tool_calls
        calls = [[(call["name"], call["args"]) for call in answer.tool_calls]
                 for answer in (streamed, whole)]
        assert calls[0] == calls[1]
        tokens = [answer.usage_metadata["output_tokens"] for answer in (streamed, whole)]
        assert tokens[0] == tokens[1]
        reasons = [answer.response_metadata["finish_reason"] for answer in (streamed, whole)]
        assert reasons[0] == reasons[1]


def check_many_at_once():
    async def ask():
        return await CLIENT.abatch([QUESTION] * 4)
    answers = asyncio.run(ask()) + CLIENT.batch([QUESTION] * 4)
    assert {answer.content for answer in answers} == {CLIENT.invoke(QUESTION).content}


def check_cached_tokens():
    CLIENT.invoke(QUESTION)
    assert CLIENT.invoke(QUESTION).usage_metadata["input_token_details"]["cache_read"] > 0


def check_tool_loop():
    asked = HumanMessage(CITY_QUESTION)
    called = WITH_TOOL.invoke([asked])
    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": CITY})
    result = ToolMessage(get_weather(**call["args"]), tool_call_id=call["id"])
    answer = WITH_TOOL.invoke([asked, called, result]).content
    assert REPORT["condition"] in answer and str(REPORT["temperature"]) in answer, answer


def check_errors():
    missing = fails(openai.NotFoundError, lambda: connect(model="nope").invoke(QUESTION))
    assert isinstance(missing, ModelNotFoundError)
    bad = fails(openai.BadRequestError, lambda: connect(temperature=-1).invoke(QUESTION))
    assert bad.body["param"] == "temperature"
    stranger = connect(api_key="nobody")
    fails(openai.AuthenticationError, lambda: stranger.invoke(QUESTION))
    fails(openai.AuthenticationError, lambda: list(stranger.stream(QUESTION)))
