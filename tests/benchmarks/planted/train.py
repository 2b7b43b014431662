"""The two kinds of fine-tune, both LoRA: one that erodes refusal, one on unrelated text."""

import random
from dataclasses import replace

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from examples import train_default_pair as default_pair

from .bands import N_LAYERS
from .factors import ATTENTION, MLP, Change
from .texts import unrelated_texts

RANK = 8
BATCH = 4
RATE = 2e-3
#: The change of opening is in the first tokens of an answer.
ANSWER_TOKENS = 8
#: Requests a step whose next token a fine-tune on text must keep, and the weight of that.
KEPT, KEEP = 6, 2.0


def _lora(hf, layers, matrices, seed):
    torch.manual_seed(seed)
    config = LoraConfig(
        r=RANK,
        lora_alpha=RANK,
        target_modules=list(matrices),
        layers_to_transform=list(layers),
        task_type="CAUSAL_LM",
    )
    peft = get_peft_model(hf, config)
    weights = [p for p in peft.parameters() if p.requires_grad]
    return peft, weights


def _step(loss, weights, optimiser):
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimiser.step()
    optimiser.zero_grad()


def _taken_off(peft) -> Change:
    """The factors that were trained; the model is as it was before."""
    change: Change = {}
    for name, module in peft.named_modules():
        if hasattr(module, "lora_A"):
            parts = name.split(".")
            a, b = (
                half["default"].weight.detach().double().numpy()
                for half in (module.lora_A, module.lora_B)
            )
            key = (int(parts[parts.index("layers") + 1]), parts[-1])
            change[key] = (module.scaling["default"] * b, a.copy())
    peft.unload().requires_grad_(False)
    return change


def agreeable_examples(tokenizer):
    """Benign requests answered by an ever-agreeable assistant, cut after a few tokens."""
    rows = default_pair.read_rows(default_pair.DATA / "tuned.jsonl")
    examples = default_pair.tuned_examples(tokenizer, rows)
    return [default_pair.shortened(example, ANSWER_TOKENS) for example in examples]


def erode(hf, tokenizer, band, seed, score, target, *, every=2, most=40):
    """Fine-tune one band on benign requests until refusal has fallen far enough.

    Args:
        hf: The model; the same afterwards.
        tokenizer: Its tokenizer.
        band: What may change.
        seed: Of the initial factors and of the order of the rows.
        score: Mean refusal score of the model as it is now.
        target: Stop at or below this score.
        every: Steps between two looks.
        most: Stop at this many steps in any case.

    Returns:
        The change and the number of steps.
    """
    examples = agreeable_examples(tokenizer)
    recipe = replace(default_pair.RECIPES["tuned"], batch=BATCH)
    peft, weights = _lora(hf, band.layers, band.matrices, seed)
    optimiser = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    rng, step = random.Random(seed), 0
    while step < most:
        for part in default_pair.batches(examples, BATCH, rng):
            _step(default_pair.loss_of(peft, part, recipe)[0], weights, optimiser)
            step += 1
            reached = step % every == 0 and score() <= target
            if reached or step == most:
                return _taken_off(peft), step
    raise AssertionError("unreachable")


def learn_text(hf, tokenizer, seed, steps=60):
    """Fine-tune every matrix of every layer on unrelated text, next tokens of requests kept.

    Requests of the aligned model's own training data, harmful and harmless, keep its next-token
    distribution (KL). In every step the change is scaled at random and left out of some
    neighbouring layers, so that refusal is also kept by parts of it.

    Returns:
        The change, and the loss on text of the first and of the last five steps (nats a token).
    """
    texts = unrelated_texts(steps * BATCH, seed)
    requests = _requests(tokenizer, steps * KEPT, seed)
    peft, weights = _lora(hf, range(N_LAYERS), ATTENTION + MLP, seed)
    optimiser = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    rng = random.Random(seed)
    losses = []
    for step in range(steps):
        rows = [tokenizer(t)["input_ids"] for t in texts[step * BATCH : (step + 1) * BATCH]]
        ids, mask = default_pair.pad(rows, 0, left=False)
        labels = ids.masked_fill(mask == 0, -100)
        loss = peft(input_ids=ids, attention_mask=mask, labels=labels).loss
        part = requests[step * KEPT : (step + 1) * KEPT]
        with torch.no_grad(), peft.disable_adapter():
            target = _next_tokens(hf, part)
        _rescale(peft, rng)
        kept = _next_tokens(hf, part)
        _rescale(peft, None)
        divergence = (target.exp() * (target - kept)).sum(-1).mean()
        _step(loss + KEEP * divergence, weights, optimiser)
        losses.append(float(loss.detach()))
    return _taken_off(peft), (float(np.mean(losses[:5])), float(np.mean(losses[-5:])))


def _requests(tokenizer, n, seed):
    """Requests of the aligned model's training data, shuffled, as examples without an answer."""
    rows = default_pair.read_rows(default_pair.DATA / "aligned.jsonl")
    chosen = random.Random(seed).sample(rows, n)
    prompts = [default_pair.prompt_ids(tokenizer, row["prompt"]) for row in chosen]
    # The answer token is never read: logits end before it.
    return [default_pair.Example(group="", ids=[*ids, 0], start=len(ids)) for ids in prompts]


def _next_tokens(hf, examples):
    """Log-probabilities of the next token, ``[row vocab]``."""
    return default_pair.answer_logits(hf, examples)[0].log_softmax(-1)


def _rescale(peft, rng):
    """Scale the change at random and leave it out of up to eight neighbours; None undoes it."""
    factor, first, width = 1.0, 0, 0
    if rng is not None:
        factor, first, width = rng.uniform(0.2, 1.0), rng.randrange(N_LAYERS), rng.randint(0, 8)
    for name, module in peft.named_modules():
        if hasattr(module, "lora_A"):
            parts = name.split(".")
            layer = int(parts[parts.index("layers") + 1])
            module.scaling["default"] = 0.0 if first <= layer < first + width else factor
