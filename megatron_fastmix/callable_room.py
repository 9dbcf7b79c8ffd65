"""A room that is also a function: `megatron_fastmix.search(config)` beside
`megatron_fastmix.search.loop`.

Python puts every imported folder of a package under its name in the package, over whatever has that
name there; so the function is what happens when the folder is called.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

API = "megatron_fastmix.start.api"


class _Room(ModuleType):
    """A module that hands calls on to the function of its name in the Python API."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        function = getattr(importlib.import_module(API), self.__name__.rpartition(".")[2])
        return function(*args, **kwargs)


def make_callable(name: str) -> None:
    """Has the module `name` be called as the API's function of its last name."""
    sys.modules[name].__class__ = _Room
