"""The command line: one module per command, wired in `main`; the only place that prints."""
