"""`parallelcnn guide [PAGE]`: show a page of the user guide, which is installed with the package."""

import argparse
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parallelcnn.errors import nearest_name

if TYPE_CHECKING:
    from parallelcnn.comm import Transport

_GUIDE = Path(__file__).parent.parent / "guide"
_LINK = re.compile(r"!?\[([^]\n]+)\]\([\w./#-]+\)")
_NO_SUCH_PROGRAM = (126, 127)  # exit codes of the shell


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "guide", help="show a page of the user guide", description="Show a page of the user guide."
    )
    page: Any = parser.add_argument(
        "page", nargs="?", default="index", type=_find_page, metavar="PAGE", help="by default the list of pages"
    )
    page.completer = lambda **_: _pages()  # for argcomplete; see `command._complete`
    parser.set_defaults(run=run, strict=None, timeout=0)


def run(options: argparse.Namespace, comm: "Transport") -> int:
    """Print the page on rank 0, through $PAGER if stdout is a terminal."""
    from parallelcnn.resilience.launch import launched_rank

    if launched_rank() == 0:
        text = _LINK.sub(r"\1", options.page.read_text(encoding="utf-8"))
        pager = os.environ.get("PAGER", "less -R")
        if not (pager and sys.stdout.isatty() and _run_pager(pager, text)):
            print(text, end="")
    return 0


def _pages() -> list[str]:
    return sorted(path.stem for path in _GUIDE.glob("*.md"))


def _find_page(name: str) -> Path:
    pages = _pages()
    if name not in pages:
        raise argparse.ArgumentTypeError(f"the guide has no page {name!r}: {nearest_name(name, pages)}")
    return _GUIDE / f"{name}.md"


def _run_pager(pager: str, text: str) -> bool:
    """Whether the pager, a shell command, could be started."""
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the pager; `main` restores the handler
    return subprocess.run(pager, shell=True, input=text, text=True).returncode not in _NO_SUCH_PROGRAM
