"""Nodes and weights on the unit interval.

Gauss–Legendre with any number of nodes, and a nested family that begins with its three: 3, 7, 15
and 31 nodes, each rule among the next one's (Patterson 1968, Math. Comp. 22, 847–856), so that a
rule that is not good enough is extended and nothing is thrown away. With n nodes polynomials are
integrated exactly up to degree 2n − 1 (Gauss) and (3n + 1)/2 (nested, from 7 on; 5 for 3 nodes).
"""

import numpy as np
from jaxtyping import Float

#: Sizes of the nested rules.
NESTED = (3, 7, 15, 31)
#: The positive nodes on [-1, 1] that each rule adds to the one before; 0 belongs to all.
_ADDED = (
    (0.77459666924148337704,),
    (0.43424374934680255800, 0.96049126870802028342),
    (
        0.22338668642896688163,
        0.62110294673722640294,
        0.88845923287225699889,
        0.99383196321275502221,
    ),
    (
        0.11248894313318662575,
        0.33113539325797683309,
        0.53131974364437562397,
        0.70249620649152707861,
        0.83672593816886873550,
        0.92965485742974005667,
        0.98153114955374010687,
        0.99909812496766759766,
    ),
)

Rule = tuple[Float[np.ndarray, " node"], Float[np.ndarray, " node"]]


def gauss_legendre(n: int) -> Rule:
    """Nodes and weights of the Gauss–Legendre rule on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return (nodes + 1) / 2, weights / 2


def nested(n: int) -> Rule:
    """Nodes and weights of a nested rule on [0, 1].

    Args:
        n: One of `NESTED`.

    Returns:
        Nodes in the order of addition: those of a smaller rule come first, as in that rule.
    """
    nodes = [0.0]
    for added in _ADDED[: NESTED.index(n) + 1]:
        nodes += [sign * x for x in added for sign in (-1, 1)]
    x = np.array(nodes)
    # Interpolatory: the weights integrate the first n Legendre polynomials, all but one to 0.
    moments = np.zeros(n)
    moments[0] = 2.0
    weights = np.linalg.solve(np.polynomial.legendre.legvander(x, n - 1).T, moments)
    return (x + 1) / 2, weights / 2
