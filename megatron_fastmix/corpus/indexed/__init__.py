"""Megatron's indexed datasets: written, checked, and the files that lie beside them."""
