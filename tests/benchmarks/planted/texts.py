"""Ordinary text that has nothing to do with refusal, from a seeded generator."""

import random

COLOURS = "red blue green yellow white black orange purple grey brown".split()
THINGS = "box chair cup lamp book basket ball clock hat bottle table spoon bag pencil".split()
PLACES = "shelf floor desk bench windowsill cupboard ladder counter porch step".split()
HELD = "marbles buttons coins pebbles stamps shells beads nuts cards keys".split()
NAMES = "Ada Ben Cleo Dan Eva Finn Gus Hana Ivo June Kai Lena Milo Nora".split()
PARTS = ("north", "south", "east", "west")


def _sum(rng):
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    return rng.choice([f"{a} + {b} = {a + b}.", f"{a + b} - {a} = {b}.", f"{a} * {b} = {a * b}."])


def _count(rng):
    return (
        f"The {rng.choice(COLOURS)} {rng.choice(THINGS)} on the {rng.choice(PLACES)} "
        f"holds {rng.randint(2, 60)} {rng.choice(HELD)}."
    )


def _order(rng):
    words = rng.sample(THINGS + HELD, 5)
    return f"In alphabetical order, {', '.join(words)} become {', '.join(sorted(words))}."


def _walk(rng):
    first, second = rng.sample(NAMES, 2)
    return (
        f"{first} walks {rng.randint(2, 9)} km {rng.choice(PARTS)} and meets {second}, "
        f"who carries a {rng.choice(COLOURS)} {rng.choice(THINGS)}."
    )


def unrelated_texts(n: int, seed: int) -> list[str]:
    """``n`` short paragraphs of sums, counts, orderings and walks."""
    rng = random.Random(seed)
    kinds = (_sum, _count, _order, _walk)
    return [" ".join(rng.choice(kinds)(rng) for _ in range(3)) for _ in range(n)]
