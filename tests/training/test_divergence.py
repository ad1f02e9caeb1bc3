import pytest
import torch
from safetensors.torch import load_file

from prime_xmc.model.finiteness import not_finite
from prime_xmc.stages import train_prototypes
from prime_xmc.training.divergence import DivergenceWatch

NAN, INF = float("nan"), float("inf")


def watch(*steps):
    made = DivergenceWatch()
    for step, (loss, regulariser) in enumerate(steps):
        made.note(step, ("loss", "text", "regulariser"), torch.tensor([loss, 1.0, regulariser]))
    return made


def test_finite_losses_pass():
    DivergenceWatch().require_finite()
    watch((1.0, 2.0), (3.0, NAN)).require_finite()  # a term that does not count


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_the_first_step_is_named_with_its_terms(value):
    diverged = watch((1.0, 2.0), (value, value), (NAN, 1.0), (1.0, 1.0))
    for _ in range(2):  # whoever asks again is told again
        with pytest.raises(ValueError, match=r"not finite at step 1 .*nor are its terms regulariser\."):
            diverged.require_finite()


def test_without_a_term_to_blame():
    with pytest.raises(ValueError, match=r"at step 0 .*all of them are"):
        watch((NAN, 1.0)).require_finite()


def test_steps_that_nobody_asks_about_are_looked_at_in_the_end():
    with pytest.raises(ValueError, match="at step 3"):
        watch(*[(NAN if step == 3 else 1.0, 1.0) for step in range(1000)])


def test_tensors_that_are_not_finite_are_named():
    watching = DivergenceWatch("Do this")
    watching.require_finite_tensors("weights", [("a", torch.ones(2))], 7)
    bad = [(name, torch.tensor([1.0, NAN])) for name in "abcde"]
    message = r"weights are not finite after 7 steps \(a, b, c and 2 more\)\. .*not exported.*\. Do this$"
    with pytest.raises(ValueError, match=message):
        watching.require_finite_tensors("weights", bad, 7)


@pytest.fixture
def settings(toy_settings, tmp_path):
    quick = ["dataset.batch_size=32", "trainer.max_epochs=2", "trainer.precision=32-true", "callbacks.progress=null"]
    return [*toy_settings, *quick, f"cache_dir={tmp_path}/cache", f"run_dir={tmp_path}/run"]


def test_a_run_that_diverges_leaves_no_model(settings, compose, tmp_path):
    with pytest.raises(ValueError, match=r"^training diverged: .*not exported.*Lower optimizer\.lr"):
        train_prototypes(compose(*settings, "optimizer.lr=1e30"))
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_a_second_stage_that_diverges_leaves_the_model_of_the_first(settings, compose, tmp_path):
    stage = "classify_settings=[optimizer.lr=1e39,trainer.max_epochs=2]"
    with pytest.raises(ValueError, match=r"^training diverged: .*second stage \(.*classify_settings=\[optimizer\.lr"):
        train_prototypes(compose(*settings, "classify=true", stage))
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert not list((tmp_path / "run").rglob("classifiers.safetensors"))
    assert not_finite(load_file(tmp_path / "run" / "model" / "prototypes.safetensors").items()) == []
