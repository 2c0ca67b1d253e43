"""Types of configuration values, each with the rule that its error message states."""

import functools
import math
import operator
import re
from fnmatch import fnmatchcase
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class Range(NamedTuple):
    """The range of a number; NaN and infinity are in no range."""

    low: float = -math.inf
    high: float = math.inf
    without: tuple[float, ...] = ()  # bounds that are excluded, or a number between them
    whole_above: float = math.inf  # a number above this is a count, so it must be whole

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        whole = isinstance(value, int) or value <= self.whole_above
        return whole and self.low <= value <= self.high and value not in self.without

    def __str__(self) -> str:
        if len(self.without) == 2:
            bounds = [f"between {self.low:g} and {self.high:g}"]
        else:
            low = f"above {self.low:g}" if self.low in self.without else f"of at least {self.low:g}"
            high = f"below {self.high:g}" if self.high in self.without else f"at most {self.high:.10g}"
            bounds = [low] * math.isfinite(self.low) + [high] * math.isfinite(self.high)
        bounds += [f"not {value:g}" for value in self.without if value not in (self.low, self.high)]
        fraction = f"; above {self.whole_above:g} it is a count, and so whole"
        kind = "a whole number" if self.whole_above < 0 else "a number"
        return " ".join([kind, " and ".join(bounds)]).rstrip() + fraction * (0 <= self.whole_above < math.inf)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Called by pydantic for a range in an `Annotated`."""
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def check(self, value: float) -> float:
        """The value, if it is in the range."""
        if value not in self:
            raise PydanticCustomError("range", "out of range")
        return value


class Rule(NamedTuple):
    """What a value must be, in words, if its type does not say it well, with an example."""

    words: str
    example: str = ""


class Fact(NamedTuple):
    """A key that is set by the chosen option, not by the user."""

    instead: str


PositiveInt = Annotated[int, Range(1, whole_above=-1)]
NonNegativeInt = Annotated[int, Range(0, whole_above=-1)]
Length = Annotated[int, Range(2, whole_above=-1)]
Finite = Annotated[float, Range()]
NonNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, without=(0,))]
Probability = Annotated[float, Range(0, 1)]
Below1 = Annotated[float, Range(0, 1, (1,))]
Between = Annotated[float, Range(0, 1, (0, 1))]
Seed = Annotated[int, Range(0, 2**32 - 1, whole_above=-1)]
Amount = Annotated[int | float, Range(0, whole_above=1)]
"""A fraction, or a number of steps or batches."""


def steps_of(amount: float, steps: int) -> int:
    """An `Amount` as a number of steps: below 1 it is a fraction of all steps, rounded up."""
    return math.ceil(amount * steps) if amount < 1 else int(amount)


def _require(value: Any, valid: bool) -> Any:
    """The value, if it is valid."""
    if not valid:
        raise PydanticCustomError("value", "wrong")
    return value


def _text(value: str) -> str:
    return str(_require(value, value != ""))


def _two(betas: list[float]) -> list[float]:
    _require(betas, len(betas) == 2)
    return betas


Betas = Annotated[
    list[Below1], AfterValidator(_two), Rule("a list of two numbers of at least 0 and below 1", "[0.9,0.999]")
]
Text = Annotated[str, AfterValidator(_text)]
"""Text that is not empty."""


def _country(value: str) -> str:
    return str(_require(value, re.fullmatch("[A-Z]{3}", value) is not None))


Country = Annotated[str, AfterValidator(_country), Rule("the three-letter ISO code of a country", "BRA")]


def _column(value: Any) -> Any:
    names = value if isinstance(value, list) else [value]
    return _require(value, bool(names) and all(isinstance(name, str) and name for name in names))


Columns = Annotated[
    dict[str, Annotated[Any, AfterValidator(_column)]],
    Rule("a mapping to a column or a list of them (a number needs quotes)", "'{prompt: question}'"),
]


def _class(value: Any) -> Any:
    return _require(value, value is None or (type(value) is int and value in (0, 1)))


Labels = Annotated[
    dict[Any, Annotated[Any, AfterValidator(_class)]],
    Rule("a mapping in which 1 is toxic, 0 not, and null leaves out", "'{OFF: 1, NOT: 0, UNSURE: null}'"),
]


def _devices(value: Any) -> Any:
    is_list = isinstance(value, list) and len(value) > 0 and all(gpu in Range(0, whole_above=-1) for gpu in value)
    valid = value == "auto" or value in Range(1, whole_above=-1) or (is_list and len(set(value)) == len(value))
    return _require(value, valid)


Devices = Annotated[
    Any, AfterValidator(_devices), Rule("a number from 1 on, or auto, or a list of GPUs such as [0,1]", "auto")
]


def _class_weights(value: Any) -> Any:
    pair = isinstance(value, list) and len(value) == 2 and all(weight in Range(0, without=(0,)) for weight in value)
    return _require(value, pair or value in (None, "balanced"))


ClassWeights = Annotated[
    Any, AfterValidator(_class_weights), Rule("null, balanced, or [harmless, toxic] above 0", "balanced")
]

SIZES = ("n_*", "num_*", "*_size", "*_dim", "max_position_embeddings")
"""Names of counts in a model's configuration."""


def _sizes(config: dict[str, Any]) -> dict[str, Any]:
    for name, value in config.items():
        is_size = any(fnmatchcase(name, pattern) for pattern in SIZES)
        allowed = Range(1, whole_above=-1) if is_size else Range()
        if value not in allowed and ((is_size and value is not None) or isinstance(value, float)):
            raise PydanticCustomError("inside", "wrong", {"key": name, "value": value, "rule": str(allowed)})
    return config


Architecture = Annotated[dict[str, Any], AfterValidator(_sizes)]
"""Arguments of a Transformers configuration."""


def unwrap_type(annotation: Any) -> tuple[Any, list[Any], bool]:
    """A type without `Annotated` and `None`, its metadata, and whether it may be null."""
    metadata: list[Any] = []
    nullable = False
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            metadata += more
        elif get_origin(annotation) in (Union, UnionType) and NoneType in get_args(annotation):
            nullable = True
            others = [each for each in get_args(annotation) if each is not NoneType]
            annotation = functools.reduce(operator.or_, others)
        else:
            return annotation, metadata, nullable


def describe_type(annotation: Any) -> str:
    """What a value of a type must be, in words."""
    kind, metadata, nullable = unwrap_type(annotation)
    null = "null, or " if nullable else ""
    for each in metadata:
        if isinstance(each, Rule):
            return null + each.words
        if isinstance(each, Range):
            return null + str(each)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(['null'] * nullable + [str(choice) for choice in get_args(kind)])}"
    if get_origin(kind) in (Union, UnionType):
        return null + ", or ".join(dict.fromkeys(describe_type(each) for each in get_args(kind)))
    if kind is bool:
        return null + "true or false"
    if get_origin(kind) is list:
        return f"{null}a list, each of it {describe_type(get_args(kind)[0])}"
    if get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return null + "a mapping: {name: value}"
    return null + {str: "text (a number needs quotes)", int: "a whole number", float: "a number"}.get(kind, "any value")
