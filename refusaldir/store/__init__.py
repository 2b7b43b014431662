"""Captures on disk: one HDF5 file per model and prompt set, and the only room that knows h5py.

A file appears under its own name only when it is complete. Until then it is
``NAME.h5.partial``, which a killed run can resume. The layout is documented field by field in
``activations/README.md``.
"""

from refusaldir.store.header import peek
from refusaldir.store.paths import default_path, default_store, find_capture
from refusaldir.store.reader import Capture
from refusaldir.store.summary import summary
from refusaldir.store.writer import CaptureWriter

__all__ = [
    "Capture",
    "CaptureWriter",
    "default_path",
    "default_store",
    "find_capture",
    "peek",
    "summary",
]
