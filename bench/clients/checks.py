"""Runs all checks against the server that CLIENTS_ADDRESS and CLIENTS_KEY name, prints a table, and
exits with 1 if one has failed. `run.py` calls this within the environment of the clients."""

import importlib.metadata
import sys
import time
import traceback

import with_anthropic
import with_ollama
import with_openai

CLIENTS = {"openai": with_openai, "anthropic": with_anthropic, "ollama": with_ollama}


def main():
    wanted = sys.argv[1:]
    rows, failures = [], []
    for name, module in CLIENTS.items():
        version = importlib.metadata.version(name)
        for attribute, check in vars(module).items():
            if not attribute.startswith("check_"):
                continue
            title = f"{name}.{attribute.removeprefix('check_')}"
            if wanted and not any(part in title for part in wanted):
                continue
            start = time.monotonic()
            try:
                check()
                result = "ok"
            except Exception:
                result = "FAILED"
                failures.append((title, traceback.format_exc()))
            rows.append((name, version, attribute.removeprefix("check_").replace("_", " "),
                         result, f"{time.monotonic() - start:.2f} s"))
    for title, trace in failures:
        print(f"--- {title}\n{trace}")
    widths = [max(len(row[i]) for row in rows) for i in range(5)] if rows else []
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print(f"{len(rows) - len(failures)} of {len(rows)} checks passed")
    sys.exit(1 if failures or not rows else 0)


if __name__ == "__main__":
    main()
