"""Interventions the obvious way: torch hooks on a raw Hugging Face llama."""


class PlainHooks:
    """The obvious way, on the raw Hugging Face model: edits in place of what modules return."""

    def __init__(self, hf, *, ablate=None, add=None):
        self.hf, self.ablate, self.add, self.handles = hf, ablate, add, []

    def __enter__(self):
        for i, block in enumerate(self.hf.model.layers):
            self.handles.append(
                block.register_forward_pre_hook(
                    lambda m, a, k, i=i: self._in(i, a, k), with_kwargs=True
                )
            )
            for part in (block.self_attn, block.mlp):
                self.handles.append(part.register_forward_hook(self._out))
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def _drop(self, x):
        for u in () if self.ablate is None else self.ablate:
            x = x - (x * u).sum(-1, keepdim=True) * u
        return x

    def _in(self, i, args, kwargs):
        x = self._drop(args[0] if args else kwargs["hidden_states"])
        if self.add and self.add[0] == i:
            x = x + self.add[1]
        if args:
            return (x, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": x}

    def _out(self, _, __, output):
        if isinstance(output, tuple):
            return (self._drop(output[0]), *output[1:])
        return self._drop(output)
