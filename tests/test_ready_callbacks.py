"""The callbacks that come with the library: best parameters, CSV files, TensorBoard, functions."""

import csv
import re
import sys
from types import SimpleNamespace
from typing import ClassVar

import own_layers
import pytest
import small
from thread_ranks import on_ranks

import parallelcnn as pc
from parallelcnn.data.sampler import Sampler
from parallelcnn.errors import InputError, TrainingWarning
from parallelcnn.training.callbacks import Training
from parallelcnn.training.history import History


class Score(pc.Metric):
    """A metric with given values after each epoch of nine minibatches, and the callback that tells it the minibatch."""

    name = "score"

    def __init__(self, *values):
        self.values, self.step = values, 0
        self.counter = pc.LambdaCallback(on_batch_end=self.count)

    def count(self, step, logs):
        self.step = step

    def add(self, outputs, labels, sums):
        pass

    def result(self, sums, samples):
        return self.values[(self.step - 1) // 9]


def train(callbacks, epochs=6, network=None, comm=None, **options):
    sets = small.dataset(211), small.dataset(97, seed=1)
    network = network or small.network()
    options = {"comm": comm or pc.Serial(), "threads": 1, "verbose": 0, "timeout": 0, "callbacks": callbacks, **options}
    return pc.train(network, *sets, pc.SGD(0.1), epochs, 25, **options)


def parameters_after(epochs):
    network = small.network()
    train([], epochs, network)
    return network.parameters_sha256()


def train_to_the_best(scores, epochs=9, comm=None, **options):
    network, score = small.network(), Score(*scores)
    stopping = pc.EarlyStopping("test_score", patience=1, restore_best=True)
    history = train([score.counter, stopping], epochs, network, comm, metrics=[score], **options)
    return history, network.parameters_sha256()


def test_the_best_parameters_are_restored_at_the_end_on_every_rank():
    wanted = parameters_after(2)
    history, found = train_to_the_best([1.0, 0.5, 0.7, 0.8])
    assert (len(history.evaluations), history.stopped, found) == (4, True, wanted)
    history, found = train_to_the_best([1.0, 0.5, 0.7, 0.8], epochs=3)  # also if training does not stop early
    assert (len(history.evaluations), history.stopped, found) == (3, False, wanted)
    (_, found), (_, other) = on_ranks(2, lambda comm: train_to_the_best([1.0, 0.5, 0.7, 0.8], comm=comm))
    assert found == other


def test_buffers_are_restored_as_well():
    network = own_layers.network()
    stopping = pc.EarlyStopping(restore_best=True)
    stopping.training = Training(pc.Serial(), network, History(), 3, Sampler(9, 9, 0), pc.SGD())
    stopping.on_train_begin({})
    for loss in (1.0, 2.0):
        stopping.training.history.losses.append(loss)
        stopping.training.history.evaluations.append((int(loss), int(loss), pc.Evaluation(loss, None, 9)))
        network.buffers[:] = loss
        stopping.on_epoch_end(int(loss), {})
    stopping.on_train_end({})
    assert (network.buffers == 1).all()


@pytest.mark.filterwarnings("ignore:.* held checkpoints of later minibatches")
def test_a_resume_goes_on_with_the_best_parameters_if_the_checkpoint_has_them_and_is_refused_otherwise(tmp_path):
    options = {"scores": [2.0, 1.0, 1.5, 1.75], "epochs": 4, "checkpoints": pc.CheckpointFolder(tmp_path, keep_last=9)}
    _, wanted = train_to_the_best(**options)
    assert wanted == parameters_after(2)
    for step in (9, 18):
        assert train_to_the_best(**options, resume=pc.load_checkpoint(tmp_path / f"step-{step:09}.npz"))[1] == wanted
    message = "restore_best cannot resume after minibatch 27, since the best parameters are those after minibatch 18: "
    with pytest.raises(InputError, match=message):
        train_to_the_best(**options, resume=pc.load_checkpoint(tmp_path / "step-000000027.npz"))


class HalfOfTheSamples(Sampler):
    """Epochs of fewer samples than the training set has."""

    def __init__(self):
        super().__init__(108, 12, 0)


@pytest.mark.filterwarnings("ignore:.* held checkpoints of later minibatches")
def test_a_training_with_a_sampler_of_its_own_stops_where_it_has_stopped_before(tmp_path):
    folder = pc.CheckpointFolder(tmp_path, keep_last=9)
    options = {"sampler": HalfOfTheSamples(), "checkpoints": folder}
    for resume in (None, "step-000000018.npz", "step-000000027.npz"):
        score = Score(1.0, 2.0, 3.0, 4.0)
        callbacks = [score.counter, pc.EarlyStopping("test_score", patience=1)]
        options["resume"] = resume and pc.load_checkpoint(tmp_path / resume)
        history = train(callbacks, 4, small.network(), None, metrics=[score], **options)
        assert (history.steps, history.stopped) == (27, True)  # after three epochs


def test_best_parameters_that_are_lost_are_reported(tmp_path):
    options = {"scores": [2.0, 1.0, 1.5], "epochs": 3, "checkpoints": pc.CheckpointFolder(tmp_path, keep_last=9)}
    train_to_the_best(**options)
    stopping, network = pc.EarlyStopping("test_score", restore_best=True), small.network()
    history = pc.load_checkpoint(tmp_path / "step-000000027.npz").history
    stopping.training = Training(pc.Serial(), network, history, 3, Sampler(211, 25, 0), pc.SGD())
    stopping._kept, stopping._kept_step = {"params": network.params + 1, "buffers": network.buffers}, 36
    stopping.on_resume({})  # training has gone back from minibatch 36 to 27
    before = network.parameters_sha256()
    with pytest.warns(TrainingWarning, match="the best parameters, those after minibatch 18, are lost"):
        stopping.on_train_end({})
    assert network.parameters_sha256() == before


def rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_the_csv_file_has_one_row_for_each_epoch_also_after_a_resume(tmp_path):
    path, folder = tmp_path / "epochs.csv", pc.CheckpointFolder(tmp_path / "checkpoints", keep_last=9)
    path.write_text("of another training\n1\n")
    metrics = [pc.Accuracy(), pc.ConfusionMatrix(5), pc.TopK(2)]
    history = train([pc.CSVLogger(str(path))], 3, metrics=metrics, checkpoints=folder, evaluate_every=4)
    whole = path.read_text()
    found = rows(path)
    assert list(found[0]) == ["epoch", "step", "loss", "test_loss", "test_accuracy", "test_top_2_accuracy"]
    assert [(row["epoch"], row["step"]) for row in found] == [("1", "9"), ("2", "18"), ("3", "27")]
    last = history.evaluations[-1][2]
    assert [float(found[-1][name]) for name in ("test_loss", "test_accuracy")] == [last.loss, last.accuracy]
    middle = pc.load_checkpoint(tmp_path / "checkpoints" / "step-000000009.npz")
    train([pc.CSVLogger(path)], 3, metrics=metrics, resume=middle, evaluate_every=4)  # the file has later rows
    assert path.read_text() == whole
    path.unlink()
    train([pc.CSVLogger(path)], 3, resume=middle)
    assert [row["epoch"] for row in rows(path)] == ["2", "3"]
    path.write_bytes(b"\xffno rows\n")
    with pytest.raises(InputError, match=r"CSVLogger: .*epochs.csv must hold the rows of the training that resumes"):
        train([pc.CSVLogger(path)], 3, resume=middle)


def test_a_resume_with_another_metric_adds_a_column(tmp_path):
    path, folder = tmp_path / "epochs.csv", pc.CheckpointFolder(tmp_path)
    train([pc.CSVLogger(path)], 1, checkpoints=folder)
    with pytest.warns(TrainingWarning, match="resumed with epochs 2 instead of 1"):
        train([pc.CSVLogger(path)], 2, metrics=[pc.TopK(3)], resume=folder.newest())
    assert [row["test_top_3_accuracy"] == "" for row in rows(path)] == [True, False]
    assert [row["test_accuracy"] == "" for row in rows(path)] == [False, True]


def test_a_csv_file_that_cannot_be_written_warns_and_only_rank_0_writes(tmp_path):
    with pytest.warns(TrainingWarning, match=r"CSVLogger: .*missing.epochs.csv cannot be written: No such file"):
        assert train([pc.CSVLogger(tmp_path / "missing" / "epochs.csv")], 1).steps == 9
    on_ranks(2, lambda comm: train([pc.CSVLogger(tmp_path / f"rank-{comm.rank}.csv")], 1, comm=comm))
    assert [file.name for file in tmp_path.iterdir()] == ["rank-0.csv"]


def test_if_rank_0_is_lost_another_rank_goes_on_with_its_file_and_its_best_parameters(tmp_path):
    def work(comm):
        def die(step, logs):
            if comm.number == 0 and step == 23:
                comm.die()

        lost = pc.LambdaCallback(on_batch_end=die)
        score, network = Score(2.0, 1.0, 1.5, 1.75), small.network()
        callbacks = [score.counter, pc.CSVLogger(tmp_path / "epochs.csv"), lost]
        callbacks.append(pc.EarlyStopping("test_score", restore_best=True))
        history = train(callbacks, 4, network, comm, metrics=[score], reproducible=4)
        return history.lost_ranks, network.parameters_sha256()

    with pytest.warns(TrainingWarning, match="1 of 2 ranks lost by minibatch 23: 1 continue"):
        _, (lost, found) = on_ranks(2, work)
    assert lost == 1
    assert [row["step"] for row in rows(tmp_path / "epochs.csv")] == ["9", "18", "27", "36"]
    network = small.network()
    train([], 2, network, reproducible=4)
    assert found == network.parameters_sha256()


class Writer:
    """A stand-in for tensorboardX.SummaryWriter."""

    writers: ClassVar[list] = []

    def __init__(self, folder, purge_step=None):
        self.folder, self.purge_step, self.scalars, self.closed = folder, purge_step, [], False
        self.writers.append(self)

    def add_scalar(self, name, value, step):
        self.scalars.append((name, step, value))

    def flush(self):
        pass

    def close(self):
        self.closed = True


def test_tensorboard_gets_every_evaluation_and_the_loss_of_every_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(Writer, "writers", [])
    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=Writer))
    folder = pc.CheckpointFolder(tmp_path, every_steps=10)
    metrics = [pc.Accuracy(), pc.ConfusionMatrix(5)]
    history = train([pc.TensorBoard(tmp_path / "board")], 2, metrics=metrics, checkpoints=folder, evaluate_every=5)
    (writer,) = Writer.writers
    assert (writer.folder, writer.purge_step, writer.closed) == (str(tmp_path / "board"), None, True)
    assert [(name, step) for name, step, _ in writer.scalars if name != "test_accuracy"] == [
        *(("test_loss", 5), ("test_loss", 9), ("loss", 9)),
        *(("test_loss", 10), ("test_loss", 15), ("test_loss", 18), ("loss", 18)),
    ]
    assert ("test_accuracy", 18, history.evaluations[-1][2].accuracy) in writer.scalars
    middle = pc.load_checkpoint(tmp_path / "step-000000010.npz")
    on_ranks(2, lambda comm: train([pc.TensorBoard(tmp_path)], 2, comm=comm, metrics=metrics, resume=middle))
    _, resumed = Writer.writers
    assert (resumed.purge_step, resumed.closed) == (11, True)


def test_tensorboard_follows_a_run_into_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(Writer, "writers", [])
    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=Writer))
    folders = [tmp_path / "a"] * 3 + [None] + [tmp_path / "b"] * 9

    def locate():
        folder = folders.pop(0)
        if folder is None:
            raise OSError(28, "No space left on device")
        return folder

    train([pc.TensorBoard(tmp_path / "a", locate)], 3)
    assert [(one.folder, one.closed, len(one.scalars)) for one in Writer.writers] == [
        (str(tmp_path / "a"), True, 4),
        (str(tmp_path / "b"), True, 5),
    ]


def test_without_tensorboardx_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match=r"^TensorBoard needs tensorboardX: pip install tensorboardX$"):
        pc.TensorBoard("board")


def test_functions_are_called_like_methods():
    seen = []
    ends = pc.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append((epoch, logs["step"])),
        on_train_end=lambda logs: seen.append("end"),
    )
    train([ends], 2)
    assert seen == [(1, 9), (2, 18), "end"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pc.LambdaCallback(on_epoch_ends=print), "calls no on_epoch_ends: did you mean 'on_epoch_end'?"),
        (lambda: pc.LambdaCallback(on_epoch_end=3), "LambdaCallback: on_epoch_end must be a function or None, got 3"),
        (lambda: train([pc.LambdaCallback()]), "callbacks must have at least one of on_train_begin"),
        (lambda: pc.CSVLogger(3), "path must be a string or a pathlib.Path, got 3"),
        (lambda: pc.TensorBoard(None), "folder must be a string or a pathlib.Path, got None"),
        (
            lambda: train([pc.EarlyStopping("test_confusion_matrix")], 1, metrics=[pc.ConfusionMatrix(5)]),
            "no value 'test_confusion_matrix' to monitor: known: test_loss",
        ),
    ],
)
def test_arguments_that_callbacks_cannot_take_are_refused(make, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make()
