"""Command line of the robot side: `mtl-perception`."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mtl_perception import engine_cli

if TYPE_CHECKING:
    from mtl_perception.evaluation.run import Settings

app = typer.Typer(
    help='Segmentation, metric depth and surface normals from one camera, over ROS 2.',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode='markdown',
)

app.add_typer(engine_cli.app, name='engine')


@app.callback()
def _commands() -> None:
    """Segmentation, metric depth and surface normals from one camera, over ROS 2."""


@app.command()
def play(
    path: Annotated[Path, typer.Argument(help='A rosbag2 recording or a folder of pictures.')],
    rate: Annotated[float, typer.Option(help='2 plays twice as fast as recorded.')] = 1.0,
    loop: Annotated[bool, typer.Option('--loop', help='Start again at the end.')] = False,
    start: Annotated[float, typer.Option(help='Skip that many seconds.')] = 0.0,
    clock: Annotated[
        bool, typer.Option('--clock', help='Publish recorded time on /clock; implies --stamp bag.')
    ] = False,
    stamp: Annotated[
        Literal['moved', 'now', 'bag'] | None,
        typer.Option(
            help='Stamps: recorded ones moved to the present together (moved, the default), of '
            'publishing (now) or as recorded (bag).'
        ),
    ] = None,
    topic: Annotated[
        list[str] | None, typer.Option(help='OLD:=NEW publishes a topic under another name.')
    ] = None,
    camera_info: Annotated[
        Path | None, typer.Option(help='Calibration YAML that replaces what was recorded.')
    ] = None,
    k: Annotated[
        str | None, typer.Option('--k', '--K', help='fx,fy,cx,cy in pixels, instead of a file.')
    ] = None,
    wait: Annotated[
        float, typer.Option(help='Wait that many seconds for a subscriber of any camera.')
    ] = 0.0,
    reliability: Annotated[
        Literal['auto', 'reliable', 'best_effort'],
        typer.Option(help='Offered reliability; auto: as recorded.'),
    ] = 'auto',
    split: Annotated[str | None, typer.Option(help='Split of a data set.')] = None,
    fps: Annotated[float, typer.Option(help='Pictures per second of a folder.')] = 30.0,
    transport: Annotated[
        Literal['raw', 'compressed'],
        typer.Option(help="How a folder's pictures travel; compressed: the files' own bytes."),
    ] = 'raw',
    limit: Annotated[int, typer.Option(min=0, help='Pictures to play; 0: all.')] = 0,
    topics: Annotated[
        str, typer.Option(help='Play only these topics, with commas between them.')
    ] = '',
    all_topics: Annotated[
        bool, typer.Option('--all-topics', help='Also play what a perception node published.')
    ] = False,
    quiet: Annotated[bool, typer.Option('--quiet', help='Print errors only.')] = False,
) -> None:
    """Publish a recording or a folder as a camera would: images, camera_info, ground truth.

    Stops at its end or at Ctrl-C; exits with 2 and one sentence when something can't be played.
    """
    from mtl_perception.ros import play as program
    from mtl_perception.ros.player import PlayOptions, parse_remaps

    try:
        options = PlayOptions(
            rate=rate,
            loop=loop,
            start_s=start,
            stamp=stamp or ('bag' if clock else 'moved'),
            clock=clock,
            remap=parse_remaps(topic or []),
            wait_s=wait,
            reliability=reliability,
        )
        program.play(
            path,
            options,
            split=split,
            fps=fps,
            transport=transport,
            limit=limit,
            topics=tuple(name.strip() for name in topics.split(',') if name.strip()),
            all_topics=all_topics,
            camera_info=camera_info,
            k=k,
            quiet=quiet,
        )
    except ValueError as error:
        typer.echo(f'play: {error}', err=True)
        raise typer.Exit(2) from error


@app.command(context_settings={'allow_extra_args': True, 'ignore_unknown_options': True})
def run(
    context: typer.Context,
    camera: Annotated[
        str | None,
        typer.Option(help='Also publish a camera of this machine: 0 is /dev/video0; or a file.'),
    ] = None,
    bundle: Annotated[str | None, typer.Option(help='Model bundle: a folder or a name.')] = None,
    image: Annotated[str | None, typer.Option(help='Image topic to listen to.')] = None,
) -> None:
    """Run the node until Ctrl-C, as `ros2 run mtl_perception perception_node` does.

    Further arguments go to ROS: `mtl-perception run --ros-args -p max_rate:=10
    --params-file config/perception.yaml`.
    """
    from mtl_perception.ros.node import WebcamOptions, main

    arguments = [*context.args]
    extra = [*(['-p', f'bundle:={bundle}'] if bundle else [])]
    extra += ['-r', f'image:={image}'] if image else []
    if extra:
        arguments += ['--ros-args', *extra]
    raise typer.Exit(main(arguments, WebcamOptions(camera) if camera is not None else None))


@app.command()
def evaluate(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help='A bag, a data set, a folder of bags; with --compare two or more JSON files.',
            show_default=False,
        ),
    ],
    bundle: Annotated[str, typer.Option(help='Folder or name of the bundle.')] = 'pvt_v2_b0',
    split: Annotated[str | None, typer.Option(help='Split of a data set.')] = None,
    json_file: Annotated[
        str | None, typer.Option('--json', help='Write all figures here; - is stdout.')
    ] = None,
    report: Annotated[Path | None, typer.Option(help='Write one HTML file here.')] = None,
    record: Annotated[
        Path | None, typer.Option(help='Write predictions as a bag (.mcap) here.')
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help='Folder of per-recording results; a stopped run goes on from them.'),
    ] = None,
    live: Annotated[
        bool, typer.Option('--live', help='Play through the real node, at the own rate.')
    ] = False,
    compare: Annotated[
        bool, typer.Option('--compare', help='Compare JSON files, the first with each other.')
    ] = False,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(help="Exit with 1 if this holds: 'segmentation.miou < -0.01'."),
    ] = None,
    block: Annotated[
        int,
        typer.Option(
            min=0,
            help='Successive frames that --compare draws together; 0: read off the frames.',
        ),
    ] = 0,
    engine: Annotated[
        str, typer.Option(help='auto, openvino, onnxruntime, tensorrt or tensorrt_rtx.')
    ] = 'auto',
    precision: Annotated[
        str, typer.Option(help='float32 makes figures comparable between machines.')
    ] = 'float32',
    threads: Annotated[int, typer.Option(min=0, help='Of the engine; 0: its own choice.')] = 0,
    gpu_device: Annotated[int, typer.Option(min=0, help='Number of the GPU for TensorRT.')] = 0,
    image: Annotated[
        list[str] | None, typer.Option(help='Image topic; may be given several times.')
    ] = None,
    camera_info: Annotated[str | None, typer.Option(help='camera_info topic.')] = None,
    label: Annotated[str | None, typer.Option(help='Topic of true labels.')] = None,
    depth: Annotated[str | None, typer.Option(help='Topic of true or measured depth.')] = None,
    normals: Annotated[str | None, typer.Option(help='Topic of true normals.')] = None,
    boxes: Annotated[
        str | None, typer.Option(help='Topic of true boxes (Detection2DArray).')
    ] = None,
    attributes: Annotated[
        str | None, typer.Option(help='Topic of true classes of pictures (Classification).')
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help='Seconds that stamps of one moment may differ.')
    ] = 0.02,
    limit: Annotated[int, typer.Option(min=0, help='Frames of each recording; 0: all.')] = 0,
    rotate: Annotated[
        Literal['0', '90', '180', '270'],
        typer.Option(help="Clockwise turn that makes the pictures upright, the node's rotate."),
    ] = '0',
    rectify: Annotated[
        bool,
        typer.Option('--rectify', help="Take the lens distortion out, the node's rectify."),
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help='Processes for a folder of bags.')] = 1,
    ray: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster for a folder of bags, or 'auto'.")
    ] = None,
    quiet: Annotated[bool, typer.Option('--quiet', help='Print errors only.')] = False,
) -> None:
    """Measure how good a bundle is on recordings: figures, report, comparison.

    Exits with 0; with 1 if a --fail-if holds; with 2 and one sentence when nothing can be done.
    """
    from mtl_perception.evaluation import command
    from mtl_perception.evaluation.run import Settings
    from mtl_perception.recordings import TopicChoice

    outputs = command.Outputs(json_file, report, record, results, quiet)
    try:
        if compare:
            code = command.compare_files(paths, outputs, fail_if or (), block=block)
        elif len(paths) > 1:
            raise ValueError('one recording or folder is evaluated at a time: give one path')
        else:
            settings = Settings(
                bundle=bundle,
                engine=engine,
                precision=precision,
                threads=threads,
                gpu_device=gpu_device,
                split=split,
                topics=TopicChoice(
                    tuple(image or ()), camera_info, label, depth, normals, boxes, attributes
                ),
                tolerance_s=tolerance,
                limit=limit,
                gallery=report is not None,
                rotate=int(rotate),
                rectify=rectify,
            )
            shown = _replay_live(paths[0], settings) if live else None
            code = command.evaluate(
                paths[0],
                settings,
                outputs,
                workers=workers,
                ray_address=ray,
                fail_if=fail_if or (),
                live=shown,
            )
    except (ValueError, RuntimeError) as error:
        typer.echo(f'evaluate: {error}', err=True)
        raise typer.Exit(command.EXIT_ERROR) from error
    except Exception as error:  # a defect must not end like a --fail-if that holds
        traceback.print_exception(error)
        raise typer.Exit(command.EXIT_ERROR) from error
    raise typer.Exit(code)


def _replay_live(path: Path, settings: Settings) -> dict[str, Any]:
    """Return what a robot would have seen: latency and drops of the real node, over DDS."""
    from mtl_perception.ros.live import replay_live

    topics = settings.topics
    parameters: dict[str, object] = {
        'rotate': settings.rotate,
        'rectify': settings.rectify,
        'engine': settings.engine,
        'gpu_device': settings.gpu_device,
    }
    if topics.camera_info:
        parameters['camera_info_topic'] = topics.camera_info
    result = replay_live(
        path,
        settings.bundle,
        split=settings.split,
        limit=settings.limit,
        images=topics.image,
        parameters=parameters,
    )
    return result.summary()


@app.command()
def doctor(
    image: Annotated[
        str | None, typer.Option(help='Image topic that matters; all of the graph if not given.')
    ] = None,
    camera_info: Annotated[
        str | None, typer.Option(help='Calibration topic of --image; beside it if not given.')
    ] = None,
    bundle: Annotated[str, typer.Option(help='Model bundle: a folder or a name.')] = 'pvt_v2_b0',
    engine: Annotated[str, typer.Option(help='Engine to open with it.')] = 'auto',
    gpu_device: Annotated[int, typer.Option(min=0, help='Number of the GPU for TensorRT.')] = 0,
    seconds: Annotated[float, typer.Option(min=0.5, help='How long to listen to topics.')] = 3.0,
    json_out: Annotated[
        str | None, typer.Option('--json', help='Write the findings there; - is standard output.')
    ] = None,
) -> None:
    """Look at topics, calibration, QoS, clock, middleware, bundle and engine; name each fix.

    Exits with 0 when all is well, 1 with warnings, 2 with errors.
    """
    from mtl_perception.ros import doctor as program

    if camera_info is not None and image is None:
        typer.echo('--camera-info belongs to one image topic: name that with --image', err=True)
        raise typer.Exit(2)
    findings = program.examine(
        image=image,
        camera_info=camera_info,
        bundle=bundle,
        engine=engine,
        gpu_device=gpu_device,
        seconds=seconds,
        on_progress=lambda text: typer.echo(f'... {text}', err=True),
    )
    worst = program.worst(findings)
    text = json.dumps(
        {'worst': worst.name.lower(), 'findings': [f.as_json() for f in findings]}, indent=2
    )
    if json_out == '-':
        typer.echo(text)
    else:
        if json_out is not None:
            Path(json_out).write_text(text + '\n', encoding='utf-8')
        for finding in findings:
            color = {0: 'green', 1: 'yellow', 2: 'red'}[finding.severity]
            name = typer.style(f'{finding.severity.name:8}', fg=color)
            typer.echo(f'{name}{finding.subject}: {finding.text}')
            if finding.fix:
                typer.echo(f'        fix: {finding.fix}')
    raise typer.Exit(int(worst))


def main() -> None:
    """Run the command line."""
    app()


if __name__ == '__main__':
    main()
