"""Folders of images: what is found in them, what is refused, and the file of decoded images."""

import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from thread_ranks import on_ranks

import parallelcnn as pc
from parallelcnn.cli.data_sets import Ranks, load_data_sets
from parallelcnn.data.images import file_names, load_images, plan_images
from parallelcnn.data.readers.decoding import ImageOptions, decode
from parallelcnn.data.readers.image_folder import find_images, recognises
from parallelcnn.errors import DataError, InputError
from parallelcnn.training.config import TrainConfig

Image = pytest.importorskip("PIL.Image")

CLASSES = ("cat", "dog")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PARALLELCNN_CACHE", str(folder))
    return folder / "images"


def save(file, color=0, size=(8, 8), mode="RGB"):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(file)


def photos(folder, count=10, classes=CLASSES, **more):
    """Images of one colour each: 10 * label + number in red."""
    for label, name in enumerate(classes):
        for number in range(count):
            save(folder / name / f"{number:03}.png", (10 * label + number, 0, 0), **more)
    return folder


def sets_of(folder, **options):
    return load_images(plan_images(folder, ImageOptions(**options)))


def reds(dataset):
    return dataset.images[:, 0, 0, 0].tolist()


# ---- layouts


def test_a_folder_of_classes_gives_a_training_set_and_a_drawn_test_set(tmp_path):
    train, test = pc.load_data(photos(tmp_path / "photos"))
    assert (train.class_names, test.class_names, train.classes) == (CLASSES, CLASSES, 2)
    assert (len(train), len(test)) == (16, 4)
    assert np.bincount(test.labels).tolist() == [2, 2]
    assert sorted(reds(train) + reds(test)) == list(range(20))
    for one in (train, test):
        assert one.images.shape[1:] == (3, 8, 8)
        assert [red // 10 for red in reds(one)] == one.labels.tolist()
        assert (one.resize, one.role) == ("crop", "test")


def test_the_drawn_test_set_is_the_same_in_every_run_and_for_every_seed(tmp_path, cache):
    first = reds(pc.load_data(photos(tmp_path / "photos"))[1])
    for file in cache.iterdir():
        file.unlink()
    assert reds(pc.load_data(tmp_path / "photos")[1]) == first


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("train", "test"), {"train", "test"}),
        (("Training", "TESTING"), {"train", "test"}),
        (("train", "val", "test"), {"train", "validation", "test"}),
        (("train", "valid"), {"train", "test"}),
        (("train", "validation"), {"train", "test"}),
    ],
)
def test_sets_have_folders_of_their_own(names, wanted, tmp_path):
    for count, name in enumerate(names, start=2):
        photos(tmp_path / name, count)
    sets = sets_of(tmp_path)
    found = {"train": sets.train, "validation": sets.validation, "test": sets.test}
    assert {name for name, one in found.items() if one is not None} == wanted
    assert [len(one) for one in found.values() if one is not None] == [4, 6, 8][: len(names)]
    assert all(one.role == ("val" if name == "validation" else "test") for name, one in found.items() if one)


def test_the_only_folder_train_is_split(tmp_path):
    photos(tmp_path / "train")
    assert [len(one) for one in pc.load_data(tmp_path)] == [16, 4]


def test_images_lie_in_folders_within_a_class_as_well(tmp_path):
    photos(tmp_path)
    save(tmp_path / "cat" / "more" / "deep" / "x.png", (77, 0, 0))
    train, test = pc.load_data(tmp_path)
    assert 77 in reds(train) + reds(test)
    assert len(train) + len(test) == 21


def test_folders_beside_the_sets_are_named_as_not_used(tmp_path):
    photos(tmp_path / "train")
    photos(tmp_path / "eval")
    save(tmp_path / "__MACOSX" / "train" / "cat" / "x.png")
    assert str(find_images(tmp_path)).endswith(" drawn from the others, not used: eval")
    assert str(find_images(tmp_path / "train")).endswith(" drawn from the others")


def test_what_is_hidden_or_no_image_is_ignored_and_counted(tmp_path):
    photos(tmp_path)
    save(tmp_path / ".ipynb_checkpoints" / "x.png")
    save(tmp_path / "cat" / ".hidden.png")
    save(tmp_path / "__MACOSX" / "cat" / "x.png")
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "readme.txt").write_text("x")
    (tmp_path / "cat" / "folder.png").mkdir()
    found = find_images(tmp_path)
    assert found.class_names == CLASSES
    assert len(found.files) == 20
    assert str(found) == (
        "image folder: 2 classes, images: 16 in the training set, 4 in the test set, drawn from the others, "
        "2 other files ignored"
    )


def test_links_to_folders_and_files_are_followed(tmp_path):
    photos(tmp_path / "elsewhere")
    photos(tmp_path / "photos", classes=("cat",))
    (tmp_path / "photos" / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    (tmp_path / "photos" / "cat" / "link.png").symlink_to(tmp_path / "elsewhere" / "cat" / "001.png")
    assert len(find_images(tmp_path / "photos").files) == 21


def test_classes_in_the_test_set_may_be_missing(tmp_path):
    photos(tmp_path / "train")
    photos(tmp_path / "test", 3, classes=("dog",))
    assert pc.load_data(tmp_path)[1].labels.tolist() == [1, 1, 1]


def test_names_of_any_kind_are_kept(tmp_path):
    names = ("1 ärger", "a\nb", "空")
    train, _ = pc.load_data(photos(tmp_path, classes=names))
    assert train.class_names == names


# ---- refusals


def build(tmp_path, case):
    if case == "empty class":
        photos(tmp_path / "train")
        (tmp_path / "train" / "newt").mkdir()
    elif case == "only in the test set":
        photos(tmp_path / "train")
        photos(tmp_path / "test", 1, classes=("dog", "newt"))
    elif case == "one class":
        photos(tmp_path, classes=("cat",))
    elif case == "no classes":
        save(tmp_path / "x.png")
    elif case == "no train":
        photos(tmp_path / "test")
    elif case == "empty test":
        photos(tmp_path / "train")
        (tmp_path / "test").mkdir()
    elif case == "test without classes":
        photos(tmp_path / "train")
        save(tmp_path / "test" / "x.png")
    elif case == "one of each":
        photos(tmp_path, 1)
    elif case == "loop":
        photos(tmp_path)
        (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    elif case == "larger loop":
        photos(tmp_path)
        (tmp_path / "cat" / "again").symlink_to(tmp_path)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("empty class", r"train/newt: must hold images, but is empty: a class that has none cannot be learnt"),
        ("only in the test set", r"test/newt: the class must be one of the training set, which has cat, dog"),
        (
            "one class",
            r"must hold at least two folders, one for each class, with its images in it; the only one is cat",
        ),
        ("no classes", r"at least two folders.*; there is none, and images lie outside of folders"),
        ("no train", r"holds test, but no folder train"),
        ("empty test", r"test: must hold images in folders of classes, but holds none$"),
        ("test without classes", r"but holds none: images without classes are for predict, and must lie elsewhere$"),
        ("loop", r"cat/again: is a link to a folder above it: remove the link"),
        ("larger loop", r"cat/again: is a link to a folder above it: remove the link"),
        ("one of each", r"at least two images of some class, so that a test set can be drawn, but holds one of each"),
    ],
)
def test_what_cannot_be_a_data_set_is_refused(case, message, tmp_path):
    build(tmp_path, case)
    assert recognises(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        pc.load_data(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_without_images_is_not_one_of_images(tmp_path):
    (tmp_path / "cat").mkdir()
    assert not recognises(tmp_path)
    assert not recognises(tmp_path / "missing")
    with pytest.raises(DataError, match="holds no data in a known format"):
        pc.load_data(tmp_path)


def test_a_folder_around_the_data_is_refused_with_the_name_of_theirs(tmp_path):
    photos(tmp_path / "pets" / "train")
    save(tmp_path / "__MACOSX" / "pets" / "x.png")
    with pytest.raises(DataError, match=f"holds no data in a known format, but {tmp_path / 'pets'} does: name that"):
        pc.load_data(tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"known format[.] Known formats: "):
        pc.load_data(tmp_path)


def test_an_archive_of_images_is_to_be_unpacked(tmp_path):
    photos(tmp_path / "pets")
    path = shutil.make_archive(tmp_path / "pets", "zip", tmp_path, "pets")
    with pytest.raises(DataError, match=r"pets\.zip: holds no data in a known format: unpack it first\. Known formats"):
        pc.load_data(path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    photos(tmp_path)
    scandir = os.scandir

    def refusing(folder):
        if os.fspath(folder).endswith("dog"):  # root, who may run the tests, may read every folder
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match="dog: cannot be read: Permission denied"):
        pc.load_data(tmp_path)


@pytest.mark.parametrize("broken", [1, 5])
def test_broken_images_are_named_or_left_out(broken, tmp_path, cache):
    photos(tmp_path)
    for number in range(broken):
        (tmp_path / "cat" / f"{number:03}.png").write_bytes(b"no image")
    with pytest.raises(
        DataError, match=r"cat/000.png: cannot be decoded: is no image.*leave it out: --skip-broken"
    ) as e:
        pc.load_data(tmp_path)
    assert ("; and 2 more." in str(e.value)) == (broken == 5)
    assert list(cache.iterdir()) == []
    sets = sets_of(tmp_path, skip_broken=True)
    assert sorted(reds(sets.train) + reds(sets.test)) == list(range(broken, 20))
    assert f"; {broken} broken image{'s' * (broken > 1)} left out" in sets.found
    again = sets_of(tmp_path, skip_broken=True)  # from the cache
    assert (reds(again.train), again.found) == (reds(sets.train), sets.found)


def test_a_class_whose_images_are_all_broken_is_refused(tmp_path):
    photos(tmp_path)
    for file in (tmp_path / "cat").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the training images of the class cat can be decoded"):
        sets_of(tmp_path, skip_broken=True)


def test_a_test_set_whose_images_are_all_broken_is_refused(tmp_path):
    for name in ("train", "test"):
        photos(tmp_path / name)
    for file in (tmp_path / "test").glob("*/*"):
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the test images can be decoded"):
        sets_of(tmp_path, skip_broken=True)


def test_only_broken_images(tmp_path):
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for number in range(2):
            (tmp_path / name / f"{number}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="is no image that Pillow can read"):
        sets_of(tmp_path, skip_broken=True)


# ---- size and colour


@pytest.mark.parametrize(
    ("sizes", "options", "wanted"),
    [
        ([(8, 6)], {}, (3, 6, 8)),
        ([(128, 100)], {}, (3, 100, 128)),
        ([(129, 8)], {}, (3, 64, 64)),
        ([(8, 8), (9, 8)], {}, (3, 64, 64)),
        ([(8, 8)], {"image_size": 5}, (3, 5, 5)),
        ([(8, 8)], {"image_size": (5, 7), "color": "gray"}, (1, 5, 7)),
    ],
)
def test_the_size_is_derived_from_the_images_unless_given(sizes, options, wanted, tmp_path):
    photos(tmp_path)
    for number, file in enumerate(sorted(tmp_path.rglob("*.png"))):
        save(file, size=sizes[number % len(sizes)])
    sets = sets_of(tmp_path, **options)
    assert sets.train.images.shape[1:] == wanted
    assert f"{wanted[1]} x {wanted[2]}" in sets.found


@pytest.mark.parametrize(("modes", "channels"), [(("L", "1"), 1), (("L", "RGB"), 3), (("RGB",), 3)])
def test_images_are_gray_if_all_are(modes, channels, tmp_path):
    for label, name in enumerate(CLASSES):
        for number in range(5):
            save(tmp_path / name / f"{number}.png", mode=modes[label % len(modes)])
    assert sets_of(tmp_path).train.input_shape[0] == channels


def test_options_of_images_are_refused_for_other_data(tmp_path):
    with pytest.raises(InputError, match=r"digits: is no folder of images, for which alone image_size \(5, 5\) can be"):
        pc.load_data("digits", image_size=5)


def test_a_folder_of_mnist_is_refused_for_images(tmp_path):
    with pytest.raises(
        DataError, match=r"data_dir .* is where the data set 'mnist' lies, but the data set asked for is"
    ):
        pc.load_data(photos(tmp_path), data_dir=tmp_path)


# ---- the file of decoded images


def test_images_are_decoded_once(tmp_path, monkeypatch):
    photos(tmp_path)
    first = pc.load_data(tmp_path)
    monkeypatch.setattr("parallelcnn.data.images.decode", lambda *_: pytest.fail("decoded again"))
    monkeypatch.setattr("parallelcnn.data.images.look", lambda *_: pytest.fail("opened again"))
    for one, other in zip(first, pc.load_data(tmp_path), strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
        assert not other.images.flags.writeable


@pytest.mark.parametrize("change", ["content", "new file", "removed", "renamed", "options"])
def test_a_change_decodes_again(change, tmp_path, cache):
    photos(tmp_path)
    before = sets_of(tmp_path)
    options = {}
    if change == "content":
        save(tmp_path / "cat" / "000.png", (99, 0, 0), size=(8, 8))
        os.utime(tmp_path / "cat" / "000.png", ns=(1, 1))
    elif change == "new file":
        save(tmp_path / "cat" / "new.png", (99, 0, 0))
    elif change == "removed":
        (tmp_path / "cat" / "000.png").unlink()
    elif change == "renamed":
        (tmp_path / "cat").rename(tmp_path / "kitten")
    else:
        options = {"resize": "pad", "image_size": 9}
    after = sets_of(tmp_path, **options)
    assert len(list(cache.iterdir())) == 2
    everything = reds(after.train) + reds(after.test)
    if change in ("content", "new file"):
        assert 99 in everything
    elif change == "removed":
        assert len(everything) == 19
    elif change == "renamed":
        assert after.train.class_names == ("dog", "kitten") != before.train.class_names
    else:
        assert after.train.images.shape[1:] == (3, 9, 9)


@pytest.mark.parametrize("damage", [b"", b"garbage" * 100, None])
def test_a_damaged_file_is_made_again(damage, tmp_path, cache):
    wanted = reds(pc.load_data(photos(tmp_path))[0])
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-5] if damage is None else damage)
    assert reds(pc.load_data(tmp_path)[0]) == wanted


def test_where_the_cache_cannot_be_written_another_folder_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("PARALLELCNN_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"the decoded images cannot be written: .*; PARALLELCNN_CACHE names another"):
        pc.load_data(photos(tmp_path / "photos"))


@pytest.mark.parametrize("nodes", [1, 2])
def test_ranks_share_the_decoding_and_each_node_has_its_file(nodes, tmp_path, monkeypatch):
    """With two nodes, ranks 0 and 1 see one cache, and rank 2 another."""
    plan = plan_images(photos(tmp_path / "photos", 150), ImageOptions())
    decoded = []

    def noting(file, *others):
        decoded.append((threading.get_ident(), file))
        return decode(file, *others)

    monkeypatch.setattr("parallelcnn.data.images.decode", noting)
    monkeypatch.setattr("parallelcnn.data.images._IN_A_ROUND", 7)

    here = threading.local()

    def load(comm):
        node = [0, 1, 2] if nodes == 1 else [0, 1] if comm.rank < 2 else [2]
        comm.ranks_on_node, here.is_second_node = lambda: node, 0 not in node
        mine = plan if 0 in node else replace(plan, file=tmp_path / "other" / plan.file.name)
        done = []
        sets = load_images(mine, Ranks(comm), done.append)
        return reds(sets.train), reds(sets.test), done

    # A node does not see the file that is made on another one.
    seen = lambda file, _: ("other" in str(file)) == here.is_second_node  # noqa: E731
    monkeypatch.setattr("parallelcnn.data.images._is_there", seen)
    results = on_ranks(3, load)
    assert all(found[:2] == results[0][:2] for found in results)
    assert sorted(results[0][0] + results[0][1]) == sorted([*range(150), *range(10, 160)])
    files = [file for _, file in decoded]
    assert len(files) == nodes * 300
    assert len(set(files)) == 300
    assert results[0][2][-1] == 300
    for folder in (plan.file.parent, *([tmp_path / "other"] if nodes == 2 else [])):
        assert [file.name for file in folder.iterdir()] == [plan.file.name]


def test_a_broken_image_is_named_on_every_rank(tmp_path):
    (photos(tmp_path / "photos", 50) / "dog" / "049.png").write_bytes(b"")
    plan = plan_images(tmp_path / "photos", ImageOptions())

    def load(comm):
        with pytest.raises(DataError, match=r"dog/049.png: cannot be decoded"):
            load_images(plan, Ranks(comm))
        sets = load_images(replace(plan, options=ImageOptions(skip_broken=True)), Ranks(comm))
        return len(sets.train) + len(sets.test)

    assert on_ranks(3, load) == [99] * 3


def test_nothing_is_left_after_an_interrupt(tmp_path, cache, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("parallelcnn.data.images.decode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pc.load_data(photos(tmp_path))
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("test_set", ["drawn", "val", "test"])
def test_the_names_of_the_test_set_s_files_are_known(test_set, tmp_path):
    if test_set == "drawn":
        photos(tmp_path)
    else:
        photos(tmp_path / "train")
        photos(tmp_path / "val", 4)
        if test_set == "test":
            photos(tmp_path / "test", 6)
    options = TrainConfig(data=str(tmp_path), epochs=1, batch_size=5, validation_split=0.3)
    loaded = load_data_sets(options, pc.Serial())
    files = file_names(loaded.test_files)
    assert len(files) == len(loaded.test) == {"drawn": 4, "val": 8, "test": 12}[test_set]
    for image, file in zip(loaded.test.images, files, strict=True):
        np.testing.assert_array_equal(image, decode(str(tmp_path / file), (3, 8, 8), "crop"))


# ---- what is deleted from the cache


def put(cache, number, days=0.0, size=1000, name="{:032x}.safetensors"):
    """A file that was used so many days ago."""
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / name.format(number)
    file.write_bytes(bytes(size))
    os.utime(file, (time.time() - days * 86400,) * 2)
    return file


def test_files_that_were_not_used_for_long_are_deleted_when_one_is_made(tmp_path, cache, capsys):
    unfinished = ".{:032x}.safetensors.abc.unfinished"
    old = [put(cache, 1, 31), put(cache, 2, 400), put(cache, 3, 2, name=unfinished)]
    recent = [put(cache, 4, 29), put(cache, 5, 0.5, name=unfinished)]
    others = [put(cache, 6, 99, name="model{}.safetensors"), put(cache, 7, 99, name="{:032x}.npz")]
    (link := cache / f"{8:032x}.safetensors").symlink_to(others[0])
    pc.load_data(photos(tmp_path))
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"cache      deleted 3 files of decoded images (3 KiB) in {cache}: not used for 30 days, or the least recently "
        f"used beyond 20 GiB"
    )
    assert not any(file.exists() for file in old)
    assert all(file.exists() for file in (*recent, *others, link))
    pc.load_data(tmp_path)
    assert capsys.readouterr().err == ""


def test_the_least_recently_used_files_are_deleted_if_all_are_too_large(tmp_path, cache, monkeypatch):
    files = [put(cache, number, days=number) for number in range(1, 6)]
    photos(tmp_path)
    monkeypatch.setattr("parallelcnn.data.cache.KEPT_BYTES", 20 * 3 * 8 * 8 + 2500)
    pc.load_data(tmp_path)
    assert [file.exists() for file in files] == [True, True, False, False, False]
    (new,) = set(cache.iterdir()) - set(files)
    monkeypatch.setattr("parallelcnn.data.cache.KEPT_BYTES", 0)
    pc.load_data(tmp_path, image_size=9)  # of a set larger than the limit, the file is made all the same
    assert len(list(cache.iterdir())) == 1
    assert not new.exists()


def test_a_start_marks_the_file_as_used(tmp_path, cache):
    pc.load_data(photos(tmp_path))
    (file,) = cache.iterdir()
    os.utime(file, (0, 0))
    pc.load_data(tmp_path)
    assert time.time() - file.stat().st_mtime < 60


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_file_in_use_is_never_deleted(in_memory, tmp_path, cache, monkeypatch):
    """Also by another process, and where only a part of the set is used."""
    if not in_memory:
        monkeypatch.setattr("parallelcnn.data.images.memory_limit", lambda: (0, ""))
    photos(tmp_path / "photos")
    sets = sets_of(tmp_path / "photos")
    (file,) = cache.iterdir()
    os.utime(file, (0, 0))
    used = sets.train.images.choose(np.array([3])) if not in_memory else sets.train.images[3:4]
    del sets
    code = "import sys; from pathlib import Path; from parallelcnn.data.cache import delete_unused; "
    code += "print(delete_unused(Path(sys.argv[1]), 0))"

    def deleted():
        return subprocess.check_output([sys.executable, "-c", code, cache], text=True).strip()

    assert deleted() == "[]"
    assert used[:].shape == (1, 3, 8, 8)
    size = file.stat().st_size
    del used
    assert deleted() == f"[{size}]"


def test_a_file_that_is_being_written_is_not_deleted(tmp_path, cache, monkeypatch):
    from parallelcnn.data import cache as cache_module

    found = []

    def decode_and_look(*arguments):
        for file in cache.iterdir():
            os.utime(file, (0, 0))
        found.extend(cache_module.delete_unused(cache, 0))
        return decode(*arguments)

    monkeypatch.setattr("parallelcnn.data.images.decode", decode_and_look)
    pc.load_data(photos(tmp_path))
    assert found == []


def test_a_node_without_the_file_decodes_where_rank_0_has_one(tmp_path):
    """The plan of rank 0 then does not say which shape the images have."""
    wanted = reds(sets_of(photos(tmp_path / "photos")).train)
    plan = plan_images(tmp_path / "photos", ImageOptions())
    assert plan.shape is None

    def load(comm):
        comm.ranks_on_node = lambda: [comm.rank]
        mine = plan if comm.rank == 0 else replace(plan, file=tmp_path / "other" / plan.file.name)
        return reds(load_images(mine, Ranks(comm)).train)

    assert on_ranks(2, load) == [wanted] * 2
