"""--text-field: which part of a record is its text. One set of forms for JSON records and tables.

    text              the field or column of that name
    message.content   a field within a field
    question,answer   several, joined by line ends
    2                 the second column of a table without a header line

The text itself may be a string; a list of strings, joined by line ends; pieces of a message, such as
[{"type": "text", "text": "Hi"}]; or turns of a conversation: [{"role": "user", "content": "Hi"}] -> "user: Hi".
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Where published conversations have their turns, and what they call speaker and text (OpenAI, ShareGPT).
CONVERSATION_FIELDS = ("messages", "conversations", "conversation")
SPEAKER_FIELDS, SPEECH_FIELDS = ("role", "from"), ("content", "value", "text")
# Records within records within records: more is an attack.
MAX_NESTING = 20
ABSENT = object()


class NotTextError(Exception):
    """The value of a text field that is no text, such as a number."""


def text_in(record: Any, text_field: str) -> str | None:
    """The text of a JSON record; None if it is null. Raises KeyError without the field and NotTextError."""
    if not isinstance(record, Mapping):
        return text_of_value(record)
    return _joined([_value(record, name) for name in names_in(text_field, record)])


def names_in(text_field: str, names: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """The fields that --text-field names: itself if there is such a field, else its parts between commas."""
    return [text_field] if text_field in names or "," not in text_field else [*_parts(text_field)]


def text_of_value(value: Any, nesting: int = 0) -> str | None:
    """The text of one field; None for null. Raises NotTextError."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if nesting > MAX_NESTING:
        raise NotTextError
    if isinstance(value, Mapping):
        return _text_of_message(value, nesting)
    if not isinstance(value, list):
        raise NotTextError
    texts = [text_of_value(item, nesting + 1) or "" for item in value]
    # Plain and marked-up pieces of one message alternate: they belong to one line.
    has_pieces = any(isinstance(item, str) for item in value) and any(isinstance(item, Mapping) for item in value)
    return ("" if has_pieces else "\n").join(texts)


def _text_of_message(message: Mapping[str, Any], nesting: int) -> str | None:
    """A turn of a conversation, or a piece of a message."""
    speech = next((message[name] for name in SPEECH_FIELDS if name in message), ABSENT)
    if speech is ABSENT:
        raise NotTextError
    speaker = next((message[name] for name in SPEAKER_FIELDS if isinstance(message.get(name), str)), "")
    text = text_of_value(speech, nesting + 1)
    return f"{speaker}: {text}" if speaker and text else text


def _value(record: Mapping[str, Any], name: str) -> Any:
    """The value at a name or dotted path. Raises KeyError."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if isinstance(value, list):
            value = [item.get(part) for item in value if isinstance(item, Mapping)]
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        elif name == "text" and (turns := next((f for f in CONVERSATION_FIELDS if f in record), "")):
            return record[turns]
        else:
            raise KeyError(name)
    return value


def _joined(values: Sequence[Any]) -> str | None:
    texts = [text for text in map(text_of_value, values) if text is not None]
    return "\n".join(texts) if texts else None


def _parts(text_field: str) -> Iterator[str]:
    return (part.strip() for part in text_field.split(",") if part.strip())
