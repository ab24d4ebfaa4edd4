"""Checks of single fields of records: kinds of JSON values, texts, names, and valid Unicode. Errors name the place."""

import unicodedata
from collections.abc import Iterable, Mapping

from mechprobe.errors import InputError


def json_kind(value: object) -> str:
    """What a JSON value is, in words: ``a number``, ``a list``."""
    for kinds, words in _KINDS:
        if isinstance(value, kinds):
            return words
    return "null" if value is None else f"a {type(value).__name__}"


_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "true or false"),
    ((int, float), "a number"),
    (str, "a text"),
    ((list, tuple), "a list"),
    (Mapping, "an object"),
)


def encodable(text: str) -> bool:
    """Whether UTF-8 can encode a text. JSON and Python allow half a surrogate pair, which tokenizers reject."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_unicode(value: object, where: str, name: str = "") -> None:
    """Refuse text that is not valid Unicode anywhere in a JSON value; ``name`` is the field that holds it.

    Raises:
        InputError: A text or the name of a field has half a surrogate pair; the message begins with ``where``.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not encodable(str(key)):
                raise InputError(
                    f"{where}: the name of a field, {key!a}, has half a surrogate pair, which is not a character; correct it."
                )
            check_unicode(item, where, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            check_unicode(item, where, f"{name}[{number}]")
    elif isinstance(value, str) and not encodable(value):
        raise InputError(f"{where}: '{name}' has half a surrogate pair, which is not a character; correct it.")


def full_text(value: object, name: str, where: str) -> str:
    """Return ``value``, the field ``name`` of a record, if it is a text that is not blank.

    Raises:
        InputError: It is not; the message begins with ``where``, the file and line of the record.
    """
    if value is None:
        raise InputError(f"{where}: '{name}' is empty (null); fill it in or remove the line.")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InputError(f"{where}: '{name}' is {json_kind(value)}; it must be text.")
    if not isinstance(value, str):
        raise InputError(f"{where}: '{name}' is the number {value}; it must be text, so write it in quotes.")
    if not value.strip():
        raise InputError(f"{where}: '{name}' is empty; fill it in or remove the line.")
    check_unicode(value, where, name)
    return value


def text_field(item: Mapping[str, object], name: str, where: str, default: str | None = None) -> str:
    """Return the text in the field ``name`` of a record, or ``default`` if the field is absent.

    Raises:
        InputError: The field is absent without a default, or `full_text` refuses it.
    """
    if name not in item:
        if default is not None:
            return default
        found = ", ".join(sorted(item)) or "nothing"
        raise InputError(f"{where} has no field '{name}' (it has {found}); add it.")
    return full_text(item[name], name, where)


def name_field(item: Mapping[str, object], name: str, where: str, default: str) -> str:
    """`text_field` for names, which tables and figures print: control characters such as NUL and line breaks are refused."""
    return printable_name(text_field(item, name, where, default=default), name, where)


def printable_name(text: str, name: str, where: str) -> str:
    """Return ``text``, the field ``name`` of a record, if it has no control character; `InputError` if it has."""
    control = next((char for char in text if unicodedata.category(char) == "Cc"), None)
    if control is not None:
        raise InputError(f"{where}: '{name}' has the control character {control!a}, but it is a name; remove it.")
    return text


def printable_models(names: Iterable[str], where: str) -> None:
    """Refuse names of models with control or direction characters, on which a terminal acts.

    Raises:
        InputError: A name has one; the message begins with ``where`` and spells the name out.
    """
    for name in names:
        if not name.isprintable():
            raise InputError(f"{where}: the name {name!a} has a character that cannot be printed; rename the model.")
