"""Telling, asking, changing and listing facts: the recall skill."""

import json

from .grammar import expand, fill, pick
from .words import HOBBIES, NOUNS, PETS, filler, sentence

# key, owner (my/the), value kind, special tell templates, special ask templates, special answers
_SIMPLE = """name:my:name|city:my:city|home town:my:city|favourite colour:my:colour|favorite color:my:colour
age:my:age|job:my:job|favourite food:my:food|favourite drink:my:drink|hobby:my:hobby|favourite animal:my:animal
favourite number:my:digits|lucky number:my:digits|favourite city:my:city|favourite word:my:word
secret word:the:word|secret word:my:word|secret code:the:code|secret number:the:digits|password:the:code
password:my:code|wifi password:the:code|code word:the:word|code word:our:word|number code:my:digits|PIN:my:digits
door code:the:digits|locker number:my:digits|room number:my:digits|order number:the:code|flight number:my:code
ticket number:my:code|phone number:my:digits|licence plate:my:code|project name:the:word|team name:our:word
project:my:word|team:my:word|boss:my:name|best friend:my:name|sister:my:name|brother:my:name|mother:my:name
father:my:name|daughter:my:name|son:my:name|neighbour:my:name|teacher:my:name|doctor:my:name|colleague:my:name
wife:my:name|husband:my:name|dog:my:name|cat:my:name|favourite book:my:phrase|favourite film:my:phrase
favourite song:my:phrase|favourite season:my:word|mother tongue:my:lang|car:my:colour|company:my:made_name
meeting time:the:time|meeting room:the:word|deadline:the:date|start date:the:date|budget:the:digits
magic word:the:word|key word:the:word|token:my:code|access code:the:code|code:the:code|code:my:code|number:my:number
user name:my:made|nickname:my:made_name|last name:my:name|country:my:city|street:my:made_name|school:my:made_name
host name:the:made|server name:the:made|port number:the:digits|version:the:code|capital:the:made_name|answer:the:any
favourite game:my:hobby|favourite sport:my:hobby|favourite fruit:my:food|favourite day:my:word|shoe size:my:age
hotel:my:made_name|seat number:my:code|desk number:my:digits|bike:my:colour|ship:the:made_name|treasure:the:word"""
_CALLED = {"boss", "best friend", "sister", "brother", "mother", "father", "daughter", "son", "neighbour",
           "teacher", "doctor", "colleague", "wife", "husband", "dog", "cat", "ship", "company"}
_HAVE_COLOUR = {"car", "bike"}


class Key:
    """One kind of fact. `mine` is how the user names it, `yours` how the assistant does."""

    __slots__ = ("key", "owner", "kind", "called", "noun", "mine", "yours", "json")

    def __init__(self, key, owner, kind):
        self.key, self.owner, self.kind = key, owner, kind
        noun = key
        if key in _CALLED:
            noun = key + "'s name"
        if key in _HAVE_COLOUR:
            noun = "the colour of my " + key
        self.called = key in _CALLED
        self.noun = noun
        if key in _HAVE_COLOUR:
            self.mine, self.yours = noun, "the colour of your " + key
        else:
            self.mine = f"{owner} {noun}"
            self.yours = {"my": "your", "our": "your", "the": "the"}[owner] + " " + noun
        self.json = key.replace(" ", "_").replace("favourite_", "favourite_").lower()


def _parse(spec):
    out = []
    for part in spec.replace("\n", "|").split("|"):
        key, owner, kind = part.split(":")
        out.append(Key(key, owner, kind if kind != "number" else "digits"))
    return out


KEYS = _parse(_SIMPLE)
CORE = [k for k in KEYS if k.owner == "my" and k.key in (
    "name", "city", "favourite colour", "age", "job", "favourite food", "hobby", "favourite animal", "secret word",
    "number code")] + [k for k in KEYS if k.key in ("secret word", "secret code", "code word", "password")]

TELL = {
    "name": ("[Hi|Hello|Hey][,|!|] [my name is {v}|I am {v}|I'm {v}].", "My name is {v}.", "I'm called {v}.",
             "[Please call|Call] me {v}.", "I am {v}[, nice to meet you|].", "The name is {v}.",
             "People call me {v}.", "My name's {v}."),
    "city": ("I live in {v}.", "I am from {v}.", "I'm [living|based] in {v}.", "My city is {v}.", "I come from {v}.",
             "My home is in {v}.", "I moved to {v} [last year|recently|a while ago]."),
    "age": ("I am {v} years old.", "I'm {v}.", "My age is {v}.", "I turned {v} [last week|in May|this year]."),
    "job": ("I work as a {v}.", "I am a {v}.", "My job is {v}.", "I'm a {v} by trade."),
    "hobby": ("I like {v}.", "My hobby is {v}.", "In my free time I [do|love|enjoy] {v}."),
    "favourite food": ("I love to eat {v}.", "My favourite food is {v}.", "I like {v} best of all food."),
    "favourite colour": ("My favourite colour is {v}.", "I like {v} best of all colours.", "The colour I love most is {v}.",
                         "My fav colour is {v}.", "My favourite color is {v}."),
    "birthday": ("My birthday is on {v}.", "I was born on {v}."),
    "car": ("I have a {v} car.", "My car is {v}."),
    "bike": ("I have a {v} bike.", "My bike is {v}."),
    "mother tongue": ("I speak {v} at home.", "My mother tongue is {v}."),
    "meeting time": ("The meeting is at {v}.", "The meeting time is {v}.", "We meet at {v}."),
    "deadline": ("The deadline is {v}.", "It is due on {v}."),
}
ASK = {
    "name": ("What is my name?", "What's my name?", "Who am I?", "Do you [know|remember] my name?", "Do you remember who I am?",
             "What am I called?", "Tell me my name.", "How am I called?", "Can you say my name?", "Say my name.", "And my name?",
             "What was my name again?", "Do you still know my name?", "Hey, what is my name[ again|]?"),
    "city": ("Where do I live?", "Where am I from?", "What city do I live in?", "Which city do I live in?", "What is my city?",
             "In which city do I live?", "Do you [know|remember] where I live?", "What town am I from?",
             "Can you tell me where I live?"),
    "age": ("How old am I?", "What is my age?", "Do you [know|remember] how old I am?", "What age am I?"),
    "job": ("What is my job?", "What do I do for a living?", "What do I work as?", "Do you remember my job?", "What's my profession?"),
    "hobby": ("What is my hobby?", "What do I like to do?", "What do I do in my free time?", "Do you remember my hobby?"),
    "favourite food": ("What is my favourite food?", "What do I like to eat?", "What food do I love?", "What's my favorite food?"),
    "favourite colour": ("What is my favourite colour?", "Which colour do I like best?", "What's my favorite color?",
                         "What colour do I like?", "Do you remember my favourite colour?", "What's my fav color?"),
    "birthday": ("When is my birthday?", "When was I born?", "What is my birthday?"),
    "car": ("What colour is my car?", "What is the colour of my car?"),
    "bike": ("What colour is my bike?", "What is the colour of my bike?"),
    "mother tongue": ("What is my mother tongue?", "Which language do I speak at home?"),
    "meeting time": ("When is the meeting?", "What time is the meeting?", "What is the meeting time?"),
    "deadline": ("When is the deadline?", "What is the deadline?", "When is it due?"),
}
SAY = {  # the assistant's sentence, second person
    "city": ("You live in {v}.", "You told me that you live in {v}."),
    "age": ("You are {v} years old.", "You told me that you are {v} years old."),
    "job": ("You work as a {v}.", "Your job is {v}."),
    "hobby": ("You like {v}.", "Your hobby is {v}."),
    "car": ("Your car is {v}.",), "bike": ("Your bike is {v}.",),
    "meeting time": ("The meeting is at {v}.",),
    "birthday": ("Your birthday is on {v}.",),
}
GENERIC_TELL = ("{m} is {v}.", "{m} is {v}.", "Remember[:| that] {m} is {v}.", "[Please remember|Please note|Note|Keep in mind] that {m} is {v}.",
                "By the way, {m} is {v}.", "[FYI|Just so you know]: {m} is {v}.", "{m}: {v}", "{m} = {v}",
                "I want you to remember {m}: {v}.", "For later: {m} is {v}.", "Let me tell you {m}: it is {v}.",
                "Don't forget: {m} is {v}.", "Save this: {m} is {v}.")
CALLED_TELL = ("My {k} is called {v}.", "My {k}'s name is {v}.", "The name of my {k} is {v}.", "I have a {k} called {v}.",
               "I have a {k} named {v}.", "My {k} is {v}.")
CALLED_ASK = ("What is my {k} called?", "What is the name of my {k}?", "What's my {k}'s name?", "What is my {k}'s name?",
              "Who is my {k}?", "How is my {k} called?", "Do you remember my {k}'s name?")
GENERIC_ASK = ("What is {m}?", "What's {m}?", "What is {m}?", "Do you [know|remember] {m}?", "Can you tell me {m}[ again|]?",
               "Tell me {m}[ again|], please.", "What was {m}[ again|]?", "What did I say {m} was?", "Remind me of {m}.",
               "[Could|Can] you remind me [of|what] {m} [is|was]?", "I forgot {m}. What is it?", "Do you still know {m}?", "{m}?",
               "And {m}?", "What did I tell you about {m}?", "Please repeat {m}.", "Now tell me {m}.",
               "Earlier I told you {m}. What is it?", "What is {m} again?")
ASIDE = ("I have [two|some|a few] questions.", "I am new here.", "Nice to meet you.", "I want to test you.", "Let's start.", "This is important.", "I hope you are well.", "Thanks for [helping|your help].", "I need [your |]help.",
         "I will ask you [later|about it].", "Just so you know.", "That is all for now.", "Can you help me?", "It is a nice day.", "I like talking to you.", "Let me see if you can remember it.")
ACK = ("[Noted|Got it|Okay|All right|Thank you|Thanks for telling me]: {s}", "[Noted|Okay|Got it|Thank you]. I will remember that {t}.",
       "I will remember that {t}.", "Okay, {t}.", "{s} [I will keep that in mind|Noted|I have noted it].")
NAME_ACK = ("Nice to meet you, {v}[!|.] [How can I help|What can I do for you]?", "Hello, {v}! [Nice to meet you|How can I help you]?",
            "Hi {v}! [Nice to meet you|What can I do for you]?", "Nice to meet you, {v}[!|.]", "Pleased to meet you, {v}.")
MISSING = ("You have not told me {y} yet.", "I do not know {y}: you have not told me.", "You have not told me {y}.",
           "I don't know {y}. You have not told me yet.")
MISSING_SPECIAL = {"city": "where you live", "age": "how old you are", "job": "what your job is", "birthday": "when your birthday is",
                   "meeting time": "when the meeting is", "deadline": "when the deadline is"}


RELATED = ("locker", "door", "wifi", "room", "order", "bank", "phone", "flight", "gate", "office", "bike", "house", "email", "laptop", "alarm", "garage", "safe", "mailbox", "gym", "desk", "server", "project", "client")


def random_key(r):
    """A key nobody listed: "my red lamp code", "the number of the harbour"."""
    noun, x = pick(r, NOUNS), r.random()
    if r.random() < 0.35:  # near relatives, told apart by one word: locker code, locker number, door code
        what, kind = pick(r, (("code", "code"), ("number", "digits"), ("password", "code"), ("name", "made"), ("key", "code"), ("PIN", "digits"), ("colour", "colour")))
        return Key(f"{pick(r, RELATED)} {what}", pick(r, ("my", "my", "the")), kind)
    kind = pick(r, ("code", "word", "digits", "name", "colour", "made", "phrase"))
    if x < 0.3:
        return Key(f"{noun} {pick(r, ('code', 'number', 'word', 'name', 'key', 'id', 'colour', 'size'))}", pick(r, ("my", "the")), kind)
    if x < 0.5:
        k = Key(f"{pick(r, ('code', 'name', 'number', 'colour', 'price', 'owner', 'key', 'size'))} of the {noun}", "the", kind)
        return k
    if x < 0.75:
        return Key(f"{pick(r, ('second', 'first', 'new', 'old', 'spare', 'other', 'main', 'red', 'blue'))} "
                   f"{pick(r, ('code', 'password', 'secret', 'number', 'word', 'name', 'key'))}", pick(r, ("my", "the")), kind)
    return Key(noun, pick(r, ("my", "the")), kind)


def any_key(c):
    x = c.r.random()
    return pick(c.r, CORE) if x < 0.4 else pick(c.r, KEYS) if x < 0.75 else random_key(c.r)


def new_key(c):
    taken = {k.noun for k in c.facts}
    for _ in range(30):
        k = any_key(c)
        if k.noun not in taken:
            return k
    return random_key(c.r)


def say(c, k, v, r=None):
    """The assistant's statement of a fact."""
    r = r or c.r
    special = SAY.get(k.key)
    if special and r.random() < 0.8:
        t = expand(r, pick(r, special))
    else:
        t = expand(r, pick(r, ("{Y} is {v}.", "{Y} is {v}.", "You told me that {y} is {v}.", "You said {y} is {v}.")))
    return fill(t, {"Y": k.yours[0].upper() + k.yours[1:], "y": k.yours, "v": v})


def plain(k, v):
    t = SAY[k.key][0] if k.key in SAY else "{Y} is {v}."
    return fill(t, {"Y": k.yours[0].upper() + k.yours[1:], "v": v})


def tell_text(c, k, v):
    r = c.r
    if k.key in TELL and r.random() < 0.85:
        t = pick(r, TELL[k.key])
    elif k.called and r.random() < 0.7:
        t = pick(r, CALLED_TELL)
    else:
        t = pick(r, GENERIC_TELL)
    t = expand(r, t)
    if t.startswith("{m}"):
        t = k.mine[0].upper() + k.mine[1:] + t[3:]
    return t.replace("{m}", k.mine).replace("{k}", k.key), v


def lower_first(text):
    return text if text.startswith("I ") else text[0].lower() + text[1:]


def draw(c, k):
    r = c.r
    v = getattr(c.v, k.kind)()
    if k.kind in ("name", "made_name") and r.random() < 0.1:
        v = c.v.full_name()
    if k.kind in ("name", "city", "made_name", "lang") and r.random() < 0.12 and not c.test:
        v = v.lower()
    if v in c.facts.values():
        v = getattr(c.v, k.kind)()
    return v


def _remember(c, k, v):
    c.facts.pop(k, None)
    c.facts[k] = v


def tell(c):
    """One to four facts in one message, or a fact hidden in a longer text."""
    r = c.r
    n = 1 if r.random() < 0.6 else 2 + int(r.random() * 3)
    said, keys, slots = [], [], {}
    for i in range(n):
        k = new_key(c)
        if any(k.noun == q.noun for q in keys):
            continue
        v = draw(c, k)
        t, v = tell_text(c, k, v)
        keys.append(k)
        _remember(c, k, v)
        said.append(t.replace("{v}", "{v%d}" % i))
        slots["v%d" % i] = v
    text = " ".join(said)
    if len(said) == 2 and r.random() < 0.5:
        text = said[0].rstrip(".") + pick(r, (" and ", ", and ", ", ")) + lower_first(said[1])
    if len(text) > 3 and not text.endswith((".", "!", "?")) and r.random() < 0.5:
        text += "."
    hidden = r.random()
    if r.random() < 0.12:
        extra = expand(r, pick(r, ASIDE))
        text = text + " " + extra if r.random() < 0.7 else extra + " " + text
    if hidden < 0.12:
        before, after = filler(r, r.randrange(20, 700)), filler(r, r.randrange(20, 700))
        slots["before"], slots["after"] = before, after
        text = "{before} " + text + " {after}"
    elif r.random() < 0.06:
        text += " " + expand(r, "[Remember it|Please remember that|Keep it for later|Don't forget it|I will ask you later].")
    if r.random() < 0.25:
        text = expand(r, "[Hi[!|.|,]|Hello[!|.|,]|Hey,|Okay.|So,|Well,|Please note:]") + " " + text
    c.user(text, **slots)
    _ack(c, [(k, c.facts[k]) for k in keys])


def _ack(c, pairs):
    r = c.r
    if len(pairs) == 1 and pairs[0][0].key == "name" and r.random() < 0.8:
        c.bot(pick(r, NAME_ACK), v=pairs[0][1], short=pairs[0][1], think="The user tells me their name: {v}.", check=None)
        return
    if r.random() < 0.25 or (len(pairs) > 2 and r.random() < 0.4):
        c.bot("[Noted|Okay, noted|Got it|Okay, I will remember that|Thank you, I will remember that|All right].", short="Noted",
              think="I should remember: {w}.", w=", ".join(f"{k.key} {v}" for k, v in pairs))
        return
    s = " ".join(plain(k, v) for k, v in pairs)
    joined = [lower_first(plain(k, v)[:-1]) for k, v in pairs]
    t = joined[0] if len(joined) == 1 else ", ".join(joined[:-1]) + " and " + joined[-1]
    c.bot(pick(r, ACK), s=s, t=t, short="Noted", think="I should remember: {w}.", w=", ".join(f"{k.key} {v}" for k, v in pairs))


def _named(key):
    return next(k for k in KEYS if k.key == key and k.owner == "my")


INTRO = ("I'm {name}", "I am {name}", "my name is {name}", "My name is {name}", "[Hi|Hello|Hey], I'm {name}", "[Hi|Hello|Hey][!|,|.] I am {name}", "[Hi|Hello|Hey][!|,|.] My name is {name}", "This is {name}", "{name} here")
INTRO_PARTS = {
    "age": (", {age} years old", ", {age}", " and I am {age} years old", ", I'm {age}", " and I'm {age}", ", aged {age}", ". I am {age} years old"),
    "city": (" from {city}", ", from {city}", ", I live in {city}", " and I live in {city}", ", living in {city}", ". I live in {city}", " and I am from {city}", ", based in {city}"),
    "job": (", a {job}", ", and I work as a {job}", " and I am a {job}", ". I work as a {job}", ", I work as a {job}", ". I'm a {job}", " and I'm a {job}"),
    "hobby": (" and I like {hobby}", ". I like {hobby}", ", and my hobby is {hobby}"),
    "favourite colour": (" and my favourite colour is {favourite colour}", ". My favourite colour is {favourite colour}"),
    "favourite food": (" and I love {favourite food}", ". My favourite food is {favourite food}"),
}


def intro(c):
    """Somebody introduces themselves in one breath: "I'm Ada, 34, from Oslo"."""
    r = c.r
    parts = r.sample(tuple(INTRO_PARTS), 1 + int(r.random() * 3))
    keys = [_named("name")] + [_named(p) for p in parts]
    if any(k.noun == q.noun for k in keys for q in c.facts):
        return tell(c)
    slots, text = {}, pick(r, INTRO) if r.random() < 0.85 else "I am {name}"
    for k, part in zip(keys, ["name"] + parts):
        v = draw(c, k)
        slots[part] = v
        _remember(c, k, v)
        if part != "name":
            text += pick(r, INTRO_PARTS[part])
    c.user(text + pick(r, (".", ".", "", "!")), **slots)
    _ack(c, [(k, c.facts[k]) for k in keys])


def remember(c):
    """"Remember the number 48213": the kind of thing is the only name it has."""
    r = c.r
    noun, kind = pick(r, (("number", "digits"), ("number", "digits"), ("word", "word"), ("word", "made"), ("code", "code"), ("name", "name"), ("city", "city"), ("colour", "colour"), ("date", "date"), ("phrase", "phrase"), ("password", "code")))
    k = Key(noun, "the", kind)
    if any(q.noun == noun for q in c.facts):
        return ask(c)
    v = draw(c, k)
    _remember(c, k, v)
    bare = noun in ("number", "word", "city") and r.random() < 0.3
    c.user("[Remember|Note|Please remember|Keep in mind][:|] {v}[.|]" if bare else pick(r, ("[Please remember|Remember|Memorise|Keep in mind|Note|Don't forget|Can you remember] [the|this] {n}[:|] {v}", "[Please remember|Remember|Memorise|Keep|Note] the {n} {v}[.|]",
                    "The {n} to remember is {v}.", "I give you a {n}: {v}", "Remember this {n}: {v}")), n=noun, v=v)
    c.bot("[Okay|Noted|Got it|All right][, I will remember|. I will remember|:] the {n} {v}.", n=noun, v=v, short="Noted", think="I should remember the {n} {v}.")
    for _ in range(1 + int(r.random() * 2)):
        if r.random() < 0.5:
            distract_hook(c)
        c.user("[What|Which] {n} [did I tell you to remember|should you remember|did I give you|did I ask you to remember|did I tell you|do you remember]?" if r.random() < 0.75 else
               "[What did I tell you to remember?|What should you remember?|What was the {n}?|What is the {n}?|Tell me the {n}.]", n=noun)
        c.bot("[The {n} is {v}.|You told me to remember the {n} {v}.]", n=noun, v=v, short=v, think="The {n} to remember: {v}.", check=("recall", v))
        if r.random() < 0.6:
            break


def tell_and_ask(c):
    """A fact and a question in the same message."""
    r = c.r
    k = new_key(c)
    v = draw(c, k)
    t, v = tell_text(c, k, v)
    _remember(c, k, v)
    asked = pick(r, list(c.facts)) if r.random() < 0.4 else k
    c.user(t.rstrip(".") + ". " + ask_text(c, asked), v=v)
    c.bot(say(c, asked, c.facts[asked]), _fill=False, short=c.facts[asked], think=f"The answer is in the conversation: {c.facts[asked]}.", check=("recall", c.facts[asked]))


def tell_pet(c):
    """A pet has a kind and a name: two facts in one sentence."""
    r = c.r
    animal, v = pick(r, PETS), c.v.name()
    k = Key(animal, "my", "name")
    k.called, k.noun = True, animal + "'s name"
    k.mine, k.yours, k.json = f"my {animal}'s name", f"your {animal}'s name", "pet_name"
    if any(q.noun == k.noun or q.json == "pet_name" for q in c.facts):
        return tell(c)
    _remember(c, k, v)
    c.user(pick(r, ("I have a {a} called {v}.", "I have a {a}. [Its|Her|His] name is {v}.", "My {a} is called {v}.",
                    "My {a}'s name is {v}.", "We have a {a} named {v}.", "My pet is a {a} called {v}.")), a=animal, v=v)
    c.bot("[Noted|Lovely|Nice|How nice]: [your {a} is called {v}|you have a {a} called {v}].", a=animal, v=v, short="Noted",
          think="The user has a {a} called {v}.")
    if r.random() < 0.6:
        if r.random() < 0.4:
            distract_hook(c)
        if r.random() < 0.6:
            c.user("[What is my pet called?|What is the name of my pet?|Do you remember my pet's name?|What's my pet's name?|How is my pet called?]")
            c.bot("Your {a} is called {v}.", a=animal, v=v, short=v, think="Their pet is a {a} called {v}.", check=("recall", v))
        else:
            c.user("[What pet do I have?|Which pet do I have?|Do I have a pet?|What kind of pet do I have?|What animal do I have?]")
            c.bot("You have a {a} called {v}.", a=animal, v=v, short=animal, think="Their pet is a {a} called {v}.", check=("recall", animal))


def no_pet(c):
    """Asked about a pet that was never mentioned."""
    if any(k.json == "pet_name" for k in c.facts):
        return ask(c)
    c.user("[What is my pet called?|Do I have a pet?|What pet do I have?|What is the name of my pet?]")
    c.bot("You have not told me about a pet.", short="Unknown", think="There is nothing about a pet.", check=("missing", "not told"))


def ask_text(c, k):
    r = c.r
    if k.key in ASK and r.random() < 0.8:
        return pick(r, ASK[k.key])
    if k.called and r.random() < 0.75:
        return pick(r, CALLED_ASK).replace("{k}", k.key)
    t = expand(r, pick(r, GENERIC_ASK))
    if r.random() < 0.1 and not k.called and k.key not in _HAVE_COLOUR:  # "my secret word" for "the secret word"
        swapped = ("my " if k.mine.startswith("the ") else "the ") + k.noun
        return (swapped[0].upper() + swapped[1:] + t[3:]) if t.startswith("{m}") else t.replace("{m}", swapped)
    if t.startswith("{m}"):
        return k.mine[0].upper() + k.mine[1:] + t[3:]
    return t.replace("{m}", k.mine)


def ask(c):
    """Ask for a told fact; the answer must be copied from the context."""
    if not c.facts:
        return ask_missing(c) if c.r.random() < 0.5 else tell(c)
    r = c.r
    keys = list(c.facts)
    k = pick(r, keys[:3]) if r.random() < 0.35 else pick(r, keys)
    v = c.facts[k]
    c.maybe_once(0.08)
    c.user(ask_text(c, k))
    c.bot(say(c, k, v), _fill=False, short=v, think=pick(r, (
        f"The user asks for {k.key}. They told me: {v}.", f"I look back for {k.key}: it is {v}.")), check=("recall", v))


def ask_several(c):
    if len(c.facts) < 2:
        return tell(c)
    r = c.r
    keys = list(c.facts)
    a = pick(r, keys)
    b = pick(r, [k for k in keys if k is not a])
    qa, qb = ask_text(c, a), ask_text(c, b)
    if r.random() < 0.5:
        text = qa + " " + qb
    else:
        text = expand(r, f"[What are {a.mine} and {b.mine}?|Tell me {a.mine} and {b.mine}.|Do you remember {a.mine} and {b.mine}?]")
    c.user(text)
    c.bot(plain(a, c.facts[a]) + " " + plain(b, c.facts[b]), _fill=False, check=("recall2", [c.facts[a], c.facts[b]]),
          think=f"Two questions. {a.key}: {c.facts[a]}; {b.key}: {c.facts[b]}.")


def ask_missing(c):
    r = c.r
    k = new_key(c)
    c.maybe_once(0.03)
    if c.once == "oneword":
        c.once = None
    c.user(ask_text(c, k))
    y = MISSING_SPECIAL.get(k.key, k.yours)
    c.bot(pick(r, MISSING), y=y, short="Unknown", think="The user asks for {y}, but [they have not told me|I find nothing about it].".replace("{y}", k.key),
          check=("missing", "not told"))


def ask_all(c):
    r = c.r
    if len(c.facts) > 7:
        return ask_several(c)
    c.user("[What do you know about me?|What have I told you so far?|What do you remember?|List everything you know about me.|"
           "What did I tell you?|Tell me everything you remember about me.|Summarise what I told you.|What do you know about me so far?]")
    if not c.facts:
        c.bot("You have not told me anything about yourself yet.", short="Nothing", think="The user has told me no facts.")
        return
    c.bot(" ".join(plain(k, v) for k, v in c.facts.items()), _fill=False, check=("all", list(c.facts.values())),
          think=f"The user told me {len(c.facts)} thing{'s' * (len(c.facts) > 1)}.")


def update(c):
    if not c.facts:
        return tell(c)
    r = c.r
    k = pick(r, list(c.facts))
    old, v = c.facts[k], draw(c, k)
    if v == old:
        return ask(c)
    m = k.mine
    t = pick(r, (f"[Actually|Correction|Sorry|Wait|Oh][,|:] {m} is {{v}}.", f"[Actually|Sorry], {m} is [now |]{{v}}, not {{o}}.",
                 f"I was wrong: {m} is {{v}}.", f"[Please change|Change] {m} to {{v}}.", f"{m[0].upper() + m[1:]} is not {{o}} but {{v}}.",
                 f"[Update|Correction]: {m} is {{v}} now.", f"{m[0].upper() + m[1:]} has changed to {{v}}.",
                 f"Forget what I said: {m} is {{v}}.", f"{m[0].upper() + m[1:]} is now {{v}}."))
    if k.key in TELL and r.random() < 0.3:
        t = "[Actually|Sorry|Actually|No|Wait][,|] " + lower_first(expand(r, pick(r, TELL[k.key][1:])))
    if k.key == "age" and r.random() < 0.4:
        t = "[Actually I'm {v}|I'm {v} now|I am {v} now|No, I'm {v}|Sorry, I'm {v}, not {o}|I had a birthday, I am {v} now][.|]"
    elif k.key == "city" and r.random() < 0.4:
        t = "[I moved to {v}|I live in {v} now|I have moved, I live in {v} now|Actually I live in {v}|I moved, now I live in {v}][.|]"
    elif k is list(c.facts)[-1] and r.random() < 0.25:
        t = "[No, it is|Sorry, it is|It is now|Actually it is|I meant|Wait, it is] {v}[.|]"
    elif r.random() < 0.2:
        t = "[I moved|It changed|Something changed|I have news|We changed it|I made a mistake|Oh no|Wait][,|.|:] " + f"{m} is [now |]{{v}}[ now|]."
    c.user(t, v=v, o=old)
    _remember(c, k, v)
    c.old[k] = old
    s = plain(k, v)
    c.bot(pick(r, ("[Okay|Noted|Got it|Thanks for the correction|I have changed it]: {s}", "Okay, {t} now.", "Noted: {t}[ now|], not {o}.")),
          s=s, t=lower_first(s[:-1]), o=old, short="Noted", think="The user changes {y} from {o} to {v}.".replace("{y}", k.key).replace("{v}", v))


def yes_no(c):
    if not c.facts:
        return tell(c)
    r = c.r
    k = pick(r, list(c.facts))
    v = c.facts[k]
    right = r.random() < 0.5
    guess = v if right else draw(c, k)
    right = guess == v
    c.user(pick(r, (f"Is {k.mine} {{g}}?", f"{k.mine[0].upper() + k.mine[1:]} is {{g}}, right?", f"Did I say {k.mine} is {{g}}?")), g=guess)
    s = lower_first(plain(k, v))
    c.bot(("Yes, " if right else "No, ") + s, _fill=False, short="Yes" if right else "No", check=("recall", "Yes" if right else v),
          think=f"They told me {k.key}: {v}. The user says {guess}: {'the same' if right else 'different'}.")


def as_json(c):
    """Several told facts as one JSON object; null for what was not told."""
    r = c.r
    if not c.facts:
        return tell(c)
    keys = list(c.facts)
    n = min(len(keys), 1 + int(r.random() * 3))
    chosen = r.sample(keys, n)
    if r.random() < 0.2:
        chosen.append(new_key(c))
    r.shuffle(chosen)
    names = [(k.key if r.random() < 0.5 else k.json) if k.json != "pet_name" else pick(r, ("pet", "pet_name", "pet", k.key)) for k in chosen]
    if len(set(names)) < len(names):
        return ask(c)
    obj = {}
    for name, k in zip(names, chosen):
        v = c.facts.get(k)
        obj[name] = int(v) if v is not None and v.isdigit() and k.kind in ("age",) else v
    listed = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
    mine = ", ".join(k.mine for k in chosen[:-1]) + " and " + chosen[-1].mine if len(names) > 1 else chosen[0].mine
    if all(n == k.key for n, k in zip(names, chosen)) and r.random() < 0.5:
        c.user(f"[Give|Tell|Send|Show] me {mine} [as|in] JSON.")
    else:
        c.user(f"[[Answer|Reply] with|Give me|Write|Make|Return|Show me|Print] [a JSON object|JSON|one JSON object] "
               f"[about me |]with [the keys |the fields |]{listed}.")
    c.bot(json.dumps(obj, ensure_ascii=False), _fill=False, raw=True, check=("json", obj),
          think=f"I write JSON with {listed}.")


def people(c):
    """Facts about several people or places, then a question about one of them."""
    r = c.r
    kinds = (("city", "lives in", "Where does {n} live?", "{n} lives in {v}.", "where {n} lives"),
             ("food", "likes", "What does {n} like?", "{n} likes {v}.", "what {n} likes"),
             ("animal", "has a", "What pet does {n} have?", "{n} has a {v}.", "which pet {n} has"),
             ("job", "is a", "What does {n} do?", "{n} is a {v}.", "what {n} does"),
             ("code", "has the code", "What is the code of {n}?", "The code of {n} is {v}.", "the code of {n}"),
             ("colour", "wears", "What does {n} wear?", "{n} wears {v}.", "what {n} wears"))
    kind, verb, q, a, miss = pick(r, kinds)
    n = 2 + int(r.random() * (5 if r.random() < 0.7 else 14))
    table = {}
    for _ in range(n):
        table.setdefault(c.v.name(), getattr(c.v, kind)())
    sep = pick(r, (" ", "\n", "; "))
    text = sep.join(f"{k} {verb} {v}" + ("." if sep != "; " else "") for k, v in table.items())
    c.user("{t}", _noise=False, t=text)
    c.bot("[Noted|Got it|Okay, I will remember that|Okay, noted|Thank you, noted].", short="Noted", think="The user tells me about {n} people.", n=len(table))
    if r.random() < 0.4:
        pick(r, (ask, distract_hook))(c)
    for _ in range(1 + int(r.random() * 3)):
        if r.random() < 0.8:
            who = pick(r, list(table))
            c.maybe_once(0.05)
            asked = who.lower() if r.random() < 0.25 and not c.test else who
            c.user(pick(r, (q, q, "[And|Tell me][,|:|] " + lower_first(q))), n=asked)
            c.bot(a, n=who, v=table[who], short=table[who], think="{n}: {v}.", check=("recall", table[who]))
        else:
            who = c.v.name()
            if who in table:
                continue
            c.user(q, n=who)
            c.bot("You have not told me {m}.", m=miss.replace("{n}", who), short="Unknown", think="There is nothing about {n}.".replace("{n}", who),
                  check=("missing", "not told"))


def distract_hook(c):
    long_text(c, 600)


def long_text(c, limit):
    """The user pastes a text; sometimes a needle is in it, sometimes the question follows at once."""
    r = c.r
    n = r.randrange(40, max(60, limit))
    x = r.random()
    text = filler(r, n)
    if x < 0.45:
        c.user(pick(r, ("Here is a text: {t}", "{t}", "Please read this: {t}", "Read this[ text|]:\n{t}", "Some notes:\n\n{t}",
                        "{t}\n\n[Please just read it|Just say ok|Have you read it?|That was the text.]", "Let me paste something.\n\n{t}")), t=text, _noise=False)
        c.bot("[Thank you, I have read it|I have read it|Okay, I have read the text|Okay|Noted|I have read the text. What would you like to know].",
              short="Okay", think="The user sent a long text. [I have read it|There is no question].")
    elif x < 0.75 and c.facts:
        k = pick(r, list(c.facts))
        v = c.facts[k]
        q = ask_text(c, k)
        c.user(pick(r, ("{t}\n\n{q}", "{q}\n\n{t}", "Read this: {t}\n\nNow: {q}", "{t} {q}", "Ignore this text: {t}\n\n{q}")), t=text, q=q, _noise=False)
        c.bot(say(c, k, v), _fill=False, short=v, think=f"The text does not matter. The user asks for {k.key}: {v}.", check=("recall", v))
    else:
        k = new_key(c)
        v = draw(c, k)
        m = k.mine[0].upper() + k.mine[1:]
        cut = text.find(" ", int(r.random() * len(text)))
        cut = cut if cut > 0 else len(text)
        needle = expand(r, f"{m} is {v}.")
        hay = text[:cut] + " " + needle + text[cut:]
        if r.random() < 0.5:
            _remember(c, k, v)
            q = ask_text(c, k)
            c.user("{t}\n\n{q}", t=hay, q=q, _noise=False)
            c.bot(say(c, k, v), _fill=False, short=v, think=f"I look in the text for {k.key}: {v}.", check=("recall", v))
        else:
            _remember(c, k, v)
            c.user("{t}", t=hay, _noise=False)
            c.bot("[Thank you, I have read it|I have read it|Okay, noted|Noted].", short="Okay", think=f"In the text: {k.key} is {v}.")


def said_before(c):
    """Quote the user's last message or the first one."""
    r = c.r
    users = [m["content"] for m in c.msgs if m["role"] == "user"]
    if not users or len(users[-1]) > 120 or len(users[0]) > 120:
        return ask(c)
    if r.random() < 0.5:
        c.user("[What did I just say?|What was my last message?|Repeat my last message.|What did I say just now?]")
        quoted = users[-1]
    else:
        c.user("[What was my first message?|What did I say first?|How did I start this conversation?]")
        quoted = users[0]
    c.bot("You [said|wrote]: {q}", q=quoted, raw=c.style in ("oneword",), think="I look for the message: {q}", check=("contains", quoted))
