"""English noun phrases and their French: gender, number, elision and the place of the adjective."""

from random import Random

from grammars.draft import Draft, worded

PHRASINGS = {
    "translate": ("translate into French: {en}", "please translate '{en}' to French", "English to French: {en}"),
    "say": ("how do you say '{en}' in French?", "how would a Parisian say '{en}'?", "say {en} in French"),
    "ask": ("what is '{en}' in French?", "{en}, in French please", "what is the French for {en}?"),
    "write": ("I'm writing to a friend in Lyon. How do I put '{en}'?", "write '{en}' in French"),
}

# English singular and plural, French singular and plural
MASCULINE = """
cat cats chat chats, dog dogs chien chiens, horse horses cheval chevaux, bird birds oiseau oiseaux,
tree trees arbre arbres, book books livre livres, boat boats bateau bateaux, garden gardens jardin jardins,
hat hats chapeau chapeaux, coat coats manteau manteaux, bag bags sac sacs, bridge bridges pont ponts,
village villages village villages, castle castles château châteaux, mirror mirrors miroir miroirs,
knife knives couteau couteaux, glass glasses verre verres, train trains train trains, bed beds lit lits
"""
FEMININE = """
house houses maison maisons, car cars voiture voitures, table tables table tables, chair chairs chaise chaises,
door doors porte portes, window windows fenêtre fenêtres, key keys clé clés, flower flowers fleur fleurs,
shirt shirts chemise chemises, dress dresses robe robes, star stars étoile étoiles, school schools école écoles,
church churches église églises, island islands île îles, lamp lamps lampe lampes, apple apples pomme pommes,
bottle bottles bouteille bouteilles, street streets rue rues, letter letters lettre lettres,
box boxes boîte boîtes, spoon spoons cuillère cuillères
"""
NOUNS = [
    (*words.split(), gender) for gender, block in (("m", MASCULINE), ("f", FEMININE)) for words in block.split(",")
]

# English; French masculine, before a masculine vowel, feminine, masculine plural, feminine plural
BEFORE = [
    line.split()
    for line in """little petit petit petite petits petites
big grand grand grande grands grandes
pretty joli joli jolie jolis jolies
good bon bon bonne bons bonnes
beautiful beau bel belle beaux belles
new nouveau nouvel nouvelle nouveaux nouvelles
old vieux vieil vieille vieux vieilles""".splitlines()
]
# English; French masculine, feminine, masculine plural, feminine plural
AFTER = [
    line.split()
    for line in """black noir noire noirs noires
white blanc blanche blancs blanches
red rouge rouge rouges rouges
green vert verte verts vertes
blue bleu bleue bleus bleues
yellow jaune jaune jaunes jaunes
grey gris grise gris grises
purple violet violette violets violettes
heavy lourd lourde lourds lourdes
light léger légère légers légères
strange étrange étrange étranges étranges
modern moderne moderne modernes modernes
round rond ronde ronds rondes
expensive cher chère chers chères
perfect parfait parfaite parfaits parfaites
broken cassé cassée cassés cassées""".splitlines()
]
# English; French masculine, masculine before a vowel, feminine, feminine before a vowel
SINGULAR = {
    "the": ("le", "l'", "la", "l'"),
    "a": ("un", "un", "une", "une"),
    "my": ("mon", "mon", "ma", "mon"),
    "your": ("ton", "ton", "ta", "ton"),
    "this": ("ce", "cet", "cette", "cette"),
    "our": ("notre", "notre", "notre", "notre"),
}
PLURAL = {"the": "les", "some": "des", "my": "mes", "your": "tes", "these": "ces", "two": "deux", "three": "trois"}


def draw(rng: Random) -> Draft:
    """One noun phrase of a determiner, up to two adjectives and a noun; the key is the English phrase."""
    english_one, english_many, french_one, french_many, gender = rng.choice(NOUNS)
    before = rng.choice([None, *BEFORE, *BEFORE])
    after = rng.choice([None, *AFTER])
    adjectives = [adjective[0] for adjective in (before, after) if adjective]
    if rng.random() < 0.5:
        determiner = rng.choice(list(SINGULAR))
        english = " ".join([determiner, *adjectives, english_one])
        french = singular(determiner, before, french_one, after, gender)
    else:
        determiner = rng.choice(list(PLURAL))
        english = " ".join([determiner, *adjectives, english_many])
        french = plural(determiner, before, french_many, after, gender)
    if determiner == "a" and english[2] in "aeiou":
        english = "an" + english[1:]
    family, prompt = worded(rng, PHRASINGS, en=english)
    return Draft(key=english, family=family, prompt=prompt, answer=french)


def singular(determiner: str, before: list[str] | None, noun: str, after: list[str] | None, gender: str) -> str:
    """The French of one thing, its words agreeing with the noun and with the sound that follows them."""
    feminine = gender == "f"
    words = [noun]
    if before:
        words.insert(0, before[3] if feminine else before[2 if starts_with_vowel(noun) else 1])
    if after:
        words.append(after[2 if feminine else 1])
    article = SINGULAR[determiner][2 * feminine + starts_with_vowel(words[0])]
    phrase = " ".join(words)
    return f"{article}{phrase}" if article.endswith("'") else f"{article} {phrase}"


def plural(determiner: str, before: list[str] | None, noun: str, after: list[str] | None, gender: str) -> str:
    """The French of several things; `des` becomes `de` before an adjective."""
    feminine = gender == "f"
    words = ["de" if determiner == "some" and before else PLURAL[determiner]]
    if before:
        words.append(before[4 + feminine])
    words.append(noun)
    if after:
        words.append(after[3 + feminine])
    return " ".join(words)


def starts_with_vowel(word: str) -> bool:
    """Whether French elides before this word (no noun here begins with h)."""
    return word[0] in "aeiouéîœ"
