"""The random numbers of a step, which do not depend on the steps before it."""

import torch


def seed_step(seed: int, step: int, device: torch.device, part: int = 0) -> None:
    """Start the random numbers of a step anew, on the host and on the device that trains.

    As `torch.manual_seed` does, which also keeps the whole call stack for each kind of device that is not in use: in a
    Trainer that takes a millisecond.

    Args:
        seed: Seed of the run.
        step: Number of the step.
        device: Device that trains.
        part: Number of the batch in the step, where gradients of several are accumulated for it.
    """
    number = hash((seed, step, part) if part else (seed, step))
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(number)
    elif device.type != "cpu":
        torch.manual_seed(number)
