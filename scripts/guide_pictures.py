"""Make the pictures of the guide: a report and a comparison of runs, as Chromium shows them, and a contact sheet.

    python scripts/guide_pictures.py

It trains on the digits. Run it on a machine that does nothing else, since the pictures show times. It needs Chromium
and Pillow.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PICTURES = Path(__file__).parent.parent / "parallelcnn" / "guide" / "pictures"
RUNS = {
    "constant": ["--learning-rate", "0.1"],
    "momentum": ["--learning-rate", "0.1", "--momentum", "0.9"],
    "cosine": ["--learning-rate", "0.2", "--momentum", "0.9", "--schedule", "cosine", "--warmup", "200"],
}
COLOURS = 160  # keep the files small


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for run, settings in RUNS.items():
            parallelcnn("train", "--model", "paper", "--epochs", "5", *settings, "--out", f"runs/{run}", place=place)
        parallelcnn("runs", "--plot", "runs.html", place=place)
        take(place / "runs" / "cosine" / "report.html", "report.png", 1160, 2080)  # down to the first mistakes
        take(place / "runs.html", "runs.png", 1240, 800)
        parallelcnn("data", "digits", "--out", ".", place=place)
        store(place / "contact-sheet.png", "contact-sheet.png")


def parallelcnn(*arguments: str, place: Path) -> None:
    """Run the command in a directory."""
    subprocess.run([sys.executable, "-m", "parallelcnn", *arguments], check=True, cwd=place)


def take(page: Path, picture: str, width: int, height: int) -> None:
    """Take a picture of the upper part of a page."""
    browser = next(path for name in ("chromium", "google-chrome") if (path := shutil.which(name)))
    shot = page.with_suffix(".png")
    options = ["--headless", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"]
    command = [browser, *options, f"--window-size={width},{height}", f"--screenshot={shot}", page.as_uri()]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    store(shot, picture)


def store(file: Path, picture: str) -> None:
    """Store a picture in the guide, with few colours."""
    with Image.open(file) as image:
        image.convert("RGB").quantize(COLOURS).save(PICTURES / picture, optimize=True)
    print(f"{PICTURES / picture}: {(PICTURES / picture).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
