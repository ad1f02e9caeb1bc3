import pytest
from omegaconf import OmegaConf

import prime_xmc.resolvers  # noqa: F401  (it registers resolvers)
from prime_xmc.command_line.targets import check_file_of_run, check_targets, is_run_folder
from prime_xmc.conf_files import config_dir
from prime_xmc.run_files import TRUST_VARIABLE


def check(content, given=()):
    check_targets(OmegaConf.create(content), given, config_dir(), "run/.hydra")


@pytest.mark.parametrize(
    "target",
    [
        "prime_xmc.model.losses.PrimeLoss",
        "prime_xmc.model.losses.NotInTheConfiguration",
        "prime_xmc.data.synthetic.write_synthetic",
        "torch.optim.AdamW",
        "torch.optim.lr_scheduler.ConstantLR",
        "lightning.pytorch.Trainer",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.loggers.CSVLogger",
        "transformers.get_cosine_schedule_with_warmup",
    ],
)
def test_parts_of_a_training_are_made(target):
    check({"a": {"b": [{"_target_": target}]}})


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "my_losses.SigLIP",
        "torch.load",
        "torch.hub.load",
        "torch.optim.adam.torch.hub.load",
        "torch.optim.Adam.x.y",
        "torch.utils.cpp_extension.load",
        "transformers.pipeline",
        "transformers.AutoModel.from_pretrained",
        "lightning.pytorch.callbacks.callback.os.system",
        "prime_xmc.files.write_text",
        "prime_xmc.app.run_app",
        "prime_xmc.model.losses.torch.hub.load",
        "hydra.utils.get_method",
        "numpy.load",
        "joblib.load",
        "prime_xmc.baselines.environments.LibraryEnvironment",  # installs packages and runs the Python of a folder
    ],
)
def test_other_targets_are_refused_with_their_key(target, monkeypatch):
    with pytest.raises(ValueError, match=r"run/\.hydra: a\.b\.0\._target_ is .*add --trust-config"):
        check({"a": {"b": [{"_target_": target}]}})
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    check({"a": {"b": [{"_target_": target}]}})


def test_a_target_that_is_put_together_is_seen_as_what_it_is():
    with pytest.raises(ValueError, match=r"a\._target_ is 'os\.system'"):
        check({"a": {"_target_": "${b}.system"}, "b": "os"})
    with pytest.raises(ValueError, match=r"a\._target_ is '\$\{nothing\}"):
        check({"a": {"_target_": "${nothing}"}})


@pytest.mark.parametrize(
    "text",
    [
        "${oc.decode:${b}}",
        "${ oc.decode: ${b}}",
        "${oc.create:${oc.decode:${b}}}",
        "${${d}:${b}}",
        "${by_device:cpu,${oc.decode:${b}},0}",
        "\\${oc.decode:\\${b}}",
        "${oc.select:nothing,${oc.decode:'${b}'}}",
    ],
)
def test_a_target_that_pieces_of_text_hide_is_refused(text, monkeypatch):
    content = {"loss": {"contrast": text}, "b": "{_${c}_: os.getpid}", "c": "target", "d": "oc.decode"}
    if not text.startswith("\\"):
        assert OmegaConf.create(content).loss.contrast == {"_target_": "os.getpid"}  # which Hydra would call
    with pytest.raises(ValueError, match=r"loss\.contrast is .*--trust-config"):
        check(content)
    check(content, given=["loss"])
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    check(content)


def test_a_target_is_written_as_it_is():
    with pytest.raises(ValueError, match=r"a\._target_ is .*by_device"):  # the device may be another later
        check({"a": {"_target_": "${by_device:${b},torch.nn.Linear,torch.nn.Bilinear}"}, "b": "cpu"})


def test_expressions_of_this_package_are_resolved():
    values = (
        "${a.b}",
        "${oc.env:PRIME_XMC_CACHE,outputs/cache}",
        "${by_device:${x},4,20}",
        "${half:${a.0}}",
        "50 % of $",
    )
    check({"a": [*values], "x": "cpu"})


@pytest.mark.parametrize(
    "path", sorted(config_dir().rglob("*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_configurations_of_this_package_are_run(path):
    if path.stem in ("attentionxml", "xr_linear", "xr_transformer"):  # they would make an environment
        with pytest.raises(ValueError, match=r"environment\._target_ is .*LibraryEnvironment"):
            check(OmegaConf.load(path))
    else:
        check(OmegaConf.load(path))


def test_settings_of_a_later_stage_are_looked_at():
    check({"classify_settings": ["trainer.max_epochs=2", "optimizer.make._target_=torch.optim.Adam"]})
    for setting in ("loss._target_=os.system", "+x={_target_: os.system}", "x._target_='os.system'", "_target_=${b}"):
        with pytest.raises(ValueError, match=r"classify_settings\.\d is"):
            check({"b": "os.system", "classify_settings": ["seed=1", setting]})


def test_what_the_command_line_sets_is_the_user_s_own():
    content = {"loss": {"contrast": {"_target_": "my.Loss"}}, "index": {"_target_": "my.Index"}}
    check(content, given=["loss.contrast._target_", "index"])
    with pytest.raises(ValueError, match=r"index\._target_ is 'my\.Index'"):
        check(content, given=["loss.contrast._target_", "ind"])


def test_the_folder_of_a_run(tmp_path):
    assert is_run_folder(tmp_path / "run" / ".hydra")
    assert not is_run_folder(tmp_path)
    (tmp_path / "overrides.yaml").write_text("[]")
    assert is_run_folder(tmp_path)


@pytest.mark.parametrize("key", ["hydra", "defaults"])
def test_a_file_of_a_run_sets_up_nothing_of_hydra(tmp_path, key, monkeypatch):
    path = tmp_path / "config.yaml"
    path.write_text("seed: 0\n")
    check_file_of_run(path)
    path.write_text(f"seed: 0\n{key}: {{}}\n")
    with pytest.raises(ValueError, match=rf"config\.yaml has the key {key}.*--trust-config"):
        check_file_of_run(path)
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    check_file_of_run(path)


def test_objects_of_yaml_are_not_made(tmp_path):
    (tmp_path / "config.yaml").write_text("a: !!python/object/apply:os.system [x]\n")
    with pytest.raises(ValueError, match="not readable as YAML"):
        check_file_of_run(tmp_path / "config.yaml")


@pytest.mark.parametrize("header", ["# @package hydra", "#@package hydra.launcher", "  # @package _group_"])
def test_a_file_of_a_run_is_put_nowhere_else(tmp_path, header):
    (tmp_path / "config.yaml").write_text(f"# settings\n{header}\n_target_: os.getpid\n")
    with pytest.raises(ValueError, match=r"config\.yaml has the line .*@package.*--trust-config"):
        check_file_of_run(tmp_path / "config.yaml")


def test_options_of_hydra_beside_it_are_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "hydra" / "launcher").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"hydra: no run has options of Hydra.*--trust-config"):
        check_file_of_run(tmp_path / "config.yaml")


def test_aliases_in_a_file_of_a_run_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    path.write_text("a: &a [1]\nb: *a\n")
    with pytest.raises(ValueError, match=r"config\.yaml has the alias \*a.*--trust-config"):
        check_file_of_run(path)
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    check_file_of_run(path)
