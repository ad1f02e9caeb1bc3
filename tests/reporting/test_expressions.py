import pytest

from prime_xmc import resolvers  # noqa: F401  registers the resolvers of the configuration files
from prime_xmc.reporting.expressions import cache_folder, finite_numbers, is_pure, load_yaml, resolved, without_machine


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "${dataset.lr}",
        "${.max_epochs}",
        "a ${b} c",
        "${frozen_layers:4,${.implementation},${.pretrained}}",
        "${half:${free_vectors:${dataset.num_labels}}}",
        r"${oc.select:dataset.token_pattern,'(?u)\b\w+\b'}",
        "${oc.select:dataset.token_pattern,null}",
    ],
)
def test_expressions_of_the_configuration_are_pure(text):
    assert is_pure(text)


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:TOKEN}",
        "${ oc.env:TOKEN}",
        "${oc.env :TOKEN}",
        "${oc.env:TOKEN,none}",
        "${${word}:TOKEN}",
        "${oc.${part}:TOKEN}",
        "${half:${oc.env:TOKEN}}",
        "${half:'${oc.env:TOKEN}'}",
        "${half:\\${oc.env:TOKEN}}",
        "${oc.decode:${a}}",
        "${hydra:runtime.cwd}",
        "${now:%Y}",
        "${package:os}",
        "${a[${oc.env:TOKEN}]}",
        "${unknown:1}",
        "${oc.select:a,'${oc.env:TOKEN}'}",
        "${oc.select:a,${oc.env:TOKEN}}",
        "${oc.select:${word}}",
    ],
)
def test_what_asks_the_machine_stays_text(text, monkeypatch):
    monkeypatch.setenv("TOKEN", "hunter2")
    config = without_machine({"word": "oc.env", "part": "env", "a": "${oc.env:TOKEN}", "stolen": text})
    assert "hunter2" not in str(resolved(config))
    assert "${" not in config["stolen"]


def test_references_have_values():
    config = {"dataset": {"size": 8, "half": "${half:${.size}}"}, "also": "${dataset.size}", "text": "n=${also}"}
    assert resolved(config) == {"dataset": {"size": 8, "half": 4}, "also": 8, "text": "n=8"}
    chosen = {"dataset": {"word": "a+"}, "there": "${oc.select:dataset.word,'b'}", "missing": r"${oc.select:no,'\S'}"}
    assert resolved(chosen) == {"dataset": {"word": "a+"}, "there": "a+", "missing": r"\S"}


def test_expressions_that_double_one_another_are_refused():
    config = {f"k{i}": f"${{k{i + 1}}}" * 4 for i in range(20)} | {"k20": "x" * 10}
    with pytest.raises(ValueError, match="larger than"):
        resolved(config)
    config = {f"k{i}": f"${{oc.select:k{i + 1},''}}" * 4 for i in range(20)} | {"k20": "x" * 10}
    with pytest.raises(ValueError, match="larger than"):
        resolved(config)


def test_expressions_that_refer_to_themselves_are_refused():
    with pytest.raises(ValueError, match="refers to itself"):
        resolved({"a": "${b}", "b": "${a}"})


def test_aliases_are_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n")
    with pytest.raises(ValueError, match=r"config\.yaml: not readable as YAML \(it has the alias \*a"):
        load_yaml(path)


def test_deep_files_are_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("[" * 1000 + "]" * 1000)
    with pytest.raises(ValueError, match="more than 30 levels"):
        load_yaml(path)


def test_tags_make_no_objects(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a: !!python/object/apply:os.system ['echo']\n")
    with pytest.raises(ValueError, match="not readable as YAML"):
        load_yaml(path)


def test_the_folder_of_prepared_data():
    own = "${oc.env:PRIME_XMC_CACHE,outputs/cache}"
    assert cache_folder(own, {}) == "outputs/cache"
    assert cache_folder(own, {"PRIME_XMC_CACHE": "/data"}) == "/data"
    assert cache_folder("/somewhere", {}) == "/somewhere"
    assert cache_folder("${oc.env:TOKEN}", {"TOKEN": "hunter2"}) is None
    assert cache_folder(None, {}) is None


def test_metrics_are_numbers(tmp_path):
    kept = {"test/P@1": 0.5, "torch_version": "2.6", "train/passes_note": "short", "seed": 0}
    without = {"val/P@1": None, "train/cpu_seconds": float("inf"), "test/P@3": float("nan")}
    assert finite_numbers(tmp_path, kept | without) == kept
    for name in ("test/P@1", "peak_rss_bytes"):
        with pytest.raises(ValueError, match=f"'{name}' is '<b>', expected a number"):
            finite_numbers(tmp_path, {name: "<b>"})
