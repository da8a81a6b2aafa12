"""Numbers with bounds, as types of the values of recipes and of the options of commands."""

import math
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le, Lt

Positive = Annotated[int, Ge(1), Lt(2**31)]
Count = Annotated[int, Ge(0), Lt(2**31)]
Seed = Annotated[int, Ge(0), Lt(2**32)]
NotNegative = Annotated[float, Ge(0)]
Above0 = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Lt(1)]
UpTo1 = Annotated[float, Gt(0), Le(1)]
T = TypeVar("T")


def check_options(options: T, command: str) -> T:
    """The same options of a command, a dataclass.

    Raises:
        ValueError: a number is out of the bounds of its type, or not finite.
    """
    from pydantic import TypeAdapter, ValidationError

    kind: Any = type(options)
    values = vars(options)
    mistakes = infinite(values)
    try:
        TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        mistakes += map(explain, error.errors())
    if mistakes:
        raise ValueError(f"{command}: {'; '.join(f'--{mistake}'.replace('_', '-') for mistake in mistakes)}")
    return options


def infinite(values: dict[str, Any]) -> list[str]:
    """What is wrong with the numbers that are infinite or NaN."""
    return [
        f"{name}: must be a finite number; got {value}"
        for name, value in values.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]


def explain(error: Any) -> str:
    """One of pydantic's errors in a line: what, why, and what came."""
    name = ".".join(map(str, error["loc"]))
    return f"{name}: {error['msg'][0].lower()}{error['msg'][1:]}; got {error['input']!r}"
