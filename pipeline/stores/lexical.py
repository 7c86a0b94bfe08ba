"""Texts of one space for lexical search, in memory: tantivy's BM25 (the only import of tantivy) over the text topic.

Words are runs of letters and digits, in lower case, without accents, and reduced to English stems, so that "planes"
finds "plane". Texts and queries are treated alike, so a text in another language, a code or a name is still found by
the word that stands in it; all that is lost is the difference between words of one stem. Each Chinese, Japanese or
Korean sign is a word of its own.
"""

from __future__ import annotations

import bisect
import hashlib
import re
import threading
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.core.errors import EnvironmentProblem
from pipeline.stores.conditions import condition_mistakes, meets
from pipeline.stores.spaces import Condition, PlacedText
from schemas.digests import KeySetDigest
from schemas.vectors import FilterValue, TextRecord

if TYPE_CHECKING:
    import tantivy

K_MAX = 1000
WORDS_MAX = 256
"""Of a query; the first ones count."""
WORD_BYTES_MAX = 60
WRITER_BYTES = 15_000_000
"""The least that the library takes; a larger one is no faster for our small batches."""
_SPARE = 16
_TERM_CHARACTERS_MAX = 200
_SURROGATE = re.compile("[\ud800-\udfff]")
_SIGNS = re.compile("([\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])")


class IndexedText(NamedTuple):
    """What is known of a bundle's text beside the text itself."""

    counter: int
    bundle_hash: str
    text_hash: str
    filters: dict[str, FilterValue | list[FilterValue]]


class LexicalIndex:
    """A TextIndex. `apply` only notes what has changed; `refresh` puts it into the index, some milliseconds of work
    outside of the event loop: call it every 30 ms or so where something is `pending`. A deletion is seen at once.
    Searches may run in threads beside everything. Nothing is kept on disk: the topic is read anew at each start.
    """

    def __init__(self, marked: Sequence[str] = ()) -> None:
        """`marked`: the fields by which a search may be narrowed. Raises EnvironmentProblem without the package."""
        self._library: Any = _library()
        self._marked = {field: number for number, field in enumerate(sorted(marked))}
        self._states: dict[str, IndexedText] = {}
        self._waiting: dict[str, TextRecord | None] = {}
        self._written: dict[str, TextRecord | None] = {}
        self._positions: dict[int, int] = {}
        self._digest = KeySetDigest()
        self._values: list[Counter[str]] = [Counter() for _ in self._marked]
        self._noting, self._refreshing = threading.Lock(), threading.Lock()
        self._analyzer = _analyzer(self._library)
        self._schema = _schema(self._library, len(self._marked))
        self._index = self._library.Index(self._schema)
        self._index.register_tokenizer("words", self._analyzer)
        # Reloading by itself holds a lock that the next reload of ours would wait for, 100 ms.
        self._index.config_reader("manual")
        self._writer: tantivy.IndexWriter = self._index.writer(WRITER_BYTES, 1)
        self._searcher: tantivy.Searcher = self._index.searcher()

    def apply(self, records: Sequence[PlacedText]) -> None:
        """See TextIndex. A record before its partition's position was applied already, and is left out."""
        for placed in records:
            if placed.offset < self._positions.get(placed.partition, 0):
                continue
            self._positions[placed.partition] = placed.offset + 1
            known = self._states.get(placed.key)
            record = placed.record if placed.record is not None and placed.record.text else None
            if record is not None or known is not None:
                self._replace(placed.key, known, record)

    def search(self, text: str, k: int, conditions: Sequence[Condition] = ()) -> list[tuple[str, float]]:
        """See TextIndex. Raises ValueError for a k outside of 1 to 1,000 and a field that is not marked; a text
        without words finds nothing."""
        mistakes = condition_mistakes(conditions, self._marked)
        if not 1 <= k <= K_MAX:
            mistakes.append(f"k is 1 to {K_MAX:,}, not {k:,}")
        if mistakes:
            raise ValueError("; ".join(mistakes))
        words = self._words(text)
        if not words:
            return []
        query, searcher = self._query(words, conditions), self._searcher
        wanted = k + _SPARE
        while True:
            found = searcher.search(query, wanted, count=False).hits
            hits = [(str(searcher.doc(address).get_first("key")), score) for score, address in found]
            # The index itself learns of deletions and other values a moment later, and knows values only roughly.
            hits = [hit for hit in hits if self._is_met(hit[0], conditions)]
            if len(hits) >= k or len(found) < wanted:
                return sorted(hits, key=lambda hit: (-hit[1], hit[0]))[:k]
            wanted *= 4

    def positions(self) -> dict[int, int]:
        return dict(self._positions)

    @property
    def pending(self) -> int:
        """How many keys changed since the last refresh."""
        return len(self._waiting)

    def refresh(self) -> None:
        """Blocks for milliseconds, longer after many changes. What was applied before it is seen by the next search."""
        with self._refreshing:
            with self._noting:
                self._written, self._waiting = self._waiting, {}
            if not self._written:
                return
            for key, record in self._written.items():
                self._writer.delete_documents_by_term("key", _encodable(key))
                if record is not None:
                    self._writer.add_document(self._document(key, record))
            self._writer.commit()
            self._index.reload()
            self._searcher = self._index.searcher()
            self._written = {}

    def state_of(self, key: str) -> IndexedText | None:
        """Of the newest text, also before it is refreshed; None without one."""
        return self._states.get(key)

    def text_of(self, key: str) -> str | None:
        """The newest text of a bundle; None without one."""
        state = self._states.get(key)
        if state is None:
            return None
        # Before the searcher: what leaves one of these is in the searcher by then.
        record = self._waiting.get(key) or self._written.get(key)
        if record is not None:
            return record.text
        searcher = self._searcher
        query = self._library.Query.term_query(self._schema, "key", _encodable(key))
        for _, address in searcher.search(query, 1, count=False).hits:
            document: Any = searcher.doc(address)
            if bytes(document.get_first("hash")) == state.text_hash.encode():
                return bytes(document.get_first("text")).decode("utf-8", "surrogatepass")
        return None

    def digest(self) -> KeySetDigest:
        """Of all (key, text hash), to compare with Redis and the topic."""
        return KeySetDigest(self._digest.total, self._digest.count)

    def __len__(self) -> int:
        return len(self._states)

    def _replace(self, key: str, known: IndexedText | None, record: TextRecord | None) -> None:
        if known is not None:
            self._count_values(known, -1)
        if record is None:
            del self._states[key]
        else:
            self._states[key] = state = IndexedText(
                record.counter, record.bundle_hash, record.text_hash, record.filters
            )
            self._count_values(state, 1)
        self._digest.replace(key, known.text_hash if known else None, record.text_hash if record else None)
        with self._noting:
            self._waiting[key] = record

    def _count_values(self, state: IndexedText, step: int) -> None:
        """Texts are compared by their list: the library has ranges of numbers only."""
        for field, number in self._marked.items():
            value = state.filters.get(field)
            if isinstance(value, str):
                counted = self._values[number]
                counted[value] += step
                if not counted[value]:
                    del counted[value]

    def _is_met(self, key: str, conditions: Sequence[Condition]) -> bool:
        state = self._states.get(key)
        return state is not None and meets(conditions, state.filters)

    def _document(self, key: str, record: TextRecord) -> Any:
        document = self._library.Document()
        document.add_text("key", _encodable(key))
        document.add_bytes("hash", record.text_hash.encode())
        document.add_bytes("text", record.text.encode("utf-8", "surrogatepass"))
        words = _with_signs_apart(_encodable(record.text))
        document.add_text("words", words)
        for field, number in self._marked.items():
            value = record.filters.get(field)
            for one in value if isinstance(value, list) else [value]:
                document.add_text("values", _term(number, one))
            if isinstance(value, int | float) and not isinstance(value, bool):
                document.add_float(f"number{number}", _rounded(value))
        return document

    def _words(self, text: str) -> list[str]:
        found = self._analyzer.analyze(_with_signs_apart(_encodable(text)))
        return list(dict.fromkeys(found))[:WORDS_MAX]

    def _query(self, words: Sequence[str], conditions: Sequence[Condition]) -> Any:
        query, occur = self._library.Query, self._library.Occur
        terms = [(occur.Should, query.term_query(self._schema, "words", word, "freq")) for word in words]
        any_word = query.boolean_query(terms)
        if not conditions:
            return any_word
        narrowed = [query.const_score_query(self._narrowed(condition), 0.0) for condition in conditions]
        return query.boolean_query([(occur.Must, part) for part in (any_word, *narrowed)])

    def _narrowed(self, condition: Condition) -> Any:
        """A query for all bundles that meet the condition, and perhaps some more."""
        query, number, value = self._library.Query, self._marked[condition.field], condition.value
        if condition.comparison in ("eq", "in"):
            wanted = [_term(number, one) for one in (value if isinstance(value, list) else [value])]
            return query.term_set_query(self._schema, "values", wanted) if wanted else query.empty_query()
        below = condition.comparison in ("lt", "le")
        if isinstance(value, str):
            between = self._texts_between(number, value, below)
            return query.term_set_query(self._schema, "values", [_term(number, one) for one in between])
        assert isinstance(value, int | float)
        edge, kind = _rounded(value), self._library.FieldType.Float
        bounds = (None, edge) if below else (edge, None)
        return query.range_query(self._schema, f"number{number}", kind, *bounds)

    def _texts_between(self, number: int, edge: str, below: bool) -> list[str]:
        ordered = sorted(self._values[number])
        return ordered[: bisect.bisect_right(ordered, edge)] if below else ordered[bisect.bisect_left(ordered, edge) :]


def _library() -> Any:
    try:
        import tantivy
    except ImportError as error:
        raise EnvironmentProblem(
            "tantivy is not installed, which searching by words needs: pip install 'ctxpipe[search]'"
        ) from error
    return tantivy


def _analyzer(library: Any) -> Any:
    one = library.Filter
    builder = library.TextAnalyzerBuilder(library.Tokenizer.simple())
    for step in (one.remove_long(WORD_BYTES_MAX), one.lowercase(), one.ascii_fold(), one.stemmer("english")):
        builder = builder.filter(step)
    return builder.build()


def _schema(library: Any, fields: int) -> Any:
    builder = library.SchemaBuilder()
    builder.add_text_field("key", stored=True, tokenizer_name="raw", index_option="basic")
    # Bytes, because a field of text is always indexed too.
    builder.add_bytes_field("hash", stored=True)
    builder.add_bytes_field("text", stored=True)
    builder.add_text_field("words", tokenizer_name="words", index_option="freq")
    builder.add_text_field("values", tokenizer_name="raw", index_option="basic")
    for number in range(fields):
        builder.add_float_field(f"number{number}", indexed=True, fast=True)
    return builder.build()


def _term(number: int, value: FilterValue) -> str:
    """A word that stands for a value of a field; equal values have one word."""
    if value is None or isinstance(value, bool):
        return f"{number}:{value}"
    if isinstance(value, int | float):
        return f"{number}:n{_rounded(value)!r}"
    text = _encodable(value)
    if len(text) > _TERM_CHARACTERS_MAX:
        text = "#" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return f"{number}:t{text}"


def _rounded(value: float) -> float:
    """Whole numbers beyond 2**53 meet their neighbours here; the values themselves are compared afterwards."""
    try:
        return float(value) + 0.0
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _encodable(text: str) -> str:
    """Halves of surrogate pairs, which JSON can carry, are no UTF-8."""
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text) if not text.isascii() else text


def _with_signs_apart(text: str) -> str:
    return text if text.isascii() else _SIGNS.sub(r" \1 ", text)
