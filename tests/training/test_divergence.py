import pytest
import torch

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
