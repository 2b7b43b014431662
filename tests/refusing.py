"""A tiny llama that refuses by one planted feature, and the same arithmetic in plain numpy.

Attention writes nothing, so a prompt's last token decides. Harmful last tokens have a feature
each, block 0 turns any of them into one direction u, block 1 amplifies u, and the unembedding
reads it as the refusal token. Every axis is rotated, so that none is a coordinate.
"""

import numpy as np
import torch
from tiny import make_model

REFUSE, COMPLY = 5, 6
HARMFUL, HARMLESS = range(20, 28), range(30, 38)
FILLERS = range(50, 64)
VOCAB, WIDTH, LAYERS = 97, 32, 3
AXES = np.linalg.qr(np.random.default_rng(11).normal(size=(WIDTH, WIDTH)))[0].T
CONSTANT, U = AXES[0], AXES[1]


class Refusing:
    """The weights, a float64 forward pass of one token, and the model they make."""

    def __init__(self, *, feature: bool = True):
        self.embed = np.tile(CONSTANT, (VOCAB, 1))
        for tokens, first in ((HARMFUL, 2), (HARMLESS, 10), (FILLERS, 18)):
            for k, token in enumerate(tokens):
                self.embed[token] += AXES[first + k]
        self.gate, self.up = np.zeros((LAYERS, 48, WIDTH)), np.zeros((LAYERS, 48, WIDTH))
        self.down = np.zeros((LAYERS, WIDTH, 48))
        if feature:
            for k in range(len(HARMFUL)):
                self.gate[0, k] = 5 * AXES[2 + k] - 2.5 * CONSTANT
                self.up[0, k] = CONSTANT
                self.down[0, :, k] = 0.15 * U
            self.gate[1, 0], self.up[1, 0], self.down[1, :, 0] = U, CONSTANT, 0.5 * U
        self.head = np.zeros((VOCAB, WIDTH))
        self.head[REFUSE], self.head[COMPLY] = 2 * U, 3 * CONSTANT

    def model(self):
        model = make_model()
        hf = model.hf
        weights = {hf.model.embed_tokens.weight: self.embed, hf.lm_head.weight: self.head}
        for layer, block in enumerate(hf.model.layers):
            weights |= {
                block.mlp.gate_proj.weight: self.gate[layer],
                block.mlp.up_proj.weight: self.up[layer],
                block.mlp.down_proj.weight: self.down[layer],
                block.self_attn.o_proj.weight: np.zeros((WIDTH, WIDTH)),
            }
        with torch.no_grad():
            for parameter, value in weights.items():
                parameter.copy_(torch.from_numpy(value))
        return model

    def run(self, token, *, ablate=None, add=None):
        """Probabilities of the next token, and the stream after and before each block."""
        unit = None if ablate is None else ablate / np.linalg.norm(ablate)

        def drop(x):
            return x if unit is None else x - (x @ unit) * unit

        def norm(x):
            return x / np.sqrt((x**2).mean() + 1e-6)

        x, before, after = self.embed[token], [], []
        for layer in range(LAYERS):
            before.append(x)
            x = drop(x)
            if add is not None and add[0] == layer:
                x = x + add[1]
            y = norm(x)
            gate = self.gate[layer] @ y
            x = x + drop(self.down[layer] @ (gate / (1 + np.exp(-gate)) * (self.up[layer] @ y)))
            after.append(x)
        logits = self.head @ norm(x)
        p = np.exp(logits - logits.max())
        return p / p.sum(), np.stack(after), np.stack(before)

    def score(self, tokens, **what):
        """Mean refusal score of prompts that end in these tokens."""
        p = np.array([self.run(token, **what)[0][REFUSE] for token in tokens])
        return float((np.log(p + 1e-8) - np.log(1 - p + 1e-8)).mean())

    def kl(self, tokens, ablate):
        """Mean KL(clean ‖ ablated)."""
        found = []
        for token in tokens:
            p, q = self.run(token)[0], self.run(token, ablate=ablate)[0]
            found.append((p * (np.log(p + 1e-6) - np.log(q + 1e-6))).sum())
        return float(np.mean(found))

    def cosines(self, layer, *, ablate, add):
        """COSMIC's two, at the output of one block."""

        def mean(tokens, **what):
            return np.mean([self.run(token, **what)[1][layer] for token in tokens], axis=0)

        def cosine(a, b):
            return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

        return (
            cosine(mean(HARMFUL, ablate=ablate), mean(HARMLESS)),
            cosine(mean(HARMLESS, add=add), mean(HARMFUL)),
        )

    def directions(self):
        """Mean differences ``[layer pos d_model]`` at the last two positions of `prompts`."""
        harmful, harmless = prompts()
        table = np.zeros((LAYERS, 2, WIDTH))
        for sign, group in ((1, harmful), (-1, harmless)):
            for prompt in group:
                for column, offset in enumerate((-2, -1)):
                    table[:, column] += sign * self.run(prompt[offset])[2] / len(group)
        return table


def prompts():
    """Harmful and harmless prompts: random fillers, then each last token of the class once."""
    rng = np.random.default_rng(5)

    def some(last):
        return [[3, 40, 41, *rng.choice(FILLERS, rng.integers(2, 6)).tolist(), t] for t in last]

    return some(HARMFUL), some(HARMLESS)
