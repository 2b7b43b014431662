"""Frozen records that cross rooms: sites, positions and provenance.

Nothing here imports torch, so that tables and reports can be made without it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: Residual-stream hook points, in the order in which a block computes them.
HOOKS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")

HARMLESS = 0
HARMFUL = 1


def content_hash(*parts: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of the parts' canonical JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, order=True)
class Site:
    """Where in the model a vector lives.

    Attributes:
        hook: One of `HOOKS`.
        layer: Block index, from 0.
        position: Token offset from the end of the rendered prompt, -1 being the last token.
    """

    hook: str
    layer: int
    position: int

    def __str__(self) -> str:
        """Return e.g. ``resid_pre.18@-1``."""
        return f"{self.hook}.{self.layer}@{self.position}"


#: Label of the last token of the instruction; those before it are ``t_inst-1`` and so on.
LAST_INSTRUCTION = "t_inst"


@dataclass(frozen=True, kw_only=True)
class Positions:
    """Token positions captured, the same offsets from the end for every prompt.

    Attributes:
        offsets: Negative offsets from the end of the rendered prompt, ascending, e.g. -6 … -1.
        labels: The token at each offset as text; ``"t_inst"`` for the last instruction token,
            which differs from prompt to prompt.
    """

    offsets: tuple[int, ...]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that offsets are negative, ascending, unique and labelled."""
        if not self.offsets or len(self.offsets) != len(self.labels):
            raise ValueError("positions need one label per offset and at least one offset")
        if any(o >= 0 for o in self.offsets) or list(self.offsets) != sorted(set(self.offsets)):
            raise ValueError(f"offsets must be negative, ascending and unique: {self.offsets}")

    @property
    def post(self) -> tuple[int, ...]:
        """Offsets of the template's tokens after the instruction; all where there are none."""
        after = tuple(
            offset
            for offset, label in zip(self.offsets, self.labels, strict=True)
            if not label.startswith(LAST_INSTRUCTION)
        )
        return after or self.offsets

    @property
    def instruction(self) -> int | None:
        """Offset of the last instruction token, where it was captured."""
        if LAST_INSTRUCTION not in self.labels:
            return None
        return self.offsets[self.labels.index(LAST_INSTRUCTION)]


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """What was opened, in enough detail to open the same thing again or to refuse to compare.

    Attributes:
        spec: The spec as the user gave it.
        name: Short name for tables and file names.
        revision: Hub revision asked for, or None.
        adapters: Adapter specs stacked on the model, in order.
        weights_hash: Hash of the weight files of the model and of its adapters.
        architecture: Class name of the Hugging Face model, e.g. ``LlamaForCausalLM``.
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
        vocab_size: Size of the output vocabulary.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        quantization: None, ``4bit`` or ``8bit``.
        backend: ``transformer_lens`` or ``torch_hooks``.
    """

    spec: str
    name: str
    revision: str | None = None
    adapters: tuple[str, ...] = ()
    weights_hash: str
    architecture: str
    n_layers: int
    d_model: int
    vocab_size: int
    dtype: str
    quantization: str | None = None
    backend: str = "transformer_lens"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ModelIdentity":
        """Rebuild from `to_dict`; raises TypeError on unknown or missing fields."""
        return cls(**{**data, "adapters": tuple(data["adapters"])})


@dataclass(frozen=True, kw_only=True)
class TemplateIdentity:
    """How prompts were turned into tokens.

    Attributes:
        tokenizer_hash: Hash of vocabulary, merges, special tokens and normalisation.
        template_hash: Hash of the chat template's text.
        system: ``"default"`` (whatever the template does by itself), ``"none"``, or the text.
        thinking: True or False where the template has a switch, else None.
        post_tokens: Texts of the template tokens that follow the instruction, in order.
    """

    tokenizer_hash: str
    template_hash: str
    system: str = "default"
    thinking: bool | None = None
    post_tokens: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TemplateIdentity":
        """Rebuild from `to_dict`."""
        return cls(**{**data, "post_tokens": tuple(data["post_tokens"])})


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Everything that decides the values in a capture.

    Attributes:
        model: The model's identity.
        template: How prompts were rendered.
        prompts_name: Name of the prompt set.
        prompts_hash: Hash of the prompts' ids, labels and turns.
        rendered_hash: Hash of the token ids after rendering.
        hooks: Hook points captured.
        layers: Block indices captured.
        positions: Positions captured.
        versions: Versions of refusaldir, torch, transformers and transformer_lens.
        created: UTC time in ISO 8601.
    """

    model: ModelIdentity
    template: TemplateIdentity
    prompts_name: str
    prompts_hash: str
    rendered_hash: str
    hooks: tuple[str, ...]
    layers: tuple[int, ...]
    positions: Positions
    versions: Mapping[str, str]
    created: str

    def fingerprint(self) -> str:
        """Hash of what decides the values; equal fingerprints mean a capture can be reused.

        The user's spelling of the spec, versions and time are left out.
        """
        model = self.model.to_dict()
        for key in ("spec", "name", "revision", "adapters", "backend"):
            del model[key]
        return content_hash(
            model,
            self.template.to_dict(),
            self.prompts_hash,
            self.rendered_hash,
            self.hooks,
            self.layers,
            self.positions.offsets,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "model": self.model.to_dict(),
            "template": self.template.to_dict(),
            "prompts_name": self.prompts_name,
            "prompts_hash": self.prompts_hash,
            "rendered_hash": self.rendered_hash,
            "hooks": list(self.hooks),
            "layers": list(self.layers),
            "positions": asdict(self.positions),
            "versions": dict(self.versions),
            "created": self.created,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Provenance":
        """Rebuild from `to_dict`."""
        positions = data["positions"]
        return cls(
            model=ModelIdentity.from_dict(data["model"]),
            template=TemplateIdentity.from_dict(data["template"]),
            prompts_name=data["prompts_name"],
            prompts_hash=data["prompts_hash"],
            rendered_hash=data["rendered_hash"],
            hooks=tuple(data["hooks"]),
            layers=tuple(data["layers"]),
            positions=Positions(
                offsets=tuple(positions["offsets"]), labels=tuple(positions["labels"])
            ),
            versions=dict(data["versions"]),
            created=data["created"],
        )


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure that never travels without its interval.

    Attributes:
        value: Point estimate; None when it is not estimable (see ``note``).
        lower: Lower end of the interval, or None.
        upper: Upper end of the interval, or None.
        n: Number of independent units (clusters) behind it.
        level: Nominal coverage of the interval.
        method: How the interval was made, e.g. ``"cluster jackknife"``.
        note: Why the value is missing or doubtful, if it is.
    """

    value: float | None
    lower: float | None = None
    upper: float | None = None
    n: int
    level: float = 0.95
    method: str = ""
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def common_prefix_length(sequences: Sequence[Sequence[int]]) -> int:
    """Number of leading elements that all sequences share; 0 when there are none."""
    if not sequences:
        return 0
    first = sequences[0]
    length = len(first)
    for other in sequences[1:]:
        length = min(length, len(other))
        for i in range(length):
            if other[i] != first[i]:
                length = i
                break
    return length
