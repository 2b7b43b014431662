"""Draw replies for people to label: a random part of a run, every reply as likely as any other.

Systematic sampling: replies are put in order by axis, category and the first judge's label, at
random within, and every N/n-th is taken from a random start. Each stratum is then represented
within one reply of its share, and no weights are needed afterwards. What judges said is not shown,
and the order of the file is random.
"""

import csv
import io
from collections.abc import Sequence

import numpy as np

from refusaldir.errors import ProbeError
from refusaldir.probes.behaviour import BehaviourRow
from refusaldir.probes.judging.labels import reply_code

#: Columns of the file; people fill in ``label``, and what they like in ``note``.
COLUMNS = ("reply", "label", "note", "id", "category", "turn", "prompt", "response")

#: A spreadsheet would run a cell that begins so, or show something else.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def draw_sample(rows: Sequence[BehaviourRow], n: int, *, seed: int = 0) -> list[BehaviourRow]:
    """Draw ``n`` replies, or all where there are no more.

    Args:
        rows: The replies.
        n: How many.
        seed: Seed of the draw.

    Returns:
        Replies in random order.

    Raises:
        ProbeError: There is nothing to draw from, or ``n`` is below 1.
    """
    if n < 1 or not rows:
        raise ProbeError(
            "a sample needs replies", expected="at least one", got=f"{n} of {len(rows)}"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(rows)).tolist()
    # Sorting keeps the random order within a stratum.
    order.sort(key=lambda i: (not rows[i].harmful, rows[i].category, rows[i].label))
    n = min(n, len(rows))
    places = np.floor((np.arange(n) + rng.random()) * len(rows) / n).astype(int)
    taken = [order[place] for place in places]
    return [rows[taken[i]] for i in rng.permutation(n)]


def sample_csv(rows: Sequence[BehaviourRow]) -> bytes:
    """A CSV file, a line a reply with a blank label; UTF-8 with the mark that spreadsheets need."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for row in rows:
        turn = "" if row.turn is None else str(row.turn)
        cells = (reply_code(row), "", "", row.id, row.category, turn, row.prompt, row.response)
        writer.writerow(["'" + cell if cell.startswith(_FORMULA) else cell for cell in cells])
    return text.getvalue().encode("utf-8-sig")
