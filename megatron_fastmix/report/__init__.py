"""What people look at: metrics, progress, pictures, tables and the report page."""

from megatron_fastmix.callable_room import make_callable

make_callable(__name__)
