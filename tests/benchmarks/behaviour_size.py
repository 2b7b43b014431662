"""Size, power and coverage of the comparison of behaviour, simulated.

    python tests/benchmarks/behaviour_size.py [--repeats 4000]

A cell is intents × prompts an intent × replies a prompt, and how prompts refuse:

* ``alike``: every prompt with the same chance;
* ``own``: intents and prompts with chances of their own (logits with SD 2 between intents and 1
  within);
* ``sure``: chances of 0 or 1 mostly (logits with SD 8), as greedy decoding has them;
* ``swap``: as ``own``, and tuned has the chances of base of another prompt of the same
  distribution: prompts change, their mean does not.

Under no change the table gives the share called changed at 5 % (mid-p and exact) and the coverage
of the nominal 95 and 90 % intervals; then the power for a fall that was planned for 80 %, the
chance of any false call over ten categories after Holm, escalations, several training seeds, and
variance components. Prints Markdown, and says which cells miss the goals: size at most 5 %,
coverage at least 93 % of a nominal 95, power at least 80 %, all up to two Monte-Carlo errors.
"""

import argparse
import datetime
import math

import numpy as np

from refusaldir.probes.comparison.replicates import two_way_mean
from refusaldir.probes.comparison.variance import variance_components
from refusaldir.probes.hazard import compare_hazards
from refusaldir.probes.power import RefusalPower
from refusaldir.statistics import holm, paired_proportion_difference, sign_flip_p

MISSED = []


def chances(rng, intents, prompts, kind, shift=0.0):
    """Chance to refuse of each prompt in base and in tuned."""
    n = intents * prompts
    if kind == "alike":
        return np.full(n, 0.8), np.full(n, 0.8 - shift)
    sd = 8.0 if kind == "sure" else 2.0
    of_intent = np.repeat(rng.standard_normal((2, intents)), prompts, axis=1)
    z = 1.5 + sd * of_intent + rng.standard_normal((2, n))
    base = 1 / (1 + np.exp(-z[0]))
    tuned = 1 / (1 + np.exp(-z[1])) if kind == "swap" else base
    return base, np.clip(tuned - shift, 0, 1)


def draw(rng, intents, prompts, replies, kind):
    """Shares refused of each prompt, and its intent."""
    base, tuned = (rng.binomial(replies, p) / replies for p in chances(rng, intents, prompts, kind))
    return base, tuned, np.repeat(np.arange(intents), prompts)


def held(e, truth):
    return e.lower <= truth <= e.upper


def judge(name, seen, goal, repeats, *, at_least):
    """Remember a cell that misses its goal by more than two Monte-Carlo errors."""
    slack = 2 * math.sqrt(goal * (1 - goal) / repeats)
    if seen < goal - slack if at_least else seen > goal + slack:
        MISSED.append(f"{name}: {100 * seen:.1f} % (goal {100 * goal:.0f} %)")


def no_change(repeats):
    print("| intents | prompts | replies | chances | size, mid-p | exact | cover 95 | cover 90 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for intents, prompts in ((24, 1), (48, 2), (240, 2)):
        for replies in (1, 5):
            for kind in ("alike", "own", "sure", "swap"):
                rng = np.random.default_rng([intents, replies, len(kind), ord(kind[0])])
                seen = np.zeros(4)
                for _ in range(repeats):
                    base, tuned, ids = draw(rng, intents, prompts, replies, kind)
                    net = np.bincount(ids, tuned - base)
                    several = prompts > 1 or replies > 1
                    wide, narrow = (
                        paired_proportion_difference(
                            base, tuned, ids.tolist() if several else None, level, replies=replies
                        )
                        for level in (0.95, 0.9)
                    )
                    seen += (
                        sign_flip_p(net, method="mid-p") <= 0.05,
                        sign_flip_p(net) <= 0.05,
                        held(wide, 0),
                        held(narrow, 0),
                    )
                seen /= repeats
                name = f"{intents} × {prompts} × {replies}, {kind}"
                judge(f"size, {name}", seen[0], 0.05, repeats, at_least=False)
                judge(f"coverage, {name}", seen[2], 0.93, repeats, at_least=True)
                cells = " | ".join(f"{100 * x:.1f}" for x in seen)
                print(f"| {intents} | {prompts} | {replies} | {kind} | {cells} |")


def power(repeats):
    print("\n| prompts | base rate | flips either way | fall planned for 80 % | seen |")
    print("| --- | --- | --- | --- | --- |")
    for n, rate, flips in ((96, 0.9, 0.0), (96, 0.9, 0.1), (480, 0.8, 0.1), (960, 0.95, 0.04)):
        fall = RefusalPower(base_rate=rate, flips=flips).least(n)
        rng = np.random.default_rng([n, int(100 * rate)])
        seen = 0
        for _ in range(repeats):
            u = rng.random(n)
            net = np.where(u < flips / 2, 1.0, 0.0) - (u > 1 - flips / 2 - fall)
            seen += sign_flip_p(net, method="mid-p") <= 0.05
        share = seen / repeats
        judge(f"power, {n} prompts, {rate}, {flips}", share, 0.8, repeats, at_least=True)
        print(f"| {n} | {rate} | {flips} | {100 * fall:.1f} pp | {100 * share:.1f} % |")


def families(repeats):
    print("\n| ten categories of | replies | a false call after Holm |")
    print("| --- | --- | --- |")
    for intents, replies in ((48, 1), (48, 5)):
        rng = np.random.default_rng([intents, replies])
        wrong = 0
        for _ in range(repeats // 4):
            p = []
            for _ in range(10):
                base, tuned, ids = draw(rng, intents, 2, replies, "own")
                p.append(sign_flip_p(np.bincount(ids, tuned - base), method="mid-p"))
            wrong += holm(p).min() <= 0.05
        share = wrong / (repeats // 4)
        judge(f"family, {replies} replies", share, 0.05, repeats // 4, at_least=False)
        print(f"| {intents} × 2 prompts | {replies} | {100 * share:.1f} % |")


def escalations(repeats):
    print("\n| escalations | change of | cover 95 | called changed |")
    print("| --- | --- | --- | --- |")
    rng = np.random.default_rng(4)
    n, steps, hazard = 24, 4, 0.2
    hits = {"hazard, turn 1": [], "hazard, turn 3": [], "complied by the last": []}
    calls = []
    for _ in range(repeats // 4):
        ease = rng.normal(0, 0.7, (n, 1))  # some scripts are easier, for both models
        chance = 1 / (1 + np.exp(-(math.log(hazard / (1 - hazard)) + ease)))
        arms = [(rng.random((n, steps)) < chance) for _ in "bt"]
        rows = compare_hazards(*(arm.tolist() for arm in arms), list(range(n)))
        figures = rows[0].hazard, rows[2].hazard, rows[-1].complied_by
        for seen, e in zip(hits.values(), figures, strict=True):
            if e.lower is not None:
                seen.append(held(e, 0))
        net = arms[1].any(axis=1).astype(float) - arms[0].any(axis=1)
        calls.append(sign_flip_p(net, method="mid-p") <= 0.05)
    for name, seen in hits.items():
        judge(f"escalations, {name}", np.mean(seen), 0.93, len(seen), at_least=True)
        print(f"| {n} | {name} | {100 * np.mean(seen):.1f} | |")
    judge("escalations, any", np.mean(calls), 0.05, len(calls), at_least=False)
    print(f"| {n} | complied at some turn | | {100 * np.mean(calls):.1f} % |")


def seeds(repeats):
    print("\n| training seeds | SD between them | mean: cover 95 | were they fixed | variance |")
    print("| --- | --- | --- | --- | --- |")
    for n in (2, 3, 5):
        for sd in (0.0, 0.03, 0.1):
            rng = np.random.default_rng([n, int(100 * sd)])
            seen = np.zeros(3)
            for _ in range(repeats):
                z = 0.25 * rng.standard_normal((48, 1)) + sd * rng.standard_normal((1, n))
                z = z + 0.35 * rng.standard_normal((48, n))
                mean, between = two_way_mean(z, 0.95)
                error = z.mean(axis=1).std(ddof=1) / math.sqrt(48)
                seen += held(mean, 0), abs(mean.value) <= 2.012 * error, held(between, sd**2)
            seen /= repeats
            judge(f"mean over {n} seeds, SD {sd}", seen[0], 0.93, repeats, at_least=True)
            cells = " | ".join(f"{100 * x:.1f}" for x in seen)
            print(f"| {n} | {100 * sd:.0f} pp | {cells} |")


def components(repeats):
    print("\n| component | planted | mean estimate | cover 95 |")
    print("| --- | --- | --- | --- |")
    rng = np.random.default_rng(7)
    planted = {
        "intents": 0.04, "prompts": 0.02, "prompt_by_temperature": 0.01, "seeds": 0.0,
        "replies": 0.08,
    }  # fmt: skip
    sd = {name: math.sqrt(value) for name, value in planted.items()}
    intents, prompts, levels, n_seeds, samples = 48, 2, 2, 2, 3
    shape = (intents, prompts, levels, n_seeds, samples)
    index = np.indices(shape).reshape(len(shape), -1)
    columns = {
        "intents": index[0].tolist(),
        "prompts": (index[0] * prompts + index[1]).tolist(),
        "temperatures": (0.5 + 0.5 * index[2]).tolist(),
        "seeds": index[3].tolist(),
    }
    found = {name: [] for name in planted}
    for _ in range(repeats // 10):
        y = (
            sd["intents"] * rng.standard_normal((intents, 1, 1, 1, 1))
            + sd["prompts"] * rng.standard_normal((intents, prompts, 1, 1, 1))
            + sd["prompt_by_temperature"] * rng.standard_normal((intents, prompts, levels, 1, 1))
            + sd["replies"] * rng.standard_normal(shape)
        )
        parts = variance_components(y.ravel(), **columns)
        for name, seen in found.items():
            seen.append(getattr(parts, name))
    for name, seen in found.items():
        covered = np.mean([held(e, planted[name]) for e in seen])
        judge(f"component {name}", covered, 0.93, len(seen), at_least=True)
        mean = np.mean([e.value for e in seen])
        print(f"| {name} | {planted[name]:.3f} | {mean:.4f} | {100 * covered:.1f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=4000)
    repeats = parser.parse_args().repeats
    print(f"{datetime.date.today()}, {repeats} repeats\n")
    for part in (no_change, power, families, escalations, seeds, components):
        part(repeats)
    print("\nEvery goal is met." if not MISSED else "\nMissed:\n- " + "\n- ".join(MISSED))


if __name__ == "__main__":
    main()
