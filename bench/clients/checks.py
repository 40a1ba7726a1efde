"""Runs all checks of the Python clients against the server that CLIENTS_ADDRESS and CLIENTS_KEY
name and prints a JSON object for each. `run.py` calls this in the environment of the clients."""

import importlib.metadata
import json
import sys
import time
import traceback

import with_anthropic
import with_langchain
import with_litellm
import with_ollama
import with_openai

CLIENTS = {"openai": with_openai, "anthropic": with_anthropic, "ollama": with_ollama,
           "litellm": with_litellm, "langchain-openai": with_langchain}


def main():
    wanted = sys.argv[1:]
    for name, module in CLIENTS.items():
        client, version = f"pypi/{name}", importlib.metadata.version(name)
        for attribute, check in vars(module).items():
            if not attribute.startswith("check_"):
                continue
            title = attribute.removeprefix("check_")
            if wanted and not any(part in f"{client}.{title}" for part in wanted):
                continue
            start, error = time.monotonic(), None
            try:
                check()
            except Exception:
                error = traceback.format_exc()
            seconds = time.monotonic() - start
            print(json.dumps({"client": client, "version": version, "check": title,
                              "seconds": seconds, "error": error}), flush=True)


if __name__ == "__main__":
    main()
