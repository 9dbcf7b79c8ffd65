"""The search itself: one optimizer step of the proxy after the other, and steps of the mixture."""

from megatron_fastmix.callable_room import make_callable

make_callable(__name__)
