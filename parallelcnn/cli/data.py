"""`parallelcnn data`: describe a data set before training."""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from parallelcnn.cli.options import add_setting, data_name_or_path, path
from parallelcnn.cli.output import say
from parallelcnn.errors import DataError, InputError
from parallelcnn.training.config import NETWORK, TrainConfig
from parallelcnn.wording import plural

if TYPE_CHECKING:
    from parallelcnn.comm import Transport
    from parallelcnn.data.description import Duplicate
    from parallelcnn.data.images import DecodedImages
    from parallelcnn.data.sets import DataSets

_NAMED = 10  # broken files and duplicates that are listed
_IN_A_ROW = 10  # images of a class on the contact sheet
_UNEQUAL = 3  # a class with so many times more samples than another one is worth a remark

_EXAMPLES = """\
examples:
  parallelcnn data photos                    classes, counts, sizes, duplicates
  parallelcnn data photos --out about        also about/contact-sheet.png, some images of each class
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "data",
        help="describe a data set before training",
        usage="parallelcnn data NAME|PATH [options]",
        description="Print classes and counts, sizes, mean and standard deviation, and broken and duplicate images.",
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run, strict=None, prepare=prepare, timeout=0.0)
    parser.add_argument("data", type=data_name_or_path, metavar="NAME|PATH", help="as for train --data")
    group = parser.add_argument_group(NETWORK)
    for name in ("data_dir", "image_size", "resize", "color"):
        add_setting(group, name)
    parser.add_argument("--out", type=path, metavar="DIR", help="write contact-sheet.png into this directory")


def prepare(options: argparse.Namespace) -> None:
    """Check the options."""
    named = {name: getattr(options, name) for name in ("data", "data_dir", "image_size", "resize", "color")}
    options.images = TrainConfig(**named, skip_broken=False).build_image_options()


def run(options: argparse.Namespace, comm: "Transport") -> int:
    from dataclasses import replace

    from parallelcnn.data.contact_sheet import write_contact_sheet
    from parallelcnn.data.description import named_sets
    from parallelcnn.data.images import load_images
    from parallelcnn.data.loading import DATA_NAMES, load_sets, plan_of_images
    from parallelcnn.data.readers.decoding import without_warnings
    from parallelcnn.data.readers.image_folder import check_outside
    from parallelcnn.data.sets import ROLES

    out = None if options.out is None else Path(options.out)
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"--out must be a directory, but {out} is a file")
    if out is not None and options.data not in DATA_NAMES:
        check_outside(Path(options.data), out)
    with without_warnings():
        plan = plan_of_images(options.data, replace(options.images, skip_broken=True), options.data_dir)
        sets = load_sets(options.data, options.data_dir, options.images) if plan is None else load_images(plan)
    sets = sets.with_test_set()
    for name, one in named_sets(sets).items():
        one.check_numbers(f"{ROLES[name]} set")
    for line in describe(sets, plan):
        say(line)
    if out is not None:
        if sets.train.classes is None or len(sets.train.images.shape) < 3:
            raise DataError(f"{options.data}: a contact sheet shows images of classes, which these data are not")
        out.mkdir(parents=True, exist_ok=True)
        write_contact_sheet(out / "contact-sheet.png", sets.train, _IN_A_ROW)
        say(f"written    {out / 'contact-sheet.png'}")
    return 0


def describe(sets: "DataSets", plan: "DecodedImages | None") -> Iterator[str]:
    """The lines about data sets, and about the files they were read from."""
    from parallelcnn.data.description import class_counts, duplicates, missing_classes, named_sets, range_of_numbers
    from parallelcnn.data.sets import ROLES
    from parallelcnn.layers.normalize import mean_and_deviation

    named = named_sets(sets)
    if sets.found:
        yield f"found      {sets.found}"
    for name, one in named.items():
        shape = " x ".join(map(str, one.images.shape[1:]))
        yield f"{name:<10} {plural(len(one), 'sample')}, {one.images.dtype} {shape}"
    if plan is not None:
        yield from _sizes_of(plan)
    low, high = range_of_numbers(sets.train)
    both = mean_and_deviation(sets.train.images)
    mean, deviation = (" ".join(f"{number:.4g}" for number in some) for some in both)
    scaled = " (scaled to [0, 1])" if sets.train.images.dtype.name == "uint8" else ""
    yield f"numbers    {low:.4g} to {high:.4g}{scaled}, mean {mean}, standard deviation {deviation}"
    if sets.train.classes is not None:
        counts = {name: class_counts(one) for name, one in named.items()}
        names = sets.train.class_names or tuple(map(str, range(sets.train.classes)))
        width = max(10, *map(len, names))
        yield f"\n{'class':<{width}}{''.join(f' {name:>10}' for name in counts)}"
        for label, name in enumerate(names):
            yield f"{name:<{width}}{''.join(f' {of_set[label]:>10,}' for of_set in counts.values())}"
        fewest, most = min(counts["train"]), max(counts["train"])
        yield ""
        for name, one in named.items():
            missing = missing_classes(one)
            if missing:
                yield f"missing    the {ROLES[name]} set has no sample {missing}"
        if fewest and most >= _UNEQUAL * fewest:  # without samples of a class there are no balanced weights
            yield (
                f"unequal    the largest class has {most:,} samples, the smallest {fewest:,}: consider "
                f"--class-weight balanced"
            )
    if sets.broken:
        yield f"broken     {plural(len(sets.broken), 'image')}, which train leaves out only with --skip-broken:"
        yield from _first(list(sets.broken))
    found = duplicates(sets)
    yield f"duplicates {_counted(found)}"
    yield from _first([_written(one, sets) for one in found])


def _sizes_of(plan: "DecodedImages") -> Iterator[str]:
    """A line about the sizes and colours of the files, all of which are opened."""
    from parallelcnn.data.images import try_to_look
    from parallelcnn.data.readers.decoding import Look, without_warnings

    with without_warnings():
        looks = [one for one in try_to_look(plan.found.files) if isinstance(one, Look)]
    sizes = Counter((one.rows, one.columns) for one in looks)
    common = ", ".join(f"{rows} x {columns} ({count:,})" for (rows, columns), count in sizes.most_common(3))
    more = f" and {plural(len(sizes) - 3, 'other size')}" if len(sizes) > 3 else ""
    gray = sum(one.is_gray for one in looks)
    colors = "all in colour" if gray == 0 else "all grey" if gray == len(looks) else f"{gray:,} of them grey"
    yield f"files      {plural(len(looks), 'image')}, rows x columns: {common}{more}; {colors}"


def _counted(found: "list[Duplicate]") -> str:
    if not found:
        return "none: no two samples have the same pixels"
    across = sum(one.first[0] != one.second[0] for one in found)
    other_label = sum(not one.same_label for one in found)
    return (
        f"{plural(len(found), 'sample')} with the pixels of another one; {across:,} of them in different sets, which "
        f"makes the test too easy; {other_label:,} with different labels"
    )


def _written(one: "Duplicate", sets: "DataSets") -> str:
    from parallelcnn.data.images import file_names

    def name(place: tuple[str, int]) -> str:
        of_set, number = place
        return file_names(sets.files[of_set])[number] if of_set in sets.files else f"{of_set}[{number}]"

    return f"{name(one.first)} = {name(one.second)}{'' if one.same_label else ' (different labels)'}"


def _first(lines: list[str]) -> Iterator[str]:
    yield from (f"    {line}" for line in lines[:_NAMED])
    if len(lines) > _NAMED:
        yield f"    ... and {len(lines) - _NAMED:,} more"
