"""Time, memory and padding of a training step on LF-Debian-18K (18K labels, 21 tokens a text, MiniLM).

A step is compared with the forward and backward pass of the bare encoder over the same tokens in the same precision,
which is its lower bound. The bare encoder is in turn compared with transformers' own model (`eager`) on texts of equal
length, which neither has to pad. The effect of torch.compile on transformers' model (`encoder.compile=true`) is shown
for the texts of a step.
"""

import statistics
from collections.abc import Iterator

import torch
from common import PeakMemory, Row, Target, interleave, main, ratio, seconds_of
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from training import Training, make_training, texts_of

from prime_xmc.data.batch import Batch

TARGETS = (
    Target("memory of training steps beyond model and tables, batch 512", "≤", 2.5, "GB"),
    Target("training step / bare encoder over the same tokens, batch 512", "≤", 1.15, "x"),
    Target("building the batch, of a step", "≤", 1, "%"),
    Target("padding: multiplications computed / needed by real tokens", "≤", 1.03, "x"),
    Target("bare encoder: speed against transformers eager, 256 × 20 tokens", ">", 1, "x"),
    Target("encoder.compile: speed against transformers' model not compiled, a step's texts", "shown", 0, "x"),
)
MEMORY_STEPS = 40
STEPS = 10
PADDING_BATCHES = 4
BATCH_SIZE, EAGER_TEXTS, EAGER_LENGTH = 512, 256, 20


def rows(scale: float) -> Iterator[Row]:
    memory_target, step_target, build_target, padding_target, eager_target, compile_target = TARGETS
    size, texts = (max(round(count * scale), 8) for count in (BATCH_SIZE, EAGER_TEXTS))
    training = make_training(f"sampling.batch_size={size}")
    batches = iter(training.data.train_dataloader())

    training.release()
    with PeakMemory() as memory:
        for _ in range(max(round(MEMORY_STEPS * scale), 4)):
            training.step(next(batches))
    yield memory_target.row(memory.growth / 1e9, f"{training.num_steps} steps; gradients and optimiser state included")

    batch: Batch

    def build() -> None:
        nonlocal batch
        batch = next(batches)

    def encode(model: Training) -> None:
        model.backward(lambda: model.module.encoder(batch.token_ids, batch.lengths))

    rounds = max(round(STEPS * scale), 2)
    build_seconds, step_seconds, bare_seconds = interleave(
        rounds, build, lambda: training.step(batch), lambda: encode(training)
    )
    note = f"{texts_of(batch)}, {training.dtype}".replace("torch.", "")
    middle = statistics.median(step_seconds)
    yield step_target.row(ratio(step_seconds, bare_seconds), f"median of {rounds}; {note}; {middle:.2f} s a step")
    yield build_target.row(100 * ratio(build_seconds, step_seconds), f"{1e3 * statistics.median(build_seconds):.2f} ms")

    counted = [multiplications(training, next(batches)) for _ in range(PADDING_BATCHES)]
    yield padding_target.row(*padding(counted))

    token_ids = next(batches).token_ids
    token_ids = token_ids.repeat(-(-texts * EAGER_LENGTH // len(token_ids)))[: texts * EAGER_LENGTH]
    mask = torch.ones(texts, EAGER_LENGTH, dtype=torch.int64)

    def packed() -> Tensor:
        return training.module.encoder(token_ids, mask.sum(dim=1))

    def eager() -> Tensor:
        hidden = training.module.encoder.backbone(input_ids=token_ids.view_as(mask), attention_mask=mask)
        return hidden.last_hidden_state.mean(dim=1)

    packed_seconds, eager_seconds = interleave(
        rounds, lambda: training.backward(packed), lambda: training.backward(eager)
    )
    seconds = ", ".join(f"{statistics.median(times):.3f} s" for times in (packed_seconds, eager_seconds))
    yield eager_target.row(ratio(eager_seconds, packed_seconds), f"forward and backward, median of {rounds}; {seconds}")

    plain, compiled = (
        make_training("encoder.implementation=transformers", f"encoder.compile={flag}") for flag in (False, True)
    )

    compilation = seconds_of(lambda: encode(compiled))
    compiled_seconds, plain_seconds = interleave(rounds, lambda: encode(compiled), lambda: encode(plain))
    seconds = ", ".join(f"{statistics.median(times):.2f} s" for times in (compiled_seconds, plain_seconds))
    note = f"forward and backward, median of {rounds}; {seconds}; the first call compiles, {compilation:.0f} s"
    yield compile_target.row(ratio(plain_seconds, compiled_seconds), note)


def multiplications(training: Training, batch: Batch) -> tuple[int, int, int, int]:
    """Count the operations that the encoder computes for a batch, and those that its real tokens need.

    Returns:
        Floating-point operations of all matrix products, those of batched products (attention) among them, and the
        same two numbers without any padding.
    """
    encoder = training.module.encoder
    with FlopCounterMode(display=False) as counter, training.autocast(), torch.no_grad():
        encoder(batch.token_ids, batch.lengths)
    by_operation = {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}
    attention = sum(count for name, count in by_operation.items() if "bmm" in name or "attention" in name)
    weights = [p for name, p in encoder.backbone.named_parameters() if ".layer." in name and p.ndim == 2]
    needed_by_linear = 2 * sum(weight.numel() for weight in weights) * len(batch.token_ids)
    num_layers = encoder.backbone.config.num_hidden_layers
    needed_by_attention = 4 * num_layers * encoder.dim * int(batch.lengths.square().sum())
    return sum(by_operation.values()), attention, needed_by_linear + needed_by_attention, needed_by_attention


def padding(counted: list[tuple[int, int, int, int]]) -> tuple[float, str]:
    """Return the share of padding in some batches, and a note on its places."""
    computed, attention, needed, needed_by_attention = map(sum, zip(*counted, strict=True))
    if computed < needed:
        raise RuntimeError(f"counted {computed} operations where the tokens need {needed}: some are not seen")
    linear = (computed - attention) / (needed - needed_by_attention)
    note = f"{linear:.3f} in linear layers (rows / tokens), {attention / needed_by_attention:.3f} in attention"
    return computed / needed, note


if __name__ == "__main__":
    main(__doc__, TARGETS, rows)
