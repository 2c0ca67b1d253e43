"""Validation of values: an error names the key, the rule and the nearest valid value."""

from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Discriminator, Tag, TypeAdapter, ValidationError

from aira.config.types import Fact, Finite, Range, Rule, Text, describe_type, unwrap_type
from aira.errors import AiraError, nearest

S = TypeVar("S", bound=BaseModel)

BY_DEFAULT: dict[type, Any] = {bool: bool, int: int, float: Finite, str: Text}
"""Types of keys that are not declared, such as those of a user's own method, by the type of their default."""


def validate(schema: type[S], values: dict[str, Any], defaults: dict[str, Any] | None = None) -> S:
    """Typed settings from a dict.

    Args:
        defaults: the values without the user's overrides, for suggestions.

    Raises:
        AiraError: a value is wrong, or a key is missing or unknown; the message names it, the rule and a valid value.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        keys, value = _locate(first["loc"], values)
        key = ".".join(keys)
        if first["type"] in ("missing", "extra_forbidden"):
            raise AiraError(_file_error(schema, keys, values, first["type"] == "missing")) from None
        annotation, _ = declared_type(schema, keys, values)
        raise _value_error(error, key, annotation, value, _get(defaults, keys)) from None


def check_value(schema: type[BaseModel], key: str, value: Any, defaults: dict[str, Any]) -> None:
    """Validate one value by the type of its key.

    Args:
        defaults: the values without overrides of keys, but with the options of groups.

    Raises:
        AiraError: the value is wrong, or the key cannot be set.
    """
    _check_at(schema, key.split("."), value, defaults)


def _check_at(schema: type[BaseModel], keys: list[str], value: Any, defaults: dict[str, Any]) -> None:
    """See `check_value`; mappings are validated key by key."""
    key = ".".join(keys)
    annotation, facts = declared_type(schema, keys, defaults)
    if facts:
        raise AiraError(f"{key}={_as_yaml(value)}: {key} cannot be set directly: {facts[0].instead}.")
    kind, metadata, _ = unwrap_type(annotation)
    is_section = isinstance(kind, type) and issubclass(kind, BaseModel)
    is_mapping = (
        get_origin(kind) is dict
        and get_args(kind)[1] is not Any
        and not any(isinstance(each, Rule) for each in metadata)
    )
    if isinstance(value, dict) and (is_section or is_mapping):
        for name, item in value.items():
            _check_at(schema, [*keys, str(name)], item, defaults)
        return
    if annotation is Any:
        annotation = BY_DEFAULT.get(type(_get(defaults, keys)), Any)
    try:
        TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        if "${" in str(value):
            return
        raise _value_error(error, key, annotation, value, _get(defaults, keys)) from None


def _value_error(error: ValidationError, key: str, annotation: Any, value: Any, default: Any) -> AiraError:
    """The error for a wrong value, or for the key inside of it that the validation names."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "inside":
        inner = first["ctx"]
        return AiraError(f"{key}.{inner['key']}={inner['value']}: it must be {inner['rule']}.")
    return AiraError(f"{key}={_as_yaml(value)}: {expectation(key, annotation, value, default)}")


def declared_type(schema: Any, keys: list[str], values: Any) -> tuple[Any, list[Fact]]:
    """The type of a key, `Any` if none is declared, and the facts that say why it cannot be set."""
    annotation, facts = schema, []
    for key in keys:
        kind, metadata, _ = unwrap_type(annotation)
        for member in get_args(kind) if get_origin(kind) in (Union, UnionType) else ():
            tags = [each.tag for each in unwrap_type(member)[1] if isinstance(each, Tag)]
            chosen = [each.discriminator(values) for each in metadata if isinstance(each, Discriminator)]  # type: ignore[operator]
            inner = unwrap_type(member)[0]
            if tags == chosen and isinstance(inner, type) and issubclass(inner, BaseModel):
                kind = inner
                break
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            fields = {field.alias or name: field for name, field in kind.model_fields.items()}
            extra = kind.__annotations__.get("__pydantic_extra__", dict[str, Any])
            annotation = fields[key].rebuild_annotation() if key in fields else get_args(extra)[1]
        else:
            annotation = get_args(kind)[1] if get_origin(kind) is dict else Any
        facts += [each for each in unwrap_type(annotation)[1] if isinstance(each, Fact)]
        values = values.get(key) if isinstance(values, dict) else None
    return annotation, facts


def expectation(key: str, annotation: Any, value: Any, default: Any) -> str:
    """Sentences on what a value must be, with the nearest valid one."""
    kind, metadata, nullable = unwrap_type(annotation)
    if get_origin(kind) is Literal:
        choices = [str(choice) for choice in get_args(kind)]
        valid = f"valid are {', '.join(['null'] * nullable + choices)}."
        return f"{valid} {nearest(str(value), choices)}".split(" Valid:")[0].strip()
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        names = [field.alias or name for name, field in kind.model_fields.items()]
        return f"it is several keys: {', '.join(f'{key}.{name}' for name in names)}."
    example = next((each.example for each in metadata if isinstance(each, Rule)), "")
    example = example or _nearest_value(annotation, value, default)
    return f"it must be {describe_type(annotation)}{f', such as {example}' if example else ''}."


def _nearest_value(annotation: Any, value: Any, default: Any) -> str:
    """The valid value nearest to a wrong one, else the default, as in YAML; empty if there is none."""
    kind, metadata, _ = unwrap_type(annotation)
    candidates: list[Any] = []
    if isinstance(value, str):
        candidates += [word == "yes" or word == "on" for word in [value.lower()] if word in ("yes", "no", "on", "off")]
        for number in (int, float):
            try:
                candidates.append(number(value))
            except ValueError:
                continue
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value and abs(value) < 1e15:
        candidates += [round(value), float(value)] if kind is not bool else [bool(value)] * (value in (0, 1))
    for bounds in (each for each in metadata if isinstance(each, Range)):
        candidates += [type(each)(min(max(each, bounds.low), bounds.high)) for each in candidates if each is not None]
    if get_origin(kind) is list:
        candidates.append([value])
    for candidate in (*candidates, default):
        if candidate not in (None, "???") and "${" not in str(candidate):
            try:
                TypeAdapter(annotation).validate_python(candidate, strict=True)
                return _as_yaml(candidate)
            except ValidationError:
                continue
    return ""


def _as_yaml(value: Any) -> str:
    """A value as in YAML and on the command line."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_as_yaml, value))}]"
    return str(value)[:200]


def _locate(location: tuple[int | str, ...], values: Any) -> tuple[list[str], Any]:
    """The key of an error and its value; the names that pydantic adds for members of a union are left out."""
    keys: list[str] = []
    for i, part in enumerate(location):
        if isinstance(values, dict) and part in values:
            values = values[part]
            keys.append(str(part))
        elif isinstance(values, dict) and i == len(location) - 1:
            keys.append(str(part))
            values = None
        elif isinstance(values, list):  # an item is reported with its whole list
            break
    return keys, values


def _get(values: Any, keys: list[str]) -> Any:
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _file_error(schema: type[BaseModel], keys: list[str], values: dict[str, Any], missing: bool) -> str:
    """The error for a file whose keys are not those of its group."""
    *above, key = keys
    group = _get(values, above)
    named = (
        f"{'.'.join(above)}={group['name']}" if len(above) == 1 and "name" in group else ".".join(above) or "the file"
    )
    if missing and key == "_target_":
        return (
            f"{named} has no _target_: the class that it is, or a function that builds one; all else are its arguments."
        )
    if missing:
        return f"{named}: its file has no {key}. Begin it with a line `defaults: [_base]`."
    kind, *_ = declared_type(schema, above, values)
    fields = getattr(unwrap_type(kind)[0], "model_fields", {}) if above else schema.model_fields
    return f"{named}: nothing reads its key {key}. {nearest(key, fields)}"
