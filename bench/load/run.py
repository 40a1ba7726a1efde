"""Many streams at once against `offshoot serve` with the bundled model: answers are compared with
those given to one alone, clients leave in the middle, some requests are bad, and the runner is
killed now and then. Needs python3 and Offshoot built; nothing else.

    cargo build --release -p cli -p runner
    python3 bench/load/run.py --streams 32 --minutes 10

Exits with 0 if no answer was lost or mixed up with another, every request ended, and the server
ended in good order. The server runs with --deterministic, so that answers are equal to the letter.
"""

import argparse
import collections
import http.client
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TOPICS = ["Offshoot", "a prefix cache", "a cat", "the sea", "bread", "a model", "music", "rain"]
QUESTIONS = ["What is {}?", "Tell me about {}.", "Do you like {}?", "Say a word on {}."]
# Of a request, loading after a kill included.
PATIENCE_S = 120


def prompts():
    return [question.format(topic) for topic in TOPICS for question in QUESTIONS]


class Server:
    """A server of its own, and what is counted of it."""

    def __init__(self, program, home):
        environment = {**os.environ, "OFFSHOOT_HOME": str(home)}
        command = [program, "serve", "demo", "--port", "0", "--deterministic", "--quiet"]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, env=environment, text=True)
        for line in self.process.stderr:
            if "listening on " in line:
                address = line.split("listening on ")[1].strip()
                self.host = address.removeprefix("http://").rstrip("/")
                break
        else:
            sys.exit(f"the server ended with {self.process.wait()} before it listened")
        # Its talk must not fill the pipe.
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def open(self, body, path="/v1/chat/completions"):
        connection = http.client.HTTPConnection(self.host, timeout=PATIENCE_S)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(body), headers)
        return connection, connection.getresponse()

    def runner_pid(self):
        connection = http.client.HTTPConnection(self.host, timeout=PATIENCE_S)
        connection.request("GET", "/models")
        listed = json.loads(connection.getresponse().read())
        text = json.dumps(listed)
        for model in listed.get("models", listed.get("data", [])):
            pid = model.get("pid") or (model.get("process") or {}).get("pid")
            if pid:
                return pid
        raise AssertionError(f"no process in {text}")

    def rss_mib(self):
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        return 0.0


def body_of(prompt, n_tokens, stream=True):
    messages = [{"role": "user", "content": prompt}]
    return {"model": "demo", "messages": messages, "temperature": 0, "max_tokens": n_tokens,
            "stream": stream}


def events(response):
    """The parsed objects of a stream; fails if it ends without its end."""
    for line in response:
        line = line.strip()
        if line == b"data: [DONE]":
            return
        if line.startswith(b"data: "):
            yield json.loads(line[6:])
    raise ConnectionError("the stream has no end")


class Load:
    def __init__(self, server, wanted, seconds):
        self.server, self.wanted = server, wanted
        self.until = time.monotonic() + seconds
        self.counts, self.faults, self.lock = collections.Counter(), [], threading.Lock()

    def count(self, what):
        with self.lock:
            self.counts[what] += 1

    def fault(self, text):
        with self.lock:
            self.faults.append(text)

    def ask(self, rng):
        prompt = rng.choice(list(self.wanted))
        wanted = self.wanted[prompt]
        leaves_after = rng.randrange(1, 8) if rng.random() < 0.2 else None
        connection, response = self.server.open(body_of(prompt, 40))
        try:
            if response.status == 503:
                assert response.getheader("Retry-After"), "a 503 without Retry-After"
                time.sleep(0.5)
                return self.count("unavailable")
            assert response.status == 200, response.read()[:300]
            text, reason = "", None
            for n, event in enumerate(events(response)):
                if "error" in event:
                    # Only the runner's death ends an answer in its middle.
                    return self.count("broken off")
                for choice in event["choices"]:
                    text += choice["delta"].get("content") or ""
                    reason = choice.get("finish_reason") or reason
                assert wanted.startswith(text), f"{prompt!r}: {text!r}, alone {wanted!r}"
                if leaves_after is not None and n >= leaves_after:
                    return self.count("left")
            assert text == wanted and reason, f"{prompt!r}: {text!r}, alone {wanted!r}"
            self.count("answered")
        finally:
            connection.close()

    def ask_badly(self, rng):
        bad = rng.choice([{"temperature": -1}, {"n": 10**9}, {"max_tokens": 0}, {"nonsense": 1},
                          {"messages": []}, {"logit_bias": {"x": 1}}])
        connection, response = self.server.open({**body_of("hi", 5), **bad})
        response.read()
        connection.close()
        assert response.status == 400, f"{bad}: {response.status}"
        self.count("refused")

    def stream(self, seed):
        rng = random.Random(seed)
        while time.monotonic() < self.until:
            try:
                self.ask_badly(rng) if rng.random() < 0.1 else self.ask(rng)
            except Exception as error:
                self.fault(f"{type(error).__name__}: {error}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--offshoot", default=ROOT / "target/release/offshoot", type=pathlib.Path)
    parser.add_argument("--streams", default=32, type=int)
    parser.add_argument("--minutes", default=10.0, type=float)
    parser.add_argument("--kill-every-s", default=60.0, type=float)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        server = Server(arguments.offshoot, home)
        wanted = {}
        for prompt in prompts():
            connection, response = server.open(body_of(prompt, 40, stream=False))
            answer = json.loads(response.read())
            connection.close()
            wanted[prompt] = answer["choices"][0]["message"]["content"]
        load = Load(server, wanted, arguments.minutes * 60)
        threads = [threading.Thread(target=load.stream, args=(i,))
                   for i in range(arguments.streams)]
        for thread in threads:
            thread.start()
        resident, next_kill = [], time.monotonic() + arguments.kill_every_s
        while time.monotonic() < load.until:
            time.sleep(5)
            resident.append(round(server.rss_mib(), 1))
            if time.monotonic() >= next_kill:
                next_kill += arguments.kill_every_s
                try:
                    os.kill(server.runner_pid(), signal.SIGKILL)
                    load.count("killed")
                except (AssertionError, ProcessLookupError):
                    load.count("nothing to kill")
        for thread in threads:
            thread.join(PATIENCE_S + 10)
        hanging = sum(thread.is_alive() for thread in threads)
        server.process.send_signal(signal.SIGTERM)
        ended = server.process.wait(60)
    # Without these it has shown nothing.
    for what in ["answered", "refused"] + ["killed"] * (len(resident) * 5 > arguments.kill_every_s):
        if not load.counts[what]:
            load.faults.append(f"none was {what}")
    print(json.dumps({"counts": dict(load.counts), "faults": len(load.faults), "hanging": hanging,
                      "exit": ended, "server_rss_mib": resident[::12] + resident[-1:]}))
    for fault in load.faults[:20]:
        print(fault)
    sys.exit(1 if load.faults or hanging or ended else 0)


if __name__ == "__main__":
    main()
