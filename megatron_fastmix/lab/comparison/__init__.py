"""Whether a learned mixture is worth it: fresh target models trained under it and under others."""
