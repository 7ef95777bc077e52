"""Check that the workshop and the robot side measure the same, from a folder and from a bag.

    python benchmarks/equality.py --data $MTL_DATA/nyuv2_288x384 --split devtest

`mtl-training evaluate` on a labelled folder, `mtl-perception evaluate` on the same folder and on
a bag that is made of it (pictures, labels and depth uncompressed) must give the same figures to
1e-4, and so must both on the shipped sample bags; exits with 1 where they do not. The commands
themselves run, each in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from machine import describe_machine, write_result
from rich.console import Console
from rich.table import Table
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from mtl_perception.evaluation.compare import flat_figures
from mtl_perception.ros.sources import FolderSource

TOLERANCE = 1e-4
ROOT = Path(__file__).resolve().parent.parent
NYUV2 = Path(os.environ.get('MTL_DATA', ROOT.parent / 'shared' / 'data')) / 'nyuv2_288x384'
_FOLDERS = ('rgb', 'depth', 'label13', 'normal')


def write_bag(folder: Path, split: str, target: Path) -> int:
    """Write a labelled folder as the player would publish it, raw; return the pictures written."""
    source = FolderSource(folder, split=split)
    store = get_typestore(Stores.ROS2_KILTED)
    pictures = 0
    with Writer(target, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {
            topic.name: writer.add_connection(topic.name, topic.type, typestore=store)
            for topic in source.topics
        }
        for message in source.messages():
            writer.write(connections[message.topic.name], message.time_ns, message.data)
            pictures += message.topic.name in source.cameras
    return pictures


def first_frames(folder: Path, split: str, count: int, target: Path) -> Path:
    """Make a folder that holds the first frames of another, as links; return it."""
    ids = sorted(file.stem for file in (folder / split / 'rgb').iterdir())[:count]
    for name in _FOLDERS:
        if (folder / split / name).is_dir():
            (target / split / name).mkdir(parents=True)
            for file in (folder / split / name).iterdir():
                if file.stem in ids:
                    (target / split / name / file.name).symlink_to(file.resolve())
    cameras = folder / split / 'cameras.json'
    if cameras.is_file():
        (target / split / 'cameras.json').symlink_to(cameras.resolve())
    return target


def run(module: str, *arguments: str) -> dict[str, Any]:
    """Run one of the commands and return the figures it writes."""
    command = [sys.executable, '-m', module, 'evaluate', *arguments, '--json', '-']
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'{" ".join(command)} ended with {done.returncode}: {done.stderr}')
    return json.loads(done.stdout)


def measure(
    folder: Path, split: str, bundle: str, engine: str = 'auto', threads: int = 0
) -> dict[str, Any]:
    """Compare the workshop's figures of a labelled folder with those of it and of its bag."""
    options = ('--bundle', bundle, '--engine', engine, '--threads', str(threads))
    with tempfile.TemporaryDirectory() as scratch:
        bag = Path(scratch) / 'bag'
        pictures = write_bag(folder, split, bag)
        ways = {
            'workshop': run('mtl_training.cli', '--data', str(folder), '--split', split, *options),
            'folder': run('mtl_perception.cli', str(folder), '--split', split, *options),
            'bag': run('mtl_perception.cli', str(bag), *options),
        }
    result = compare_ways(ways)
    result['equal'] &= set(result['frames'].values()) == {pictures}
    return result


def measure_bag(bag: Path, bundle: str, engine: str = 'auto', threads: int = 0) -> dict[str, Any]:
    """Compare both sides' figures of a recorded bag."""
    options = ('--bundle', bundle, '--engine', engine, '--threads', str(threads))
    return compare_ways(
        {
            'workshop': run('mtl_training.cli', '--data', str(bag), *options),
            'bag': run('mtl_perception.cli', str(bag), *options),
        }
    )


def compare_ways(ways: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of every way, and how far they are from the workshop's."""
    figures = {way: flat_figures(document) for way, document in ways.items()}
    frames = {way: document['frames'] for way, document in ways.items()}
    same_names = len({frozenset(values) for values in figures.values()}) == 1
    largest = max(
        abs(values[name] - value)
        for values in figures.values()
        for name, value in figures['workshop'].items()
        if name in values
    )
    return {
        'frames': frames,
        'figures': figures,
        'largest_difference': largest,
        'equal': same_names and len(set(frames.values())) == 1 and largest <= TOLERANCE,
    }


def main(
    data: Annotated[Path, typer.Option(help='Folder with SPLIT/rgb, depth, label13.')] = NYUV2,
    split: Annotated[str, typer.Option(help='Of the folder.')] = 'devtest',
    bundle: Annotated[str, typer.Option(help='Folder or name of the bundle.')] = 'pvt_v2_b0',
    engine: Annotated[str, typer.Option(help='Of the bundle.')] = 'auto',
    threads: Annotated[int, typer.Option(min=0, help='Of the engine; 0: its own choice.')] = 0,
    limit: Annotated[int, typer.Option(min=0, help='Frames; 0: all.')] = 0,
    samples: Annotated[bool, typer.Option(help='Compare the sample bags, too.')] = True,
    json_file: Annotated[Path | None, typer.Option('--json', help='Write the figures.')] = None,
) -> None:
    """Measure the three ways and compare."""
    console = Console(highlight=False)
    results: dict[str, Any] = {}
    if (data / split / 'rgb').is_dir():
        with tempfile.TemporaryDirectory() as scratch:
            folder = first_frames(data, split, limit, Path(scratch)) if limit else data
            results[f'{data.name}/{split}'] = measure(folder, split, bundle, engine, threads)
    else:
        console.print(f'{data / split} is absent and left out: set MTL_DATA or --data')
    for bag in sorted((ROOT / 'samples').glob('*/metadata.yaml')) if samples else ():
        results[f'samples/{bag.parent.name}'] = measure_bag(bag.parent, bundle, engine, threads)
    for name, result in results.items():
        table = Table('figure', *result['figures'], title=name, title_justify='left')
        for figure in result['figures']['workshop']:
            values = [of.get(figure) for of in result['figures'].values()]
            table.add_row(figure, *('-' if one is None else f'{one:.6f}' for one in values))
        console.print(table)
        console.print(
            f'{name}: {result["frames"]["workshop"]} frames, largest difference '
            f'{result["largest_difference"]:.1e} (at most {TOLERANCE:.0e})'
        )
    if json_file is not None:
        machine = describe_machine()
        write_result(json_file, {'recordings': results, 'bundle': bundle, 'machine': machine})
    if not all(result['equal'] for result in results.values()):
        raise typer.Exit(1)


if __name__ == '__main__':
    typer.run(main)
