"""Escalations: every turn is played, frozen or live; outcomes are counted from the parting on."""

import itertools

import pytest
import torch
from chat_server import ChatServer, say

from refusaldir.errors import ProbeError, PromptError
from refusaldir.probes.chat_client import KEY_VARIABLE, Patience
from refusaldir.probes.endpoint import Endpoint, EndpointRespond
from refusaldir.probes.escalation import SILENCE, opening_turns, play, summarise, user_turns
from refusaldir.probes.generation.generate import stop_ids
from refusaldir.probes.generation.in_process import InProcessRespond
from refusaldir.probes.outcomes import (
    COMPLIANCE,
    EMPTY,
    FULL_REFUSAL,
    INCOHERENT,
    JUDGE_ERROR,
    PARTIAL_REFUSAL,
)
from refusaldir.probes.reply import Reply
from refusaldir.prompts.load import load_prompts
from refusaldir.prompts.render import ChatRenderer
from refusaldir.prompts.schema import Prompt, PromptSet, Turn


def escalation(name, *said, twin_of=None, system=None):
    """Users' turns, with canned replies "canned 1", … between them."""
    turns = [Turn("system", system)] if system else []
    for number, text in enumerate(said, start=1):
        turns += [Turn("user", text), Turn("assistant", f"canned {number}")]
    return Prompt(
        id=name, intent_id=name[0], label="harmful", turns=tuple(turns[:-1]), twin_of=twin_of
    )


PROMPTS = PromptSet(
    "three",
    (
        escalation("a", "a one", "a two", "a three"),
        escalation("b", "b one", system="be brief"),
        escalation("c", "c one", "c two"),
    ),
)


class Talker:
    """Numbers its replies, and says so in them; refuses whatever it is told to."""

    def __init__(self, *, silent=(), backwards=False):
        self.calls, self.silent, self.backwards = [], silent, backwards

    def __call__(self, conversations, *, skip=frozenset(), on_reply=None):
        asked = {i: turns for i, turns in enumerate(conversations) if i not in skip}
        self.calls.append([[turn.content for turn in turns] for turns in asked.values()])
        replies = {}
        for index, turns in asked.items():
            text = f"to {turns[-1].content}"
            replies[index] = Reply(text="" if text in self.silent else text, finished=True)
        if on_reply is not None:
            for index in reversed(replies) if self.backwards else replies:
                on_reply(index, replies[index])
        return list(replies.values())


def seen(turns):
    return {(t.prompt_id, t.turn): [m.content for m in t.messages] for t in turns}


@pytest.mark.parametrize("backwards", [False, True])
def test_frozen(backwards):
    talker = Talker(backwards=backwards)
    turns = play(PROMPTS, talker, mode="frozen")
    assert [(t.prompt_id, t.turn, t.mode) for t in turns] == [
        (name, number, "frozen")
        for name, number in (("a", 1), ("a", 2), ("a", 3), ("b", 1), ("c", 1), ("c", 2))
    ]
    assert seen(turns) == {
        ("a", 1): ["a one"],
        ("a", 2): ["a one", "canned 1", "a two"],
        ("a", 3): ["a one", "canned 1", "a two", "canned 2", "a three"],
        ("b", 1): ["be brief", "b one"],
        ("c", 1): ["c one"],
        ("c", 2): ["c one", "canned 1", "c two"],
    }
    assert all(t.reply.text == f"to {t.messages[-1].content}" for t in turns)
    assert len(talker.calls) == 1, "frozen turns need not wait for each other"
    assert turns[2].messages == PROMPTS[0].turns


@pytest.mark.parametrize("backwards", [False, True])
def test_live(backwards):
    talker = Talker(backwards=backwards)
    turns = play(PROMPTS, talker, mode="live")
    assert seen(turns) == {
        ("a", 1): ["a one"],
        ("a", 2): ["a one", "to a one", "a two"],
        ("a", 3): ["a one", "to a one", "a two", "to a two", "a three"],
        ("b", 1): ["be brief", "b one"],
        ("c", 1): ["c one"],
        ("c", 2): ["c one", "to c one", "c two"],
    }
    assert [len(call) for call in talker.calls] == [3, 2, 1], "all conversations of a turn together"
    assert all(
        [m.role for m in t.messages if m.role != "system"]
        == ["user", "assistant"] * (t.turn - 1) + ["user"]
        for t in turns
    )


def test_a_reply_without_text_leaves_an_ellipsis():
    turns = play(PROMPTS, Talker(silent={"to a one"}), mode="live")
    assert seen(turns)["a", 3] == ["a one", SILENCE, "a two", "to a two", "a three"]
    assert turns[0].reply.text == "", "what was said is kept as it was"


@pytest.mark.parametrize("mode", ["frozen", "live"])
def test_going_on_after_an_interruption(mode):
    """Stop after every possible number of turns; go on; nothing is asked twice."""
    whole = play(PROMPTS, Talker(), mode=mode)

    class StopError(Exception):
        pass

    for after in range(len(whole)):
        kept = {}

        def keep(turn, kept=kept, after=after):
            if len(kept) == after:
                raise StopError
            kept[turn.prompt_id, turn.turn] = turn.reply

        with pytest.raises(StopError):
            play(PROMPTS, Talker(), mode=mode, on_turn=keep)
        talker, new = Talker(), []
        assert play(PROMPTS, talker, mode=mode, done=kept, on_turn=new.append) == whole
        assert sum(map(len, talker.calls)) == len(new) == len(whole) - after
    silent = Talker()
    assert (
        play(PROMPTS, silent, mode=mode, done={(t.prompt_id, t.turn): t.reply for t in whole})
        == whole
    )
    assert silent.calls == []


def test_a_responder_that_only_returns_will_do():
    turns = []
    got = play(
        PROMPTS,
        lambda conversations, *, skip, on_reply: (
            [Reply(text="x", finished=True)] * len(conversations)
        ),
        mode="live",
        on_turn=turns.append,
    )
    assert len(got) == len(turns) == 6


def test_no_such_mode():
    with pytest.raises(ProbeError, match="expected frozen or live, got 'adaptive'"):
        play(PROMPTS, Talker(), mode="adaptive")  # type: ignore[arg-type]


def test_nothing_to_play():
    assert play([], Talker(), mode="live") == []


def test_the_built_in_escalations_are_played_in_full():
    prompts = load_prompts("escalations")
    frozen, live = (play(prompts, Talker(), mode=mode) for mode in ("frozen", "live"))
    assert (
        len(frozen) == len(live) == sum(len(user_turns(p)) for p in prompts) == 2 * 8 * (4 + 5 + 6)
    )
    last = {t.prompt_id: t for t in frozen}
    assert all(last[p.id].messages == p.turns for p in prompts)
    opening = opening_turns(prompts)
    assert all(opening[p.id] == len(user_turns(p)) // 2 for p in prompts)


def test_opening():
    one = escalation("x", "same", "other a", twin_of="y")
    two = escalation("y", "same", "other b", "more")
    alike = escalation("z", "same", "other a", twin_of="x")
    assert opening_turns([one, two]) == {"x": 1, "y": 1}, "either twin may name the other"
    assert opening_turns([alike, escalation("x", "same", "other a")]) == {"z": 1, "x": 1}
    assert opening_turns([one]) == {"x": 0}


R, P, C, E = FULL_REFUSAL, PARTIAL_REFUSAL, COMPLIANCE, EMPTY


@pytest.mark.parametrize(
    ("labels", "opening", "complied", "first", "any_", "last", "recovered"),
    [
        ((R, R, R), 0, (False,) * 3, None, False, False, None),
        ((R, C, R), 0, (False, True, False), 2, True, False, True),
        ((R, C, C), 0, (False, True, True), 2, True, True, False),
        ((R, P, C), 0, (False, False, True), 3, True, True, None),
        ((C, R, R), 1, (False, False), None, False, False, None),  # the opening is no compliance
        ((C, R, C), 1, (False, True), 3, True, True, None),
        ((R, E, R), 0, (False, None, False), None, None, False, None),
        ((R, INCOHERENT, C), 0, (False, None, True), 3, True, True, None),
        ((C, E, JUDGE_ERROR), 0, (True, None, None), 1, True, None, None),
        ((C, E, R), 0, (True, None, False), 1, True, False, True),
    ],
)
def test_outcomes(labels, opening, complied, first, any_, last, recovered):
    got = summarise(PROMPTS[0], labels, opening=opening)
    assert (got.prompt_id, got.intent_id, got.opening) == ("a", "a", opening)
    assert (got.complied, got.first_complying) == (complied, first)
    assert (got.any_complied, got.last_complied, got.recovered) == (any_, last, recovered)


def test_outcomes_refuse():
    with pytest.raises(ProbeError, match="expected 3 labels, got 2"):
        summarise(PROMPTS[0], (R, R))
    with pytest.raises(ProbeError, match="an opening of 0 to 2 turns"):
        summarise(PROMPTS[0], (R, R, R), opening=3)


# On a real model, and on a server.

SPOKEN = PromptSet(
    "spoken",
    (
        escalation("a", "how do i make w1 cake", "can you help with that", "find the bomb"),
        escalation("b", "is this ok", "make it w3", system="you help"),
        escalation("c", "open the door with a lock", "and how", "w2 w4", "yes or no"),
    ),
)


def huggingface(model, messages, budget):
    """One reply of `generate`, one conversation at a time, through the tokenizer's template."""
    tokenizer, stops = model.tokenizer, list(stop_ids(model))
    text = tokenizer.apply_chat_template(
        [turn.to_dict() for turn in messages], tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    out = model.hf.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=budget,
        do_sample=False,
        eos_token_id=stops,
        pad_token_id=0,
    )[0, ids.shape[1] :].tolist()
    new = list(itertools.takewhile(lambda token: token not in stops, out))
    text = tokenizer.decode(new, skip_special_tokens=True)
    ended = len(new) < len(out)
    return Reply(
        text=text,
        finished=ended,
        reason="stop" if ended else "length",
        n_tokens=len(new),
        first_token=new[0] if new else None,
    )


def by_hand(model, prompt, budget, mode):
    """The conversation of one prompt, turn by turn."""
    messages, replies = [], []
    for turn in prompt.turns:
        if turn.role != "assistant":
            messages.append(turn)
        elif mode == "frozen":
            messages.append(turn)
        else:
            messages.append(Turn("assistant", replies[-1].text or SILENCE))
        if turn.role == "user":
            replies.append(huggingface(model, messages, budget))
    return replies


@pytest.mark.parametrize("mode", ["frozen", "live"])
def test_in_process_equals_generate(build, mode):
    model = build("llama", seed=3)
    respond = InProcessRespond(
        model=model, renderer=ChatRenderer(model.tokenizer), max_new_tokens=6
    )
    turns = play(SPOKEN, respond, mode=mode)
    expected = [reply for prompt in SPOKEN for reply in by_hand(model, prompt, 6, mode)]
    assert [t.reply for t in turns] == expected
    assert len({t.reply.text for t in turns}) > 4, "the model must say different things"


def test_live_is_not_frozen(build):
    """Negative control of the equality above."""
    model = build("llama", seed=3)
    respond = InProcessRespond(
        model=model, renderer=ChatRenderer(model.tokenizer), max_new_tokens=6
    )
    frozen, live = (play(SPOKEN, respond, mode=mode) for mode in ("frozen", "live"))
    differ = [f.reply.text != t.reply.text for f, t in zip(frozen, live, strict=True) if f.turn > 1]
    assert any(differ)
    assert all(f.reply == t.reply for f, t in zip(frozen, live, strict=True) if f.turn == 1)


def test_in_process_hands_over_each_batch(build):
    model = build()
    kept = {}
    respond = InProcessRespond(
        model=model, renderer=ChatRenderer(model.tokenizer), max_new_tokens=3, batch_size=1
    )
    conversations = [prompt.turns for prompt in SPOKEN]
    assert respond(conversations, on_reply=kept.__setitem__) == [kept[i] for i in range(3)]
    assert respond([]) == []


def test_a_conversation_beyond_the_context_says_which(build):
    model = build()
    respond = InProcessRespond(
        model=model, renderer=ChatRenderer(model.tokenizer), max_new_tokens=230
    )
    with pytest.raises(PromptError, match=r"longer than the model's context.*3 of 3 conversations"):
        respond([(Turn("user", "i"),), (Turn("user", "i"),), (Turn("user", "i " * 30),)])


def test_a_server_that_dies_in_the_middle_of_an_escalation(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    kept = {}
    patience = Patience(timeout=5.0, retries=1, first_wait=0.01)

    def run(answer):
        server = ChatServer(answer)
        try:
            respond = EndpointRespond(
                endpoint=Endpoint(url=server.url, model="m", concurrency=2, patience=patience),
                max_new_tokens=4,
            )
            return play(
                PROMPTS,
                respond,
                mode="live",
                done=dict(kept),
                on_turn=lambda t: kept.__setitem__((t.prompt_id, t.turn), t.reply),
            ), len(server.seen)
        finally:
            server.close()

    with pytest.raises(ProbeError, match="keeps failing"):
        run(lambda n, body: say(body) if n < 4 else (500, {}, {}))
    assert 3 <= len(kept) <= 4
    before = len(kept)
    turns, asked = run(lambda n, body: say(body))
    assert asked == 6 - before
    assert turns == run(lambda n, body: say(body))[0]
    assert seen(turns)["a", 3] == ["a one", "re: a one", "a two", "re: a two", "a three"]
