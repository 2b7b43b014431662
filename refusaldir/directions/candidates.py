"""What causal selection says about each candidate direction, and about all of them."""

from dataclasses import asdict, dataclass
from typing import Any

from refusaldir.records import Site

#: Why a candidate is not valid, in the order of the tests.
REASONS = ("no signal", "too deep", "KL", "induce")


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What a valid direction must satisfy; the published values by default.

    Attributes:
        kl: Largest mean KL, in nats.
        induce: Least mean refusal score of harmless prompts with the vector added.
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
        dropped: One of `REASONS`, or empty for a valid candidate.
    """

    site: Site
    norm: float
    kl: float | None = None
    kl_exact: bool = False
    induce: float | None = None
    bypass: float | None = None
    dropped: str = ""

    @property
    def valid(self) -> bool:
        """Whether it meets every criterion."""
        return not self.dropped


@dataclass(frozen=True, kw_only=True)
class CausalChoice:
    """The direction chosen, if any, and every candidate with its scores.

    Attributes:
        chosen: The valid candidate with the least bypass, or None.
        nearest: Without a valid candidate, the one that came closest: of those that fail induce
            alone the one with the highest, otherwise the one with the least KL. It has all three
            scores, and `Candidate.dropped` says what it fails.
        candidates: All of them, layer by layer.
        thresholds: What was asked of them.
        clean_harmful: Mean refusal score of the harmful prompts, nothing changed.
        clean_harmless: Mean refusal score of the harmless prompts, nothing changed.
        n_harmful: Number of harmful validation prompts.
        n_harmless: Number of harmless validation prompts.
        refusal_tokens: Token ids behind the refusal score.
    """

    chosen: Candidate | None
    nearest: Candidate | None
    candidates: tuple[Candidate, ...]
    thresholds: Thresholds
    clean_harmful: float
    clean_harmless: float
    n_harmful: int
    n_harmless: int
    refusal_tokens: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)
