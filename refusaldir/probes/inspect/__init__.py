"""Inspect (https://inspect.aisi.org.uk): our prompt sets as its tasks, its logs as our responses.

`refusaldir.probes.inspect.tasks` is what ``inspect eval refusaldir/battery`` finds;
`refusaldir.probes.inspect.log` reads what it wrote. Both need the extra ``inspect``.
"""
