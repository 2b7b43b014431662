"""What a classifier can tell about matched prompts from their surface alone.

A logistic regression with ten-fold cross-validation in which all prompts of an intent fall in the
same fold, three times over; the AUROCs are averaged. Every use has a negative control: the same
check on a copy in which only the harmful prompts were given the same extra words must leave the
bounds, so a check that cannot fail is noticed.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

# Closed-class words: with the first two words and the punctuation they are a prompt's template.
FUNCTION_WORDS = frozenset(
    """
    a an the this that these those some any each every all both such no not none never always ever
    nobody everybody anybody somebody nothing everything anything something someone everyone anyone
    i me my mine myself we us our you your yours he him his she her hers herself it its they them
    their themselves who whom whose which what when where why how
    about above across after against along alongside among anyway around as at away back before
    behind below between beyond but by down during except for from in inside instead into like near
    of off on onto or out outside over past per since so than through till to toward under until up
    upon via with within without and nor yet if though although because unless while once
    am is are was were be been being do does did done have has had having can could may might must
    shall should will would i'd i'm i've it's isn't won't can't doesn't needn't haven't let's what's
    you're just please now then there here too very more most less least enough only also again own
    one two three five six ten fifty hundred hundreds thousand many much other others another
    """.split()
)
TOKEN = re.compile(r"[\w'-]+|[^\w\s]")


def length_features(texts: list[str]) -> np.ndarray:
    rows = [(len(t.split()), len(t), len(t) / len(t.split())) for t in texts]
    return np.array(rows, dtype=float)


def template_tokens(prompt: str) -> list[str]:
    """The form words: the first two words, function words and punctuation."""
    tokens = TOKEN.findall(prompt.lower())
    opening = [f"^{token}" for token in tokens[:2]]
    return opening + [t for t in tokens if t in FUNCTION_WORDS or not t[0].isalnum()]


def all_tokens(prompt: str) -> list[str]:
    return TOKEN.findall(prompt.lower())


def held_out_auroc(
    pairs: Sequence[tuple[str, str]],
    features: Callable[[str], list[str]] | None,
    mark: str = "",
    intents: Sequence[int] | None = None,
) -> float:
    """Mean AUROC over three ten-fold assignments of intents; `mark` is put into harmful prompts.

    Args:
        pairs: The matched prompts, harmful first.
        features: What a prompt's bag of words is made of; None means its lengths.
        mark: Words put behind the last word of every harmful prompt (the negative control).
        intents: Number of each pair's intent, 0, 1, …; None means that every pair has its own.
    """

    def marked(prompt: str) -> str:
        body = prompt.rstrip(".?!")
        return f"{body} {mark}{prompt[len(body) :]}" if mark else prompt

    texts = [t for h, b in pairs for t in (marked(h), b)]
    label = np.tile([1, 0], len(pairs))
    intent = np.arange(len(pairs)) if intents is None else np.asarray(intents)
    if features is None:
        x = length_features(texts)
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    else:
        x = CountVectorizer(analyzer=features, binary=True).fit_transform(texts)
        model = LogisticRegression(max_iter=1000)
    values = []
    for seed in range(3):
        fold_of_intent = np.random.default_rng(seed).permutation(np.arange(intent.max() + 1) % 10)
        fold = np.repeat(fold_of_intent[intent], 2)
        score = np.empty(len(label))
        for held in range(10):
            model.fit(x[fold != held], label[fold != held])
            score[fold == held] = model.decision_function(x[fold == held])
        values.append(float(roc_auc_score(label, score)))
    return float(np.mean(values))


def token_jaccard(left: Sequence[str], right: Sequence[str]) -> np.ndarray:
    """Jaccard similarity of the words of each of `left` with each of `right`, [left, right]."""
    words = re.compile(r"[\w'-]+")
    vectorizer = CountVectorizer(analyzer=lambda t: words.findall(t.lower()), binary=True)
    vectorizer.fit([*left, *right])
    a, b = (vectorizer.transform(texts).astype(np.float32) for texts in (left, right))
    both = (a @ b.T).toarray()
    sizes = np.add.outer(np.asarray(a.sum(1)).ravel(), np.asarray(b.sum(1)).ravel())
    return both / (sizes - both)
