import json
from pathlib import Path

import numpy as np
import pytest

from prime_xmc.auditing.audit_data import Audit, audit, write_filters
from prime_xmc.auditing.summary import summary
from prime_xmc.data.raw import RawFiles, read_filter

LABELS = ["cat", "dog", "bird"]


def write(folder: Path, labels: list, train: list, test: list | None = None, **options) -> RawFiles:
    """Write raw files: texts (or records) of labels, and (text, label ids) of queries."""
    folder.mkdir(exist_ok=True)
    files = {"lbl": [{"title": label} if isinstance(label, str) else label for label in labels]}
    for name, queries in (("trn", train), ("tst", test)):
        if queries is not None:
            files[name] = [
                {"uid": f"{name}-{row}", "title": text, "target_ind": positives}
                for row, (text, positives) in enumerate(queries)
            ]
    for row, label in enumerate(files["lbl"]):
        label.setdefault("uid", f"l{row}")
    for name, records in files.items():
        (folder / f"{name}.json").write_text("".join(json.dumps(record) + "\n" for record in records))
    return RawFiles(folder, "toy", num_test=None, **options)


def kinds(found: Audit) -> dict[tuple[str, str], int]:
    return {(finding.kind, finding.file): finding.count for finding in found.findings}


def example(found: Audit, kind: str) -> tuple[int, str, str]:
    (finding,) = [finding for finding in found.findings if finding.kind == kind]
    first = finding.examples[0]
    return first.line, first.text, first.other


def test_clean_data(tmp_path):
    found = audit(write(tmp_path, LABELS, [("meows", [0]), ("barks", [1]), ("sings", [2])], [("purrs", [0])]))
    assert found.findings == []
    assert found.counts == {
        "training queries": 3,
        "test queries": 1,
        "labels": 3,
        "training pairs": 3,
        "labels per training query": 1.0,
        "training queries per label": 1.0,
    }
    assert found.num_new_filtered == {"train": 0, "test": 0}


def test_findings_of_single_lines(tmp_path):
    train = [
        ("", [0]),
        ("  ", [1]),
        ("caf\ufffd", [2]),
        ("cafÃ© and â€œquotesâ€", [0]),
        ("a\x00b", [1]),
        ("nothing", []),
        ("café “quotes” naïve Ñandú 中文 عربي 😀", [2]),  # nothing is wrong with it
    ]
    found = audit(write(tmp_path, [*LABELS[:2], ""], train))
    assert kinds(found) == {
        ("empty_query", "trn.json"): 2,
        ("empty_label", "lbl.json"): 1,
        ("replacement_character", "trn.json"): 1,
        ("mojibake", "trn.json"): 1,
        ("control_character", "trn.json"): 1,
        ("query_without_labels", "trn.json"): 1,
    }
    assert example(found, "mojibake") == (4, "cafÃ© and â€œquotesâ€", "")
    (empty,) = [finding for finding in found.findings if finding.kind == "empty_query"]
    assert (empty.total, empty.share, [each.line for each in empty.examples]) == (7, 2 / 7, [1, 2])


def test_repetitions(tmp_path):
    train = [("meow meow", [0]), ("bark", [1]), ("meow meow", [0]), ("bark", [2])]
    test = [("bark", [1]), ("new", [0])]
    found = audit(write(tmp_path, ["cat", "dog", "cat"], train, test))
    assert kinds(found) == {
        ("label_text_repeated", "lbl.json"): 1,
        ("conflicting_queries", "trn.json"): 1,
        ("duplicate_query", "trn.json"): 2,
        ("leaked_query", "tst.json"): 1,
    }
    assert example(found, "label_text_repeated") == (3, "cat", "lbl.json, line 1: cat")
    assert example(found, "conflicting_queries") == (4, "bark", "trn.json, line 2: bark")
    assert example(found, "leaked_query") == (1, "bark", "trn.json, line 2: bark")
    assert [f.note for f in found.findings if f.kind == "leaked_query"] == [
        "1 of them have the same labels in both files."
    ]


def test_copies_without_labels_conflict_with_none_and_leaks_are_compared_with_all_copies(tmp_path):
    train = [("bark", [1]), ("bark", []), ("aa", [0]), ("aa", [1])]
    found = audit(write(tmp_path, LABELS, train, [("aa", [1])]))
    assert kinds(found)["conflicting_queries", "trn.json"] == 1
    assert example(found, "conflicting_queries") == (4, "aa", "trn.json, line 3: aa")
    assert [f.note for f in found.findings if f.kind == "leaked_query"] == [
        "1 of them have the same labels in both files."
    ]


def test_words_in_capitals_that_end_in_a_tilde_are_no_damaged_text(tmp_path):
    train = [("\u201cAMANHÃ\u201d e MAÇÃ\u2026", [0]), ("cafÃ© SEÃ\u2018OR", [1]), ("b", [2])]
    found = audit(write(tmp_path, LABELS, train))
    assert kinds(found)["mojibake", "trn.json"] == 1
    assert example(found, "mojibake")[0] == 2


def test_of_labels_of_one_text_a_query_is_the_one_that_it_has(tmp_path):
    found = audit(write(tmp_path, ["apple", "apple", "pie"], [("apple", [1]), ("apple", [2]), ("x", [0])]))
    assert kinds(found)["self_pair", "trn.json"] == 1
    assert found.filters["train"].tolist() == [[0, 1], [1, 0]]


def test_near_duplicates(tmp_path):
    train = [("one two three four five six", [0]), ("six five four three two one", [1]), ("other", [2])]
    test = [("One, two, three, four, five: six!", [0])]
    found = audit(write(tmp_path, ["a b c d e", "a b c d e!", "z"], train, test))
    assert kinds(found) == {
        ("near_duplicate_query", "trn.json"): 1,
        ("near_duplicate_label", "lbl.json"): 1,
        ("nearly_leaked_query", "tst.json"): 1,
    }
    few = audit(write(tmp_path, LABELS, train, test), max_compared=1)
    assert kinds(few) == {("nearly_leaked_query", "tst.json"): 1}
    assert few.findings[0].note == "The first 1 lines of each file were compared."


def test_labels(tmp_path):
    labels = [{"title": "cat", "uid": "x"}, {"title": "dog", "uid": "x"}, {"title": "bird", "uid": "y"}]
    found = audit(write(tmp_path, labels, [("meows", [0])], [("barks", [1]), ("purrs", [0])]))
    assert kinds(found) == {
        ("label_uid_repeated", "lbl.json"): 1,
        ("label_without_queries", "lbl.json"): 2,
        ("unseen_test_label", "lbl.json"): 1,
    }
    (unseen,) = [finding for finding in found.findings if finding.kind == "unseen_test_label"]
    assert (unseen.total, unseen.examples[0].line) == (2, 2)


def test_pairs_and_their_filters(tmp_path):
    """A label is an animal like the query. In training the cat has the dog; the test asks for the cat of the dog."""
    train = [("cat", [1, 0]), ("tiger", [0]), ("bird", [0])]
    test = [("dog", [0, 2])]
    source = write(tmp_path, LABELS, train, test)
    found = audit(source)
    assert kinds(found) == {
        ("self_pair", "trn.json"): 1,
        ("unfiltered_self", "trn.json"): 1,
        ("unfiltered_self", "tst.json"): 1,
        ("reciprocal_pair", "tst.json"): 1,
        ("label_without_queries", "lbl.json"): 1,
        ("unseen_test_label", "lbl.json"): 1,
    }
    assert example(found, "self_pair") == (1, "cat", "lbl.json, line 1: cat")
    assert example(found, "reciprocal_pair") == (1, "dog", "lbl.json, line 1: cat")
    assert found.num_new_filtered == {"train": 2, "test": 2}
    assert [path.name for path in write_filters(found)] == ["filter_labels_train.txt", "filter_labels_test.txt"]
    assert read_filter(tmp_path / "filter_labels_train.txt", 3, 3).tolist() == [[0, 0], [2, 2]]
    assert read_filter(tmp_path / "filter_labels_test.txt", 1, 3).tolist() == [[0, 0], [0, 1]]
    again = audit(source)
    assert not {"self_pair", "unfiltered_self", "reciprocal_pair"} & {finding.kind for finding in again.findings}
    assert write_filters(again) == []


def test_what_is_filtered_is_no_positive(tmp_path):
    """Training and metrics do not see it either."""
    source = write(tmp_path, LABELS, [("meows", [0, 1]), ("barks", [1]), ("sings", [2])], [("purrs", [0])])
    (tmp_path / "filter_labels_train.txt").write_text("1 1\n0 1\n1 1\n")
    (tmp_path / "filter_labels_test.txt").write_text("0 0\n")
    found = audit(source)
    assert found.counts["training pairs"] == 2
    assert kinds(found) == {
        ("query_without_labels", "trn.json"): 1,
        ("query_without_labels", "tst.json"): 1,
        ("no_labelled_test_query", "tst.json"): 1,
        ("label_without_queries", "lbl.json"): 1,
    }


def test_queries_that_filters_would_leave_without_a_label(tmp_path):
    found = audit(write(tmp_path, ["cat", "dog"], [("cat", [1])], [("dog", [0]), ("barks", [1])]))
    assert found.num_emptied == {"train": 0, "test": 1}
    assert "with write_filters=true 1 test queries would have no label, and count as misses" in summary(found)
    write_filters(found)
    again = audit(RawFiles(tmp_path, "toy", num_test=None))
    assert ("query_without_labels", "tst.json") in kinds(again)
    assert again.num_emptied == {"train": 0, "test": 0}


def test_many_long_texts_are_a_warning_and_few_a_remark(tmp_path):
    for num_long, kind in ((1, "long_text"), (2, "many_long_texts")):
        queries = [("a b c d e", [0, 1, 2])] * num_long + [(f"a{row}", [0]) for row in range(4 - num_long)]
        source = write(tmp_path, LABELS, queries)
        found = audit(source, count_tokens=lambda texts: [len(text.split()) for text in texts], max_length=4)
        (long,) = [finding for finding in found.findings if finding.kind.endswith(("long_text", "long_texts"))]
        assert (long.kind, long.count) == (kind, num_long)


def test_prompts_are_counted_among_the_tokens(tmp_path):
    source = write(tmp_path, LABELS, [("a b", [0, 1, 2])], query_prompt="x y z ", label_prompt="w ")
    found = audit(source, count_tokens=lambda texts: [len(text.split()) for text in texts], max_length=4)
    assert kinds(found)[("many_long_texts", "trn.json")] == 1
    assert ("many_long_texts", "lbl.json") not in kinds(found)
    assert "special tokens and the encoder's prompts included" in found.distributions[-1].note


@pytest.mark.parametrize("name", ["trn", "tst", "lbl"])
def test_an_empty_file(tmp_path, name):
    source = write(tmp_path, LABELS, [("meows", [0])], [("purrs", [0])])
    (tmp_path / f"{name}.json").write_text("")
    with pytest.raises(ValueError, match=rf"{name}\.json is empty; it needs a line for each text"):
        audit(source)


def test_filters_keep_what_they_have(tmp_path):
    source = write(tmp_path, LABELS, [("cat", [1]), ("x", [2])])
    (tmp_path / "filter_labels_train.txt").write_text("1 0\n")
    write_filters(audit(source))
    assert (tmp_path / "filter_labels_train.txt").read_text() == "0 0\n1 0\n"


def test_uids_that_are_numbers_name_nothing(tmp_path):
    labels = [{"uid": "0", "title": "cat"}, {"uid": "pkg", "title": "dog"}]
    source = write(tmp_path, labels, [("a", [0]), ("b", [1])])
    (tmp_path / "trn.json").write_text(
        '{"uid": "0", "title": "a", "target_ind": [1]}\n{"uid": "pkg", "title": "b", "target_ind": [0]}\n'
    )
    assert kinds(audit(source)) == {("unfiltered_self", "trn.json"): 1}


@pytest.mark.parametrize(
    ("labels", "train", "test", "expected"),
    [
        (LABELS, [("a", []), ("b", [])], None, ["no_labelled_query"]),
        (["cat"], [("a", [0])], None, ["one_label"]),
        (LABELS, [("", [0]), ("", [1])], None, ["all_empty"]),
    ],
)
def test_errors(tmp_path, labels, train, test, expected):
    found = audit(write(tmp_path, labels, train, test))
    assert [finding.kind for finding in found.errors] == expected
    assert found.findings[0] == found.errors[0]


def test_a_test_split_without_labels_is_no_error(tmp_path):
    """A model can be trained on the data, and its predictions for the test split be looked at."""
    found = audit(write(tmp_path, LABELS, [("a", [0])], [("b", [])]))
    assert not found.errors
    assert "no_labelled_test_query" in [finding.kind for finding in found.findings]


def test_marks_and_line_ends(tmp_path):
    source = write(tmp_path, LABELS, [("a", [0]), ("b", [1]), ("c", [2])])
    content = (tmp_path / "trn.json").read_bytes().replace(b"\n", b"\r\n")
    (tmp_path / "trn.json").write_bytes(b"\xef\xbb\xbf" + content)
    assert kinds(audit(source)) == {("byte_order_mark", "trn.json"): 1, ("windows_line_ends", "trn.json"): 1}


def test_distributions(tmp_path):
    train = [("one two three", [0, 1]), ("one", [0]), ("one two three four five six seven eight nine", [])]
    source = write(tmp_path, LABELS, train)
    found = audit(source, count_tokens=lambda texts: [len(text.split()) for text in texts], max_length=4)
    labels, queries, lengths = found.distributions
    assert dict(zip(labels.ranges, labels.counts["trn.json"], strict=True))["2"] == 1
    assert labels.counts["trn.json"] == (1, 1, 1, 0, 0, 0, 0)
    assert queries.counts == {"lbl.json": (1, 1, 1, 0, 0, 0, 0)}
    assert lengths.ranges == ("1", "2", "3", "4", "5–8", "9–16", "17+")
    assert lengths.counts["trn.json"] == (1, 0, 1, 0, 0, 1, 0)
    (cut,) = [finding for finding in found.findings if finding.kind == "long_text"]
    assert (cut.file, cut.count, cut.total) == ("trn.json", 1, 3)
    assert [each.line for each in cut.examples] == [3]


def test_json(tmp_path):
    found = audit(write(tmp_path, ["cat", "cat"], [("a", [0, 1])]))
    content = json.loads(json.dumps(found.to_json()))
    (finding,) = content["findings"]
    assert finding["kind"] == "label_text_repeated"
    assert (finding["severity"], finding["share"]) == ("warning", 0.5)
    assert finding["examples"] == [{"file": "lbl.json", "line": 2, "text": "cat", "other": "lbl.json, line 1: cat"}]
    assert content["distributions"][0]["counts"]["trn.json"] == [0, 0, 1, 0, 0, 0, 0]


def test_a_malformed_file_is_an_error_of_its_line(tmp_path):
    source = write(tmp_path, LABELS, [("a", [7])])
    with pytest.raises(ValueError, match=r"trn\.json, line 1: label id 7"):
        audit(source)


def test_fields_of_labels(tmp_path):
    (tmp_path / "lbl.json").write_text('{"name": "cat"}\n{"name": "cat"}\n')
    (tmp_path / "trn.json").write_text('{"title": "a", "body": "b", "target_ind": [0, 1]}\n')
    found = audit(RawFiles(tmp_path, "toy", ("title", "body"), ("name",), num_test=None))
    assert example(found, "label_text_repeated") == (2, "cat", "lbl.json, line 1: cat")
    assert np.isclose(found.counts["labels per training query"], 2)
