"""What was measured in both models."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured in both models.

    Attributes:
        name: Of the outcome, e.g. ``"refusal score"``.
        unit: Of the outcome: ``"nats"``, ``"residual norm"`` or ``"share"``.
        subject: The outcome and its prompts in words, e.g. ``"the refusal score of 38 harmful
            prompts"``.
        n_prompts: Number of prompts.
        n_clusters: Number of intents, the independent units.
        n_layers: Blocks of the model.
        changed: Blocks with a changed weight.
        outside: Whether weights outside the blocks changed.
    """

    name: str
    unit: str
    subject: str
    n_prompts: int
    n_clusters: int
    n_layers: int
    changed: tuple[int, ...]
    outside: bool
