"""What an embedding engine is: texts in, vectors of one space out. Each engine is a module beside this one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from pipeline.core.errors import Retryable

if TYPE_CHECKING:
    import numpy


class EngineIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides which vector a text gets; two engines with equal identities answer alike.

    `weights` and `tokenizer` are SHA-256 digests of the files, hex; for a remote model, whose files nobody here sees,
    empty. `number_type` is how it computes: float32, int8.
    """

    engine: str
    model: str
    revision: str = ""
    weights: str = ""
    tokenizer: str = ""
    pooling: str = ""
    normalised: bool = True
    dimension: int
    number_type: str = "float32"


class Embedded(msgspec.Struct, frozen=True):
    """`vectors`: float32 of shape (texts, dimension), each row of length 1. `tokens`: how many each text had;
    `tokens_cut`: how many of them the model did not see. `cost`: in the endpoint's currency, None where unknown."""

    vectors: numpy.ndarray[tuple[int, int], numpy.dtype[numpy.float32]]
    tokens: list[int]
    tokens_cut: list[int]
    cost: float | None = 0.0


class Throttled(Retryable):
    """The provider asks to wait: not before `retry_after_s` seconds from now."""

    def __init__(self, text: str, retry_after_s: float) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class Engine(Protocol):
    """Made by its module's `open_…`, which loads the model: seconds, and it blocks. All methods block and may be called
    from several threads; the caller keeps them outside of event loops (pipeline.embedding.batching).

    `texts_max` is how many texts one call of `embed` may have, `tokens_max` how many tokens of a text the model sees.
    The same text gives the same vector, whatever else is in the batch.
    """

    identity: EngineIdentity
    texts_max: int
    tokens_max: int

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:
        """Vectors of non-empty texts; `query`: with the prefix of queries instead of documents.

        Raises Throttled or Retryable when the same call may work later, Poison when these texts never will, Fatal when
        the model does not answer as its identity says (another dimension, NaN).
        """

    def token_ends(self, text: str) -> list[int]:
        """Where each token of the text ends, in characters, ascending: what cutting into chunks goes by."""

    def close(self) -> None:
        """Frees what the engine holds."""
