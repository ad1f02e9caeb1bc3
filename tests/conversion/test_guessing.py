import re

import pytest

from prime_xmc.conversion.guessing import (
    JSON,
    LIST,
    ROW,
    TAGS,
    are_indicators,
    choose_query_columns,
    guess_separator,
    hidden_separator,
    match_references,
    numbered_alike,
    split_cell,
)


def choose(columns: list[str], sample: list[dict] | None = None, **given) -> dict:
    options = {"texts": (), "labels": None, "uid": None, "needs_labels": True} | given
    chosen = choose_query_columns(columns, sample or [], **options)
    return {name: choice.column for name, choice in chosen.items()}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["id", "text", "labels"], ("id", "text", "labels")),
        (["Title", "Label Names", "UID"], ("UID", "Title", "Label Names")),
        (["question", "tags", "title"], (None, "title", "tags")),
        (["text", "department"], (None, "text", "department")),
        (["complaint", "category"], (None, "complaint", "category")),
        (["text", "label", "labels"], (None, "text", "labels")),
    ],
)
def test_columns_by_name(columns, expected):
    chosen = choose(columns)
    assert (chosen["uid"], chosen["text"], chosen["labels"]) == expected


def test_columns_by_content():
    sample = [{"a": "x", "b": "a long text", "c": ["l"], "d": "y"}]
    assert choose(["a", "b", "c", "d"], sample) == {"text": "b", "labels": "c", "uid": None}


def test_lists_go_before_a_name_if_theirs_is_a_usual_one_too():
    vector, sentences, tags = ([{"text": "a", "label": "x", "genre": "g", name: ["p", "q"]}] for name in "vst")
    tags[0]["tags"] = tags[0].pop("t")
    sentences[0]["text"] = sentences[0].pop("s")
    assert [choose(list(rows[0]), rows)["labels"] for rows in (vector, sentences, tags)] == ["label", "label", "tags"]
    vague = [{"title": "a", "code": "c", "subjects": ["q"]}]
    assert choose(list(vague[0]), vague)["labels"] == "subjects"
    assert choose(["text", "b"], [{"text": ["One.", "Two."], "b": "x"}]) == {"text": "text", "labels": "b", "uid": None}


def test_identifier_by_its_values():
    sample = [{"ticket_id": "1", "group_id": "a", "text": "x"}, {"ticket_id": "2", "group_id": "a", "text": "y"}]
    assert choose(["group_id", "ticket_id", "text", "label"], sample)["uid"] == "ticket_id"
    assert choose(["group_id", "text", "label"], [{"group_id": "a"}, {"group_id": "a"}])["uid"] is None
    assert choose(["label_id", "text"], [{"label_id": "a"}])["uid"] is None


def test_given_columns_are_taken():
    assert choose(["text", "labels", "a", "b"], texts=("a",), labels="b", uid="text") == {
        "text": "a",
        "labels": "b",
        "uid": "text",
    }


@pytest.mark.parametrize(
    ("columns", "given", "said"),
    [
        (["text", "a", "b"], {}, "no column of labels: the columns are text, a, b; name it by labels_column="),
        (["labels"], {}, "no column of texts: the columns are labels"),
        (["text", "labels"], {"texts": ("body",)}, "text_column=body: there is no such column, only text, labels"),
    ],
)
def test_columns_that_are_missing(columns, given, said):
    with pytest.raises(ValueError, match=said):
        choose(columns, **given)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([["a"], ["b", "c"]], LIST),
        (['["a", "b"]', "[]"], JSON),
        (["['a', 'b']"], JSON),
        (["<python><c++>", "<go>", ""], TAGS),
        (["<python> <c;d>"], TAGS),
        (["<a><b>", "c"], ""),
        (["<a>", "<b>"], ""),
        (["a<b", "c>d"], ""),
        (["a;b", "c"], ";"),
        (["a|b", "c|d|e"], "|"),
        (["a\nb"], "\n"),
        (["a, b", "b, c", "c"], ","),
        (["Paris, France", "Rome, Italy"], ""),
        (["3,17", "4"], ","),
        (["3 17", "4"], " "),
        (["machine learning", "a b"], ""),
        (["a", "", "b"], ""),
        (["Arts &amp; Crafts", "Bread &#38; Wine"], ""),
        (["Arts &amp; Crafts", "R&D;Sales"], ";"),
        ([], ""),
    ],
)
def test_separator(cells, expected):
    assert guess_separator(cells) == expected


@pytest.mark.parametrize(
    ("cell", "separator", "expected"),
    [
        ("<python><c++> <a b >", TAGS, ["python", "c++", "a b"]),
        (" ", TAGS, []),
        ("a; b;;c ", ";", ["a", "b", "c"]),
        (["a ", "", "b;c"], ";", ["a", "b;c"]),
        ('["a", 3]', JSON, ["a", "3"]),
        ("['a']", JSON, ["a"]),
        (
            "['a b' 'c'\n \"d's\"]",
            JSON,
            ["a b", "c", "d's"],
        ),  # as NumPy writes it, in which Python would see one string
        ("[1 2\n 3]", JSON, ["1", "2", "3"]),
        ('["x", null, NaN]', JSON, ["x"]),
        ("['x', None, True, 2.0]", JSON, ["x", "true", "2"]),
        ("['x', nan]", JSON, ["x"]),
        ("[nan 'a']", JSON, ["a"]),
        ("Arts &amp; Crafts;R&D;b", ";", ["Arts &amp; Crafts", "R&D", "b"]),
        ("", JSON, []),
        ("a;b", "", ["a;b"]),
        ("", "", []),
    ],
)
def test_split(cell, separator, expected):
    assert split_cell(cell, separator) == expected


@pytest.mark.parametrize("cell", ["[a, b", "[02139, 10115]", "['a' 'b' ... 'c']", "['a\nb' 'c']", "[1 2 ... 3]", "3"])
def test_a_cell_that_is_no_list(cell):
    with pytest.raises(ValueError, match=f"{re.escape(repr(cell))} is not a list; give label_separator="):
        split_cell(cell, JSON)


def test_a_cell_that_is_no_tags():
    with pytest.raises(ValueError, match=r"'python, go' is not labels that are each in < and >; give label_separator="):
        split_cell("python, go", TAGS)


def test_a_name_with_a_separator_that_is_known_as_it_is():
    labels = [{"name": "A; B"}, {"name": "A"}, {"name": "B"}]
    assert match_references(["A; B", "A"], labels, ["name"]).separator == ""


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        *(
            ("<a><b>", TAGS),
            ("<a>", ""),
            ("a;b", ";"),
            ("a\tb", "\t"),
            ("12 15", " "),
            ("['a', 'b']", JSON),
            ("Arts &amp; Crafts; b", ";"),
        ),
        *((name, "") for name in ("New York, New York", "1,000", "[Deleted]", "['a']", "a b", "Arts &amp; Crafts", "")),
    ],
)
def test_what_divides_a_cell_beyond_doubt(cell, expected):
    assert hidden_separator(cell) == expected


LABELS = [{"code": "7", "name": "Paris, France"}, {"code": "8", "name": "Rome, Italy"}]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["Paris, France", "Rome, Italy"], ("name", "", 2, 2)),
        (["7,8"], ("code", ",", 2, 2)),
        (["Paris, France;Rome, Italy", "unknown"], ("name", ";", 2, 3)),
        (["<7><8>", "<8>"], ("code", TAGS, 2, 2)),
        ([["0", "1"]], (ROW, LIST, 2, 2)),
        (["8"], ("code", "", 1, 1)),
        (["7", "8", "7;new", "8;newer"], ("code", ";", 2, 4)),  # as many of which are there as of whole cells
        (["7", "8", "new;newer"], ("code", ";", 2, 4)),
    ],
)
def test_references(cells, expected):
    assert match_references(cells, LABELS, ["code", "name"]) == expected


def test_names_in_angle_brackets_that_are_known_as_they_are():
    labels = [{"name": "<div>"}, {"name": "<b><i>"}]
    assert match_references(["<div>", "<b><i>"], labels, ["name"]).separator == ""


def test_references_with_a_given_separator():
    assert match_references(["7;8"], LABELS, ["code"], "") == ("code", "", 0, 1)


def test_a_slip_is_no_separator():
    tags = ["python, java", "java, go", "go, css", "css, html", "html, python"] * 4
    assert guess_separator([*tags, "c; c++, java"]) == ","
    places = ["Paris, France", "Rome, Italy", "Nice, France"] * 7
    assert guess_separator([*places, "Paris, France; Rome, Italy"]) == ";"  # whose parts are cells of others


def test_tuples_and_sets_of_python_are_lists():
    cells = ["('x', 'y')", "{'b', 'a'}", "['z' nan]", "nan", '["w"]']
    assert guess_separator(cells) == JSON
    assert [split_cell(cell, JSON) for cell in cells] == [["x", "y"], ["a", "b"], ["z"], [], ["w"]]
    assert guess_separator(["(deprecated)", "(old)"]) == ""
    assert guess_separator(["{'a': 1}"]) == ""


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([["0", "1", "0"], ["1", "0", "0"]], True),
        ([["0.0", "1.0", "1.0"]], True),
        ([["0", "1"], ["1"]], False),
        ([["0", "1"], ["1", "0"]], False),
        ([["0"], ["1"]], False),
        ([["2", "2"], ["0", "1"]], False),
        ([], False),
    ],
)
def test_rows_of_zeros_and_ones(cells, expected):
    assert are_indicators(cells, LIST) is expected


SAME = [dict.fromkeys(["label", "label2", "label_3", "labels4", "tag_1", "tag_2", "y", "2020", "2021"], "a")]


def test_columns_that_are_numbered_go_together():
    assert numbered_alike(["text", "label", "label2", "label_3", "labels4"], SAME, "label", ["text"]) == (
        *("label", "label2", "label_3"),
    )
    assert numbered_alike(["tag_1", "other", "tag_2"], SAME, "tag_1", []) == ("tag_1", "tag_2")
    assert numbered_alike(["y", "2020", "2021"], SAME, "y", []) == ("y",)
    years = [{"label": "a", "label_2019": "a", "topic": "a", "topic_1": "0.9"}]
    assert numbered_alike(["label", "label_2019"], years, "label", []) == ("label",)
    assert numbered_alike(["topic", "topic_1"], years, "topic", []) == ("topic",)


def test_lists_go_before_a_name_with_a_number():
    rows = [{"text": "a", "code1": "X0", "skills": ["p", "q"]}]
    assert choose(list(rows[0]), rows)["labels"] == "skills"


def test_what_only_looks_like_a_list():
    assert guess_separator(['("A" series)', '("B" series)']) == ""
    assert guess_separator(["('a', 'b')", "()", "set()"]) == JSON
    with pytest.raises(ValueError, match="is not a list"):
        split_cell("{'a', ['b']}", JSON)
