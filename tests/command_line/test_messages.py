"""What the user is told about an error."""

import errno
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from prime_xmc.command_line.arguments import UnknownOptionError
from prime_xmc.command_line.messages import nearest, option_message, user_message
from prime_xmc.export.label_tables import copy_model
from prime_xmc.index.search import FaissSearch
from prime_xmc.training.debugging import check_profiler


def raised(call, *arguments, **options) -> Exception:
    with pytest.raises(Exception) as error:  # noqa: PT011
        call(*arguments, **options)
    return error.value


def test_our_own_errors_are_told_without_their_place():
    assert (
        user_message(raised(check_profiler, "foo"))
        == "trainer.profiler=foo: expected simple, advanced, pytorch or null"
    )


def test_a_model_folder_that_is_there_already_is_no_defect(tmp_path):
    assert user_message(raised(copy_model, tmp_path / "a", tmp_path)) == (
        f"{tmp_path} exists already: name a new folder, or that of the model to change it in place"
    )


def test_a_defect_is_not_explained_away():
    assert user_message(raised(np.reshape, [1, 2, 3], (2, 2))) is None
    assert user_message(KeyError("x")) is None


def test_a_file_that_cannot_be_used_is_named(tmp_path):
    assert user_message(raised(Path("/proc/nowhere").mkdir)) == "/proc/nowhere: No such file or directory"
    told = user_message(OSError(errno.ENOSPC, "No space left on device", "x"))
    assert str(told).startswith("x: No space left on device; free some space there")


def test_a_home_folder_of_nobody():
    told = user_message(raised(Path("~nobody_is_called_so/x").expanduser))
    assert told is not None
    assert told.startswith("a path begins with ~ and the name of no user")


def test_a_missing_extra_is_told_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert str(user_message(raised(FaissSearch))).startswith(
        'Faiss is not installed: pip install ".[faiss-cpu]" in the clone'
    )


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            {"_target_": "mypkg.losses.SigLIP"},
            r"loss: mypkg.losses.SigLIP cannot be imported \(No module named 'mypkg'\).*PYTHONPATH",
        ),
        (
            {"_target_": "prime_xmc.model.losses.SigLIP"},
            r"loss: prime_xmc.model.losses.SigLIP cannot be imported \(.*SigLIP",
        ),
        (
            {"_target_": "prime_xmc.index.search.ExactSearch", "gamma_min": 1},
            r"loss.gamma_min: prime_xmc.index.search.ExactSearch takes no such argument. Remove .*\(~loss.gamma_min\)",
        ),
        (
            {"_target_": "lightning.pytorch.Trainer", "accelerator": "cpu", "precision": 99},
            "loss: Precision 99 is invalid",
        ),
        ({"_target_": "lightning.pytorch.Trainer", "accelerator": "abacus"}, "loss: .*abacus"),
        ({"_target_": "prime_xmc.training.tracking.LogHistograms", "every_n_steps": 0}, "expected every_n_steps of at"),
    ],
)
def test_an_object_that_cannot_be_made_is_told_by_its_cause(node, message):
    config = OmegaConf.create({"loss": node})
    error = raised(instantiate, config.loss)
    assert isinstance(error, InstantiationException)
    told = user_message(error)
    assert told is not None
    assert re.match(message, told)
    assert "\n" not in told


def test_a_defect_in_an_object_is_not_explained_away():
    config = OmegaConf.create({"x": {"_target_": "torch.device", "_args_": ["abacus"]}})
    assert user_message(raised(instantiate, config.x)) is None


def test_an_interpolation_that_leads_nowhere_is_named():
    config = OmegaConf.create({"seed": "${nowhere}"})
    assert user_message(raised(lambda: config.seed)) == "Interpolation key 'nowhere' not found (at seed)"


def test_an_option_that_there_is_not_is_taken_for_a_setting():
    keys = ["trainer.max_epochs", "optimizer.lr", "seed"]
    message = option_message(UnknownOptionError("--max-epochs", "3"), keys)
    assert message == (
        "there is no option --max-epochs. Settings are written key=value, without dashes: did you mean "
        "trainer.max_epochs=3? `--help` lists keys, groups and options"
    )
    assert "did you mean" not in option_message(UnknownOptionError("--zzz", ""), keys)


def test_the_nearest_keys_come_first():
    assert nearest("gamma_max", ["seed", "loss.gamma_min", "loss.gamma_max"]) == ["loss.gamma_max", "loss.gamma_min"]


def test_a_configuration_file_that_is_no_yaml_is_told_in_one_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("seed: 1\nseed: 2\n")
    told = user_message(raised(OmegaConf.load, path))
    assert told is not None
    assert f'found duplicate key seed in "{path}", line 2, column 1' in told
    assert "\n" not in told
