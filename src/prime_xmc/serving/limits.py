"""What a server takes from its clients at most."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Bounds on requests.

    Attributes:
        body_bytes: Bytes of a request's body.
        body_seconds: Seconds in which a body has to arrive.
        texts: Texts of a request.
        characters: Characters of a text. The model cuts texts at its own number of tokens anyway.
        top_k: Labels per text.
        explained: Labels of a request that are explained, texts times labels per text.
        waiting: Texts of all requests that wait for the model.

    Raises:
        ValueError: If a bound is below 1, or no request could have as many texts as it may.
    """

    body_bytes: int = 1_048_576
    body_seconds: float | int = 30
    texts: int = 256
    characters: int = 20_000
    top_k: int = 100
    explained: int = 200
    waiting: int = 1024

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value >= 1:
                raise ValueError(f"expected limits.{field.name} of at least 1, got {value}")
        if self.waiting < self.texts:
            raise ValueError(
                f"expected limits.waiting of at least limits.texts={self.texts}, so that a request with so many texts "
                f"finds room in an empty queue, got {self.waiting}"
            )
