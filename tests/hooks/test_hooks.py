"""Interventions against plain torch hooks on the HF model, and per row against each row alone."""

import pytest
import torch
from plain import PlainHooks
from transformers import AutoModelForCausalLM

from refusaldir.errors import CaptureError, DirectionError
from refusaldir.hooks import Ablation, Addition, ablated, added, intervene, orthonormal
from refusaldir.models.bridge import open_model

IDS = torch.tensor([[3, 40, 7, 9, 81, 5], [8, 8, 60, 4, 2, 99]])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=["transformer_lens", "torch_hooks"])
def model(request, base_model):
    return open_model(str(base_model), backend=request.param)


@pytest.fixture(scope="module")
def hf(base_model):
    return AutoModelForCausalLM.from_pretrained(base_model).eval()


def last_logits(hf, ids):
    with torch.no_grad():
        return hf(ids).logits[:, -1]


class TestMaths:
    def test_ablation_by_hand(self):
        x = torch.tensor([[[3.0, 4.0, 5.0]]])
        assert ablated(x, torch.tensor([[0.0, 1.0, 0.0]])).tolist() == [[[3.0, 0.0, 5.0]]]
        basis = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]])
        torch.testing.assert_close(
            ablated(x, basis), torch.tensor([[[0.0, 4 - 0.6 * 6.4, 5 - 0.8 * 6.4]]])
        )

    def test_ablation_is_idempotent_and_keeps_the_rest(self):
        x, basis = random(2, 5, 16), orthonormal(random(3, 16, seed=1))
        once = ablated(x, basis)
        torch.testing.assert_close(ablated(once, basis), once)
        torch.testing.assert_close(once @ basis.T, torch.zeros(2, 5, 3), atol=1e-5, rtol=0)
        other = random(16, seed=2)
        other -= basis.T @ (basis @ other)
        torch.testing.assert_close(once @ other, x @ other)

    def test_per_row(self):
        x, bases, vectors = random(3, 4, 8), random(3, 1, 8, seed=1), random(3, 8, seed=2)
        bases = bases / bases.norm(dim=-1, keepdim=True)
        for i in range(3):
            torch.testing.assert_close(ablated(x, bases)[i], ablated(x[i : i + 1], bases[i])[0])
            torch.testing.assert_close(added(x, vectors)[i], added(x[i : i + 1], vectors[i])[0])

    def test_dtype_is_kept_and_input_unchanged(self):
        x = random(1, 2, 8).bfloat16()
        before = x.clone()
        assert ablated(x, orthonormal(random(8))).dtype == torch.bfloat16
        assert added(x, random(8)).dtype == torch.bfloat16
        assert torch.equal(x, before)

    def test_first_basis_vector_keeps_its_direction(self):
        vectors = random(2, 8) * 1e6
        basis = orthonormal(vectors)
        torch.testing.assert_close(basis[0], vectors[0] / vectors[0].norm())
        torch.testing.assert_close(basis @ basis.T, torch.eye(2), atol=1e-6, rtol=0)
        assert float(basis[1] @ vectors[1]) > 0

    @pytest.mark.parametrize(
        ("vectors", "said"),
        [
            (torch.zeros(8), "non-zero"),
            (torch.full((8,), float("nan")), "finite"),
            (torch.stack([torch.ones(8), 2 * torch.ones(8)]), "rank 1"),
        ],
    )
    def test_unusable_vectors(self, vectors, said):
        with pytest.raises(DirectionError, match=said):
            orthonormal(vectors)


class TestAgainstPlainHooks:
    def test_ablation(self, model, hf):
        u = orthonormal(random(32))
        with PlainHooks(hf, ablate=u):
            expected = last_logits(hf, IDS)
        with torch.no_grad(), intervene(model, Ablation(u)):
            got = model.logits(IDS)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(got, last_logits(hf, IDS), atol=1e-3)

    def test_subspace(self, model, hf):
        basis = orthonormal(random(3, 32, seed=4))
        with PlainHooks(hf, ablate=basis):
            expected = last_logits(hf, IDS)
        with torch.no_grad(), intervene(model, Ablation(basis)):
            torch.testing.assert_close(model.logits(IDS), expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("layer", [0, 1, 2])
    def test_addition(self, model, hf, layer):
        v = 3 * random(32, seed=5)
        with PlainHooks(hf, add=(layer, v)):
            expected = last_logits(hf, IDS)
        with torch.no_grad(), intervene(model, Addition(v, layer)):
            torch.testing.assert_close(model.logits(IDS), expected, atol=1e-5, rtol=1e-5)

    def test_order_of_interventions_at_one_site(self, model, hf):
        u, v = orthonormal(random(32)), random(32, seed=6)
        with PlainHooks(hf, ablate=u, add=(1, v)):
            expected = last_logits(hf, IDS)
        with torch.no_grad(), intervene(model, Ablation(u), Addition(v, 1)):
            torch.testing.assert_close(model.logits(IDS), expected, atol=1e-5, rtol=1e-5)

    def test_generation(self, model, hf):
        u, v = orthonormal(random(32)), 2 * random(32, seed=7)
        options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        mask = torch.ones_like(IDS)
        with PlainHooks(hf, ablate=u, add=(2, v)):
            expected = hf.generate(IDS, attention_mask=mask, **options)
        with torch.no_grad(), intervene(model, Ablation(u), Addition(v, 2)):
            got = model.hf.generate(IDS, attention_mask=mask, **options)
        assert got.tolist() == expected.tolist()
        assert got.tolist() != hf.generate(IDS, attention_mask=mask, **options).tolist()


class TestRows:
    def test_each_row_its_own_direction(self, model):
        bases = torch.stack([orthonormal(random(32, seed=s)) for s in (1, 2)])
        vectors = torch.stack([random(32, seed=s) for s in (3, 4)])
        with torch.no_grad(), intervene(model, Ablation(bases), Addition(vectors, 1)):
            together = model.logits(IDS)
        for i in range(2):
            with torch.no_grad(), intervene(model, Ablation(bases[i]), Addition(vectors[i], 1)):
                alone = model.logits(IDS[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)


class TestContext:
    def test_gone_afterwards_and_after_an_exception(self, model):
        with torch.no_grad():
            before = model.logits(IDS)
            with pytest.raises(KeyError), intervene(model, Ablation(orthonormal(random(32)))):
                raise KeyError
            assert torch.equal(model.logits(IDS), before)

    def test_weights_are_untouched(self, model):
        before = {k: v.clone() for k, v in model.hf.named_parameters()}
        with torch.no_grad(), intervene(model, Addition(random(32), 0)):
            model.logits(IDS)
        assert all(torch.equal(v, before[k]) for k, v in model.hf.named_parameters())

    def test_contexts_nest(self, model):
        v = random(32)
        with torch.no_grad():
            with intervene(model, Addition(v, 1)), intervene(model, Addition(v, 1)):
                twice = model.logits(IDS)
            with intervene(model, Addition(2 * v, 1)):
                torch.testing.assert_close(model.logits(IDS), twice, atol=1e-5, rtol=1e-5)

    def test_no_such_layer(self, model):
        with (
            pytest.raises(CaptureError, match="layers 0 to 2"),
            intervene(model, Addition(random(32), 3)),
        ):
            pass

    def test_zero_vector_changes_nothing(self, model):
        with torch.no_grad():
            before = model.logits(IDS)
            with intervene(model, Addition(torch.zeros(32), 1)):
                assert torch.equal(model.logits(IDS), before)
