"""Attributions along the line: they close, and equal the gradients taken the obvious way."""

import json
import os
import resource
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from pairs import ARCHITECTURES, DENSE, changed, make_base, save_lora, save_tuned
from tiny import CONFIGS, make_model, make_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from refusaldir.batching import TokenBatch
from refusaldir.errors import CaptureError
from refusaldir.layers.outcomes import Projection, RefusalScore
from refusaldir.layers.path import line as line_module
from refusaldir.layers.path.attribution import TOLERANCE, PathAttribution, attribute
from refusaldir.layers.path.quadrature import NESTED, gauss_legendre, nested
from refusaldir.layers.path.slopes import MixedRowsError, Rows
from refusaldir.layers.switches import tensor_switches
from refusaldir.layers.weight_pair import Change, WeightPair
from refusaldir.models.bridge import hook_model, open_model
from refusaldir.models.load import LoadedModel
from refusaldir.records import Site
from refusaldir.refusal_score import refusal_scores, score_of_logits

REFUSALS = (5, 6, 14)
SCORE = RefusalScore(REFUSALS)
#: Small enough that no token of the tiny random routers changes its experts on the way.
CHANGE = {"mixtral": 5e-4, "qwen3_moe": 5e-4}


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [[3, 40, 41, 42, 43, *rng.integers(5, 97, 2 + n).tolist()] for n in (0, 2, 4, 9, 9, 3)]


def open_pair(pair, **options) -> WeightPair:
    return WeightPair.open(*pair.specs, **options)


def obvious(pair, sequences, nodes, score):
    """Weights interpolated in a model of their own, one backward pass a prompt, param.grad · ΔW."""
    base, tuned = (open_model(spec, backend="torch_hooks").hf for spec in pair.specs)
    between = open_model(pair.base, backend="torch_hooks").hf
    ends = {}
    for name in dict(between.named_parameters()):
        ends[name] = base.get_parameter(name).data, tuned.get_parameter(name).data
    points, weights = np.polynomial.legendre.leggauss(nodes)
    values = {name: np.zeros(len(sequences)) for name in ends}
    between.requires_grad_(True)
    for tau, weight in zip((points + 1) / 2, weights / 2, strict=True):
        for name, parameter in between.named_parameters():
            parameter.data = ends[name][0] + float(tau) * (ends[name][1] - ends[name][0])
        for i, ids in enumerate(sequences):
            between.zero_grad()
            score(between(torch.tensor([ids]), use_cache=False)).backward()
            for name, parameter in between.named_parameters():
                if parameter.grad is not None:
                    delta = ends[name][1] - ends[name][0]
                    values[name][i] += weight * float((parameter.grad * delta).double().sum())
    return values


def of_change(change: Change, values: dict[str, np.ndarray]) -> np.ndarray:
    """Sum of the parameters that a change stands for."""

    def belongs(name: str) -> bool:
        inside = any(f".{kind}.{change.layer}." in name for kind in ("layers", "h"))
        return (
            f".{change.name}." in f".{name}."
            and inside == (change.layer is not None)
            and (change.component is None or (change.component == "mlp") == (".mlp." in name))
        )

    names = [name for name in values if belongs(name)]
    assert names, change
    return np.sum([values[name] for name in names], axis=0)


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_closes_and_equals_the_obvious_gradients(make_pair, prompts, name, kind):
    if kind == "lora" and name in CHANGE:
        pytest.skip("an adapter of this size sends tokens to other experts")
    specs = make_pair(name, kind, change=CHANGE.get(name, 0.01))
    pair = open_pair(specs)
    closed = attribute(pair, prompts, SCORE)
    assert closed.relative_gap is not None and closed.relative_gap < TOLERANCE and closed.closed
    assert closed.nodes in NESTED
    np.testing.assert_allclose(
        closed.values.sum(axis=1), closed.tuned - closed.base, atol=0.01 * np.ptp(closed.values)
    )
    few = attribute(pair, prompts[:2], SCORE, nodes=2)
    expected = obvious(
        specs, prompts[:2], 2, lambda out: score_of_logits(out.logits[:, -1], REFUSALS)[0]
    )
    scale = max(np.abs(value).max() for value in expected.values())
    for index, change in enumerate(few.changes):
        assert np.abs(few.values[:, index] - of_change(change, expected)).max() < 1e-5 * scale
    assert np.sum(list(expected.values()), axis=0) == pytest.approx(
        few.values.sum(axis=1), abs=1e-5 * scale
    )


def test_routers_that_choose_all_experts_close_at_any_size(make_pair, prompts, tmp_path):
    """The gap of a routed model comes from tokens that change their experts, and only from that."""

    def gap(top: int) -> float:
        folder = tmp_path / str(top)
        for part, change in (("base", 0.0), ("tuned", 0.01)):
            hf = make_base("mixtral")
            hf.config.num_experts_per_tok = top
            save_tuned(changed(hf, change=change), folder / part)
        pair = WeightPair.open(str(folder / "base"), str(folder / "tuned"))
        result = attribute(pair, prompts, SCORE)
        assert result.closed == (result.relative_gap < TOLERANCE)
        return result.relative_gap

    assert gap(3) < TOLERANCE
    assert gap(1) > 10 * TOLERANCE  # reported, not hidden


def test_ends_are_those_of_the_models_alone(make_pair, prompts):
    specs = make_pair("qwen2", "lora")
    result = attribute(open_pair(specs), prompts, SCORE, nodes=1)
    for spec, values in zip(specs.specs, (result.base, result.tuned), strict=True):
        alone = refusal_scores(open_model(spec), prompts, REFUSALS)
        np.testing.assert_allclose(values, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch_hooks", "transformer_lens"])
def test_backends_and_batches_agree(make_pair, prompts, backend):
    specs = make_pair("gemma3", "full", change=0.01)
    reference = attribute(open_pair(specs), prompts, SCORE, nodes=3)
    pair = open_pair(specs, backend=backend)
    assert pair.model.identity.backend == backend
    for batch_size in (1, 2, 6):
        result = attribute(pair, prompts, SCORE, nodes=3, batch_size=batch_size)
        np.testing.assert_allclose(result.values, reference.values, atol=2e-5)


def test_few_nodes_leave_a_gap_that_is_shown(make_pair, prompts):
    pair = open_pair(make_pair("llama", "lora"))
    coarse = attribute(pair, prompts, SCORE, nodes=1)
    assert coarse.relative_gap > 10 * TOLERANCE and not coarse.closed
    assert coarse.to_dict()["relative_gap"] == coarse.relative_gap
    mean = np.mean(coarse.values.sum(axis=1) - (coarse.tuned - coarse.base))
    assert coarse.gap == pytest.approx(abs(mean))
    assert abs(coarse.prompt_gaps).max() >= coarse.gap


def rotated(hf, layer: int, angle: float):
    """Rotate what every KV head of one layer carries, and rotate it back on the way out."""
    attention = hf.model.layers[layer].self_attn
    d, config = attention.head_dim, hf.config
    torch.manual_seed(0)
    turn = torch.linalg.matrix_exp(
        angle * (m := torch.randn(config.num_key_value_heads, d, d)) - angle * m.mT
    )
    share = config.num_attention_heads // config.num_key_value_heads
    with torch.no_grad():
        v, o = attention.v_proj.weight, attention.o_proj.weight
        v.copy_((turn @ v.view(-1, d, v.shape[1])).reshape(v.shape))
        for head in range(config.num_attention_heads):
            at = slice(head * d, head * d + d)
            o[:, at] = o[:, at] @ turn[head // share].T
    return hf


def test_rotation_that_the_function_does_not_feel(make_pair, prompts, tmp_path):
    """Two matrices that cancel: each moves the score on the way, together they do not."""
    base = make_pair("llama", "full").base
    hf = AutoModelForCausalLM.from_pretrained(base)
    tuned = save_tuned(rotated(hf, 1, 0.15), tmp_path / "rotated")
    pair = WeightPair.open(base, tuned)
    assert {str(change) for change in pair.changes} == {
        "layer 1 attn.v_proj", "layer 1 attn.o_proj"
    }  # fmt: skip
    result = attribute(pair, prompts, SCORE, nodes=12)
    assert np.abs(result.tuned - result.base).max() < 1e-4
    size = np.abs(result.values).max()
    assert size > 0.05
    assert np.abs(result.by_layer).max() < 1e-3 * size
    # Nothing to share out: no node is spent on closing to a share of nothing.
    alone = attribute(pair, prompts, SCORE)
    assert alone.closed and alone.nodes <= 15
    # One half alone is felt.
    half = AutoModelForCausalLM.from_pretrained(base)
    half.model.layers[1].self_attn.v_proj.weight.data = pair.switches[0].tensors["weight"][1]
    felt = WeightPair.open(base, save_tuned(half, tmp_path / "half"))
    assert np.abs(attribute(felt, prompts, SCORE, nodes=3).by_layer[:, 1]).max() > 0.05


def test_a_change_in_one_block_stays_there(make_pair, prompts):
    result = attribute(open_pair(make_pair("qwen3", "full", only=("layers.1.",))), prompts, SCORE)
    assert np.all(result.by_layer[:, [0, 2]] == 0) and np.all(result.outside == 0)
    assert np.abs(result.by_layer[:, 1]).min() > 1e-3
    parts = result.by_component
    assert set(parts) == {"attn", "mlp", "other"}
    np.testing.assert_allclose(sum(parts.values()), result.by_layer, atol=1e-12)
    assert all(np.abs(part[:, 1]).max() > 0 for part in parts.values())


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_nothing_after_the_outcome_is_blamed(make_pair, prompts, kind):
    u = np.eye(32)[3]
    pair = open_pair(make_pair("llama", kind))
    early = Projection(Site(hook="resid_mid", layer=1, position=-2), u)
    result = attribute(pair, prompts, early)
    assert result.closed
    for index, change in enumerate(result.changes):
        before = change.layer == 0 or change.name == "embed_tokens"
        before |= change.layer == 1 and change.component == "attn"
        before |= change.layer == 1 and change.name == "input_layernorm"
        assert np.any(result.values[:, index]) == before, change
    late = attribute(pair, prompts, Projection(Site(hook="resid_post", layer=2, position=-2), u))
    assert np.abs(late.by_layer[:, 2]).max() > 0 and late.closed


def test_identical_models(make_pair, prompts):
    base = make_pair("llama", "full").base
    result = attribute(WeightPair.open(base, base), prompts, SCORE)
    assert result.changes == () and result.nodes == 0 and result.gap == 0 and result.closed
    assert result.relative_gap is None
    assert result.by_layer.shape == (len(prompts), 3) and not result.by_layer.any()


def test_an_adapter_that_does_nothing_gets_zero(make_pair, prompts, tmp_path):
    base = make_pair("llama", "full").base
    idle = save_lora(base, tmp_path / "idle", targets=DENSE, scale=0.0)
    result = attribute(WeightPair.open(base, f"{base}+{idle}"), prompts, SCORE)
    assert len(result.changes) == 15 and result.nodes == 3
    assert np.all(result.values == 0) and result.closed


def test_swapped_models_give_the_opposite(make_pair, prompts):
    specs = make_pair("phi3", "full", change=0.01)
    forth = attribute(open_pair(specs), prompts, SCORE, nodes=4)
    back = attribute(WeightPair.open(specs.tuned, specs.base), prompts, SCORE, nodes=4)
    np.testing.assert_allclose(back.values, -forth.values, atol=2e-5)
    np.testing.assert_allclose(back.base, forth.tuned, atol=1e-5)


def test_adapters_that_only_base_has(make_pair, prompts, tmp_path):
    """The line from one adapter to another: both are moved along at once."""
    base = make_pair("llama", "full").base
    one, two = (
        save_lora(base, tmp_path / f"lora{i}", targets=DENSE, seed=i, scale=0.07) for i in range(2)
    )
    result = attribute(WeightPair.open(f"{base}+{one}", f"{base}+{two}"), prompts, SCORE)
    assert result.closed and np.abs(result.values).max() > 0.01


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_pair_is_left_as_it_was(make_pair, prompts, kind, monkeypatch):
    pair = open_pair(make_pair("llama", kind))
    tokens = torch.tensor([prompts[3]])
    pair.set([1], outside=True)

    def logits():
        with torch.inference_mode():
            return pair.model.logits(tokens)

    before = logits()
    attribute(pair, prompts, SCORE, nodes=2)
    assert torch.equal(logits(), before)

    class Failing(RefusalScore):
        def of(self, model, batch, prefix):
            if torch.is_grad_enabled():
                raise KeyboardInterrupt
            return super().of(model, batch, prefix)

    with pytest.raises(KeyboardInterrupt):
        attribute(pair, prompts, Failing(REFUSALS), nodes=2)
    assert torch.equal(logits(), before)
    assert pair.tuned_layers == {1} and pair.tuned_outside


def test_rotary_tables_lie_on_the_line_too(make_pair, prompts, tmp_path):
    base = make_pair("llama", "full").base
    other = save_tuned(AutoModelForCausalLM.from_pretrained(base), tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    settings = json.loads(config.read_text())
    settings["rope_parameters"] = {**settings["rope_parameters"], "rope_theta": 1.1e4}
    config.write_text(json.dumps(settings))
    result = attribute(WeightPair.open(base, other), prompts, SCORE)
    assert [change.name for change in result.changes] == ["rotary_emb"]
    assert result.closed and np.abs(result.outside).max() > 1e-3


class Routed(nn.Module):
    """Experts that are modules of their own and see the tokens routed to them."""

    def __init__(self, width: int, experts: int = 2) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        chosen = (flat[:, 0] > 0).long()
        out = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            at = torch.where(chosen == index)[0]
            out = out.index_add(0, at, expert(flat[at]))
        return out.view_as(x)


def in_memory(*models) -> WeightPair:
    identity = replace(make_model("llama").identity, d_model=models[0].config.hidden_size,
                       n_layers=models[0].config.num_hidden_layers)  # fmt: skip
    switches = tensor_switches(*models, where="tuned")
    loaded = LoadedModel(hf=models[0], tokenizer=make_tokenizer(), identity=identity)
    return WeightPair(hook_model(loaded, "torch_hooks"), identity, identity, switches)


def test_experts_that_are_modules_run_one_prompt_at_a_time(prompts):
    models = [make_base("llama").requires_grad_(False) for _ in range(2)]
    torch.manual_seed(0)
    mlp = Routed(32).requires_grad_(False)
    for scale, hf in enumerate(models):
        hf.model.layers[1].mlp = Routed(32).requires_grad_(False)
        hf.model.layers[1].mlp.load_state_dict(
            {k: v + 0.1 * scale * torch.randn_like(v) for k, v in mlp.state_dict().items()}
        )
    pair = in_memory(*models)
    assert [c.name for c in pair.changes] == ["experts.0", "experts.1"]
    sizes = []

    class Counting(RefusalScore):
        def of(self, model, batch, prefix):
            if torch.is_grad_enabled():
                sizes.append(len(batch.indices))
            return super().of(model, batch, prefix)

    result = attribute(pair, prompts, Counting(REFUSALS))
    assert result.closed and sizes[0] > 1 and set(sizes[1:]) == {1}
    assert np.abs(result.values).max(axis=0).min() > 1e-3


def test_rows_are_told_apart_or_refused():
    rows = Rows(count=3, length=4)
    for shape in ((3, 4, 5), (3, 1, 5), (12, 5)):
        assert rows.spread(torch.zeros(shape)).shape == shape
    assert rows.spread(torch.zeros(1, 4, 5)).shape == (3, 4, 5)
    for shape in ((7, 5), (3, 5), (4, 4, 5)):
        with pytest.raises(MixedRowsError):
            rows.spread(torch.zeros(shape))
    a, b = torch.randn(12, 5), torch.randn(12, 5)
    expected = (a * b).view(3, -1).sum(dim=1).double()
    torch.testing.assert_close(rows.inner(a, b, torch.float64), expected, atol=1e-5, rtol=0)


class Hungry(RefusalScore):
    """Memory suffices for so many rows."""

    def __init__(self, rows: int) -> None:
        super().__init__(REFUSALS)
        self.rows, self.tried = rows, []

    def of(self, model, batch: TokenBatch, prefix):
        self.tried.append(len(batch.indices))
        if len(batch.indices) > self.rows:
            raise torch.OutOfMemoryError("out of memory")
        return super().of(model, batch, prefix)


def test_batches_shrink_until_they_fit(make_pair, prompts):
    pair = open_pair(make_pair("llama", "full", change=0.01))
    hungry = Hungry(2)
    result = attribute(pair, prompts, hungry, nodes=2)
    np.testing.assert_allclose(
        result.values, attribute(pair, prompts, SCORE, nodes=2).values, atol=2e-5
    )
    assert hungry.tried[0] == 6 and max(hungry.tried[2:]) <= 2
    with pytest.raises(CaptureError, match="single prompt does not fit"):
        attribute(pair, prompts, Hungry(0), nodes=2)


def test_progress_counts_prompts_over_nodes(make_pair, prompts):
    pair = open_pair(make_pair("qwen3", "lora"))
    seen = []
    result = attribute(pair, prompts, SCORE, batch_size=4, on_progress=lambda *at: seen.append(at))
    totals = [n * len(prompts) for n in NESTED if n <= result.nodes]
    assert list(dict.fromkeys(total for _, total in seen)) == totals
    assert seen[-1] == (result.nodes * len(prompts),) * 2
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_what_cannot_be_attributed_is_said(make_pair, prompts):
    pair = open_pair(make_pair("llama", "full"))
    for arguments in (([], None), (prompts, 0)):
        with pytest.raises(CaptureError, match="needs prompts and nodes"):
            attribute(pair, arguments[0], SCORE, nodes=arguments[1])

    class Undefined(RefusalScore):
        def of(self, model, batch, prefix):
            return super().of(model, batch, prefix) * float("nan")

    with pytest.raises(CaptureError, match="not finite"):
        attribute(pair, prompts, Undefined(REFUSALS))


def test_as_plain_values():
    change = Change(layer=1, component="mlp", name="up_proj")
    result = PathAttribution(
        outcome="refusal score",
        changes=(change, replace(change, layer=None, component=None, name="norm")),
        values=np.array([[1.0, 0.5], [2.0, 0.5]]),
        base=np.zeros(2),
        tuned=np.array([1.5, 3.0]),
        nodes=3,
        n_layers=2,
    )
    assert result.by_layer.tolist() == [[0, 1], [0, 2]] and result.outside.tolist() == [0.5, 0.5]
    assert result.gap == 0.25 and result.relative_gap == pytest.approx(1 / 9)
    plain = result.to_dict()
    assert plain["changes"][0] == {"layer": 1, "component": "mlp", "name": "up_proj", "value": 1.5}
    assert plain["tuned"] == 2.25 and plain["n_prompts"] == 2 and plain["nodes"] == 3


class TestQuadrature:
    @pytest.mark.parametrize("n", NESTED)
    def test_nested_rules_are_exact_to_their_degree(self, n):
        x, w = nested(n)
        degree = 5 if n == 3 else (3 * n + 1) // 2
        for k in range(degree + 1):
            assert w @ x**k == pytest.approx(1 / (k + 1), abs=1e-14)
        past = np.polynomial.legendre.Legendre.basis(degree + 1)(2 * x - 1)
        assert abs(w @ past) > 1e-6  # and no further
        assert w.min() > 0 and 0 < x.min() and x.max() < 1

    def test_nested_rules_begin_with_the_smaller_ones(self):
        for small, large in pairwise(NESTED):
            np.testing.assert_array_equal(nested(large)[0][:small], nested(small)[0])

    def test_the_first_is_gauss_legendre(self):
        x, w = nested(3)
        order = np.argsort(x)
        np.testing.assert_allclose(x[order], gauss_legendre(3)[0])
        np.testing.assert_allclose(w[order], gauss_legendre(3)[1])


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def third_copy() -> float:
    """Most memory held beyond that of the two models, as a share of one model's weights."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "head_dim": 128}
    config = LlamaConfig(**{**CONFIGS["llama"].to_dict(), **sizes})
    models = [AutoModelForCausalLM.from_config(config).eval().requires_grad_(False) for _ in "bt"]
    for mine, theirs in zip(*(hf.parameters() for hf in models), strict=True):
        theirs.copy_(mine + 0.001 * torch.randn_like(mine))
    pair = in_memory(*models)
    attribute(pair, [[5, 6, 7]], SCORE, nodes=1)
    before, peak, running = resident(), [0], True

    def watch() -> None:
        while running:
            peak.append(resident())
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        attribute(pair, [list(range(5, 13))], SCORE, nodes=3)
    finally:
        running = False
        thread.join()
    return (max(peak) - before) / sum(p.numel() * 4 for p in models[0].parameters())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_stays_near_two_copies():
    """In a process that hands freed memory back at once."""
    here = Path(__file__).parent
    script = f"import sys; sys.path[:0] = {[str(here), str(here.parent)]!r}\n"
    script += f"from {Path(__file__).stem} import third_copy; print(third_copy())"
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(run.stdout.split()[-1]) < 0.2


def test_modules_patched_are_freed(make_pair, prompts):
    """The line leaves no trace on the modules."""
    pair = open_pair(make_pair("llama", "full"))
    with line_module.on_line(pair):
        assert any("forward" in m.__dict__ for m in pair.model.hf.modules())
    assert not any("forward" in m.__dict__ for m in pair.model.hf.modules())
