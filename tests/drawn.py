"""What every figure must be: legible, inside its page, and nothing written over anything else."""

import matplotlib


def texts(figure):
    """Every text a figure draws; axes keep more tick labels than those in view."""
    figure.draw_without_rendering()
    ticks, shown = set(), set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                ticks |= {tick.label1, tick.label2}
            shown |= {tick.label1 for tick in axis._update_ticks()}
    return [
        text
        for text in figure.findobj(matplotlib.text.Text)
        if text.get_visible() and text.get_text() and (text not in ticks or text in shown)
    ]


def assert_legible(figure):
    """Text is at least 8 points high, inside the page and apart."""
    page = figure.bbox
    free = []
    for text in texts(figure):
        assert text.get_fontsize() >= 8
        box = text.get_window_extent()
        assert page.x0 <= box.x0 and box.x1 <= page.x1, text.get_text()
        assert page.y0 <= box.y0 and box.y1 <= page.y1, text.get_text()
        free.append((box, text.get_text()))
    for i, (box, text) in enumerate(free):
        for other, name in free[:i]:
            wide = min(box.x1, other.x1) - max(box.x0, other.x0)
            high = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert wide <= 1 or high <= 3, (text, name)
