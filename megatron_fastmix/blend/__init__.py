"""The patch layer: Megatron-core's blended dataset with a live mixture."""

from megatron_fastmix.blend.live_mixture import LiveMixture
from megatron_fastmix.blend.patch import install, uninstall
from megatron_fastmix.blend.weight_schedule import WeightSchedule, read_schedule

__all__ = ["LiveMixture", "WeightSchedule", "install", "read_schedule", "uninstall"]
