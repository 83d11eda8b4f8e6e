"""The cache of compiled kernels: many processes at once, damage, directories that others can write to, no directory."""

import json
import os
import resource
import stat
import subprocess
import sys
import warnings

import numba
import pytest

from parallelcnn.errors import TrainingWarning
from parallelcnn.kernels import _cache

# Runs one kernel for the types of numbers and dimensions that it is told, and prints how often it was compiled.
_PROGRAM = """
import json, sys
import numpy as np
from numba.core import event
sys.path.insert(0, sys.argv[1])
from one_kernel import fill

compiled = event.RecordingListener()
event.register("numba:compile", compiled)
sys.stdin.readline()
for name, ndim in json.loads(sys.argv[2]):
    array = np.zeros((1,) * ndim, name)
    fill(array)
    assert array.all()
print(sum(record.is_start for _, record in compiled.buffer))
"""

_KERNEL = """
from parallelcnn.kernels._jit import kernel

@kernel
def fill(array):
    array.flat[0] = 1
"""

_KERNEL_OF_A_KERNEL = """
import os
from parallelcnn.kernels._jit import kernel

def make(number):
    @kernel
    def value():
        return number

    @kernel
    def fill(array):
        array.flat[0] = value()

    return fill

fill = make(int(os.environ["NUMBER"]))
"""

_KERNEL_OF_A_PART = """
import os
from parallelcnn.kernels._jit import kernel, kernel_part

@kernel_part
def value():
    return 7

@kernel
def fill(array):
    array.flat[0] = value() + 0
"""

_KERNEL_THAT_HASHES = """
from parallelcnn.kernels._jit import kernel

@kernel
def fill(array):
    array.flat[0] = len({str(array.size): 1})  # texts are hashed with a variable of the process
"""

_KERNELS_OF_ONE_FUNCTION = """
import sys
from functools import partial
import numpy as np
from parallelcnn import call_list
from parallelcnn.kernels._jit import kernel, kernel_uncached

def writing(number, kernel):
    @kernel
    def write(array):
        array[0] = number

    return write

kernels = [writing(int(number), kernel_uncached if number[0] == "0" else kernel) for number in sys.argv[1:]]
rows = np.zeros((len(kernels), 1))
calls = [partial(write, row) for write, row in zip(kernels, rows)]
for call in calls:
    call()
print(*rows.ravel())
rows[...] = 0
joined = call_list.join(calls)
assert len(joined) == 1
joined[0]()
print(*rows.ravel())
"""

_KERNEL_THAT_RETURNS = """
import numpy as np
from parallelcnn.kernels._jit import kernel

@kernel
def squares(array):
    if array.size == 3:
        raise ValueError("three numbers", array.size)
    return np.multiply(array, array)

def fill(array):
    array[...] = 1
    assert (squares(array) == array).all()
    for _ in range(2):
        try:
            squares(np.ones(3, array.dtype))
        except ValueError as error:
            assert error.args == ("three numbers", 3)
        else:
            raise AssertionError
"""

_LOADED_MODULES = """
import atexit, sys
atexit.register(lambda: print(sum(name in sys.modules for name in ("numba.np.arrayobj", "numba.cpython.unicode"))))
"""

_TYPES = [(name, ndim) for ndim in (1, 2, 3) for name in ("i1", "i2", "i4", "i8", "u1", "u2", "f4", "f8")]


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a process that runs the kernel for these types once it is sent a line."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "one_kernel.py").write_text(_KERNEL)

    def start(types, **options):
        command = [sys.executable, "-c", _PROGRAM, str(tmp_path), json.dumps(types)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)

    return start


def finish(process):
    """How often the process compiled."""
    (compiled,) = printed(process)
    return int(compiled)


def printed(process):
    out, _ = process.communicate("\n", timeout=60)
    assert process.returncode == 0
    return out.splitlines()


@pytest.mark.slow
def test_processes_that_keep_kernels_at_the_same_time_lose_none(start):
    processes = [start(_TYPES[i::4]) for i in range(4)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [finish(process) for process in processes] == [len(_TYPES) / 4] * 4
    assert finish(start(_TYPES)) == 0


def _cut(content):
    return content[: len(content) // 2]


def _empty(content):
    return b""


def _flip_a_bit_of_the_checksum(content):
    return bytes([content[0] ^ 1]) + content[1:]


def _flip_a_bit_of_the_machine_code(content):
    place = 2 * len(content) // 3
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.slow
@pytest.mark.parametrize("damage", [_empty, _cut, _flip_a_bit_of_the_checksum, _flip_a_bit_of_the_machine_code])
def test_a_damaged_file_is_not_loaded_but_compiled_again_and_replaced(start, tmp_path, damage):
    assert finish(start(_TYPES[:2])) == 2
    files = list((tmp_path / "cache").rglob("one_kernel*.nbc"))
    assert len(files) == 2
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
    assert finish(start(_TYPES[:2])) == 2
    assert finish(start(_TYPES[:2])) == 0


def test_a_file_under_the_name_of_another_is_not_loaded(start, tmp_path):
    assert finish(start(_TYPES[:2])) == 2
    one, other = (tmp_path / "cache").rglob("one_kernel*.nbc")
    one.write_bytes(other.read_bytes())
    assert finish(start(_TYPES[:2])) == 1


def test_files_of_an_earlier_source_are_removed(start, tmp_path):
    assert finish(start(_TYPES[:1])) == 1
    (tmp_path / "one_kernel.py").write_text(_KERNEL + "# edited\n")
    assert finish(start(_TYPES[:1])) == 1
    assert len(list((tmp_path / "cache").rglob("one_kernel*"))) == 1


def test_a_kernel_that_calls_one_of_its_closure_is_kept(start, tmp_path, monkeypatch):
    (tmp_path / "one_kernel.py").write_text(_KERNEL_OF_A_KERNEL)
    for number, compiled in ((1, 2), (1, 0), (2, 2), (1, 0), (2, 0)):
        monkeypatch.setenv("NUMBER", str(number))
        assert finish(start(_TYPES[:1])) == compiled


def test_a_part_from_the_cache_becomes_part_of_a_kernel_that_is_compiled(start, tmp_path):
    program = tmp_path / "one_kernel.py"
    program.write_text(_KERNEL_OF_A_PART)
    assert finish(start(_TYPES[:1])) == 2
    # The kernel's file is gone, the part's is not.
    (file,) = (tmp_path / "cache").rglob("one_kernel.fill*.nbc")
    file.unlink()
    assert finish(start(_TYPES[:1])) == 1
    assert finish(start(_TYPES[:1])) == 0


def test_loading_a_kernel_loads_nothing_that_only_compiling_needs(start, tmp_path):
    (tmp_path / "one_kernel.py").write_text(_LOADED_MODULES + _KERNEL)
    assert printed(start(_TYPES[:2])) == ["2", "2"]
    assert printed(start(_TYPES[:2])) == ["0", "0"]
    assert printed(start(_TYPES[:3])) == ["1", "2"]  # compiling after loading


def test_a_kernel_that_needs_more_of_numba_gets_it(start, tmp_path):
    (tmp_path / "one_kernel.py").write_text(_LOADED_MODULES + _KERNEL_THAT_HASHES)
    compiled, _ = printed(start(_TYPES[3:4]))
    assert int(compiled) > 0
    assert printed(start(_TYPES[3:4])) == ["0", "2"]


def test_a_kernel_from_the_cache_returns_arrays_and_raises_errors_with_arguments(start, tmp_path):
    (tmp_path / "one_kernel.py").write_text(_KERNEL_THAT_RETURNS)
    assert finish(start(_TYPES[6:8])) > 0
    assert finish(start(_TYPES[6:8])) == 0


def test_kernels_of_one_function_that_other_processes_compiled_are_not_confused(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONHASHSEED", "0")  # machine code may have the same names in every process
    program = tmp_path / "program.py"
    program.write_text(_KERNELS_OF_ONE_FUNCTION)

    def written(*numbers):
        return subprocess.check_output([sys.executable, program, *numbers], text=True).splitlines()

    assert written("1") == ["1.0"] * 2
    assert written("2") == ["2.0"] * 2
    assert written("1", "2") == ["1.0 2.0"] * 2
    assert written("2", "1") == ["2.0 1.0"] * 2
    assert written("03", "1") == ["3.0 1.0"] * 2  # 03 is compiled here, 1 is from the cache
    assert written("1", "03") == ["1.0 3.0"] * 2


def test_machine_code_that_calls_what_is_not_there_is_not_loaded(start, tmp_path, monkeypatch):
    (tmp_path / "one_kernel.py").write_text(_LOADED_MODULES + _KERNEL_THAT_HASHES)
    assert int(printed(start(_TYPES[3:4]))[0]) > 0
    without = "from llvmlite import binding\nbinding.address_of_symbol = lambda name: None\n"
    (tmp_path / "sitecustomize.py").write_text(without)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    assert int(printed(start(_TYPES[3:4]))[0]) > 0


def test_a_full_disk_keeps_nothing_and_stops_nothing(start):
    def fill_the_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    assert finish(start(_TYPES[:2], preexec_fn=fill_the_disk)) == 2
    assert finish(start(_TYPES[:2])) == 2


@pytest.fixture
def directory_for(monkeypatch):
    """The directory for kernels of a source directory, as a new process would choose it, and the warnings."""

    def directory_for(source, cache_dir=""):
        monkeypatch.setattr(numba.config, "CACHE_DIR", str(cache_dir))
        _cache._directory_for.cache_clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = _cache._directory_for(str(source))
            assert _cache._directory_for(str(source)) is found
        assert all(issubclass(warning.category, TrainingWarning) for warning in caught)
        return found and found.path, [str(warning.message) for warning in caught]

    yield directory_for
    _cache._directory_for.cache_clear()


@pytest.fixture
def unwritable(tmp_path):
    """A source directory that has a file in place of __pycache__."""
    source = tmp_path / "site" / "kernels"
    source.mkdir(parents=True)
    (source / "__pycache__").write_text("")
    return source


@pytest.mark.parametrize("environment", [{"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "relative"}, {}])
def test_without_a_home_directory_there_is_no_cache_and_one_warning(
    directory_for, unwritable, environment, tmp_path, monkeypatch
):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as it does without HOME and passwd entry
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    found, (said,) = directory_for(unwritable)
    assert found is None
    assert "not kept, so every process compiles them again" in said
    assert "no home directory is known" in said
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"])
def test_of_the_ranks_of_a_node_one_warns(directory_for, unwritable, variable, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.setenv(variable, "1")
    assert directory_for(unwritable) == (None, [])
    monkeypatch.setenv(variable, "0")
    assert len(directory_for(unwritable)[1]) == 1


def test_an_empty_xdg_cache_home_means_the_home_directory(directory_for, unwritable, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "account"))
    found, said = directory_for(unwritable)
    assert found.startswith(str(tmp_path / "account" / ".cache" / "numba" / "kernels-"))
    assert not said
    assert stat.S_IMODE(os.stat(found).st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o702])
def test_a_chosen_directory_that_all_can_write_to_is_refused_and_named(directory_for, mode, tmp_path):
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(mode)
    for chosen in (open_to_all, open_to_all / "below"):
        found, (said,) = directory_for(tmp_path / "kernels", chosen)
        assert found.startswith(f"{tmp_path}/kernels/__pycache__/")
        assert f"NUMBA_CACHE_DIR={chosen} is not safe: every user can write to {open_to_all}" in said
        assert not list(open_to_all.iterdir())


def test_a_directory_like_tmp_is_taken_if_what_is_ours_in_it_is_ours_alone(directory_for, tmp_path):
    like_tmp = tmp_path / "tmp"
    like_tmp.mkdir()
    like_tmp.chmod(0o1777)
    found, said = directory_for(tmp_path / "kernels", like_tmp)
    assert found.startswith(f"{like_tmp}/")
    assert not said
    for mode in (0o720, 0o702, 0o777, 0o1777):  # somebody has made it before us
        os.chmod(found, mode)
        other, (said,) = directory_for(tmp_path / "kernels", like_tmp)
        assert other != found
        assert f"is not safe: other users can write to {found}" in said


def _give_away(path, monkeypatch):
    """Make a file or directory another user's, or this process."""
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr("os.geteuid", lambda: 12345)


def test_a_directory_of_another_user_is_refused(directory_for, tmp_path, monkeypatch):
    found, said = directory_for(tmp_path / "kernels", tmp_path / "cache")
    assert found.startswith(f"{tmp_path}/cache/kernels-")
    assert not said
    subdirectory = os.path.basename(found)
    monkeypatch.setattr(_cache, "_subdirectory", lambda _: subdirectory)
    _give_away(found, monkeypatch)
    other, said = directory_for(tmp_path / "kernels", tmp_path / "cache")
    assert other != found
    assert f"is not safe: other users can write to {found}" in said[0]


def test_a_file_that_another_user_has_put_there_or_can_write_to_is_not_loaded(directory_for, tmp_path, monkeypatch):
    path, _ = directory_for(tmp_path / "kernels", tmp_path / "cache")
    directory = _cache._directory_for(str(tmp_path / "kernels"))
    directory.write("kernel", b"content")
    assert directory.read("kernel") == b"content"
    for mode in (0o602, 0o620):
        os.chmod(os.path.join(path, "kernel"), mode)
        with pytest.raises(PermissionError):
            directory.read("kernel")
    os.chmod(os.path.join(path, "kernel"), 0o600)
    _give_away(os.path.join(path, "kernel"), monkeypatch)
    with pytest.raises(PermissionError):
        directory.read("kernel")


def test_a_link_to_what_is_elsewhere_is_no_file_of_the_cache(directory_for, tmp_path):
    directory_for(tmp_path / "kernels", tmp_path / "cache")
    directory = _cache._directory_for(str(tmp_path / "kernels"))
    (tmp_path / "elsewhere").write_text("content")
    os.symlink(tmp_path / "elsewhere", os.path.join(directory.path, "kernel"))
    with pytest.raises(OSError, match="symbolic link"):
        directory.read("kernel")
