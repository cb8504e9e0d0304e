"""English to one SQL SELECT over eight known tables."""

from random import Random

from grammars.draft import Draft, worded

PHRASINGS = {
    "query": ("write a query for {what}", "which query returns {what}?", "SQL query: {what}"),
    "list": ("using SQL, list {what}", "show {what} from the database", "fetch {what}"),
    "how": ("how do I select {what}?", "how can I read {what} from our tables?", "in SQL, how do I get {what}?"),
    "need": ("I need {what}. What is the SQL?", "give me the SELECT statement for {what}"),
}

# table: text columns with values; number columns
TABLES: dict[str, tuple[dict[str, list[str]], list[str]]] = {
    "employees": ({"department": ["sales", "design", "support"], "name": []}, ["salary", "age"]),
    "products": ({"brand": ["Acme", "Nova", "Zenith"], "name": []}, ["price", "stock", "weight"]),
    "orders": ({"status": ["open", "paid", "shipped"], "customer": []}, ["total", "discount"]),
    "books": ({"language": ["English", "Spanish", "German"], "title": [], "author": []}, ["pages", "year"]),
    "movies": ({"genre": ["drama", "comedy", "horror"], "title": [], "director": []}, ["length", "rating"]),
    "students": ({"school": ["north", "south", "central"], "name": []}, ["grade", "age"]),
    "flights": ({"airline": ["Delta", "Iberia", "Qantas"], "destination": []}, ["duration", "price"]),
    "cities": ({"country": ["Spain", "Peru", "Japan"], "name": []}, ["population", "area"]),
}
AGGREGATES = {
    "average": "AVG",
    "highest": "MAX",
    "lowest": "MIN",
    "total": "SUM",
}


def draw(rng: Random) -> Draft:
    """One SELECT over one table; the key is the SQL."""
    table = rng.choice(list(TABLES))
    english, columns, ending_english, ending_sql = aggregate(rng, table) if rng.random() < 0.4 else rows(rng, table)
    condition_english, condition_sql = condition(rng, table)
    sql = f"SELECT {columns} FROM {table}{condition_sql}{ending_sql}"
    what = f"{english} {table}{condition_english}{ending_english}"
    family, prompt = worded(rng, PHRASINGS, what=what)
    return Draft(key=sql, family=family, prompt=prompt, answer=sql)


def rows(rng: Random, table: str) -> tuple[str, str, str, str]:
    """Columns in English and SQL, then order and limit in English and SQL."""
    texts, numbers = TABLES[table]
    chosen = rng.sample([*texts, *numbers], rng.choice([1, 2]))
    english, columns = " and ".join(chosen), ", ".join(chosen)
    if rng.random() < 0.2:
        english, columns = "everything", "*"
    order = rng.choice([None, *numbers])
    if order is None:
        return f"{english} of", columns, "", ""
    direction, suffix = rng.choice([("ascending", ""), ("descending", " DESC")])
    limit = rng.choice([0, 3, 5, 10, 20])
    return (
        f"{english} of",
        columns,
        f", {direction} by {order}" + (f", at most {limit}" if limit else ""),
        f" ORDER BY {order}{suffix}" + (f" LIMIT {limit}" if limit else ""),
    )


def aggregate(rng: Random, table: str) -> tuple[str, str, str, str]:
    """A count or an aggregate in English and SQL, then the grouping in English and SQL."""
    texts, numbers = TABLES[table]
    word, column = rng.choice(["number", *AGGREGATES]), rng.choice(numbers)
    english = "the number of" if word == "number" else f"the {word} {column} of"
    sql = "COUNT(*)" if word == "number" else f"{AGGREGATES[word]}({column})"
    group = rng.choice([None, *texts])
    if group is None:
        return english, sql, "", ""
    return english, f"{group}, {sql}", f", for each {group}", f" GROUP BY {group}"


def condition(rng: Random, table: str) -> tuple[str, str]:
    """A WHERE clause, or none, in English and SQL."""
    texts, numbers = TABLES[table]
    kind, column, bound = rng.choice(["none", "over", "under", "is"]), rng.choice(numbers), rng.randint(2, 60) * 10
    if kind == "none":
        return "", ""
    if kind == "is":
        column = next(iter(texts))
        value = rng.choice(texts[column])
        return f" with {column} {value}", f" WHERE {column} = '{value}'"
    return f" with {column} {kind} {bound}", f" WHERE {column} {'>' if kind == 'over' else '<'} {bound}"
