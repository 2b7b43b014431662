"""Toxicity: real tiny classifiers, one label of several, and the file of replies."""

import dataclasses

import pytest
import torch
from arms import behaviour, row
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    pipeline,
)

from refusaldir.errors import ProbeError
from refusaldir.models.options import LoadOptions
from refusaldir.probes.behaviour import Behaviour
from refusaldir.probes.judging.toxicity import Toxicity, add_toxicity, open_toxicity

CPU = LoadOptions(device="cpu")
TEXTS = ["you are an idiot", "have a nice cake", "idiot " * 40, "nice"]
WORDS = sorted({word for text in TEXTS for word in text.split()})


def save(directory, labels, *, problem=None, roberta=False, vast=False):
    vocab = {w: i for i, w in enumerate(["[PAD]", "[UNK]", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]",
        **({} if vast else {"model_max_length": 24}),
    ).save_pretrained(directory)  # fmt: skip
    kind, model = (
        (RobertaConfig, RobertaForSequenceClassification)
        if roberta
        else (BertConfig, BertForSequenceClassification)
    )
    config = kind(
        vocab_size=len(vocab), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=26, pad_token_id=0, problem_type=problem,
        id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)},
        initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    model(config).eval().save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize(
    ("labels", "problem", "function"),
    [
        (["toxic", "severe_toxic", "threat"], "multi_label_classification", "sigmoid"),
        (["neutral", "toxic"], None, "softmax"),
        (["identity_attack", "Toxicity"], "multi_label_classification", "sigmoid"),
    ],
)
def test_scores_are_those_of_the_pipeline_of_transformers(tmp_path, labels, problem, function):
    scorer = open_toxicity(f"hf:{save(tmp_path / 'm', labels, problem=problem)}", options=CPU)
    pipe = pipeline(
        "text-classification", model=scorer.classifier.model, truncation=True, max_length=24,
        tokenizer=scorer.classifier.tokenizer, top_k=None, function_to_apply=function,
    )  # fmt: skip
    label = next(name for name in labels if name.lower() in ("toxic", "toxicity"))
    expected = [{one["label"]: one["score"] for one in found}[label] for found in pipe(TEXTS)]
    assert scorer.scores(TEXTS) == pytest.approx(expected, abs=1e-6)
    assert scorer.scores([" \n", "nice"])[0] is None


def test_positions_of_roberta_begin_after_the_paddings(tmp_path):
    """A tokenizer that knows no limit: a long text must not run out of positions."""
    folder = save(tmp_path / "m", ["neutral", "toxic"], roberta=True, vast=True)
    scorer = open_toxicity(f"hf:{folder}", options=CPU)
    assert scorer.classifier.max_length == 25
    assert scorer.scores(["idiot " * 100]) == pytest.approx(scorer.scores(["idiot " * 25]))


@pytest.mark.parametrize("labels", [["LABEL_0", "LABEL_1"], ["toxic", "toxicity"]])
def test_labels_that_do_not_say_toxic(tmp_path, labels):
    with pytest.raises(ProbeError, match=r"does not say how toxic.*hf:unitary/toxic-bert"):
        open_toxicity(f"hf:{save(tmp_path / 'm', labels)}", options=CPU)


@pytest.mark.parametrize("spec", ["phrases", "llm:m@http://localhost:1", "perspective"])
def test_no_network_service(spec):
    with pytest.raises(ProbeError):
        open_toxicity(spec)


def test_into_the_file_and_once_only(tmp_path):
    said = ["you are an idiot", "", "have a nice cake"]
    replies = behaviour([row(f"p{i}", "C", response=text) for i, text in enumerate(said)])
    path = replies.to_jsonl(tmp_path / "responses.jsonl")
    scorer = open_toxicity(f"hf:{save(tmp_path / 'm', ['neutral', 'toxic'])}", options=CPU)
    counts = []
    scored = add_toxicity(replies, scorer, path=path, on_scored=counts.append)
    assert Behaviour.from_jsonl(path) == scored
    assert scored.provenance.scorers == {"toxicity": scorer.version}
    expected = scorer.scores([row.response for row in replies.rows])
    assert [row.secondary.get("toxicity") for row in scored.rows] == expected
    assert "toxicity" not in scored.rows[1].secondary
    assert [row.label for row in scored.rows] == [row.label for row in replies.rows]

    class Never(Toxicity):
        def scores(self, responses):
            assert not any(responses), "scored before"
            return [None] * len(responses)

    again = add_toxicity(scored, Never(classifier=scorer.classifier), path=path)
    assert again == scored and sum(counts) == 3
    # Another classifier's scores are not mixed with these.
    other = dataclasses.replace(scorer.classifier, digest="f" * 16)
    changed = add_toxicity(scored, Toxicity(classifier=other))
    assert changed.provenance.scorers == {"toxicity": Toxicity(classifier=other).version}
