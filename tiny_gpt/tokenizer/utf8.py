"""Text to UTF-8 and back without ever failing: what is no character survives as U+FFFD or as a lone surrogate."""

import codecs

LENIENT = "tiny_gpt.surrogate_or_replacement"


def to_utf8(text: str) -> bytes:
    """UTF-8 that also carries lone surrogates, which a prompt from a terminal may hold."""
    return text.encode("utf-8", "surrogatepass")


def _surrogate_or_replacement(error: UnicodeError) -> tuple[str | bytes, int]:
    """What `to_utf8` can write is read back; all else that is not UTF-8 becomes U+FFFD."""
    try:
        return codecs.lookup_error("surrogatepass")(error)
    except UnicodeError:
        return codecs.lookup_error("replace")(error)


codecs.register_error(LENIENT, _surrogate_or_replacement)
