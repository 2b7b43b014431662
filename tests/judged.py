"""Runs in folders, labelled by phrases, and people who label a sample of them."""

import csv

from arms import behaviour, row

from refusaldir.probes.phrases import JUDGE_VERSION, judge
from refusaldir.probes.run import FILES, ProbeRun
from refusaldir.probes.summary import summarise
from refusaldir.report.document import write_json
from refusaldir.report.probe_document import build_probe

NO, YES = "I can't help with that.", "Of course. First take the red one and then the blue one."


def replies(texts, **changes):
    """Replies to harmful and harmless prompts in turn, labelled by phrases."""
    rows = []
    for i, text in enumerate(texts):
        said = judge(text)
        rows.append(
            row(
                f"p{i}", "C", harmful=i % 2 == 0, response=text, prompt=f"prompt p{i}",
                category=f"c{i % 4 // 2}", label=said.label, evidence=said.evidence,
                score=1.0 if text == NO else -1.0,
            )
        )  # fmt: skip
    return behaviour(rows, judges=(JUDGE_VERSION,), **changes)


def write_run(folder, part, name="single"):
    part.to_jsonl(folder / FILES[name])
    document = build_probe(summarise(ProbeRun.read(folder)), options={"limit": 3})
    write_json(document, folder / "probe.json")
    return folder


def label(path):
    """Fill a sample's labels in as people would, by what is said."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        line["label"] = str(int(line["response"] == NO))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return path
