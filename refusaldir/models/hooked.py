"""A causal language model with hook points: the one implementation, over any backend.

Built by `refusaldir.models.bridge.hook_model`.
"""

import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from refusaldir.errors import CaptureError, ModelLoadError
from refusaldir.models.config import text_config
from refusaldir.models.consistency import additive
from refusaldir.models.hookpoints import HookFn, Points, carried, checked, find_blocks
from refusaldir.models.load import LoadedModel, with_backend
from refusaldir.records import HOOKS


class _StopRun(Exception):
    """Raised from a hook to leave a forward pass; caught by `HookedCausalLM.run`."""


class HookedCausalLM:
    """A causal language model hooked by one of the backends; implements `HookedModel`.

    Args:
        loaded: The model.
        points: The backend.

    Attributes:
        points: The backend.
        sample: Output of the last block on a few fixed tokens, by which backends are compared.
    """

    def __init__(self, loaded: LoadedModel, points: Points) -> None:
        """Find out what the model has and check that it adds up."""
        self.identity = with_backend(loaded, points.backend)
        self.tokenizer = loaded.tokenizer
        self.hf = loaded.hf
        self.n_layers = self.identity.n_layers
        self.d_model = self.identity.d_model
        self.device = _input_device(self.hf)
        self.max_length = _max_length(self.hf, self.tokenizer)
        self.points = points
        self._base = _base_of(self.hf)
        self._takes_positions = _accepts(self._base, "position_ids")
        self.hook_names: tuple[str, ...] = tuple(
            hook for hook in HOOKS if all(points.has(hook, i) for i in range(self.n_layers))
        )
        self.hook_names = self._consistent_hooks()

    @contextmanager
    def hooked(self, hooks: Mapping[tuple[str, int], HookFn]) -> Iterator[None]:
        """Call functions at hook points while the context lasts; nests.

        Args:
            hooks: Function by (hook, layer). It gets the tensor ``[batch, seq, d_model]`` in the
                model's dtype (while generating, ``seq`` is 1 after the prompt) and returns
                another tensor of that shape to replace it, or None. Do not change it in place,
                and clone what you keep.

        Raises:
            CaptureError: No such hook point; raised before anything is attached. A tensor of
                another shape, dtype or device was returned; raised in the forward pass.
        """
        for hook, layer in hooks:
            self._check_point(hook, layer)
        with ExitStack() as stack:
            for (hook, layer), fn in hooks.items():
                point_fn = checked(fn, hook, layer)
                if hook == "resid_mid":
                    point_fn, carry = carried(point_fn)
                    stack.callback(self.points.attach("resid_post", layer, carry, first=True))
                stack.callback(self.points.attach(hook, layer, point_fn))
            yield

    def run(
        self,
        input_ids: Int[Tensor, "batch seq"],
        *,
        past_key_values: Any = None,
        use_cache: bool = False,
        attention_mask: Int[Tensor, "batch past_and_seq"] | None = None,
        position_ids: Int[Tensor, "batch_or_1 seq"] | None = None,
        stop_after: tuple[str, int] | None = None,
    ) -> Any:
        """Run embedding and blocks, without logits. Gradients are as the caller set them.

        Args:
            input_ids: Tokens, on `device`.
            past_key_values: Keys and values of the tokens before; extended in place.
            use_cache: Whether to return keys and values.
            attention_mask: 1 for real tokens, 0 for padding, over past and present tokens. May
                be left out where padding is on the right and its outputs are not used.
            position_ids: Position of each token; by default counted from the mask, so that
                padding on the left does no harm.
            stop_after: (hook, layer) after which nothing more is computed. Keys and values then
                exist only for the blocks that ran: reuse them only in runs that stop there too.

        Returns:
            Keys and values if asked for or given, else None.

        Raises:
            CaptureError: ``stop_after`` names no hook point of the model.
        """
        if stop_after is None:
            output = self._forward(
                self._base, input_ids, past_key_values, use_cache, attention_mask, position_ids
            )
            return getattr(output, "past_key_values", None)
        self._check_point(*stop_after)
        if use_cache and past_key_values is None:
            from transformers import DynamicCache

            past_key_values = DynamicCache(config=self.hf.config)

        def stop(value: Tensor) -> None:
            raise _StopRun

        remove = self.points.attach(*stop_after, stop)
        try:
            self._forward(
                self._base, input_ids, past_key_values, use_cache, attention_mask, position_ids
            )
        except _StopRun:
            pass
        finally:
            remove()
        return past_key_values

    def logits(
        self,
        input_ids: Int[Tensor, "batch seq"],
        *,
        past_key_values: Any = None,
        use_cache: bool = False,
        attention_mask: Int[Tensor, "batch past_and_seq"] | None = None,
        position_ids: Int[Tensor, "batch_or_1 seq"] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch vocab"]:
        """Logits after the last real token of each row.

        Only that one position goes through the model's own head, with its softcapping or scale.

        Args:
            input_ids: Tokens, on `device`.
            past_key_values: As for `run`; extended in place.
            use_cache: As for `run`.
            attention_mask: As for `run`.
            position_ids: As for `run`.
            lengths: Number of real tokens of each row padded on the right, counted within
                ``input_ids``. By default the last token that the mask does not hide, or without
                a mask the last one.

        Returns:
            Logits, in the dtype of the model's head.

        Raises:
            CaptureError: A length is outside 1 … seq.
        """
        batch = input_ids.shape[0]
        last = _last_positions(input_ids, attention_mask, lengths)
        rows = torch.arange(batch, device=input_ids.device)

        def keep_last(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]
            at = (rows.to(hidden.device), last.to(hidden.device))
            if hasattr(output, "last_hidden_state"):
                output.last_hidden_state = hidden[at][:, None]
                return output
            return (hidden[at][:, None], *output[1:])

        handle = self._base.register_forward_hook(keep_last)
        try:
            output = self._forward(
                self.hf, input_ids, past_key_values, use_cache, attention_mask, position_ids
            )
        finally:
            handle.remove()
        logits: Tensor = output.logits[:, -1]
        return logits

    def _forward(
        self,
        module: nn.Module,
        input_ids: Tensor,
        past_key_values: Any,
        use_cache: bool,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
    ) -> Any:
        arguments: dict[str, Any] = {"use_cache": use_cache or past_key_values is not None}
        if past_key_values is not None:
            arguments["past_key_values"] = past_key_values
        if attention_mask is not None:
            arguments["attention_mask"] = attention_mask
            if position_ids is None and self._takes_positions:
                # Hugging Face counts padding on the left as positions unless told otherwise.
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
                position_ids = position_ids[:, -input_ids.shape[1] :]
        if position_ids is not None:
            arguments["position_ids"] = position_ids
        return module(input_ids=input_ids, return_dict=True, **arguments)

    def _check_point(self, hook: str, layer: int) -> None:
        if hook not in self.hook_names or not 0 <= layer < self.n_layers:
            raise CaptureError(
                "This model has no such hook point",
                expected=f"{' | '.join(self.hook_names)} in layers 0 to {self.n_layers - 1}",
                got=f"{hook} in layer {layer}",
                where=self.identity.name,
            )

    def _consistent_hooks(self) -> tuple[str, ...]:
        """Hook points whose values add up in every block, found by running a few tokens.

        Raises:
            ModelLoadError: Not even the stream before and after the blocks can be read.
        """
        seen: dict[tuple[str, int], Tensor] = {}

        def keep(key: tuple[str, int]) -> HookFn:
            def hook_fn(value: Tensor) -> None:
                seen[key] = value.detach()

            return hook_fn

        keys = [(hook, layer) for hook in self.hook_names for layer in range(self.n_layers)]
        vocab = self.hf.get_input_embeddings().weight.shape[0]
        tokens = torch.arange(5, 9, device=self.device)[None] % min(vocab, self.identity.vocab_size)
        with torch.no_grad(), ExitStack() as stack:
            for hook, layer in keys:
                stack.callback(self.points.attach(hook, layer, keep((hook, layer))))
            self._forward(self._base, tokens, None, False, None, None)
        shape = (*tokens.shape, self.d_model)
        names = {
            hook
            for hook in self.hook_names
            if all(
                (hook, layer) in seen and tuple(seen[hook, layer].shape) == shape
                for layer in range(self.n_layers)
            )
        }
        if not {"resid_pre", "resid_post"} <= names:
            raise ModelLoadError(
                "This model has no residual stream of one vector a token between its blocks",
                expected=f"tensors of shape {list(shape)}",
                got=next((list(v.shape) for v in seen.values() if tuple(v.shape) != shape), "none"),
                where=self.identity.architecture,
            )
        self.sample = seen["resid_post", self.n_layers - 1]
        return tuple(hook for hook in HOOKS if hook in additive(names, seen, self.n_layers))


def _last_positions(
    input_ids: Tensor, attention_mask: Tensor | None, lengths: Tensor | None
) -> Tensor:
    batch, seq = input_ids.shape
    if lengths is not None:
        if bool(((lengths < 1) | (lengths > seq)).any()):
            raise CaptureError(
                "A row has an impossible number of tokens",
                expected=f"1 to {seq}",
                got=lengths.tolist(),
            )
        return lengths.to(input_ids.device) - 1
    if attention_mask is None:
        return torch.full((batch,), seq - 1, device=input_ids.device)
    here = attention_mask[:, -seq:].to(input_ids.device).long()
    return seq - 1 - here.flip(-1).argmax(-1)


def _base_of(hf: PreTrainedModel) -> nn.Module:
    """The model without its head."""
    if hf.base_model is not hf:
        return cast(nn.Module, hf.base_model)
    # Llama 4's text model has no attribute of the name that it declares.
    blocks = find_blocks(hf)
    holders = (m for m in hf.modules() if any(child is blocks for child in m.children()))
    return cast(nn.Module, next(holders))


def _accepts(module: nn.Module, argument: str) -> bool:
    return argument in inspect.signature(module.forward).parameters


def _input_device(hf: PreTrainedModel) -> torch.device:
    embedding: nn.Module = hf.get_input_embeddings()
    hook = getattr(embedding, "_hf_hook", None)
    weight: Any = embedding.weight
    if weight.device.type == "meta" and hook is not None:  # offloaded
        return torch.device(hook.execution_device)
    return torch.device(weight.device)


def _max_length(hf: PreTrainedModel, tokenizer: Any) -> int:
    config = text_config(hf.config)
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and limit > 0:
        return limit
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if isinstance(limit, int) and limit < 10**9 else sys.maxsize
