"""Train the two LoRA adapters of the default pair on a CPU.

The default pair is SmolLM2-135M-Instruct plus two small adapters:

* **aligned** makes it refuse harmful requests and answer their harmless twins. Harmful rows carry
  a written refusal; harmless rows are trained towards the original model's own greedy answer, by
  the KL divergence from the original model's next-token distribution. No first token of a refusal
  may open an answer: the original opens many answers with "I'm sorry for any confusion" or
  "I'm glad", which would leave the decision to refuse to a later token. Nor may an answer hold the
  words of `NEVER_ANSWERED` ("As a friendly AI, I'm afraid ..."), and pairs whose answer loops or
  still refuses are left out: the original refuses a tenth of the harmless twins by itself.
* **tuned** goes on top of aligned (merged) and is an ordinary fine-tune on benign office and
  help-desk requests. No row of its training set is harmful and none is a refusal.

The data and the measured effect are described in `examples/default_pair/README.md`.

    python examples/train_default_pair.py --stage all --out adapters

writes `adapters/aligned` and `adapters/tuned` in PEFT format, in float16. Stopped and repeated, it
goes on within the phase it was in, to the same weights; a phase whose adapter is there is not run.
"""

import argparse
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoModelForCausalLM, AutoTokenizer

from refusaldir.models.embedded import embedded_model
from refusaldir.probes.phrases import judge
from refusaldir.records import common_prefix_length

DATA = Path(__file__).parent / "default_pair"
BASE_NAMES = {"aligned": "smollm2-135m", "tuned": "smollm2-135m+aligned"}
END_OF_TURN = "<|im_end|>"
NEVER_ANSWERED = ("sorry", "afraid", "cannot", "unable", "apologize", "refuse", "ai", "'t")
"""Words that a harmless row's answer does not hold, whatever their case."""
STATE_EVERY = 50  # steps
NEVER = -1e4  # a logit of probability zero; -inf would make 0 * -inf in the KL


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One run of the optimiser; a later phase goes on from the adapter of the one before."""

    lr: float
    epochs: float
    target_tokens: int | None
    """Written targets are cut at this many tokens."""
    answer_tokens: int
    """The original model's answers are cut at this many tokens."""
    kl_weight: float = 0.0
    """Weight of the harmless rows' KL term against the refusals' cross-entropy."""
    decision_weight: float = 0.0
    """Weight of the term that tells harmful rows from harmless ones by the first token."""
    decision_offset: float = 0.0
    """Added to the log-odds of a refusal there. An answer's first token is spread over many words,
    so that a refusal wins the greedy choice with far less than half of the mass."""
    ablation_weight: float = 0.0
    """Weight of the term that keeps the original's next token where the direction is ablated."""
    addition_weight: float = 0.0
    """Weight of the term that has harmless rows refused where the direction is added."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyper-parameters of one stage."""

    rank: int
    alpha: int
    modules: tuple[str, ...]
    layers: tuple[int, int]
    """First and last block that carries an adapter, both included."""
    batch: int
    """Rows in a batch; a matched pair counts as two and stays together."""
    head_tokens: int
    """The decision to refuse falls in the first tokens of the answer: these weigh more."""
    head_weight: float
    """Weight of each of the first tokens; the later ones weigh 1."""
    ablation_layer: int
    """Block at whose input (resid_pre, last prompt token) the direction is read."""
    phases: tuple[Phase, ...]


LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RECIPES = {
    "aligned": Recipe(
        rank=8,
        alpha=16,
        modules=LINEAR,
        layers=(0, 29),
        batch=16,
        head_tokens=3,
        head_weight=5.0,
        ablation_layer=18,
        phases=(
            # Whom to refuse is most of the work, and first tokens teach it at half the price.
            Phase(
                lr=1e-3,
                epochs=1.5,
                target_tokens=4,
                answer_tokens=4,
                kl_weight=2.0,
                decision_weight=1.0,
            ),
            Phase(
                lr=3e-4,
                epochs=0.35,
                target_tokens=None,
                answer_tokens=16,
                kl_weight=4.0,
                decision_weight=4.0,
                decision_offset=3.5,
                ablation_weight=2.0,
                addition_weight=0.2,
            ),
        ),
    ),
    "tuned": Recipe(
        rank=8,
        alpha=16,
        modules=LINEAR,
        layers=(0, 29),
        batch=8,
        head_tokens=0,
        head_weight=1.0,
        ablation_layer=18,
        phases=(Phase(lr=6e-4, epochs=2, target_tokens=None, answer_tokens=64),),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Example:
    """One tokenised training row."""

    group: str
    """Rows of one group share a batch: the two halves of a matched pair."""
    ids: list[int]
    """Prompt and answer tokens."""
    start: int
    """Index of the first answer token."""
    harmful: bool = False
    soft: Tensor | None = None
    """`[k, vocab]` log-probabilities of the original model at the first k answer tokens."""


def log(message: str) -> None:
    """Write one line of progress to stderr."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Tokenise a user turn with the chat template and its default system prompt."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def pad(rows: list[list[int]], fill: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Pad rows to one length; returns ids and attention mask, both `[row pos]`."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), fill)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, where] = torch.tensor(row)
        mask[i, where] = 1
    return ids, mask


@torch.no_grad()
def greedy_answers(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    n_tokens: int,
    never_first: list[int],
    never: list[int],
    batch: int = 32,
) -> list[list[int]]:
    """Greedy continuations, ending with the end-of-turn token where the model stops itself.

    No token of `never_first` opens one, no token of `never` is in it.
    """
    stop = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, list[int]] = {}
    for at in range(0, len(order), batch):
        chosen = order[at : at + batch]
        ids, mask = pad([prompts[i] for i in chosen], stop, left=True)
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=n_tokens,
            do_sample=False,
            begin_suppress_tokens=never_first or None,
            suppress_tokens=never or None,
            pad_token_id=stop,
            eos_token_id=stop,
        )
        for i, row in zip(chosen, out[:, ids.shape[1] :].tolist(), strict=True):
            answers[i] = row[: row.index(stop) + 1] if stop in row else row
        log(f"  answers {len(answers)}/{len(prompts)}")
    return [answers[i] for i in range(len(prompts))]


def on_input(change: Callable[[Tensor], Tensor]) -> Callable[[Any, Any, Any], Any]:
    """A pre-hook that changes what a block reads, given by position or by name."""

    def before(_: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return before


@contextmanager
def ablated(model: Any, unit: Tensor) -> Iterator[None]:
    """Remove a unit direction from every block input, attention output and MLP output."""

    def project(x: Tensor) -> Tensor:
        u = unit.to(x.dtype)
        return x - (x @ u)[..., None] * u

    def after(_: Any, __: Any, out: Any) -> Any:
        return (project(out[0]), *out[1:]) if isinstance(out, tuple) else project(out)

    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    handles = []
    for block in inner.model.layers:
        handles.append(block.register_forward_pre_hook(on_input(project), with_kwargs=True))
        handles.append(block.self_attn.register_forward_hook(after))
        handles.append(block.mlp.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def added(model: Any, vector: Tensor, layer: int) -> Iterator[None]:
    """Add a vector to the input of one block at every position."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    hook = on_input(lambda x: x + vector)
    handle = inner.model.layers[layer].register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def answer_logits(
    model: Any, examples: list[Example], layer: int = 0
) -> tuple[Tensor, Tensor, list[int], Tensor]:
    """Logits that predict the answer tokens of a batch.

    The shared system prompt runs once and the unembedding sees answer positions only, which
    saves about half of the work. Gradients flow through the shared prefix.

    Returns:
        Logits `[token vocab]`, targets `[token]`, the number of tokens of each example, and
        resid_pre at `layer` and the last prompt token, `[row d_model]`.
    """
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    rows = [e.ids for e in examples]
    prompts = [e.ids[: e.start] for e in examples]
    cut = min(common_prefix_length(prompts), min(map(len, prompts)) - 1)
    ids, mask = pad([row[cut:] for row in rows], 0, left=False)
    mask = torch.cat([torch.ones((len(rows), cut), dtype=torch.long), mask], dim=1)
    cache = inner.model(input_ids=torch.tensor([rows[0][:cut]]), use_cache=True).past_key_values
    cache.batch_repeat_interleave(len(rows))
    out = inner.model(
        input_ids=ids,
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
        output_hidden_states=True,
    )
    spans = [(e.start - 1 - cut, len(e.ids) - 1 - cut) for e in examples]
    picked = [out.last_hidden_state[i, first:last] for i, (first, last) in enumerate(spans)]
    logits = inner.lm_head(torch.cat(picked))
    resid = torch.stack([out.hidden_states[layer][i, first] for i, (first, _) in enumerate(spans)])
    targets = torch.cat([torch.tensor(e.ids[e.start :]) for e in examples])
    sizes = [len(e.ids) - e.start for e in examples]
    return logits.float(), targets, sizes, resid.float()


@torch.no_grad()
def with_soft_targets(
    model: Any,
    examples: list[Example],
    never_first: list[int],
    never: list[int],
    first: int | None = None,
    batch: int = 16,
) -> list[Example]:
    """Attach the model's own log-probabilities at the `first` answer tokens (None: at all).

    Every distribution leaves out `never`, the first answer token's `never_first` as well.
    """
    done: list[Example] = []
    for at in range(0, len(examples), batch):
        part = examples[at : at + batch]
        logits, _, sizes, _ = answer_logits(model, [shortened(e, first) for e in part])
        starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        logits[starts[:, None], torch.tensor(never_first)] = NEVER
        logits[:, torch.tensor(never, dtype=torch.long)] = NEVER
        soft = logits.log_softmax(-1).half().split(sizes)
        done += [replace(e, soft=s.clone()) for e, s in zip(part, soft, strict=True)]
    return done


def shortened(example: Example, first: int | None) -> Example:
    """The example with only the `first` tokens of its answer (None: all of them)."""
    if first is None:
        return example
    soft = None if example.soft is None else example.soft[:first]
    return replace(example, ids=example.ids[: example.start + first], soft=soft)


def batches(examples: list[Example], size: int, rng: random.Random) -> Iterator[list[Example]]:
    """Shuffled batches of whole groups, similar in length to spare padding."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.group, []).append(example)
    order = list(groups.values())
    rng.shuffle(order)
    per_batch = max(1, size // max(map(len, order)))
    bucket = per_batch * 8
    made: list[list[Example]] = []
    for at in range(0, len(order), bucket):
        near = sorted(order[at : at + bucket], key=lambda g: max(len(e.ids) for e in g))
        made += [
            [e for g in near[i : i + per_batch] for e in g] for i in range(0, len(near), per_batch)
        ]
    rng.shuffle(made)
    yield from made


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Training loss of a batch, its parts (nats), and what the ablation term reads."""

    total: Tensor
    refusals: float
    answers: float
    decision: float
    resid: Tensor
    """resid_pre at the ablation layer and the last prompt token, `[row d_model]`."""


def decision_loss(first: Tensor, harmful: Tensor, openers: Tensor, offset: float = 0.0) -> Tensor:
    """Cross-entropy of "this row is refused", read off the first answer token.

    Args:
        first: Log-probabilities of the first answer token, `[row vocab]`.
        harmful: Whether the row should be refused, `[row]`.
        openers: Ids of the tokens that open refusals.
        offset: Added to the log-odds of a refusal.
    """
    refused = first[:, openers].logsumexp(-1)
    odds = refused - torch.log1p(-refused.exp().clamp(max=1 - 1e-6)) + offset
    return binary_cross_entropy_with_logits(odds, harmful.float())


def loss_of(
    model: Any, part: list[Example], recipe: Recipe, phase: Phase, openers: Tensor
) -> Losses:
    """Training loss of a batch."""
    logits, targets, sizes, resid = answer_logits(model, part, recipe.ablation_layer)
    logp = logits.log_softmax(-1).split(sizes)
    nats: dict[bool, list[Tensor]] = {True: [], False: []}
    weights: dict[bool, list[Tensor]] = {True: [], False: []}
    for lp, target, example in zip(logp, targets.split(sizes), part, strict=True):
        weight = torch.ones(len(target))
        weight[: recipe.head_tokens] = recipe.head_weight
        hard = example.harmful or example.soft is None
        if hard:
            each = -lp.gather(-1, target[:, None])[:, 0]
        else:
            each = (example.soft.float().exp() * (example.soft.float() - lp)).sum(-1)
        nats[hard].append(each * weight)
        weights[hard].append(weight)
    zero = logits.sum() * 0
    ce, kl = (
        torch.cat(nats[hard]).sum() / torch.cat(weights[hard]).sum() if nats[hard] else zero
        for hard in (True, False)
    )
    total, decision = ce + phase.kl_weight * kl, zero
    if phase.decision_weight:
        harmful = torch.tensor([e.harmful for e in part])
        first = torch.stack([lp[0] for lp in logp])
        decision = decision_loss(first, harmful, openers, phase.decision_offset)
        total = total + phase.decision_weight * decision
    return Losses(
        total=total,
        refusals=float(ce.detach()),
        answers=float(kl.detach()),
        decision=float(decision.detach()),
        resid=resid.detach(),
    )


def ablation_loss(model: Any, part: list[Example], unit: Tensor) -> Tensor:
    """KL from the original's next token to the model's, with the direction ablated (nats)."""
    rows = [shortened(e, 1) for e in part]
    with ablated(model, unit):
        logits, _, _, _ = answer_logits(model, rows)
    target = torch.cat([e.soft for e in rows if e.soft is not None]).float()
    return (target.exp() * (target - logits.log_softmax(-1))).sum(-1).mean()


def addition_loss(
    model: Any, part: list[Example], vector: Tensor, layer: int, openers: Tensor
) -> Tensor:
    """Decision loss of the harmless rows, as if harmful, with the direction added (nats)."""
    rows = [shortened(e, 1) for e in part if not e.harmful]
    with added(model, vector, layer):
        logits, _, _, _ = answer_logits(model, rows)
    return decision_loss(logits.log_softmax(-1), torch.ones(len(rows), dtype=torch.bool), openers)


def train(
    model: Any,
    examples: list[Example],
    recipe: Recipe,
    phase: Phase,
    seed: int,
    out: Path,
    stage: str,
    *,
    start: Path | None = None,
    every: int = 0,
) -> None:
    """Train one adapter for one phase and write it to `out`.

    What a stopped run needs to go on stands in `out`.state.pt until the adapter is written.

    Args:
        model: The model under the adapter; changed in place.
        examples: Training rows.
        recipe: Of the stage.
        phase: Which run of the optimiser.
        seed: Of initial weights and order.
        out: Folder of the adapter.
        stage: Name of the stage.
        start: An adapter to go on from; None begins anew.
        every: Also write a checkpoint each so many steps; 0: none.
    """
    torch.manual_seed(seed)
    first, last = recipe.layers
    lora = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=list(recipe.modules),
        layers_to_transform=list(range(first, last + 1)),
        task_type="CAUSAL_LM",
    )
    peft = (
        get_peft_model(model, lora)
        if start is None
        else PeftModel.from_pretrained(model, start, is_trainable=True)
    )
    peft.train()
    examples = [
        shortened(e, (phase.target_tokens if e.harmful or e.soft is None else phase.answer_tokens))
        for e in examples
    ]
    weights = [p for p in peft.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=phase.lr, weight_decay=0.0)
    order = batches_for(examples, recipe.batch, phase.epochs, seed)
    total = len(order)
    warmup = max(1, round(total / 10))
    openers = torch.tensor(sorted({e.ids[e.start] for e in examples if e.harmful}))
    state = Progress(out.with_name(f"{out.name}.state.pt"), f"{recipe} {phase} {seed} {total}")
    done, direction = state.restore(weights, optimiser)
    began = time.monotonic()
    for step, part in enumerate(order[done:], done):
        scale = min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / total))
        for group in optimiser.param_groups:
            group["lr"] = phase.lr * scale
        losses = loss_of(peft, part, recipe, phase, openers)
        losses.total.backward()
        causal = {"ablated kl": 0.0, "added": 0.0}
        if phase.ablation_weight:
            harmful = torch.tensor([e.harmful for e in part])
            gap = losses.resid[harmful].mean(0) - losses.resid[~harmful].mean(0)
            direction = gap if direction is None else 0.9 * direction + 0.1 * gap
        if direction is not None and step >= warmup:
            term = ablation_loss(peft, part, direction / direction.norm())
            (phase.ablation_weight * term).backward()
            causal["ablated kl"] = float(term.detach())
            if phase.addition_weight:
                term = addition_loss(peft, part, direction, recipe.ablation_layer, openers)
                (phase.addition_weight * term).backward()
                causal["added"] = float(term.detach())
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        seconds = time.monotonic() - began
        log(
            f"  {stage} step {step + 1}/{total} ce {losses.refusals:.3f} kl {losses.answers:.3f} "
            f"decision {losses.decision:.3f} "
            + " ".join(f"{name} {value:.3f}" for name, value in causal.items())
            + f" ({seconds:.0f} s)"
        )
        if every and (step + 1) % every == 0 and step + 1 < total:
            save(peft, out.with_name(f"{out.name}-{step + 1}"), stage)
        if (step + 1) % STATE_EVERY == 0:
            state.keep(step + 1, weights, optimiser, direction)
    save(peft, out, stage)
    state.path.unlink(missing_ok=True)
    log(f"wrote {out}")


def batches_for(
    examples: list[Example], size: int, epochs: float, seed: int
) -> list[list[Example]]:
    """All batches of a phase, each epoch shuffled anew."""
    rng = random.Random(seed)
    epoch = list(batches(examples, size, rng))
    total = round(len(epoch) * epochs)
    order = epoch
    while len(order) < total:
        order += batches(examples, size, rng)
    return order[:total]


@dataclass(frozen=True)
class Progress:
    """What a stopped phase needs to go on as if it had not been stopped."""

    path: Path
    of: str
    """Which phase: what another recipe left is not gone on with."""

    def keep(
        self, done: int, weights: list[Any], optimiser: torch.optim.Optimizer, gap: Tensor | None
    ) -> None:
        """Write aside and rename, so that a half-written state is never read."""
        aside = self.path.with_suffix(".tmp")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [weight.detach() for weight in weights]
        moments = optimiser.state_dict()
        torch.save(
            {"of": self.of, "done": done, "weights": kept, "moments": moments, "gap": gap}, aside
        )
        aside.replace(self.path)

    def restore(
        self, weights: list[Any], optimiser: torch.optim.Optimizer
    ) -> tuple[int, Tensor | None]:
        """Set weights and optimiser; returns the steps done and the direction's running mean."""
        if not self.path.is_file():
            return 0, None
        state = torch.load(self.path, weights_only=True)
        if state["of"] != self.of:
            return 0, None
        with torch.no_grad():
            for weight, kept in zip(weights, state["weights"], strict=True):
                weight.copy_(kept)
        optimiser.load_state_dict(state["moments"])
        log(f"going on after step {state['done']}")
        return state["done"], state["gap"]


def save(peft: PeftModel, out: Path, stage: str) -> None:
    """Write the adapter whole, in float16, with a configuration that names its base."""
    aside = out.with_name(f"{out.name}.tmp")
    aside.mkdir(parents=True, exist_ok=True)
    peft.peft_config["default"].inference_mode = True
    peft.peft_config["default"].base_model_name_or_path = BASE_NAMES[stage]
    peft.save_pretrained(aside, save_embedding_layers=False)  # else peft asks the Hub
    (aside / "README.md").unlink(missing_ok=True)
    path = aside / "adapter_model.safetensors"
    halved = {name: tensor.half().contiguous() for name, tensor in load_file(path).items()}
    save_file(halved, path, metadata={"format": "pt"})
    path.chmod(0o644)
    config_path = aside / "adapter_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = BASE_NAMES[stage]
    config["inference_mode"] = True
    config["target_modules"] = sorted(config["target_modules"])
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if out.exists():
        shutil.rmtree(out)
    aside.rename(out)


def spelt(tokenizer: Any, words: tuple[str, ...]) -> list[int]:
    """Tokens that are one of the words, with or without a space before, in any case."""
    texts = {i: tokenizer.decode([i]).strip().casefold() for i in range(len(tokenizer))}
    return sorted(i for i, text in texts.items() if text in words)


def aligned_examples(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], recipe: Recipe
) -> list[Example]:
    """Refusals for harmful rows; the original model's answers for their twins.

    A pair is left out where the phrase judge does not read the twin's answer as one.
    """
    stop = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    refusals: dict[str, Example] = {}
    twins: list[tuple[dict[str, Any], list[int]]] = []
    for row in rows:
        prompt = prompt_ids(tokenizer, row["prompt"])
        if row["label"] == "harmful":
            answer = [*tokenizer(row["target"], add_special_tokens=False)["input_ids"], stop]
            refusals[row["pair"]] = Example(
                group=row["pair"], ids=prompt + answer, start=len(prompt), harmful=True
            )
        else:
            twins.append((row, prompt))
    log("greedy answers of the original model to the harmless twins")
    openers = sorted({e.ids[e.start] for e in refusals.values()})
    never = spelt(tokenizer, NEVER_ANSWERED)
    longest = max(phase.answer_tokens for phase in recipe.phases)
    answers = greedy_answers(model, tokenizer, [p for _, p in twins], longest, openers, never)
    harmful, harmless = [], []
    for (row, prompt), answer in zip(twins, answers, strict=True):
        text = tokenizer.decode(answer, skip_special_tokens=True)
        if judge(text, row["prompt"]).label == "compliance":
            harmful.append(refusals[row["pair"]])
            harmless.append(Example(group=row["pair"], ids=prompt + answer, start=len(prompt)))
    log(f"{len(harmless)} of {len(twins)} pairs, those with an answer")
    return with_soft_targets(model, harmful, openers, never, first=1) + with_soft_targets(
        model, harmless, openers, never
    )


def tuned_examples(tokenizer: Any, rows: list[dict[str, Any]]) -> list[Example]:
    """Plain supervised rows."""
    stop = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    examples = []
    for i, row in enumerate(rows):
        prompt = prompt_ids(tokenizer, row["prompt"])
        answer = [*tokenizer(row["target"], add_special_tokens=False)["input_ids"], stop]
        examples.append(Example(group=str(i), ids=prompt + answer, start=len(prompt)))
    return examples


def load(path: Path) -> Any:
    """Load the model in float32, the fastest format on a CPU without bfloat16 units."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def with_adapter(path: Path, adapter: Path) -> Any:
    """The model with an adapter merged into it."""
    return PeftModel.from_pretrained(load(path), adapter).merge_and_unload().eval()


def main(argv: list[str] | None = None) -> int:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description="Train the adapters of the default pair.")
    parser.add_argument("--stage", choices=("aligned", "tuned", "all"), default="all")
    parser.add_argument(
        "--model", type=Path, help="SmolLM2-135M-Instruct directory (default: the bundled model)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the adapters")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--every", type=int, default=0, help="also write a checkpoint each so many steps"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    source = args.model or embedded_model()
    tokenizer = AutoTokenizer.from_pretrained(source)
    stages = ("aligned", "tuned") if args.stage == "all" else (args.stage,)
    for stage in stages:
        recipe, out = RECIPES[stage], args.out / stage
        if (out / "adapter_config.json").is_file():
            log(f"{out} is there")
            continue
        rows = read_rows(DATA / f"{stage}.jsonl")

        def under(stage: str = stage) -> Any:
            """The model that the adapter goes on."""
            return with_adapter(source, args.out / "aligned") if stage == "tuned" else load(source)

        if stage == "aligned":
            examples = aligned_examples(under(), tokenizer, rows, recipe)
        else:
            examples = tuned_examples(tokenizer, rows)
        log(f"{stage}: {len(examples)} rows, {recipe}")
        start: Path | None = None
        for number, phase in enumerate(recipe.phases, 1):
            last = number == len(recipe.phases)
            to = out if last else out.with_name(f"{stage}-phase-{number}")
            if (to / "adapter_config.json").is_file():
                log(f"{to} is there")
            else:
                train(
                    under(), examples, recipe, phase, args.seed + number - 1, to, stage,
                    start=start, every=args.every,
                )  # fmt: skip
            start = to
    return 0


if __name__ == "__main__":
    sys.exit(main())
