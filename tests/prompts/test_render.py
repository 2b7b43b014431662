"""Token ids, post-instruction tokens, positions and hashes."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from refusaldir.errors import PromptError, TemplateError
from refusaldir.prompts.render import ChatRenderer
from refusaldir.prompts.schema import Prompt, PromptSet, Turn
from refusaldir.prompts.template import ChatTemplate
from refusaldir.records import Positions

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
VICUNA = "{% for m in messages %}USER: {{ m['content'] }} {% endfor %}ASSISTANT:"
RESPONSE = "{% for m in messages %}{{ m['content'] }}\n\n{% endfor %}### Response:{{ '\n' }}"


def ask(text: str, number: int = 0) -> Prompt:
    label = "harmful" if number % 2 else "harmless"
    return Prompt(id=f"p{number}", intent_id=f"i{number}", label=label, turns=(Turn("user", text),))


def asks(*texts: str) -> list[Prompt]:
    return [ask(text, number) for number, text in enumerate(texts)]


TEXTS = (
    "Which rivers run through Quebec",
    "Who wrote it?",
    "Stop!",
    "Count to 17",
    "A poem (short).",
    'Say "bread"',
    "日本語で答えて",
    "😀",
    "x",
    "It ends with a colon:",
)


@pytest.mark.parametrize(
    ("kind", "template"),
    [("bytes", CHATML), ("metaspace", INST), ("bytes", VICUNA), ("merging", CHATML)],
)
def test_ids_are_those_of_the_tokenizer_itself(tokenizer_for, kind, template):
    tokenizer = tokenizer_for(kind, template, adds_bos="yes")
    rendered = ChatRenderer(tokenizer).render(asks(*TEXTS))
    for text, ids in zip(TEXTS, rendered.ids, strict=True):
        chat = [{"role": "user", "content": text}]
        direct = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        assert list(ids) == direct
        assert ids.count(tokenizer.bos_token_id) == (template == INST)  # BOS is never doubled.


@pytest.mark.parametrize(
    ("kind", "template", "tail"),
    [
        ("bytes", CHATML, "<|im_end|>\n<|im_start|>assistant\n"),
        ("merging", CHATML, "<|im_end|>\n<|im_start|>assistant\n"),
        ("metaspace", INST, " [/INST]"),
        ("bytes", VICUNA, " ASSISTANT:"),
        ("bytes", RESPONSE, "\n\n### Response:\n"),
        ("merging", RESPONSE, "\n\n### Response:\n"),
    ],
)
def test_post_tokens_are_the_template_after_the_instruction(tokenizer_for, kind, template, tail):
    renderer = ChatRenderer(tokenizer_for(kind, template))
    assert renderer._text(renderer.post_ids) == tail
    rendered = renderer.render(asks(*TEXTS))
    count = len(renderer.post_ids)
    for text, ids in zip(TEXTS, rendered.ids, strict=True):
        assert ids[-count:] == renderer.post_ids
        # The token before them is the last of the instruction, and nothing else.
        assert renderer._text(ids[:-count]).endswith(text)
        assert not renderer._text(ids[: -count - 1]).endswith(text)
    assert len(renderer.identity.post_tokens) == count


def test_merging_is_real_here_and_undone_without_changing_the_text(tokenizer_for):
    tokenizer = tokenizer_for("merging", RESPONSE)
    renderer = ChatRenderer(tokenizer)
    rendered = renderer.render(asks("Who wrote it?", "Who wrote it"))
    natural = tokenizer(list(rendered.texts), add_special_tokens=False)["input_ids"]
    assert natural[0][-len(renderer.post_ids) :] != list(renderer.post_ids)  # "?\n\n" is a token.
    assert natural[1] == list(rendered.ids[1])
    for ids, text in zip(rendered.ids, rendered.texts, strict=True):
        assert ids[-len(renderer.post_ids) :] == renderer.post_ids
        assert tokenizer.decode(ids) == text


def test_a_merge_that_cannot_be_undone_names_prompt_and_token(tokenizer_for, monkeypatch):
    renderer = ChatRenderer(tokenizer_for("merging", RESPONSE))
    decode = renderer._text
    monkeypatch.setattr(renderer, "_text", lambda ids: f"{len(ids)} {decode(ids)}")
    with pytest.raises(TemplateError, match=r"merges the end of a prompt.*\(prompt p1\).*\?"):
        renderer.render(asks("Fine", "Who wrote it?"))


def test_a_tokenizer_that_always_merges_is_refused(tokenizer_for):
    tokenizer = tokenizer_for("bytes", CHATML)
    template = ChatTemplate(tokenizer, template=None, system="default", thinking=None)

    def merging(texts):
        rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [[*row[:-1], 1000 * len(row)] for row in rows]  # No head is a whole's beginning.

    with pytest.raises(TemplateError, match=r"cannot be told from those.*merged tokens every"):
        template.tail(merging)


texts_given = st.text(min_size=1, max_size=30).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(text=texts_given)
@pytest.mark.parametrize(
    ("kind", "template"), [("bytes", CHATML), ("merging", RESPONSE), ("bytes", VICUNA)]
)
def test_any_text_keeps_its_end_in_place(tokenizer_for, kind, template, text):
    key = (kind, template)
    if key not in _RENDERERS:
        _RENDERERS[key] = ChatRenderer(tokenizer_for(kind, template))
    renderer = _RENDERERS[key]
    rendered = renderer.render([ask(text)])
    (ids,) = rendered.ids
    count = len(renderer.post_ids)
    assert ids[-count:] == renderer.post_ids
    assert renderer._text(ids) == rendered.texts[0]
    assert renderer._text(ids[:-count]).endswith(text)


_RENDERERS: dict = {}


def test_a_template_without_anything_after_the_instruction(tokenizer_for):
    renderer = ChatRenderer(tokenizer_for("bytes", None), template="plain")
    assert renderer.post_ids == () and renderer.identity.post_tokens == ()
    with pytest.raises(TemplateError, match="nothing after the instruction"):
        renderer.positions("post")
    assert renderer.positions("inst") == Positions(offsets=(-1,), labels=("t_inst",))
    assert renderer.positions("-2,-1").labels == ("t_inst-1", "t_inst")


def test_positions(tokenizer_for):
    renderer = ChatRenderer(tokenizer_for("bytes", CHATML))
    post = renderer.identity.post_tokens
    n = len(post)
    assert post[0] == "<|im_end|>" and "".join(post) == "<|im_end|>\n<|im_start|>assistant\n"
    assert renderer.positions("post") == Positions(offsets=tuple(range(-n, 0)), labels=post)
    assert renderer.positions("inst") == Positions(offsets=(-n - 1,), labels=("t_inst",))
    both = Positions(offsets=tuple(range(-n - 1, 0)), labels=("t_inst", *post))
    assert renderer.positions("inst,post") == renderer.positions("post, inst") == both
    assert renderer.positions("-1,-2") == Positions(offsets=(-2, -1), labels=post[-2:])
    assert renderer.positions("-1,post,-1").offsets == tuple(range(-n, 0))
    assert renderer.positions(f"-{n + 3}").labels == ("t_inst-2",)
    for wrong in ("", "0", "1", "-0", "last", "-1;-2", "--1", "-1.5", "post,,inst", "-²"):
        with pytest.raises(TemplateError, match="not a position"):
            renderer.positions(wrong)


def test_t_inst_is_the_last_token_of_each_instruction(tokenizer_for):
    tokenizer = tokenizer_for("bytes", CHATML)
    renderer = ChatRenderer(tokenizer)
    (offset,) = renderer.positions("inst").offsets
    for prompt, ids in zip(asks(*TEXTS), renderer.render(asks(*TEXTS)).ids, strict=True):
        alone = tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
        assert ids[offset] == alone[-1]


def test_positions_before_the_shortest_prompt_and_the_shared_prefix(tokenizer_for):
    renderer = ChatRenderer(tokenizer_for("bytes", CHATML))
    rendered = renderer.render(asks("Hello you", "Hello me and you"))
    post = renderer.positions("post")
    shared = rendered.prefix_length(post)
    assert rendered.ids[0][:shared] == rendered.ids[1][:shared]
    assert rendered.ids[0][shared] != rendered.ids[1][shared]
    rendered.check_positions(post)
    n = min(rendered.lengths)
    assert rendered.prefix_length(Positions(offsets=(-n,), labels=("x",))) == 0
    too_far = Positions(offsets=(-n - 1,), labels=("x",))
    for call in (rendered.check_positions, rendered.prefix_length):
        with pytest.raises(PromptError, match=rf"from -{n} to -1, got -{n + 1}"):
            call(too_far)
    # One prompt, or equal ones: what the positions touch is left over, and one token more.
    one = renderer.render(asks("Hello"))
    assert one.prefix_length(post) == one.lengths[0] - len(post.offsets) - 1


def test_too_long_prompts_are_named(tokenizer_for):
    renderer = ChatRenderer(tokenizer_for("bytes", CHATML))
    prompts = asks("short", "much much much longer")
    longest = max(renderer.render(prompts).lengths)
    assert renderer.render(prompts, max_length=longest).lengths[1] == longest
    with pytest.raises(
        PromptError, match=rf"prompt p1\).*at most {longest - 1} tok.*got {longest}"
    ):
        renderer.render(prompts, max_length=longest - 1)


def test_nothing_to_render_is_refused(tokenizer_for):
    with pytest.raises(PromptError, match="no prompts to render"):
        ChatRenderer(tokenizer_for("bytes", CHATML)).render(PromptSet("none", ()))


def test_a_prompt_without_tokens_is_refused():
    letters = Tokenizer(models.BPE({"a": 0, "b": 1}, []))  # Drops every other character.
    renderer = ChatRenderer(PreTrainedTokenizerFast(tokenizer_object=letters), template="plain")
    assert renderer.render(asks("bread")).ids == ((1, 0),)
    with pytest.raises(PromptError, match=r"no tokens \(prompt p1\)"):
        renderer.render(asks("bread", "stone"))


def test_hash_follows_the_ids(tokenizer_for):
    renderer = ChatRenderer(tokenizer_for("bytes", CHATML))
    a = renderer.render(asks("one", "two"))
    assert a.hash == renderer.render(PromptSet("other", tuple(asks("one", "two")))).hash
    others = [asks("two", "one"), asks("one"), asks("one", "two ")]
    assert a.hash not in {renderer.render(ps).hash for ps in others}
    system = ChatRenderer(tokenizer_for("bytes", CHATML), system="Be brief.")
    assert a.hash != system.render(asks("one", "two")).hash
    assert len(a) == 2 and a.prompts.ids == ["p0", "p1"]


def test_one_prompt_alone_equals_the_same_prompt_in_a_batch(tokenizer_for):
    for kind, template in (("bytes", CHATML), ("merging", RESPONSE), ("metaspace", INST)):
        renderer = ChatRenderer(tokenizer_for(kind, template))
        batch = renderer.render(asks(*TEXTS))
        for prompt, ids in zip(asks(*TEXTS), batch.ids, strict=True):
            assert renderer.render([prompt]).ids == (ids,)


def test_padding_and_truncation_left_on_do_not_reach_the_ids(tokenizer_for):
    tokenizer = tokenizer_for("bytes", CHATML, pad_token="</s>")
    clean = ChatRenderer(tokenizer).render(asks(*TEXTS))
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    tokenizer.padding_side = "left"
    again = ChatRenderer(tokenizer).render(asks(*TEXTS))
    assert again.ids == clean.ids and again.identity == clean.identity


@pytest.mark.slow
def test_ten_thousand_prompts_render_within_seconds(tokenizer_for):
    renderer = ChatRenderer(tokenizer_for("bytes", CHATML))
    prompts = [ask(f"How do I make thing {i} out of many words?", i) for i in range(10_000)]
    began = time.perf_counter()
    assert len(renderer.render(prompts)) == 10_000
    assert time.perf_counter() - began < 20
