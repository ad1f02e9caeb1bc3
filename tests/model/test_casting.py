import pytest
import torch

from prime_xmc.model.casting import cast_joined

START_NOTHING = ("split_with_sizes", "new_empty", "detach")


def make(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def test_values_and_gradients():
    a, b, c, d = make((2, 3), (1, 3), (4,), ())
    joined, alone, scalar = cast_joined(torch.bfloat16, [(a, b), (c,), (d,)])
    assert torch.equal(joined, torch.cat([a, b]).bfloat16())
    assert torch.equal(alone, c.bfloat16())
    assert torch.equal(scalar, d.bfloat16())
    weight = torch.arange(9.0).view(3, 3).bfloat16()
    ((joined * weight).sum() + scalar).backward()
    assert a.grad.dtype == torch.float32
    assert torch.equal(a.grad, weight[:2].float())
    assert torch.equal(b.grad, weight[2:].float())
    assert c.grad is None
    assert d.grad == 1


def test_one_launch_each_way(operators):
    tensors = make((2, 3), (1, 3), (4,), (5, 2))
    with operators() as forward:
        joined, *rest = cast_joined(torch.float16, [tensors[:2], *([each] for each in tensors[2:])])
    loss = joined.sum() + sum(each.sum() for each in rest)
    with operators() as backward:
        loss.backward()
    assert forward.counts["_foreach_copy_"] == 1
    assert {*forward.counts} <= {"_foreach_copy_", *START_NOTHING}
    assert backward.counts["_foreach_copy_"] == 1
    assert backward.counts["_to_copy"] == 0


def test_what_is_not_trained_stays_so():
    trained, fixed = make((2,), (3,))
    fixed.requires_grad_(False)
    (joined,) = cast_joined(torch.bfloat16, [(trained, fixed)])
    joined.sum().backward()
    assert trained.grad.tolist() == [1, 1]
    assert fixed.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_have_memory_of_their_own(dtype):
    (tensor,) = make((2, 2), dtype=dtype)
    with torch.no_grad():
        (copy,) = cast_joined(dtype, [(tensor,)])
        tensor.zero_()
    assert copy.abs().min() > 0
    assert cast_joined(dtype, []) == []
