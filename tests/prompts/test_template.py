"""System messages, thinking switches, dates and tails of many kinds of chat templates."""

import pytest

from refusaldir.errors import TemplateError
from refusaldir.prompts.render import ChatRenderer
from refusaldir.prompts.schema import Prompt, Turn

TURN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
ASSISTANT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

CHATML = TURN + ASSISTANT
#: Inserts a system text of its own when there is none, as SmolLM2 and Qwen2.5 do.
OWN_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are Tiny.<|im_end|>\n"
    "{% endif %}" + CHATML
)
#: As above, but an empty system message counts as none.
STUBBORN = (
    "{% if messages[0]['role'] == 'system' and messages[0]['content'] %}"
    "{% set s = messages[0]['content'] %}{% else %}{% set s = 'You are Tiny.' %}{% endif %}"
    "<|im_start|>system\n{{ s }}<|im_end|>\n"
    "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}" + ASSISTANT
)
ALWAYS = (
    "You are Tiny.\n{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}\n"
    "{% endfor %}"
)
UNREMOVABLE = (
    "{% if messages[0]['role'] == 'system' and messages[0]['content'] | trim %}"
    "{{ messages[0]['content'] }}{% else %}You are Tiny.{% endif %}\n"
    "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}\n{% endfor %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set s = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set rest = messages %}{% set s = '' %}{% endif %}"
    "{% for m in rest %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' }}"
    "{% if loop.first %}{{ s }}{% endif %}{{ m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}"
    "{% set rest = messages[1:] %}{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
    "<|im_start|>system\n\nToday Date: {{ strftime_now('%d %b %Y') }}\n\n{{ s }}<|im_end|>"
    "{% for m in rest %}<|im_start|>{{ m['role'] }}\n\n{{ m['content'] | trim }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}"
    "\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
#: Leaves the system message out without a word.
DEAF = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}</s>{% endfor %}"
QWEN3 = TURN + (
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
DEEPSEEK = (
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    + TURN
    + ASSISTANT
    + "{{ '<think>' if thinking else '</think>' }}"
)
ALPACA = (
    "{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n\n{% endfor %}"
    "### Response:{{ '\n' }}"
)


def ask(text: str, *before: Turn, id_: str = "p") -> Prompt:
    return Prompt(id=id_, intent_id="i", label="harmful", turns=(*before, Turn("user", text)))


def rendered(tokenizer, text="Hello there", **options) -> str:
    return ChatRenderer(tokenizer, **options).render([ask(text)]).texts[0]


def test_default_is_what_the_template_does_by_itself(tokenizer_for):
    chat = [{"role": "user", "content": "Hello there"}]
    for template in (CHATML, OWN_SYSTEM, STUBBORN, LLAMA2, GEMMA, MISTRAL, QWEN3, DEEPSEEK, ALPACA):
        tokenizer = tokenizer_for("bytes", template)
        by_itself = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert rendered(tokenizer) == by_itself


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (CHATML, "<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n"),
        (
            OWN_SYSTEM,
            "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHello there<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            STUBBORN,
            "<|im_start|>system\n <|im_end|>\n<|im_start|>user\nHello there<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (LLAMA2, "<s>[INST] Hello there [/INST]"),
        (GEMMA, "<s><start_of_turn>user\nHello there<end_of_turn>\n<start_of_turn>model\n"),
        (MISTRAL, "<s>[INST] Hello there [/INST]"),
        (DEAF, "Hello there</s>"),
        (ALPACA, "### user:\nHello there\n\n### Response:\n"),
    ],
)
def test_none_leaves_no_system_text(tokenizer_for, template, text):
    assert rendered(tokenizer_for("bytes", template), system="none") == text


def test_none_refuses_where_a_system_text_would_remain(tokenizer_for):
    with pytest.raises(TemplateError, match=r"cannot be left out.*You are Tiny"):
        ChatRenderer(tokenizer_for("bytes", UNREMOVABLE), system="none")
    ChatRenderer(tokenizer_for("bytes", UNREMOVABLE))


def test_a_system_text_is_set_and_must_appear(tokenizer_for):
    for template in (CHATML, OWN_SYSTEM, STUBBORN, LLAMA2, LLAMA3, ALPACA):
        text = rendered(tokenizer_for("bytes", template), system="Be brief.")
        assert text.count("Be brief.") == 1 and "Tiny" not in text
    with pytest.raises(TemplateError, match=r"takes no system message.*System role not supported"):
        ChatRenderer(tokenizer_for("bytes", GEMMA), system="Be brief.")
    with pytest.raises(TemplateError, match="takes no system message"):
        ChatRenderer(tokenizer_for("bytes", MISTRAL), system="Be brief.")
    for template in (DEAF, ALWAYS):
        with pytest.raises(TemplateError, match="leaves the system message out"):
            ChatRenderer(tokenizer_for("bytes", template), system="Be brief.")


def test_a_prompt_with_a_system_message_of_its_own(tokenizer_for):
    own = ask("Hello", Turn("system", "Mine."), id_="own")
    tokenizer = tokenizer_for("bytes", OWN_SYSTEM)
    assert "Mine." in ChatRenderer(tokenizer).render([own]).texts[0]
    for system in ("none", "Yours."):
        with pytest.raises(TemplateError, match=r"system message of its own.*\(prompt own\)"):
            ChatRenderer(tokenizer, system=system).render([ask("Hi", id_="x"), own])


def test_a_refused_conversation_is_named(tokenizer_for):
    own = ask("Hello", Turn("system", "Mine."), id_="own")
    with pytest.raises(TemplateError, match=r"refuses.*\(prompt own\): got System role not supp"):
        ChatRenderer(tokenizer_for("bytes", GEMMA)).render([ask("Hi", id_="x"), own])


def test_multi_turn_prompts_pass_every_turn(tokenizer_for):
    prompt = ask("Third", Turn("user", "First"), Turn("assistant", "Second"))
    tokenizer = tokenizer_for("metaspace", LLAMA2)
    text = ChatRenderer(tokenizer).render([prompt]).texts[0]
    assert text == "<s>[INST] First [/INST] Second </s><s>[INST] Third [/INST]"


def test_thinking_is_passed_recorded_and_part_of_the_tail(tokenizer_for):
    tokenizer = tokenizer_for("bytes", QWEN3)
    assert rendered(tokenizer, thinking=False).endswith("assistant\n<think>\n\n</think>\n\n")
    assert rendered(tokenizer, thinking=True) == rendered(tokenizer)
    on, off, default = (ChatRenderer(tokenizer, thinking=t) for t in (True, False, None))
    assert (on.identity.thinking, off.identity.thinking) == (True, False)
    assert default.identity == on.identity != off.identity
    assert len(off.post_ids) > len(on.post_ids)
    assert off.post_ids[: len(on.post_ids)] == on.post_ids


def test_the_other_name_of_the_switch(tokenizer_for):
    tokenizer = tokenizer_for("bytes", DEEPSEEK)
    assert rendered(tokenizer, thinking=True).endswith("<think>")
    assert ChatRenderer(tokenizer).identity.thinking is False


def test_thinking_needs_a_switch_that_does_something(tokenizer_for):
    for template in (CHATML, "{# enable_thinking #}" + CHATML):
        assert ChatRenderer(tokenizer_for("bytes", template)).identity.thinking is None
        with pytest.raises(TemplateError, match=r"no switch for thinking.*thinking=False"):
            ChatRenderer(tokenizer_for("bytes", template), thinking=False)


def test_the_date_never_changes(tokenizer_for):
    tokenizer = tokenizer_for("bytes", LLAMA3)
    assert "Today Date: 26 Jul 2024\n" in rendered(tokenizer)
    long = "\n{{ strftime_now('%A, %d %B %Y, %H:%M') }} {{ messages[0]['content'] }}</s>"
    text = rendered(tokenizer_for("bytes", long), "Hi")
    # Jinja drops no line break either: the text is what the bare template gives.
    assert text == "\nFriday, 26 July 2024, 00:00 Hi</s>"
    assert "strftime_now" in long  # The template's own hash does not depend on the day.


def test_no_template_and_the_way_out(tokenizer_for):
    tokenizer = tokenizer_for("bytes", None)
    with pytest.raises(TemplateError, match=r"no chat template.*template='plain'"):
        ChatRenderer(tokenizer)
    assert rendered(tokenizer, template="plain") == "Hello there"
    assert rendered(tokenizer, template=CHATML).startswith("<|im_start|>user")
    adds = tokenizer_for("bytes", None, adds_bos="yes")
    renderer = ChatRenderer(adds, template="plain")
    (ids,) = renderer.render([ask("Hello there")]).ids
    assert list(ids) == adds("Hello there")["input_ids"]  # BOS once.
    assert ids.count(adds.bos_token_id) == 1


def test_broken_templates_and_those_that_hide_the_instruction(tokenizer_for):
    for template, told in [
        ("{{ messages[0]['content'] ", "refuses"),
        ("{{ messages[0]['content'] | upper }}</s>", "changes the instruction"),
        ("{{ messages[0]['content'] }}{{ messages[0]['content'] | length }}", "depends on the ins"),
    ]:
        with pytest.raises(TemplateError, match=told):
            ChatRenderer(tokenizer_for("bytes", template))


def test_a_named_default_among_several_templates(tokenizer_for):
    tokenizer = tokenizer_for("bytes", {"default": CHATML, "tool_use": ALPACA})
    assert rendered(tokenizer).startswith("<|im_start|>user")
