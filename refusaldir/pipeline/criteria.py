"""What is asked of a direction that is to count as causing refusal."""

from dataclasses import asdict, dataclass
from typing import Any

from refusaldir.directions.candidates import CRITERIA, Thresholds
from refusaldir.directions.estimators import ESTIMATORS
from refusaldir.errors import RefusaldirError


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """How a direction is selected; the published choices by default.

    Attributes:
        criterion: ``refusal_score`` (Arditi et al. 2024), which falls back to ``cosmic`` where no
            refusal token is found, or ``cosmic`` (Siu et al. 2025).
        estimator: One of `refusaldir.directions.estimators.ESTIMATORS`, or ``all`` to
            compare them; mean_diff then decides.
        kl: Largest mean KL of a valid direction, in nats.
        induce: Least mean refusal score of harmless prompts with the vector added.
        depth: Share of the layers searched.
        positions: The only positions searched, of those captured; None for those after the
            instruction.
        refusal_tokens: First tokens of refusals; None finds them in the model's own refusals of
            validation prompts.
        filter_prompts: Keep only prompts that the model treats as their label says.
        validation: Most validation prompts a class that candidates are scored on, and that
            refusal tokens are read off.
        exhaustive: Also measure scores that cannot change the choice.
        max_new_tokens: Length of the responses that refusal tokens are read off.
        seed: Seed of the split where the prompts have none, and of the validation prompts taken.
    """

    criterion: str = "refusal_score"
    estimator: str = "mean_diff"
    kl: float = 0.1
    induce: float = 0.0
    depth: float = 0.8
    positions: tuple[int, ...] | None = None
    refusal_tokens: tuple[str, ...] | None = None
    filter_prompts: bool = True
    validation: int = 32
    exhaustive: bool = False
    max_new_tokens: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse unknown names."""
        for value, known, where in (
            (self.criterion, CRITERIA, "--criterion"),
            (self.estimator, (*ESTIMATORS, "all"), "--estimator"),
        ):
            if value not in known:
                raise RefusaldirError(
                    "Unknown choice", expected=" | ".join(known), got=value, where=where
                )

    @property
    def estimators(self) -> tuple[str, ...]:
        """The estimators to score; the first decides."""
        return tuple(ESTIMATORS) if self.estimator == "all" else (self.estimator,)

    @property
    def thresholds(self) -> Thresholds:
        """What a valid direction must satisfy."""
        return Thresholds(kl=self.kl, induce=self.induce, depth=self.depth)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)
