"""Small everyday knowledge: days, months, opposites, plurals, past tenses, sizes, young animals, capitals, colours."""

from random import Random

from grammars.draft import Draft

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
COUNTS = {"one": 1, "two": 2}
SIZES = ["flea", "bee", "mouse", "rat", "rabbit", "cat", "fox", "wolf", "pig", "donkey", "horse", "rhino", "whale"]


def pairs(text: str) -> list[tuple[str, str]]:
    """`a b, c d` as pairs."""
    words = [entry.split() for entry in text.split(",")]
    return [(word, answer) for word, answer in words]


# kind of question: what is asked and the answer; how it is asked
FACTS: dict[str, tuple[list[tuple[str, str]], list[str]]] = {
    "opposite": (
        pairs(
            "hot cold, tall short, fast slow, early late, full empty, wet dry, rich poor, loud quiet, hard soft,"
            "dark bright, open closed, clean dirty, cheap expensive, strong weak, deep shallow, wide narrow,"
            "happy sad, sweet sour, thick thin, sharp blunt, near far, right wrong, rough smooth, safe dangerous,"
            "brave afraid, polite rude, true false, asleep awake, inside outside, above below, buy sell, win lose,"
            "arrive leave, remember forget, push pull, give take, laugh cry, float sink, attack defend, add subtract"
        ),
        [
            "What is the opposite of {}?",
            "Opposite of {}?",
            "Which word means the contrary of {}?",
            "The reverse of {} is what?",
            "Give me an antonym for '{}'",
            "If something isn't {}, what is it?",
            "I'm looking for the opposite of '{}'",
            "Not {}, but what?",
        ],
    ),
    "plural": (
        pairs(
            "child children, mouse mice, foot feet, tooth teeth, goose geese, man men, woman women, leaf leaves,"
            "wolf wolves, knife knives, city cities, baby babies, box boxes, bus buses, potato potatoes, hero heroes,"
            "fox foxes, story stories, cherry cherries, key keys, toy toys, shelf shelves, thief thieves,"
            "glass glasses, sheep sheep, fish fish, person people, wife wives, loaf loaves, brush brushes, fly flies"
        ),
        [
            "What is the plural of {}?",
            "Plural of {}?",
            "One {}, two what?",
            "How do you write more than one {}?",
            "What do you call several of a {}?",
            "Spell the plural of '{}'",
            "I have one {}, you have many what?",
            "What's the plural form of the noun '{}'?",
        ],
    ),
    "past": (
        pairs(
            "go went, see saw, eat ate, run ran, take took, give gave, write wrote, speak spoke, swim swam, sing sang,"
            "buy bought, bring brought, think thought, catch caught, teach taught, fly flew, know knew, grow grew,"
            "begin began, drink drank, drive drove, ride rode, break broke, choose chose, sleep slept, keep kept,"
            "leave left, make made, find found, tell told, sell sold, stand stood, win won, hold held, fall fell"
        ),
        [
            "What is the past tense of {}?",
            "Past tense of {}?",
            "Today I {}, yesterday I what?",
            "How do you put '{}' in the simple past?",
            "Yesterday they ... ({})",
            "Which form of '{}' do I use for last week?",
            "What is the past form of the verb {}?",
            "Give the simple past of '{}'",
        ],
    ),
    "young": (
        pairs(
            "cat kitten, dog puppy, cow calf, horse foal, sheep lamb, pig piglet, goat kid, bear cub, duck duckling,"
            "goose gosling, hen chick, deer fawn, frog tadpole, kangaroo joey, swan cygnet"
        ),
        [
            "What is a young {} called?",
            "What do you call a baby {}?",
            "A {} that was just born is a what?",
            "Name for the young of a {}?",
            "What grows up to be a {}?",
            "A very young {} is known as?",
            "A mother {} looks after her what?",
            "My daughter asks what the baby of a {} is called",
        ],
    ),
    "capital": (
        pairs(
            "France Paris, Germany Berlin, Spain Madrid, Italy Rome, Portugal Lisbon, Greece Athens, Austria Vienna,"
            "Poland Warsaw, Norway Oslo, Sweden Stockholm, Finland Helsinki, Denmark Copenhagen, Ireland Dublin,"
            "Hungary Budapest, Egypt Cairo, Kenya Nairobi, Japan Tokyo, China Beijing, Thailand Bangkok, Cuba Havana,"
            "Canada Ottawa, Peru Lima, Chile Santiago, Russia Moscow, Turkey Ankara, Iran Tehran, Iraq Baghdad,"
            "Belgium Brussels, Bulgaria Sofia, Australia Canberra, Vietnam Hanoi"
        ),
        [
            "What is the capital of {}?",
            "Capital of {}?",
            "Which city is the capital of {}?",
            "Where does the government of {} sit?",
            "{}: name its capital",
            "I fly to the capital of {}. Where do I land?",
            "Tell me the capital city of {}",
            "On a map of {}, which city is marked as the capital?",
        ],
    ),
    "colour": (
        pairs(
            "grass green, snow white, blood red, coal black, milk white, gold yellow, chocolate brown, emerald green,"
            "ruby red, sapphire blue, soot black, spinach green, tar black, cream white, broccoli green, ketchup red,"
            "mustard yellow, salt white, ink blue, cinnamon brown, ash grey, steel grey, saffron yellow, soil brown"
        ),
        [
            "What colour is {}?",
            "Which colour does {} have?",
            "The colour of {}?",
            "I paint {}. Which colour do I need?",
            "Name the usual colour of {}",
            "{} is what colour?",
            "If I think of {}, which colour do I see?",
            "Of what colour is {} as a rule?",
        ],
    ),
}
STEPS = [
    "Which {unit} comes {count} after {item}?|+",
    "Which {unit} comes {count} before {item}?|-",
    "It is {item}. Which {unit} will it be in {count}?|+",
    "It is {item}. Which {unit} was it {count} ago?|-",
    "{count} after {item} is what {unit}?|+",
    "{count} before {item} is what {unit}?|-",
    "If we wait {count} from {item}, which {unit} do we reach?|+",
    "Name the {unit} that follows {item} by {count}|+",
    "Which {unit} lies {count} earlier than {item}?|-",
    "{item} minus {count} gives which {unit}?|-",
    "Counting {count} on from {item}, where do we end?|+",
    "Counting {count} back from {item}, where do we end?|-",
]
BIGGER = [
    "Which is bigger, a {} or a {}?|1",
    "Which is smaller, a {} or a {}?|0",
    "Is a {} larger than a {}, or the other way round?|1",
    "A {} and a {}: which one is tiny beside the other?|0",
    "Who needs the larger bed, a {} or a {}?|1",
    "Who fits through the smaller hole, a {} or a {}?|0",
]


def draw(rng: Random) -> Draft:
    """One small question; the key is the fact together with its wording, as facts cannot be guessed unseen."""
    kind = rng.choice(["step", "step", "bigger", "bigger", *FACTS])
    if kind == "step":
        return step(rng)
    if kind == "bigger":
        return bigger(rng)
    facts, phrasings = FACTS[kind]
    item, answer = rng.choice(facts)
    prompt = rng.choice(phrasings).format(item)
    return Draft(key=prompt, family=kind, prompt=prompt[0].upper() + prompt[1:], answer=answer)


def step(rng: Random) -> Draft:
    """A day or month some steps away from another."""
    unit, names = rng.choice([("day", DAYS), ("month", MONTHS)])
    item, word = rng.randrange(len(names)), rng.choice(list(COUNTS))
    template, sign = rng.choice(STEPS).split("|")
    count = f"{word} {unit}" + ("s" if word != "one" else "")
    prompt = template.format(unit=unit, count=count, item=names[item])
    answer = names[(item + int(sign + "1") * COUNTS[word]) % len(names)]
    return Draft(key=prompt, family=unit, prompt=prompt[0].upper() + prompt[1:], answer=answer)


def bigger(rng: Random) -> Draft:
    """The larger or smaller of two animals; both orders of naming share one key."""
    first, second = rng.sample(range(len(SIZES)), 2)
    template, wanted = rng.choice(BIGGER).split("|")
    low, high = sorted((first, second))
    return Draft(
        key=f"{template} {low} {high}",
        family="bigger",
        prompt=template.format(SIZES[first], SIZES[second]),
        answer=SIZES[high if wanted == "1" else low],
    )
