"""What must stay light: help, records and reports import neither torch nor transformers."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "transformer_lens", "sklearn", "statsmodels", "matplotlib")


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys, json; print('\\n' + json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    return set(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import refusaldir",
        "import refusaldir.cli.main",
        "import refusaldir.errors, refusaldir.records, refusaldir.store",
        "import refusaldir.report.document, refusaldir.report.tables",
        "import refusaldir.report.html, refusaldir.pipeline.report, refusaldir.probes.run",
        "import refusaldir.prompts.load; refusaldir.prompts.load.load_prompts('contrast')",
        "import refusaldir.models.spec, refusaldir.models.options",
        "import refusaldir.cli.main as m\n"
        "from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(m.app, ['extract', '--help']).exit_code == 0",
    ],
)
def test_light_imports(code):
    loaded = modules_after(code)
    assert not loaded.intersection(HEAVY)


def test_the_check_can_fail():
    """Negative control: a heavy module is seen."""
    assert "matplotlib" in modules_after("import refusaldir.report.canvas, matplotlib.colors")


def test_public_names_resolve():
    import refusaldir

    for name in refusaldir.__all__:
        assert getattr(refusaldir, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = refusaldir.nonsense
