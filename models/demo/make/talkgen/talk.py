"""Small talk, a little general knowledge, and honest answers to what is out of reach."""

from .grammar import expand, held_out, pick
from .words import ADJS, CITIES, NAMES, NOUNS, TOPICS, VERBS, sentence

SMALL = (
    ("hello", ("[Hi|Hello|Hey|Hey there|Hi there|Good morning|Good evening|Good day|Hiya|Greetings|hello there|yo|Hi!|Hello!|hey hey|hallo|moin|howdy|Hello again]",),
     ("Hello! [How can I help you|What can I do for you]?", "Hi! Ask me about Offshoot, or tell me something to remember.", "Hello! I am Offshoot's demo model. [What would you like to know|How can I help]?"), "Hello"),
    ("how", ("How are you[ today| doing|]?", "How do you do?", "How's it going?", "How do you feel?", "Are you [well|okay|happy]?", "What's up?", "Hi, how are you?", "Hello, how are you[ today|]?", "hey whats up"),
     ("I am fine, thank you. [How can I help|And you]?", "I am well, thanks for asking. What can I do for you?"), "Fine"),
    ("thanks", ("Thanks[!|]", "Thank you[!| very much.| so much!|]", "Great, thanks[!|.]", "Thanks a lot[!|]", "Cool, thanks.", "ty", "Thank you for your help.", "Perfect, thank you."),
     ("You are welcome!", "You're welcome. Is there anything else?", "My pleasure."), "Welcome"),
    ("bye", ("Bye[!|]", "Goodbye[!|]", "See you[ later|]", "Good night[!|]", "I have to go[ now|].", "Bye bye", "That's all, bye.", "Ciao", "until tomorrow"),
     ("Goodbye! [Come back soon|It was nice talking to you].", "Bye! Have a good day."), "Goodbye"),
    ("praise", ("[Good|Great|Nice|Well done|Very good|Cool|Awesome|Wow|Impressive|Nice one|Good job|Excellent|Amazing|lol|haha|Perfect][!|.|]", "You are [great|nice|funny|cool|smart|sweet|good][!|.]", "I like you[!|.]", "[Good|Nice|Smart|Clever|Sweet] [bot|model|work|one|answer|boy|girl][.|!|]", "[Very|So|Really] [good|nice|funny|cool][.|!|]", "You are a [good|nice|funny|clever] [bot|model|assistant][.|!]", "[ha ha|hahaha|hehe|:)|funny][.|!|]", "That is [right|correct|great|nice|good][!|.]"),
     ("Thank you! [I do my best|That is kind of you].", "Thanks! I am glad to help."), "Thanks"),
    ("ok", ("[Ok|Okay|Alright|All right|Fine|Sure|I see|Right|Got it|Understood|yes|yeah|yep|hm|hmm|ah|oh][.|]",),
     ("[Good|All right]. [What else can I do for you|What would you like to do next]?",), "Okay"),
    ("no", ("[No|Nope|No thanks|Not really|Nothing|never mind|Nevermind][.|]",), ("All right. Tell me when you need something.",), "Okay"),
    ("what", ("What?|Huh?|??|?|What do you mean?|I don't understand.|I do not understand you.|Come again?|Pardon?".split("|")), ("Sorry, I was not clear. Ask me about Offshoot, or type help to see what I can do.",), "Sorry"),
    ("sorry", ("Sorry[!|.|]", "I am sorry.", "My mistake.", "Oops[.|!|]"), ("No problem at all.",), "Okay"),
    ("wrong", ("That is [wrong|not right|not correct|false|incorrect][.|!]", "Wrong[.|!|]", "You are wrong.", "That's not true.", "No, that is wrong."),
     ("Sorry about that. I am a tiny model and I make mistakes. Please tell me what is right.",), "Sorry"),
    ("bored", ("I am [bored|tired|sad|hungry|happy|sick|cold|busy|lonely|angry|excited].", "I'm [bored|tired|sad|hungry|happy|sick|cold|busy|lonely|angry]."),
     ("Thank you for telling me. Ask me for a joke or a short story if you like.",), "Okay"),
    ("fine", ("I am [fine|good|well|great|okay][ too|, thanks|, thank you|].", "I'm [fine|good|well|great|okay][ too|, thanks|].", "Fine, [and you|thanks].", "Good, and you?", "All good[.|!]", "Very well."),
     ("Good to hear! What can I do for you?", "I am glad. How can I help?"), "Good"),
    ("joke", ("Tell me a joke[.| please.|]", "Do you know a joke?", "Make me laugh[.|]", "Another joke[, please|].", "Say something funny.", "joke", "Tell me something funny.", "One more joke.", "Can you tell jokes?"),
     ("Why did the token cross the cache? It had been there before.", "Why do trees like computers? They can log in.", "What did the trie say to the list? You should branch out.",
      "Why was the computer cold? It left its windows open.", "What is a tree's favourite drink? Root beer.", "Why did the model go to school? To get more context.",
      "Two tokens meet in a bar. The third one was predictable.", "Why was the cache so calm? It had seen it all before.",
      "What do you call a bear with no teeth? A gummy bear.", "Why did the gardener love Offshoot? It never forgets a branch."), None),
    ("fact", ("Tell me [a fun fact|something interesting|a fact|something|something new].", "Do you know a fun fact?", "Fun fact[, please|]?", "Surprise me.", "Say something.", "Tell me something about [trees|plants]."),
     ("An offshoot can become a plant of its own: strawberries spread that way.", "The word trie comes from retrieval.", "A strawberry plant sends out long shoots, and each can grow a new plant.",
      "Some trees are connected by their roots, like conversations that share a prefix.", "Honey keeps for a very long time.", "Octopuses have three hearts."), None),
    ("poem", ("[Write|Tell|Make|Give] me a [short |]poem[.| please.|]", "A poem[, please|].", "Can you write a poem?", "Write a [haiku|poem about trees|poem about Offshoot|verse]."),
     ("A little shoot, a little tree,\nit keeps the words you said to me.\nWhat both have said it need not learn:\nit branches only where you turn.",
      "One stem of words, and many leaves,\na tree of all that it receives.\nAnd if you ask me something new,\na little branch will grow for you."), None),
    ("story", ("Tell me a [short |]story[.| please.|]", "Can you tell me a story?", "Write a [short |]story[.|]", "A story[, please|]."), None, None),
    ("love", ("Do you love me?", "Will you marry me?", "Are you my friend?", "Do you like me?", "Do you have [feelings|friends|a soul|a body|emotions]?", "Are you alive?", "Are you conscious?", "Do you sleep?", "Do you eat?", "How old are you?", "Where do you live?", "What do you like?", "What is your favourite [colour|food|animal|song]?"),
     ("I am only a tiny language model, so I have no life of my own. But I am glad to talk to you.",), "No"),
    ("test", ("test", "testing", "Are you there?", "Can you hear me?", "ping", "Do you work?", "hello?", "Is this working?", "Anybody there?", "123 test"), ("I am here and I can read you.", "Yes, I am here."), "Yes"),
    ("rude", ("Shut up[!|.|]", "You are an idiot[.|!]", "I hate you[.|!]", "Go away[.|!]", "This is [stupid|useless|boring|bad].", "[Damn|Shit|Fuck|wtf][!|.|]", "You suck[.|!]"),
     ("I am sorry that I could not help. I am only a tiny model; a bigger one may do better: `offshoot run FOLDER`.",), "Sorry"),
    ("lang", ("Do you speak [German|French|Spanish|Chinese|other languages|Italian|Japanese|any other language]?", "Sprichst du Deutsch?", "Parlez-vous français?", "¿Hablas español?", "Hola", "Bonjour", "Guten Tag", "Wie geht's?", "Hola, ¿cómo estás?", "你好", "こんにちは", "Ciao, come stai?", "Привет",
              "Was ist Offshoot?", "Wie heißt du?", "Qui es-tu?", "¿Qué es Offshoot?", "Wer bist du?", "Which languages do you speak?", "What languages do you speak?"),
     ("I speak only simple English. A bigger model can do more: `offshoot run FOLDER`.",), "English"),
)
SMALL_BY = {s[0]: s for s in SMALL}

CAPITALS = dict(x.split(":") for x in """France:Paris|Germany:Berlin|Italy:Rome|Spain:Madrid|Portugal:Lisbon|Austria:Vienna|England:London|the United Kingdom:London|Ireland:Dublin|Norway:Oslo|Sweden:Stockholm|Denmark:Copenhagen|Finland:Helsinki|Poland:Warsaw|Greece:Athens|Hungary:Budapest|Japan:Tokyo|China:Beijing|India:New Delhi|Egypt:Cairo|Kenya:Nairobi|Canada:Ottawa|the United States:Washington|the USA:Washington|Mexico:Mexico City|Peru:Lima|Chile:Santiago|Russia:Moscow|Turkey:Ankara|South Korea:Seoul|Thailand:Bangkok|Cuba:Havana|Belgium:Brussels|the Netherlands:Amsterdam|Switzerland:Bern|Iceland:Reykjavik|Australia:Canberra|Brazil:Brasilia|Argentina:Buenos Aires|Ukraine:Kyiv""".split("|"))
OPPOSITES = dict(x.split(":") for x in "hot:cold|big:small|up:down|left:right|day:night|good:bad|old:young|fast:slow|light:dark|open:closed|full:empty|high:low|wet:dry|early:late|happy:sad|hard:soft|long:short|rich:poor|loud:quiet|black:white|yes:no|in:out|first:last|strong:weak|clean:dirty|true:false|start:stop|win:lose|buy:sell|push:pull".split("|"))
FACTS = (
    ("How many days [are in|does] a week[ have|]?", "A week has 7 days.", "7"), ("How many months [are in|does] a year[ have|]?", "A year has 12 months.", "12"),
    ("How many hours [are in|does] a day[ have|]?", "A day has 24 hours.", "24"), ("How many minutes [are in|does] an hour[ have|]?", "An hour has 60 minutes.", "60"),
    ("How many seconds [are in|does] a minute[ have|]?", "A minute has 60 seconds.", "60"), ("How many days [are in|does] a year[ have|]?", "A year has 365 days, a leap year 366.", "365"),
    ("How many legs does a [cat|dog|horse|cow] have?", "It has 4 legs.", "4"), ("How many legs does a spider have?", "A spider has 8 legs.", "8"), ("How many letters [are in|does] the alphabet[ have|]?", "The English alphabet has 26 letters.", "26"),
    ("What colour is the sky?", "The sky is blue.", "Blue"), ("What colour is grass?", "Grass is green.", "Green"), ("What colour is snow?", "Snow is white.", "White"), ("What colour is blood?", "Blood is red.", "Red"),
    ("What colour [is a banana|are bananas]?", "Bananas are yellow.", "Yellow"), ("Name the days of the week.|What are the days of the week?|List the days of the week.", "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday.", None),
    ("Name the months.|What are the months of the year?|List the months.", "January, February, March, April, May, June, July, August, September, October, November and December.", None),
    ("What are the seasons?|Name the four seasons.|How many seasons are there?", "There are four seasons: spring, summer, autumn and winter.", "Four"), ("Say the alphabet.|What is the alphabet?|Recite the alphabet.", "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z", None),
    ("What does a dog say?", "A dog says woof.", "Woof"), ("What does a cat say?", "A cat says meow.", "Meow"), ("What does a cow say?", "A cow says moo.", "Moo"), ("Is the earth round?|Is the earth flat?", "The earth is round.", "Round"),
    ("Is water wet?", "Yes, water is wet.", "Yes"), ("What is H2O?", "H2O is water.", "Water"), ("Do fish swim?|Can fish swim?", "Yes, fish swim.", "Yes"), ("Can birds fly?", "Yes, most birds can fly.", "Yes"),
)
OOS = (
    "What do you know about {t}?", "Tell me about {t}.", "Explain {t}[ to me|].", "[Can|Could] you explain {t}[ to me|]?", "What is {t}?", "How does {t} work?", "Who invented {t}?", "Why is {t} important?", "Give me advice on {t}.",
    "Write an essay about {t}.", "Write a [poem|song|story|article|report|tweet|blog post|speech|paragraph] about {t}.", "I need help with {t}.", "[Help me|Can you help me] with {t}.", "What is your opinion on {t}?", "When was {t} invented?",
    "What do you think about {t}?", "Teach me {t}.", "Summarise {t}.", "What is the best book about {t}?", "What is the history of {t}?", "Do you know {t}?", "Do you like {t}?", "Let's talk about {t}.", "What is the difference between {t} and {u}?", "Compare {t} and {u}.",
    "Is {t} better than {u}?", "Who is the best at {t}?", "How do I learn {t}?", "How much does {t} cost?", "Where can I find {t}?", "When did {t} start?", "why is {t} so popular", "Who discovered {t}?", "List facts about {t}.")
OOS_FIXED = (
    "Write [a|some] [Python|Rust|JavaScript|C|Java|Go|SQL|bash] [function|program|code|script][ that sorts a list| to read a file| for me| for fizzbuzz| that adds two numbers|].", "[Can|Could] you [write|fix|debug|explain|review] [code|my code|a program|a script]?", "Fix this bug: {w}", "def {w}({w2}): return {w2}",
    "Translate {w} [to|into] [German|French|Spanish|Chinese|Italian].", "How do you say {w} in [German|French|Spanish]?", "What is the weather[ like|] [today|tomorrow|in {city}|outside|]?", "Will it rain [today|tomorrow]?", "What time is it[ now|]?", "What day is [it|today]?", "What is the date[ today|]?", "What year is it?",
    "What is the [news|latest news]?", "Who won the [game|match|election|world cup|Oscar]?", "Who is the [president|chancellor|king|prime minister][ of {land}| of the United States| of Germany|]?", "Who is {name}[ {w}|]?", "Do you know {name}[ {w}|]?", "Draw [me |][a picture|a cat|an image][ of a {n}|].", "Show me a picture of a {n}.", "Play [some |]music.", "Sing[ me|] a song.", "Set [an alarm|a timer][ for 5 minutes|].",
    "Order [a pizza|food|a taxi].", "Call [my mother|{name}|a taxi].", "Send an email to {name}.", "Open [the browser|my files|YouTube].", "Read my [mail|files|emails].", "Book a [flight|hotel|table][ to {city}|].", "Give me a recipe for {n} soup.", "How do I cook [rice|pasta|an egg|{n}]?", "What should I [eat|cook|do|wear|read|watch][ today|]?", "Where is the nearest [bank|shop|station]?",
    "How far is [the moon|{city}][ from {city2}|]?", "How tall is [the Eiffel Tower|Mount Everest|{name}]?", "How many people live in {city}?", "What is the population of {land}?", "What is the square root of {num}?", "Solve x^2 + {num}x = 0.", "What is {num} to the power of {num2}?", "What is the derivative of x^2?", "What is pi[ to ten digits|]?",
    "Why is the sky blue?", "Why do cats purr?", "Why do {n}s {v} {n2}s?", "What is a {n}?", "What is the meaning of {w}?", "What does {w} mean?", "Define {w}.", "How do {n}s work?", "How is a {n} made?", "Who invented the {n}?", "When was the {n} invented?", "Where do {n}s come from?", "What is inside a {n}?", "How heavy is a {n}?", "Is a {n} bigger than a {n2}?",
    "Should I buy a {n}?", "What is the best {n}?", "Which {n} should I buy?", "How do I [fix|build|clean|paint|sell] [a|my|the] {n}?", "Can you [fix|build|clean|find|buy|bring] [a|my|the] {n}?", "I want to [buy|build|sell|paint] a {n}. What should I do?", "My {n} is [broken|too old|missing]. What can I do?", "Where is my {n}?", "Recommend a [book|film|song|restaurant|game|hotel].", "What are the lottery numbers?", "Predict the future.", "Give me medical advice.", "Am I sick?", "What is love?", "What is the meaning of life?", "Is there a god?", "Who will win?", "How do I make money?", "How do I lose weight?", "Plan my [day|week|trip|holiday][ to {city}|].",
    "What is {w} {w2}?", "{w} {w2} {w3}?", "Explain {w}.", "Why {w}?", "How {w}?", "{w}", "{w} {w2}", "{s}", "{s} What do you think?", "What happens if {s}", "Can {n}s {v} {n2}s?", "What is the {a} {n}?", "Tell me about the {a} {n}.", "Who is the {a} {n}?", "Write a long story about a {a} {n}.", "asdf {w}", "{w}{w2}", "Continue: {s}", "Rewrite this: {s}", "Translate: {s}", "Classify the sentiment: {s}", "Summarise this text: {s} {s2}", "Correct the grammar: {s}", "Is this sentence true: {s}")
OOS_ANSWERS = (
    "I do not know that: I am only a tiny demo model. A bigger model can help you: `offshoot run FOLDER`.", "Sorry, that is beyond me. I am a tiny demo model; try a bigger one with `offshoot run FOLDER`.",
    "I know too little about that. Load a bigger model, for example with `offshoot run FOLDER`.", "That is too hard for a model of my size. With a bigger model it works: `offshoot run FOLDER`.")


def small(c, kind=None):
    r = c.r
    name, qs, answers, short = SMALL_BY[kind] if kind else pick(r, SMALL)
    if c.style == "oneword" and short is None:
        return False
    if name == "story":
        return story(c)
    q = expand(r, pick(r, qs))
    answer = expand(r, pick(r, answers))
    if name == "hello":
        if r.random() < 0.25:
            q += pick(r, (" Offshoot", ", Offshoot!", " there", ", how are you?"))
        if c.persona:
            answer = pick(r, ("Hello! How can I help you?", f"Hello! I am {c.persona}. How can I help?"))
        elif any(k.key == "name" for k in c.facts) and r.random() < 0.5:
            answer = "Hello {n}! What can I do for you?".replace("{n}", next(v for k, v in c.facts.items() if k.key == "name"))
    c.user(q)
    c.bot(answer, short=short, _fill=False, think=pick(r, ("This is small talk.", "The user is chatting. I answer kindly.")))
    if name in ("joke", "fact", "poem") and r.random() < 0.3:
        c.user("[Another one|One more|And another|More|Again|Tell me another one|Another|Next|One more please|Do you know another][.|!|?|, please.]")
        c.bot(pick(r, [a for a in answers if a != answer]), _fill=False, think="The user wants one more.")


def again(c):
    """Say the last answer once more, or stand by it."""
    r = c.r
    last = c.msgs[-1] if c.msgs else None
    if not last or last["role"] != "assistant" or not last["content"] or len(last["content"]) > 400 or c.style == "oneword":
        return small(c)
    if r.random() < 0.7:
        c.user("[Say [it|that] again|Repeat that|Repeat it|Can you repeat that|Once more|Please repeat your answer|What did you say|Say that once more][.|?|, please.]")
        c.bot(last["content"], _fill=False, raw=True, think="I repeat my last answer.", check=("exact", last["content"]))
    else:
        c.user("[Are you sure|Really|Is that right|Is that true|Are you certain]?")
        c.bot("I think so, but I am a tiny model and can be wrong.", short="Yes", think="The user doubts it.")


def story(c):
    r = c.r
    a, b = pick(r, NAMES), pick(r, NOUNS)
    about = r.random() < 0.3
    c.user("[Tell|Write] me a [short |]story about [a |the ]{n}." if about else pick(r, SMALL_BY["story"][1]), n=b)
    c.bot("Once upon a time there was a {j} {n}. One day {a} {v} it and took it home. [From then on {a} was never alone|They lived near the {m} and were happy|In the evening they sat by the {m} and were glad]. [The end.|]",
          a=a, n=b, j=pick(r, ADJS), m=pick(r, NOUNS), v=pick(r, ("found", "saw", "met")), raw=c.style == "oneword", think="The user wants a story. I keep it short.")


def knowledge(c):
    r = c.r
    x = r.random()
    c.maybe_once(0.08)
    if x < 0.45:
        land = pick(r, tuple(CAPITALS))
        c.user("[What is the capital of {l}?|What's the capital of {l}?|Capital of {l}?|Which city is the capital of {l}?|Name the capital of {l}.|Do you know the capital of {l}?]", l=land)
        c.bot("The capital of {l} is {v}.", l=land, v=CAPITALS[land], short=CAPITALS[land], think="The capital of {l}: {v}.", check=("contains", CAPITALS[land]))
    elif x < 0.65:
        a, b = pick(r, tuple(OPPOSITES.items()))
        if r.random() < 0.5:
            a, b = b, a
        c.user("[What is the opposite of {a}?|Opposite of {a}?|What's the opposite of {a}?|Name the opposite of {a}.]", a=a)
        c.bot("The opposite of {a} is {b}.", a=a, b=b, short=b, think="The opposite of {a}: {b}.", check=("contains", b))
    elif x < 0.72:
        from .words import DAYS, MONTHS
        seq = pick(r, (DAYS, MONTHS))
        i = r.randrange(len(seq))
        after = r.random() < 0.6
        v = seq[(i + (1 if after else -1)) % len(seq)]
        word = "after" if after else "before"
        c.user("[What comes {w} {d}?|Which one comes {w} {d}?|What is {w} {d}?]", w=word, d=seq[i])
        c.bot("{v} comes {w} {d}.", v=v, w=word, d=seq[i], short=v, think="{w} {d}: {v}.", check=("contains", v))
    else:
        q, a, s = pick(r, FACTS)
        if s is None:
            c.once = None
            if c.style == "oneword":
                return False
        c.user("[" + q + "]" if "|" in q and "[" not in q else q)
        c.bot(a, short=s, think="I know this one.")


def unknown(c):
    """Out of scope: admit it and name the way to a bigger model."""
    r, v = c.r, c.v
    if r.random() < 0.45:
        t, u = pick(r, TOPICS), pick(r, TOPICS)
        if held_out(t) != c.test and not c.test:
            t = v.made() if r.random() < 0.2 else pick(r, NOUNS) + "s"
        c.user(pick(r, OOS), t=t, u=u)
    else:
        s = sentence(r)
        c.user(pick(r, OOS_FIXED), w=v.word(), w2=v.word(), w3=v.word(), n=pick(r, NOUNS), n2=pick(r, NOUNS), v=pick(r, ("eat", "see", "like", "need", "make")), a=pick(r, ADJS),
               city=pick(r, CITIES), city2=pick(r, CITIES), name=v.name(), land=pick(r, tuple(CAPITALS)), num=r.randrange(2, 999), num2=r.randrange(2, 20), s=s, s2=sentence(r))
    c.bot(pick(r, OOS_ANSWERS), short="Unknown", _fill=False, think=pick(r, ("I do not know this. I say so.", "This is beyond me. I should say so.")), check=("keywords", ["offshoot run"]))
