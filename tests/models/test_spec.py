import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusaldir.errors import ModelSpecError
from refusaldir.models.options import LoadOptions
from refusaldir.models.spec import AdapterRef, ModelSpec, close_matches

WORDS = st.from_regex(r"[A-Za-z][A-Za-z0-9._-]{0,8}", fullmatch=True)
REVISIONS = st.none() | st.from_regex(r"[a-z0-9][a-z0-9/._-]{0,8}", fullmatch=True)
HUB_REFS = st.builds(
    lambda org, name, revision: AdapterRef(where=f"{org}/{name}", revision=revision),
    WORDS,
    WORDS,
    REVISIONS,
)


def test_parts() -> None:
    spec = ModelSpec.parse("org/chat@v1.2+org/lora-a@refs/pr/3+aligned")
    assert (spec.where, spec.revision) == ("org/chat", "v1.2")
    assert spec.adapters == (
        AdapterRef(where="org/lora-a", revision="refs/pr/3"),
        AdapterRef(where="aligned"),
    )
    assert spec.name == "chat@v1.2+lora-a@refs-pr-3+aligned"


@given(HUB_REFS, st.lists(HUB_REFS, max_size=3))
def test_round_trip(model: AdapterRef, adapters: list[AdapterRef]) -> None:
    spec = ModelSpec(where=model.where, revision=model.revision, adapters=tuple(adapters))
    assert ModelSpec.parse(str(spec)) == spec
    assert ModelSpec.parse(spec) is spec


@given(st.text(max_size=40))
def test_name_is_a_file_name(where: str) -> None:
    name = ModelSpec(where=where, revision=None).name
    assert name and Path(name).name == name
    assert all(c.isascii() and (c.isalnum() or c in "._-+@") for c in name)
    assert name not in {".", ".."}


@pytest.mark.parametrize("folder", ["a+b", "a@b", "a+b@c+d"])
def test_an_existing_path_is_taken_whole(folder: str) -> None:
    Path(folder).mkdir()
    Path("x+y").mkdir()
    assert ModelSpec.parse(folder) == ModelSpec(where=folder)
    spec = ModelSpec.parse(f"org/m@r+{folder}+x+y")
    assert spec.revision == "r"
    assert [adapter.where for adapter in spec.adapters] == [folder, "x+y"]
    assert ModelSpec.parse(str(spec)) == spec


def test_the_same_text_is_split_where_no_path_exists() -> None:
    assert ModelSpec.parse("a+b") == ModelSpec(where="a", adapters=(AdapterRef(where="b"),))


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "m+1").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ModelSpec.parse("~/m+1").where == "~/m+1"


@pytest.mark.parametrize("text", ["", "  ", "+a", "a+", "a++b", "a@", "@main", "a+b@"])
def test_empty_parts(text: str) -> None:
    with pytest.raises(ModelSpecError, match="empty"):
        ModelSpec.parse(text)


@pytest.mark.parametrize("text", ["./local@main", "smollm2-135m@main", "org/m+aligned@v1", "d@1"])
def test_no_revision_of_local_things(text: str) -> None:
    Path("d").mkdir()
    with pytest.raises(ModelSpecError, match="Only models on the Hub have revisions"):
        ModelSpec.parse(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("HuggingFaceTB/SmolLM2-135M", "SmolLM2-135M"),
        ("./runs/tune/checkpoint-500", "tune-checkpoint-500"),
        ("./runs/tune/final/", "tune-final"),
        ("org/repo/model.Q4_K_M.gguf", "model.Q4_K_M"),
        ("smollm2-135m+aligned+tuned", "smollm2-135m+aligned+tuned"),
        ("/weird dir/näme?", "n-me"),
    ],
)
def test_short_names(text: str, name: str) -> None:
    assert ModelSpec.parse(text).name == name


def test_close_matches() -> None:
    Path("my-tune").mkdir()
    assert close_matches("smolm2-135m") == ["smollm2-135m"]
    assert close_matches("./my-tun") == ["./my-tune"]
    assert close_matches("nothing/like-it") == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", "float64"),
        ("dtype", "fp16"),
        ("device", "gpu"),
        ("device", "cuda:x"),
        ("quantize", "3bit"),
        ("device_map", "spread"),
        ("device_map", "{}"),
        ("device_map", "[1]"),
    ],
)
def test_bad_options_are_named(field: str, value: str) -> None:
    with pytest.raises(ModelSpecError, match=field) as caught:
        LoadOptions(**{field: value})
    assert "expected" in str(caught.value)
    assert repr(value) in str(caught.value)


def test_device_map_as_json() -> None:
    options = LoadOptions(device_map='{"": "cpu"}')
    assert options.device_map == {"": "cpu"}
    with pytest.raises(ModelSpecError, match="exclude each other"):
        LoadOptions(device_map="auto", device="cpu")


def test_parsing_needs_no_torch() -> None:
    code = (
        "import sys; from refusaldir.models.spec import ModelSpec;"
        "from refusaldir.models.options import LoadOptions; LoadOptions();"
        "ModelSpec.parse('a/b@c+d').name;"
        "heavy = {'torch', 'transformers', 'numpy', 'transformer_lens'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
