"""Runs `offshoot run` on a folder of every family, as transformers saves it and in MLX's layout, as
`offshoot quantize --mode f32` writes it.

    python goldens/run.py --offshoot target/release/offshoot [--families qwen3_next,gpt_oss]

Each model is random, with the demo's tokenizer and template, so that what it says is gibberish: the
very gibberish that transformers decodes greedily from the same prompt. Exits 1 if a text differs.
"""

import argparse
import copy
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch
import transformers

import make
from cases import FAMILIES

DEMO = pathlib.Path(__file__).parent.parent / "models" / "demo"
PROMPT = "Hello! What is a prefix trie?"
N_NEW = 12

@torch.no_grad()
def write_hf(family, folder):
    """A random model of the family's base sizes and the demo's vocabulary."""
    config_class, model_class = make.classes(family)
    torch.manual_seed(7)
    base = copy.deepcopy(FAMILIES[family].base) | dict(
        vocab_size=2048, initializer_range=0.1, eos_token_id=None, bos_token_id=None,
        pad_token_id=None)
    model = model_class(config_class(**base)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DEMO / file, folder)
    return make.load(family, folder)


@torch.no_grad()
def continued(model, folder):
    """The text that transformers decodes greedily."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        chat_template=(DEMO / "chat_template.jinja").read_text())
    ids = tokenizer.apply_chat_template(
        [dict(role="user", content=PROMPT)], add_generation_prompt=True, tokenize=True,
        return_dict=False)
    prompt = list(ids)
    for _ in range(N_NEW):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tokenizer.decode(ids[len(prompt):], skip_special_tokens=True)


def said(offshoot, folder):
    """What Offshoot says, or why it does not."""
    command = [offshoot, "run", str(folder), PROMPT, "--temperature", "0", "--max-tokens",
               str(N_NEW), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        return f"exit status {done.returncode}: {done.stderr.strip()[-300:]}"
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--offshoot", required=True, help="the executable to check")
    parser.add_argument("--families", default=",".join(FAMILIES),
                        type=lambda text: text.split(","), help="default: all")
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    n_misses = 0
    for family in arguments.families:
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary, "hf")
            expected = continued(write_hf(family, folder), folder)
            for layout, place in (("hf", folder), ("mlx", pathlib.Path(temporary, "mlx"))):
                if layout == "mlx":
                    subprocess.run([arguments.offshoot, "quantize", folder, place, "--mode", "f32"],
                                   check=True, capture_output=True)
                answer = said(arguments.offshoot, place)
                text = answer if isinstance(answer, str) else answer.get("text", "")
                same = text.strip() == expected.strip()
                n_misses += not same
                state = "ok" if same else f"MISS, wanted {expected[:80]!r}, got"
                print(f"{family:14} {layout:3} {state} {text[:60]!r}", flush=True)
    print(f"{n_misses} misses")
    sys.exit(1 if n_misses else 0)


if __name__ == "__main__":
    main()
