"""Opens a page in the user's browser, where there is one to see."""

import os
import sys
import threading
import webbrowser
from collections.abc import Mapping


def open_page(url: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Open `url` in a new tab, without waiting. False where no screen is near: over SSH, or without a display."""
    if not has_screen(environment, sys.platform):
        return False
    threading.Thread(target=webbrowser.open_new_tab, args=(url,), name="browser", daemon=True).start()
    return True


def has_screen(environment: Mapping[str, str], platform: str) -> bool:
    """Whether a browser that is started here would be seen by the user."""
    if "SSH_CONNECTION" in environment or "SSH_TTY" in environment:
        return False
    if platform in ("win32", "darwin"):
        return True
    return bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY") or environment.get("BROWSER"))
