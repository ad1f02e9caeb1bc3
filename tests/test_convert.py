import pytest

from prime_xmc.app import compose
from prime_xmc.convert import run


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
    with pytest.raises(ValueError, match=r"needs duckdb: pip install 'prime_xmc\[tables\]'"):
        run(compose("convert", ["queries=a.csv", f"output={tmp_path}/out"]))
