import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from refusaldir.prompts.schema import Prompt, PromptSet, Turn
from refusaldir.records import ModelIdentity, Positions, Provenance, TemplateIdentity
from refusaldir.store import CaptureWriter


def make_prompts(n: int) -> PromptSet:
    """Alternating harmful and harmless, with every optional field used by some prompt."""
    prompts = []
    for i in range(n):
        harmful = i % 2 == 0
        turns = (Turn("user", f"Frage {i}: wie geht das? 🙂"),)
        if i % 3 == 0:
            turns = (Turn("system", ""), Turn("user", "hi"), Turn("assistant", "yes?"), *turns)
        prompts.append(
            Prompt(
                id=f"p{i}",
                intent_id=f"i{i // 2}",
                label="harmful" if harmful else "harmless",
                category=("privacy", "weapons")[i // 2 % 2],
                severity="high" if harmful else None,
                framing=("plain", "fictional")[i % 2],
                turns=turns,
                twin_of=f"p{i + 1}" if harmful else None,
                source="made up",
                licence="Apache-2.0",
                split=("train", "validation", "test", None)[i % 4],
                metadata={"näme": [1, None, {"deep": "x\0y"}]} if i % 4 == 1 else {},
            )
        )
    return PromptSet("made-up", tuple(prompts), ("one prompt was dropped",))


def make_provenance(
    prompts: PromptSet,
    *,
    layers: tuple[int, ...] = (1, 4, 5),
    offsets: tuple[int, ...] = (-5, -2, -1),
    d_model: int = 8,
    hooks: tuple[str, ...] = ("resid_pre", "mlp_out"),
    name: str = "tiny",
    weights: str = "w0",
) -> Provenance:
    return Provenance(
        model=ModelIdentity(
            spec="./tiny",
            name=name,
            adapters=("a", "b"),
            weights_hash=weights,
            architecture="LlamaForCausalLM",
            n_layers=max(layers) + 1,
            d_model=d_model,
            vocab_size=100,
            dtype="float32",
        ),
        template=TemplateIdentity(tokenizer_hash="t", template_hash="c", post_tokens=("<e>", "\n")),
        prompts_name=prompts.name,
        prompts_hash=prompts.hash,
        rendered_hash="r",
        hooks=hooks,
        layers=layers,
        positions=Positions(offsets=offsets, labels=tuple(f"t\0{o}" for o in offsets)),
        versions={"refusaldir": "0.1.0", "torch": "2"},
        created="2025-01-01T00:00:00+00:00",
    )


@dataclass(frozen=True)
class Case:
    """What one capture should hold."""

    prompts: PromptSet
    provenance: Provenance
    values: dict[str, np.ndarray]

    @property
    def lengths(self) -> list[int]:
        return [10 + i for i in range(len(self.prompts))]

    def writer(self, path: Path, **options: object) -> CaptureWriter:
        return CaptureWriter.create(
            path,
            **{
                "provenance": self.provenance,
                "prompts": self.prompts,
                "lengths": self.lengths,
                "d_model": self.provenance.model.d_model,
                **options,
            },
        )

    def batch(self, rows: object) -> dict[str, np.ndarray]:
        return {hook: values[rows] for hook, values in self.values.items()}

    def write(self, path: Path, *, batch: int = 3, **options: object) -> Path:
        with self.writer(path, **options) as writer:
            todo = [i for i in np.random.default_rng(1).permutation(len(self.prompts))]
            todo = [i for i in todo if i not in writer.done]
            for start in range(0, len(todo), batch):
                rows = np.array(todo[start : start + batch])
                writer.write(rows, self.batch(rows))
            return writer.finish()

    def with_values(self, hook: str, values: np.ndarray) -> "Case":
        return replace(self, values={**self.values, hook: values})


def make_case(n: int = 10, *, seed: int = 0, **provenance: object) -> Case:
    prompts = make_prompts(n)
    prov = make_provenance(prompts, **provenance)
    rng = np.random.default_rng(seed)
    shape = (n, len(prov.layers), len(prov.positions.offsets), prov.model.d_model)
    values = {hook: rng.standard_normal(shape, dtype=np.float32) for hook in prov.hooks}
    return Case(prompts, prov, values)


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy disk each fsync takes a second, and only a power cut could tell."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def case() -> Case:
    return make_case()


@pytest.fixture
def new_case() -> Callable[..., Case]:
    return make_case


@pytest.fixture
def stored(case: Case, tmp_path: Path) -> Path:
    return case.write(tmp_path / "c.h5")


@pytest.fixture
def child_env() -> dict[str, str]:
    """Environment of a Python child that can import this checkout and these helpers."""
    here = Path(__file__).parent
    paths = [str(here.parents[1]), str(here), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@pytest.fixture(name="make_provenance")
def make_provenance_fixture() -> Callable[..., Provenance]:
    return make_provenance
