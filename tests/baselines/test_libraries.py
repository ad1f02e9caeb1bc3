import json
import logging
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from prime_xmc.baselines import worker
from prime_xmc.baselines.features import TfIdf
from prime_xmc.baselines.libraries import ExternalMethod, run_worker
from prime_xmc.composing import compose

LIBRARIES = [
    ("omikuji", {"min_branch_size": 2, "cluster_k": 2}, 10),
    ("omikuji", {"min_branch_size": 4, "cluster_k": 4, "cluster_balanced": False, "max_depth": 3}, 10),
    ("napkinxc", {"max_leaves": 3}, None),
]


@pytest.mark.parametrize(("library", "parameters", "beam_size"), LIBRARIES)
@pytest.mark.parametrize("label_texts", [True, False])
def test_trees_find_the_labels(words, asked, expected, library, parameters, beam_size, label_texts):
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed: pip install '.[baselines]' in the clone")
    method = ExternalMethod(
        library, parameters, TfIdf(ngrams=(1, 1)), label_texts=label_texts, beam_size=beam_size, threads=1
    )
    outcome = method.rank(words, {"val": asked, "test": words.queries}, 20)
    ids, scores = outcome.rankings["val"]
    assert [{*row[:2]} for row in ids.tolist()] == expected
    assert ids.shape == (3, 20)
    assert ids[:, 10:].max() == -1  # there are ten labels
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    assert outcome.rankings["test"][0].shape == (120, 20)
    cost = outcome.cost
    assert 0 < cost.train_cpu_seconds < 60
    assert cost.milliseconds_per_query > 0
    assert 2**20 < cost.peak_rss_bytes < 2**30  # torch, which this process has loaded, is not in that one
    assert cost.model_bytes > 100


NETWORK = "{rnn_dim: 64, linear_size: [32], embed_dropout: 0.0, encoder_dropout: 0.0}"
IN_ENVIRONMENTS = {
    "xr_linear": [],
    "xr_transformer": [
        "method.parameters.max_length=8",
        "method.parameters.first_tree={nr_splits: 2, max_leaf_size: 4}",
        "method.parameters.tree={nr_splits: 2, max_leaf_size: 4}",
        "method.parameters.matcher.num_train_epochs=1",
    ],
    "attentionxml": [
        *("method.parameters." + setting for setting in ("dim=16", "num_validation=20", r"token_pattern='(?u)\S+'")),
        *(
            "method.parameters.trainer." + setting
            for setting in (
                # There are four clusters. By more than one of them: by the first alone, an early epoch is the best.
                *("cluster_size=4", "beam_width=4", "val_metric=nDCG@2"),
                *("epochs=60", "patience=60", "learning_rate=1e-2", "batch_size=8", f"network_config={NETWORK}"),
            )
        ),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_ENVIRONMENTS)
def test_methods_in_environments_find_the_labels(words, asked, expected, name):
    """The environments are made in a folder that is kept: they take a gigabyte, and a package index."""
    folder = os.environ.get("PRIME_XMC_TEST_ENVS")
    if folder is None:
        pytest.skip("the environment variable PRIME_XMC_TEST_ENVS names no folder to make environments in")
    settings = [f"method={name}", f"envs_dir={folder}", "threads=1", "tfidf.ngrams=[1,1]", *IN_ENVIRONMENTS[name]]
    method = instantiate(compose("baseline", settings).method, _convert_="all")
    outcome = method.rank(words, {"val": asked, "test": words.queries}, 10)
    ids, scores = outcome.rankings["val"]
    if name != "attentionxml":  # which is no match for two words that it has not seen together
        assert [{*row[:2]} for row in ids.tolist()] == expected
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    known = outcome.rankings["test"][0].tolist()
    assert sum({*row[:2]} == {*words.positives[query]} for query, row in enumerate(known)) >= 108  # nine in ten
    assert outcome.cost.train_cpu_seconds > 0
    assert outcome.cost.model_bytes > 100


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("prime_xmc.baselines.libraries.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs omikuji: pip install '\.\[baselines\]' in the clone"):
        ExternalMethod("omikuji", {}, TfIdf())


def test_an_unknown_library_is_refused():
    with pytest.raises(ValueError, match=r"method\.library=fasttext: expected one of omikuji, napkinxc, xr_linear"):
        ExternalMethod("fasttext", {}, TfIdf())


def test_a_library_that_takes_vectors_wants_what_makes_them():
    with pytest.raises(ValueError, match=r"omikuji takes vectors of texts: expected method\.tfidf"):
        ExternalMethod("omikuji", {})


def test_a_pattern_of_words_that_is_no_regular_expression_is_refused(monkeypatch):
    monkeypatch.setattr("prime_xmc.baselines.libraries.find_spec", lambda name: True)
    with pytest.raises(ValueError, match=r"method\.parameters\.token_pattern=\[: not a regular expression"):
        ExternalMethod("attentionxml", {"token_pattern": "["})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["method=plt", "+method.beam_size=50"], r"method\.beam_size=50: napkinxc has no such setting"),
        (
            ["method=attentionxml", "+method.parameters.trainer.lr=1e-2"],
            r"method\.parameters\.trainer\.lr: attentionxml has no such setting; expected one of .*learning_rate",
        ),
        (
            ["method=attentionxml", "+method.parameters.epochs=1"],
            r"method\.parameters\.epochs: attentionxml has no",
        ),
        (
            ["method=xr_transformer", "+method.parameters.num_train_epochs=1"],
            r"method\.parameters\.num_train_epochs: xr_transformer has no such setting; expected one of .*matcher",
        ),
    ],
)
def test_a_setting_that_a_library_would_pass_over_is_refused(settings, message, monkeypatch):
    monkeypatch.setattr("prime_xmc.baselines.libraries.find_spec", lambda name: True)
    with pytest.raises(InstantiationException) as error:
        instantiate(compose("baseline", settings).method, _convert_="all")
    assert re.search(message, str(error.value.__cause__))


@pytest.mark.slow
def test_xr_linear_refuses_what_pecos_would_pass_over(words):
    folder = os.environ.get("PRIME_XMC_TEST_ENVS")
    if folder is None:
        pytest.skip("the environment variable PRIME_XMC_TEST_ENVS names no folder to make environments in")
    settings = ["method=xr_linear", f"envs_dir={folder}", "threads=1", "+method.parameters.max_leaf_size=20"]
    method = instantiate(compose("baseline", settings).method, _convert_="all")
    with pytest.raises(RuntimeError, match="XLinearModel of PECOS has no parameter max_leaf_size"):
        method.rank(words, {"test": words.queries}, 10)


def test_the_process_of_a_library_gets_what_chooses_its_gpu_and_its_models(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, pathlib\n"
        f"pathlib.Path({str(tmp_path / 'environment.json')!r}).write_text(json.dumps(dict(os.environ)))\n"
    )
    monkeypatch.setattr(worker, "__file__", str(script))
    given = {"CUDA_VISIBLE_DEVICES": "", "HF_HOME": "/scratch", "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "7"}
    for name, value in {**given, "PYTHONPATH": "/elsewhere", "SECRET": "1", "HF_TOKEN": "1"}.items():
        monkeypatch.setenv(name, value)
    run_worker(Path(sys.executable), tmp_path, 1, "omikuji")
    found = json.loads((tmp_path / "environment.json").read_text())
    assert {name: found[name] for name in given} == given | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    assert not {"PYTHONPATH", "SECRET", "HF_TOKEN"} & found.keys()


def test_a_process_that_fails_is_quoted(tmp_path):
    with pytest.raises(RuntimeError, match=r"ended with status 1:\n(.*\n)*.*settings\.json"):
        run_worker(Path(sys.executable), tmp_path, 1, "omikuji")


def test_the_log_tells_what_a_long_process_said_last(tmp_path, monkeypatch, caplog):
    """Of a line that a bar has written again and again, its last state; neither colours nor empty lines."""
    script, end = tmp_path / "script.py", tmp_path / "end"
    script.write_text(
        "import pathlib, time\n"
        "print('Training level 0.\\n\\rEpoch 0:   0%\\r\\x1b[31mEpoch 0:  50%\\x1b[0m\\n  \\x1b[A\\n--\\n', end='')\n"
        f"while not pathlib.Path({str(end)!r}).exists():\n"
        "    time.sleep(0.01)\n"
    )
    monkeypatch.setattr(worker, "__file__", str(script))
    monkeypatch.setattr("prime_xmc.baselines.libraries._SECONDS", 0.1)

    class End(logging.Handler):
        """Ends the process once the log has told what it said."""

        def emit(self, record):
            if "50%" in record.getMessage():
                end.touch()

    handler = End()
    logging.getLogger("prime_xmc.baselines.libraries").addHandler(handler)
    try:
        with caplog.at_level("INFO"):
            run_worker(Path(sys.executable), tmp_path, 1, "attentionxml")
    finally:
        logging.getLogger("prime_xmc.baselines.libraries").removeHandler(handler)
    assert re.fullmatch(r"attentionxml: \d+ s; it said last: Epoch 0:  50%", caplog.messages[-1])


def test_what_a_library_writes_in_between_is_in_the_folder_of_the_process(tmp_path, monkeypatch):
    """Where the input is, which may be a larger disk than /tmp, and which is removed also if the process is killed."""
    script = tmp_path / "script.py"
    script.write_text("import tempfile\ntempfile.NamedTemporaryFile(suffix='.between', delete=False)\n")
    monkeypatch.setattr(worker, "__file__", str(script))
    run_worker(Path(sys.executable), tmp_path, 1, "omikuji")
    assert len([*tmp_path.glob("*.between")]) == 1


def test_what_a_process_said_need_not_be_readable(tmp_path, monkeypatch, caplog):
    """It removes the file as what cleans a folder of temporary files may."""
    script = tmp_path / "script.py"
    script.write_text(f"import pathlib, time\npathlib.Path({str(tmp_path / 'said.txt')!r}).unlink()\ntime.sleep(1)\n")
    monkeypatch.setattr(worker, "__file__", str(script))
    monkeypatch.setattr("prime_xmc.baselines.libraries._SECONDS", 0.1)
    with caplog.at_level("INFO"):
        run_worker(Path(sys.executable), tmp_path, 1, "omikuji")
    assert caplog.messages[-1].endswith("s; it said last: nothing")
