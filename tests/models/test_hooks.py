"""Both backends against Hugging Face's own hidden states, and against each other."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from refusaldir.errors import CaptureError, ModelLoadError, ModelSpecError
from refusaldir.models.bridge import HookedModel, hook_model
from refusaldir.models.hooked import HookedCausalLM
from refusaldir.models.hookpoints import TorchPoints
from refusaldir.records import HOOKS

ARCHITECTURES = [
    "llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox", "olmo2",
    "granite", "qwen3_moe",
]  # fmt: skip
BACKENDS = ["torch_hooks", "transformer_lens"]
Tokens = Callable[..., Tensor]


def capture(model: HookedModel, ids: Tensor, **options: Any) -> dict[tuple[str, int], Tensor]:
    """Every hook point of a model on some tokens."""
    seen: dict[tuple[str, int], Tensor] = {}

    def keep(key: tuple[str, int]) -> Callable[[Tensor], None]:
        def hook_fn(value: Tensor) -> None:
            seen[key] = value.clone()

        return hook_fn

    keys = [(hook, layer) for hook in model.hook_names for layer in range(model.n_layers)]
    with torch.inference_mode(), model.hooked({key: keep(key) for key in keys}):
        model.run(ids, **options)
    return seen


GENERATION = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


@dataclass
class Case:
    """A model hooked, and what Hugging Face gave before it was."""

    model: HookedModel
    outputs: Any
    generated: Tensor


@pytest.fixture(scope="module")
def cases(tiny: SimpleNamespace, tokens: Tokens) -> Callable[[str, str], Case]:
    """Every architecture under every backend, built once: hooks are gone after each test."""

    @cache
    def make(architecture: str, backend: str) -> Case:
        hf = tiny.hf(architecture)
        with torch.inference_mode():
            outputs = hf(tokens(), output_hidden_states=True)
        mask = torch.ones_like(tokens())
        generated = hf.generate(tokens(), attention_mask=mask, **GENERATION)
        return Case(hook_model(tiny.loaded(hf), backend), outputs, generated)

    return make


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
class TestArchitectures:
    @pytest.fixture
    def case(self, cases: Callable[[str, str], Case], architecture: str, backend: str) -> Case:
        return cases(architecture, backend)

    @pytest.fixture
    def model(self, case: Case) -> HookedModel:
        return case.model

    def test_equal_to_hidden_states(self, case: Case, backend: str, tokens: Tokens) -> None:
        model, expected = case.model, case.outputs
        assert model.identity.backend == backend
        seen = capture(model, tokens())
        for layer in range(model.n_layers):
            assert torch.equal(seen["resid_pre", layer], expected.hidden_states[layer])
            if layer + 1 < model.n_layers:
                assert torch.equal(seen["resid_post", layer], seen["resid_pre", layer + 1])
        # The last block's output is before the final norm, which HF's last hidden state is after.
        last = seen["resid_post", model.n_layers - 1]
        assert not torch.allclose(last, expected.hidden_states[-1], rtol=1e-2)
        with torch.inference_mode():
            logits = model.logits(tokens())
        torch.testing.assert_close(logits, expected.logits[:, -1], rtol=1e-5, atol=1e-5)

    def test_backends_agree(
        self, cases: Callable[[str, str], Case], architecture: str, tokens: Tokens
    ) -> None:
        plain, lens = (cases(architecture, backend).model for backend in BACKENDS)
        assert plain.hook_names == lens.hook_names
        one, other = capture(plain, tokens()), capture(lens, tokens())
        assert all(torch.equal(one[key], other[key]) for key in one)

    def test_hook_names(self, model: HookedModel, architecture: str) -> None:
        parallel = architecture == "gpt_neox"
        assert model.hook_names == tuple(h for h in HOOKS if not (parallel and h == "resid_mid"))

    def test_contributions_add_up(self, model: HookedModel, tokens: Tokens) -> None:
        seen = capture(model, tokens())
        for i in range(model.n_layers):
            total = seen["resid_pre", i] + seen["attn_out", i] + seen["mlp_out", i]
            torch.testing.assert_close(total, seen["resid_post", i], rtol=1e-5, atol=1e-5)

    def test_writing_changes_the_stream(
        self, model: HookedModel, architecture: str, tokens: Tokens
    ) -> None:
        """A vector added at any point of a block is in the stream behind it, once."""
        vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(3))
        clean = capture(model, tokens())
        for hook in model.hook_names:
            with model.hooked({(hook, 1): lambda value: value + vector}):
                steered = capture(model, tokens())
            change = {key: steered[key] - clean[key] for key in clean}
            after = change["resid_post", 1]
            if hook in ("resid_pre", "attn_out", "resid_mid"):
                after = after - change["mlp_out", 1]
            if hook == "resid_pre":
                after = after - change["attn_out", 1]
            if hook == "attn_out":  # its change is its own
                torch.testing.assert_close(
                    change["attn_out", 1], vector.expand_as(after), rtol=1e-4, atol=1e-5
                )
                reaches_mlp = bool(change["mlp_out", 1].abs().max() > 0)
                assert reaches_mlp == (architecture != "gpt_neox")
            torch.testing.assert_close(after, vector.expand_as(after), rtol=1e-4, atol=1e-5)
            assert torch.equal(steered["resid_pre", 0], clean["resid_pre", 0])
        assert torch.equal(capture(model, tokens())["resid_post", 2], clean["resid_post", 2])

    def test_generation_runs_under_hooks(self, case: Case, tokens: Tokens) -> None:
        model = case.model
        hook = "resid_mid" if "resid_mid" in model.hook_names else "resid_pre"
        shapes: list[tuple[int, ...]] = []
        mask = torch.ones_like(tokens())
        with model.hooked({(hook, 1): lambda value: shapes.append(tuple(value.shape))}):
            got = model.hf.generate(tokens(), attention_mask=mask, **GENERATION)
        assert torch.equal(got, case.generated)
        assert shapes == [(2, 9, 32)] + [(2, 1, 32)] * 3

    def test_shared_prefix(self, model: HookedModel, tokens: Tokens) -> None:
        ids = tokens().clone()
        ids[:, :4] = ids[0, :4]
        whole = capture(model, ids)
        with torch.inference_mode():
            past = model.run(ids[:1, :4], use_cache=True)
            past.batch_repeat_interleave(2)
        suffix = capture(model, ids[:, 4:], past_key_values=past)
        for key, value in suffix.items():
            torch.testing.assert_close(value, whole[key][:, 4:], rtol=1e-4, atol=1e-5)


@pytest.fixture
def model(cases: Callable[[str, str], Case], backend: str) -> HookedModel:
    return cases("llama", backend).model


class TestRun:
    @pytest.mark.parametrize("hook", HOOKS)
    def test_stop_after(self, model: HookedModel, tokens: Tokens, hook: str) -> None:
        whole = capture(model, tokens())
        seen = capture(model, tokens(), stop_after=(hook, 1))
        kept = {("resid_pre", 0), (hook, 1)}
        assert kept <= set(seen)
        order = [(name, layer) for layer in range(3) for name in HOOKS]
        assert set(seen) == set(order[: order.index((hook, 1)) + 1])
        assert all(torch.equal(seen[key], whole[key]) for key in seen)

    def test_stop_after_leaves_no_hook(self, model: HookedModel, tokens: Tokens) -> None:
        whole = capture(model, tokens())
        capture(model, tokens(), stop_after=("resid_pre", 0))
        assert capture(model, tokens()).keys() == whole.keys()

    def test_cache_after_an_early_stop(self, model: HookedModel, tokens: Tokens) -> None:
        stop = ("resid_post", 1)
        whole = capture(model, tokens())
        with torch.inference_mode():
            cache = model.run(tokens()[:, :4], use_cache=True, stop_after=stop)
        seen = capture(model, tokens()[:, 4:], past_key_values=cache, stop_after=stop)
        torch.testing.assert_close(seen[stop], whole[stop][:, 4:], rtol=1e-4, atol=1e-5)

    def test_no_cache_unless_asked_for(self, model: HookedModel, tokens: Tokens) -> None:
        assert model.run(tokens()) is None
        assert model.run(tokens(), stop_after=("resid_pre", 1)) is None

    def test_padding_on_the_left_is_harmless(self, model: HookedModel, tokens: Tokens) -> None:
        whole = capture(model, tokens())
        padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), tokens()], dim=1)
        mask = (torch.arange(12) >= 3).long().expand(2, -1)
        seen = capture(model, padded, attention_mask=mask)
        for key, value in seen.items():
            torch.testing.assert_close(value[:, 3:], whole[key], rtol=1e-4, atol=1e-5)
        wrong = capture(model, padded)  # negative control: without a mask it does harm
        assert not torch.allclose(wrong["resid_post", 2][:, 3:], whole["resid_post", 2], rtol=1e-2)

    def test_no_such_stop(self, model: HookedModel, tokens: Tokens) -> None:
        with pytest.raises(CaptureError, match="layers 0 to 2, got resid_pre in layer 3"):
            model.run(tokens(), stop_after=("resid_pre", 3))


class TestLogits:
    def test_rows_padded_on_the_right(self, model: HookedModel, tokens: Tokens) -> None:
        lengths = torch.tensor([9, 5])
        with torch.inference_mode():
            expected = torch.stack(
                [model.logits(tokens()[i : i + 1, :n])[0] for i, n in enumerate(lengths)]
            )
            got = model.logits(tokens(), lengths=lengths)
            mask = (torch.arange(9) < lengths[:, None]).long()
            masked = model.logits(tokens(), attention_mask=mask)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(masked, expected, rtol=1e-4, atol=1e-5)

    def test_rows_padded_on_the_left(self, model: HookedModel, tokens: Tokens) -> None:
        padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), tokens()], dim=1)
        mask = (torch.arange(12) >= 3).long().expand(2, -1)
        with torch.inference_mode():
            expected = model.logits(tokens())
            got = model.logits(padded, attention_mask=mask)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)

    def test_with_a_cache(self, model: HookedModel, tokens: Tokens) -> None:
        with torch.inference_mode():
            expected = model.logits(tokens())
            cache = model.run(tokens()[:, :4], use_cache=True)
            got = model.logits(tokens()[:, 4:], past_key_values=cache)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("length", [0, 10])
    def test_impossible_lengths(self, model: HookedModel, tokens: Tokens, length: int) -> None:
        with pytest.raises(CaptureError, match="1 to 9"):
            model.logits(tokens(), lengths=torch.tensor([5, length]))

    def test_softcapping(self, tiny: SimpleNamespace, backend: str, tokens: Tokens) -> None:
        capped = hook_model(tiny.loaded(tiny.hf("gemma2", final_logit_softcapping=0.5)), backend)
        free = hook_model(tiny.loaded(tiny.hf("gemma2", final_logit_softcapping=None)), backend)
        with torch.inference_mode():
            assert capped.logits(tokens()).abs().max() <= 0.5 < free.logits(tokens()).abs().max()


class TestHooked:
    def test_gone_after_an_exception(self, model: HookedModel, tokens: Tokens) -> None:
        clean = capture(model, tokens())

        def fail(value: Tensor) -> Tensor:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError), model.hooked({("resid_mid", 1): fail}):
            model.run(tokens())
        assert torch.equal(capture(model, tokens())["resid_post", 2], clean["resid_post", 2])

    def test_none_keeps_the_value(self, model: HookedModel, tokens: Tokens) -> None:
        clean = capture(model, tokens())
        with model.hooked({(hook, 1): lambda _: None for hook in HOOKS}):
            seen = capture(model, tokens())
        assert all(torch.equal(seen[key], clean[key]) for key in clean)

    def test_nesting_runs_in_order(self, model: HookedModel, tokens: Tokens) -> None:
        with model.hooked({("resid_pre", 1): lambda v: v * 0}):
            with model.hooked({("resid_pre", 1): lambda v: v + 1}):
                seen = capture(model, tokens())
            assert capture(model, tokens())["resid_pre", 1].abs().max() == 0
        assert (seen["resid_pre", 1] == 1).all()

    def test_a_change_of_resid_mid_is_seen_by_resid_post(
        self, model: HookedModel, tokens: Tokens
    ) -> None:
        """Whatever the order in which the two hooks are asked for."""
        seen = []
        clean = capture(model, tokens())
        with model.hooked(
            {
                ("resid_post", 1): lambda value: seen.append(value.clone()),
                ("resid_mid", 1): lambda value: value * 0,
                ("mlp_out", 1): lambda value: value * 0,
            }
        ):
            model.run(tokens())
        assert seen[0].abs().max() < 1e-5 < clean["resid_post", 1].abs().max()

    @pytest.mark.parametrize("key", [("resid_pre", 3), ("resid_pre", -1), ("nowhere", 0)])
    def test_no_such_point(self, model: HookedModel, key: tuple[str, int], tokens: Tokens) -> None:
        calls: list[int] = []
        with (
            pytest.raises(CaptureError, match="no such hook point"),
            model.hooked({("resid_pre", 0): lambda _: calls.append(1), key: lambda _: None}),
        ):
            pass
        model.run(tokens())
        assert not calls

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            (lambda v: v[:, :1], r"got \[2, 1, 32\]"),
            (lambda v: v.double(), "float64"),
            (lambda v: 3, "got int"),
        ],
    )
    def test_bad_results(self, model: HookedModel, tokens: Tokens, bad: Any, message: str) -> None:
        with pytest.raises(CaptureError, match=message), model.hooked({("attn_out", 1): bad}):
            model.run(tokens())

    def test_gradients_pass_through(self, model: HookedModel, tokens: Tokens) -> None:
        vector = torch.zeros(model.d_model, requires_grad=True)
        with model.hooked({("resid_mid", 0): lambda value: value + vector}):
            model.logits(tokens()).sum().backward()
        assert vector.grad is not None and vector.grad.abs().max() > 0


class TestBackends:
    def test_auto_is_transformer_lens(self, tiny: SimpleNamespace) -> None:
        assert hook_model(tiny.loaded(tiny.hf())).identity.backend == "transformer_lens"

    def test_auto_falls_back(self, tiny: SimpleNamespace, tokens: Tokens) -> None:
        hf = tiny.hf("persimmon")
        with torch.inference_mode():
            expected = hf(tokens(), output_hidden_states=True).hidden_states
        model = hook_model(tiny.loaded(hf))
        assert model.identity.backend == "torch_hooks"
        seen = capture(model, tokens())
        assert all(torch.equal(seen["resid_pre", i], expected[i]) for i in range(3))
        with pytest.raises(ModelLoadError, match="no adapter for PersimmonForCausalLM"):
            hook_model(tiny.loaded(tiny.hf("persimmon")), "transformer_lens")

    def test_a_bridge_that_changes_the_model_is_undone(
        self, tiny: SimpleNamespace, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from refusaldir.models import lens

        build = lens._build

        def broken(hf: Any) -> Any:
            bridge = build(hf)
            # A wrapper that alters what it wraps, as a reimplemented attention might.
            bridge.blocks[1].attn.register_forward_hook(lambda m, a, out: (out[0] * 1.1, *out[1:]))
            return bridge

        monkeypatch.setattr(lens, "_build", broken)
        hf = tiny.hf()
        names = [name for name, _ in hf.named_modules()]
        expected = hf(tokens()).logits
        with pytest.raises(ModelLoadError, match="computes something else"):
            hook_model(tiny.loaded(hf), "transformer_lens")
        model = hook_model(tiny.loaded(hf))
        assert model.identity.backend == "torch_hooks"
        assert [name for name, _ in hf.named_modules()] == names
        assert torch.equal(hf(tokens()).logits, expected)

    def test_torch_hooks_leave_the_model_as_it_is(self, tiny: SimpleNamespace) -> None:
        hf = tiny.hf()
        names = [name for name, _ in hf.named_modules()]
        hook_model(tiny.loaded(hf), "torch_hooks")
        assert [name for name, _ in hf.named_modules()] == names

    def test_unknown_backend(self, tiny: SimpleNamespace) -> None:
        with pytest.raises(ModelSpecError, match=r"auto \| transformer_lens \| torch_hooks"):
            hook_model(tiny.loaded(tiny.hf()), "nnsight")

    def test_points_that_do_not_add_up_are_left_out(self, tiny: SimpleNamespace) -> None:
        class Wrong(TorchPoints):
            """Calls the attention before its norm what is after it."""

            def attach(self, hook: str, layer: int, fn: Any, *, first: bool = False) -> Any:
                if hook == "attn_out":
                    return (
                        blocks[layer]
                        .self_attn.register_forward_hook(lambda module, args, out: fn(out[0]))
                        .remove
                    )
                return super().attach(hook, layer, fn, first=first)

        hf = tiny.hf("gemma2")
        blocks = hf.model.layers
        assert HookedCausalLM(tiny.loaded(hf), TorchPoints(hf)).hook_names == HOOKS
        names = HookedCausalLM(tiny.loaded(hf), Wrong(hf)).hook_names
        assert names == ("resid_pre", "resid_post")

    def test_bfloat16(self, tiny: SimpleNamespace, backend: str, tokens: Tokens) -> None:
        hf = tiny.hf().bfloat16()
        with torch.inference_mode():
            expected = hf(tokens(), output_hidden_states=True).hidden_states
        model = hook_model(tiny.loaded(hf), backend)
        assert model.hook_names == HOOKS
        seen = capture(model, tokens())
        assert all(torch.equal(seen["resid_pre", i], expected[i]) for i in range(3))

    def test_no_residual_stream(self, tiny: SimpleNamespace) -> None:
        hf = tiny.hf()
        del hf.model.layers[0]
        with pytest.raises(ModelLoadError, match="decoder blocks"):
            hook_model(tiny.loaded(hf), "torch_hooks")

    def test_sizes(self, tiny: SimpleNamespace, backend: str) -> None:
        model = hook_model(tiny.loaded(tiny.hf()), backend)
        assert (model.n_layers, model.d_model, model.max_length) == (3, 32, 64)
        assert model.device == torch.device("cpu")


@pytest.mark.gpu
class TestGpu:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_equal_to_hidden_states(
        self,
        architecture: str,
        dtype: torch.dtype,
        backend: str,
        tiny: SimpleNamespace,
        tokens: Tokens,
    ) -> None:
        hf = tiny.hf(architecture).to("cuda", dtype)
        ids = tokens().cuda()
        with torch.inference_mode():
            expected = hf(ids, output_hidden_states=True)
        model = hook_model(tiny.loaded(hf), backend)
        seen = capture(model, ids)
        for layer in range(model.n_layers):
            assert torch.equal(seen["resid_pre", layer], expected.hidden_states[layer])
        with torch.inference_mode():
            logits = model.logits(ids)
        tolerance = 1e-4 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(logits, expected.logits[:, -1], rtol=tolerance, atol=tolerance)
