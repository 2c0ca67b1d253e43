"""A search in a data set of instructions: which rows are like a text."""

from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from aira.data.schemas import mapped_columns, read_example
from aira.data.sources import read
from aira.data.texts import BadRow
from aira.errors import AiraError

PARTS = ("prompts", "completions")


class Explorer:
    """Rows of a data set by their likeness to a text: the cosine of TF-IDF weights of words.

    Args:
        path, split, columns: as `data.path`, `data.split` and `data.columns` of a training run.

    Raises:
        AiraError: there is no such data set, or it has no usable row of instructions.
    """

    def __init__(self, path: str, split: str = "train", columns: dict[str, Any] | None = None) -> None:
        source = read(path)
        rows = source.split(split)
        for line in source.notices:
            print(line)
        mapping = mapped_columns("instruction", rows.column_names, columns, path)
        self.rows: list[tuple[str, str]] = []  # prompt and completion
        for row in rows:
            try:
                *asked, answered = read_example("instruction", row, mapping).conversations[0]
            except BadRow:
                continue
            if not asked:
                raise AiraError(f"{path} has documents, and no prompts to search in. data.columns= maps other columns.")
            self.rows.append(("\n\n".join(one["content"] for one in asked), answered["content"]))
        if not self.rows:
            raise AiraError(f"{path} has no row with a prompt and a completion.")
        self._vectorizers = [TfidfVectorizer(strip_accents="unicode", token_pattern=r"\w+") for _ in PARTS]
        self._weights = [v.fit_transform(texts) for v, texts in zip(self._vectorizers, zip(*self.rows, strict=True))]

    def search(self, text: str, over: str = "prompts", top: int = 10) -> list[tuple[float, str, str]]:
        """The rows most like a text.

        Args:
            over: `prompts` or `completions`: which of the two is compared.

        Returns:
            Cosine, prompt and completion of at most `top` rows that share a word with the text, the most similar first.
        """
        part = PARTS.index(over)
        cosines = (self._weights[part] @ self._vectorizers[part].transform([text]).T).toarray()[:, 0]
        best = np.argsort(-cosines, kind="stable")[:top]
        return [(float(cosines[i]), *self.rows[i]) for i in best if cosines[i] > 0]
