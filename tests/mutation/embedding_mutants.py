"""Mutants of what becomes of vectors: cosines and their floor."""

from mutation.mutants import Mutant, _always

EMBEDDING_MUTANTS = {
    f"embeddings: {name}": Mutant("embeddings", name, _always, "test_embeddings.py")
    for name in ("_cosines", "_dots", "_floored")
}
