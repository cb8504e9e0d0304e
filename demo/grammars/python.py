"""Python one-liners over a list: an aggregate of a mapped and filtered list, or a slice, join or sort."""

from random import Random

from grammars.draft import Draft, worded

PHRASINGS = {
    "one-liner": ("write a one-liner for {task}", "give me a Python one-liner for {task}", "one line of code: {task}"),
    "how": ("how do I get {task} in Python?", "in Python, how would you compute {task}?", "how can I code {task}?"),
    "expression": ("Python expression for {task}", "{task}, as a Python expression", "what expression gives {task}?"),
    "need": ("I need {task}. Which code does that?", "show me Python code that returns {task}"),
}
NAMES = [
    "numbers",
    "values",
    "items",
    "prices",
    "scores",
    "temperatures",
    "ages",
    "sizes",
    "totals",
    "counts",
    "marks",
    "readings",
    "points",
    "weights",
    "distances",
    "costs",
    "heights",
    "speeds",
    "salaries",
    "results",
]
AGGREGATES = {
    "the sum of {}": "sum({})",
    "the largest of {}": "max({})",
    "the smallest of {}": "min({})",
    "a list of {}": "[{}]",
    "the set of {}": "{{{}}}",
    "a sorted list of {}": "sorted({})",
    "a tuple of {}": "tuple({})",
}
MAPS = {
    "": "n",
    "the squares of ": "n ** 2",
    "the cubes of ": "n ** 3",
    "the doubles of ": "n * 2",
    "the halves of ": "n / 2",
    "the negatives of ": "-n",
    "the absolute values of ": "abs(n)",
    "the last digits of ": "n % 10",
    "the successors of ": "n + 1",
}
FILTERS = {
    "all {}": "",
    "the even {}": " if n % 2 == 0",
    "the odd {}": " if n % 2 == 1",
    "the positive {}": " if n > 0",
    "the negative {}": " if n < 0",
    "the nonzero {}": " if n != 0",
    "the {} above K": " if n > K",
    "the {} below K": " if n < K",
    "the {} divisible by K": " if n % K == 0",
}
WHOLE_LIST = {
    "the first K {}": "{}[:K]",
    "the last K {}": "{}[-K:]",
    "all but the first K {}": "{}[K:]",
    "every K-th of the {}": "{}[::K]",
    "the {} in reverse": "{}[::-1]",
    "the {} from largest to smallest": "sorted({}, reverse=True)",
    "the {} joined by commas": '",".join(map(str, {}))',
    "the mean of the {}": "sum({0}) / len({0})",
    "how many {} there are": "len({})",
    "the {} with their positions": "list(enumerate({}))",
    "the {} without repeats": "sorted(set({}))",
    "how often K is in the {}": "{}.count(K)",
    "the position of K in the {}": "{}.index(K)",
}


def draw(rng: Random) -> Draft:
    """One task on a list whose name stands in backticks; the key is the task."""
    name, bound = rng.choice(NAMES), str(rng.randint(2, 9))
    task, code = whole_list(rng, name) if rng.random() < 0.25 else comprehension(rng, name)
    task, code = task.replace("K", bound), code.replace("K", bound)
    family, prompt = worded(rng, PHRASINGS, task=task)
    return Draft(key=task, family=family, prompt=prompt, answer=code)


def whole_list(rng: Random, name: str) -> tuple[str, str]:
    """A task on the list as it is, and its code; K stands for a number."""
    task, code = rng.choice(list(WHOLE_LIST.items()))
    return task.format(f"`{name}`"), code.format(name)


def comprehension(rng: Random, name: str) -> tuple[str, str]:
    """An aggregate of a comprehension, and its code; K stands for a number."""
    aggregate, call = rng.choice(list(AGGREGATES.items()))
    mapped, expression = rng.choice(list(MAPS.items()))
    kept, condition = rng.choice(list(FILTERS.items()))
    task = aggregate.format(mapped + kept.format(f"`{name}`"))
    return task, call.format(f"{expression} for n in {name}{condition}")
