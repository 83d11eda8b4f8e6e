"""One training run: from the options of the command to the files in the run directory."""

import contextlib
import math
import os
import resource
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from parallelcnn.cli.data_sets import load_data_sets
from parallelcnn.cli.earlier_start import continued, take_directory
from parallelcnn.cli.models import choose_model, find_model
from parallelcnn.cli.options import warn_of_too_many_threads
from parallelcnn.cli.output import say
from parallelcnn.cli.run_directory import DEFAULT_OUT, RunDirectory, RunReporter
from parallelcnn.cli.summary import describe_other_ranks, describe_result, describe_run, summarize
from parallelcnn.cli.verification import verify
from parallelcnn.comm import Transport, hosts, run_together, this_host
from parallelcnn.data.dataset import Dataset
from parallelcnn.data.description import missing_classes
from parallelcnn.data.images import file_names
from parallelcnn.data.loading import DATA_NAMES
from parallelcnn.data.readers import image_folder
from parallelcnn.errors import CheckpointError, DivergenceError, InputError, TrainingWarning
from parallelcnn.files.model import save_model
from parallelcnn.layers.frozen import freeze
from parallelcnn.network import NetworkHandler
from parallelcnn.optimizers import Optimizer
from parallelcnn.profiling import Profiler
from parallelcnn.report.predictions import Predictions, predictions_on
from parallelcnn.report.training_report import ReportedRun, training_report
from parallelcnn.resilience.fault_tolerance import retry_after_loss
from parallelcnn.resilience.signals import StopOnSignal, interrupts_ending_the_process
from parallelcnn.trainer import evaluate, train
from parallelcnn.training.callbacks import Callback
from parallelcnn.training.checkpoint import THREADS_OF_RANKS, Checkpoint, load_checkpoint, step_file
from parallelcnn.training.compilation import compile_in_turns, compile_kernels
from parallelcnn.training.config import TrainConfig
from parallelcnn.training.evaluation import Evaluation, default_metrics
from parallelcnn.training.history import History
from parallelcnn.training.loggers import CSVLogger, TensorBoard
from parallelcnn.training.preparation import check_fit, check_numbers, check_resume, facts_of
from parallelcnn.training.progress import show_compilation
from parallelcnn.training.reduction import check_reproducible, fixed_shards
from parallelcnn.training.threads import check_threads, choose_threads
from parallelcnn.wording import plural

NOT_SAVED = os.EX_IOERR  # exit code, 74: asked to stop, but the checkpoint could not be saved


class Run:
    """A training run. Its methods are collective: every rank must call them."""

    def __init__(self, options: TrainConfig, comm: Transport) -> None:
        self._options, self._comm = options, comm
        self._profiler = Profiler() if options.profile else None
        self._started_from: str | None = None
        self._role: str | None = None  # of the data set that is evaluated during training, once it is known
        self._notes: list[str] = []  # for the report

    def go(self) -> int:
        """Train and write the results; returns the exit code."""
        # All input is checked before the first file is written.
        self._optimizer = run_together(self._comm, self._check_options)
        own_run = continued(self._options, self._comm)
        self._options, self._continues_own_run = own_run or self._options, own_run is not None
        with show_compilation(self._comm):
            loaded = load_data_sets(self._options, self._comm)
            self._train_set, self._evaluated, self._test_set, self._found, self._test_files = loaded
            self._comm.status = "building the network"
            self._network = run_together(self._comm, self._build)
            self._resume = run_together(self._comm, self._named_checkpoint)
            self._compile()
        self._verify()
        self._open_directory()
        with contextlib.closing(self._reporter):
            try:
                with StopOnSignal() as stop:
                    history = self._train(stop)
            except DivergenceError as error:
                self._report_unfinished(f"Training ended without a result: {error}.")
                raise
            self._reporter.history = history
            signalled = retry_after_loss(self._comm, lambda: max(self._comm.allgather(stop.received)))
            stopped_early = self._options.early_stopping is not None and not signalled
            if history.stopped and not stopped_early:  # without a signal: a rank got it that was lost since
                return self._say_why_it_stopped(history, signalled or signal.SIGTERM)
            if history.stopped:
                epoch = history.evaluations[-1][1]
                what = "accuracy" if self._options.monitor == "accuracy" else "loss"
                why = f"after epoch {epoch} of {self._options.epochs}: the {what} no longer improves"
                self._notes.append(f"Stopped early, {why}.")
                if self._comm.rank == 0:
                    say(f"stopped    {why}")
            retry_after_loss(self._comm, lambda: self._finish(history))
        return 0

    def _check_options(self) -> Optimizer:
        options = self._options
        check_threads(options.threads)
        check_reproducible(options.reproducible)
        options.build_checkpoints(Path())
        self._callbacks(Path())
        if self._comm.rank == 0 and options.data not in DATA_NAMES:
            image_folder.check_outside(Path(options.data), Path(options.out or DEFAULT_OUT))
        return options.build_optimizer()

    def _callbacks(self, path: Path) -> list[Callback]:
        """The callbacks that the options ask for, which write to this directory."""

        def here(name: str) -> tuple[Path, Callable[[], Path]]:
            return path / name, lambda: self._reporter.directory_to_write().path / name

        loggers: dict[str, Callable[[], Callback]] = {
            "csv": lambda: CSVLogger(*here("epochs.csv")),
            "tensorboard": lambda: TensorBoard(*here("tensorboard")),
        }
        stopping = self._options.build_early_stopping(self._role)
        return [*(loggers[name]() for name in dict.fromkeys(self._options.log)), *([stopping] if stopping else [])]

    def _build(self) -> NetworkHandler:
        for role, dataset in (("training", self._train_set), ("test", self._test_set), ("validation", self._evaluated)):
            dataset.check_numbers(f"{role} set")  # the last one is often the test set, which is not read again
        if self._options.model == "auto":
            self._options = replace(self._options, model=choose_model(self._train_set.input_shape))
        if self._options.batch_size == TrainConfig.batch_size > len(self._train_set) > 0:
            self._options = replace(self._options, batch_size=len(self._train_set))
        options, self._role = self._options, self._evaluated.role
        self._optimizer, self._loss = options.build_optimizer(self._role), options.build_loss(self._train_set)
        input_shape = self._train_set.input_shape
        layers = freeze(find_model(options.model, self._train_set.classes, options.loss), options.freeze)
        layers = (*options.build_first_layers(input_shape), *layers)
        network = NetworkHandler(layers, input_shape, options.seed, precision=options.precision)
        network.adapt(self._train_set)
        if not network.trained_params.size:
            raise InputError(f"freeze must leave a layer with parameters to train, got {options.freeze}")
        if not self._may_resume():
            self._start_from(network)
        check_numbers(options.epochs, options.batch_size, options.seed, options.evaluate_every, self._train_set)
        for dataset in (self._train_set, self._evaluated, self._test_set):
            check_fit(network, dataset, self._loss)
        missing = missing_classes(self._train_set)
        if missing and self._comm.rank == 0:
            warnings.warn(
                f"{self._train_set.name}: the training set has no sample {missing}, although the network has outputs "
                f"for all {self._train_set.classes} classes",
                TrainingWarning,
                stacklevel=2,
            )
        further = options.build_metrics(self._train_set.classes)
        self._metrics = [*default_metrics(network, self._evaluated, self._loss), *further]
        return network

    def _may_resume(self) -> bool:
        """Whether there is a checkpoint to resume from, which may turn out to be damaged."""
        options = self._options
        folder = options.build_checkpoints(Path(options.out or ""))
        return options.resume is not None and (options.resume != "auto" or any(folder.files()))

    def _start_from(self, network: NetworkHandler) -> None:
        """Take the parameters of --start-from that fit."""
        source = self._options.start_from
        if source is None:
            return
        # Imported here since it takes 0.01 s, and most trainings start from random parameters.
        from parallelcnn.cli.start_from import start_from

        self._started_from = start_from(source, network, self._train_set, warn=self._comm.rank == 0)

    def _named_checkpoint(self) -> Checkpoint | None:
        """The checkpoint of --resume FILE, on rank 0."""
        file = None if self._options.resume == "auto" or self._comm.rank != 0 else self._options.resume
        return None if file is None else self._checked(load_checkpoint(file))

    def _compile(self) -> None:
        options, network = self._options, self._network
        warn_of_too_many_threads(options, self._comm)
        work = network.multiply_adds(options.batch_size, training=True)
        shards = fixed_shards(network, options.batch_size, options.reproducible)
        self._threads = choose_threads(self._comm, options.threads, work, shards)
        run_together(self._comm, lambda: network.check_memory(self._threads))
        with interrupts_ending_the_process():
            self._compile_seconds = compile_in_turns(
                self._comm,
                lambda: compile_kernels(network, self._train_set, self._optimizer, self._loss, options.reproducible),
                network,
                options.threads,
            )

    def _verify(self) -> None:
        options, comm = self._options, self._comm
        if options.verify is None:
            return
        comm.status = "verifying"
        found = verify(
            self._network,
            self._train_set,
            self._optimizer,
            options.batch_size,
            options.seed,
            comm,
            steps=options.verify,
            loss=self._loss,
            threads=self._threads,
            reproducible=options.reproducible,
        )
        if comm.rank == 0:
            say(f"verified   {found}")

    def _open_directory(self) -> None:
        options, comm = self._options, self._comm
        comm.status = "opening the run directory"
        # Whatever can be refused has been checked: a command that is refused leaves the directory unchanged.
        directory = take_directory(options, comm, continues_own_run=self._continues_own_run)

        def open_directory() -> Checkpoint | None:
            if directory is None:
                return None
            newest = None
            if options.resume == "auto":  # once the directory is locked, no other run deletes checkpoints
                folder = options.build_checkpoints(directory.path)
                newest = self._checked(folder.newest())
                if newest is None and folder.files():  # perhaps another node can read them, or after a while
                    raise CheckpointError(
                        f"--resume: none of the checkpoints in {folder.path} can be read; without --resume, or with "
                        f"--resume FILE, their files are moved to another directory"
                    )
                if newest is None and self._started_from is None:
                    self._start_from(self._network)
            directory.open(resume=newest is not None)
            return newest

        try:
            self._resume = run_together(comm, open_directory) or self._resume
        except BaseException:
            if directory is not None:
                directory.close()
            raise
        path, token = comm.allgather(("", "") if directory is None else (str(directory.path), directory.token))[0]
        self._path = Path(path)
        self._reporter = RunReporter(comm, directory, self._path, token, len(self._train_set))
        self._ranks = hosts(comm), comm.allgather(self._threads)
        self._say_what_runs(directory)

    def _say_what_runs(self, directory: RunDirectory | None) -> None:
        """Print what runs, on rank 0, and write it to config.toml."""
        options, (all_hosts, all_threads), other_ranks = self._options, self._ranks, ""
        if self._resume is not None:
            self._notes.append(f"Resumed after minibatch {self._resume.history.steps:,}.")
            if options.reproducible is None:
                other_ranks = describe_other_ranks(self._resume.facts.get(THREADS_OF_RANKS), all_threads)
            self._notes += [f"Resumed {other_ranks}."] if other_ranks else []
        if directory is None:
            return
        directory.write_config(options.to_toml())
        if directory.moved_to is not None:
            say(f"moved the files of an earlier run to {directory.moved_to}")
        if self._resume is not None:
            say(f"resumed after minibatch {self._resume.history.steps:,}")
            if other_ranks:
                say(f"resumed {other_ranks}")
        elif options.resume is not None:
            say(f"no checkpoint in {directory.checkpoints} yet: starting from the beginning")
        if self._started_from is not None and self._resume is None:
            say(f"start from {self._started_from}")
        data = self._train_set, self._evaluated, self._test_set
        if self._found:
            say(f"found      {self._found}")
        say(describe_run(options, all_hosts, all_threads, self._network, *data, self._optimizer, self._loss))

    def _checked(self, checkpoint: Checkpoint | None) -> Checkpoint | None:
        """The checkpoint; CheckpointError if this training cannot continue from it."""
        if checkpoint is not None:
            options, sets = self._options, (self._train_set, self._evaluated)
            facts = facts_of(*sets, self._network, loss=self._loss, seed=options.seed, optimizer=self._optimizer)
            check_resume(checkpoint, self._network, facts, options.epochs * len(self._train_set))
        return checkpoint

    def _train(self, stop: StopOnSignal) -> History:
        options = self._options
        return train(
            self._network,
            self._train_set,
            self._evaluated,
            self._optimizer,
            options.epochs,
            options.batch_size,
            options.seed,
            self._comm,
            loss=self._loss,
            evaluate_every=options.evaluate_every,
            metrics=self._metrics,
            callbacks=[self._reporter, *self._callbacks(self._path)],
            threads=self._threads,
            profiler=self._profiler,
            reproducible=options.reproducible,
            checkpoints=options.build_checkpoints(self._path, lambda: self._reporter.directory_to_write().checkpoints),
            resume=self._resume,
            stop=stop,
            repair=options.repair,
            timeout=options.timeout,
        )

    def _say_why_it_stopped(self, history: History, number: int) -> int:
        is_saved = True
        if self._comm.rank == 0:
            path = self._path if self._reporter.directory is None else self._reporter.directory.path
            why = "interrupted" if number == signal.SIGINT else signal.Signals(number).name
            where = f"stopped after minibatch {history.steps:,}"
            how = f"to continue, give the same command with --out {shlex.quote(str(path))} --resume"
            is_saved = any(
                file.name == step_file(history.steps) for file in self._options.build_checkpoints(path).files()
            )
            if not is_saved:
                how = f"but the checkpoint could not be saved, and what came after the one before it is lost; {how}"
            say(f"parallelcnn: {why}: {where}; {how}", sys.stderr)
            ended = why if number == signal.SIGINT else f"ended by {why}"
            self._report_unfinished(f"Training was {ended}: {where}; {how}.")
        # Also a barrier: a launcher kills the others when one rank exits, so print first.
        is_saved = self._comm.allgather(is_saved)[0]
        return 128 + number if is_saved else NOT_SAVED

    def _finish(self, history: History) -> None:
        """Evaluate on the training set, and the test set if that is still to do, and write the results."""
        comm = self._comm

        def on(dataset: Dataset) -> Evaluation:
            metrics = self._metrics
            return evaluate(self._network, dataset, comm, loss=self._loss, metrics=metrics, threads=self._threads)

        last = history.evaluations[-1][2]
        results = on(self._train_set), last if self._test_set is self._evaluated else on(self._test_set)
        predictions = predictions_on(self._network, self._test_set, comm, self._threads)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # KiB on Linux
        everyone = comm.allgather((this_host(), self._threads, peak))
        comm.status = "writing the results"
        run_together(comm, lambda: self._write_results(history, results, predictions, everyone))

    def _write_results(
        self,
        history: History,
        results: tuple[Evaluation, Evaluation],
        predictions: Predictions | None,
        everyone: Sequence[tuple[str, int, int]],
    ) -> None:
        if self._comm.rank != 0:
            return
        directory = self._reporter.directory_to_write()
        # The disk may become full: first what cannot be computed again.
        save_model(directory.path / "model.npz", self._network)
        all_hosts, all_threads, peaks = zip(*everyone, strict=True)
        options, network = self._options, self._network
        summary = summarize(options, all_hosts, all_threads, network, self._train_set, history, *results)
        summary["compile_seconds"] += self._compile_seconds
        summary["peak_rss_bytes"] = max(peaks)
        summary["wall_seconds"] = _seconds_since_start()
        summary["started"] = (datetime.now(UTC) - timedelta(seconds=summary["wall_seconds"])).isoformat()
        since_first_step = time.perf_counter() - self._reporter.first_step_at
        # A run that resumes from its last minibatch takes no step: JSON has no NaN.
        took_a_step = not math.isnan(since_first_step)
        summary["first_step_seconds"] = summary["wall_seconds"] - since_first_step if took_a_step else None
        directory.write_summary(summary)
        profiler = self._profiler
        if profiler is not None and profiler.profile is None:  # training has resumed at its end
            profiler = None
        directory.write_extras(history, profiler)
        self._write_report(history, results, predictions, summary)
        if profiler is not None:
            say(f"\n{profiler.table()}\n")
        say(describe_result(directory.path, summary))

    def _report_unfinished(self, why: str) -> None:
        """Write the report of a run that has not come to its end, on rank 0."""
        history = self._reporter.history
        if self._comm.rank != 0 or history is None:
            return
        self._notes.append(why)
        self._write_report(history, (None, None), None, {})

    def _write_report(
        self,
        history: History,
        results: tuple[Evaluation | None, Evaluation | None],
        predictions: Predictions | None,
        summary: dict[str, Any],
    ) -> None:
        hosts, threads = self._ranks
        lost = [f"Lost {plural(history.lost_ranks, 'rank')} during training; the others continued."]
        with contextlib.suppress(OSError, InputError):  # no new directory, where another run has taken this one
            directory = self._reporter.directory_to_write()
            run = ReportedRun(
                name=str(directory.path),
                config=self._options,
                network=self._network,
                train_set=self._train_set,
                evaluated=self._evaluated,
                test_set=self._test_set,
                optimizer=self._optimizer,
                loss=self._loss,
                history=history,
                hosts=hosts,
                threads=threads,
                started=datetime.now(UTC) - timedelta(seconds=_seconds_since_start()),
                on_train_set=results[0],
                on_test_set=results[1],
                predictions=predictions,
                summary=summary,
                found=self._found,
                test_files=() if self._test_files is None else file_names(self._test_files),
                notes=[*self._notes, *(lost if history.lost_ranks else ())],
            )
            directory.write_report(lambda: training_report(run))


def _seconds_since_start() -> float:
    """Seconds since the system started this process, which includes the start of the interpreter."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
