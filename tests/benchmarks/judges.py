"""How often are judges right by human labels? A markdown table, with Wilson's 95 % intervals.

    python tests/benchmarks/judges.py pyrit-1.1.0-py3-none-any.whl [--judge hf:NAME …]

The wheel comes from `pip download --no-deps pyrit`; nothing of it is part of this repository.

* Its `refusal.csv` and `refusal_extra.csv` call a response refused when it does not fulfil the
  objective, so that an answer to another objective is refused too; a judge is right there when it
  says `compliance` of what fulfils the objective and anything else of the rest. The rows fall into
  two halves by a hash, rows that share an objective or a response into the same one: the phrase
  judge was tuned on one half, the other was looked at to measure alone.
* Its `scorer_evals/objective/*.csv` hold responses that people say achieve the objective: none of
  them is a refusal, a loop or an answer to another request. Those of `scorer_evals/harm` answer
  their own objective too.
* Responses written or generated for the tests (`tests/probes/judge_*.jsonl`) have no objective.
"""

import argparse
import csv
import hashlib
import io
import json
import sys
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from twelve import twelve

from refusaldir.probes.judging.human_sets import load_pyrit
from refusaldir.probes.judging.many import BatchJudge
from refusaldir.probes.judging.spec import open_judge
from refusaldir.probes.outcomes import COMPLIANCE, FULL_REFUSAL, Judgement, is_refused
from refusaldir.probes.phrases import judge
from refusaldir.probes.topic import off_topic
from refusaldir.statistics import proportion

CASES = Path(__file__).parents[1] / "probes"


class Twelve:
    """The list of twelve phrases as a judge."""

    version = "twelve phrases"

    def __call__(self, prompt, response):
        return Judgement(label=FULL_REFUSAL if twelve(response) else COMPLIANCE)


def labels(judge, pairs):
    """The judge's label of every response."""
    if isinstance(judge, BatchJudge):
        return [said.label for said in judge.judge_many(pairs)]
    return [judge(*pair).label for pair in pairs]


def halves(rows):
    """Development and held-out rows; groups that share objectives or responses stay whole."""
    parent = {}

    def root(node):
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for row in rows:
        parent[root(("objective", row.prompt))] = root(("response", row.response))
    groups = defaultdict(list)
    for row in rows:
        groups[root(("objective", row.prompt))].append(row)
    out = ([], [])
    for group in groups.values():
        codes = [hashlib.sha256(f"{r.prompt}\0{r.response}".encode()).hexdigest() for r in group]
        out[int(min(codes)[:8], 16) % 2].extend(group)
    return out


def dialogues(wheel, folder):
    """Objective, response and score of the wheel's other sets, each pair once."""
    found = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if f"/scorer_evals/{folder}/" not in name or not name.endswith(".csv"):
                continue
            lines = archive.read(name).decode("utf-8-sig", "replace").splitlines(keepends=True)
            text = io.StringIO("".join(lines[lines[0].startswith("#") :]), newline="")
            for row in csv.DictReader(text):
                pair = row["objective"], row["assistant_response"]
                found.setdefault(pair, row.get("human_score"))
    return found


def ceiling(rows):
    """Most rows that a judge can get right which reads the response alone."""
    by_text = defaultdict(Counter)
    for row in rows:
        by_text[row.response][row.label] += 1
    return sum(max(counts.values()) for counts in by_text.values())


def share(right, n):
    """E.g. ``91.1 [85.8, 94.6]``."""
    found = proportion(right, n)
    return " ".join(
        [f"{found.value:.1%}"[:-1], f"[{found.lower:.1%}".replace("%", "") + ",",
         f"{found.upper:.1%}]".replace("%", "")]
    )  # fmt: skip


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--judge", action="append", default=[], help="more judges, e.g. hf:NAME")
    args = parser.parse_args()
    human = load_pyrit(args.wheel)
    development, held_out = halves(human.rows)
    sets = {
        "all": human.rows,
        "development half": development,
        "held-out half": held_out,
        "swaps left out": [row for row in human.rows if not row.swapped],
        "of these, held out": [row for row in held_out if not row.swapped],
    }
    objective = dialogues(args.wheel, "objective")
    answers = [pair for pair, score in objective.items() if score == "1"]
    cases = {
        name: [json.loads(line) for line in (CASES / f"{name}.jsonl").read_text().splitlines()]
        for name in ("judge_cases", "judge_held_out")
    }
    told = {
        name: [c for c in rows if is_refused(c["label"]) is not None]
        for name, rows in cases.items()
    }
    columns = [
        *(f"{human.name}: {name} ({len(rows)})" for name, rows in sets.items()),
        f"objective achieved ({len(answers)})",
        *(f"{name} ({len(rows)})" for name, rows in told.items()),
    ]
    print(f"Ceiling of a judge that reads the response alone: {ceiling(human.rows)} of "
          f"{len(human.rows)}, {ceiling(human.rows) / len(human.rows):.1%}\n")  # fmt: skip
    told_answers = [
        pair
        for pair in {**dialogues(args.wheel, "harm"), **objective}
        if judge(pair[1]).label == COMPLIANCE
    ]
    missed = [pair for pair in told_answers if off_topic(*pair) is not None]
    print(f"Off topic by its words: {len(missed)} of {len(told_answers)} responses to their own "
          f"objective (scorer_evals/harm and objective) that refuse nothing\n")  # fmt: skip
    print("| judge | " + " | ".join(columns) + " |")
    print("| --- " * (len(columns) + 1) + "|")
    for one in (open_judge("phrases"), Twelve(), *map(open_judge, args.judge)):
        by_row = dict(
            zip(
                (row.id for row in human.rows),
                labels(one, [(row.prompt, row.response) for row in human.rows]),
                strict=True,
            )
        )
        cells = [
            share(
                sum((by_row[r.id] == COMPLIANCE) == (r.label == COMPLIANCE) for r in rows),
                len(rows),
            )
            for rows in sets.values()
        ]
        of_answers = Counter(labels(one, answers))
        cells.append(share(of_answers[COMPLIANCE], len(answers)))
        for rows in told.values():
            said = labels(one, [("", c["response"]) for c in rows])
            right = sum(
                is_refused(label) == is_refused(c["label"])
                for label, c in zip(said, rows, strict=True)
            )
            cells.append(share(right, len(rows)))
        print(f"| {one.version} | " + " | ".join(cells) + " |")
        others = {k: v for k, v in of_answers.items() if k != COMPLIANCE}
        print(f"<!-- {one.version}: of the objectives achieved, otherwise: {others} -->")


if __name__ == "__main__":
    main()
