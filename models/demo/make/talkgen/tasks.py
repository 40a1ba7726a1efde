"""Small tasks with one right answer: counting, sums, spelling, repeating, lists, JSON."""

import json

from .facts import lower_first
from .grammar import expand, pick
from .words import ADJS, ANIMALS, CITIES, COLOURS, DRINKS, FOODS, FRUITS, HOBBIES, ITEMS, JOBS, LANGS, NAMES, NOUNS, SPELL, sentence

NUMBER_WORDS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
                "fifteen sixteen seventeen eighteen nineteen twenty").split()


def count(c):
    r = c.r
    x = r.random()
    if x < 0.12:
        b = r.randrange(3, 21)
        c.user("[Count [to|up to] {b}[ in words| with words]|Count from one to {b} in words|Count in words to {b}].", b=pick(r, (str(b), NUMBER_WORDS[b])))
        out = ", ".join(NUMBER_WORDS[1 : b + 1])
    else:
        step = 1 if x < 0.7 else pick(r, (2, 2, 3, 5, 5, 10, 10, 4, 100, 20, 25))
        n = r.randrange(3, 24 if r.random() < 0.8 else 40)
        a = (0 if r.random() < 0.5 else step) if step > 1 and r.random() < 0.7 else 1 if r.random() < 0.4 else r.randrange(0, 30 if r.random() < 0.6 else 300)
        down = r.random() < 0.28
        b = a + step * (n - 1)
        if step > 1 and r.random() < 0.2 and not down:
            b_said = b + r.randrange(step)
        else:
            b_said = b
        seq = range(b, a - 1, -step) if down else range(a, b + 1, step)
        if down:
            a, b_said = b, a
        lines = r.random() < 0.12
        by = "" if step == 1 else expand(r, f" [by|in steps of|in|by steps of|with step] {step}") + ("s" if False else "")
        q = "[Count|Please count|Can you count|count] " + ("down " if down and r.random() < 0.8 else "up " if r.random() < 0.15 and not down else "")
        if a == 1 and not down and r.random() < 0.5:
            q += "[to|up to] {b}"
        else:
            q += "from {a} to {b}"
        q += by + (", [one per line|each on its own line|one number per line]" if lines else "") + "[.|.|, please.|!|?]"
        c.user(q, a=a, b=b_said)
        out = ("\n" if lines else ", ").join(str(i) for i in seq)
    c.bot(out + ("." if False else ""), _fill=False, raw=True, check=("exact", out), think="I count in order.")


def math(c):
    r = c.r
    c.maybe_once(0.06)
    x = r.random()
    big = r.random()
    lim = 20 if big < 0.4 else 100 if big < 0.9 else 500
    a, b = r.randrange(0, lim), r.randrange(0, lim)
    if x < 0.5:
        v, op, words = a + b, "+", ("plus", "and")
    elif x < 0.75:
        a, b = max(a, b), min(a, b)
        v, op, words = a - b, "-", ("minus",)
    elif x < 0.92:
        a, b = r.randrange(0, 13), r.randrange(0, 13)
        v, op, words = a * b, "*", ("times",)
    else:
        a, b = r.randrange(1, 200), r.randrange(1, 200)
        if a == b:
            b += 1
        v = max(a, b) if r.random() < 0.6 else min(a, b)
        w = "[bigger|larger|greater|more]" if v == max(a, b) else "[smaller|less]"
        c.user("[Which is|Which number is|What is] " + w + ", {a} or {b}?", a=a, b=b)
        c.bot("{v} is {w}.", v=v, w="bigger" if v == max(a, b) else "smaller", short=str(v), think="{v} is the answer.", check=("contains", str(v)))
        return
    shown = pick(r, (op, op, " " + op + " ", " " + pick(r, words) + " ")) if op != "*" else pick(r, ("*", " * ", "x", " x ", " times "))
    if shown == " and ":
        c.user("[Add|What is the sum of|Please add|What do you get if you add] {a} and {b}[.|?]", a=a, b=b)
    else:
        c.user("[What is|What's|How much is|Calculate|Compute|Work out|What does|Please calculate|] {e}[ =|?|]", e=f"{a}{shown}{b}")
    c.bot("{a} {op} {b} = {v}[.|]".replace("[.|]", ""), a=a, b=b, op=op, v=v, short=str(v), think="{a} {op} {b} = {v}.", check=("ends", str(v)))


def spell(c):
    r = c.r
    x = r.random()
    w = pick(r, SPELL) if x < 0.5 else c.v.made() if x < 0.8 else c.v.name()
    if " " in w:
        w = w.split()[-1]
    x = r.random()
    if x < 0.6:
        c.user("[Spell|Spell out|How do you spell|Can you spell|Please spell|Spell the word|Spell for me:] {q}[.|?|]", q=pick(r, (w, w, f'"{w}"', f"'{w}'")))
        out = "-".join(w)
        c.bot(out, _fill=False, raw=True, check=("exact", out), think=f"Letter by letter: {' '.join(w)}.")
    elif x < 0.75:
        c.user("[How many letters does {w} have?|How many letters are in {w}?|Count the letters in {w}.|How many letters has the word {w}?]", w=w)
        c.bot("{s}: {n} letters.", s="-".join(w), n=len(w), raw=True, think="I spell it and count.", check=("ends", f"{len(w)} letters."))
    elif x < 0.9:
        up = r.random() < 0.6
        c.user("[Write|Say|Put|Print] {w} in [capitals|capital letters|upper case|uppercase|all caps]." if up else "[Write|Say|Put|Print] {w} in [lower case|lowercase|small letters].", w=w.lower() if up else w.upper())
        out = w.upper() if up else w.lower()
        c.bot(out, _fill=False, raw=True, check=("exact", out), think="The same word with other letters.")
    else:
        first = r.random() < 0.5
        c.user(f"What is the {'first' if first else 'last'} letter of {{w}}?", w=w)
        v = w[0 if first else -1]
        c.bot("The {p} letter of {w} is {v}.", p="first" if first else "last", w=w, v=v, short=v, think="{w}: {v}.", check=("ends", f"{v}."))


def repeat(c):
    r = c.r
    x = r.random()
    if x < 0.35:
        t = sentence(r)
    elif x < 0.7:
        t = " ".join(c.v.word() for _ in range(r.randrange(1, 8)))
    elif x < 0.85:
        t = c.v.code()
    else:
        t = " ".join(sentence(r) for _ in range(r.randrange(2, 5)))
    if r.random() < 0.6:
        c.user("[Repeat after me|Repeat this|Repeat|Say|Please repeat|Echo|Say exactly|Repeat the following|Print|Write|Say this|Copy this text]: {q}", q=pick(r, (t, t, t, f'"{t}"')))
        c.bot(t, _fill=False, raw=True, check=("exact", t), think="I repeat it exactly.")
    elif r.random() < 0.5:
        if len(t) > 60 or r.random() < 0.5:
            t = c.v.word()
        n = r.randrange(2, 7)
        c.user("[Say|Write|Repeat|Print|Please say|Can you say] {w} {n} times[.|]", w=pick(r, (t, f'"{t}"', "the word " + t)), n=pick(r, (n, NUMBER_WORDS[n])))
        out = " ".join([t] * n)
        c.bot(out, _fill=False, raw=True, check=("exact", out), think=f"{n} times {t}.")
    else:
        w = c.v.word()
        c.user("[Say only|Answer only with|Say just|Reply with only|Just say|Only say|Reply with|Answer with][:| the word|] {w}.", w=w)
        c.bot(w, _fill=False, raw=True, check=("exact", w), think=f"Only: {w}")


CATS = {"colours": COLOURS, "animals": ANIMALS, "fruits": FRUITS, "foods": FOODS, "drinks": DRINKS, "jobs": JOBS, "hobbies": HOBBIES, "cities": CITIES, "languages": LANGS, "names": NAMES}


def listing(c):
    r = c.r
    cat = pick(r, tuple(CATS))
    n = r.randrange(2, 8)
    start = 0 if r.random() < 0.6 else r.randrange(len(CATS[cat]))  # in the order of the list: no item twice
    items = [CATS[cat][(start + i) % len(CATS[cat])] for i in range(n)]
    s = pick(r, (str(n), NUMBER_WORDS[n]))
    x = r.random()
    if x < 0.5:
        c.user("[List|Name|Give me|Tell me|Can you name|Write|Say] {n} {c}[.|, please.]", n=s, c=cat)
        c.bot(", ".join(items), _fill=False, raw=True, think=f"{n} {cat}.", check=("n_items", n))
    elif x < 0.7:
        c.user("[List|Give me|Write|Make] {n} {c} [as a numbered list|in a numbered list|, numbered].", n=s, c=cat)
        c.bot("\n".join(f"{i + 1}. {t}" for i, t in enumerate(items)), _fill=False, raw=True, think=f"{n} {cat}, numbered.", check=("n_lines", n))
    elif x < 0.82:
        c.user("[List|Give me|Write|Make a list of] {n} {c} [as bullet points|as a bullet list|with bullets].", n=s, c=cat)
        c.bot("\n".join(f"- {t}" for t in items), _fill=False, raw=True, think=f"{n} {cat} as bullets.", check=("n_lines", n))
    else:
        c.user("[List|Give me|Write|Return] {n} {c} [as a JSON list|in JSON|as JSON|as a JSON array].", n=s, c=cat)
        c.bot(json.dumps(items, ensure_ascii=False), _fill=False, raw=True, think=f"{n} {cat} as JSON.", check=("json_len", n))


ORD = ("first", "second", "third", "fourth", "fifth", "sixth")


def own_list(c):
    """A list the user keeps in the conversation: add, remove, nth, count, show."""
    r = c.r
    kind = pick(r, ("shopping list", "list", "to-do list", "packing list", "list"))
    items = list(dict.fromkeys((c.v.word() if r.random() < 0.2 else pick(r, ITEMS)) for _ in range(r.randrange(2, 6))))
    c.user("[My|Here is my|This is my|Remember my|Start a|I have a] {k}: {t}[.|]", k=kind, t=", ".join(items))
    c.bot("[Noted|Okay|Got it]. [Your {k}|The {k}] has {n} item{s}.", k=kind, n=len(items), s="s" * (len(items) > 1), short="Noted", think="I remember the list.")
    for _ in range(r.randrange(1, 5)):
        x = r.random()
        if x < 0.25:
            new = c.v.word() if r.random() < 0.3 else pick(r, ITEMS)
            if new in items:
                continue
            items.append(new)
            c.user(pick(r, ("[Add|Please add|Put|Also add] {w} to [my|the] {k}.", "Put {w} on [my|the] {k}[, please|].", "[Add|Also add|And add|Please add|Also] {w}[.|, please.|]", "[Add|And] {w}[ too| as well| to it|][.|]")), w=new, k=kind)
            c.bot("Your {k} is now: {t}.", k=kind, t=", ".join(items), short="Done", think="I add {w}.".replace("{w}", new), check=("contains", ", ".join(items)))
        elif x < 0.4 and len(items) > 1:
            gone = pick(r, items)
            items.remove(gone)
            c.user(pick(r, ("[Remove|Delete|Take|Please remove] {w} from [my|the] {k}.", "[Remove|Delete|Drop|Without|Cross out] {w}[.|, please.|]", "I have {w} already, remove it.")), w=gone, k=kind)
            c.bot("Your {k} is now: {t}.", k=kind, t=", ".join(items), short="Done", think="I remove {w}.".replace("{w}", gone), check=("contains", ", ".join(items)))
        elif x < 0.6:
            i = r.randrange(len(items))
            last = i == len(items) - 1 and r.random() < 0.5
            if i >= len(ORD):
                continue
            c.user("What is [the|my] {o} [item|thing|one|entry] on [my|the] {k}?", o="last" if last else ORD[i], k=kind)
            c.bot("The {o} item is {w}.", o="last" if last else ORD[i], w=items[i], short=items[i], think="{o}: {w}.", check=("contains", items[i]))
        elif x < 0.75:
            c.user("[How many [items|things] are on [my|the] {k}?|How long is my {k}?]", k=kind)
            c.bot("Your {k} has {n} item{s}.", k=kind, n=len(items), s="s" * (len(items) > 1), short=str(len(items)), think="{t}: {n}.", t=", ".join(items), check=("contains", str(len(items))))
        else:
            c.user("[What is on my {k}?|Show me my {k}.|Read my {k}.|Tell me my {k} again.|What's on the {k}?]", k=kind)
            c.bot("Your {k}: {t}.", k=kind, t=", ".join(items), think="I look for the list.", check=("contains", ", ".join(items)))
        if c.style == "oneword":
            return


def order(c):
    r = c.r
    n = r.randrange(3, 7)
    x = r.random()
    nums = r.sample(range(1, 30 if r.random() < 0.5 else 100), n)
    t = ", ".join(map(str, nums))
    if x < 0.4:
        down = r.random() < 0.25
        c.user("[Sort|Please sort|Order|Put in order][:| these numbers:|] {t}" + (" [from large to small|in descending order|, largest first]" if down else "[ from small to large| in ascending order||]"), t=t)
        out = ", ".join(map(str, sorted(nums, reverse=down)))
        c.bot(out, _fill=False, raw=True, think="I put them in order.", check=("exact", out))
    elif x < 0.7:
        big = r.random() < 0.6
        v = max(nums) if big else min(nums)
        c.user(f"[What is|Which is|Find|Tell me] the {'[largest|biggest|highest]' if big else '[smallest|lowest]'} [number|one|value]: {{t}}", t=t)
        c.bot("The {w} number is {v}.", w="largest" if big else "smallest", v=v, short=str(v), think="{v} is the {w}.", check=("contains", str(v)))
    else:
        words = list(dict.fromkeys(c.v.word() for _ in range(n)))
        i = r.randrange(min(len(words), 6))
        c.user("What is the {o} word [here|of this list|in this list|]: {t}", o=ORD[i], t=pick(r, (", ", " "))[:].join(words) if True else "")
        c.bot("The {o} word is {v}.", o=ORD[i], v=words[i].split()[0], short=words[i].split()[0], think="{o}: {v}.", check=("contains", words[i].split()[0]))


FIELDS = (("name", "name"), ("age", "age"), ("city", "city"), ("job", "job"), ("colour", "colour"), ("food", "food"), ("animal", "animal"), ("code", "code"), ("hobby", "hobby"), ("language", "lang"), ("date", "date"), ("time", "time"),
          ("id", "digits"), ("price", "age"), ("count", "age"), ("item", "word"), ("title", "phrase"), ("user", "made"), ("country", "city"), ("friend", "name"), ("drink", "drink"), ("email", "made"))
SENT = {"name": "{v} is the name", "age": "{n} is {v} years old", "city": "{n} lives in {v}", "job": "{n} works as a {v}", "colour": "{n} likes {v}", "food": "{n} eats {v}", "hobby": "{n} likes {v}", "animal": "{n} has a {v}"}


def make_json(c):
    """JSON out of values named in the message, or out of a sentence."""
    r = c.r
    n = 1 + int(r.random() * 4)
    fields = r.sample(FIELDS, n)
    if r.random() < 0.15:
        fields = [(c.v.made(), kind) for _, kind in fields]
    obj = {}
    for key, kind in fields:
        v = getattr(c.v, kind)()
        obj[key] = int(v) if v.isdigit() and kind in ("age",) and len(v) < 6 else v
    flat = [f"{k} {v}" for k, v in obj.items()]
    x = r.random()
    if x < 0.55:
        body = pick(r, (lambda: ", ".join(flat), lambda: " and ".join(flat), lambda: ", ".join(f"{k}: {v}" for k, v in obj.items()),
                        lambda: ", ".join(f"{k}={v}" for k, v in obj.items()), lambda: "\n" + "\n".join(f"{k}: {v}" for k, v in obj.items())))()
        c.user("[Make|Write|Give me|Create|Return|Print] [a JSON object|JSON|a JSON] [with|from|for|of][:|] {b}" if r.random() < 0.6 else "[Turn this into JSON|As JSON|Convert to JSON|Write this as JSON|JSON, please]: {b}", b=body)
    else:
        n_ = c.v.name()
        kinds = r.sample(("age", "city", "job", "food", "animal", "hobby"), 1 + int(r.random() * 3))
        obj = {"name": n_}
        parts = []
        for k in kinds:
            v = getattr(c.v, k)()
            obj[k] = int(v) if k == "age" else v
            parts.append(SENT[k].replace("{v}", v))
        text = parts[0].replace("{n}", n_) + "".join((" and " if i == len(parts) - 2 else ", ") + p.replace("{n} ", "") for i, p in enumerate(parts[1:])) + "."
        keys = list(obj)
        if r.random() < 0.3:
            r.shuffle(keys)
        listed = ", ".join(keys[:-1]) + " and " + keys[-1]
        obj = {k: obj[k] for k in keys}
        c.user(pick(r, ("[Extract|Find|Get] {k} [as|in] JSON[ from this text|]: {t}", "{t} [Give me|Write|Extract] {k} [as|in] JSON.", "{t}\n[Answer|Reply] [in|with] JSON with [the keys |]{k}.",
                        "Read the text and answer with JSON ({k}): {t}")), k=listed, t=text)
    c.bot(json.dumps(obj, ensure_ascii=False), _fill=False, raw=True, think="I write the JSON object.", check=("json", obj))
