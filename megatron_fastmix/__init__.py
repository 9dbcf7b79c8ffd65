"""Learn the blend weights of a Megatron data pipeline while training one small proxy model."""

__version__ = "0.2.0"

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_fastmix.start.api import export, load_result, report, search

__all__ = ["__version__", "export", "load_result", "report", "search"]


def __getattr__(name: str) -> Any:
    """The Python API, imported when it is asked for: it needs more than the rest."""
    import importlib

    if name == "load_result":
        return importlib.import_module("megatron_fastmix.start.api").load_result
    if name in ("export", "report", "search"):
        return importlib.import_module(f"{__name__}.{name}")  # a room that can be called
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
