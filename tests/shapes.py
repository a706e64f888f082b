"""The shapes that annotations promise (jaxtyping), checked while the tests run; see conftest.py."""

import inspect
from collections.abc import Callable
from typing import Any, get_args

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, install_import_hook

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


def install() -> None:
    """Has the packages of ``PACKAGES`` checked, in whatever of them is imported from now on."""
    install_import_hook(PACKAGES, "shapes.check")
