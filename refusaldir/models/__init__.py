"""Model specs, loading and the hook backends.

Import what you need from the modules; nothing heavy is imported here:

- `refusaldir.models.spec`: ``WHERE[@REVISION][+ADAPTER…]`` (no torch).
- `refusaldir.models.options`: how to load (no torch).
- `refusaldir.models.load`: from a spec to weights, tokenizer and identity.
- `refusaldir.models.bridge`: from weights to hook points on the residual stream.
"""
