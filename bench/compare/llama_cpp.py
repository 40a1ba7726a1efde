"""llama.cpp beside Offshoot: the same shape, the same machine, turn by turn.

    python bench/compare/llama_cpp.py --llama-bench PATH [--offshoot PATH] [--shape qwen3-0.6b]
        [--quant q4_0|q8_0] [--layers N] [-p 128,512] [-n 64] [--threads N] [--rounds 3]
        [--repetitions 3] [--folder target/compare]

Writes a GGUF file of a shape from bench/shapes (Qwen3, dense or with experts) whose weights are
random blocks of llama.cpp's own formats: a file for speed, its text means nothing. Q4_0 and Q8_0
hold 4.5 and 8.5 bits a weight, MLX's 4-bit and 8-bit (groups of 64) 4.5 and 8.5 as well, so both
programs read as many bytes a token. Without --llama-bench it stops there.

A round takes each prompt length in turn: llama-bench prefills, `offshoot bench` prefills and
decodes, llama-bench decodes. llama-bench decodes behind a prompt of that length (-d), as Offshoot
does. Every program is started anew, and each start measures --repetitions times after a warm-up
(`offshoot bench -b 1,1,1` does), so that best and median are of equally many figures and a drift of
the machine meets both. Data on stdout is one JSON object per measurement, then a table; talk is on
stderr. Needs numpy and gguf.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

import gguf
import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
# Values per block of both formats, and the deviation that random weights shall have.
BLOCK = 32
SPREAD = 0.02
# Format: GGUF's type and file type, bytes of a block, deviation of evenly drawn codes, Offshoot's.
QUANTS = {
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0, 18, 4.61, "4bit"),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0, 34, 73.9, "8bit"),
}
ARCHITECTURES = {"qwen3": "qwen3", "qwen3_moe": "qwen3moe"}


def random_blocks(rng, shape, quant):
    """Random blocks for weights of `shape` (the last axis is the input), as bytes [..., row]."""
    _, _, n_bytes, deviation, _ = QUANTS[quant]
    *rows, width = shape
    blocks = rng.integers(0, 256, (*rows, width // BLOCK, n_bytes), np.uint8)
    # Codes of Q4_0 are off centre by half a step; scales of either sign take the bias away, which
    # would make all tokens alike and send them to the same experts.
    scales = rng.uniform(0.5, 1.5, blocks.shape[:-1]) * rng.choice([-1.0, 1.0], blocks.shape[:-1])
    scales = (scales * (SPREAD / deviation)).astype("<f2")
    blocks[..., :2] = scales[..., None].view(np.uint8)
    return blocks.reshape(*rows, -1)


def tensors(config):
    """Name, shape (the last axis is the input) and whether it is quantized, in the file's order."""
    hidden, head = config["hidden_size"], config["head_dim"]
    queries, keys = (config[k] * head for k in ("num_attention_heads", "num_key_value_heads"))
    yield "token_embd", (config["vocab_size"], hidden), True
    for layer_idx in range(config["num_hidden_layers"]):
        block = f"blk.{layer_idx}."
        yield block + "attn_norm", (hidden,), False
        yield block + "attn_q", (queries, hidden), True
        yield block + "attn_k", (keys, hidden), True
        yield block + "attn_v", (keys, hidden), True
        yield block + "attn_q_norm", (head,), False
        yield block + "attn_k_norm", (head,), False
        yield block + "attn_output", (hidden, queries), True
        yield block + "ffn_norm", (hidden,), False
        if config["model_type"] == "qwen3_moe":
            experts, width = config["num_local_experts"], config["moe_intermediate_size"]
            yield block + "ffn_gate_inp", (experts, hidden), False
            yield block + "ffn_gate_exps", (experts, width, hidden), True
            yield block + "ffn_up_exps", (experts, width, hidden), True
            yield block + "ffn_down_exps", (experts, hidden, width), True
        else:
            width = config["intermediate_size"]
            yield block + "ffn_gate", (width, hidden), True
            yield block + "ffn_up", (width, hidden), True
            yield block + "ffn_down", (hidden, width), True
    yield "output_norm", (hidden,), False
    if not config["tie_word_embeddings"]:
        yield "output", (config["vocab_size"], hidden), True


def add_metadata(writer, config, quant):
    """The keys by which llama.cpp builds the model; no tokenizer, only its number of tokens."""
    writer.add_file_type(QUANTS[quant][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    if config["model_type"] == "qwen3_moe":
        writer.add_expert_count(config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])


def write_gguf(path, config, quant):
    """Writes the file, one tensor in memory at a time, and hands it to the disk before timing."""
    kind, _, n_bytes, _, _ = QUANTS[quant]
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, ARCHITECTURES[config["model_type"]])
    add_metadata(writer, config, quant)
    for name, shape, quantized in tensors(config):
        if quantized:
            stored = (*shape[:-1], shape[-1] // BLOCK * n_bytes)
            size, dtype, raw = int(np.prod(stored)), np.dtype(np.uint8), kind
        else:
            stored, size, dtype, raw = shape, 4 * int(np.prod(shape)), np.dtype(np.float32), None
        writer.add_tensor_info(name + ".weight", stored, dtype, size, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(1)
    for _, shape, quantized in tensors(config):
        if quantized:
            data = random_blocks(rng, shape, quant)
        elif len(shape) == 1:  # a norm
            data = np.ones(shape, np.float32)
        else:  # a router
            data = rng.normal(0, SPREAD, shape).astype(np.float32)
        writer.write_tensor_data(data)
    writer.close()
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def objects(command):
    """What a program prints as JSON: a list, or one object per line."""
    command = [str(word) for word in command]
    print(" ".join(command), file=sys.stderr, flush=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        sys.exit(f"{command[0]} cannot be started ({error.strerror}): give the path of the program")
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed ({done.returncode}):\n{done.stderr[-2000:]}")
    text = done.stdout.strip()
    return json.loads(text) if text[:1] == "[" else [json.loads(li) for li in text.splitlines()]


def run_peer(args, path, test, prompt):
    """llama-bench's figures for prefill of `prompt` tokens, or decode behind that many."""
    sizes = {"prefill": ["-p", prompt, "-n", 0], "decode": ["-p", 0, "-n", args.n, "-d", prompt]}
    command = [args.llama_bench, "-m", path, "-t", args.threads, "-r", args.repetitions,
               "-o", "json", *sizes[test]]
    (result,) = objects(command)
    about = dict(version=result["build_commit"], device=result["backends"],
                 weight_bytes=result["model_size"], threads=result["n_threads"])
    yield dict(engine="llama.cpp", test=test, tok_s=result["samples_ts"], **about)


def run_offshoot(args, prompt):
    """Offshoot's figures for prefill of `prompt` tokens and decode behind them."""
    model = f"shape:{args.shape}:{QUANTS[args.quant][4]}"
    layers = ["--layers", args.layers] if args.layers else []
    command = [args.offshoot, "bench", model, "-p", prompt, "-n", args.n, *layers,
               "-b", ",".join(["1"] * args.repetitions), "--json"]
    results = objects(command)
    about = dict(version=f"MLX {results[0]['mlx_version']}", device=results[0]["backend"],
                 weight_bytes=results[0]["weight_bytes"])
    for test in ("prefill", "decode"):
        figures = [result[f"{test}_tok_s"] for result in results]
        yield dict(engine="offshoot", test=test, tok_s=figures, **about)


def a_round(args, path, prompt):
    """One turn of both programs at one prompt length."""
    yield from run_peer(args, path, "prefill", prompt)
    if args.offshoot:
        yield from run_offshoot(args, prompt)
    yield from run_peer(args, path, "decode", prompt)


def table(figures):
    """Best and median of every figure; where both programs ran, Offshoot's share of llama.cpp's."""
    engines = list(dict.fromkeys(engine for engine, _, _ in figures))
    rows = [["tok/s"] + [f"{e} {what}" for e in engines for what in ("best", "median")]]
    rows[0] += [f"ratio of {what}s" for what in ("best", "median")] * (len(engines) > 1)
    for test, prompt in dict.fromkeys(key[1:] for key in figures):
        found = [figures[engine, test, prompt] for engine in engines]
        pairs = [(max(values), statistics.median(values)) for values in found]
        ratios = [f"{ours / peer:.3g}" for peer, ours in zip(*pairs)] if len(pairs) > 1 else []
        cells = [f"{value:.1f}" for pair in pairs for value in pair]
        rows.append([f"{test}, prompt {prompt}", *cells, *ratios])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths)))
        for row in rows)


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def prompts(text):
    return [positive(part) for part in text.split(",")]


def arguments():
    shapes = {path.stem: json.loads(path.read_text()) for path in ROOT.glob("bench/shapes/*.json")}
    known = [name for name, config in sorted(shapes.items())
             if config["model_type"] in ARCHITECTURES]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-bench", help="the program; without it the file is made, no more")
    parser.add_argument("--offshoot", help="our program, to run in turn with llama-bench")
    parser.add_argument("--shape", choices=known, default="qwen3-0.6b")
    parser.add_argument("--quant", choices=QUANTS, default="q4_0")
    parser.add_argument("--layers", type=positive, help="make the shape with this many layers")
    parser.add_argument("-p", type=prompts, default=[128, 512], help="prompt lengths")
    parser.add_argument("-n", type=positive, default=64, help="tokens to decode")
    parser.add_argument("--threads", type=positive, default=os.cpu_count(), help="of llama-bench")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--repetitions", type=positive, default=3, help="in each start")
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "target" / "compare")
    args = parser.parse_args()
    if args.offshoot and not args.llama_bench:
        parser.error("--offshoot is compared with --llama-bench: name both")
    config = shapes[args.shape]
    config["num_hidden_layers"] = args.layers or config["num_hidden_layers"]
    return args, config


def main():
    args, config = arguments()
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / f"{args.shape}-{config['num_hidden_layers']}-layers-{args.quant}.gguf"
    write_gguf(path, config, args.quant)
    print(f"{path}: {path.stat().st_size:,} bytes", file=sys.stderr)
    if not args.llama_bench:
        return
    figures = {}
    for round_idx in range(args.rounds):
        for prompt in args.p:
            for result in a_round(args, path, prompt):
                line = dict(round=round_idx + 1, model=path.stem, prompt_tokens=prompt) | result
                if result["test"] == "decode":
                    line["new_tokens"] = args.n
                print(json.dumps(line), flush=True)
                key = result["engine"], result["test"], prompt
                figures.setdefault(key, []).extend(result["tok_s"])
    print(table(figures))


if __name__ == "__main__":
    main()
