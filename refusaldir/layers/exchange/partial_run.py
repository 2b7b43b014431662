"""Running a model from a middle block, on a residual stream that is known already.

Two runs that agree in embedding and blocks before ``k`` have the same stream at block k, so the
second needs only the blocks from k on. Blocks before are passed over (they hand on what they
get), and the stream kept from the first run is put in at ``resid_pre.k``. Everything around the
blocks stays the model's own: masks, rotary tables, local and global attention, the head.

An architecture whose later blocks read more of the earlier ones than the stream (keys shared
across layers, embeddings a layer) cannot be run so. `PartialRuns.equal_full_runs` finds out by
trying.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from refusaldir.batching import SharedPrefix, is_out_of_memory
from refusaldir.models.bridge import HookedModel
from refusaldir.models.hookpoints import find_blocks

#: Largest difference of a partial from a full run, in rounding steps of the largest entry.
_STEPS = 16


class PartialRuns:
    """Runs of one model that start from any block.

    Args:
        model: The model; nothing about it changes outside the contexts below.

    Raises:
        ModelLoadError: Its blocks cannot be found.
    """

    def __init__(self, model: HookedModel) -> None:
        """Find the blocks."""
        self.model = model
        self._blocks: list[nn.Module] = list(find_blocks(model.hf))
        #: What each block returns after the stream; None where it returns the stream alone.
        self._rest: list[tuple[Any, ...] | None] = [None] * len(self._blocks)

    @contextmanager
    def keeping(self, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """Keep the stream at the input of some blocks in the next forward pass.

        Yields:
            The streams ``[batch seq d_model]`` by layer, filled by the pass.
        """
        kept: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[[Tensor], None]:
            def hook_fn(value: Tensor) -> None:
                kept[layer] = value.detach().clone()

            return hook_fn

        with self.model.hooked({("resid_pre", layer): keep(layer) for layer in layers}):
            yield kept

    @contextmanager
    def resumed(self, layer: int, resid: Float[Tensor, "batch seq d_model"]) -> Iterator[None]:
        """Start forward passes at a block while the context lasts.

        Args:
            layer: The first block that runs.
            resid: The stream at its input, for the tokens that will be run.
        """

        def put(value: Tensor) -> Tensor:
            return resid.to(value.device)

        with ExitStack() as stack:
            for block, rest in zip(self._blocks[:layer], self._rest[:layer], strict=True):
                stack.callback(_restore_forward, block, block.__dict__.get("forward"))
                block.__dict__["forward"] = _handing_on(rest)
            stack.enter_context(self.model.hooked({("resid_pre", layer): put}))
            yield

    def equal_full_runs(self, layers: Sequence[int], ids: Sequence[int]) -> bool:
        """Whether runs from each of these blocks give what a full run gives.

        Half of the tokens are run as a prefix, so that its keys and values are tried as well.

        Args:
            layers: Blocks to start from.
            ids: Token ids of one prompt.
        """
        half = len(ids) // 2
        starts = [layer for layer in layers if layer > 0]
        last = (self.model.n_layers - 1,)
        tokens = torch.tensor([list(ids[half:])], device=self.model.device)

        def run(prefix: SharedPrefix) -> Tensor:
            cache = prefix.expand(1)
            with self._last_output(last[0]) as output:
                self.model.run(tokens, past_key_values=cache, use_cache=cache is not None)
            return output[0].float()

        with torch.inference_mode():
            with self._learning(), self.keeping(starts) as before:
                whole = SharedPrefix(self.model, ids[:half])
            if whole.length == 0:
                tokens = torch.tensor([list(ids)], device=self.model.device)
            with self._learning(), self.keeping(starts) as kept:
                full = run(whole)
            eps = torch.finfo(self.model.hf.dtype).eps
            limit = _STEPS * eps * float(full.abs().max())
            for layer in starts:
                try:
                    prefix = ResumedPrefix(self, ids[:half], whole, layer, before)
                    with self.resumed(layer, kept[layer]):
                        difference = float((run(prefix) - full).abs().max())
                except Exception as error:
                    if is_out_of_memory(error):
                        raise
                    return False  # a block misses what one passed over would have left for it
                if not difference <= limit:
                    return False
        return True

    @contextmanager
    def _last_output(self, layer: int) -> Iterator[list[Tensor]]:
        seen: list[Tensor] = []

        def keep(value: Tensor) -> None:
            seen.append(value.detach().clone())

        with self.model.hooked({("resid_post", layer): keep}):
            yield seen

    @contextmanager
    def _learning(self) -> Iterator[None]:
        """Note in what shape each block returns the stream."""

        def note(index: int) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                if isinstance(output, tuple):
                    # Weights or biases for nobody: those who want them ask for full runs.
                    self._rest[index] = (None,) * (len(output) - 1)

            return hook

        with ExitStack() as stack:
            for index, block in enumerate(self._blocks):
                stack.callback(block.register_forward_hook(note(index)).remove)
            yield


class ResumedPrefix(SharedPrefix):
    """The shared prefix of a run that starts at a middle block.

    Its keys and values from that block on are its own; those below, which nobody reads, are the
    other run's, so that the cache says how long it is.

    Args:
        runs: The model, as it is to run now.
        ids: The shared tokens.
        whole: The prefix of the run that agrees below the block.
        layer: The first block that runs.
        kept: The stream of that run at the inputs of blocks, over the prefix.
        stop_after: As for `SharedPrefix`.
    """

    def __init__(
        self,
        runs: PartialRuns,
        ids: Sequence[int],
        whole: SharedPrefix,
        layer: int,
        kept: Mapping[int, Tensor],
        stop_after: tuple[str, int] | None = None,
    ) -> None:
        """Run the blocks from the layer on; see the class docstring."""
        self.length = 0
        self._cache: DynamicCache | None = None
        below = whole.expand(1)
        if below is None:
            return
        cache = DynamicCache(config=runs.model.hf.config)
        with torch.inference_mode(), runs.resumed(layer, kept[layer]):
            runs.model.run(
                torch.tensor([list(ids)], device=runs.model.device),
                past_key_values=cache,
                use_cache=True,
                stop_after=stop_after,
            )
        cache.layers[:layer] = below.layers[:layer]
        self._cache, self.length = cache, len(ids)


def _handing_on(rest: tuple[Any, ...] | None) -> Callable[..., Any]:
    """A block's forward that returns its input as the block would return its output."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        stream = args[0] if args else kwargs["hidden_states"]
        return stream if rest is None else (stream, *rest)

    return forward


def _restore_forward(block: nn.Module, own: Any) -> None:
    """Give a block back the forward that it had in its own dictionary, or its class's."""
    if own is None:
        del block.__dict__["forward"]
    else:
        block.__dict__["forward"] = own
