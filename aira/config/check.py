"""Holding values to their types: a wrong one is answered with its key, the rule and the nearest valid one."""

from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Discriminator, Tag, TypeAdapter, ValidationError

from aira.config.types import Fact, Finite, Range, Rule, Text, parts, rule
from aira.errors import AiraError, nearest

S = TypeVar("S", bound=BaseModel)

BY_DEFAULT: dict[type, Any] = {bool: bool, int: int, float: Finite, str: Text}
"""The types of keys that are not declared, such as those of a user's own method, by their default."""


def checked(schema: type[S], values: dict[str, Any], defaults: dict[str, Any] | None = None) -> S:
    """Typed settings out of plain ones.

    Args:
        defaults: what the values would be without what the user has set, of which a valid one is named.

    Raises:
        AiraError: a value is wrong, or a key is missing or unknown; the message names it, the rule and a valid value.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        keys, value = _located(first["loc"], values)
        key = ".".join(keys)
        if first["type"] in ("missing", "extra_forbidden"):
            raise AiraError(_of_a_file(schema, keys, values, first["type"] == "missing")) from None
        if first["type"] == "inside":
            inner = first["ctx"]
            raise AiraError(f"{key}.{inner['key']}={inner['value']}: it must be {inner['rule']}.") from None
        found, _ = declared(schema, keys, values)
        raise AiraError(f"{key}={_shown(value)}: {expected(key, found, value, _at(defaults, keys))}") from None


def check_value(schema: type[BaseModel], key: str, value: Any, defaults: dict[str, Any]) -> None:
    """Hold one value to its key's type.

    Args:
        defaults: the values with nothing set; what is chosen by groups stands there.

    Raises:
        AiraError: it is wrong, or the key is none that can be set.
    """
    _check_at(schema, key.split("."), value, defaults)


def _check_at(schema: type[BaseModel], keys: list[str], value: Any, defaults: dict[str, Any]) -> None:
    """See `check_value`; the mappings in it are held to their types one key after the other."""
    key = ".".join(keys)
    annotation, facts = declared(schema, keys, defaults)
    if facts:
        raise AiraError(f"{key}={_shown(value)}: {key} is a fact of the code, and not a setting: {facts[0].instead}.")
    kind, said, _ = parts(annotation)
    is_section = isinstance(kind, type) and issubclass(kind, BaseModel)
    is_mapping = (
        get_origin(kind) is dict and get_args(kind)[1] is not Any and not any(isinstance(e, Rule) for e in said)
    )
    if isinstance(value, dict) and (is_section or is_mapping):
        for inner, each in value.items():
            _check_at(schema, [*keys, str(inner)], each, defaults)
        return
    if annotation is Any:
        annotation = BY_DEFAULT.get(type(_at(defaults, keys)), Any)
    try:
        TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        if "${" in str(value):
            return
        first = error.errors(include_url=False)[0]
        if first["type"] == "inside":
            inside = first["ctx"]
            raise AiraError(f"{key}.{inside['key']}={inside['value']}: it must be {inside['rule']}.") from None
        raise AiraError(f"{key}={_shown(value)}: {expected(key, annotation, value, _at(defaults, keys))}") from None


def declared(schema: Any, keys: list[str], values: Any) -> tuple[Any, list[Fact]]:
    """The type of a key, `Any` where none is declared, and why it is none to set."""
    annotation, facts = schema, []
    for key in keys:
        kind, said, _ = parts(annotation)
        for member in get_args(kind) if get_origin(kind) in (Union, UnionType) else ():
            tags = [each.tag for each in parts(member)[1] if isinstance(each, Tag)]
            chosen = [each.discriminator(values) for each in said if isinstance(each, Discriminator)]  # type: ignore[operator]
            inner = parts(member)[0]
            if tags == chosen and isinstance(inner, type) and issubclass(inner, BaseModel):
                kind = inner
                break
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            fields = {field.alias or name: field for name, field in kind.model_fields.items()}
            extra = kind.__annotations__.get("__pydantic_extra__", dict[str, Any])
            annotation = fields[key].rebuild_annotation() if key in fields else get_args(extra)[1]
        else:
            annotation = get_args(kind)[1] if get_origin(kind) is dict else Any
        facts += [each for each in parts(annotation)[1] if isinstance(each, Fact)]
        values = values.get(key) if isinstance(values, dict) else None
    return annotation, facts


def expected(key: str, annotation: Any, value: Any, default: Any) -> str:
    """Sentences on what a value must be, with the nearest one that is valid."""
    kind, said, nullable = parts(annotation)
    if get_origin(kind) is Literal:
        choices = [str(choice) for choice in get_args(kind)]
        valid = f"valid are {', '.join(['null'] * nullable + choices)}."
        return f"{valid} {nearest(str(value), choices)}".split(" Valid:")[0].strip()
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        names = [field.alias or name for name, field in kind.model_fields.items()]
        return f"it is several keys: {', '.join(f'{key}.{name}' for name in names)}."
    such = next((each.such for each in said if isinstance(each, Rule)), "") or _nearest_value(
        annotation, value, default
    )
    return f"it must be {rule(annotation)}{f', such as {such}' if such else ''}."


def _nearest_value(annotation: Any, value: Any, default: Any) -> str:
    """The value nearest to a wrong one that is right, else the default, as it is typed; nothing where there is none."""
    kind, said, _ = parts(annotation)
    tried: list[Any] = []
    if isinstance(value, str):
        tried += [word == "yes" or word == "on" for word in [value.lower()] if word in ("yes", "no", "on", "off")]
        for number in (int, float):
            try:
                tried.append(number(value))
            except ValueError:
                continue
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value and abs(value) < 1e15:
        tried += [round(value), float(value)] if kind is not bool else [bool(value)] * (value in (0, 1))
    for each in (each for each in said if isinstance(each, Range)):
        tried += [type(one)(min(max(one, each.low), each.high)) for one in tried if one is not None]
    if get_origin(kind) is list:
        tried.append([value])
    for one in (*tried, default):
        if one is not None and "${" not in str(one):
            try:
                TypeAdapter(annotation).validate_python(one, strict=True)
                return _shown(one)
            except ValidationError:
                continue
    return ""


def _shown(value: Any) -> str:
    """A value as it is written in YAML and on the command line."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    return str(value)[:200]


def _located(location: tuple[int | str, ...], values: Any) -> tuple[list[str], Any]:
    """The key of an error, without the names that pydantic adds for the members of a union, and its value."""
    keys: list[str] = []
    for i, part in enumerate(location):
        if isinstance(values, dict) and part in values:
            values = values[part]
            keys.append(str(part))
        elif isinstance(values, dict) and i == len(location) - 1:
            keys.append(str(part))
            values = None
        elif isinstance(values, list):  # one of a list is shown with the whole of it
            break
    return keys, values


def _at(values: Any, keys: list[str]) -> Any:
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _of_a_file(schema: type[BaseModel], keys: list[str], values: dict[str, Any], missing: bool) -> str:
    """What is wrong with a file whose keys are not those of its group."""
    *above, key = keys
    group = _at(values, above)
    named = (
        f"{'.'.join(above)}={group['name']}" if len(above) == 1 and "name" in group else ".".join(above) or "the file"
    )
    if missing:
        return f"{named}: its file has no {key}. Begin it with a line `defaults: [_base]`."
    kind, *_ = declared(schema, above, values)
    fields = getattr(parts(kind)[0], "model_fields", {}) if above else schema.model_fields
    return f"{named}: nothing reads its key {key}. {nearest(key, fields)}"
