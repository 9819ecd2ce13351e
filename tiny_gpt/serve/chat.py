"""A conversation as one prompt. Models trained here continue text; they know no roles. So there are two plain forms:

- text: the turns write one text together. A user's turn begins on a new line, unless it begins with white space or the
  text so far ends in it; the model continues right where the last turn ends. A system message comes first,
  followed by an empty line.
- dialogue: for models of dialogues. Each turn is a paragraph that begins with its speaker, and the model writes the
  one after "Assistant:", up to the next "User:".
"""

from collections.abc import Sequence

SPEAKERS = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}


def render_messages(messages: Sequence[tuple[str, str]], form: str) -> tuple[str, tuple[str, ...]]:
    """The prompt for messages (role, text) in the form "text" or "dialogue", and the texts that end the answer.

    >>> render_messages([("user", "Once"), ("assistant", " upon a time."), ("user", "Then")], "text")[0]
    'Once upon a time.\\nThen'
    >>> render_messages([("user", "Hello")], "dialogue")[0]
    'User: Hello\\n\\nAssistant:'
    """
    if form == "dialogue":
        turns = [f"{SPEAKERS[role]}: {text.strip()}" for role, text in messages]
        return "\n\n".join([*turns, f"{SPEAKERS['assistant']}:"]), (f"\n{SPEAKERS['user']}:",)
    prompt = ""
    for role, text in messages:
        if role in ("system", "developer"):
            prompt += f"{text}\n\n" if text else ""
            continue
        starts_line = role == "user" and prompt and text and not prompt[-1].isspace() and not text[0].isspace()
        prompt += f"\n{text}" if starts_line else text
    return prompt, ()
