"""Which layers the fine-tune disturbed, in plain words.

Words follow the bands over all layers at once. No layer is called responsible for safety: what is
said is where changing the weights moved the outcome, in these two models and on these prompts.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from refusaldir.layers.agreement import Agreement
from refusaldir.layers.effects import LEAST_SHARE, OutcomeChange
from refusaldir.layers.lenses import INJECT, PATH, RESTORE
from refusaldir.layers.measured import Measured
from refusaldir.layers.ranking import HOLDING, RankedLayer, Ranking
from refusaldir.layers.result import PathLens, TransplantLens, Verdict
from refusaldir.layers.words import amount, layer_words, level_of, number, percent, share, span

if TYPE_CHECKING:
    from refusaldir.layers.exchange.repair import Repair

#: Layers named one by one in a sentence; the others are in the table.
_NAMED = 6

#: By how much the sum of single blocks may miss the change while layers count as independent.
_ADDITIVE = 0.2

#: A completeness gap of path attribution above this is said.
_GAP = 1e-3

_COMPONENTS = {"attn": "attention", "mlp": "MLPs", "other": "norms and embeddings"}

_LIMITS = (
    "It says where the change of weights acts on this outcome, on these prompts: not what in the "
    "training data made it, and not that other layers are safe to change.",
    "Layers act together: what restoring one of them does depends on what the others have become.",
)


def verdict(
    measured: Measured,
    change: OutcomeChange,
    ranking: Ranking | None,
    *,
    path: PathLens | None,
    transplant: TransplantLens | None,
    agreement: Sequence[Agreement],
    heaviest: Sequence[int] = (),
    repair: "Repair | None" = None,
) -> Verdict:
    """Say what was found.

    Args:
        measured: What was measured.
        change: What the fine-tune did to it.
        ranking: The layers in order, or None where there is nothing to attribute.
        path: Path attribution, or None.
        transplant: Blocks exchanged, or None.
        agreement: Every two lenses compared.
        heaviest: Layers in the order of their relative weight change, the largest first.
        repair: Restored layers, or None.
    """
    moved = _moved(measured, change)
    if ranking is None:
        return Verdict(
            headline=_nothing(measured, change, moved), layers=(), certainty=(), limits=_LIMITS
        )
    return Verdict(
        headline=_headline(measured, ranking, moved),
        layers=tuple(
            [
                *_which(ranking),
                *_concentration(ranking),
                *_parts(path),
                *_weights(ranking, heaviest),
                *_depth(measured, transplant),
                *(() if repair is None else repair.sentences),
            ]
        ),
        certainty=tuple(
            [
                *_order(measured, ranking),
                *_agreeing(agreement, transplant),
                *_together(transplant),
                *_unseen(ranking),
                *_gap(measured, path),
            ]
        ),
        limits=_LIMITS,
    )


def _moved(measured: Measured, change: OutcomeChange) -> str:
    """What became of the outcome: ``"fell by 3.10 nats (+2.90 → −0.20)"``."""
    value, base, tuned = change.change.value, change.base.value, change.tuned.value
    if value is None or base is None or tuned is None:
        return "is not known"
    if value == 0:
        return f"is {level_of(measured, base)} in both models"
    word = "rose" if value > 0 else "fell"
    return (
        f"{word} by {amount(measured, abs(value))} "
        f"({level_of(measured, base)} → {level_of(measured, tuned)})"
    )


def _nothing(measured: Measured, change: OutcomeChange, moved: str) -> str:
    e, subject = change.change, measured.subject
    sentence = f"No change to attribute: {subject} {moved}"
    if not measured.changed and not measured.outside:
        return f"No change to attribute: the weights are equal, and {subject} {moved}."
    if e.value is None or e.lower is None or e.upper is None:
        return f"{sentence}, without an interval ({e.note})."
    low, high = e.lower, e.upper
    if low <= 0 <= high and e.value != 0:
        why = "which is inside its noise"
    elif e.value != 0:
        why = f"which is less than {amount(measured, change.floor)}, too little to share out"
    else:
        why = "prompt by prompt" if low == high else "on average"
    ends = span(e, lambda end: amount(measured, end, signed=True))
    return f"{sentence}, {why} ({ends})."


def _with(ranking: Ranking) -> list[RankedLayer]:
    """Disturbing layers that moved the outcome as the whole fine-tune did."""
    return [row for row in ranking.disturbing if (row.share.value or 0) > 0]


def _headline(measured: Measured, ranking: Ranking, moved: str) -> str:
    subject = measured.subject[:1].upper() + measured.subject[1:]
    rows = _with(ranking)
    if not rows:
        bound = "" if ranking.unseen is None else (
            f" (a layer could hold up to {percent(ranking.unseen)} unseen)"
        )  # fmt: skip
        return (
            f"{subject} {moved}, but no single layer's share can be told from 0{bound}: the "
            "change is spread, or the prompts are too few."
        )
    words = layer_words([row.layer for row in rows])
    total = percent(sum(row.share.value or 0 for row in rows))
    first = rows[0]
    if len(rows) == 1:
        held = f"it accounts for {total} of the change"
    else:
        held = (
            f"they account for {total} of the change, {layer_words([first.layer])} for the "
            f"largest part ({percent(first.share.value or 0)})"
        )
    return f"The fine-tune disturbed {words}: {held}. {subject} {moved}."


def _which(ranking: Ranking) -> list[str]:
    rows = _with(ranking)
    sentences = []
    if rows:
        named = [f"{layer_words([row.layer])} {share(row.band)}" for row in rows[:_NAMED]]
        more = "" if len(rows) <= _NAMED else f", and {len(rows) - _NAMED} more with less"
        sentences.append(f"Share of the change, largest first: {'; '.join(named)}{more}.")
    against = [row for row in ranking.disturbing if (row.share.value or 0) < 0]
    if against:
        named = [f"{layer_words([row.layer])} {share(row.band)}" for row in against[:_NAMED]]
        sentences.append(f"Worked against the change: {'; '.join(named)}.")
    return sentences


def _concentration(ranking: Ranking) -> list[str]:
    if not ranking.smallest_set:
        return []
    count = len(ranking.smallest_set)
    sentence = (
        f"{percent(HOLDING)} of what moved the outcome this way "
        f"{'is' if count > 1 else 'or more is'} held by {layer_words(ranking.smallest_set)} "
        f"({count} of {len(ranking.layers)} changed)"
    )
    if ranking.band is not None and count > 1:
        first, last = ranking.band
        whole = sorted(layer for layer in ranking.smallest_set if layer is not None)
        if whole != list(range(first, last + 1)):
            sentence += f"; the fewest consecutive blocks that do are layers {first} to {last}"
    return [sentence + f". Spread as over {number(ranking.effective_layers, 1)} equal layers."]


def _parts(path: PathLens | None) -> list[str]:
    if path is None or not path.totals:
        return []
    rows = sorted(path.totals, key=lambda row: -abs(row.share.value or 0))
    named = [f"{_COMPONENTS[row.component or 'other']} {share(row.share)}" for row in rows]
    return [f"By path attribution, where in the layers: {', '.join(named)}."]


def _weights(ranking: Ranking, heaviest: Sequence[int]) -> list[str]:
    """Whether the sizes of the weight changes would have named the same layers."""
    rows = _with(ranking)
    if not rows or len(heaviest) <= len(rows):
        return []
    largest = heaviest[: len(rows)]
    shared = sum(row.layer in largest for row in rows)
    if shared == len(rows):
        return [f"The weights changed most, relatively, in the same: {layer_words(largest)}."]
    how_many = "none" if not shared else str(shared)
    misled = ", so the size of the change alone would mislead" if 2 * shared < len(rows) else ""
    return [
        f"The weights changed most, relatively, in {layer_words(largest)}: {how_many} of the "
        f"{len(rows)} disturbed{misled}."
    ]


def _depth(measured: Measured, transplant: TransplantLens | None) -> list[str]:
    if transplant is None or transplant.recovery_depth is None:
        return []
    depth = transplant.recovery_depth
    return [
        f"Recovery depth {depth} of {measured.n_layers}: with base's blocks below it and tuned's "
        "from there on, half of the change is taken back; it is where half has been reached from "
        "below, not one layer's doing."
    ]


def _order(measured: Measured, ranking: Ranking) -> list[str]:
    first = ranking.layers[0]
    held = [row.held for row in ranking.layers if row.layer in ranking.smallest_set]
    sentence = (
        f"From {measured.n_prompts} prompts of {measured.n_clusters} intents. "
        f"{layer_words([first.layer]).capitalize()} comes first in "
        f"{percent(ranking.first_held)} of resamples of the intents"
    )
    if len(held) > 1:
        sentence += f", each layer of the smallest set in that set in at least {percent(min(held))}"
    return [sentence + "."]


def _agreeing(agreement: Sequence[Agreement], transplant: TransplantLens | None) -> list[str]:
    causal = {PATH, RESTORE, INJECT}
    pairs = [each for each in agreement if {each.first, each.second} <= causal]
    pairs = [each for each in pairs if each.tau.value is not None]
    if not pairs and transplant is not None:  # one layer changed: there is no order to compare
        return []
    if not pairs:
        return ["Only one causal lens was used: --mode full adds transplants to compare it with."]
    named = [
        f"{each.first} and {each.second} τ = {number(each.tau.value or 0)} "
        f"({span(each.tau, number)}), {each.shared} of the {each.top} largest shared"
        for each in pairs
    ]
    alike = all(each.alike for each in pairs) and all(2 * e.shared >= e.top for e in pairs)
    lead = "The lenses agree" if alike else "The lenses do not all agree"
    return [f"{lead}: {'; '.join(named)}."]


def _together(transplant: TransplantLens | None) -> list[str]:
    """Whether what single blocks do adds up to the change."""
    if transplant is None or len(transplant.restored) < 2:
        return []
    back, about = (
        sum(row.share.value or 0 for row in rows)
        for rows in (transplant.restored, transplant.injected)
    )
    sentence = (
        f"One by one, base's blocks take back {percent(back)} of the change in sum, and tuned's "
        f"bring about {percent(about)}"
    )
    if all(abs(each - 1) <= _ADDITIVE for each in (back, about)):
        return [f"{sentence}: layers act almost independently."]
    how = "need each other" if back > about else "stand in for each other"
    return [f"{sentence}: layers {how}, so what one of them does depends on the others."]


def _unseen(ranking: Ranking) -> list[str]:
    """What is told from 0 but small, and what cannot be told from 0."""
    small = [row for row in ranking.layers if row.told and not row.disturbs]
    untold = len(ranking.layers) - len(ranking.disturbing) - len(small)
    sentences = []
    if small:
        together = percent(sum(row.share.value or 0 for row in small))
        sentences.append(
            f"Below {percent(LEAST_SHARE)} each, but told from 0: "
            f"{layer_words([row.layer for row in small])}, together {together}."
        )
    if untold and ranking.unseen is not None:
        which = "changed layer" if untold == 1 else f"{untold} changed layers"
        sentences.append(
            f"Too small to attribute: the other {which}; up to {percent(ranking.unseen)} of the "
            f"change in {'it' if untold == 1 else 'one of them'} could have gone unseen."
        )
    return sentences


def _gap(measured: Measured, path: PathLens | None) -> list[str]:
    if path is None or path.gap_relative is None or path.gap_relative <= _GAP:
        return []
    return [
        f"Path attribution misses the change by {percent(path.gap_relative, 2)} "
        f"({amount(measured, path.gap_absolute)}, {path.nodes} nodes)."
    ]
