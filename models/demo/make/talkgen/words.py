"""Word lists and random values: real words for fluency, made-up ones so that copying is learnt."""

from .grammar import held_out, pick


def _w(text):
    return tuple(text.split())


def _l(text):
    return tuple(x.strip() for x in text.split(",") if x.strip())


NAMES = _w("""Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Karin Leo Mia Noah Olga Paul Quinn
Rosa Simon Tara Ulf Vera Will Xenia Yara Zoe Ada Alan Alice Amir Andre Anton Arjun Asha Astrid Ava
Bella Boris Bruno Carl Carmen Chen Chloe Daniel Daria Diego Dora Edgar Elena Eli Elif Eric Esther
Eva Fatima Finn Fiona Frank Frida Gina Grace Hana Hannah Harry Hassan Helen Henry Igor Ines Ingrid
Irene Isaac Ivan Jack James Jane Jia John Jorge Jose Judith Julia Kai Kate Kenji Kim Lara Lars Laura
Lena Liam Lina Linus Liu Lucia Luis Luke Luna Maja Marco Maria Mark Marta Martin Mary Max Mei Mike
Mira Mohamed Nadia Nina Nora Oliver Omar Oscar Otto Pablo Pedro Peter Petra Pia Priya Rachel Raj
Rita Robert Robin Ruth Ryan Sam Sana Sara Sofia Sonja Stella Sven Tariq Theo Thomas Tim Tina Tom
Toni Uma Victor Viktor Walter Wanda Wei Yuki Yusuf Zara Alex Amy Bob Charlie Dan Ella George Jim
Joe Lily Lucy Nick Rob Sally Steve Susan Ted Tony Brian Linda Sean Kevin Emily Jessica Sandra Amara
Bjorn Cora Dmitri Enzo Farah Gustav Hilda Imani Jasper Kira Lorenzo Malik Naomi Orla Pavel Rania
Silas Thea Ursula Vito Wren Yasmin Zeno""")
CITIES = _l("""Berlin, Paris, London, Madrid, Rome, Vienna, Oslo, Stockholm, Helsinki, Copenhagen,
Lisbon, Dublin, Athens, Prague, Warsaw, Budapest, Zurich, Geneva, Milan, Naples, Turin, Venice,
Munich, Hamburg, Cologne, Leipzig, Lyon, Nice, Marseille, Porto, Seville, Valencia, Barcelona,
Amsterdam, Brussels, Antwerp, Ghent, Bern, Basel, Krakow, Riga, Tallinn, Vilnius, Kyiv, Istanbul,
Ankara, Cairo, Tunis, Nairobi, Lagos, Accra, Dakar, Cape Town, Mumbai, Delhi, Chennai, Tokyo, Kyoto,
Osaka, Seoul, Busan, Beijing, Shanghai, Taipei, Hanoi, Bangkok, Manila, Jakarta, Singapore, Sydney,
Melbourne, Perth, Auckland, Wellington, Toronto, Montreal, Vancouver, Boston, New York, Chicago,
Denver, Seattle, Portland, Austin, Dallas, Houston, Miami, Atlanta, San Francisco, Los Angeles,
San Diego, Phoenix, Mexico City, Bogota, Lima, Quito, Santiago, Buenos Aires, Rio, Recife,
Edinburgh, Glasgow, Leeds, Bristol, Oxford, Cambridge, Cardiff, Belfast, Cork, Galway, Bergen,
Malmo, Uppsala, Turku, Tampere, Reykjavik, Graz, Linz, Salzburg, Dresden, Bremen""")
COLOURS = _l("""red, blue, green, yellow, orange, purple, pink, black, white, grey, brown, gold,
silver, violet, turquoise, teal, indigo, crimson, olive, cyan, magenta, beige, navy, maroon, amber,
coral, lime, mint, ivory, lilac""")
ANIMALS = _l("""cat, dog, rabbit, hamster, parrot, horse, goldfish, turtle, snake, goat, pony, duck,
hen, lizard, ferret, mouse, rat, canary, frog, donkey, sheep, cow, pig, owl, fox, wolf, bear, lion,
tiger, elephant, whale, dolphin, penguin, otter, hedgehog, squirrel, deer, eagle, raven, bee""")
PETS = ANIMALS[:20]
FRUITS = _l("""apples, pears, bananas, cherries, plums, grapes, oranges, lemons, peaches, mangoes,
figs, kiwis, melons, berries""")
FOODS = _l("""pizza, pasta, soup, sushi, curry, bread, cheese, rice, salad, pancakes, noodles,
dumplings, tacos, falafel, lasagne, risotto, chocolate, ice cream, apple pie, porridge, ramen,
paella, hummus, potatoes, waffles, omelette""")
DRINKS = _l("tea, coffee, water, milk, juice, lemonade, cocoa, cider, green tea, espresso, mate")
JOBS = _l("""teacher, nurse, doctor, baker, carpenter, pilot, farmer, painter, singer, writer, cook,
driver, gardener, engineer, programmer, lawyer, plumber, tailor, dentist, librarian, designer,
student, electrician, potter, sailor, translator, mechanic, chemist, architect, journalist""")
HOBBIES = _l("""chess, swimming, running, painting, cycling, hiking, dancing, cooking, reading,
fishing, climbing, sailing, knitting, gardening, skating, rowing, yoga, football, tennis, pottery,
photography, singing, surfing, judo, origami""")
LANGS = _l("""English, German, French, Spanish, Italian, Dutch, Danish, Swedish, Polish, Greek,
Turkish, Arabic, Hindi, Chinese, Japanese, Korean, Finnish, Czech, Portuguese, Irish""")
MONTHS = _w("January February March April May June July August September October November December")
DAYS = _w("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
ITEMS = _l("""milk, eggs, bread, butter, tea, coffee, sugar, salt, flour, rice, apples, pears,
soap, candles, batteries, paper, pens, tape, nails, paint, honey, jam, onions, garlic, carrots,
beans, oil, vinegar, cheese, yoghurt, napkins, matches, string, glue, stamps, socks, seeds, lamp,
rope, bucket, brush, towel, shampoo, lemons, tomatoes""")
NOUNS = _l("""river, house, garden, window, table, chair, road, bridge, tree, stone, lamp, letter,
book, clock, boat, train, ship, wheel, door, key, hill, valley, field, forest, cloud, storm, island,
market, school, kitchen, tower, castle, mirror, basket, bottle, blanket, ladder, hammer, candle,
pencil, jacket, engine, signal, picture, map, shelf, corner, harbour, station, village, meadow,
wagon, barrel, rope, cup, plate, spoon, coat, hat, shoe, ring, coin, drum, flute, song, story,
number, colour, morning, evening, winter, summer, shadow, light, fire, water, wind, snow, rain, sun,
moon, star, sky, sea, beach, wave, fish, bird, horse, dog, cat, friend, neighbour, doctor, farmer,
captain, child, king, queen, teacher, painter, sailor, machine, paper, box, bag, bench, fence, gate,
path, roof, wall, floor, stair, cellar, report, meeting, budget, plan, team, office, server, cable,
screen, keyboard, folder, file, project, order, invoice, customer, package, truck, ticket""")
ADJS = _l("""old, new, small, large, quiet, loud, bright, dark, warm, cold, heavy, light, long, short,
round, flat, narrow, wide, empty, full, early, late, slow, quick, gentle, brave, clever, strange,
simple, wooden, golden, silver, broken, clean, dusty, green, red, blue, white, grey, tall, deep,
soft, hard, smooth, rough, fresh, sweet, hidden, open, closed, famous, lonely, happy, tired""")
VERBS = _l("""carried, found, lost, painted, watched, opened, closed, followed, moved, built, washed,
repaired, sold, bought, borrowed, crossed, lifted, pushed, pulled, covered, counted, cleaned, drew,
kept, saw, heard, visited, left, met, needed, liked, wanted, brought, hid, turned, filled, measured,
checked, sent, called""")
ADVS = _l("""slowly, quickly, quietly, today, yesterday, again, at last, in the morning, at night,
near the river, behind the house, with care, for an hour, without a word, after lunch, on Monday,
in the rain, by the sea, before noon, every day, for the first time, in winter, as always""")
TOPICS = _l("""the French Revolution, quantum physics, the stock market, black holes, dinosaurs,
football results, the news, politics, cooking a turkey, taxes, medicine, law, philosophy, chemistry,
the Roman Empire, World War II, climate change, vaccines, the human brain, DNA, photosynthesis,
the moon landing, jazz, opera, Shakespeare, impressionism, chess openings, poker, yoga, gardening,
car repair, bicycle repair, plumbing, baking bread, sourdough, wine, coffee brewing, knitting,
photography, travel in Japan, hotels in Rome, flights to Boston, visa rules, mortgages, insurance,
pensions, bitcoin, blockchain, crypto prices, marketing, a business plan, job interviews, my boss,
my CV, a cover letter, an essay, homework, calculus, linear algebra, statistics, prime numbers,
Python, JavaScript, Rust lifetimes, SQL joins, Kubernetes, Docker, git rebase, regular expressions,
CSS, React, machine learning, neural networks, transformers, reinforcement learning, robots,
electric cars, trains, rockets, Mars, Jupiter, the sun, volcanoes, earthquakes, oceans, whales,
birds, insects, mushrooms, trees, flowers, nutrition, vitamins, sleep, headaches, allergies,
exercise, marathon training, meditation, relationships, parenting, dogs, cats, horses, movies,
film stars, pop music, the Olympics, tennis, cricket, basketball, video games, board games,
fashion, architecture, bridges, history, geography, economics, inflation, elections, religion,
mythology, ghosts, astrology, dreams, love, the meaning of life, happiness, art, poetry, novels,
Harry Potter, Star Wars, Sherlock Holmes, Einstein, Newton, Napoleon, Cleopatra, Mozart, Beethoven,
Picasso, the president, the king of England, the pope, the weather on Mars, the speed of light,
gravity, electricity, magnets, atoms, bacteria, viruses, the heart, muscles, bones, teeth""")
SYL_A = _w("b br c ch cl d dr f fl g gl gr h j k kl kr l m n p pl pr qu r s sh sk sl st t th tr v w y z zh")
SYL_V = _w("a e i o u a e i o u ai au ea ei ia io oo ou y")
SYL_C = ("", "", "", "", "n", "r", "l", "s", "m", "k", "t", "x", "nd", "rk", "sh", "ll", "st", "p", "d", "g", "z")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
UPPER = LETTERS.upper()


REAL = NOUNS + ADJS + ITEMS + ANIMALS + COLOURS
SPELL = tuple(dict.fromkeys(w for w in REAL + FRUITS + FOODS + DRINKS + JOBS + HOBBIES + _w("""offshoot banana apple orange hello world computer language model token
cache prefix strawberry cherry lemon plum pear grape summer winter people music water yellow purple please thank happy birthday family mother father brother sister money
question answer memory python rust metal apple network internet beautiful because friend school letter mississippi tomorrow yesterday number elephant giraffe zebra monkey""") if " " not in w))


class Values:
    """Draws values; `test=True` draws only held-out ones, `test=False` only the others."""

    def __init__(self, r, test):
        self.r, self.test = r, test

    def _ok(self, make):
        for _ in range(400):
            value = make()
            if held_out(value) == self.test:
                return value
        return value

    def _made(self):
        r = self.r
        n = 2 if r.random() < 0.7 else 3
        return "".join(pick(r, SYL_A) + pick(r, SYL_V) + pick(r, SYL_C) for _ in range(n))

    def made(self):
        return self._ok(self._made)

    def made_name(self):
        return self._ok(lambda: self._made().capitalize())

    def _mix(self, items, p_made, cap=True):
        if self.r.random() < p_made:
            return self._ok(lambda: self._made().capitalize() if cap else self._made())
        return pick(self.r, items)  # real words are few: they are known, not held out

    def name(self):
        return self._mix(NAMES, 0.5)

    def full_name(self):
        return self.name() + " " + self._mix(NAMES, 0.9)

    def city(self):
        return self._mix(CITIES, 0.4)

    def colour(self):
        x = self.r.random()
        if x < 0.25:
            return pick(self.r, ("dark ", "light ", "pale ", "bright ")) + pick(self.r, COLOURS[:12])
        return self._mix(COLOURS, 0.15, False)

    def food(self):
        return self._mix(FOODS, 0.2, False)

    def drink(self):
        return self._mix(DRINKS, 0.2, False)

    def job(self):
        return pick(self.r, JOBS)

    def hobby(self):
        return self._mix(HOBBIES, 0.15, False)

    def animal(self):
        return self._mix(ANIMALS, 0.1, False)

    def lang(self):
        return self._mix(LANGS, 0.2)

    def age(self):
        return str(self.r.randrange(5, 99))

    def word(self):
        x = self.r.random()
        if x < 0.45:
            return self.made()
        return pick(self.r, REAL)

    def phrase(self):
        r = self.r
        return " ".join((pick(r, ADJS), self.word(), *((self.word(),) if r.random() < 0.4 else ())))

    def digits(self):
        n = 1 + int(self.r.random() * 8)
        if n == 1:
            return str(self.r.randrange(2, 10))
        return self._ok(lambda: str(self.r.randrange(10 ** (n - 1), 10**n)))

    def code(self):
        r = self.r
        x = r.random()
        if x < 0.5:
            return self.digits()
        if x < 0.7:
            return self._ok(lambda: pick(r, UPPER) + pick(r, UPPER) + "-" + str(r.randrange(10, 9999)))
        if x < 0.85:
            return self._ok(lambda: self._made() + str(r.randrange(1, 999)))
        return self._ok(lambda: "".join(pick(r, UPPER + "0123456789") for _ in range(r.randrange(4, 8))))

    def time(self):
        return f"{self.r.randrange(0, 24)}:{self.r.randrange(0, 60):02d}"

    def date(self):
        return f"{self.r.randrange(1, 29)} {pick(self.r, MONTHS)}"

    def any(self):
        return pick(self.r, (self.word, self.name, self.code, self.city, self.phrase, self.digits))()


def sentence(r, values=None):
    """One plain sentence of filler."""
    n = lambda: (pick(r, ADJS) + " " if r.random() < 0.5 else "") + pick(r, NOUNS)
    x = r.random()
    if x < 0.45:
        s = f"The {n()} {pick(r, VERBS)} the {n()}"
    elif x < 0.6:
        s = f"The {n()} was {pick(r, ADJS)} and {pick(r, ADJS)}"
    elif x < 0.75:
        s = f"{pick(r, NAMES)} {pick(r, VERBS)} a {n()}"
    elif x < 0.85:
        s = f"There is a {n()} near the {n()}"
    else:
        s = f"We {pick(r, VERBS)} the {n()} and then the {n()}"
    if r.random() < 0.4:
        s += " " + pick(r, ADVS)
    return s + "."


LOREM = _w("""lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut
labore et dolore magna aliqua enim ad minim veniam quis nostrud exercitation ullamco laboris nisi""")


def filler(r, n_chars):
    """A text of about `n_chars`: prose, repeated lines, logs, numbers, code or nonsense."""
    x, out, size = r.random(), [], 0
    if x < 0.5:
        while size < n_chars:
            out.append(sentence(r))
            size += len(out[-1]) + 1
        return (" " if r.random() < 0.8 else "\n").join(out)
    if x < 0.62:
        line = sentence(r) if r.random() < 0.7 else "The quick brown fox jumps over the lazy dog."
        if r.random() < 0.3:
            line += " " + sentence(r)
        return (" " if r.random() < 0.7 else "\n").join([line] * max(1, n_chars // len(line)))
    if x < 0.7:
        while size < n_chars:
            out.append(f"{r.randrange(24):02d}:{r.randrange(60):02d} {pick(r, ('INFO', 'WARN', 'DEBUG', 'ERROR'))} "
                       f"{pick(r, NOUNS)} {pick(r, NOUNS)} {r.randrange(1000)}")
            size += len(out[-1])
        return "\n".join(out)
    if x < 0.78:
        while size < n_chars:
            out.append(f"{len(out) + 1}. {pick(r, ADJS)} {pick(r, NOUNS)}")
            size += len(out[-1])
        return "\n".join(out)
    if x < 0.86:
        while size < n_chars:
            out.append(f"{pick(r, NOUNS)}_{pick(r, NOUNS)} = {pick(r, ('get', 'make', 'load'))}"
                       f"({r.randrange(100)}, {pick(r, NOUNS)})")
            size += len(out[-1])
        return "\n".join(out)
    if x < 0.93:
        while size < n_chars:
            out.append(pick(r, LOREM))
            size += len(out[-1]) + 1
        return " ".join(out).capitalize() + "."
    while size < n_chars:
        out.append(pick(r, SYL_A) + pick(r, SYL_V) + pick(r, SYL_C) + pick(r, SYL_A) + pick(r, SYL_V))
        size += len(out[-1]) + 1
    return " ".join(out) + "."
