"""The shapes that annotations promise (jaxtyping), checked while the tests run; see conftest.py."""

import inspect
from collections.abc import Callable
from functools import partial
from importlib.machinery import SourceFileLoader
from typing import Any, get_args
from unittest.mock import patch

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, _import_hook, install_import_hook

PACKAGES = [f"contentmotion.{name}" for name in ("diffusion", "models", "stages", "losses", "pipelines")]

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for every other type checker


def check(function: Callable) -> Callable:
    """Checks the arguments and results that have a shape; others are left alone, for tests pass wrong ones too."""
    shaped = {name: hint for name, hint in inspect.get_annotations(function).items() if has_shape(hint)}
    if not shaped:
        return function
    function.__annotations__ = shaped
    return _beartype(function)


def has_shape(hint: Any) -> bool:
    """Whether an annotation is a tensor of some shape, or contains one."""
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(has_shape(part) for part in get_args(hint))


class _Loader(_import_hook._JaxtypingLoader):
    """Compiled files of checked modules have names of their own. jaxtyping looks for such files of whatever a module
    imports as well, and has whole libraries compiled again."""

    def get_code(self, fullname: str) -> Any:
        name = partial(_import_hook._optimized_cache_from_source, self._typechecker.get_hash())
        with patch("importlib._bootstrap_external.cache_from_source", name):
            return super().get_code(fullname)

    exec_module = SourceFileLoader.exec_module


def install() -> None:
    """Has the packages of ``PACKAGES`` checked, in whatever of them is imported from now on."""
    _import_hook._JaxtypingLoader = _Loader
    install_import_hook(PACKAGES, "shapes.check")
