"""The words of an index's captions as tokens, so that a patch can be put in words."""

import threading
from collections import Counter
from itertools import islice

import numpy as np
from jaxtyping import Float

from filip_jax.features import Features
from filip_jax.inference.alignment import content_words
from filip_jax.inference.embedder import Embedder

MAX_CAPTIONS = 20_000  # that are read
MAX_WORDS = 512  # the most frequent ones that the model knows
MAX_CHARACTERS = 40  # of a word
BATCH = 16  # words that the text tower takes at a time, between the searches
BEST_WORDS = 8


class Vocabulary:
    """The most frequent words of the captions; a thread embeds them one batch after the other once it is started.

    A word is embedded alone, as a text of its own: the mean of its tokens without BOS and EOS.
    """

    def __init__(self, model: Embedder, features: Features):
        self.model, self.features = model, features
        self.words: list[str] = []
        self.vectors: Float[np.ndarray, "words d"] = np.zeros((0, features.manifest.dimension), np.float32)
        self._lock, self._stopped = threading.Lock(), threading.Event()

    def start(self) -> None:
        """Embed the words in a thread of its own."""
        threading.Thread(target=self.fill, name="words of captions", daemon=True).start()

    def stop(self) -> None:
        """End the thread after its batch."""
        self._stopped.set()

    def fill(self) -> None:
        """Embed the words."""
        words = self._frequent()
        for start in range(0, len(words), BATCH):
            if self._stopped.is_set():
                return
            batch = words[start : start + BATCH]
            vectors = self._embedded(batch)
            with self._lock:
                self.words, self.vectors = [*self.words, *batch], np.concatenate([self.vectors, vectors])

    def best(self, patch: Float[np.ndarray, " d"]) -> tuple[list[str], list[float]]:
        """Return the words that match a patch best, and their similarities."""
        with self._lock:
            words, vectors = self.words, self.vectors
        similarities = vectors @ patch
        best = np.argsort(-similarities, kind="stable")[:BEST_WORDS]
        return [words[n] for n in best], similarities[best].tolist()

    def _frequent(self) -> list[str]:
        live = np.flatnonzero(self.features.live)
        rows = live[np.linspace(0, len(live) - 1, min(len(live), MAX_CAPTIONS)).astype(int)] if len(live) else live
        counts = Counter[str]()
        captions = self.features.column("caption")
        for row in rows.tolist():
            text = captions[row].as_py() or ""
            counts.update({text[start:end].lower() for start, end in content_words(text)})
        frequent = (word for word, _ in counts.most_common() if len(word) <= MAX_CHARACTERS)
        return list(islice(filter(self._is_read, frequent), MAX_WORDS))

    def _is_read(self, word: str) -> bool:
        """Return whether the model knows a word, and reads all of it."""
        tokenizer, length = self.model.tokenizer, self.model.text_length
        return tokenizer.knows(word) and len(tokenizer.spans(word, length + 1)) <= length

    def _embedded(self, words: list[str]) -> Float[np.ndarray, "n d"]:
        tokens, _ = self.model.encode_text(words, pooling="tokens")
        first = int(self.model.tokenizer.has_bos)
        ends = [len(self.model.tokenizer.spans(word, self.model.text_length)) - 1 for word in words]
        return np.stack([tokens[n, first : max(end, first + 1)].mean(axis=0) for n, end in enumerate(ends)])
