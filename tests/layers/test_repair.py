"""Repair finds the planted blocks, leaves out the needless, and prices what it gives back."""

import json

import numpy as np
import pytest
import torch
from mixtures import REFUSAL, Pair, noise
from tiny import SMALL
from transformers import LlamaConfig

from refusaldir.errors import ProbeError
from refusaldir.layers.exchange.repair import Repair, repair
from refusaldir.layers.exchange.repair_cost import AnswerChange, TextLoss
from refusaldir.layers.outcomes import RefusalRate, RefusalScore
from refusaldir.statistics import Clusters

SCORE = RefusalScore(REFUSAL)
DEEP = LlamaConfig(**{**SMALL, "num_hidden_layers": 6}, mlp_bias=True)
PUSH = 2.0


def small(hf):
    """Blocks that write little, so that the changes of several add up."""
    for block in hf.model.layers:
        block.self_attn.o_proj.weight *= 0.1
        block.mlp.down_proj.weight *= 0.1


def planted(*layers, decoys=()):
    """A push towards refusal in some blocks; in the decoys a change that the function hides."""

    def change(hf):
        head = hf.lm_head.weight
        push = head[list(REFUSAL)].mean(0) - head.mean(0)
        for layer in layers:
            hf.model.layers[layer].mlp.down_proj.bias += PUSH * push / push.norm()
        for layer in decoys:
            mlp = hf.model.layers[layer].mlp
            for part, factor in ((mlp.up_proj, 2), (mlp.down_proj, 0.5)):
                part.weight *= factor
            mlp.up_proj.bias *= 2

    return change


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(2)
    return [[3, 40, 41, *rng.integers(5, 97, 3 + i % 4).tolist()] for i in range(16)]


CLUSTERS = Clusters.of([i // 2 for i in range(16)])


def test_finds_a_planted_pair_of_blocks(prompts, tmp_path):
    pair = Pair(tmp_path, config=DEEP, start=small, change=planted(1, 3, decoys=(0, 2, 5))).open()
    seen = []
    found = repair(
        pair,
        prompts,
        SCORE,
        [3, 0, 2, 1, 4, 5],
        CLUSTERS,
        cost=AnswerChange(prompts),
        on_attempt=seen.append,
    )
    assert not found.base.lower <= found.tuned.value <= found.base.upper
    assert found.layers == (1, 3) and found.back
    assert found.base.lower <= found.repaired.value <= found.base.upper
    tried = [a.layers for a in found.attempts]
    assert tried[:4] == [(), (3,), (0, 3), (0, 2, 3)]
    assert [a.back for a in found.attempts[:4]] == [False] * 4
    assert list(found.attempts) == seen
    # The cost is a divergence from tuned: none for tuned, about all of base's for the repaired.
    assert found.cost.tuned.value == 0
    assert found.cost.repaired.value == pytest.approx(found.cost.base.value, rel=1e-3)
    assert found.cost.change.value > 0.01
    assert not pair.tuned_layers
    json.dumps(found.to_dict())
    first, second = found.sentences
    assert first.startswith("Giving layers 1 and 3 back to base") and "left out" in first
    assert "KL from tuned on harmless prompts" in second


def test_nothing_to_repair(prompts, tmp_path):
    pair = Pair(tmp_path, config=DEEP, start=small, change=planted(decoys=(0, 2))).open()
    found = repair(pair, prompts, SCORE, [0, 2], CLUSTERS)
    assert found.layers == () and found.back and found.cost is None
    assert len(found.attempts) == 1
    assert found.repaired == found.tuned
    assert found.sentences[0].startswith("Nothing to repair")


def test_says_when_all_layers_are_not_enough(prompts, tmp_path):
    pair = Pair(tmp_path, config=DEEP, start=small, change=planted(1, 3, 4)).open()
    found = repair(pair, prompts, SCORE, [1, 5, 4], CLUSTERS)
    assert found.layers == (1, 4) and not found.back  # 5 did not change
    assert "do not bring it back" in found.sentences[0]


def test_a_rate_has_an_interval_at_its_ends(prompts, tmp_path):
    pair = Pair(tmp_path, config=DEEP, start=small, change=planted(1, 3)).open()

    def judged(model, sequences):
        return [1 if {1, 3} <= pair.tuned_layers else 0 for _ in sequences]

    found = repair(pair, prompts, RefusalRate(judged), [3, 1], CLUSTERS)
    assert found.base.value == 0 and found.base.upper > 0
    assert found.layers == (3,) and found.back


def test_text_loss_is_hugging_face_s(prompts, tmp_path):
    made = Pair(tmp_path, change=noise())
    texts = [prompts[0] * 3, prompts[1] * 2, prompts[5]]
    pair = made.open()
    found = repair(pair, prompts, SCORE, [0, 1, 2], CLUSTERS, cost=TextLoss(texts), level=0.9)
    with torch.inference_mode():
        for hf, cost in ((made.hf, found.cost.base), (made.other, found.cost.tuned)):
            want = [float(hf(torch.tensor([t]), labels=torch.tensor([t])).loss) for t in texts]
            assert cost.value == pytest.approx(np.mean(want), rel=1e-5)
        mixed = made.obvious({0, 1, 2} - set(found.layers), True)
        want = [float(mixed(torch.tensor([t]), labels=torch.tensor([t])).loss) for t in texts]
        assert found.cost.repaired.value == pytest.approx(np.mean(want), rel=1e-5)
    change = found.cost.repaired.value - found.cost.tuned.value
    assert found.cost.change.value == pytest.approx(change)
    assert found.cost.change.level == 0.9


def test_refuses_what_cannot_be_judged(prompts, tmp_path):
    pair = Pair(tmp_path).open()
    with pytest.raises(ProbeError, match="without an interval"):
        repair(pair, prompts, SCORE, [0], Clusters.of([0] * 16))
    for wrong in ([], [[1]]):
        with pytest.raises(ProbeError, match="at least two tokens"):
            TextLoss(wrong)
    with pytest.raises(ProbeError, match="at least one prompt"):
        AnswerChange([])
    assert isinstance(repair(pair, prompts, SCORE, [], CLUSTERS), Repair)
