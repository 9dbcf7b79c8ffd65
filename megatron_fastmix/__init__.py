"""Learn the blend weights of a Megatron data pipeline while training one small proxy model."""

__version__ = "0.2.0"
