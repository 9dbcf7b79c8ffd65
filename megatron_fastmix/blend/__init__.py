"""The patch layer: Megatron-core's blended dataset with a live mixture."""

from megatron_fastmix.blend.patch import install, uninstall

__all__ = ["install", "uninstall"]
