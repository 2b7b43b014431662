"""Reports: the diff document (JSON), tables (rich, CSV) and figures (matplotlib).

Everything here is drawn from the document, a plain dictionary with a JSON Schema, so that a
result can be redrawn from ``diff.json`` years later, without models and without torch.
"""
