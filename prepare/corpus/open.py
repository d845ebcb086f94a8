"""Find the corpus that a name or a path stands for."""

from pathlib import Path

from prepare.corpus.base import Corpus, Documents, Progress


def open_corpus(source: str, shards: int, progress: Progress) -> Corpus:
    """Return the corpus "docstrings", "climbmix" (`shards` of it), or the text in a path. Raises DataError."""
    if source == "climbmix":
        from prepare.corpus.climbmix import Climbmix

        return Climbmix(shards, progress)
    if source == "docstrings":
        from prepare.corpus.docstrings import harvest

        known, held_out = harvest(progress)
        return Documents(source, lambda: iter(known), lambda: iter(held_out))
    from prepare.corpus.text import read_texts

    return Documents(canonicalize(source), lambda: read_texts(source, progress))


def canonicalize(source: str) -> str:
    """Return the name of a corpus in a manifest."""
    return source if source in {"docstrings", "climbmix"} else str(Path(source).resolve())
