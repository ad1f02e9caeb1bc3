import json

import pytest

from prime_xmc.audit import run
from prime_xmc.composing import compose


def settings(toy_dataset, tiny_encoder_dir, tmp_path, *more):
    return compose(
        "audit",
        [
            *("encoder=local", f"encoder.source={tiny_encoder_dir}", "dataset=custom", f"dataset.dir={toy_dataset}"),
            *(f"output={tmp_path}/audit", *more),
        ],
    )


def test_command_writes_page_and_record_and_prints_what_was_found(toy_dataset, tiny_encoder_dir, tmp_path, capsys):
    found = run(settings(toy_dataset, tiny_encoder_dir, tmp_path, "dataset.max_length=10"), "a command")
    record = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert record["counts"]["training queries"] == 240
    (cut,) = [
        each for each in record["findings"] if each["kind"] == "many_long_texts" and each["file"] == "trn.json.gz"
    ]
    assert 0 < cut["count"] < cut["total"] == 240  # "[CLS] a picture of red cat and blue dog [SEP]" has ten tokens
    assert '<pre class="command">a command</pre>' in (tmp_path / "audit" / "index.html").read_text()
    printed = capsys.readouterr().out
    assert printed.startswith("240 training queries, 60 test queries, 48 labels")
    assert printed.endswith(f"{tmp_path}/audit/index.html\n")
    assert json.loads(json.dumps(found.to_json())) == record


def test_errors_end_the_command_after_the_page_is_written(tiny_encoder_dir, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "lbl.json").write_text('{"title": "a"}\n{"title": "b"}\n')
    (data / "trn.json").write_text('{"title": "a", "target_ind": []}\n')
    with pytest.raises(ValueError, match=r"makes no sense: trn\.json: no training query has a label"):
        run(settings(data, tiny_encoder_dir, tmp_path))
    assert (tmp_path / "audit" / "index.html").is_file()


def test_filters_are_written_on_request(tiny_encoder_dir, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    (data / "lbl.json").write_text('{"title": "a"}\n{"title": "b"}\n')
    (data / "trn.json").write_text('{"title": "a", "target_ind": [0, 1]}\n')
    run(settings(data, tiny_encoder_dir, tmp_path))
    assert not (data / "filter_labels_train.txt").exists()
    run(settings(data, tiny_encoder_dir, tmp_path, "write_filters=true"))
    assert (data / "filter_labels_train.txt").read_text() == "0 0\n"
    assert f"filtered pairs were added: {data}/filter_labels_train.txt\n" in capsys.readouterr().out
