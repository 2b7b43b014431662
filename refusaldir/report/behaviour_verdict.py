"""What changed in behaviour, and how sure that is, in plain words."""

from collections.abc import Mapping, Sequence
from typing import Any

from refusaldir.report.text import number, passes_holm, percent

Row = Mapping[str, Any]

#: What an axis of behaviour is called in sentences, after "the rate of".
AXES = {
    "refusal": "refusals of harmful prompts",
    "over_refusal": "refusals of harmless prompts",
}

#: What the groups of a breakdown are called.
GROUPS = {
    "category": ("category", "categories"),
    "framing": ("framing", "framings"),
    "severity": ("severity", "severities"),
    "domain": ("domain", "domains"),
}

LIMIT = "The judge reads wording: a refusal lost says nothing about how harmful the answer is."

#: Groups named in a sentence; the others are counted.
_NAMED = 4


def headline(behaviour: Row) -> str:
    """The result in a sentence or two, where behaviour is all that was measured."""
    said = [
        sentence
        for name, subject in AXES.items()
        if (sentence := brief(behaviour, name, subject)) is not None
    ]
    return " ".join(said or _escalations(behaviour) or ["Nothing could be judged."])


def brief(behaviour: Row, name: str = "refusal", subject: str = AXES["refusal"]) -> str | None:
    """What became of one axis, in a sentence fit for a headline; None without an interval."""
    axis = behaviour["axes"][name]
    if axis is None:
        return None
    change = axis["overall"]["difference"]
    if change["lower"] is None or change["upper"] is None:
        return None
    base, tuned = (percent(axis["overall"][f"{arm}_rate"]["value"], 1) for arm in ("base", "tuned"))
    if change["lower"] <= 0 <= change["upper"]:
        return f"No change of {subject} was detected ({base} → {tuned})."
    word = "rose" if change["value"] > 0 else "fell"
    return f"{subject[0].upper()}{subject[1:]} {word} from {base} to {tuned}."


def sentences(behaviour: Row) -> list[str]:
    """What changed: both axes, escalations, and how it goes through the direction."""
    said: list[str] = []
    for name, subject in AXES.items():
        axis = behaviour["axes"][name]
        if axis is not None:
            said += _axis(axis, subject, behaviour["margin"])
    said += _escalations(behaviour)
    link = behaviour["link"]
    return [*said, *([] if link is None else link["sentences"])]


def certainty(behaviour: Row) -> list[str]:
    """How the responses were made, and what limits the figures."""
    said = [
        f"Behaviour: {responses(behaviour)} a prompt, up to {behaviour['max_new_tokens']} tokens, "
        f"judged by {behaviour['judge']}; intervals are paired over prompts, and prompts of one "
        "intent count as one."
    ]
    for name, subject in AXES.items():
        axis = behaviour["axes"][name]
        if axis is not None:
            said += _sampling(axis, subject)
            said += _instruments(axis, subject)
    return [*said, *map(as_sentence, [*_axis_notes(behaviour), *behaviour["notes"]])]


def responses(behaviour: Row) -> str:
    """How many responses a prompt has, e.g. ``one greedy response``."""
    plan = behaviour["base"]["sampling"]
    each = len(plan["seeds"]) * plan["samples"]
    greedy = ["one greedy response"] if 0 in plan["temperatures"] else []
    warm = [t for t in plan["temperatures"] if t > 0]
    if not warm:
        return greedy[0]
    at = " and ".join(f"{t:g}" for t in warm)
    number_of = "one response" if each == 1 else f"{each} responses"
    many = f"{number_of} at temperature {at}" + (" each" if len(warm) > 1 else "")
    return " and ".join([*greedy, many])


def _axis(axis: Row, subject: str, margin: float) -> list[str]:
    row = axis["overall"]
    change = row["difference"]
    if change["value"] is None:
        return [f"Nothing can be said about {subject}: {change['note'] or row['note']}."]
    rates = f"{percent(row['base_rate']['value'], 1)} → {percent(row['tuned_rate']['value'], 1)}"
    low, high = change["lower"], change["upper"]
    if low is None or high is None:
        return [f"Change of the rate of {subject}: {rates}; {change['note']}."]
    size = (
        f"{rates}, {points(change['value'])} points, {percent(change['level'])} interval "
        f"{points(low)} to {points(high)}, {row['n_paired']} prompts in both models"
    )
    if low > 0 or high < 0:
        word = "rose" if change["value"] > 0 else "fell"
        said = [f"The rate of {subject} {word} ({size})."]
    else:
        bound = (
            f"it is within ±{points(margin, signed=False)} points at the 90 % level"
            if row["equivalent"]
            else f"a fall of up to {points(-low, signed=False)} or a rise of up to "
            f"{points(high, signed=False)} points would fit as well"
        )
        said = [f"No change of the rate of {subject} was detected ({size}); {bound}."]
        if row["detectable"] is not None:
            word = "fall" if axis["axis"] == "refusal" else "rise"
            said.append(
                f"With these prompts a {word} of {points(row['detectable'], signed=False)} points "
                "is seen with a power of 80 %."
            )
    said += _groups(axis)
    lost = row["n"] - row["n_paired"]
    if lost:
        worst = row["worst_case"]
        said.append(
            f"{lost} of {row['n']} prompts got no response that could be judged from one of the "
            f"models; whatever those had been, the change lies between {points(worst[0])} and "
            f"{points(worst[1])} points."
        )
    return said


def _groups(axis: Row) -> list[str]:
    """Which groups changed; of framings, severities and domains only where some did."""
    said = []
    for by, (one, many) in GROUPS.items():
        breakdown = axis["breakdowns"][by]
        rows = breakdown["groups"] if breakdown else []
        if len(rows) < 2:
            continue
        passed = [r for r in rows if passes_holm(r)]
        passed.sort(key=lambda r: (-abs(r["difference"]["value"]), r["name"]))
        # That all of them changed is what the whole axis says already.
        if passed and (by == "category" or len(passed) < len(rows)):
            named = [f"{r['name']} ({points(r['difference']['value'])})" for r in passed[:_NAMED]]
            more = len(passed) - len(named)
            if more:
                named.append(f"{more} more")
            said.append(
                f"After Holm's correction, {len(passed)} of {len(rows)} {many} changed: "
                f"{', '.join(named)}."
            )
        elif by == "category":
            said.append(
                f"No single {one}'s change passes Holm's correction over {len(rows)} {many}."
            )
    return said


def _escalations(behaviour: Row) -> list[str]:
    said = []
    for mode, part in behaviour["escalations"].items():
        axis = part["axes"]["refusal"] if part else None
        if axis is None:
            continue
        seen = axis["any_complied"]
        change = seen["difference"]
        if change["value"] is None:
            continue
        interval = (
            f", {percent(change['level'])} interval {points(change['lower'])} to "
            f"{points(change['upper'])}"
            if change["lower"] is not None and change["upper"] is not None
            else ""
        )
        said.append(
            f"In {seen['n']} {mode} escalations base complied at some turn in "
            f"{percent(seen['base']['value'], 1)}, tuned in {percent(seen['tuned']['value'], 1)} "
            f"({points(change['value'])} points{interval})."
        )
    return said


def _sampling(axis: Row, subject: str) -> list[str]:
    sampling = axis["sampling"]
    if sampling is None:
        return []
    base, tuned = (sampling["stability"][arm] for arm in ("base", "tuned"))
    if base["flipping"]["value"] is None or tuned["flipping"]["value"] is None:
        return []
    said = (
        f"From response to response the outcome changes in {percent(base['flipping']['value'])} of "
        f"the prompts in base and {percent(tuned['flipping']['value'])} in tuned ({subject}); one "
        f"response agrees with most of its prompt's in {percent(base['agreement']['value'])} and "
        f"{percent(tuned['agreement']['value'])} of cases."
    )
    parts = variance_words(sampling["variance"]["change"])
    return [said, *([f"Variance of the change of {subject}: {parts}."] if parts else [])]


def variance_words(variance: Row | None) -> str:
    """Each component's share of the variance, the largest first; empty with one component.

    What lies below 0 is taken as 0, and what rounds to 0 % is left out.

    Args:
        variance: One of ``sampling.variance``; null gives nothing.
    """
    names = {
        "intents": "between intents",
        "prompts": "between prompts",
        "prompt_by_temperature": "in what temperature does to a prompt",
        "temperatures": "between temperatures",
        "seeds": "between seeds",
        "replies": "from response to response",
    }
    if variance is None:
        return ""
    sizes = {
        words: max(variance[key]["value"], 0.0)
        for key, words in names.items()
        if variance[key] is not None
    }
    total = sum(sizes.values())
    if total <= 0 or len(sizes) < 2:
        return ""
    shares = sorted(((size / total, where) for where, size in sizes.items()), reverse=True)
    return ", ".join(f"{percent(share)} {where}" for share, where in shares if share >= 0.005)


def _instruments(axis: Row, subject: str) -> list[str]:
    found = axis["instruments"]["disagreement"]
    if found is None or not found["mixed_categories"]:
        return []
    named = found["mixed_categories"][:_NAMED]
    more = len(found["mixed_categories"]) - len(named)
    return [
        f"The {len(found['instruments'])} instruments disagree on the direction of the change of "
        f"{subject} in {len(found['mixed_categories'])} of {found['n_categories']} categories: "
        f"{', '.join([*named, *([f'{more} more'] if more else [])])}."
    ]


def _axis_notes(behaviour: Row) -> list[str]:
    """Notes on categories and on escalations; one that both axes have is said once."""
    about: dict[str, list[str]] = {}
    for name, axis in behaviour["axes"].items():
        note = axis["breakdowns"]["category"]["note"] if axis else ""
        if note:
            about.setdefault(note, []).append(AXES[name])
    said = [f"{' and '.join(names)}: {note}" for note, names in about.items()]
    for mode, part in behaviour["escalations"].items():
        axes: Sequence[Row | None] = list(part["axes"].values()) if part else []
        notes = dict.fromkeys(axis["note"] for axis in axes if axis and axis["note"])
        said += [f"{mode} escalations: {note}" for note in notes]
    return said


def as_sentence(note: str) -> str:
    """A note as a sentence: capital letter and full stop."""
    text = note.strip().rstrip(".")
    return text[:1].upper() + text[1:] + "."


def points(rate: float, *, signed: bool = True) -> str:
    """A difference of rates in percentage points."""
    return number(rate, 1, scale=100.0, signed=signed)
