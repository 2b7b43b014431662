import json
import subprocess
import sys
from collections import Counter

import pytest

from refusaldir.errors import PromptError
from refusaldir.prompts.load import BUILT_IN, load_pair, load_prompts


def refusal(call, *parts: str) -> str:
    with pytest.raises(PromptError) as error:
        call()
    text = str(error.value)
    for part in parts:
        assert part in text, text
    return text


# --- what loads ------------------------------------------------------------------------------


def test_canonical_jsonl_round_trip(write, pairs):
    ps = load_prompts(write("mine.jsonl", pairs(5)))
    assert ps.name == "mine"
    assert [p.to_dict()["turns"] for p in ps] == [r["turns"] for r in pairs(5)]
    assert ps.labels == [1, 0] * 5
    assert ps[0].split == "train" and ps[2].intent_id == ps[3].intent_id == "i1"
    ps.require_both_classes()


@pytest.mark.parametrize("name", ["instruction", "prompt", "text", "goal", "question", "Goal"])
def test_plain_objects_load_under_their_usual_names(write, name):
    path = write("p.jsonl", [{name: "One?"}, {name: "Two?"}])
    ps = load_prompts(path, label="harmful")
    assert [p.text for p in ps] == ["One?", "Two?"]
    assert ps.ids == ["p-1", "p-2"] and [p.intent_id for p in ps] == ["p-1", "p-2"]
    assert ps.labels == [1, 1]


def test_messages_and_a_label_column(write):
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    rows = [{"messages": messages, "label": "unsafe"}, {"text": "d", "label": "Benign"}]
    ps = load_prompts(write("m.json", rows))
    assert [len(p.turns) for p in ps] == [3, 1] and ps.labels == [1, 0]
    assert load_prompts(write("n.json", {"prompts": rows})).hash != ps.hash  # Other ids.


def test_every_format_gives_the_same_prompts(write):
    texts = ['Say "hi", please', "Zwei\u2028Zeilen äöü", "three\tparts"]
    rows = [{"prompt": text, "label": "harmless"} for text in texts]
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
    files = [
        write("a.jsonl", "\n\n".join(json.dumps(r, ensure_ascii=False) for r in rows)),
        write("a.json", rows),
        write("a.csv", "prompt,label\r\n" + "\r\n".join(f"{q},harmless" for q in quoted)),
        write("a.tsv", "label\tprompt\n" + "\n".join(f"harmless\t{q}" for q in quoted)),
        write("a.txt", "\ufeff" + "\n  \n".join(texts) + "\n"),
    ]
    for path in files:
        ps = load_prompts(path, label="harmless")
        assert [p.text for p in ps] == texts, path
        assert ps.labels == [0, 0, 0]


def test_ids_come_from_the_line_and_do_not_change(write):
    path = write("p.txt", "one\n\ntwo\n")
    assert load_prompts(path, label="harmful").ids == ["p-1", "p-3"]
    assert load_prompts(path, label="harmful").hash == load_prompts(path, label="harmful").hash


def test_csv_cells_over_several_lines_keep_line_numbers(write):
    body = 'prompt,label\n"two\nlines",harmful\nthree,wrong\n'
    refusal(lambda: load_prompts(write("p.csv", body)), "p.csv, line 4", "Unknown label", "'wrong'")
    ps = load_prompts(write("q.csv", body.replace("wrong", "harmless")))
    assert ps[0].text == "two\nlines" and ps.ids == ["q-2", "q-4"]


def test_csv_turns_hold_json(write):
    turns = json.dumps([{"role": "user", "content": "x, y"}]).replace('"', '""')
    ps = load_prompts(write("p.csv", f'turns,label\n"{turns}",harmful\n'))
    assert ps[0].text == "x, y"
    refusal(
        lambda: load_prompts(write("r.csv", "turns,label\n[1,harmful\n")),
        "'turns' is not valid JSON",
        "r.csv, line 2",
    )


def test_column_map_renames_and_ignores_the_rest(write):
    path = write("p.csv", "Goal,Target,Kind\nDo it,Sure,theft\n")
    columns = {"text": "Goal", "category": "Kind"}
    (p,) = load_prompts(path, label="harmful", column_map=columns)
    assert (p.text, p.category) == ("Do it", "theft")
    # The text column may go unnamed where it is clear.
    (q,) = load_prompts(path, label="harmful", column_map={"category": "Kind"})
    assert q == p


def test_metadata_is_kept_and_integer_ids_become_texts(write):
    rows = [{"id": 7, "prompt": "x", "label": "harmful", "metadata": {"k": [1]}}]
    (p,) = load_prompts(write("p.jsonl", rows))
    assert (p.id, p.metadata) == ("7", {"k": [1]})
    assert p.to_dict()["metadata"] == {"k": [1]}


def test_intents_are_shared_by_twins(write):
    def row(id_, label, twin=None, intent=None):
        return {
            "id": id_,
            "prompt": f"text {id_}",
            "label": label,
            "twin_of": twin,
            "intent_id": intent,
        }

    rows = [
        row("a", "harmful"),
        row("b", "harmless", twin="a"),
        row("c", "harmful", twin="d"),
        row("d", "harmless", intent="given"),
        row("e", "harmful"),
        row("f", "harmless", twin="e"),
        row("g", "harmless", twin="e"),
    ]
    ps = load_prompts(write("p.jsonl", rows))
    assert [p.intent_id for p in ps] == ["a", "a", "given", "given", "e", "e", "e"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_sets_load(name):
    ps = load_prompts(name, limit=8)
    assert ps.name == name and len(ps) == 16
    ps.require_both_classes()
    assert len({p.category for p in ps}) >= 4


def test_the_contrast_set_is_the_default():
    assert load_prompts().hash == load_prompts("contrast").hash


# --- what is refused --------------------------------------------------------------------------

GOOD = {"prompt": "Fine?", "label": "harmful"}


@pytest.mark.parametrize(
    ("bad", "parts"),
    [
        ({"prompt": "x", "label": "bad"}, ["Unknown label", "harmless", "'bad'"]),
        ({"prompt": "x", "label": 1}, ["Unknown label", "got 1"]),
        ({"prompt": "x"}, ["no label", "as a pair"]),
        ({"prompt": " ", "label": "harmful"}, ["text is empty", "' '"]),
        ({"prompt": None, "label": "harmful"}, ["no text", "instruction"]),
        ({"prompt": 3, "label": "harmful"}, ["is no text", "got 3"]),
        ({"label": "harmful"}, ["no text", "column map"]),
        ({"prompt": "x", "text": "y", "label": "harmful"}, ["gives 'text' twice"]),
        ({"prompt": "x", "turns": [], "label": "harmful"}, ["both turns and a text"]),
        ({"turns": [], "label": "harmful"}, ["no messages"]),
        ({"turns": "x", "label": "harmful"}, ["'turns' is not valid JSON"]),
        ({"turns": {}, "label": "harmful"}, ["'turns' is not a list", "dict"]),
        ({"turns": [{"role": "user"}], "label": "harmful"}, ["turns[1]", "role and content"]),
        ({"turns": [{"role": "user", "content": 3}], "label": "harmful"}, ["turns[1].content"]),
        ({"messages": [{"role": "bot", "content": "x"}], "label": "harmful"}, ["turns[1].role"]),
        (
            {
                "turns": [
                    {"role": "user", "content": "x"},
                    {"role": "assistant", "content": "x"},
                ],
                "label": "harmful",
            },
            ["last message from the user", "assistant"],
        ),
        ({**GOOD, "severity": "huge"}, ["severity", "critical", "'huge'"]),
        ({**GOOD, "framing": "odd"}, ["framing", "escalation", "'odd'"]),
        ({**GOOD, "split": "dev"}, ["split", "validation", "'dev'"]),
        ({**GOOD, "mood": "x"}, ["no field 'mood'", "category", "metadata", "text=prompt"]),
        ({**GOOD, "id": 1.5}, ["id", "float"]),
        ({**GOOD, "id": ["x"]}, ["id", "list"]),
        ({**GOOD, "intent_id": ["x"]}, ["intent_id", "a text"]),
        ({**GOOD, "twin_of": "nobody"}, ["'twin_of' names a prompt that does not", "'nobody'"]),
        ({**GOOD, "metadata": 3}, ["metadata", "an object"]),
        ([1], ["not an object", "list"]),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(write, bad, parts):
    path = write("mine.jsonl", [{"prompt": "First", "label": "harmful"}, bad])
    refusal(lambda: load_prompts(path), "mine.jsonl, line 2", *parts)


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("p.jsonl", '{"prompt": "x"}\n{"prompt": \n', ["line 2", "not valid JSON", "column"]),
        ("p.jsonl", '{"prompt": "x", "prompt": "y"}', ["line 1", "given twice", "'prompt'"]),
        ("p.jsonl", "", ["is empty"]),
        ("p.jsonl", "\n \n", ["is empty"]),
        ("p.json", "", ["is empty"]),
        ("p.json", "[]", ["is empty"]),
        ("p.json", '{"a": 1}', ["no list", ".jsonl"]),
        ("p.json", "[\n1,\n]", ["not valid JSON", "line 3"]),
        ("p.json", "[" * 100_000, ["nested too deeply"]),
        ("p.csv", "prompt\n", ["is empty"]),
        ("p.csv", "prompt,prompt\nx,y\n", ["repeated column", "line 1"]),
        ("p.csv", "prompt,label\nx\n", ["line 2", "wrong number of cells", "2 (prompt, label)"]),
        ("p.csv", 'prompt\n"x\n', ["line 2", "not valid CSV"]),
        ("p.csv", "prompt,label\n,harmful\n", ["line 2", "no text"]),
        ("p.txt", b"ok\ncaf\xe9\n", ["line 2", "not UTF-8", "0xe9"]),
        ("p.txt", b"\xef\xbb\xbfok\n\ncaf\xe9\n", ["line 3", "not UTF-8", "0xe9"]),
        ("p.jsonl", '{"prompt": "\\ud800"}', ["line 1", "lone surrogate"]),
        ("p.docx", "x", ["kind of file", ".jsonl", ".docx"]),
    ],
)
def test_a_bad_file_is_named(write, name, content, parts):
    path = write(name, content)
    refusal(lambda: load_prompts(path, label="harmful"), name, *parts)


def test_a_directory_that_is_no_file_and_an_unreadable_one(tmp_path, write):
    refusal(lambda: load_prompts(tmp_path / "no.txt"), "no such prompt file", "no.txt")


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("contrats", ["Did you mean 'contrast'"]),
        ("adv_bnch", ["Did you mean 'advbench'"]),
        ("xyzzyx", ["one of contrast, battery, escalations, advbench"]),
        ("./none/such", ["no such prompt file"]),
        ("a/b/c", ["no such prompt file"]),
        ("two words", ["no such prompt file"]),
        ("data/mine.jsonl", ["no such prompt file"]),
        ("", ["no such prompt file"]),
        ("contrast#train", ["takes no config", "expected contrast"]),
    ],
)
def test_a_source_that_does_not_exist(source, parts):
    refusal(lambda: load_prompts(source), *parts)


def test_close_file_names_are_offered(write):
    path = write("harmful.jsonl", [GOOD])
    refusal(lambda: load_prompts(path.with_name("harmfull.jsonl")), f"Did you mean '{path}'")


def test_repeated_ids_and_texts_name_both_lines(write):
    rows = [{**GOOD, "id": "a"}, {"prompt": "y", "label": "harmful", "id": "a"}]
    refusal(lambda: load_prompts(write("p.jsonl", rows)), "same id", "'a'", "line 1; p.jsonl, line")
    text = "one\ntwo\n one  \n"
    refusal(
        lambda: load_prompts(write("p.txt", text), label="harmful"),
        "given twice",
        "'one'",
        "p.txt, line 1; p.txt, line 3",
    )
    rows = [GOOD, {"prompt": "Fine?  ", "label": "harmless"}]
    refusal(
        lambda: load_prompts(write("p.jsonl", rows)), "harmful and harmless", "line 1", "line 2"
    )


def test_twins_must_be_of_opposite_labels(write):
    rows = [{**GOOD, "id": "a"}, {"prompt": "y", "label": "harmful", "id": "b", "twin_of": "a"}]
    refusal(lambda: load_prompts(write("p.jsonl", rows)), "same label", "both harmful")
    rows[1]["twin_of"] = "aa"
    refusal(lambda: load_prompts(write("p.jsonl", rows)), "Did you mean 'a'")
    rows[1]["twin_of"] = "b"
    refusal(lambda: load_prompts(write("p.jsonl", rows)), "same label")


def test_a_label_for_all_must_not_contradict(write):
    path = write("p.jsonl", [GOOD])
    assert load_prompts(path, label="harmful").labels == [1]
    refusal(lambda: load_prompts(path, label="harmless"), "contradicts", "line 1")
    refusal(lambda: load_prompts(path, label="evil"), "not a label", "'evil'")


def test_column_map_errors(write):
    path = write("p.csv", "Goal,Other\nx,y\n")

    def load(columns):
        return lambda: load_prompts(path, label="harmful", column_map=columns)

    refusal(load({"text": "Aim"}), "column that is not there", "Goal, Other", "Aim")
    refusal(load({"labl": "Goal"}), "field that prompts do not have", "Did you mean 'label'")
    refusal(load({"zzz": "Goal"}), "field that prompts do not have", "field=column")
    other = write("q.csv", "a,b\nx,y\n")
    refusal(
        lambda: load_prompts(other, label="harmful", column_map={"category": "a"}),
        "not clear",
        "text=COLUMN",
    )


# --- split and limit ---------------------------------------------------------------------------


def test_split_keeps_that_part(write, pairs):
    path = write("p.jsonl", pairs(8))
    assert load_prompts(path, split="validation").ids == [
        f"{label}-{n}" for n in (2, 6) for label in ("harmful", "harmless")
    ]
    refusal(lambda: load_prompts(path, split="dev"), "split", "'dev'")
    plain = write("q.txt", "a\nb\n")
    refusal(
        lambda: load_prompts(plain, label="harmful", split="test"),
        "No prompt is in this",
        "not div",
    )


def test_limit_is_per_class_balanced_twinned_and_deterministic(write, pairs):
    path = write("p.jsonl", pairs(12))
    for limit in (1, 2, 5, 12, 99):
        ps = load_prompts(path, limit=limit)
        n = min(limit, 12)
        assert sum(ps.labels) == n and len(ps) == 2 * n
        assert {p.twin_of for p in ps} == set(ps.ids)
        assert ps.hash == load_prompts(path, limit=limit).hash
    assert load_prompts(path, limit=12).hash == load_prompts(path).hash
    for limit in (0, -1):
        refusal(lambda limit=limit: load_prompts(path, limit=limit), "at least 1")


def test_limit_spreads_over_splits_and_categories(write, records):
    rows = [
        records(n, label, category=f"c{n // 20}", split="train" if n % 4 else "test")
        for n in range(60)  # Sorted by category: a plain head would see one only.
        for label in ("harmful", "harmless")
    ]
    ps = load_prompts(write("p.jsonl", rows), limit=12)
    assert {p.category for p in ps} == {"c0", "c1", "c2"}
    assert sum(p.split == "test" for p in ps) == 6  # A quarter, as in the whole.
    assert ps.ids == [r["id"] for r in rows if r["id"] in set(ps.ids)]  # Order is kept.


def test_limit_takes_all_framings_of_an_intent_while_there_is_room(write, records):
    framings = ("plain", "fictional", "domain")
    rows = [
        records(
            n,
            label,
            id=f"{n}-{framing}-{label}",
            twin_of=f"{n}-{framing}-{other}",
            framing=framing,
            turns=[{"role": "user", "content": f"{framing} {label} {n}"}],
        )
        for framing in framings  # Sorted by framing: a plain head would see one only.
        for n in range(6)
        for label, other in (("harmful", "harmless"), ("harmless", "harmful"))
    ]
    path = write("p.jsonl", rows)
    ps = load_prompts(path, limit=9)
    assert Counter((p.intent_id, p.framing, p.label) for p in ps) == Counter(
        (f"i{n}", framing, label)
        for n in range(3)  # One of each category.
        for framing in framings
        for label in ("harmful", "harmless")
    )
    ps = load_prompts(path, limit=4)
    assert sorted(Counter(p.intent_id for p in ps).values()) == [2, 6]
    assert {p.twin_of for p in ps} == set(ps.ids)


def test_limit_without_structure_is_the_head_and_the_smaller_class_decides(write):
    rows = [{"prompt": f"bad {i}", "label": "harmful"} for i in range(3)]
    rows += [{"prompt": f"good {i}", "label": "harmless"} for i in range(9)]
    ps = load_prompts(write("p.jsonl", rows), limit=5)
    assert [p.text for p in ps] == [f"bad {i}" for i in range(3)] + [f"good {i}" for i in range(3)]
    one = load_prompts(write("q.txt", "a\nb\nc\n"), label="harmful", limit=2)
    assert [p.text for p in one] == ["a", "b"]


# --- pairs of files -----------------------------------------------------------------------------


def test_pair_of_files(write):
    bad, good = write("bad.txt", "b1\nb2\n"), write("good.csv", "prompt\ng1\ng2\ng3\n")
    ps = load_pair(bad, good)
    assert ps.name == "bad+good" and ps.labels == [1, 1, 0, 0, 0]
    assert ps.ids[0] == "harmful-bad-1" and ps.ids[-1] == "harmless-good-4"
    assert len({p.intent_id for p in ps}) == 5
    assert load_pair(bad, good, limit=1).labels == [1, 0]
    assert load_pair(bad, good, limit=9).labels == [1, 1, 0, 0]


def test_pair_keeps_ids_apart_links_twins_and_keeps_given_intents(write):
    bad = [{"id": "x", "prompt": "b1", "twin_of": "y"}, {"id": "z", "prompt": "b2"}]
    good = [{"id": "y", "prompt": "g1"}, {"id": "z", "prompt": "g2", "intent_id": "mine"}]
    ps = load_pair(write("bad.jsonl", bad), write("good.jsonl", good))
    assert ps.ids == ["harmful-x", "harmful-z", "harmless-y", "harmless-z"]
    assert [p.intent_id for p in ps] == ["harmful-x", "harmful-z", "harmful-x", "mine"]
    assert ps[0].twin_of == "harmless-y"


def test_pair_refuses_a_prompt_in_both_files_and_a_contradicting_label(write):
    bad, good = write("bad.txt", "one\nsame\n"), write("good.txt", "same\n")
    refusal(
        lambda: load_pair(bad, good), "harmful and harmless", "bad.txt, line 2; good.txt, line 1"
    )
    labelled = write("l.jsonl", [{"prompt": "x", "label": "harmful"}])
    refusal(lambda: load_pair(bad, labelled), "contradicts", "l.jsonl, line 1")


def test_loading_prompts_imports_nothing_heavy():
    code = (
        "import sys\n"
        "import refusaldir.prompts.load, refusaldir.prompts.render, refusaldir.prompts.hub\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'datasets', 'numpy', 'transformer_lens'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, ""), run.stderr
