"""`python -m refusaldir.cli`."""

from .main import main

main()
