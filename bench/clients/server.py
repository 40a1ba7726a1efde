"""Where the server is, and what all clients ask it."""

import os

ADDRESS = os.environ["CLIENTS_ADDRESS"]
KEY = os.environ["CLIENTS_KEY"]
MODEL = "demo"
# The bundled model has an answer to this.
QUESTION = "What is Offshoot?"
WORD = "Offshoot"


def fails(kind, ask):
    """The error of this kind that asking raises."""
    try:
        ask()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} came")
