import csv

import pytest

from prime_xmc.composing import compose
from prime_xmc.convert import run
from prime_xmc.predict import run as predict
from prime_xmc.stages import train_prototypes

AWKWARD = [
    ('a "quoted" word\nand a second line, with a comma', ["x", "y"]),
    ("a\ttab", ["x"]),
    ("مرحبا بالعالم", ["تحية", "عالم"]),
    ("你好", ["问候"]),
    ("👩‍👩‍👧 family 🏳️‍🌈", ["👪", "❤️"]),
    ("ab " * 33_333 + "c", ["y" * 100]),
    ("three hundred labels", [f"l{number:03}" for number in range(300)]),
    *((f"plain text {number}", ["x", "y"]) for number in range(13)),
]


def test_command_ends_with_what_was_found_and_the_next_command(tmp_path, capsys):
    (tmp_path / "my queries.csv").write_text("question,tags\nwhat,a;b\nwhen,b\n")
    out = tmp_path / "out"
    config = compose("convert", [f"queries={tmp_path}/my queries.csv", f"output={out}", "test_share=0"])
    assert run(config) == out
    printed = capsys.readouterr().out
    assert "  text       'question' (by its name; text_column= names another)\n" in printed
    assert "separated by ';', as in 'a', 'b' (label_separator= says otherwise)\n" in printed
    assert "\n2 training queries, 2 labels, 3 training pairs" in printed
    assert printed.endswith(f"\nNext:\n  python -m prime_xmc.train dataset=custom dataset.dir={out}\n")
    assert sorted(path.name for path in out.iterdir()) == [
        *("audit.html", "audit.json", "conversion.json", "lbl.json", "trn.json")
    ]


def test_data_that_training_refuses_are_not_called_ready(tmp_path, capsys):
    (tmp_path / "q.csv").write_text("text,label\nwhat,a\nwhen,a\n")
    run(compose("convert", [f"queries={tmp_path}/q.csv", f"output={tmp_path}/out"]))
    printed = capsys.readouterr().out
    assert "\nerror    lbl.json: there is a single label\n" in printed
    assert printed.endswith("\nTraining refuses these data until the errors above are mended.\n")


def test_without_the_engine(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs duckdb: pip install '\.\[tables\]' in the clone"):
        run(compose("convert", ["queries=a.csv", f"output={tmp_path}/out"]))


def test_awkward_texts_and_names_go_through_training_to_the_answers(tmp_path, toy_settings):
    with (tmp_path / "q.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)  # which ends lines as Windows does
        writer.writerow(["text", "labels"])
        writer.writerows([text, ";".join(labels)] for text, labels in AWKWARD)
    data = run(compose("convert", [f"queries={tmp_path}/q.csv", f"output={tmp_path}/data", "test_share=0"]))
    sized = ("dataset.num_validation=null", "dataset.num_free_vectors=null", "test=false", "trainer.max_epochs=1")
    folders = f"dataset.dir={data}", f"run_dir={tmp_path}/run", f"cache_dir={tmp_path}/cache"
    train_prototypes(compose("train", [*toy_settings, *sized, *folders, "callbacks.progress=null"]))
    given = f"model.dir={tmp_path}/run/model", f"input={tmp_path}/q.csv", f"output={tmp_path}/answers.csv"
    predict(compose("predict", [*given, "top_k=1000", "device=cpu"]))
    answers: dict[str, list[str]] = {}
    with (tmp_path / "answers.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            answers.setdefault(row["query"], []).append(row["label_uid"])
    assert list(answers) == [text for text, _ in AWKWARD]
    names = {label for _, labels in AWKWARD for label in labels}
    assert len(names) == 308
    assert all(len(found) == 308 and set(found) == names for found in answers.values())
