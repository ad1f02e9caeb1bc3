import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from prime_xmc.training.continuation import (
    binding_settings,
    check_origin,
    continuing_command,
    quoted,
    read_origin,
    resuming_command,
)

ORIGIN = {
    "settings": {"seed": 0, "dataset.lr": 5e-4, "optimizer.lr": 5e-4},
    "data_fingerprint": "abc",
    "tokenizer": "t",
    "validation_queries": "v",
    "command": "python -m prime_xmc.train dataset=custom",
}
PATH = Path("run/checkpoints/last.ckpt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"seed": 1, "dataset.lr": 5e-4, "optimizer.lr": 5e-4}}, "seed: 0 in the checkpoint, 1 given"),
        (
            {"settings": {"seed": 0, "dataset.lr": 1.0, "optimizer.lr": 1.0}},
            r"dataset\.lr, optimizer\.lr: 0\.0005 in the checkpoint, 1\.0 given",
        ),
        ({"data_fingerprint": "def"}, "data set of the checkpoint is another one .*abc in the checkpoint, def now"),
        ({"tokenizer": "u"}, "tokenizer of the checkpoint is another one"),
        ({"validation_queries": "w"}, "seed, dataset.num_validation: other queries were held out"),
    ],
)
def test_what_is_not_of_the_same_run_is_refused_with_the_way_out(changes, message):
    with pytest.raises(ValueError, match=message) as refused:
        check_origin(PATH, ORIGIN, ORIGIN | changes)
    assert str(refused.value).endswith("prime_xmc.train dataset=custom ckpt_path=run/checkpoints/last.ckpt")


def test_the_same_run_and_one_of_version_0_1_0(caplog):
    check_origin(PATH, ORIGIN, ORIGIN)
    assert not caplog.records
    check_origin(PATH, None, ORIGIN)
    assert "could not be checked" in caplog.text


def test_a_run_of_before_a_setting_came_or_was_renamed_is_the_same():
    before = {"seed": 0, "optimizer.make.sparse._target_": "torch.optim.SparseAdam"}
    now = {
        "seed": 0,
        "optimizer.make.sparse._target_": "prime_xmc.training.optimizers.RowAdam",
        "sampling.leave_one_out": 0.0,
    }
    check_origin(PATH, ORIGIN | {"settings": before}, ORIGIN | {"settings": now})
    check_origin(PATH, ORIGIN | {"settings": {"a": 32, "b": [1]}}, ORIGIN | {"settings": {"a": "32", "b": ["1"]}})
    with pytest.raises(ValueError, match=r"sampling\.leave_one_out: 0 in the checkpoint, 0\.5 given"):
        check_origin(PATH, ORIGIN | {"settings": before}, ORIGIN | {"settings": now | {"sampling.leave_one_out": 0.5}})


@pytest.mark.parametrize(
    ("override", "binds"),
    [
        ("seed=1", True),
        ("loss.gamma_min=0.05", True),
        ("sampling.batch_size=64", True),
        ("dataset.lr=1e-3", True),
        ("model=prime_lite", True),
        ("callbacks.clusters.every_n_epochs=3", True),
        ("trainer.precision=bf16-true", True),
        ("run_dir=elsewhere", False),
        ("cache_dir=elsewhere", False),
        ("logger=tensorboard", False),
        ("callbacks.progress=null", False),
        ("callbacks.checkpoint.save_top_k=-1", False),
        ("dataset.max_epochs=30", False),
        ("trainer.max_epochs=30", False),
        ("trainer.devices=2", False),
        ("dataset.validate_every=1", False),
        ("test=false", False),
        ("index=exact", False),
        ("export_every_n_epochs=1", False),
    ],
)
def test_which_settings_bind_a_continued_run(compose, override, binds):
    first, second = (binding_settings(compose("run_dir=a", *more)) for more in ([], [override]))
    assert (first != second) is binds


@pytest.mark.parametrize(
    ("target", "binds"),
    [
        ("lightning.pytorch.callbacks.ModelCheckpoint", False),
        ("lightning.pytorch.callbacks.GradientAccumulationScheduler", True),
    ],
)
def test_a_further_callback_binds_unless_it_only_looks_on(compose, target, binds):
    further = compose("run_dir=a", f"+callbacks.further={{_target_: {target}, dirpath: b}}")
    assert (binding_settings(compose("run_dir=a")) != binding_settings(further)) == binds


def test_settings_are_resolved_and_plain():
    config = OmegaConf.create({"run_dir": "a", "path": "${run_dir}/x", "lr": "${rate}", "rate": 1.0, "list": [1, 2]})
    settings = binding_settings(config)
    assert settings["lr"] == 1.0
    assert settings["list"] == [1, 2]
    assert settings == binding_settings(OmegaConf.merge(config, {"run_dir": "b"}))


@pytest.mark.parametrize("value", ["runs/1", "my runs", "it's", "a=b,c#d(e)[f]{g}", "ü", "ends with \\", "\\'", "a\\b"])
def test_hydra_reads_a_quoted_value_as_it_was(value):
    override = OverridesParser.create().parse_override(f"key={quoted(value)}")
    assert str(override.value()) == value


def test_the_command_of_this_process_continues_with_its_own_settings(monkeypatch):
    arguments = ["dataset=custom", "dataset.dir=my data", "ckpt_path=old.ckpt", "hydra.run.dir=x", "+a.b=1"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/train.py", *arguments])
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "prime_xmc.train", *arguments])
    main = SimpleNamespace(__spec__=SimpleNamespace(name="prime_xmc.train"))
    monkeypatch.setitem(sys.modules, "__main__", main)
    command = continuing_command(hydra__run__dir="y", ckpt_path=Path("a b/last.ckpt"))
    kept = ["dataset=custom", "dataset.dir=my data", "+a.b=1"]
    assert shlex.split(command) == [
        *("python3", "-m", "prime_xmc.train"),
        *kept,
        "hydra.run.dir=y",
        "ckpt_path='a b/last.ckpt'",
    ]
    other = shlex.split(continuing_command(hydra__sweep__dir="y"))
    assert "ckpt_path=old.ckpt" in other, "where a run or a sweep begins is one of its settings"
    assert "ckpt_path=old.ckpt" not in shlex.split(continuing_command(without=["ckpt_path"]))
    main.__spec__ = None
    assert continuing_command(ckpt_path=PATH) is None, "a script of the user's own"
    monkeypatch.setattr(sys, "argv", ["/bin/prime-xmc-train", "seed=1"])
    assert continuing_command(ckpt_path=PATH) == f"/bin/prime-xmc-train seed=1 ckpt_path={PATH}"


def test_a_checkpoint_that_is_missing_or_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: not found; expected <run>/checkpoints/last\.ckpt"):
        read_origin(tmp_path / "nowhere")
    torch.save({"state_dict": {}}, tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match="holds no training"):
        read_origin(tmp_path / "weights.ckpt")


@pytest.mark.parametrize(
    ("program", "command"),
    [("prime-xmc-train", "/bin/prime-xmc-train --trust-config"), ("prime-xmc-reproduce", "-m prime_xmc.train")],
)
def test_the_command_that_continues_a_run_is_one_that_can(monkeypatch, program, command):
    monkeypatch.setattr(sys, "argv", [f"/bin/{program}", "seed=1"])
    monkeypatch.setenv("PRIME_XMC_TRUST_CONFIG", "1")
    assert resuming_command(Path("run")).endswith(f"{command} resume=run")


@pytest.mark.parametrize(
    ("config", "trusts"),
    [
        ("loss:\n  contrast:\n    _target_: my_losses.SigLIP\n", True),
        ("classify_settings:\n- loss._target_=my_losses.Rare\n", True),
        ("optimizer:\n  make:\n    _target_: torch.optim.AdamW\nclassify_settings: []\n", False),
        ("encoder:\n  _target_: prime_xmc.model.encoder.TextEncoder\n", False),
    ],
)
def test_the_command_trusts_the_configuration_of_a_run_with_code_of_ones_own(monkeypatch, tmp_path, config, trusts):
    monkeypatch.setattr(sys, "argv", ["/bin/prime-xmc-train"])
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(config)
    option = "--trust-config " if trusts else ""
    assert resuming_command(tmp_path).endswith(f"/bin/prime-xmc-train {option}resume={tmp_path}")
