"""`mtl-training`: the workshop's commands.

Heavy packages are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

if TYPE_CHECKING:
    from mtl_perception.bundle import ClassSpec

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
console = Console(stderr=True)


@app.callback()
def workshop() -> None:
    """Train, measure and export the multi-task network."""


def _progress(values: Iterable[int], total: int, what: str) -> Iterable[int]:
    return track(values, description=what, total=total, console=console)


def _size(text: str) -> tuple[int, int]:
    """Parse HEIGHTxWIDTH."""
    try:
        height, width = (int(number) for number in text.lower().split('x'))
    except ValueError as error:
        raise typer.BadParameter(f'{text!r} is not HEIGHTxWIDTH, such as 288x384') from error
    return height, width


def _write_json(values: Any, target: str | None) -> None:
    """Write figures to a file, or to standard output for '-'."""
    if target is None:
        return
    text = json.dumps(values, indent=2, allow_nan=False) + '\n'
    if target == '-':
        sys.stdout.write(text)
    else:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).write_text(text, encoding='utf-8')


@app.command()
def prepare(
    data: Annotated[
        str, typer.Argument(help='Folder, or the name of a known data set such as cityscapes.')
    ],
    split: Annotated[
        str | None, typer.Option(help="Folder or split; default the format's training split.")
    ] = None,
    format_name: Annotated[
        str | None, typer.Option('--format', help='Default: what the layout looks like.')
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="The reader's NAME=VALUE, as classes=7; repeatable.")
    ] = None,
    check: Annotated[
        bool, typer.Option('--check', help='Only say what is there, missing or broken.')
    ] = False,
    skip_broken: Annotated[
        bool, typer.Option('--skip-broken', help='Leave out frames with missing or broken files.')
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help='Only the first frames.')] = None,
    cache: Annotated[
        Path, typer.Option(help='Where the arrays go; never inside the data.')
    ] = Path('runs/cache'),
    size: Annotated[str, typer.Option(help='HEIGHTxWIDTH of the arrays.')] = '288x384',
    classes: Annotated[
        int, typer.Option(min=2, max=254, help="Of the pixels of a folder's label13.")
    ] = 13,
    processes: Annotated[int, typer.Option(min=0, help='Worker processes.')] = 2,
    json_path: Annotated[str | None, typer.Option('--json', help="File, or '-'.")] = None,
) -> None:
    """Check every file, then write memory-mapped arrays with normals derived from depth.

    With --check nothing is written: the layout, the tasks that frames carry and everything that
    is missing or broken are listed; the exit status is 1 unless all of it is there.
    """
    from mtl_training.config import SourceSettings
    from mtl_training.datasets import formats
    from mtl_training.datasets import prepare as prepare_arrays
    from mtl_training.datasets.findings import describe_findings
    from mtl_training.datasets.sources import open_reader

    name, path = formats.resolve(data, format_name)
    split = split or formats.default_split(name)
    options = _options(option or [])
    if check and name in formats.official_formats():
        inspection = formats.check(name, path, split, options, processes, _progress)
        _print_inspection(inspection)
        _write_json(inspection.as_json(), json_path)
        raise typer.Exit(0 if inspection.complete else 1)
    source = SourceSettings(
        name=path.name, path=str(path), format=name, split=split, options=options
    )
    reader = open_reader(source)
    if check:
        checked = _check_plain(reader, split, classes)
        console.print(f'{path}: all {checked} frames of {split} are whole')
        _write_json({'format': name, 'path': str(path), 'frames': checked}, json_path)
        return
    arrays = prepare_arrays(
        reader,
        split,
        cache,
        size=_size(size),
        num_classes=classes,
        limit=limit,
        skip_broken=skip_broken,
        processes=processes,
        progress=_progress,
    )
    if found := describe_findings(arrays.findings):
        console.print(found, markup=False, highlight=False)
    console.print(
        f'{len(arrays)} frames in {arrays.folder} (truth: {", ".join(arrays.truths)}; normals: '
        f'{arrays.normals_source})'
    )
    _write_json(
        {'folder': str(arrays.folder), 'frames': len(arrays), 'findings': arrays.findings},
        json_path,
    )


@app.command()
def nyuv2(
    mat: Annotated[Path, typer.Argument(help='The official nyu_depth_v2_labeled.mat.')],
    out: Annotated[Path, typer.Argument(help='Folder for train/, test/ and devtest/.')],
    maps: Annotated[
        Path | None,
        typer.Option(
            help='Folder of splits.mat, classMapping40.mat and class13Mapping.mat; default '
            "the file's own."
        ),
    ] = None,
    json_path: Annotated[str | None, typer.Option('--json', help="File, or '-'.")] = None,
) -> None:
    """Write NYUv2's official file as the pictures that every configuration reads."""
    from mtl_training.datasets.nyuv2_mat import write_pictures

    frames = write_pictures(mat, out, maps, _progress)
    listed = ', '.join(f'{count} in {split}' for split, count in frames.items())
    console.print(f'{out}: {listed}', markup=False, highlight=False)
    _write_json({'folder': str(out), 'frames': frames}, json_path)


def _options(texts: list[str]) -> dict[str, Any]:
    """Parse NAME=VALUE with YAML values."""
    from mtl_training.settings_yaml import load_settings

    pairs = [text.partition('=') for text in texts]
    for text, (_, separator, _) in zip(texts, pairs, strict=True):
        if not separator:
            raise typer.BadParameter(f'{text!r} is not NAME=VALUE')
    return {name: load_settings(value) for name, _, value in pairs}


def _check_plain(reader: Any, split: str, classes: int) -> int:
    """Check a picture folder or a reader without parts; return its number of frames."""
    from mtl_perception.datasets import ANNOTATIONS, TRUTHS, PictureFolder

    if isinstance(reader, Path):
        reader = PictureFolder(reader, split, (*TRUTHS, *ANNOTATIONS), classes)
    reader.check()
    return len(reader)


def _print_inspection(inspection: Any) -> None:
    """Print what is there of a data set, what its frames carry and what is wrong."""
    from mtl_training.datasets.findings import BREAKING, LEFT_OUT
    from mtl_training.datasets.formats import official_formats

    reader = official_formats()[inspection.format]
    table = Table(title=escape(inspection.path))
    for heading in ('part', 'what', 'there', 'official'):
        table.add_column(heading, overflow='fold')
    for part in inspection.parts:
        short = not part.found if part.official is None else part.found < part.official
        colour = 'red' if short and part.required else 'yellow' if short else 'green'
        official = '' if part.official is None else str(part.official)
        table.add_row(
            escape(part.path), escape(part.holds), f'[{colour}]{part.found}[/{colour}]', official
        )
    console.print(table)
    if inspection.error is not None:
        console.print(inspection.error, style='red', markup=False, highlight=False)
    carried = ', '.join(f'{task} {count}' for task, count in inspection.carried.items())
    console.print(f'{inspection.frames} frames of {inspection.split}: {carried or "nothing"}')
    for problem, count in inspection.findings.counts.items():
        group = 'broken' if problem in BREAKING else 'left out' if problem in LEFT_OUT else 'noted'
        console.print(f'{group}: {count} x {problem}', markup=False, highlight=False)
        for text in inspection.findings.texts(problem):
            console.print(f'  {text}', markup=False, highlight=False, soft_wrap=True)
    console.print(f'source: {reader.source}', markup=False, highlight=False)
    console.print(f'licence: {reader.licence}', markup=False, highlight=False)


@app.command()
def train(
    config: Annotated[
        str, typer.Argument(help='YAML file, or the name of a shipped configuration.')
    ] = 'pvt_v2_b0',
    out: Annotated[Path | None, typer.Option(help='Folder of the run; default runs/NAME.')] = None,
    resume: Annotated[bool, typer.Option(help='Go on from the last checkpoint.')] = False,
    start_from: Annotated[
        Path | None,
        typer.Option(help='Weights to start from: a checkpoint (.json), or a bundle.'),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help='Length in minutes of training time; for `steps`.')
    ] = None,
    steps: Annotated[int | None, typer.Option(help='Length in steps; for `minutes`.')] = None,
    settings: Annotated[
        list[str] | None, typer.Option('--set', help='Override dotted.key=value; repeatable.')
    ] = None,
    json_path: Annotated[str | None, typer.Option('--json', help="File, or '-'.")] = None,
) -> None:
    """Train a network; interrupted with Ctrl-C it saves, and --resume goes on exactly there."""
    from mtl_training.config import load_config
    from mtl_training.trainer import train as train_network

    if minutes is not None and steps is not None:
        raise typer.BadParameter('--minutes and --steps exclude each other')
    overrides = list(settings or [])
    if minutes is not None:
        overrides += [f'schedule.minutes={minutes}', 'schedule.steps=null']
    if steps is not None:
        overrides += [f'schedule.steps={steps}', 'schedule.minutes=null']
    loaded = load_config(config, overrides)
    folder = out or Path('runs') / loaded.name
    result = train_network(loaded, folder, resume=resume, start_from=start_from, console=console)
    if not result:  # one of torchrun's followers: the leading process reports
        return
    state = 'finished' if result['finished'] else 'stopped (go on with --resume)'
    console.print(f'{state} after {result["steps"]} steps; figures in {folder}/result.json')
    _write_json(result, json_path)


@app.command()
def params(
    backbone: Annotated[str, typer.Option(help="timm's name.")] = 'pvt_v2_b0',
    decoder: Annotated[
        str, typer.Option(help='pyramid, attentive_pyramid, bifpn, deeplab or segformer.')
    ] = 'pyramid',
    tasks: Annotated[str, typer.Option(help='Comma-separated.')] = 'segmentation,depth,normals',
    sharing: Annotated[str, typer.Option(help='hard, cross_stitch, mtan or mmoe.')] = 'hard',
    channels: Annotated[int, typer.Option(min=8, help='Width of the decoder.')] = 128,
    classes: Annotated[int, typer.Option(min=2, help='Classes of the segmentation.')] = 13,
    size: Annotated[str, typer.Option(help='HEIGHTxWIDTH of the picture.')] = '288x384',
    json_path: Annotated[str | None, typer.Option('--json', help="File, or '-'.")] = None,
) -> None:
    """Print a network's parameters and multiply-adds; no weights are made or fetched."""
    from mtl_training.networks import NetworkConfig, network_costs

    config = NetworkConfig(
        backbone=backbone,
        decoder=decoder,
        decoder_channels=channels,
        sharing=sharing,
        tasks=tuple(task.strip() for task in tasks.split(',')),
        num_classes=classes,
    )
    costs = network_costs(config, _size(size))
    table = Table('part', 'parameters', title=f'{backbone}, {decoder}, {sharing} sharing')
    for part, number in costs['parameters_by_part'].items():
        table.add_row(part, f'{number:,}')
    table.add_row('all', f'{costs["parameters"]:,}')
    console.print(table)
    console.print(
        f'{costs["gmacs"]} GMACs ({costs["gmacs_with_attention"]} with attention) '
        f'at {size}: {costs["counter"]}'
    )
    _write_json(costs, json_path)


@app.command()
def evaluate(
    data: Annotated[
        Path, typer.Option(help='Raw folder with {split}/{rgb,depth,label13}; only read.')
    ],
    bundle: Annotated[str | None, typer.Option(help='Bundle folder or shipped name.')] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help='Checkpoint (.json) instead of a bundle.')
    ] = None,
    split: Annotated[str, typer.Option(help='Folder of the data.')] = 'devtest',
    engine: Annotated[str, typer.Option(help='auto, openvino, onnxruntime, ...')] = 'auto',
    precision: Annotated[str, typer.Option(help="Of the engine's arithmetic.")] = 'float32',
    threads: Annotated[int, typer.Option(min=0, help='Of the engine; 0: it chooses.')] = 0,
    classes: Annotated[
        Path | None,
        typer.Option(help="Names of a checkpoint's classes: see `export`."),
    ] = None,
    json_path: Annotated[str | None, typer.Option('--json', help="File, or '-'.")] = None,
) -> None:
    """Measure a bundle, or a checkpoint as it would be shipped, on labelled pictures."""
    import tempfile

    from mtl_perception.bundle import ModelBundle
    from mtl_training.evaluate import evaluate_bundle
    from mtl_training.export import export_bundle

    if (bundle is None) == (checkpoint is None):
        raise typer.BadParameter('give exactly one of --bundle and --checkpoint')
    if classes is not None and checkpoint is None:
        raise typer.BadParameter('a bundle has its own names: give --classes with --checkpoint')
    with tempfile.TemporaryDirectory() as scratch:
        if checkpoint is not None:
            shipped = export_bundle(
                checkpoint,
                Path(scratch) / 'checkpoint',
                classes=_class_specs(classes),
                calibrated=False,
            )
        else:
            shipped = ModelBundle.load(bundle)
        figures = evaluate_bundle(
            shipped,
            data,
            split,
            engine=engine,
            precision=precision,
            threads=threads,
            progress=_progress,
        )
    _print_figures(figures)
    _write_json(figures, json_path)


def _class_specs(path: Path | None) -> list[ClassSpec] | None:
    """Return the names and colours of a classes file; None without one."""
    from mtl_perception.bundle import ClassSpec

    if path is None:
        return None
    entries = json.loads(path.read_text(encoding='utf-8'))
    return [ClassSpec.model_validate(entry) for entry in entries]


def _print_figures(figures: dict[str, Any]) -> None:
    """Show the figures as one table per task."""
    for task, values in figures.items():
        if not isinstance(values, dict):
            continue
        table = Table(title=f'{task} ({figures["frames"]} frames)')
        numbers = {name: value for name, value in values.items() if not isinstance(value, dict)}
        for name in numbers:
            table.add_column(name)
        table.add_row(
            *(
                f'{value:.4f}' if isinstance(value, float) else str(value)
                for value in numbers.values()
            )
        )
        console.print(table)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help='last.json or best.json of a run.')],
    target: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    name: Annotated[str | None, typer.Option(help="Default: the folder's name.")] = None,
    description: Annotated[str | None, typer.Option(help='One sentence.')] = None,
    classes: Annotated[
        Path | None, typer.Option(help='JSON list of {name, color}; default NYUv2-13.')
    ] = None,
    size: Annotated[str, typer.Option(help='HEIGHTxWIDTH of the input.')] = '288x384',
    calibrate: Annotated[
        bool, typer.Option(help="Fit the confidence's temperature on held-out frames.")
    ] = True,
    measure: Annotated[
        list[str] | None,
        typer.Option(help='DIR:SPLIT to measure on and state in the bundle; repeatable.'),
    ] = None,
) -> None:
    """Write a checkpoint's averaged weights as a bundle for the robot; parity is checked."""
    from mtl_perception.bundle import MetricsSpec
    from mtl_training.evaluate import evaluate_bundle
    from mtl_training.export import export_bundle

    bundle = export_bundle(
        checkpoint,
        target,
        name=name,
        description=description,
        classes=_class_specs(classes),
        size=_size(size),
        calibrated=calibrate,
    )
    console.print(f'{bundle.path}: {bundle.manifest.network}')
    for place in measure or []:
        folder, _, split = place.rpartition(':')
        if not folder:
            raise typer.BadParameter(f'--measure {place!r} is not DIR:SPLIT')
        figures = evaluate_bundle(bundle, Path(folder), split, progress=_progress)
        _print_figures(figures)
        stated = MetricsSpec(
            data=f'{Path(folder).resolve().name}/{split}',
            frames=figures['frames'],
            command=(
                f'mtl-training evaluate --bundle models/{bundle.name} '
                f'--data {Path(folder).resolve().name} --split {split}'
            ),
            figures={name: value for name, value in figures.items() if name != 'frames'},
        )
        bundle = bundle.state([stated])


@app.command()
def worlds(
    out: Annotated[
        Path, typer.Argument(help="Folder of pictures or of the bag, or the sheet's file.")
    ],
    recipe: Annotated[
        str,
        typer.Option(help='train, validation, test, room, flat, sheet, or a YAML file.'),
    ] = 'train',
    settings: Annotated[
        list[str] | None, typer.Option('--set', help='Override key=value; repeatable.')
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help='Worker processes.')] = 2,
    json_path: Annotated[str | None, typer.Option('--json', help="File, or '-'.")] = None,
) -> None:
    """Make furnished rooms in MuJoCo: labelled pictures, a bag of a drive, or a sheet."""
    from mtl_training.worlds.generate import generate
    from mtl_training.worlds.recipes import BagRecipe, SheetRecipe, load_recipe

    loaded = load_recipe(recipe, settings or [])
    if isinstance(loaded, SheetRecipe):
        from mtl_training.worlds.sheet import write_sheet

        figures = write_sheet(out, loaded, progress=_progress)
        console.print(f'{figures["scenes"]} scenes in {out}')
    elif isinstance(loaded, BagRecipe):
        from mtl_training.worlds.bag import record

        figures = record(out, loaded, progress=_progress)
        console.print(f'{figures["frames"]} frames, {figures["bytes"] / 1e6:.1f} MB in {out}')
    else:
        figures = generate(out, loaded, processes=processes, progress=_progress)
        console.print(
            f'{figures["frames"]} frames of {figures["worlds"]} worlds in {out / loaded.split} '
            f'({figures["made"]} worlds made now)'
        )
    _write_json(figures, json_path)


@app.command()
def experiment(
    study: Annotated[str, typer.Argument(help="A study's YAML file, or a shipped one's name.")],
    scale: Annotated[
        str, typer.Option(help='full; quick (everything once, tiny); others that the study has.')
    ] = 'full',
    out: Annotated[
        Path | None, typer.Option(help='Results; default runs/experiments/NAME-SCALE.')
    ] = None,
    json_path: Annotated[str | None, typer.Option('--json', help="File, or '-'.")] = None,
) -> None:
    """Run a study (resumable): a table as Markdown, CSV and JSON, and a page with curves."""
    from mtl_training.experiments.runner import run_study
    from mtl_training.experiments.study import load_study

    loaded = load_study(Path(study) if study.endswith('.yaml') else study)
    folder = out or Path('runs/experiments') / f'{loaded.name}-{scale}'
    results = run_study(loaded, folder, scale, console)
    console.print((folder / 'table.md').read_text(encoding='utf-8'), highlight=False)
    console.print(f'{folder}/index.html')
    _write_json(results, json_path)


@app.command()
def tune(
    search: Annotated[str, typer.Argument(help="A search's YAML file, or a shipped name.")],
    trials: Annotated[int, typer.Option(min=1, help='Trials to add.')] = 20,
    out: Annotated[Path | None, typer.Option(help='Default runs/tuning/NAME.')] = None,
    storage: Annotated[
        str | None, typer.Option(help='Database URL for many machines; default SQLite in OUT.')
    ] = None,
    json_path: Annotated[str | None, typer.Option('--json', help="File, or '-'.")] = None,
) -> None:
    """Search for hyper-parameters with Optuna; a second call goes on with the same search."""
    from mtl_training.experiments.tuning import load_search
    from mtl_training.experiments.tuning import tune as run_search

    loaded = load_search(Path(search) if search.endswith('.yaml') else search)
    folder = out or Path('runs/tuning') / loaded.name
    found = run_search(loaded, folder, trials, storage, console)
    finished = [trial for trial in found.trials if trial.value is not None]
    if not finished:
        console.print('no trial has finished: add trials, or widen the space')
        return
    console.print(f'best score {found.best_value:.4f}: {found.best_params}')
    console.print(f'{folder}/best.yaml, {folder}/history.png')
    _write_json({'score': found.best_value, 'values': found.best_params}, json_path)


def main() -> None:
    """Run a command; errors that a person can mend end in one sentence."""
    try:
        app(standalone_mode=True)
    except (ValueError, RuntimeError) as error:
        if type(error).__module__.startswith(('mtl_training', 'mtl_perception')):
            console.print(f'[red]mtl-training:[/red] {escape(str(error))}', highlight=False)
            raise SystemExit(2) from None
        raise


if __name__ == '__main__':
    main()
