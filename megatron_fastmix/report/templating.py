"""The page's templates: jinja2 with autoescape, so that no name of a source becomes markup."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from megatron_fastmix.report.durations import duration
from megatron_fastmix.report.number_texts import amount, short


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("megatron_fastmix.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"amount": amount, "short": short, "duration": duration}
    return environment


def render(template: str, **values: Any) -> str:
    """The text of `templates/TEMPLATE` with `values`; a value that it lacks raises jinja2's
    `UndefinedError`."""
    return _environment().get_template(template).render(values)
