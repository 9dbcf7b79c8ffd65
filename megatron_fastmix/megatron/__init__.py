"""A learned mixture in the user's own Megatron run, whose scripts stay as they are.

    torchrun ... -m megatron_fastmix.megatron pretrain_gpt.py THEIR ARGUMENTS --fastmix-mixture RUN

`options` tells our flags from theirs, `script` runs theirs, `session` holds what a run has of
ours, `hooks` is where it meets the names of `megatron.training`, and the other modules each do one
thing of it. Every name of `megatron.training` that is replaced or read is in `hooks`.
"""
