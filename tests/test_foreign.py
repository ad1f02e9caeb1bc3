import json
import sysconfig

import pytest
import torch
from hostile import ENCODERS, TENSORS, make_encoder, make_tensors
from safetensors.torch import save_file

from prime_xmc.foreign import (
    DEEPEST,
    check_encoder_files,
    check_links,
    check_tensors_file,
    parse_json,
    shown,
)


def test_json_is_read():
    assert parse_json('{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}


def test_brackets_side_by_side_are_not_deep():
    assert len(parse_json("[" + ",".join(["[1]"] * 1000) + "]")) == 1000


def test_json_of_the_greatest_depth_is_read_and_no_deeper():
    assert parse_json("[" * DEEPEST + "]" * DEEPEST) is not None
    for depth in (DEEPEST + 1, 1000, 100_000):
        for text in ("[" * depth + "]" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
            with pytest.raises(ValueError, match="100 brackets within one another"):
                parse_json(text)


def test_shown_is_short():
    deep = json.loads("[" * 900 + "]" * 900)
    assert shown(deep) == "[[[[...]]]]"
    assert len(shown("x" * 10_000)) <= 80


def test_links_out_of_a_folder_are_refused(tmp_path):
    (tmp_path / "own.json").write_text("{}")
    folder = tmp_path / "model"
    (folder / "part").mkdir(parents=True)
    (folder / "a.json").write_text("{}")
    (folder / "part" / "b.json").symlink_to("../a.json")  # within the folder
    (folder / "part" / "loop").symlink_to("loop")  # leads nowhere
    check_links(folder)
    (folder / "part" / "c.json").symlink_to(tmp_path / "own.json")
    with pytest.raises(ValueError, match=r"part/c\.json is a link to .*own\.json, outside of its folder"):
        check_links(folder)
    check_links(folder, ["a.json", "part/b.json"])


def test_links_of_an_installed_package_are_allowed_and_of_a_folder_that_leads_there_not(tmp_path, monkeypatch):
    """`uv pip install --link-mode=symlink` makes them."""
    site, cache = tmp_path / "site-packages", tmp_path / "uv"
    for folder in (site / "encoder" / "model", cache):
        folder.mkdir(parents=True)
    (cache / "config.json").write_text("{}")
    (site / "encoder" / "model" / "config.json").symlink_to(cache / "config.json")
    with pytest.raises(ValueError, match="outside of its folder"):
        check_links(site / "encoder" / "model")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(site))
    check_links(site / "encoder" / "model")
    check_links(site / "encoder" / "model", ["config.json"])
    foreign = tmp_path / "foreign"
    foreign.symlink_to(site / "encoder" / "model")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").symlink_to(cache / "config.json")
    for folder in (foreign, tmp_path / "other", site / ".." / "other"):
        with pytest.raises(ValueError, match="outside of its folder"):
            check_links(folder)


def test_files_of_the_hub_s_cache_are_links_to_its_blobs(tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1f", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    (blobs / "abc").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    check_links(snapshot)
    (snapshot / "run" / "model").mkdir(parents=True)
    (snapshot / "run" / "model" / "config.json").symlink_to("../../../../blobs/abc")
    check_links(snapshot / "run" / "model")
    (tmp_path / "own").write_text("{}")
    (snapshot / "run" / "model" / "labels.jsonl").symlink_to("../../../../../own")
    with pytest.raises(ValueError, match="outside of its folder"):
        check_links(snapshot / "run" / "model")


def test_the_header_of_tensors_is_read(tmp_path):
    save_file({"rows": torch.zeros(3, 2)}, tmp_path / "a.safetensors")
    assert check_tensors_file(tmp_path / "a.safetensors")["rows"]["shape"] == [3, 2]


@pytest.mark.parametrize(("header", "length", "message"), TENSORS)
def test_tensors_that_cannot_be_there_are_refused(tmp_path, header, length, message):
    with pytest.raises(ValueError, match=message):
        check_tensors_file(make_tensors(tmp_path, header, length))


@pytest.mark.parametrize(("file", "content", "message"), ENCODERS)
def test_an_encoder_names_neither_code_nor_other_files(tmp_path, file, content, message):
    folder = make_encoder(tmp_path, file, content)
    if message is None:
        check_encoder_files(folder)
    else:
        with pytest.raises(ValueError, match=message):
            check_encoder_files(folder)


def test_names_of_the_machine_that_saved_a_tokenizer_are_passed_over(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_file": "/root/.cache/of/somebody/tokenizer.json"}')
    check_encoder_files(tmp_path)
