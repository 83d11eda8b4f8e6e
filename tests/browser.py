"""Opening pages in Chromium, without a window."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


def chromium() -> str:
    """The browser; skips the test where none is installed."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no browser: apt install chromium")
    return found


def open_page(file: Path, *arguments: str, profile: Path, width: int = 1200, height: int = 900) -> str:
    """Open a page with these arguments of Chromium.

    Returns:
        What it prints, with messages of the page's console as lines that contain "CONSOLE".
    """
    command = [
        *(
            chromium(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--enable-logging=stderr",
        ),
        *(f"--window-size={width},{height}", f"--user-data-dir={profile}", *arguments, file.as_uri()),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout + ran.stderr


def layouts(pages: dict[str, bytes], widths: Sequence[int], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The layout of each page at each width: how wide it gets and how high, the elements that stick out of it ("out"),
    and whether it shows all its images.

    The pages are shown inside another one, since windows cannot be as narrow as phones.
    """
    frames = [
        f'<iframe srcdoc="{html.escape(_POLICY.sub("", page.decode()))}" width={width} style="border:0"></iframe>'
        for page in pages.values()
        for width in widths
    ]
    script = """
        const measured = frame => {
        const inner = frame.contentDocument, body = inner.documentElement;
        const out = [...inner.querySelectorAll("body *")].filter(one =>
            !one.closest(".scroll") && one.getBoundingClientRect().right > body.clientWidth + 0.5);
        return {
            width: body.scrollWidth, height: body.scrollHeight,
            images: [...inner.images].every(one => one.naturalWidth > 0),
            out: out.map(one => one.tagName + "." + one.className),
        }};
        document.body.dataset.found = JSON.stringify([...document.querySelectorAll("iframe")].map(measured));
    """
    file = folder / "layouts.html"
    loaded = f'<script>addEventListener("load", () => {{ {script} }})</script>'
    file.write_text(f"<!DOCTYPE html><body>{''.join(frames)}{loaded}", encoding="utf-8")
    shown = open_page(file, "--dump-dom", profile=folder / "profile")
    found = re.search(r'data-found="([^"]*)"', shown)
    assert found, shown
    measured = iter(json.loads(html.unescape(found[1])))
    return {name: [next(measured) for _ in widths] for name in pages}
