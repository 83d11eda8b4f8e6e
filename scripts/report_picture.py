"""Make the picture of a report in the guide: train on the digits, open the report in Chromium, and take a screenshot.

    python scripts/report_picture.py

It needs Chromium and Pillow.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PICTURE = Path(__file__).parent.parent / "parallelcnn" / "guide" / "pictures" / "report.png"
WIDTH, HEIGHT = 1160, 2080  # down to the first mistakes
COLOURS = 160  # keep the file small


def main() -> None:
    browser = next(path for name in ("chromium", "google-chrome") if (path := shutil.which(name)))
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "runs" / "digits"
        settings = [
            "--epochs",
            "5",
            "--learning-rate",
            "0.2",
            "--momentum",
            "0.9",
            "--schedule",
            "cosine",
            "--warmup",
            "200",
        ]
        train = [sys.executable, "-m", "parallelcnn", "train", *settings, "--out", "runs/digits"]
        subprocess.run(train, check=True, cwd=place)
        shot = Path(place) / "report.png"
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"]
        subprocess.run([browser, *options, f"--screenshot={shot}", (out / "report.html").as_uri()], check=True)
        with Image.open(shot) as image:
            image.convert("RGB").quantize(COLOURS).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
