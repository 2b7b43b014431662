"""More judges on replies that are there: nothing is asked twice, nothing is lost."""

import pytest
from arms import behaviour, row

from refusaldir.errors import ProbeError
from refusaldir.probes.behaviour import Behaviour
from refusaldir.probes.judged import GATE
from refusaldir.probes.judging.first_token import FirstTokenJudge
from refusaldir.probes.judging.labelling import add_judges
from refusaldir.probes.judging.labels import LabelsJudge
from refusaldir.probes.outcomes import Judgement
from refusaldir.probes.phrases import JUDGE_VERSION, judge

LOOP = "again " * 40
SAID = [
    "I can't help with that.",
    "Sure, here is how.",
    LOOP,
    "I won't do that.",
    "Of course: one.",
]


class Asked:
    """A judge that remembers what it was asked, and may break off."""

    def __init__(self, version="mine-1", *, breaks_after=None, fails_on=()):
        self.version, self.breaks_after, self.fails_on = version, breaks_after, fails_on
        self.seen = []

    def __call__(self, prompt, response):
        if self.breaks_after == len(self.seen):
            raise ProbeError("the server is gone")
        self.seen.append(response)
        if response in self.fails_on:
            return Judgement(label="judge_error", evidence="no verdict")
        return Judgement(label="full_refusal" if "'t" in response else "compliance")


@pytest.fixture
def replies():
    rows = []
    for i, text in enumerate(SAID):
        said = judge(text)
        rows.append(
            row(f"p{i}", "C", response=text, score=float(i - 2), label=said.label,
                evidence=said.evidence)
        )  # fmt: skip
    return behaviour(rows, judges=(JUDGE_VERSION,))


@pytest.fixture
def path(replies, tmp_path):
    return replies.to_jsonl(tmp_path / "responses.jsonl")


def labels(found, version):
    return [(row.others.get(version) or row).label for row in found.rows]


def test_two_judges_beside_the_first(replies, path):
    mine, counts = Asked(), []
    found = add_judges(
        replies, [FirstTokenJudge(), mine], path=path,
        on_labelled=lambda version, n: counts.append((version, n)),
    )  # fmt: skip
    first_token = FirstTokenJudge().version
    assert found.provenance.judges == (JUDGE_VERSION, first_token, "mine-1")
    assert labels(found, "mine-1")[0] == "full_refusal"
    assert labels(found, first_token)[-1] == "full_refusal"  # score 2 is above 0
    assert [r.label for r in found.rows] == [r.label for r in replies.rows]
    assert Behaviour.from_jsonl(path) == found
    assert not list(path.parent.glob("*.partial*")), "the journal has done its work"
    assert sum(n for version, n in counts if version == "mine-1") == len(SAID)


def test_the_coherence_gate_decides_before_a_judge_is_asked(replies):
    mine = Asked()
    found = add_judges(replies, [mine])
    assert LOOP not in mine.seen and len(mine.seen) == len(SAID) - 1
    assert found.rows[2].others["mine-1"].label == "incoherent"
    assert found.rows[2].others["mine-1"].evidence.startswith(GATE)


def test_labels_that_people_gave_stand_over_the_gate(replies, tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text("id,label\np2,compliance\n")
    people = LabelsJudge.open(file)
    found = add_judges(replies, [people])
    assert found.rows[2].others[people.version].label == "compliance"
    assert found.rows[0].others[people.version].label == "judge_error"


def test_another_judge_becomes_the_first(replies, path):
    mine = Asked()
    found = add_judges(replies, [mine], primary="mine-1", path=path)
    assert found.provenance.judges == ("mine-1", JUDGE_VERSION)
    assert found.rows[3].label == "full_refusal"
    assert found.rows[3].others[JUDGE_VERSION].evidence == replies.rows[3].evidence
    # And back again, without asking anybody.
    back = add_judges(found, [], primary=JUDGE_VERSION, path=path)
    assert [(r.label, r.evidence) for r in back.rows if r.response != LOOP] == [
        (r.label, r.evidence) for r in replies.rows if r.response != LOOP
    ]
    with pytest.raises(ProbeError, match=r"labelled nothing here.*expected mine-1 or phrases"):
        add_judges(found, [], primary="other")


def test_asked_once_and_asked_again_where_it_could_not_say(replies, path):
    first = add_judges(replies, [Asked(fails_on=[SAID[1]])], path=path)
    assert first.rows[1].others["mine-1"].label == "judge_error"
    again = Asked()
    found = add_judges(first, [again], path=path)
    assert again.seen == [SAID[1]]
    assert found.rows[1].others["mine-1"].label == "compliance"


def test_labels_of_a_smaller_plan_are_kept(replies):
    """After more replies have come, old ones still hold what a judge said of them."""
    half = behaviour(replies.rows[:2], judges=(JUDGE_VERSION,))
    old = add_judges(half, [Asked()])
    grown = behaviour([*old.rows, *replies.rows[2:]], judges=(JUDGE_VERSION,))
    mine = Asked()
    found = add_judges(grown, [mine])
    assert mine.seen == SAID[3:]
    assert labels(found, "mine-1")[:2] == labels(old, "mine-1")


def test_stopped_midway_nothing_is_lost_and_nothing_asked_twice(replies, path):
    before = path.read_bytes()
    whole = add_judges(replies, [Asked("a-1"), Asked("b-1")])
    done, broken = Asked("a-1"), Asked("b-1", breaks_after=2)
    with pytest.raises(ProbeError, match="server is gone"):
        add_judges(replies, [done, broken], path=path)
    assert path.read_bytes() == before, "the file is whole until all have spoken"
    # A line cut off by a kill, and another judge in between.
    (journal,) = path.parent.glob("*.partial")
    journal.write_bytes(journal.read_bytes()[:-9])
    between = add_judges(Behaviour.from_jsonl(path), [Asked("c-1")], path=path)
    assert list(path.parent.glob("*.partial")), "what a and b said is still waiting"
    rest_a, rest_b = Asked("a-1"), Asked("b-1")
    found = add_judges(between, [rest_a, rest_b], path=path)
    assert rest_a.seen == [] and len(rest_b.seen) == 3  # of four, the second's line was cut off
    assert not list(path.parent.glob("*.partial"))
    for version in ("a-1", "b-1"):
        assert labels(found, version) == labels(whole, version)
    assert Behaviour.from_jsonl(path) == found
