"""mlx-lm's server beside Offshoot's: one model folder, the same requests, turn by turn.

    python bench/compare/mlx_lm_server.py [--offshoot PATH] [--shape qwen3-0.6b] [--layers N]
        [--dtype bfloat16] [--bits 4] [--model FOLDER] [--rounds 3] [--folder target/compare]
        [--prompt 96] [-n 24] [--streams 8] [--turns 4]

Runs with the Python that has mlx-lm. Without --model it writes a folder that both load: a Qwen3
shape from bench/shapes with random weights, and the vocabulary, tokenizer and template of the demo.
The rows of the embedding (which is the head too) whose tokens are not plain letters are zeros: an
answer is letters to its last token, never ends before its time, and each token is an event of its
own.

A round starts each server anew, in turns the one or the other first, with its own defaults and no
cache from before, asks once to warm up and then gives it the loads below, greedily. Answers of past
turns are a script's and not the model's, so that both get the same prompts, token by token: both
must count as many prompt tokens in `usage`, and every answer must have all the tokens asked for,
each an event, or the run fails. Where this process was held up for more than half a second, so were
the servers: such figures are marked `stalled` and do not count. Data on stdout is one JSON object
for each load or request, then a table of medians of what counts; talk is on stderr.
"""

import argparse
import contextlib
import http.client
import importlib.metadata
import json
import os
import pathlib
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import typing

import mlx.core as mx

ROOT = pathlib.Path(__file__).parents[2]
DEMO = ROOT / "models" / "demo"
ENGINES = ("mlx-lm", "offshoot")
SPREAD = 0.02
# Loading a model, and one answer.
PATIENCE_S = 600
STALL_S = 0.5
WORDS = ("the sea a model of bread and rain cat music small word tree leaf branch home long road "
         "light water stone green old new day night hand book city name").split()


# --- the model

def weights(config, dtype):
    """Names and random tensors as a Hugging Face checkpoint of Qwen3 has them."""
    hidden, head = config["hidden_size"], config["head_dim"]
    queries, keys = (config[k] * head for k in ("num_attention_heads", "num_key_value_heads"))
    width = config["intermediate_size"]
    mx.random.seed(1)

    def draw(*shape):
        return mx.random.normal(shape, scale=SPREAD).astype(dtype)

    def ones(n):
        return mx.ones(n, dtype)

    vocabulary = json.loads((DEMO / "tokenizer.json").read_text())["model"]["vocab"]
    # "\u0120" is a space before the word.
    words = {token.removeprefix("\u0120"): token_id for token, token_id in vocabulary.items()}
    spoken = [token_id for word, token_id in words.items() if word.isascii() and word.isalpha()]
    mask = mx.zeros((config["vocab_size"], 1), dtype)
    mask[mx.array(spoken)] = 1
    yield "model.embed_tokens.weight", draw(config["vocab_size"], hidden) * mask
    for layer_idx in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer_idx}."
        yield at + "input_layernorm.weight", ones(hidden)
        yield at + "self_attn.q_proj.weight", draw(queries, hidden)
        yield at + "self_attn.k_proj.weight", draw(keys, hidden)
        yield at + "self_attn.v_proj.weight", draw(keys, hidden)
        yield at + "self_attn.o_proj.weight", draw(hidden, queries)
        yield at + "self_attn.q_norm.weight", ones(head)
        yield at + "self_attn.k_norm.weight", ones(head)
        yield at + "post_attention_layernorm.weight", ones(hidden)
        yield at + "mlp.gate_proj.weight", draw(width, hidden)
        yield at + "mlp.up_proj.weight", draw(width, hidden)
        yield at + "mlp.down_proj.weight", draw(hidden, width)
    yield "model.norm.weight", ones(hidden)


def write_model(args):
    """The folder of the model, which is made if it is not there."""
    config = json.loads((ROOT / f"bench/shapes/{args.shape}.json").read_text())
    if config["model_type"] != "qwen3" or not config["tie_word_embeddings"]:
        sys.exit(f"{args.shape} is no Qwen3 with a tied head: give a folder with --model")
    n_layers = args.layers or config["num_hidden_layers"]
    config |= dict(num_hidden_layers=n_layers, layer_types=config["layer_types"][:n_layers],
                   vocab_size=json.loads((DEMO / "config.json").read_text())["vocab_size"],
                   dtype=args.dtype, eos_token_id=2041, bos_token_id=None)
    name = f"{args.shape}-{n_layers}-layers-{args.dtype}"
    folder = args.folder / name
    if not folder.exists():
        part = folder.with_suffix(".part")
        part.mkdir(parents=True, exist_ok=True)
        tensors = dict(weights(config, getattr(mx, args.dtype)))
        mx.save_safetensors(str(part / "model.safetensors"), tensors, {"format": "pt"})
        (part / "config.json").write_text(json.dumps(config, indent=1))
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(DEMO / file, part)
        part.replace(folder)
    if args.bits is None:
        return folder
    coded = args.folder / f"{name}-{args.bits}-bits"
    if not coded.exists():
        command = [args.offshoot, "quantize", folder, coded, "--bits", str(args.bits)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return coded


# --- the servers

def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server(typing.NamedTuple):
    engine: str
    port: int


@contextlib.contextmanager
def serving(engine, model, args):
    """A server of one engine that has answered once."""
    server = Server(engine, free_port())
    commands = {
        "mlx-lm": [sys.executable, "-m", "mlx_lm", "server", "--model", model,
                   "--port", str(server.port), "--log-level", "WARNING"],
        "offshoot": [args.offshoot, "serve", model, "--port", str(server.port), "--quiet"]}
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "OFFSHOOT_HOME": home, "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(commands[engine], env=environment, stdout=sys.stderr)
        try:
            while not is_listening(server):
                if process.poll() is not None:
                    sys.exit(f"{engine} ended with {process.returncode} before it listened")
                time.sleep(0.2)
            ask(server, [{"role": "user", "content": "warm up"}], 2)
            yield server
        finally:
            process.terminate()
            process.wait(60)


def is_listening(server):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", server.port)) == 0


def ask(server, messages, n_tokens):
    """A streamed answer: when it was asked for, when each token came, and `usage`."""
    body = {"messages": messages, "temperature": 0.0, "max_tokens": n_tokens, "stream": True,
            "stream_options": {"include_usage": True},
            # mlx-lm's server has it on where nothing is said, Offshoot as the template does.
            "chat_template_kwargs": {"enable_thinking": False}}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    start, times, usage = time.monotonic(), [], None
    connection.request("POST", "/v1/chat/completions", json.dumps(body),
                       {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        sys.exit(f"{server.engine}: {response.status} {response.read()[:500]}")
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[len(b"data: "):])
        usage = event.get("usage") or usage
        if any(choice["delta"].get("content") for choice in event["choices"]):
            times.append(time.monotonic())
    connection.close()
    # The server of mlx-lm sends its first token with the second where the first is held back.
    if usage["completion_tokens"] != n_tokens or len(times) < n_tokens - 1:
        sys.exit(f"{server.engine}: {n_tokens} tokens were asked for, {usage} and {len(times)} "
                 "events came")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return {"start": start, "times": times, "prompt_tokens": usage["prompt_tokens"],
            "cached_tokens": cached, "new_tokens": n_tokens}


# --- the loads

def text(rng, n_words):
    return " ".join(rng.choice(WORDS) for _ in range(n_words))


def said(role, content):
    return {"role": role, "content": content}


def ttft_ms(answer):
    return (answer["times"][0] - answer["start"]) * 1000


def one_stream(server, args, rng):
    """Prompts with nothing in common, one after the other."""
    for _ in range(2):
        answer = ask(server, [said("user", text(rng, args.prompt))], args.n)
        n_gaps, times = len(answer["times"]) - 1, answer["times"]
        yield "one stream", answer, {
            "ttft_ms": ttft_ms(answer), "decode_tok_s": n_gaps / (times[-1] - times[0])}


def many_streams(server, args, rng):
    """Prompts with nothing in common, all at once."""
    prompts = [[said("user", text(rng, args.prompt // 2))] for _ in range(args.streams)]
    answers = [None] * args.streams

    def stream(i):
        answers[i] = ask(server, prompts[i], args.n)

    threads = [threading.Thread(target=stream, args=(i,)) for i in range(args.streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if None in answers:
        sys.exit(f"{server.engine}: a stream ended without an answer")
    waits = sorted(ttft_ms(answer) for answer in answers)
    gaps = sorted((later - earlier) * 1000 for answer in answers
                  for earlier, later in zip(answer["times"], answer["times"][1:]))
    seconds = max(a["times"][-1] for a in answers) - min(a["start"] for a in answers)
    total = {key: sum(answer[key] for answer in answers)
             for key in ("prompt_tokens", "cached_tokens", "new_tokens")}
    yield f"{args.streams} streams", total, {
        "sum_tok_s": total["new_tokens"] / seconds, "ttft_p50_ms": statistics.median(waits),
        "ttft_p99_ms": quantile(waits, 0.99), "gap_p99_ms": quantile(gaps, 0.99)}


def quantile(values, share):
    return values[min(len(values) - 1, int(share * len(values)))]


def conversations(server, args, rng):
    """A conversation that grows; another behind the same system prompt; a changed question in the
    middle of the first, with all that followed; and the first again, one turn on."""
    system = said("system", text(rng, 2 * args.prompt))
    turns = [(said("user", text(rng, 24)), said("assistant", text(rng, 12)))
             for _ in range(args.turns + 1)]

    def until(n_turns):
        past = [message for turn in turns[:n_turns] for message in turn]
        return [system, *past, turns[n_turns][0]]

    edited = until(args.turns - 1)
    edited[1 + 2 * (args.turns // 2)] = said("user", text(rng, 24))
    asked = [(f"turn {i + 1}", until(i)) for i in range(args.turns)]
    asked += [("other conversation", [system, said("user", text(rng, 24))]),
              (f"turn {args.turns // 2 + 1} edited", edited),
              (f"back, turn {args.turns + 1}", until(args.turns))]
    for name, messages in asked:
        answer = ask(server, messages, 8)
        yield name, answer, {"ttft_ms": ttft_ms(answer)}


LOADS = (one_stream, many_streams, conversations)


# --- the run

class Watch(threading.Thread):
    """How long this process was held up at most."""

    def __init__(self):
        super().__init__(daemon=True)
        self.longest_s = 0.0
        self.start()

    def run(self):
        while True:
            before = time.monotonic()
            time.sleep(0.05)
            self.longest_s = max(self.longest_s, time.monotonic() - before - 0.05)


def measure(engine, model, args, watch, round_idx):
    """One start of a server: all loads' results, printed as they come."""
    rng = random.Random(round_idx)
    with serving(engine, model, args) as server:
        for load in LOADS:
            watch.longest_s = 0.0
            for name, counts, figures in load(server, args, rng):
                result = {"engine": engine, "round": round_idx + 1, "load": name}
                result |= {key: counts[key]
                           for key in ("prompt_tokens", "cached_tokens", "new_tokens")}
                result |= {key: round(value, 2) for key, value in figures.items()}
                result["load_average"] = round(os.getloadavg()[0], 2)
                if watch.longest_s > STALL_S:
                    result["stalled"] = True
                watch.longest_s = 0.0
                print(json.dumps(result), flush=True)
                yield result


def table(results):
    """Medians of both, the ratio in favour of Offshoot above 1, and tokens found in the cache."""
    rows = [["load", "figure", *ENGINES, "ratio", "of figures", "prompt",
             *(f"cached {e}" for e in ENGINES)]]
    names = list(dict.fromkeys(result["load"] for result in results))
    for name in names:
        of = {engine: [r for r in results if (r["engine"], r["load"]) == (engine, name)]
              for engine in ENGINES}
        if len({tuple(sorted(r["prompt_tokens"] for r in of[e])) for e in ENGINES}) != 1:
            sys.exit(f"{name}: the prompts have other numbers of tokens")
        tokens = [statistics.median(r["prompt_tokens"] for r in of[ENGINES[0]])]
        tokens += [statistics.median(r["cached_tokens"] for r in of[e]) for e in ENGINES]
        for figure in [key for key in of[ENGINES[0]][0] if key.endswith(("_ms", "_tok_s"))]:
            values = [[r[figure] for r in of[e] if "stalled" not in r] for e in ENGINES]
            counts = "+".join(str(len(found)) for found in values)
            cells = ["-"] * 3
            if all(values):
                peer, ours = map(statistics.median, values)
                ratio = ours / peer if figure.endswith("_tok_s") else peer / ours
                cells = [f"{peer:.1f}", f"{ours:.1f}", f"{ratio:.2f}"]
            rows.append([name, figure, *cells, counts, *(f"{n:g}" for n in tokens)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) if i < 2 else cell.rjust(width)
                               for i, (cell, width) in enumerate(zip(row, widths)))
                     for row in rows)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--offshoot", default=ROOT / "target/release/offshoot", type=pathlib.Path)
    parser.add_argument("--model", type=pathlib.Path, help="a folder, in place of a shape")
    parser.add_argument("--shape", default="qwen3-0.6b")
    parser.add_argument("--layers", type=int, help="make the shape with this many layers")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--bits", type=int, help="quantize the shape, in groups of 64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=96, help="words of a prompt")
    parser.add_argument("-n", type=int, default=24, help="tokens of an answer")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "target" / "compare")
    return parser.parse_args()


def main():
    args = arguments()
    if not args.offshoot.exists():
        sys.exit(f"{args.offshoot} is not there: cargo build --release -p cli -p runner")
    model = (args.model or write_model(args)).resolve()
    versions = {name: importlib.metadata.version(name) for name in ("mlx-lm", "mlx")}
    print(json.dumps({"model": model.name, "offshoot": args.offshoot.name, **versions,
                      "cores": os.cpu_count()}), flush=True)
    watch, results = Watch(), []
    for round_idx in range(args.rounds):
        for engine in ENGINES[::1 if round_idx % 2 == 0 else -1]:
            results += measure(engine, model, args, watch, round_idx)
    print(table(results))


if __name__ == "__main__":
    main()
