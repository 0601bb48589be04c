"""Files of arrays that others have pickled: looked through before anything reads them."""

import io
import pickle
from pathlib import Path
from typing import Any, final

__all__ = ["refuse_code"]

_KNOWN = {
    "numpy": {"ndarray", "dtype"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.numeric": {"_frombuffer"},
    "numpy._core.numeric": {"_frombuffer"},
    "scipy.sparse.csr": {"csr_matrix"},
    "scipy.sparse._csr": {"csr_matrix"},
    "collections": {"defaultdict"},
    "builtins": {"list", "dict"},
    "_codecs": {"encode"},
}


@final
class _Arrays(pickle.Unpickler):
    """Makes arrays, sparse matrices, lists and dictionaries, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the known classes.

        Raises:
            pickle.UnpicklingError: for any other.
        """
        module = {"__builtin__": "builtins"}.get(module, module)
        if name not in _KNOWN.get(module, ()):
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return super().find_class(module, name)


def refuse_code(path: Path) -> None:
    """Check that a pickle holds arrays, sparse matrices, lists and dictionaries only, without running anything else.

    Raises:
        ValueError: it names something else, or is damaged.
    """
    try:
        _Arrays(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise ValueError(
            f"{path} must hold arrays, sparse matrices, lists and dictionaries and nothing that runs, but {error}; "
            "get it from its first source again"
        ) from error
