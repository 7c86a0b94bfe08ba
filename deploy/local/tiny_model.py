"""`python tiny_model.py FILE`: writes a real quantised model of 146 kB, for tests and demos of the local rung.

A Llama of two layers with random weights in Q8_0: what it says means nothing, but llama.cpp loads it like any other
model, answers in milliseconds, and keeps to a JSON schema by its grammar. Runs in the environment of the model server,
which has `gguf`.
"""

from __future__ import annotations

import sys

import gguf  # type: ignore[import-not-found]
import numpy

WIDTH, LAYERS, FEED_FORWARD, HEADS, CONTEXT_TOKENS = 64, 2, 128, 4, 2048
SPREAD, SEED = 0.05, 0
SPECIAL = [b"<unk>", b"<s>", b"</s>"]
BYTES = [b"<0x%02X>" % number for number in range(256)]
LETTERS = [bytes([number]) for number in range(32, 127)]
TYPES = {"unknown": 2, "control": 3, "normal": 1, "byte": 6}


def write(file: str) -> None:
    writer = gguf.GGUFWriter(file, "llama")
    _describe(writer)
    chance = numpy.random.default_rng(SEED)

    def weights(name: str, rows: int, columns: int) -> None:
        values = (chance.standard_normal((rows, columns)) * SPREAD).astype(numpy.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", numpy.ones(WIDTH, dtype=numpy.float32))

    words = len(SPECIAL) + len(BYTES) + len(LETTERS)
    weights("token_embd", words, WIDTH)
    norm("output_norm")
    weights("output", words, WIDTH)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm")
        norm(f"{block}.ffn_norm")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights(f"{block}.{part}", WIDTH, WIDTH)
        weights(f"{block}.ffn_gate", FEED_FORWARD, WIDTH)
        weights(f"{block}.ffn_up", FEED_FORWARD, WIDTH)
        weights(f"{block}.ffn_down", WIDTH, FEED_FORWARD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: gguf.GGUFWriter) -> None:
    tokens = [*SPECIAL, *BYTES, *LETTERS]
    kinds = ["unknown", "control", "control", *["byte"] * len(BYTES), *["normal"] * len(LETTERS)]
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([TYPES[kind] for kind in kinds])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


if __name__ == "__main__":
    write(sys.argv[1])
