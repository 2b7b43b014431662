"""`refusaldir --help`: wall time over several runs, beside an interpreter that only imports typer.

python tests/benchmarks/bench_help.py
"""

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c 'import typer, rich'": [sys.executable, "-c", "import typer, rich.console"],
    "refusaldir --help": [sys.executable, "-m", "refusaldir.cli", "--help"],
    "refusaldir diff --help": [sys.executable, "-m", "refusaldir.cli", "diff", "--help"],
}
for name, command in COMMANDS.items():
    times = []
    for _ in range(7):
        began = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        times.append(time.perf_counter() - began)
    print(f"{name:32s} median {statistics.median(times):.3f} s  min {min(times):.3f} s")
