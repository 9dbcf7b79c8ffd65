"""What a search leaves behind: the mixture file, and the blends that training tools read."""

from megatron_fastmix.callable_room import make_callable

make_callable(__name__)
