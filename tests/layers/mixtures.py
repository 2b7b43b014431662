"""Pairs of tiny models on disk, and mixtures of them made the obvious way: copy and run."""

import re
from copy import deepcopy

import numpy as np
import torch
from pairs import ARCHITECTURES, make_base, save_tuned

from refusaldir.layers.weight_pair import WeightPair
from refusaldir.models.hookpoints import find_blocks
from refusaldir.models.options import LoadOptions

#: What transplants are tried on; tied weights and other routers have tests of their own.
ALL = tuple(name for name in ARCHITECTURES if name not in ("tied", "qwen3_moe"))
REFUSAL = (5, 6, 7)


def noise(scale=0.2, *, layers=None, outside=False, seed=1):
    """A change of every parameter of some blocks (None: all), and of what lies outside."""

    def change(hf):
        torch.manual_seed(seed)
        for name, parameter in hf.named_parameters():
            layer = block_of(name)
            if outside if layer is None else layers is None or layer in layers:
                spread = parameter.std() if parameter.dim() > 1 else 1.0
                parameter += scale * spread * torch.randn_like(parameter)

    return change


def block_of(name):
    found = re.search(r"\.(?:layers|h)\.(\d+)\.", name)
    return int(found[1]) if found else None


class Pair:
    """A base and a tuned model saved under a folder."""

    def __init__(self, folder, name="llama", change=None, *, config=None, start=None):
        self.hf = make_base(name, config=config, spread=0.3).requires_grad_(False)
        if start is not None:
            start(self.hf)
        self.other = deepcopy(self.hf)
        (change or noise())(self.other)
        self.depth = len(find_blocks(self.hf))
        self.base, self.tuned = folder / "base", folder / "tuned"
        for hf, path in ((self.hf, self.base), (self.other, self.tuned)):
            save_tuned(hf, path)

    def open(self, backend="torch_hooks", **options):
        options = LoadOptions(**{"device": "cpu", "dtype": "float32", **options})
        return WeightPair.open(str(self.base), str(self.tuned), options, backend=backend)

    def obvious(self, tuned, outside):
        """A model with these blocks of tuned."""
        return mixed(self.hf, self.other, tuned, outside)

    def scores(self, sequences, tuned, outside):
        """Refusal scores of such a model, from all logits of each prompt alone."""
        return scores_of(self.obvious(tuned, outside), sequences)


@torch.no_grad()
def mixed(base, other, tuned, outside):
    """A copy of base with some of the other's blocks, by copying parameters."""
    copy, theirs = deepcopy(base), dict(other.named_parameters())
    for name, parameter in copy.named_parameters():
        layer = block_of(name)
        if outside if layer is None else layer in tuned:
            parameter.copy_(theirs[name])
    return copy


@torch.inference_mode()
def scores_of(hf, sequences):
    p = []
    for ids in sequences:
        logits = hf(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1].double()
        p.append(float(logits.softmax(-1)[list(REFUSAL)].sum()))
    p = np.array(p)
    return np.log(p + 1e-8) - np.log(1 - p + 1e-8)
