"""The built wheel holds exactly what the tree holds, and works outside the repository."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = {"__pycache__", ".DS_Store"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # Built from a copy of what git would ship, so that leftovers of other builds cannot help.
    source = out / "source"
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(source)],
        capture_output=True,
        check=True,
    )
    (built,) = out.glob("*.whl")
    return built


def shipped(folder: Path, name: str) -> set[str]:
    return {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for path in folder.rglob("*")
        if path.is_file() and not SKIPPED.intersection(path.parts) and path.suffix != ".pyc"
    }


def test_wheel_holds_the_tree_and_nothing_else(wheel):
    inside = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    expected = shipped(ROOT / "refusaldir", "refusaldir") | shipped(ROOT / "cli", "refusaldir/cli")
    assert inside == expected


def test_every_package_is_listed():
    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"][
            "packages"
        ]
    )
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "refusaldir").rglob("__init__.py")
    }
    assert listed == found | {"refusaldir.cli"}


def test_wheel_works_in_another_directory(wheel, tmp_path):
    """Installed without dependencies into a venv that borrows this one's; run from elsewhere."""
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False)
    site = next((folder / "lib").glob("python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    borrowed = [p for p in sys.path if p.endswith("site-packages")]
    # Plain paths do not process editable installs' hooks, so only the wheel provides refusaldir.
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    run = subprocess.run(
        [
            str(folder / "bin" / "python"),
            "-c",
            "import refusaldir.cli.main as m, refusaldir, sys;"
            "from refusaldir.prompts.load import load_prompts;"
            "print(refusaldir.__file__, len(load_prompts('contrast')));"
            "sys.argv = ['refusaldir', '--help']; m.main()",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split()[0].startswith(str(site))
    assert run.stdout.split()[1] == "576"
    assert "extract" in run.stdout and "diff" in run.stdout
