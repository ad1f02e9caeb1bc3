"""Tables with a row per label or query, kept where there is room for them and out of the module's state dict."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from prime_xmc.checksums import check_file, describe
from prime_xmc.files import flush, save_tensors
from prime_xmc.foreign import parse_json

BANKS = "banks"  # key of a checkpoint under which its banks are, see `prime_xmc.training.checkpoints`
PLACEMENTS = ("device", "host", "mmap")
DTYPES = {"float32": torch.float32, "float16": torch.float16}
SHARD_BYTES = 2**28  # extra memory that a checkpoint takes where rows are on another device


class RowBank(nn.Module):
    """A table of vectors without gradient, of which a training step reads and writes a few rows.

    The rows are not in the state dict, which would be copied as a whole; `save` and `load` stream them. Results do not
    depend on the placement.

    Args:
        num_rows: Number of labels or queries.
        dim: Size d of embeddings.
        dtype: "float32" or "float16". bfloat16 is refused, since it has too few digits for a running average and
            would round its steps away.
        placement: "device": with the module, which moves them. "host": in the memory of the CPU, from where rows are
            sent as they are needed. "mmap": in a nameless temporary file, for tables larger than the memory; the file
            disappears when the process ends.
        directory: Folder for the file of "mmap"; None for the system's temporary directory.

    Attributes:
        stays_on_gpu: Whether rows that are on a GPU stay there when the module goes to the CPU, where the Trainer puts
            it between its stages. A large table would spend seconds on the way.

    Raises:
        ValueError: If dtype or placement is not one of these, or "mmap" finds no room for the file.
    """

    def __init__(
        self,
        num_rows: int,
        dim: int,
        *,
        dtype: str = "float32",
        placement: str = "device",
        directory: str | None = None,
    ):
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"expected float32 or float16 for a bank (bfloat16 stalls running averages), got {dtype}")
        if placement not in PLACEMENTS:
            raise ValueError(f"expected bank.placement device, host or mmap, got {placement!r}")
        self.placement = placement
        self.stays_on_gpu = False
        self.rows: Tensor
        if placement == "device":
            self.register_buffer("rows", torch.zeros(num_rows, dim, dtype=DTYPES[dtype]), persistent=False)
        elif placement == "host":
            self.rows = torch.zeros(num_rows, dim, dtype=DTYPES[dtype])
        else:
            self.rows = _mapped(num_rows, dim, DTYPES[dtype], directory)

    def __len__(self) -> int:
        return self.rows.shape[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RowBank":
        """Follow the module to another device, but keep the dtype where the module takes another, such as bfloat16."""
        device = fn(self.rows[:0]).device
        if self.stays_on_gpu and self.rows.is_cuda and device.type == "cpu":
            return self
        return super()._apply(lambda rows: rows.to(device), recurse)

    def take(self, ids: Int64[Tensor, " row"]) -> Float[Tensor, "row d"]:
        """Return some rows, in the bank's dtype, on the device of `ids`."""
        return _move(self.rows[_move(ids, self.rows.device)], ids.device)

    def put(self, ids: Int64[Tensor, " row"], rows: Float[Tensor, "row d"]) -> None:
        """Replace some rows, each once."""
        self.rows[_move(ids, self.rows.device)] = _move(rows.detach(), self.rows.device).to(self.rows.dtype)

    def save(self, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
        """Write the rows to a folder, in shards: rows-00000.safetensors and so on, and an index.

        Memory beyond the bank is at most one shard, and none where the rows are on the CPU. All is on the disk, and not
        only on its way there, when this returns; the index has the checksums of the shards.
        """
        directory.mkdir(parents=True, exist_ok=True)
        per_shard = max(1, shard_bytes // (self.rows.shape[1] * self.rows.element_size()))
        shards = self.rows.split(per_shard)
        sums = []
        for number, shard in enumerate(shards):
            path = directory / _shard_name(number)
            save_tensors(path, {"rows": shard})
            sums.append(describe(path))
            flush(path)
        index = {"num_rows": len(self), "dim": self.rows.shape[1], "num_shards": len(shards), "shards": sums}
        path = directory / "index.json"
        path.write_text(json.dumps(index) + "\n", encoding="utf-8")
        for each in (path, directory):
            flush(each)

    def load(self, directory: Path) -> None:
        """Read the rows that `save` wrote, whatever their dtype and the placement they had.

        Raises:
            ValueError: If the folder holds a table of another shape, or not all of it.
        """
        num_rows, dim, num_shards = check_bank(directory)
        if (num_rows, dim) != tuple(self.rows.shape):
            raise ValueError(
                f"{directory} holds {num_rows} x {dim} rows, expected "
                f"{self.rows.shape[0]} x {self.rows.shape[1]}: another data set or encoder"
            )
        start = 0
        for shard in read_shards(directory, num_shards):
            if shard.dim() != 2 or shard.shape[1] != dim or start + len(shard) > len(self):
                raise ValueError(f"{directory} holds a shard of another shape, {tuple(shard.shape)}: it is damaged")
            self.rows[start : start + len(shard)] = shard.to(self.rows.device, self.rows.dtype)
            start += len(shard)
        if start != len(self):
            raise ValueError(f"{directory} has {start} rows in all, expected {len(self)}: it is incomplete")


def check_bank(directory: Path) -> tuple[int, int, int]:
    """Check the files that `RowBank.save` wrote against their checksums; one of version 0.1.0 has none.

    Returns:
        Rows, dimension and shards of the bank.

    Raises:
        ValueError: If something is missing or damaged.
    """
    path = directory / "index.json"
    try:
        index = parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{directory}: no bank with an index.json; it is incomplete or was moved") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    try:
        num_rows, dim, num_shards = (int(index[key]) for key in ("num_rows", "dim", "num_shards"))
        if unknown := set(index) - {"num_rows", "dim", "num_shards", "shards"}:
            raise ValueError(f"no bank has {sorted(unknown)}")
        sums = index.get("shards")
        if sums is not None and len(sums) != num_shards:
            raise ValueError("as many checksums as shards")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: it does not say the shape of the bank") from error
    for number, expected in enumerate(sums or ()):
        shard = directory / _shard_name(number)
        if not shard.is_file():
            raise ValueError(f"{shard} is missing: the bank was copied or written incompletely")
        check_file(shard, expected, "copy the bank again", verify="full")
    return num_rows, dim, num_shards


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; the host waits for copies from a GPU, and not for those to one."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def read_shards(directory: Path, num_shards: int) -> Iterator[Float[Tensor, "row d"]]:
    """Yield the shards of a bank, in order.

    Raises:
        ValueError: If one is missing or damaged.
    """
    for number in range(num_shards):
        path = directory / _shard_name(number)
        if not path.is_file():
            raise ValueError(f"{path} is missing: the bank was copied or written incompletely")
        try:
            with safe_open(path, framework="pt") as file:
                shard = file.get_tensor("rows")
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}): the bank was copied or written incompletely") from error
        yield shard


def _shard_name(number: int) -> str:
    return f"rows-{number:05d}.safetensors"


def _mapped(num_rows: int, dim: int, dtype: torch.dtype, directory: str | None) -> Tensor:
    """Return a tensor of zeros in a file whose name is already removed, so that nothing is left of it afterwards.

    Raises:
        ValueError: If there is no room for it. Written to later, a file without its room would end the process.
    """
    folder = Path(directory or tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix="prime_xmc-bank-", dir=folder)
    try:
        _take_room(handle, num_rows * dim * dtype.itemsize, folder)
        rows = torch.from_file(name, shared=True, size=num_rows * dim, dtype=dtype)
    finally:
        os.close(handle)
        os.unlink(name)
    return rows.view(num_rows, dim)


def _take_room(handle: int, num_bytes: int, folder: Path) -> None:
    """Give a file as many bytes of the disk as it will need.

    Raises:
        ValueError: If there are not so many.
    """
    free = shutil.disk_usage(folder).free
    reason = f"{free:,} are free" if free < num_bytes else None
    if reason is None and num_bytes and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(handle, 0, num_bytes)
        except OSError as error:
            # a file system that cannot take room ahead has been asked how much is free
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                reason = f"the system says: {error.strerror}"
    if reason is not None:
        raise ValueError(
            f"bank.placement=mmap needs a file of {num_bytes:,} bytes in {folder.absolute()}, and {reason}. Free some "
            "space there, or name a folder on another disk by bank.directory="
        )
