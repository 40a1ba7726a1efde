"""Where the server is, and what all clients ask it."""

import os

ADDRESS = os.environ["CLIENTS_ADDRESS"]
KEY = os.environ["CLIENTS_KEY"]
MODEL = "demo"
# The bundled model has an answer to this, and calls a tool for that.
QUESTION = "What is Offshoot?"
WORD = "Offshoot"
CITY = "Paris"
CITY_QUESTION = f"What is the weather in {CITY}?"
WEATHER = {
    "name": "get_weather", "description": "Get the weather in a city",
    "parameters": {"type": "object", "required": ["city"],
                   "properties": {"city": {"type": "string", "description": "The city"}}}}
# A form that answers can be held to.
NUMBER = {"type": "object", "additionalProperties": False, "required": ["n"],
          "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}}}
REPORT = {"temperature": 21, "condition": "sunny"}


def fails(kind, ask):
    """The error of this kind that asking raises."""
    try:
        ask()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} came")
