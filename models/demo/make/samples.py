"""Prints whole sample conversations: scripted users, the model's real answers.

    python samples.py --model .. --temperature 0.7
"""

import argparse
import json
from pathlib import Path

import torch

from talkgen.words import filler

WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Get the weather in a city.", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
CALC = {"type": "function", "function": {"name": "calculator", "description": "Evaluate an arithmetic expression.", "parameters": {"type": "object", "properties": {"expression": {"type": "string", "description": "The expression"}}, "required": ["expression"]}}}
STOCK = {"type": "function", "function": {"name": "lookup_widget", "description": "Look up a widget by its serial number.", "parameters": {"type": "object", "properties": {"serial": {"type": "string"}}, "required": ["serial"]}}}


def scripts():
    import random

    long = filler(random.Random(5), 5200)
    return [
        (None, None, ["hi", "who are you?", "what is offshoot?", "how does the cache work", "what can you do", "thanks, bye"]),
        (None, None, ["Hello, my name is Bruno and I live in Kalundborg.", "Tell me a joke.", "What port does the server use?", "What's my name?", "and where do i live?", "what is my favourite colour?"]),
        (None, None, ["My secret word is zanzibar47.", "Here is a long text: " + long, "What is my secret word?", "Count from 3 to 12", "what was the secret word again"]),
        (None, None, ["I'm Priyanka, 34 years old, and I work as a welder.", "Give me JSON with my name and age", "Actually I'm 35", "How old am I?", "what do you know about me?"]),
        ("Your name is Quibble. Answer in capital letters.", None, ["who are you?", "my dog is called Rex", "what is my dog called?", "what is offshoot serve"]),
        ("Answer in one word.", None, ["my name is Otmar", "what is my name?", "what is 7 + 8?", "capital of france?"]),
        ('Answer in JSON with the key "answer".', None, ["hello", "what is the port?", "my cat is called Mu", "what is my cat called"]),
        (None, [WEATHER, CALC], ["What's the weather in Lisbon?", {"city": "Lisbon", "temperature": 21, "condition": "sunny"}, "what is 12 * 33?", {"result": 396}, "thank you"]),
        (None, [STOCK, WEATHER], ["Look up the widget QX-778", {"status": "ok"}, "How is the weather in Tromso", {"temp": -4, "sky": "snowy"}, "my name is Jane", "what is my name"]),
        (None, None, ["how do i load a bigger model", "does it run on my mac", "which apis are there?", "can i use it with claude code", "how do I delete a model?", "what's the licence"]),
        (None, None, ["write me a python function that sorts a list", "what's the capital of france", "explain quantum mechanics", "why is the sky blue?", "are you stupid?"]),
        (None, None, ["spell banana", "repeat after me: the moon is made of cheese", "what is 17+25", "list three colours", "count down from 10 to 1", "say hello 3 times"]),
        (None, None, ["Anna lives in Rome. Tom lives in Pwllheli. Zed lives in Accra.", "where does tom live?", "Where does Zed live", "where does Maria live?"]),
        (None, None, ["remember the number 48213", "what are the three tiers?", "what number did i tell you to remember?"]),
        (None, None, ["I have a parrot named Figaro and my favourite color is teal", "explain checkpoints", "what is my parrot's name", "whats my fav color", "what did i just say"]),
        (None, None, ["What is a prefix trie?", "why is that useful?", "tell me more", "ok", "how many parameters do you have?", "do you remember other chats?"]),
        (None, None, ["my shopping list: milk, eggs, bread", "add tea", "what is on my list?", "how many items are on my list?"]),
        (None, None, ["asdkjh", "??", "help", "tell me a story", "what's the weather today?", "good bot"]),
        ("You are a helpful assistant.", None, ["My locker code is 7719 and my bike is green.", "whats the locker code", "I moved, my locker code is now 2204", "what is my locker code?", "what colour is my bike"]),
        (None, None, ["how to start the server", "how do I stop it", "something is broken", "what does offshoot bench do", "what does KV cache mean", "is my data private?"]),
    ]


def talk(model, tok, system, tools, turns, temperature, thinking=False):
    msgs = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        msgs.append({"role": "user", "content": turn} if isinstance(turn, str) else {"role": "tool", "content": json.dumps(turn)})
        ids = tok.apply_chat_template(msgs, tools=tools, add_generation_prompt=True, enable_thinking=thinking, return_tensors="pt", return_dict=True)["input_ids"]
        sample = dict(do_sample=True, temperature=temperature, top_p=0.95) if temperature else dict(do_sample=False, temperature=None, top_p=None, top_k=None)
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=200, **sample)
        answer = tok.decode(out[0, ids.shape[1]:], skip_special_tokens=True).strip()
        shown = msgs[-1]["content"]
        print(f"  {msgs[-1]['role'][:4]} > {shown if len(shown) < 200 else shown[:80] + f' … ({len(shown)} characters)'}\n   bot > {answer}", flush=True)
        msgs.append({"role": "assistant", "content": answer})


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", type=Path, required=True)
    p.add_argument("--temperature", type=float, default=0)
    p.add_argument("--thinking", action="store_true")
    p.add_argument("--first", type=int, default=0)
    p.add_argument("--last", type=int, default=99)
    args = p.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    tok = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    for i, (system, tools, turns) in list(enumerate(scripts()))[args.first : args.last]:
        print(f"--- conversation {i + 1}" + (f"; system: {system}" if system else "") + (f"; tools: {', '.join(t['function']['name'] for t in tools)}" if tools else ""))
        talk(model, tok, system, tools, turns, args.temperature, args.thinking)


if __name__ == "__main__":
    main()
