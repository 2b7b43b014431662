"""Local Hugging Face text classifiers: probabilities of labels, whatever the labels mean.

Weights come from a folder, the Hub's cache or the Hub, as safetensors only; once they are there
no network is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from refusaldir.errors import ModelLoadError, ModelSpecError
from refusaldir.models.hub import hub_directory
from refusaldir.models.options import LoadOptions
from refusaldir.models.quiet import quiet
from refusaldir.models.spec import is_local, looks_like_path
from refusaldir.models.weights import model_digest

#: Texts a batch.
BATCH = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class TextClassifier:
    """A text-classification model, one label a text.

    Attributes:
        name: Name for tables and the judge's version: the repository, or the folder's own name.
        digest: First digits of the SHA-256 of weights and configuration.
        model: The Hugging Face model.
        tokenizer: Its tokenizer.
        labels: Its labels, in the order of its outputs.
        max_length: Tokens of a text that it sees.
        several: Whether a text may have several labels at once, each with a probability of its own;
            else they sum to 1.
    """

    name: str
    digest: str
    model: Any
    tokenizer: Any
    labels: tuple[str, ...]
    max_length: int
    several: bool = False

    @classmethod
    def open(
        cls, name: str, revision: str | None = None, options: LoadOptions | None = None
    ) -> "TextClassifier":
        """Load a classifier.

        Args:
            name: Repository on the Hub, or folder.
            revision: Branch, tag or commit of the repository.
            options: Device; it computes in float32.

        Raises:
            ModelSpecError: It does not exist or cannot be reached.
            ModelLoadError: Its files are damaged, or it is no text-classification model.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from refusaldir.models.config import pick_device

        directory = _directory(name, revision)
        try:
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(str(directory))
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    str(directory),
                    dtype=torch.float32,
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                )
        except Exception as error:
            raise ModelLoadError(
                "The classifier cannot be loaded",
                got=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
                where=name,
            ) from error
        if info["missing_keys"] or info["mismatched_keys"]:
            missing = sorted(info["missing_keys"])
            raise ModelLoadError(
                "This is not a text-classification model: it lacks weights of one",
                got=f"no {', '.join(missing[:3])}" if missing else "weights of another shape",
                where=name,
                next_step="Name a model that was trained as a classifier",
            )
        model.eval().requires_grad_(False).to(pick_device(options or LoadOptions()))
        config = model.config
        if config.num_labels < 2:
            raise ModelLoadError(
                "A classifier needs at least two labels", got=config.num_labels, where=name
            )
        return cls(
            name=Path(name).name if is_local(name) else name,
            digest=model_digest(directory)[:16],
            model=model,
            tokenizer=tokenizer,
            labels=tuple(str(config.id2label[i]) for i in range(config.num_labels)),
            max_length=_longest(tokenizer, config),
            several=config.problem_type == "multi_label_classification",
        )

    def probabilities(self, texts: Sequence[str]) -> Float[np.ndarray, "text label"]:
        """Probability of each label for each text, float64; texts are cut at `max_length`."""
        out = np.zeros((len(texts), len(self.labels)))
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        pads = self.tokenizer.pad_token is not None
        batch = BATCH if pads else 1
        for start in range(0, len(order), batch):
            indices = order[start : start + batch]
            encoded = self.tokenizer(
                [texts[i] for i in indices],
                padding=pads,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            ).to(self.model.device)
            with torch.inference_mode():
                logits = self.model(**encoded).logits
            logits = logits.double()
            chances = torch.sigmoid(logits) if self.several else torch.softmax(logits, dim=-1)
            out[indices] = chances.cpu().numpy()
        return out


def _longest(tokenizer: Any, config: Any) -> int:
    """Tokens that fit: of RoBERTa's positions the first ones, up to the padding's, hold none."""
    positions = getattr(config, "max_position_embeddings", None) or 10**9
    if "roberta" in config.model_type:
        positions -= config.pad_token_id + 1
    return int(min(tokenizer.model_max_length, positions))


def _directory(name: str, revision: str | None) -> Path:
    if is_local(name):
        return Path(name).expanduser()
    if looks_like_path(name):
        raise ModelSpecError("There is no such folder", where=name)
    try:
        return hub_directory(name, revision, code=False)
    except ModelSpecError as error:
        raise ModelSpecError(
            error.what,
            expected=error.expected,
            got=error.got,
            where=error.where,
            next_step="Download it elsewhere and give its folder: hf:FOLDER",
        ) from error
