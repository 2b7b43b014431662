"""What causal selection says about each candidate direction, and about all of them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from refusaldir.errors import DirectionError
from refusaldir.records import Site

#: Where candidate directions are estimated, and added.
HOOK = "resid_pre"

#: What makes one valid direction better than another; see `refusaldir.directions.causal`.
CRITERIA = ("refusal_score", "cosmic")

#: Why a candidate is not valid, in the order of the tests.
REASONS = ("no signal", "too deep", "not finite", "KL", "induce")


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What a valid direction must satisfy; the published values by default.

    Attributes:
        kl: Largest mean KL, in nats.
        induce: Least mean refusal score of harmless prompts with the vector added; COSMIC asks
            for none.
        depth: Share of the layers searched: layer < ⌊depth · L⌋.
    """

    kl: float = 0.1
    induce: float = 0.0
    depth: float = 0.8


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One site and what is known of it.

    Attributes:
        site: Where the direction was estimated; it is added at this layer.
        norm: Norm of the raw mean difference.
        kl: Mean KL in nats; a lower bound of it where `kl_exact` is False; None if not measured.
        kl_exact: Whether every harmless prompt was run.
        induce: Mean refusal score of harmless prompts with the vector added, or None.
        bypass: Mean refusal score of harmful prompts with the direction ablated, or None.
        ablated_cosine: Cosine of harmful prompts with the direction ablated to harmless ones, or
            None; see `refusaldir.directions.cosmic`.
        added_cosine: Cosine of harmless prompts with the vector added to harmful ones, or None.
        cosmic: Sum of the two cosines, or None.
        dropped: One of `REASONS`, or empty for a valid candidate.
    """

    site: Site
    norm: float
    kl: float | None = None
    kl_exact: bool = False
    induce: float | None = None
    bypass: float | None = None
    ablated_cosine: float | None = None
    added_cosine: float | None = None
    cosmic: float | None = None
    dropped: str = ""

    @property
    def valid(self) -> bool:
        """Whether it meets every criterion."""
        return not self.dropped


@dataclass(frozen=True, kw_only=True)
class CausalChoice:
    """The direction chosen, if any, and every candidate with its scores.

    Attributes:
        chosen: The best of the valid candidates, see `choose`, or None.
        nearest: Without a valid candidate, the one that came closest: of those that fail induce
            alone the one with the highest, otherwise the one with the least KL. It has all
            scores, and `Candidate.dropped` says what it fails.
        candidates: All of them, layer by layer.
        thresholds: What was asked of them.
        clean_harmful: Mean refusal score of the harmful prompts, nothing changed; None with COSMIC.
        clean_harmless: Mean refusal score of the harmless prompts, nothing changed; None with
            COSMIC.
        n_harmful: Number of harmful validation prompts.
        n_harmless: Number of harmless validation prompts.
        refusal_tokens: Token ids behind the refusal score; empty with COSMIC.
        criterion: One of `CRITERIA`.
        cosmic_layers: Layers whose resid_post COSMIC compares; empty without it.
        clean_cosine: Cosine of harmful to harmless prompts there, nothing changed: what both
            cosines of a direction that does nothing are; None without COSMIC.
    """

    chosen: Candidate | None
    nearest: Candidate | None
    candidates: tuple[Candidate, ...]
    thresholds: Thresholds
    clean_harmful: float | None
    clean_harmless: float | None
    n_harmful: int
    n_harmless: int
    refusal_tokens: tuple[int, ...]
    criterion: str = "refusal_score"
    cosmic_layers: tuple[int, ...] = ()
    clean_cosine: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def check_criterion(criterion: str) -> None:
    """Refuse an unknown criterion.

    Raises:
        DirectionError: It is not one of `CRITERIA`.
    """
    if criterion not in CRITERIA:
        raise DirectionError(
            "unknown criterion of selection", expected=" | ".join(CRITERIA), got=repr(criterion)
        )


def why_dropped(candidate: Candidate, thresholds: Thresholds, criterion: str) -> str:
    """The first of `REASONS` why a candidate is not valid, or empty.

    Args:
        candidate: With a reason already where it has no signal or is too deep.
        thresholds: What a valid direction must satisfy.
        criterion: One of `CRITERIA`.
    """
    if candidate.dropped in ("no signal", "too deep"):
        return candidate.dropped
    scores = [candidate.kl]
    scores += [candidate.cosmic] if criterion == "cosmic" else [candidate.induce, candidate.bypass]
    if any(score is not None and not isfinite(score) for score in scores):
        return "not finite"
    if candidate.kl is None or not candidate.kl_exact or candidate.kl > thresholds.kl:
        return "KL"
    if criterion == "refusal_score" and (
        candidate.induce is None or candidate.induce < thresholds.induce
    ):
        return "induce"
    return ""


def choose(
    candidates: Sequence[Candidate], thresholds: Thresholds, criterion: str = "refusal_score"
) -> Candidate | None:
    """The best valid candidate: least bypass, or highest sum of cosines; None if none is valid.

    Of candidates with the same score the one of the lowest layer, then of the earliest position,
    is chosen.

    Args:
        candidates: With their scores.
        thresholds: What a valid direction must satisfy.
        criterion: One of `CRITERIA`.

    Raises:
        DirectionError: The criterion is unknown.
    """
    check_criterion(criterion)
    ranked = []
    for candidate in candidates:
        score = candidate.bypass
        if criterion == "cosmic":
            score = None if candidate.cosmic is None else -candidate.cosmic
        if score is not None and not why_dropped(candidate, thresholds, criterion):
            ranked.append((score, candidate.site, candidate))
    return min(ranked, key=lambda item: item[:2])[2] if ranked else None
