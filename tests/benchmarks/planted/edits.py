"""Exact edits: a matrix that writes to the stream stops writing a direction, or turns it."""

import numpy as np

from .factors import Change, values


def erased(hf, layer, matrix, u) -> Change:
    """``ΔW = −u uᵀ W``: the matrix no longer writes along the unit direction u."""
    return {(layer, matrix): (-u[:, None], u[None] @ values(hf, layer, matrix))}


def turned(hf, layer, matrix, u, angle, seed) -> Change:
    """``ΔW = (R − 1) W``: what the matrix writes is rotated in a plane that holds u.

    Args:
        hf: A llama.
        layer: Block.
        matrix: One that writes to the stream.
        u: Unit direction.
        angle: In degrees.
        seed: Of the plane's other direction.
    """
    v = np.random.default_rng(seed).standard_normal(len(u))
    v -= (v @ u) * u
    plane = np.stack([u, v / np.linalg.norm(v)], axis=1)
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    turn = np.array([[c, -s], [s, c]]) - np.eye(2)
    return {(layer, matrix): (plane @ turn, plane.T @ values(hf, layer, matrix))}
