"""MNIST by name: where it is looked for, and downloads from servers that fail in every way they can.

The servers run on this machine and hand out four small files, whose checksums stand in for MNIST's.
"""

import gzip
import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from parallelcnn.data import load_data, load_mnist, mnist
from parallelcnn.errors import DataError

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = mnist.CHECKSUMS


def small_files():
    """Four small IDX files by name, not compressed."""
    rng = np.random.default_rng(7)
    files = {}
    for images_name, labels_name, count in (
        (TRAIN_IMAGES, TRAIN_LABELS, 300),
        (TEST_IMAGES, TEST_LABELS, 40),
    ):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        files[images_name] = b"\0\0\x08\x03" + struct.pack(">3I", *pixels.shape) + pixels.tobytes()
        labels = np.arange(count, dtype=np.uint8) % 10
        files[labels_name] = b"\0\0\x08\x01" + struct.pack(">I", count) + labels.tobytes()
    return files


FILES = small_files()
CHECKSUMS = {name: hashlib.md5(content).hexdigest() for name, content in FILES.items()}
COMPRESSED = {name: gzip.compress(content, mtime=0) for name, content in FILES.items()}


class Server(ThreadingHTTPServer):
    """Serves the small files, well or badly, as the first folder of the address asks."""

    daemon_threads = False
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.closing = threading.Event()
        self.requests = []
        self.wrong_files = {}

    def mirror(self, behaviour):
        return f"http://127.0.0.1:{self.server_port}/{behaviour}"

    def handle_error(self, request, client_address):
        """A client that hangs up is what several tests are about."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        _, behaviour, name = self.path.split("/")
        self.server.requests.append((behaviour, name))
        getattr(self, behaviour)(COMPRESSED[name])

    def begin(self, length):
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def good(self, content):
        self.begin(len(content))
        self.wfile.write(content)

    def unannounced(self, content):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content)

    def unpacked(self, content):
        self.good(gzip.decompress(content))

    def slow_but_good(self, content):
        self.begin(len(content))
        for start in range(0, len(content), 20_000):
            self.wfile.write(content[start : start + 20_000])
            self.server.closing.wait(0.01)

    def moved(self, content):
        self.send_response(302)
        self.send_header("Location", self.path.replace("/moved/", "/good/"))
        self.end_headers()

    def missing(self, content):
        self.send_error(404)

    def broken(self, content):
        self.send_error(503)

    def no_http(self, content):
        self.wfile.write(b"\x1b[2J\x07no HTTP\r\n\r\n")

    def inflating(self, content):
        self.good(gzip.compress(bytes(2_500_000), mtime=0))

    def truncated(self, content):
        self.begin(len(content))
        self.wfile.write(content[: len(content) // 2])

    def truncated_and_unannounced(self, content):
        self.unannounced(content[: len(content) // 2])

    def corrupt(self, content):
        damaged = bytearray(content)
        damaged[len(content) // 2] ^= 0x10
        self.good(damaged)

    def wrong(self, content):
        self.good(gzip.compress(gzip.decompress(content)[:-1] + b"\0", mtime=0))

    def web_page(self, content):
        self.good(b"<html>Please log in to the wireless network</html>")

    def empty(self, content):
        self.good(b"")

    def endless(self, content):
        self.send_response(200)
        self.end_headers()
        while not self.server.closing.is_set():
            self.wfile.write(bytes(1 << 16))

    def silent(self, content):
        self.server.closing.wait(30)

    def stalled(self, content):
        self.begin(len(content))
        self.wfile.write(content[:10])
        self.server.closing.wait(30)

    def trickling(self, content):
        self.begin(len(content))
        for byte in content:
            self.wfile.write(bytes([byte]))
            if self.server.closing.wait(0.05):
                break

    def log_message(self, *_):
        """Nothing: pytest shows what the tests say."""


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def small_mnist(monkeypatch):
    """Small files in place of MNIST's, short time-outs, and no way to a cache or mirror outside."""
    monkeypatch.setattr(mnist, "CHECKSUMS", CHECKSUMS)
    monkeypatch.setattr(mnist, "MIRRORS", ("http://127.0.0.1:9/closed",))
    monkeypatch.setattr(mnist, "READ_TIMEOUT", 0.4)
    monkeypatch.setattr(mnist, "FILE_TIMEOUT", 1.0)
    for name in ("PARALLELCNN_CACHE", "PARALLELCNN_MNIST_MIRRORS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder that the cache's MNIST is to appear in."""
    monkeypatch.setenv("PARALLELCNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mnist"


def fill(folder, files=COMPRESSED):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def refusal(*arguments, **options):
    with pytest.raises(DataError) as caught:
        load_mnist(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_is_small_mnist(datasets):
    train, test = datasets
    assert (len(train), len(test), train.classes, train.name) == (300, 40, 10, "mnist")
    assert train.images.tobytes() == FILES[TRAIN_IMAGES][16:]
    assert test.images.tobytes() == FILES[TEST_IMAGES][16:]


def assert_holds_exactly_the_four_files(folder):
    assert sorted(os.listdir(folder)) == sorted(CHECKSUMS)
    for name, checksum in CHECKSUMS.items():
        assert hashlib.md5(gzip.decompress((folder / name).read_bytes())).hexdigest() == checksum


@pytest.mark.parametrize("subfolder", ["", "mnist", "MNIST/raw"])
def test_the_files_are_found_in_the_data_folder_and_below(tmp_path, subfolder):
    fill(tmp_path / "data" / subfolder)
    assert_is_small_mnist(load_mnist(tmp_path / "data"))
    assert_is_small_mnist(load_data("mnist", str(tmp_path / "data")))


def test_missing_files_in_the_data_folder_are_named_and_not_downloaded(tmp_path, cache, server):
    fill(tmp_path / "data", {TRAIN_LABELS: COMPRESSED[TRAIN_LABELS]})
    message = refusal(tmp_path / "data", mirrors=[server.mirror("good")])
    assert message.startswith(f"{tmp_path / 'data'}: misses train-images-idx3-ubyte, t10k-images-")
    assert not server.requests
    assert not cache.exists()


def test_a_file_missing_below_the_data_folder_is_told_of_that_folder(tmp_path):
    fill(tmp_path / "data" / "mnist", {TRAIN_LABELS: COMPRESSED[TRAIN_LABELS]})
    message = refusal(tmp_path / "data")
    assert message.startswith(f"{tmp_path / 'data' / 'mnist'}: misses train-images-idx3-ubyte, ")


def test_a_data_folder_that_is_not_there_is_named(tmp_path):
    assert refusal(tmp_path / "gone") == f"{tmp_path / 'gone'}: there is no such folder"


def test_variants_of_mnist_in_the_data_folder_are_taken(tmp_path):
    variant = FILES[TRAIN_IMAGES][:-1] + b"\x05"
    fill(tmp_path / "data", COMPRESSED | {TRAIN_IMAGES: gzip.compress(variant)})
    assert load_mnist(tmp_path / "data")[0].images[-1, -1, -1] == 5


def test_mnist_has_ten_classes(tmp_path):
    labels = FILES[TRAIN_LABELS][:-1] + b"\x0b"
    fill(tmp_path / "data", COMPRESSED | {TRAIN_LABELS: gzip.compress(labels)})
    assert "labels must lie in [0, 10), got 11 at sample 299" in refusal(tmp_path / "data")


@pytest.mark.parametrize("behaviour", ["good", "unannounced", "unpacked", "slow_but_good", "moved"])
def test_the_files_are_downloaded_into_the_cache_once(cache, server, capfd, behaviour):
    mirrors = [server.mirror(behaviour)]
    assert_is_small_mnist(load_mnist(mirrors=mirrors))
    assert sorted(os.listdir(cache)) == sorted(CHECKSUMS)
    line = f"parallelcnn: downloading MNIST (11 MB) from {mirrors[0]} to {cache}\n"
    assert capfd.readouterr() == ("", line)
    asked = len(server.requests)
    assert_is_small_mnist(load_mnist(mirrors=mirrors))
    assert len(server.requests) == asked
    assert capfd.readouterr() == ("", "")


def test_a_download_can_be_silent_or_show_bars(cache, tmp_path, server, capfd):
    load_mnist(mirrors=[server.mirror("good")], progress=False)
    assert capfd.readouterr() == ("", "")
    load_mnist(mirrors=[server.mirror("good")], progress=True, cache_dir=tmp_path / "other")
    assert f"{TEST_LABELS}: 100%" in capfd.readouterr().err


BAD_MIRRORS = {
    "missing": "answers with HTTP status 404",
    "broken": "answers with HTTP status 503",
    "no_http": r"fails: \x1b[2J\x07no HTTP",  # escaped
    "inflating": "a file that is not MNIST's: it holds more than 2,000,000 bytes",
    "truncated": "sends 11",
    "truncated_and_unannounced": "a file that is damaged: Compressed file ended",
    "corrupt": "a file that is damaged: ",
    "wrong": f"a file that is not MNIST's: the MD5 of its content must be {CHECKSUMS[TRAIN_IMAGES]}, got ",
    "web_page": "a file that is no gzip file: one starts with the bytes 1f 8b",
    "empty": "the MD5 of its content must be",
    "endless": "sends more than 2,000,000 bytes",
    "silent": "sends nothing for 0.4 s",
    "stalled": "sends nothing for 0.4 s",
    "trickling": "is too slow",
}


@pytest.mark.parametrize("behaviour", BAD_MIRRORS)
def test_after_a_bad_mirror_the_next_one_is_tried(cache, server, capfd, monkeypatch, behaviour):
    monkeypatch.setattr(mnist, "_MAX_FILE_BYTES", 2_000_000)
    started = time.monotonic()
    mirrors = [server.mirror(behaviour), server.mirror("good")]
    assert_is_small_mnist(load_mnist(mirrors=mirrors))
    assert time.monotonic() - started < 5
    assert_holds_exactly_the_four_files(cache)
    said = capfd.readouterr().err
    assert f"{mirrors[0]}/{TRAIN_IMAGES}: " in said
    assert BAD_MIRRORS[behaviour] in said
    # One failure is enough to leave it alone.
    assert [name for folder, name in server.requests if folder == behaviour] == [TRAIN_IMAGES]


@pytest.mark.parametrize("behaviour", BAD_MIRRORS)
def test_a_failed_download_says_what_was_tried_and_leaves_nothing(cache, server, monkeypatch, behaviour):
    monkeypatch.setattr(mnist, "_MAX_FILE_BYTES", 2_000_000)
    mirror = server.mirror(behaviour)
    message = refusal(mirrors=[mirror])
    problem = f"MNIST: {cache / TRAIN_IMAGES} is missing, and no mirror sends it"
    assert message.startswith(f"{problem} ({mirror}/{TRAIN_IMAGES}: ")
    assert BAD_MIRRORS[behaviour] in message
    assert "--data-dir DIR" in message
    assert "--data digits" in message
    assert os.listdir(cache) == []


def test_what_came_before_a_failure_is_kept(cache, server, monkeypatch):
    good, missing = server.mirror("good"), server.mirror("missing")
    monkeypatch.setattr(mnist, "CHECKSUMS", CHECKSUMS | {TEST_LABELS: "0" * 32})
    refusal(mirrors=[good, missing])
    assert sorted(os.listdir(cache)) == sorted(set(CHECKSUMS) - {TEST_LABELS})
    monkeypatch.setattr(mnist, "CHECKSUMS", CHECKSUMS)
    server.requests.clear()
    assert_is_small_mnist(load_mnist(mirrors=[good]))
    assert server.requests == [("good", TEST_LABELS)]


def test_without_a_network_all_mirrors_are_named(cache):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"
        message = refusal(mirrors=[closed, "http://no-such-host.invalid/mnist", "nonsense"])
    assert f"{closed}/{TRAIN_IMAGES}: cannot be reached: " in message
    assert "http://no-such-host.invalid/mnist/" in message
    assert "nonsense/" in message


def test_the_environment_names_the_mirrors(cache, server, monkeypatch):
    bad, good = server.mirror("missing"), server.mirror("good")
    monkeypatch.setenv("PARALLELCNN_MNIST_MIRRORS", f"{bad}  {good}/")
    assert_is_small_mnist(load_mnist())
    assert server.requests[:2] == [("missing", TRAIN_IMAGES), ("good", TRAIN_IMAGES)]


def test_a_mirror_may_be_a_folder(cache, tmp_path):
    fill(tmp_path / "copy")
    assert_is_small_mnist(load_mnist(mirrors=[(tmp_path / "copy").as_uri()]))


def test_a_damaged_file_in_the_cache_is_downloaded_again(cache, server, capfd):
    fill(cache, COMPRESSED | {TEST_IMAGES: COMPRESSED[TEST_IMAGES][:-100]})
    assert_is_small_mnist(load_mnist(mirrors=[server.mirror("good")]))
    assert server.requests == [("good", TEST_IMAGES)]
    assert_holds_exactly_the_four_files(cache)
    said = capfd.readouterr().err
    assert f"{cache / TEST_IMAGES} is damaged: " in said
    assert "; downloading it again\n" in said


def test_a_damaged_file_in_the_cache_stays_where_no_mirror_has_a_better_one(cache, server):
    fill(cache, COMPRESSED | {TEST_IMAGES: b""})
    message = refusal(mirrors=[server.mirror("missing")])
    assert message.startswith(f"MNIST: {cache / TEST_IMAGES} is not MNIST's: ")
    assert (cache / TEST_IMAGES).read_bytes() == b""


def test_the_cache_is_found_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path / ".cache" / "parallelcnn" / "mnist")
    assert_is_small_mnist(load_mnist())
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert_is_small_mnist(load_mnist())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert f"{tmp_path}/xdg/parallelcnn/mnist" in refusal()
    monkeypatch.setenv("PARALLELCNN_CACHE", str(tmp_path / "own"))
    assert f"{tmp_path}/own/mnist" in refusal()


def test_a_home_that_cannot_be_written_is_told(monkeypatch, server):
    # No folder can be made below a device, not even as root.
    monkeypatch.setenv("HOME", "/dev/null")
    message = refusal(mirrors=[server.mirror("good")])
    assert message.startswith("/dev/null/.cache/parallelcnn/mnist: MNIST cannot be kept there: ")
    assert "set PARALLELCNN_CACHE to a folder that can be written" in message
    assert not server.requests


def test_a_full_disk_is_not_taken_for_a_bad_mirror(cache, server, monkeypatch):
    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    message = refusal(mirrors=[server.mirror("good")])
    assert f"{cache}: MNIST cannot be kept there: No space left on device" in message
    assert os.listdir(cache) == []


def test_an_interrupted_download_leaves_nothing(cache, server, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_mnist(mirrors=[server.mirror("good")])
    assert os.listdir(cache) == []


def test_processes_that_download_at_once_all_end_right(cache, server):
    script = (
        "import json, sys\n"
        "from parallelcnn.data import load_mnist, mnist\n"
        "mnist.CHECKSUMS = json.loads(sys.argv[1])\n"
        "train, test = load_mnist(mirrors=[sys.argv[2]])\n"
        "print(len(train), len(test))"
    )
    command = [sys.executable, "-W", "error", "-c", script]
    command += [json.dumps(CHECKSUMS), server.mirror("slow_but_good")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "300 40\n"), err
    assert_holds_exactly_the_four_files(cache)


def test_the_real_mnist_is_what_it_is_known_to_be(mnist_dir, tmp_path, monkeypatch):
    monkeypatch.undo()
    # By way of a download, so that the real checksums are compared too.
    mirrors = [mnist_dir.resolve().as_uri()]
    train, test = load_mnist(mirrors=mirrors, cache_dir=tmp_path, progress=False)
    assert train.images.shape == (60_000, 28, 28)
    assert test.images.shape == (10_000, 28, 28)
    assert train.labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert np.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
