"""The patch layer: Megatron-core's blended dataset with a live mixture.

Nothing is imported before it is used: schedules need no Megatron-core, whose import takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_fastmix.blend.live_mixture import LiveMixture
    from megatron_fastmix.blend.patch import install, uninstall
    from megatron_fastmix.blend.weight_schedule import WeightSchedule, read_schedule

__all__ = ["LiveMixture", "WeightSchedule", "install", "read_schedule", "uninstall"]

_HOMES = {
    "LiveMixture": "live_mixture",
    "WeightSchedule": "weight_schedule",
    "install": "patch",
    "read_schedule": "weight_schedule",
    "uninstall": "patch",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
