"""What notebooks show: tables and pictures of networks, histories and data sets, a bar; and interrupted trainings."""

import base64
import io
import os
import re
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import small

import parallelcnn as pc
from parallelcnn.pixels import contact_sheet
from parallelcnn.png import png
from parallelcnn.training.progress import in_notebook


def pictures_of(html):
    """The pictures inside a page, as arrays of pixels."""
    image = pytest.importorskip("PIL.Image")
    found = re.findall(r'<img src="data:image/png;base64,([^"]+)"', html)
    return [np.array(image.open(io.BytesIO(base64.b64decode(one)))) for one in found]


def test_a_network_is_shown_as_a_table_of_its_layers():
    block = pc.Residual((pc.Conv2D(3, 3, padding="same"),), activation="relu")
    network = pc.NetworkHandler((pc.Conv2D(3, 3), block, pc.Flatten(), pc.Dense(2)), (1, 8, 8))
    shown = network._repr_html_()
    assert shown.startswith("<table><caption>332 parameters, 1.3 KiB</caption><tr><th>Layer</th><th>Output shape</th>")
    assert f"<td>{pc.Dense(2)}</td><td>(None, 2)</td><td>218</td>".replace("'", "&#x27;") in shown
    assert "<td>\N{EM SPACE}Conv2D(" in shown
    assert shown.count("<tr>") == len(network.summary().splitlines()) - 4


class Odd(pc.Dense):
    def __repr__(self):
        return "<script>alert(1)</script>"


def test_names_are_escaped():
    assert "<td>&lt;script&gt;" in pc.NetworkHandler((Odd(2),), (3,))._repr_html_()
    dataset = pc.Dataset(np.zeros((2, 3), np.uint8), [0, 1], 2, "<i>", class_names=("<b>", "&"))
    assert "&#x27;&lt;i&gt;&#x27;" in dataset._repr_html_()
    assert "<td>&lt;b&gt;</td><td>1</td></tr><tr><td>&amp;</td>" in dataset._repr_html_()


def test_a_history_is_shown_with_its_curve_if_matplotlib_is_there(monkeypatch):
    history = pc.History([1.0, 0.5, 0.25], [(3, 1, pc.Evaluation(0.5, 0.75, 10))], stopped=True)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    plain = history._repr_html_()
    assert "3 minibatches in 0.00 s, stopped early" in plain
    assert "<img" not in plain
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    shown = history._repr_html_()
    assert shown.startswith(plain)
    (curve,) = pictures_of(shown)
    assert curve.shape == (350, 600, 4)
    assert len(np.unique(curve.reshape(-1, 4), axis=0)) > 20
    diverged = pc.History([1.0, float("nan")])._repr_html_()
    assert len(pictures_of(diverged)) == 1


def test_a_data_set_is_shown_with_its_classes_and_an_image_of_each():
    dataset = small.dataset(60)
    shown = dataset._repr_html_()
    counts = np.bincount(dataset.labels, minlength=5)
    assert "Dataset &#x27;stripes-60&#x27;: 60 uint8 images (11, 9), 5 classes" in shown
    assert all(f"<tr><td>{label}</td><td>{count}</td></tr>" in shown for label, count in enumerate(counts))
    (sheet,) = pictures_of(shown)
    assert sheet.shape == (12, 50)
    for label in range(5):
        image = dataset.images[dataset.labels.tolist().index(label)]
        np.testing.assert_array_equal(sheet[:11, 10 * label : 10 * label + 9], image)
    names = tuple(f"class {i}" for i in range(30))
    many = pc.Dataset(np.zeros((30, 4), np.uint8), np.arange(30), 30, class_names=names)._repr_html_()
    assert "class 19" in many
    assert "class 20" not in many
    assert "<td>and 10 more</td>" in many
    assert "<img" not in many


def test_a_data_set_for_regression_is_shown_with_the_range_of_its_targets():
    images = np.random.default_rng(0).normal(size=(30, 3, 90, 70)).astype(np.float32)
    shown = pc.Dataset(images, np.arange(60.0).reshape(30, 2), None)._repr_html_()
    assert "<tr><td>1</td><td>1</td><td>30</td><td>59</td></tr>" in shown
    (sheet,) = pictures_of(shown)
    assert sheet.shape == (3 * 46, 8 * 36, 3)
    low, high = images.min(), images.max()
    first = images[0].reshape(3, 45, 2, 35, 2).mean(axis=(2, 4)).transpose(1, 2, 0)
    np.testing.assert_allclose(sheet[:45, :35], 255 * (first - low) / (high - low), atol=0.6)


def test_a_sheet_has_numbers_scaled_to_pixels_and_a_png_is_what_it_says():
    images = np.array([[[[-1.0, 0.0], [1.0, np.nan]]], [[[9.0, -9.0], [0.5, 0.5]]]])
    sheet = contact_sheet(images, (-1, 1))
    assert sheet.tolist() == [[0, 128, 255, 255, 0, 255], [255, 128, 255, 191, 191, 255], [255] * 6]
    assert contact_sheet(images, (3, 3)).max() == 255
    image = pytest.importorskip("PIL.Image")
    for pixels in (sheet, np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)):
        np.testing.assert_array_equal(np.array(image.open(io.BytesIO(png(pixels)))), pixels)


@pytest.fixture
def notebook(monkeypatch):
    """As in a Jupyter kernel without ipywidgets."""
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", SimpleNamespace())
    for name in ("tqdm.auto", "tqdm.autonotebook"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return shell


def test_a_notebook_gets_a_bar(notebook, capsys):
    assert in_notebook()
    options = {"comm": pc.Serial(), "threads": 1}
    pc.train(small.network(), small.dataset(211), small.dataset(97), pc.SGD(0.1), 1, 25, **options)
    assert "epoch 1/1:" in capsys.readouterr().out
    assert "tqdm.auto" in sys.modules
    pc.train(small.network(), small.dataset(211), small.dataset(97), pc.SGD(0.1), 1, 25, verbose=2, **options)
    assert "epoch 1/1:" not in capsys.readouterr().out
    notebook.kernel = None  # IPython on a terminal
    assert not in_notebook()


class Interrupter(pc.Callback):
    """Presses Ctrl-C after this minibatch, and again after these seconds."""

    def __init__(self, step, again=None):
        self.step, self.again, self.ended = step, again, False

    def on_batch_end(self, step, logs):
        if step == self.step:
            signal.raise_signal(signal.SIGINT)
            if self.again is not None:
                threading.Event().wait(self.again)
                signal.raise_signal(signal.SIGINT)

    def on_train_end(self, logs):
        self.ended = True


def test_an_interrupted_training_keeps_network_and_history_and_ends_between_two_steps(tmp_path):
    sets = small.dataset(211), small.dataset(97)
    whole = small.network()
    wanted = pc.train(whole, *sets, pc.SGD(0.1), 3, 25, comm=pc.Serial(), threads=1, verbose=0)
    network, ctrl_c, folder = small.network(), Interrupter(step=4), pc.CheckpointFolder(tmp_path)
    options = {"comm": pc.Serial(), "threads": 1, "verbose": 0}
    with pytest.raises(KeyboardInterrupt, match=r"training ended after minibatch 5: see network.history"):
        pc.train(network, *sets, pc.SGD(0.1), 3, 25, callbacks=[ctrl_c], checkpoints=folder, **options)
    assert ctrl_c.ended
    history = network.history
    assert (history.stopped, history.steps) == (True, 5)
    assert history.losses == wanted.losses[:5]
    assert network.predict(sets[0].images).shape == (211, 5)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = pc.train(network, *sets, pc.SGD(0.1), 3, 25, resume=folder.newest(), **options)
    assert network.history is resumed
    assert resumed.losses == wanted.losses
    assert network.parameters_sha256() == whole.parameters_sha256()


def test_a_second_interrupt_ends_a_training_at_once():
    network, ctrl_c = small.network(), Interrupter(step=4, again=1.1)
    sets = small.dataset(211), small.dataset(97)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        pc.train(network, *sets, pc.SGD(0.1), 3, 25, comm=pc.Serial(), threads=1, verbose=0, callbacks=[ctrl_c])
    assert not ctrl_c.ended
    assert (network.history.stopped, network.history.steps) == (True, 4)


def test_a_program_that_handles_interrupts_itself_keeps_doing_so():
    class Own(Exception):
        pass

    def handle(*_):
        raise Own

    before = signal.signal(signal.SIGINT, handle)
    try:
        with pytest.raises(Own):
            pc.train(
                *(small.network(), small.dataset(211), small.dataset(97), pc.SGD(0.1), 3, 25),
                **{"comm": pc.Serial(), "threads": 1, "verbose": 0, "callbacks": [Interrupter(4)]},
            )
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_failed_training_leaves_its_history_too():
    network = small.network()

    def fail(step, logs):
        if step == 3:
            raise ArithmeticError

    options = {"comm": pc.Serial(), "threads": 1, "verbose": 0, "callbacks": [pc.LambdaCallback(on_batch_end=fail)]}
    with pytest.raises(ArithmeticError):
        pc.train(network, small.dataset(211), small.dataset(97), pc.SGD(0.1), 3, 25, **options)
    assert (network.history.steps, network.history.stopped) == (3, False)


INTERRUPTED_WHILE_COMPILING = """
import os, signal
import numpy as np
from numba.core.event import Listener, install_listener
import parallelcnn as pc

class CtrlC(Listener):
    started = 0

    def on_start(self, event):
        CtrlC.started += 1
        if CtrlC.started == 1:
            os.kill(os.getpid(), signal.SIGINT)

    def on_end(self, event):
        pass

network = pc.NetworkHandler((pc.Dense(2),), (3,))
data = pc.Dataset(np.zeros((50, 3), np.float32), np.arange(50) % 2, 2)
before = network.parameters_sha256()
with install_listener("numba:compile", CtrlC()):
    try:
        pc.train(network, data, data, pc.SGD(0.1), 1, 25, comm=pc.Serial(), threads=1)
    except KeyboardInterrupt:
        print("interrupted", network.history.steps, before == network.parameters_sha256())
history = pc.train(network, data, data, pc.SGD(0.1), 1, 25, comm=pc.Serial(), threads=1)
print("trained", history.steps)
"""


@pytest.mark.slow
def test_a_training_that_is_interrupted_while_it_compiles_can_be_started_again(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", INTERRUPTED_WHILE_COMPILING]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert "interrupted 0 True" in ran.stdout, ran.stdout + ran.stderr
    assert "trained 2" in ran.stdout
    assert ran.stderr == ""
