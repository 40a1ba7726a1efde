"""Tool calls: schemas with random names and fields, so that the schema must be read, and their use."""

import json

from .grammar import expand, fill, noise, pick
from .words import CITIES, JOBS, LANGS, NOUNS

# family: names | description | params [(names, type, value kind, description)] | requests | result keys/kinds | answers
FAMILIES = (
    ("get_weather weather weather_now current_weather fetch_weather getWeather", ("Get the weather in a city.", "Returns the current weather for a place.", "Weather for a city"),
     [("city location place town", "string", "city", "The city")], ("[What is|What's|How is] the weather [like |]in {0}[ today| now|]?", "[Is it|Will it be] [warm|cold|raining|sunny] in {0}?", "weather in {0}", "Tell me the weather in {0}.", "Do I need [an umbrella|a coat] in {0}?", "how is the weather in {0} today"),
     (("temperature temp temp_c degrees", "temp"), ("condition sky weather", "sky")), ("It is {a} degrees and {b} in {0}.", "In {0} it is {b} with {a} degrees.")),
    ("calculator calculate compute calc math evaluate", ("Evaluate an arithmetic expression.", "Computes a math expression.", "A calculator"),
     [("expression expr formula input", "string", "expr", "The expression")], ("[What is|Calculate|Compute|How much is|What's] {0}?", "{0}", "Please calculate {0}.", "[Use the calculator|Work this out]: {0}"),
     (("result value answer", "num"),), ("{0} = {a}", "The result is {a}.", "{0} is {a}.")),
    ("get_time time current_time clock get_current_time", ("Get the current time in a time zone.", "Current time for a zone or city."),
     [("zone timezone city place", "string", "city", "The time zone or city")], ("What time is it in {0}?", "What's the time in {0}[ now|]?", "Tell me the time in {0}.", "time in {0}", "How late is it in {0}?"),
     (("time now clock", "time"),), ("It is {a} in {0}.", "The time in {0} is {a}.")),
    ("search web_search search_web lookup find_pages", ("Search the web.", "Search for pages about a query.", "Finds information on the web"),
     [("query q text search_query", "string", "query", "What to search for")], ("Search for {0}.", "[Search the web for|Look up|Google|Find] {0}[.|, please.]", "Can you search for {0}?", "Find pages about {0}.", "[Please |]search {0}"),
     (("title top result first", "phrase"),), ("I found: {a}.", "The first result is: {a}.")),
    ("send_email send_mail email mail", ("Send an email.", "Sends a mail to somebody."),
     [("to recipient address", "string", "name", "Who gets it"), ("text body message content", "string", "message", "The text")], ("Send an email to {0}: {1}", "[Mail|Email] {0} this: {1}", "Write an email to {0} that says {1}"),
     (("status state", "ok"),), ("The email to {0} is sent.", "I have sent your email to {0}.")),
    ("translate translate_text translator", ("Translate a text into a language.", "Translates text."),
     [("text input sentence", "string", "message", "The text"), ("language lang target to", "string", "lang", "Target language")], ("Translate {0} [into|to] {1}.", "How do you say {0} in {1}?", "[Say|Write] {0} in {1}."),
     (("translation text result", "phrase"),), ("In {1} that is: {a}.", "{a}")),
    ("set_timer timer start_timer", ("Start a timer.", "Sets a timer for some minutes."),
     [("minutes duration mins n", "integer", "small", "Minutes")], ("[Set|Start] a timer for {0} minutes.", "[Set a|A] {0} minute timer[, please|].", "Wake me in {0} minutes."),
     (("status state", "ok"),), ("The timer is set for {0} minutes.", "Your timer runs: {0} minutes.")),
    ("get_price price_lookup price get_stock_price quote", ("Get the price of a product.", "Looks up what an item costs."),
     [("product item name symbol", "string", "item", "The product")], ("[What does|How much does] {0} cost?", "What is the price of {0}?", "How much is {0}?", "price of {0}", "Look up the price of {0}."),
     (("price cost amount", "num"),), ("{0} costs {a}.", "The price of {0} is {a}.")),
    ("read_file open_file cat_file load_file", ("Read a file.", "Returns the content of a file."),
     [("path file filename name", "string", "file", "Path of the file")], ("[Read|Open|Show me|Show] [the file |]{0}[.|]", "What is in {0}?", "Print the content of {0}."),
     (("content text data", "phrase"),), ("{0} contains: {a}", "The file says: {a}")),
    ("book_table reserve_table reserve", ("Book a table in a restaurant.", "Reserves a table."),
     [("place restaurant name", "string", "made_name", "The restaurant"), ("people guests persons n", "integer", "small", "How many people")], ("[Book|Reserve] a table for {1} at {0}.", "[Book|I want] a table at {0} for {1} people.", "We are {1}, please book a table at {0}."),
     (("status confirmation", "code"),), ("Your table at {0} for {1} is booked. The code is {a}.",)),
    ("get_user find_user lookup_user user_info", ("Look up a user by name.", "Find a user."),
     [("name user username user_name", "string", "name", "Name of the user")], ("[Look up|Find|Who is] the user {0}[.|]", "Find {0} in the user list.", "Get the data of the user {0}."),
     (("id user_id number", "num"), ("city town", "city")), ("{0} has the number {a} and lives in {b}.",)),
    ("turn_on_light light switch_light set_light", ("Switch the light in a room.", "Turns a lamp on or off."),
     [("room place where", "string", "room", "The room"), ("on state switch_on", "boolean", "onoff", "true for on, false for off")], ("[Turn|Switch] {1} the light in the {0}.", "Light {1} in the {0}, please."),
     (("status state", "ok"),), ("The light in the {0} is {1}.",)),
    ("play_song play play_music music", ("Play a song.", "Plays music."),
     [("title song track", "string", "phrase", "The song")], ("Play {0}[.|, please.]", "[Play the song|Put on] {0}.", "I want to hear {0}."), (("status state", "ok"),), ("Now playing {0}.",)),
    ("add_event create_event calendar_add add_meeting", ("Add an event to the calendar.", "Creates a calendar entry."),
     [("title name event", "string", "phrase", "What"), ("date day when", "string", "date", "The day")], ("[Add|Put] {0} [on|to the calendar on] {1}.", "Make a calendar entry for {1}: {0}", "Create the event {0} on {1}."), (("id event_id", "num"),), ("{0} is in your calendar on {1}.",)),
    ("add add_numbers sum plus", ("Add two numbers.", "Returns the sum of two numbers."),
     [("a x first left", "integer", "small", "First number"), ("b y second right", "integer", "small", "Second number")], ("[What is|Compute|How much is] {0} + {1}?", "Add {0} and {1}.", "[What is|Calculate] {0} plus {1}?"), (("sum result value", "num"),), ("{0} + {1} = {a}",)),
)
DO = (("open", "opened"), ("close", "closed"), ("start", "started"), ("stop", "stopped"), ("lock", "locked"), ("clean", "cleaned"), ("check", "checked"), ("move", "moved"), ("delete", "deleted"), ("create", "created"), ("count", "counted"), ("paint", "painted"),
      ("order", "ordered"), ("find", "found"), ("print", "printed"), ("load", "loaded"), ("save", "saved"), ("update", "updated"), ("book", "booked"), ("build", "built"), ("measure", "measured"), ("restart", "restarted"), ("rename", "renamed"), ("copy", "copied"))
LOOK = (("look up", "lookup"), ("find", "find"), ("get", "get"), ("show", "show"), ("fetch", "fetch"), ("check", "check"), ("get the details of", "details"), ("tell me about", "info"), ("search for", "search"))
BY = (("serial", "code"), ("id", "code"), ("number", "digits"), ("name", "made_name"), ("code", "code"), ("key", "made"), ("title", "phrase"), ("serial_number", "digits"), ("owner", "name"))
THINGS = ("widget", "part", "device", "account", "book", "movie", "recipe", "flight", "hotel", "contact", "product", "article", "document", "record", "gadget", "item", "module", "sensor", "printer", "employee", "student", "patient", "member", "client", "vehicle", "song", "game", "planet", "city", "country")
PARAM = (("name", "made"), ("id", "digits"), ("code", "code"), ("city", "city"), ("colour", "colour"), ("number", "int"), ("size", "int"), ("label", "word"), ("owner", "name"), ("date", "date"), ("count", "int"), ("level", "int"), ("mode", "word"), ("key", "code"), ("place", "city"), ("text", "phrase"), ("user", "name"), ("x", "int"), ("value", "digits"))
MSG = ("I will be late", "the meeting is over", "see you tomorrow", "hello", "thank you", "good morning", "please call me", "the report is ready", "where are you", "I am at home", "good night", "happy birthday")


def _value(c, kind):
    r = c.r
    if kind == "expr":
        n = r.randrange(2, 4)
        sep = pick(r, ("", " "))
        return (sep + pick(r, "+-*/") + sep).join(str(r.randrange(1, pick(r, (10, 100, 1000, 10000)))) for _ in range(n)) if r.random() < 0.6 else sep.join((str(r.randrange(1, 999)), pick(r, "+-*/"), str(r.randrange(1, 999))))
    if kind in ("small", "int"):
        return r.randrange(1, 100 if kind == "small" else 1000)
    if kind == "query":
        return pick(r, (c.v.phrase, c.v.word, c.v.name, lambda: pick(r, ("best ", "cheap ", "history of ", "news about ", "how to find ")) + c.v.word(), lambda: c.v.word() + " in " + c.v.city()))()
    if kind == "message":
        return pick(r, MSG) if r.random() < 0.4 else c.v.phrase()
    if kind == "item":
        return pick(r, (c.v.word, lambda: "a " + c.v.word(), c.v.made_name, lambda: c.v.word()))().removeprefix("a ")
    if kind == "file":
        return pick(r, ("", "", "docs/", "src/", "/tmp/", "data/")) + c.v.word().replace(" ", "_") + pick(r, (".txt", ".md", ".json", ".rs", ".py", ".csv", ".log"))
    if kind == "room":
        return pick(r, ("kitchen", "bedroom", "hall", "office", "bathroom", "garden", "cellar", "living room")) if r.random() < 0.7 else c.v.word()
    if kind == "onoff":
        return r.random() < 0.5
    if kind == "temp":
        return r.randrange(-10, 38)
    if kind == "sky":
        return pick(r, ("sunny", "cloudy", "rainy", "windy", "foggy", "clear", "stormy", "snowy", "dry"))
    if kind == "num":
        return pick(r, (r.randrange(1, 10000), r.randrange(1, 100), round(r.random() * 100, 2)))
    if kind == "ok":
        return pick(r, ("ok", "done", "success", True))
    return getattr(c.v, kind)()


class Tool:
    """A schema as it is shown, and how a request for it is written and answered."""

    def __init__(self, c, family=None):
        r = c.r
        self.family = family
        if family is None and r.random() < 0.35:
            self._lookup(c)
        elif family is None:
            verb, done = pick(r, DO)
            noun = pick(r, NOUNS)
            self.name = pick(r, (f"{verb}_{noun}", f"{verb}_{noun}", f"{noun}_{verb}", verb + noun.capitalize(), c.v.made(), f"fn_{c.v.made()}", f"{c.v.made()}_{verb}"))
            self.description = pick(r, (f"{verb.capitalize()} a {noun}.", f"{verb.capitalize()} the {noun}.", f"Use this to {verb} a {noun}."))
            kinds = r.sample(PARAM, 1 if r.random() < 0.6 else 2 if r.random() < 0.8 else 3)
            names = [k if r.random() < 0.8 else c.v.made() for k, _ in kinds]
            self.params = [(n, "integer" if k == "int" else "string", k, f"The {q} of the {noun}") for n, (q, k) in zip(names, kinds)]
            words = [q for q, _ in kinds]
            slot = " and ".join("{w%d} {%d}" % (i, i) for i in range(len(kinds)))
            self.requests = [f"[Please |][{verb}|{verb}] the {noun} with {slot}[.|]", f"[Can you|Could you|I want to] {verb} the {noun} with {slot}?", f"{verb.capitalize()} a {noun}: {slot}"]
            if len(kinds) == 1:
                self.requests += [f"[Please |]{verb} the {noun} {{0}}[.|]", f"[Can you|Could you] {verb} {noun} {{0}}[?|, please?]", f"{verb.capitalize()} {{0}}, the {noun}."]
            self.requests.append(f"Call {self.name} with " + " and ".join("{p%d} [= |]{%d}" % (i, i) for i in range(len(kinds))) + ".")
            self.words = words
            self.results = (("status state result", "ok"),) if r.random() < 0.6 else (("result value id", "num"),)
            self.answers = (f"The {noun} is {done}.",) if self.results[0][1] == "ok" else ("The result is {a}.", f"Done: the {noun} is {done}. The result is {{a}}.")
        else:
            names, desc, params, self.requests, self.results, self.answers = family
            self.name = pick(r, names.split())
            self.description = pick(r, desc)
            self.params = [(pick(r, p[0].split()), *p[1:]) for p in params]
            if r.random() < 0.12:
                self.name = pick(r, (c.v.made(), "fn_" + c.v.made(), "tool_" + c.v.made()))
            if r.random() < 0.12:
                self.params = [(c.v.made(), *p[1:]) for p in self.params]
            self.words = [p[0] for p in self.params]
        if len({p[0] for p in self.params}) < len(self.params):
            self.params = [(f"{p[0]}{i + 1}", *p[1:]) for i, p in enumerate(self.params)]
        props = {}
        described = r.random() < 0.6
        for name, typ, _, desc in self.params:
            props[name] = {"type": typ, "description": desc} if described else {"type": typ}
        schema = {"type": "object", "properties": props}
        if r.random() < 0.85:
            schema["required"] = [p[0] for p in self.params]
        self.schema = {"type": "function", "function": {"name": self.name, "description": self.description, "parameters": schema}}

    def _lookup(self, c):
        """Look a thing up by one of its fields: noun and field are random."""
        r = c.r
        say, verb = pick(r, LOOK)
        field, kind = pick(r, BY)
        noun = pick(r, THINGS) if r.random() < 0.6 else pick(r, NOUNS) if r.random() < 0.7 else c.v.made()
        said = field.replace("_", " ")
        self.name = pick(r, (f"{verb}_{noun}", f"{verb}_{noun}", f"{noun}_{verb}", f"{verb}_{noun}_by_{field}", f"get{noun.capitalize()}", noun, c.v.made()))
        self.description = pick(r, (f"{say.capitalize()} a {noun} by its {said}.", f"Returns the data of a {noun}.", f"Look up a {noun} by {said}.", f"Find a {noun}.", f"Information about a {noun}"))
        self.params = [(pick(r, (field, field, f"{noun}_{field}")), "string", kind, f"The {said} of the {noun}")]
        self.requests = (f"{say.capitalize()} the {noun} {{0}}[.|]", f"[Please |Can you |]{say} [the |]{noun} {{0}}[.|?|]", f"[Which {noun} has|What {noun} has] the {said} {{0}}?", f"{say.capitalize()} the {noun} with [the |]{said} {{0}}[.|]",
                         f"What do you know about the {noun} {{0}}?", f"{noun} {{0}}", f"I need the {noun} {{0}}.")
        self.words = [said]
        key, kind2, answer = pick(r, (("status state", "ok", "The status of the " + noun + " {0} is {a}."), ("price cost", "num", "The price of the " + noun + " {0} is {a}."), ("owner user", "name", "The owner of the " + noun + " {0} is {a}."),
                                      ("place location city", "city", "The place of the " + noun + " {0} is {a}."), ("colour", "colour", "The colour of the " + noun + " {0} is {a}."), ("count stock", "num", "The count of the " + noun + " {0} is {a}.")))
        self.results, self.answers, self.exact = ((key, kind2),), (answer,), key.split()[0]

    def draw(self, c):
        values = [_value(c, p[2]) for p in self.params]
        return {p[0]: v if p[1] != "string" else str(v) for p, v in zip(self.params, values)}

    def slots(self, args):
        out = {}
        for i, (p, v) in enumerate(zip(self.params, args.values())):
            out[str(i)] = ("on" if v else "off") if isinstance(v, bool) else str(v)
            out[f"p{i}"], out[f"w{i}"] = p[0], self.words[i]
        return out


def give_tools(c):
    """Put one to five tools into the conversation."""
    r = c.r
    c.tools, names = [], set()
    for _ in range(1 + int(r.random() * (3 if r.random() < 0.7 else 5))):
        t = Tool(c, pick(r, FAMILIES) if r.random() < 0.6 else None)
        if t.name not in names and all(t.family is None or t.family is not u.family for u in c.tools):
            names.add(t.name)
            c.tools.append(t)


def use(c):
    """A request that one of the given tools can serve, the call, its result, the answer."""
    r = c.r
    t = pick(r, c.tools)
    if t.family and t.family[0].startswith("add ") and any(u.family and u.family[0].startswith("calc") for u in c.tools):
        t = next(u for u in c.tools if u.family and u.family[0].startswith("calc"))
    args = t.draw(c)
    s = t.slots(args)
    request = expand(r, pick(r, t.requests))
    if not c.test:
        request = noise(r, request)
    single = len(t.params) == 1
    two = single and "{0}" in request and r.random() < 0.1 and not request.startswith("{0}") and t.params[0][2] in ("city", "name", "word", "made", "item", "digits", "code")
    calls = [(t.name, args)]
    if two:
        args2 = t.draw(c)
        if args2 == args:
            args2, two = args, False
        else:
            calls.append((t.name, args2))
            s["0"] = s["0"] + pick(r, (" and ", " and in " if t.params[0][2] == "city" and "in {0}" in request else " and ")) + t.slots(args2)["0"]
    c.raw_user(fill(request, s))
    shown = [{"name": n, "arguments": a} for n, a in calls]
    listed = " and ".join(str(v) for v in args.values())
    c.call(shown, think=fill(pick(r, ("The tool {n} can do this, with {v}.", "I call {n} with {v}.")), {"n": t.name, "v": listed}))
    c.checks.append((len(c.msgs) - 1, "tool", shown, None))
    texts = []
    for i, (_, a) in enumerate(calls):
        sl = t.slots(a)
        res = {pick(r, k.split()): _value(c, kind) for k, kind in t.results}
        vals = list(res.values())
        key = getattr(t, "exact", None)
        if key:  # the answer names the key that came back
            got_key = next(iter(res))
            sl["answer"] = t.answers[0].replace("The " + key, "The " + got_key)
        if r.random() < 0.35:  # results repeat the question or bring more than is asked
            extra = dict(a) if r.random() < 0.5 else {pick(r, ("ok", "id", "source", "unit", "cached", "took_ms", "request")): pick(r, (True, 1, "live", "api", r.randrange(1000), c.v.made()))}
            extra = {k: v for k, v in extra.items() if k not in res}
            res = {**extra, **res} if r.random() < 0.7 else {**res, **extra}
        for letter, v in zip("ab", vals):
            sl[letter] = str(v).lower() if isinstance(v, bool) else str(v)
        if r.random() < 0.07:
            c.tool_result(pick(r, ('{"error": "not found"}', "error: timeout", '{"error": "failed"}', "Error: no connection")))
            texts.append("Sorry, that did not work: the tool reported an error.")
            continue
        body = json.dumps(res, ensure_ascii=False) if r.random() < 0.8 or len(res) > 1 or key else sl["a"]
        c.tool_result(body)
        texts.append(fill(sl.get("answer") or pick(r, t.answers), sl))
    check = None if any(x.startswith("Sorry") for x in texts) else ("contains", texts[0]) if len(t.answers) == 1 and len(texts) == 1 else None
    c.bot(" ".join(texts), _fill=False, think="I use the result.", check=check)


def missing_tool(c):
    """A request for which there is no tool here."""
    r = c.r
    have = {id(t.family) for t in c.tools}
    fam = pick(r, FAMILIES)
    if id(fam) in have or fam[0].startswith(("add ", "calc", "translate")) or any(t.family is None and fam[0].startswith(("search", "book")) for t in c.tools):
        return use(c)
    t = Tool(c, fam)
    s = t.slots(t.draw(c))
    request = expand(r, pick(r, t.requests))
    c.raw_user(fill(request if c.test else noise(r, request), s))
    c.bot("[I have no tool for that here.|Sorry, I have no tool for that.]", short="No", think="None of the tools can do this.", check=("contains", "no tool"))


def list_tools(c):
    c.user("[Which tools do you have?|What tools can you use?|List your tools.|Which functions can you call?]")
    names = [t.name for t in c.tools]
    c.bot("I can call " + (", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]) + ".", _fill=False, think="I list the tools.", check=("contains", names[0]))
