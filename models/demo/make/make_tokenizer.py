"""Trains the byte-level BPE tokenizer on generated conversations: digits single, ChatML marks.

    python make_tokenizer.py --out ..
"""

import argparse
import json
import random
from pathlib import Path

from render import MARKS, SPECIAL, check, render
from talkgen.compose import conversation
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

# A word takes the one space before it; a digit is always alone; newlines are apart from blanks.
SPLIT = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"


def corpus(n):
    for seed in range(n):
        r = random.Random(10_000_000 + seed)
        c = conversation(r, r.choice((200, 400, 800, 1600)))
        text = render(c.system, [t.schema for t in c.tools] if c.tools else None, c.msgs, thinking=r.random() < 0.2)
        for mark in SPECIAL + MARKS:
            text = text.replace(mark, " \x00 ")
        yield from (p.strip(" ") for p in text.split("\x00"))


def train(vocab_size, n):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - len(SPECIAL) - len(MARKS), min_frequency=2, max_token_length=16,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tok.train_from_iterator(corpus(n), trainer)
    tok.add_tokens([AddedToken(t, special=t in SPECIAL, normalized=False) for t in SPECIAL + MARKS])
    return tok


def save(tok, out):
    tok.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None, "unk_token": None,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "model_max_length": 4096, "clean_up_tokenization_spaces": False, "add_bos_token": False,
        "added_tokens_decoder": {str(tok.token_to_id(t)): {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": t in SPECIAL} for t in SPECIAL + MARKS},
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--out", type=Path, required=True)
    args.add_argument("--vocab", type=int, default=2048)
    args.add_argument("--conversations", type=int, default=12000)
    args = args.parse_args()
    tok = train(args.vocab, args.conversations)
    save(tok, args.out)
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(args.out)
    check(fast)
    texts = list(corpus(300))
    n_chars, n_tokens = sum(map(len, texts)), sum(len(e.ids) for e in tok.encode_batch(texts))
    for text in texts:
        assert tok.decode(tok.encode(text).ids, skip_special_tokens=False) == text, text
    print(f"vocab {tok.get_vocab_size()}, {n_chars / n_tokens:.2f} characters per token, template check passed")


if __name__ == "__main__":
    main()
