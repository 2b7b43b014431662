"""The report: one self-contained HTML page, drawn from documents alone.

Every figure is an SVG made here, without a drawing library: a page of a whole comparison takes well
under a megabyte, prints, and can be read by a screen reader. A short script adds what is shown on
pointing, keys, series to hide, tables to sort, and files to save. Nothing is fetched: the page's
own policy forbids it.
"""

from refusaldir.report.html.material import Material, Series
from refusaldir.report.html.page import page

__all__ = ["Material", "Series", "page"]
