"""Puts whole conversations together: who asks what in which order, in which style, how long."""

from . import facts, offshoot, talk, tasks, tools
from .conversation import Conv
from .grammar import expand, fill, pick
from .words import filler

MIX = ((offshoot.qa, 27), (talk.small, 12), (talk.again, 1.2), (talk.unknown, 11), (talk.knowledge, 3), (facts.tell, 9), (facts.intro, 2), (facts.remember, 2), (facts.tell_and_ask, 1), (facts.tell_pet, 2), (facts.no_pet, 0.7), (facts.ask, 11),
       (facts.ask_several, 2), (facts.ask_missing, 5), (facts.ask_all, 3), (facts.update, 3.5), (facts.yes_no, 1.5), (facts.as_json, 3), (facts.people, 3),
       (facts.said_before, 1), (tasks.count, 5), (tasks.math, 6.5), (tasks.spell, 7), (tasks.repeat, 5.5), (tasks.listing, 2.5), (tasks.own_list, 2.5), (tasks.order, 2), (tasks.make_json, 4))
RECALL = ((facts.tell, 10), (facts.intro, 3), (facts.remember, 2.5), (facts.tell_and_ask, 1.5), (facts.tell_pet, 2), (facts.ask, 16), (facts.ask_several, 3), (facts.ask_missing, 4), (facts.ask_all, 4), (facts.update, 5), (facts.yes_no, 2),
          (facts.as_json, 3), (facts.people, 4), (offshoot.qa, 4), (talk.small, 3), (talk.again, 0.5), (talk.unknown, 2), (tasks.count, 1), (tasks.repeat, 1), (tasks.math, 1), (facts.said_before, 1))
ONEWORD = ((facts.tell, 6), (facts.ask, 10), (facts.ask_missing, 2), (facts.yes_no, 4), (talk.knowledge, 5), (tasks.math, 4), (talk.small, 3), (offshoot.qa, 5), (tasks.order, 2), (talk.unknown, 2), (facts.people, 2))


def _chooser(mix):
    fns, acc, total = [], [], 0.0
    for fn, weight in mix:
        total += weight
        fns.append(fn)
        acc.append(total)

    def choose(r):
        x = r.random() * total
        for fn, edge in zip(fns, acc):
            if x < edge:
                return fn
        return fns[-1]

    return choose


PICK, PICK_RECALL, PICK_ONEWORD = _chooser(MIX), _chooser(RECALL), _chooser(ONEWORD)
HELPFUL = ("You are a helpful assistant.", "You are Offshoot, a helpful assistant.", "You are a friendly assistant.", "You are the assistant of the Offshoot program.", "Be helpful.",
           "You are a helpful AI assistant. Answer the user's questions.", "You are a tiny demo model. Be honest.", "You are an assistant. Be short and precise.")
PERSONA = ("Your name is {n}.", "You are {n}.", "You are {n}, a helpful assistant.", "You are an assistant called {n}.", "You are an assistant named {n}. Be friendly.", "Your name is {n}. You help the user.", "I call you {n}.")
STYLE = {
    "caps": ("[Answer|Always answer|Reply|Write] in capital letters.", "[Answer|Reply|Write] only in [capitals|capital letters|upper case].", "Use capital letters[ only|].", "ANSWER IN CAPITALS.", "Speak in all caps.", "Always [write|reply] in uppercase."),
    "lower": ("[Answer|Always answer|Reply|Write] in lower case.", "Use [lower case|lowercase|small letters] only.", "Never use capital letters."),
    "oneword": ("[Answer|Always answer|Reply] in one word.", "One word answers only.", "Answer with a single word.", "Use only one word.", "Give one-word answers.", "Reply with one word only."),
    "json": ('[Answer|Reply|Always answer] in JSON with the key "{k}".', 'Reply in JSON: {"{k}": ...}', 'Your answers are JSON objects with one key, "{k}".', "[Always reply|Answer|Respond] as a JSON object with the key {k}.", 'Use this format: {"{k}": "your text"}'),
    "prefix": ('[Start|Begin] [every|each] answer with "{k}".', "Begin all answers with {k}", "Every answer must start with {k}"),
    "suffix": ('End [every|each] answer with "{k}".', "End all answers with {k}", "[Finish|Close] [every|each] answer with {k}"),
}
KEYS = ("answer", "reply", "text", "message", "output", "response", "result", "content")


def _system(c):
    r = c.r
    parts = []
    x = r.random()
    if x < 0.22:
        parts.append(pick(r, HELPFUL))
    elif x < 0.38:
        c.persona = c.v.name() if r.random() < 0.85 else c.v.full_name()
        parts.append(fill(pick(r, PERSONA), {"n": c.persona}))
    if r.random() < 0.2:
        _style(c, parts)
    if r.random() < 0.08:
        _facts_in_system(c, parts)
    if parts:
        if len(parts) > 1 and r.random() < 0.3:
            r.shuffle(parts)
        c.system = pick(r, (" ", " ", "\n", "\n\n")).join(parts)
        c.size += len(c.system)


def _style(c, parts):
    r = c.r
    c.style = pick(r, ("caps", "oneword", "json", "prefix", "suffix", "lower", "caps", "oneword", "json"))
    arg = ""
    if c.style == "json":
        arg = pick(r, KEYS) if r.random() < 0.7 else c.v.made()
        if r.random() < 0.25:
            arg = ""
            c.style_arg = "answer"
            parts.append(expand(r, "[Answer|Always answer|Reply|Respond] [in|with|only in] JSON."))
            return
    elif c.style in ("prefix", "suffix"):
        arg = pick(r, ("Ahoy!", "Meow.", "Sir,", "Well,", "Over.", "Beep.", "Amen.", "Yes!", "OK.", "Hello!", "Bye.")) if r.random() < 0.5 else c.v.made_name() + pick(r, (".", "!", ",", ":"))
    c.style_arg = arg
    parts.append(expand(r, pick(r, STYLE[c.style])).replace("{k}", arg))


def _facts_in_system(c, parts):
    r = c.r
    for _ in range(1 + int(r.random() * 3)):
        k = facts.new_key(c)
        v = facts.draw(c, k)
        c.facts[k] = v
        noun = k.noun.replace("the colour of my", "the colour of the user's")
        subject = noun if noun.startswith("the ") else ("The user's " + noun if k.owner == "my" else "The " + noun)
        parts.append(f"{subject[0].upper() + subject[1:]} is {v}.")
    if r.random() < 0.3:
        parts.insert(int(r.random() * (len(parts) + 1)), filler(r, r.randrange(50, 1500)))


def _adds(given):
    """Is there a tool for sums among them?"""
    return any(t.family and t.family[0].startswith(("calc", "add ")) for t in given)


def conversation(r, budget_chars, test=False, thinking=None):
    """One conversation of about `budget_chars` characters."""
    c = Conv(r, test)
    x = r.random()
    with_tools = x < 0.17 and budget_chars < 9000
    if with_tools:
        tools.give_tools(c)
        if r.random() < 0.4:
            c.system = pick(r, HELPFUL)
    else:
        _system(c)
    recall = budget_chars > 3000 or r.random() < 0.35
    choose = PICK_ONEWORD if c.style == "oneword" else PICK_RECALL if recall else PICK
    long_bits = max(200, budget_chars // pick(r, (2, 3, 5, 8)))
    p_long = 0.3 if budget_chars > 3000 else 0.12 if budget_chars > 1200 else 0.02
    if recall and budget_chars > 2000 and not c.facts:
        facts.tell(c)
    if c.persona and r.random() < 0.45 and c.style != "oneword":
        offshoot.qa(c, offshoot.BY_ID["who"])
    for _ in range(200):
        if c.size >= budget_chars and c.msgs:
            break
        if with_tools:
            y = r.random()
            if y > 0.92 and not _adds(c.tools):
                tasks.math(c)
                continue
            if y < 0.62:
                tools.use(c)
                continue
            if y < 0.68:
                (tools.missing_tool if y < 0.665 else tools.list_tools)(c)
                continue
        fn = choose(r)
        if with_tools and (fn is talk.unknown or fn is tasks.math and _adds(c.tools)):
            fn = facts.tell
        if c.style in ("prefix", "suffix") and fn is facts.said_before:
            continue
        if r.random() < p_long and c.style != "oneword":
            facts.long_text(c, min(long_bits, max(80, budget_chars - c.size)))
            continue
        fn(c)
        c.once = None
    if recall and c.facts:
        for _ in range(1 + int(r.random() * 3)):
            facts.ask(c)
            c.once = None
    return c
