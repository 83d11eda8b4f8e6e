"""Sequential, Concat and a Residual with a shortcut: against PyTorch, in training and in files."""

import copy

import numpy as np
import own_layers
import pytest
import small
from recorded import run_layer
from thread_ranks import on_ranks

import parallelcnn as pc
from parallelcnn.fusions import PooledConv2D

# A block of a ResNet with a stride, and one of GoogLeNet with an identity as in DenseNet. All have 3 filters of
# 1 x 1, so that few kernels are compiled.
RESNET = pc.Residual(
    (pc.Conv2D(3, 1, stride=2, activation="relu"), pc.Conv2D(3, 1)),
    shortcut=pc.Conv2D(3, 1, stride=2),
    activation="relu",
)
INCEPTION = pc.Concat((pc.Conv2D(3, 1), (pc.Conv2D(3, 1, activation="relu"), pc.Conv2D(3, 1)), ()))

# Everything inside everything, with random numbers and moving averages.
DEEP = (
    pc.Conv2D(3, 3, activation="relu"),
    pc.Residual((pc.Conv2D(3, 3), pc.MaxPool2D(2)), shortcut=(pc.Conv2D(3, 3), pc.MaxPool2D(2))),
    pc.Concat(
        (
            (own_layers.Dropout(0.2), pc.Residual((pc.Conv2D(3, 1), own_layers.Centre()), activation="tanh")),
            pc.Sequential((pc.Concat((own_layers.Dropout(0.2), pc.Conv2D(3, 1))), own_layers.Centre(0.5))),
            (),
        )
    ),
    pc.Flatten(),
    pc.Dense(5),
)


def train(threads=1, layers=DEEP, epochs=1, **options):
    found = pc.NetworkHandler(layers, (1, 11, 9))
    sets = small.dataset(83), small.dataset(20, seed=1)
    options = {"comm": pc.Serial(), "threads": threads, "reproducible": 4, "verbose": 0, **options}
    pc.train(found, *sets, pc.SGD(0.05, momentum=0.9), epochs, 25, **options)
    return found


def test_output_gradients_and_names_are_those_of_pytorch(rng):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    convolution, relu = torch.nn.Conv2d, torch.nn.functional.relu

    class ResNet(torch.nn.Sequential):
        def __init__(self):
            super().__init__(convolution(3, 3, 1, 2), convolution(3, 3, 1))
            self.shortcut = torch.nn.Sequential(convolution(3, 3, 1, 2))

        def forward(self, x):
            return relu(self[1](relu(self[0](x))) + self.shortcut(x))

    class Inception(torch.nn.ModuleList):
        def forward(self, x):
            return torch.cat([self[0](x), self[1][1](relu(self[1][0](x))), x], dim=1)

    branches = torch.nn.Sequential(convolution(3, 3, 1)), [convolution(3, 3, 1), convolution(3, 3, 1)]
    twin = torch.nn.Sequential(ResNet(), Inception((branches[0], torch.nn.Sequential(*branches[1]))))
    ran = run_layer(pc.Sequential((RESNET, INCEPTION)), (3, 7, 9), 13, np.float32, rng)
    assert set(ran.params) == {name for name, _ in twin.named_parameters()}
    for name, parameter in twin.named_parameters():
        parameter.data.copy_(torch.from_numpy(ran.params[name]))
    x = torch.tensor(np.moveaxis(ran.x, -1, 0).copy(), requires_grad=True)
    y = twin(x)
    y.backward(torch.from_numpy(np.moveaxis(ran.dy, -1, 0).copy()))
    np.testing.assert_allclose(np.moveaxis(ran.y, -1, 0), y.detach(), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(np.moveaxis(ran.dx, -1, 0), x.grad, rtol=1e-4, atol=1e-3)
    for name, parameter in twin.named_parameters():
        np.testing.assert_allclose(ran.grads[name], parameter.grad, rtol=1e-4, atol=1e-2)


def test_a_sequential_computes_the_bits_of_its_layers_in_the_network_and_fuses_them_too(rng):
    """Convolution and pooling are fused at any depth; what stands behind keeps its name."""
    apart = (
        pc.Conv2D(3, 3, activation="relu"),
        pc.MaxPool2D(2),
        pc.Conv2D(3, 1, activation="tanh"),
        pc.Flatten(),
        pc.Dense(5),
    )
    inside = (pc.Sequential((pc.Sequential(apart[:2]), apart[2])), *apart[3:])
    networks = [pc.NetworkHandler(layers, (1, 11, 9), seed=3) for layers in (apart, inside)]
    assert list(networks[1].named_arrays)[2:6] == ["0.1.weight", "0.1.bias", "2.weight", "2.bias"]
    images, dy = rng.random((20, 11, 9), np.float32), rng.normal(size=(5, 20)).astype(np.float32)
    for one in networks:
        one.forward(one.load(images, training=True), training=True)
        one.backward(dy.copy())
    np.testing.assert_array_equal(networks[0].gradients, networks[1].gradients)
    deep = pc.Concat((pc.Sequential((pc.Residual(apart[:2], shortcut=apart[:2]),)),))
    running, _ = pc.NetworkHandler((deep,), (1, 11, 9)).fused_layers[0]
    assert repr(running).count(PooledConv2D.__name__) == 2


def test_recomputing_gives_the_same_bits_in_less_memory():
    """Random numbers, moving averages, fused layers and a composite inside; blocks in the middle and at the front."""
    block = (
        own_layers.Dropout(0.2),
        pc.Conv2D(3, 3, padding="same", activation="relu"),
        own_layers.Centre(),
        pc.Residual((pc.Conv2D(3, 3, padding="same", activation="tanh"), own_layers.Dropout(0.2)), activation="relu"),
    )
    ends = (pc.MaxPool2D(2), pc.Flatten(), pc.Dense(5))
    kept, recomputed = (
        train(layers=(*(kind(block) for _ in range(4)), *ends)) for kind in (pc.Sequential, pc.Recompute)
    )
    assert recomputed.state_sha256() == kept.state_sha256()
    assert recomputed.replica.nbytes < 0.6 * kept.replica.nbytes
    used, otherwise = (one.replica.plan_size() / 2**20 for one in (recomputed, kept))
    line = f"training on 128 samples takes {used:.1f} MiB, without Recompute {otherwise:.1f} MiB"
    assert recomputed.summary().splitlines()[-1] == line
    assert "Recompute" not in kept.summary()


def memory_in(line):
    """The numbers of samples and of MiB with and without `Recompute`, of a summary's last line."""
    words = line.replace(",", "").split()
    return int(words[2]), float(words[5]), float(words[9])


def pieces_of(layers, sizes):
    """The layers with a Recompute for each of the first groups of so many layers."""
    for size in sizes:
        yield pc.Recompute(layers[:size])
        layers = layers[size:]
    yield from layers


@pytest.mark.parametrize(
    ("sizes", "most"), [((5, 5), 0.7), ((2, 3, 2, 3, 2), 0.6), ((17,), 1.01)], ids=["pairs", "convolutions", "all"]
)
def test_the_summary_says_what_tapes_of_vgg_small_take(sizes, most):
    layers = pc.vgg_small()
    kept, recomputed = (pc.NetworkHandler(tuple(some), (3, 32, 32)) for some in (layers, pieces_of(layers, sizes)))
    n, used, otherwise = memory_in(recomputed.summary().splitlines()[-1])
    assert n == recomputed.replica.block_size
    for network, stated in ((recomputed, used), (kept, otherwise)):
        network.replica.tape(n, training=True)
        assert network.replica._memory.nbytes / 2**20 == pytest.approx(stated, abs=0.06)
    assert used <= most * otherwise


@pytest.mark.parametrize(
    "wrap",
    [
        lambda layer: pc.Residual((layer,)),
        lambda layer: pc.Residual((pc.Conv2D(16, 1),), shortcut=(layer, pc.Conv2D(16, 1))),
        lambda layer: pc.Concat((layer, ())),
        lambda layer: pc.Recompute((pc.Sequential((layer, pc.Conv2D(16, 1))),)),
        pc.Frozen,
    ],
)
def test_the_summary_finds_recomputation_at_any_depth(wrap):
    convolutions = tuple(pc.Conv2D(16, 3, padding="same", activation="tanh") for _ in range(3))
    around = (pc.Conv2D(16, 3, padding="same"), pc.Flatten(), pc.Dense(2))
    some, other = (
        pc.NetworkHandler((around[0], wrap(kind(convolutions)), wrap(kind(convolutions)), *around[1:]), (1, 9, 8))
        for kind in (pc.Recompute, pc.Sequential)
    )
    n, used, otherwise = memory_in(some.summary().splitlines()[-1])
    assert n == some.replica.block_size == other.replica.block_size
    assert used == pytest.approx(some.replica.plan_size() / 2**20, abs=0.06)
    assert used < 0.95 * otherwise
    if not any(isinstance(layer, pc.Recompute) for layer in other.layers):
        assert otherwise == pytest.approx(other.replica.plan_size() / 2**20, abs=0.06)


def test_branches_are_not_fused_with_each_other(rng):
    layer = pc.Concat((pc.Conv2D(3, 1, activation="relu"), pc.MaxPool2D(1)))
    network = pc.NetworkHandler((layer,), (2, 3, 5))
    assert network.fused_layers[0][0] == layer
    x = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
    np.testing.assert_array_equal(network.forward(x)[3:], x)


def test_a_network_trained_on_any_number_of_threads_has_the_same_bits_and_comes_back_from_files(tmp_path):
    folder = pc.CheckpointFolder(tmp_path / "checkpoints", every_steps=3, keep_last=9)
    found = train(1, checkpoints=folder)
    assert len({one.state_sha256() for one in (found, train(2), train(3))}) == 1
    states = on_ranks(2, lambda comm: train(comm=comm, timeout=0).state_sha256())
    assert set(states) == {found.state_sha256()}
    names = list(found.named_arrays)
    assert {"2.0.1.0.weight", "2.1.0.0.1.0.bias", "1.0.weight", "1.shortcut.0.weight", "2.0.1.1.mean"} < set(names)
    images = small.dataset(20, seed=3).images
    pc.save_model(tmp_path / "model.npz", found)
    for again in (pc.load_model(tmp_path / "model.npz", DEEP), copy.deepcopy(found)):
        np.testing.assert_array_equal(again.predict(images), found.predict(images))
    middle = pc.load_checkpoint(tmp_path / "checkpoints" / "step-000000003.npz")
    assert train(2, resume=middle).state_sha256() == found.state_sha256()


def test_ranks_whose_layers_deep_inside_differ_are_named():
    def work(comm):
        branches = pc.Concat(((pc.Dense(3), pc.Residual((own_layers.Dropout(0.1 * comm.rank),))), pc.Dense(2)))
        train(layers=(pc.Flatten(), pc.Sequential((branches, pc.Dense(5)))), comm=comm, timeout=0)

    with pytest.raises(pc.ReplicaMismatchError, match=r"rank 0 has layer 2 .*rate=0.0.* rank 1 has .*rate=0.1"):
        on_ranks(2, work)


def test_a_model_file_rebuilds_the_librarys_own_composites(tmp_path):
    network = pc.NetworkHandler((pc.Sequential((INCEPTION, RESNET)), pc.Concat(((), ()))), (2, 5, 4), seed=1)
    pc.save_model(tmp_path / "model.npz", network)
    again = pc.load_model(tmp_path / "model.npz")
    assert again.layers == network.layers
    assert again.parameters_sha256() == network.parameters_sha256()


def test_layers_in_different_branches_have_random_numbers_and_buffers_of_their_own():
    centre, drop = own_layers.Centre(1), own_layers.Dropout(0.5)
    inside = pc.Residual((drop, centre), shortcut=(drop, centre))
    layer = pc.Concat(((drop, centre), pc.Sequential((drop, centre)), inside))
    network = pc.NetworkHandler((layer,), (50,))
    x = network.load(np.ones((3, 50), np.float32), training=True)
    network.forward(x, training=True)
    means = network.replica.statistics.reshape(4, 50)
    assert len({mean.tobytes() for mean in means}) == 4
    assert layer.mixes_samples is False


def test_random_numbers_differ_however_deep_the_layers_are():
    """The number of a layer is a remainder; that of its outermost container must still make a difference."""

    def nested(depth):
        return own_layers.Dropout() if depth == 0 else pc.Sequential((nested(depth - 1),))

    network = pc.NetworkHandler((pc.Concat((nested(40), nested(40), nested(40))),), (50,))
    y = network.forward(network.load(np.ones((3, 50), np.float32), training=True), training=True)
    assert len({branch.tobytes() for branch in y.reshape(3, 150)}) == 3


def test_nothing_is_recorded_for_branches_before_the_first_parameters():
    """A shortcut without parameters in the first layer, and a branch without any, have no backward pass."""
    layers = (
        pc.Concat((pc.Activation("tanh"), (pc.Activation("tanh"), pc.Dense(2), pc.Activation("tanh")))),
        pc.Residual((pc.Activation("tanh"),)),
    )
    tape = pc.NetworkHandler(layers[:1], (3,)).replica.tape(4, training=True)
    only = pc.NetworkHandler((pc.Sequential(layers[0].branches[1]),), (3,)).replica.tape(4, training=True)
    assert len(tape.backward_parts[0]) == len(only.backward_parts[0]) == 2
    assert pc.NetworkHandler(layers[1:], (3,)).replica.tape(4, training=True).backward == []


def test_the_summary_shows_branches_and_counts_each_parameter_once():
    network = pc.NetworkHandler((INCEPTION, RESNET), (3, 7, 9))
    lines = network.summary().splitlines()
    table = [line.split("  (None")[0].rstrip() for line in lines[4:-2]]
    assert table == [
        "Concat",
        "  Sequential",
        "    Conv2D(3, 1)",
        "  Sequential",
        "    Conv2D(3, 1, activation='relu')",
        "    Conv2D(3, 1)",
        "  Sequential(())",
        "Residual",
        "  Conv2D(3, 1, stride=2, activation='relu')",
        "  Conv2D(3, 1)",
        "  Sequential",
        "    Conv2D(3, 1, stride=2)",
    ]
    counts = [int(line.split()[-1]) for line in lines[4:-2] if line.split()[-1].isdecimal()]
    assert sum(counts) == network.params.size
    inception = 7 * 9 * 3 * 3 * 3
    resnet = 4 * 5 * 3 * (9 + 3 + 9)
    assert network.multiply_adds(1, training=False) == inception + resnet
