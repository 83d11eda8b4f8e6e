"""Run a program so that it counts the bytes that it allocates, in the same way for all frameworks."""

import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("count_allocations.c")


def build_counter(folder: str | Path) -> dict[str, str] | None:
    """Compile the counter into a folder.

    Returns:
        the environment variables that make a program count; None if there is no C compiler or no glibc.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    library = Path(folder).resolve() / "count_allocations.so"
    if compiler is None:
        return None
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
    if subprocess.run(command, stderr=subprocess.DEVNULL).returncode != 0:
        return None
    preloaded = " ".join(filter(None, [str(library), os.environ.get("LD_PRELOAD", "")]))
    # Without Python's own memory pools, which allocate a block once and use it many times.
    return {"LD_PRELOAD": preloaded, "PYTHONMALLOC": "malloc"}
