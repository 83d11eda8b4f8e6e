"""`train` and `evaluate`: check the arguments, prepare every rank, and run."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from parallelcnn.arguments import accepts_former_names, check_callable, check_methods, check_type
from parallelcnn.comm import run_together
from parallelcnn.data.dataset import Dataset
from parallelcnn.data.numbers import warn_of_another_range, warn_of_scale
from parallelcnn.data.sampler import SampleOrder, Sampler
from parallelcnn.losses import LOSS_METHODS, Loss, SoftmaxCrossEntropy
from parallelcnn.metrics import Metric
from parallelcnn.network import NetworkHandler
from parallelcnn.optimizers import Optimizer
from parallelcnn.profiling import Profiler
from parallelcnn.resilience.ending import abort_all_on_error
from parallelcnn.resilience.replica_check import check_repair
from parallelcnn.resilience.safeguard import TrainingSafeguard
from parallelcnn.resilience.signals import StopOnSignal, stop_on_interrupt
from parallelcnn.resilience.watchdog import DEFAULT_TIMEOUT, Watchdog, check_timeout
from parallelcnn.resilience.world import as_transport
from parallelcnn.training.agreement import check_replicas, describe_data
from parallelcnn.training.callbacks import Callbacks, Training, check_callbacks, reporter_as_callbacks
from parallelcnn.training.checkpoint import THREADS_OF_RANKS, Checkpoint, CheckpointFolder, CheckpointSaver
from parallelcnn.training.compilation import compile_in_turns, compile_kernels, interruptible_compilation
from parallelcnn.training.evaluation import Evaluation, as_metrics, evaluate_by, run_block, sizes_of_sums
from parallelcnn.training.history import History
from parallelcnn.training.loop import Loop
from parallelcnn.training.preparation import (
    check_fit,
    check_loss,
    check_monitored,
    check_numbers,
    check_same_classes,
    facts_of,
    start,
    warn_of_slow_precision,
)
from parallelcnn.training.progress import Progress, check_verbose, show_compilation
from parallelcnn.training.reduction import (
    check_reproducible,
    fixed_shards,
    reducer_of,
    warn_of_idle_threads,
    warn_of_small_shards,
)
from parallelcnn.training.thread_pool import ThreadPool
from parallelcnn.training.threads import check_threads, choose_threads, one_blas_thread


@accepts_former_names({"reporter": reporter_as_callbacks}, grains="reproducible", leave="stop", reporter="callbacks")
def train(
    network: NetworkHandler,
    train_set: Dataset,
    test_set: Dataset,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int,
    seed: int = 0,
    comm: Any = None,
    *,
    loss: Loss | None = None,
    metrics: Sequence[Metric] | None = None,
    sampler: SampleOrder | None = None,
    evaluate_every: int | None = None,
    callbacks: Sequence[Any] = (),
    threads: int | None = None,
    profiler: Profiler | None = None,
    reproducible: int | None = None,
    checkpoints: CheckpointFolder | None = None,
    resume: Checkpoint | None = None,
    stop: Callable[[], bool] | None = None,
    repair: str = "stop",
    timeout: float = DEFAULT_TIMEOUT,
    verbose: int = 1,
) -> History:
    """Train a network, in one process or on many MPI ranks, with one or more threads each.

    The result does not depend on the number of ranks and threads, except for the rounding of float32 sums; with
    `reproducible` it has the same bits. Training starts from rank 0's parameters and a reset optimiser, or from a
    checkpoint. If a rank is lost and MPI can continue without it (Open MPI's mpirun --with-ft ulfm), the remaining
    ranks take over its samples.

    Collective: every rank of `comm` must call it, with the same arguments where nothing else is said.

    Args:
        network: trained in place.
        train_set: the samples to train on.
        test_set: evaluated after each epoch. If you choose anything by the results, pass a validation set here, and
            evaluate on the test set once; see `Dataset.split`.
        optimizer: such as `SGD(0.1)` or `Adam(0.001)`.
        epochs: number of passes over the training set.
        batch_size: samples in a minibatch over ALL ranks. The last minibatch of an epoch may be smaller.
        seed: seed of the order of the samples, of augmentation and of dropout. Rank 0's value is used.
        comm: an mpi4py communicator. None: all ranks that mpirun or srun started together; without a launcher, this
            process alone.
        loss: the loss function. Default: softmax cross-entropy.
        metrics: metrics on the test set. Default: accuracy, if the labels are classes or the loss is binary.
        sampler: the order of the samples. Default: all samples in every epoch, shuffled. A sampler of your own sets the
            size of the minibatches, and must give the same order on every rank.
        evaluate_every: evaluate on the test set after this number of minibatches as well as after each epoch.
        callbacks: see `Callback`. Ranks may have different callbacks.
        threads: number of threads of this rank. Ranks may use different numbers. None: this rank's share of the node's
            cores, or fewer if a step has too little work for them.
        profiler: measures where the time goes.
        reproducible: number of shards that every minibatch is cut into, for reproducible sums. With the same number,
            the result has the same bits on any number of ranks and threads.
        checkpoints: where and how often to save checkpoints.
        resume: continue from this checkpoint. Rank 0's checkpoint is used.
        stop: called before every minibatch. When it returns true on any rank, all ranks save a checkpoint and stop
            after that minibatch.
        repair: what to do if ranks no longer hold the same parameters, which is checked at the end of each epoch and
            before each checkpoint: "stop" with an error, copy those of the "majority", or go back to the last
            "checkpoint".
        timeout: how long a rank may wait for others before a message names them and the job ends [s]; 0: no limit.
        verbose: what rank 0 prints, as in Keras. 1: a progress bar on a terminal, otherwise a line for each epoch;
            2: a line for each epoch; 0: nothing.

    Returns:
        The loss of every minibatch, and every evaluation: the same on every rank, except for times.

    Raises:
        InputError: if an argument is outside its range, or a data set holds NaN or infinity or does not fit the network
            and the loss.
        CheckpointError: if `resume` is not a checkpoint of this network and these data.
        ReplicaMismatchError: if the ranks have different arguments, or no longer hold the same parameters.
        DivergenceError: if the loss or gradient is no longer finite. Every rank raises it in the same step.
        LaunchError: see `world`.
        KeyboardInterrupt: after Ctrl-C, in a single process. Training ends after the current minibatch, and
            `network.history` holds the history. A second Ctrl-C ends it at once.

    Example:
        >>> history = train(network, train_set, test_set, Adam(0.001), epochs=3, batch_size=100, threads=2)
        >>> history["test_accuracy"]
        [0.9751, 0.9833, 0.9862]
    """
    check_timeout(timeout)
    comm = as_transport(comm, timeout)
    with Watchdog(comm, timeout), contextlib.ExitStack() as at_the_end:
        loss = loss or SoftmaxCrossEntropy()

        def check() -> tuple[Metric, ...]:
            check_type("network", network, NetworkHandler, "NetworkHandler(layers, input_shape)")
            check_type("train_set", train_set, Dataset, "Dataset(images, labels, classes)")
            check_type("test_set", test_set, Dataset, "Dataset(images, labels, classes)")
            check_type("optimizer", optimizer, Optimizer, "SGD(learning_rate=0.1)")
            check_type("profiler", profiler, Profiler, "Profiler()", optional=True)
            check_type("checkpoints", checkpoints, CheckpointFolder, 'CheckpointFolder("checkpoints")', optional=True)
            check_type("resume", resume, Checkpoint, "load_checkpoint(file)", optional=True)
            check_methods("loss", loss, LOSS_METHODS, "SoftmaxCrossEntropy() or MeanSquaredError()")
            check_callbacks(callbacks)
            check_callable("stop", stop)
            check_numbers(epochs, batch_size, seed, evaluate_every, train_set)
            check_threads(threads)
            check_verbose(verbose)
            check_reproducible(reproducible)
            check_repair(repair, checkpoints)
            check_fit(network, train_set, loss)
            check_fit(network, test_set, loss)
            check_same_classes(train_set.class_names, "the training set", test_set)
            train_set.check_numbers("training set")
            test_set.check_numbers("test set")
            if comm.rank == 0:
                warn_of_scale(train_set.input_range, test_set.input_range, network.input_shape, stacklevel=5)
                warn_of_small_shards(network, batch_size, reproducible, stacklevel=5)
                warn_of_slow_precision(network, stacklevel=5)
            all_metrics = as_metrics(metrics, network, test_set, loss)
            check_monitored(test_set.role, all_metrics, optimizer, callbacks)
            at_the_end.enter_context(network.being_trained())  # before anything of the network changes
            return all_metrics

        comm.status = "preparing to train"
        all_metrics = run_together(comm, check)
        plan = {
            "metrics": all_metrics,
            "layers": network.layers,
            "input_shape": network.input_shape,
            "dtype": network.dtype,
            "precision": network.precision,
            "optimizer": optimizer,
            "epochs": epochs,
            "batch_size": batch_size,
            "evaluate_every": evaluate_every,
            "loss": loss,
            "profiler": repr(profiler),
            "reproducible": reproducible,
            "repair": repair,
        }
        seed, saves = comm.allgather((seed, checkpoints is not None or resume is not None))[0]
        data = describe_data(comm, train_set=train_set, test_set=test_set) if saves or comm.size > 1 else {}
        check_replicas(comm, {**plan, "classes": (train_set.classes, test_set.classes), **data})
        network.adapt(train_set)

        def describe() -> dict[str, Any]:
            how = {"optimizer": optimizer, "epochs": epochs, "batch_size": batch_size, "seed": seed}
            return (
                facts_of(train_set, test_set, network, loss=loss, data=data, reproducible=reproducible, **how)
                if saves
                else {}
            )

        facts = run_together(comm, describe)  # on every rank: after a loss, any rank may have to save
        order: SampleOrder = Sampler(len(train_set), batch_size, seed) if sampler is None else sampler
        last_sample = order.samples_in(epochs)
        history = network.history = start(comm, network, facts, resume, last_sample)
        interrupt = stop_on_interrupt() if comm.size == 1 else StopOnSignal(())  # of many ranks, it ends all
        at_the_end.enter_context(interrupt)
        network.input_range, network.resize = train_set.input_range, train_set.resize
        names = train_set.class_names or ()
        fitting = network.output_shape == (len(names),) or (network.output_shape, len(names)) == ((1,), 2)
        network.class_names = train_set.class_names if fitting else None
        shards = fixed_shards(network, batch_size, reproducible)
        asked = threads
        threads = choose_threads(comm, asked, network.multiply_adds(batch_size, training=True), shards)
        all_threads = comm.allgather(threads)

        def check_threads_of_ranks() -> None:
            network.check_memory(threads)
            if comm.rank == 0:
                warn_of_idle_threads(all_threads, shards, reproducible, stacklevel=5)

        run_together(comm, check_threads_of_ranks)
        if saves:
            facts[THREADS_OF_RANKS] = all_threads  # not compared above: a resume may have other ranks
        replicas = network.replicas(threads)
        ranks = comm
        # numpy need not warn of an overflow: the check of the loss detects it.
        with abort_all_on_error(comm), one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
            network.prediction = getattr(loss, "prediction", "output")
            with show_compilation(comm) if verbose else contextlib.nullcontext(), interruptible_compilation(interrupt):
                history.compile_seconds = compile_in_turns(
                    comm,
                    lambda: compile_kernels(network, train_set, optimizer, loss, reproducible, all_metrics, test_set),
                    network,
                    asked,
                )
            if verbose:
                progress = at_the_end.enter_context(contextlib.closing(Progress(bar=verbose != 2)))
                callbacks = (progress, *callbacks)
            all_callbacks = Callbacks(callbacks, Training(comm, network, history, epochs, order, optimizer))
            if profiler is not None:
                replicas, ranks, all_callbacks = profiler.watch(network, replicas, comm, all_callbacks)
            with ThreadPool(replicas) as pool:
                saver = CheckpointSaver(comm, checkpoints, facts)
                saver.start(history.steps)
                # A profiler measures a fixed set of ranks: with a profiler, training ends when a rank is lost.
                recovers = profiler is None
                loop = Loop(
                    comm=comm,
                    ranks=ranks,
                    pool=pool,
                    network=network,
                    train_set=train_set,
                    test_set=test_set,
                    optimizer=optimizer,
                    loss=loss,
                    metrics=all_metrics,
                    sampler=order,
                    reducer=reducer_of(network, pool, train_set, loss, reproducible, history.exponents),
                    history=history,
                    steps=order.steps_in(epochs),
                    last_sample=last_sample,
                    evaluate_every=evaluate_every,
                    stop=lambda: bool(interrupt() or (stop is not None and stop())),
                    callbacks=all_callbacks,
                    safeguard=TrainingSafeguard(comm, network, history, repair, saver, recovers=recovers),
                )
                try:
                    loop.run()
                except KeyboardInterrupt:  # the second one
                    history.stopped = True
                    raise
            if profiler is not None:
                profiler.finish()
        if interrupt():
            raise KeyboardInterrupt(f"training ended after minibatch {history.steps}: see network.history")
        return history


def evaluate(
    network: NetworkHandler,
    dataset: Dataset,
    comm: Any = None,
    *,
    loss: Loss | None = None,
    metrics: Sequence[Metric] | None = None,
    threads: int | None = None,
) -> Evaluation:
    """Compute the loss and metrics of a network on a data set.

    Collective: every rank of `comm` must call it.

    Args:
        network: not changed.
        dataset: the samples to evaluate on.
        comm, threads: see `train`.
        loss: the loss function. Default: softmax cross-entropy.
        metrics: default: accuracy, if the labels are classes or the loss is binary.

    Returns:
        The mean loss and the metrics over all samples, the same on every rank.

    Raises:
        ShapeError: if data set, network and loss do not fit together, or do not fit into this machine's memory.
        DataError: if the data set holds NaN or infinity, or its classes have other names than the network's.
        InputError: if `threads` is below 1 or larger than any machine has.
        ReplicaMismatchError: if the ranks have different arguments.
    """
    comm = as_transport(comm)
    loss = loss or SoftmaxCrossEntropy()

    def check() -> tuple[Metric, ...]:
        check_type("network", network, NetworkHandler, "NetworkHandler(layers, input_shape)")
        check_type("dataset", dataset, Dataset, "Dataset(images, labels, classes)")
        check_methods("loss", loss, LOSS_METHODS, "SoftmaxCrossEntropy() or MeanSquaredError()")
        check_threads(threads)
        check_loss(loss, network, dataset)
        check_same_classes(network.class_names, "the network's training", dataset)
        dataset.check_numbers()
        if comm.rank == 0:
            images = f"the images of {dataset.name}"
            warn_of_another_range(images, dataset.input_range, network.input_range, network.input_shape, stacklevel=4)
        return as_metrics(metrics, network, dataset, loss)

    all_metrics = run_together(comm, check)
    if comm.size > 1:
        facts = {"layers": network.layers, "loss": loss, "metrics": all_metrics, "classes": dataset.classes}
        numbers = {"parameters": network.parameters_sha256(), "buffers": network.buffers}
        read = {**numbers, **describe_data(comm, dataset=dataset)}
        check_replicas(comm, {**facts, **read})
    threads = choose_threads(comm, threads, network.multiply_adds(len(dataset), training=False))
    run_together(comm, lambda: network.check_memory(threads))
    with network.idle_replicas(threads) as replicas, one_blas_thread(), ThreadPool(replicas) as pool:
        for n in (1, replicas[0].block_size):  # compile the kernels on one thread; see `compile_kernels`
            sums = map(np.zeros, sizes_of_sums(all_metrics))
            run_block(replicas[0], dataset, np.zeros(n, np.intp), loss, all_metrics, *sums)
        return evaluate_by(pool, dataset, comm, loss, all_metrics)
