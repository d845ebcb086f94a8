"""Open the text to train on: documentation of installed packages, climbmix, or the user's own files."""

from pathlib import Path

from prepare.corpus.base import Corpus, split_documents


def open_corpus(source: str, shards: int) -> Corpus:
    """Return the corpus "docstrings", `shards` of "climbmix", or the text at a path. Raises DataError."""
    if source == "climbmix":
        from prepare.corpus.climbmix import open_climbmix

        return open_climbmix(shards)
    if source == "docstrings":
        from prepare.corpus.docstrings import harvest

        known, held_out = harvest()
        return split_documents(source, lambda: iter(known), lambda: iter(held_out))
    from prepare.corpus.text import read_texts

    return split_documents(canonicalize(source), lambda: read_texts(source))


def canonicalize(source: str) -> str:
    """Return the corpus's name in a manifest: as given, or an absolute path."""
    return source if source in {"docstrings", "climbmix"} else str(Path(source).resolve())
