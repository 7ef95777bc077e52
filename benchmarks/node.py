"""Measure the node: its cost beside bare inference, and against nodes as most are written.

    python benchmarks/node.py --json out/bench/node.json

All figures come from one run on one machine. 640x480 raw pictures of one bag are played from this
process to each node in a process of its own, which shares the cores with the player and with the
consumer of labels and depth.

- `node_fps`: the node is fed as fast as it takes: the next picture is at hand whenever it wants
  one, and hardly any is played in vain.
- `least_fps`: the same for a node that does nothing but run the engine between bytes that it takes
  and bytes that it gives (`least_node.py`).
- `engine_fps`: the bare engine, computing the same outputs in a process of its own, while the
  player plays as many pictures per second to a reader in that process. `engine_whole_fps` is the
  same for all of the bundle's outputs.
- These are taken in turns, since the speed of a machine that others share swings; their medians
  and those of their ratios are given.
- `camera`: the node at the camera's rate. `overhead_ms` is the time from a picture's stamp to the
  publication of its last output, without the time in the engine (for JPEG also without decoding).
- `node`, `plain_onnxruntime`, `plain_torch`: the same bag at twice the camera's rate, more than
  any of them takes on few cores.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import rclpy
import typer
from feed import Feed
from least_node import TOPICS as LEAST_TOPICS
from least_node import WARM_UP_S
from machine import describe_machine, write_result
from plain_node import TOPICS
from rich.console import Console
from rich.table import Table
from sensor_msgs.msg import Image

from mtl_perception.bundle import ModelBundle
from mtl_perception.engines import open_engine
from mtl_perception.ros.live import (
    START_S,
    LiveError,
    LiveResult,
    Program,
    own_ros,
    percentiles,
    perception_program,
    replay_through,
)
from mtl_perception.ros.player import INFO_WAIT_S, SETTLE_S, Player, PlayOptions
from mtl_perception.ros.sources import Source, open_source
from mtl_perception.shared import shared_folder

CONSUMED = ('label', 'depth')
# Twice the camera's rate is more than most nodes reach on few cores.
SATURATION = 2.0
# One picture in the engine, the next one at hand.
IN_FLIGHT = 2
# The gate tells when to play, not the recording's own times.
UNBOUNDED = 1e6
TURNS = 7
PLAIN_NODE = Path(__file__).parent / 'plain_node.py'
LEAST_NODE = Path(__file__).parent / 'least_node.py'


def plain_program(bundle: ModelBundle, runtime: str) -> Program:
    """Return the node to compare with."""
    return Program(
        arguments=(str(PLAIN_NODE),),
        parameters={'bundle': bundle.path, 'runtime': runtime},
        outputs={name: TOPICS[name] for name in CONSUMED if name in bundle.outputs},
    )


def own_program(bundle: ModelBundle, engine: str) -> Program:
    """Return this package's node, with the consumers of the plain one."""
    program = perception_program(bundle, {'engine': engine})
    outputs = {name: topic for name, topic in program.outputs.items() if name in CONSUMED}
    return Program(program.arguments, program.parameters, outputs, program.status)


def least_program(bundle: ModelBundle, engine: str) -> Program:
    """Return the node that only runs the engine."""
    return Program(
        arguments=(str(LEAST_NODE),),
        parameters={'bundle': bundle.path, 'engine': engine},
        outputs={name: topic for name, topic in LEAST_TOPICS.items() if name in bundle.outputs},
    )


def engine_rate(
    bundle: ModelBundle,
    engine: str,
    outputs: Sequence[str],
    feed: Feed,
    fps: float,
    seconds: float,
) -> float:
    """Return inferences per second of the bare engine while the player plays to its process.

    Args:
        bundle: to run.
        engine: to run it with.
        outputs: to compute.
        feed: to play in a loop.
        fps: pictures per second to play.
        seconds: of the measurement.
    """
    with own_ros() as (environment, context):
        command = [
            *(sys.executable, __file__, 'engine', str(bundle.path), engine, ','.join(outputs)),
            *(feed.cameras[0], str(seconds)),
        ]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        node = rclpy.create_node('player', context=context, start_parameter_services=False)
        player = Player(node, feed, PlayOptions(rate=fps / feed.fps, loop=True, stamp='now'))
        stop = threading.Event()
        thread = threading.Thread(target=player.play, args=(stop,), daemon=True)
        try:
            player.wait_for_subscribers(START_S)
            thread.start()
            output, _ = process.communicate(timeout=START_S + 3 * seconds)
        finally:
            process.kill()
            stop.set()
            if thread.is_alive():
                thread.join()
            player.close()
            node.destroy_node()
    if process.returncode:
        raise LiveError(f'the bare engine ended with code {process.returncode}')
    return float(output)


def spin_engine(
    bundle: Path, engine: str, outputs: Sequence[str], image: str, seconds: float
) -> float:
    """Return inferences per second of this process, which is sent pictures and leaves them."""
    loaded = ModelBundle.load(bundle)
    opened = open_engine(loaded, engine)
    picture = opened.input_buffer(1, loaded.input_size)
    picture[:] = np.random.default_rng(0).integers(0, 256, picture.shape, np.uint8)
    # What is compiled in the background for these outputs takes over meanwhile.
    until = time.perf_counter() + WARM_UP_S
    while time.perf_counter() < until:
        opened.infer(picture, outputs)
    rclpy.init(args=[])
    node = rclpy.create_node('engine', start_parameter_services=False)
    node.create_subscription(Image, image, lambda _: None, 5)
    while not node.count_publishers(image):
        time.sleep(0.01)
    # The player waits a moment for what a new subscriber may still change.
    until = time.perf_counter() + 2 * SETTLE_S + INFO_WAIT_S
    while time.perf_counter() < until:
        opened.infer(picture, outputs)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        opened.infer(picture, outputs)
        count += 1
    rate = count / (time.perf_counter() - began)
    node.destroy_node()
    rclpy.shutdown()
    return rate


def _fastest(
    ours: Program,
    bundle: ModelBundle,
    engine: str,
    source: Source,
    seconds: float,
    fps: float,
    console: Console,
) -> dict[str, Any]:
    """Return the rates of node, least node and bare engine, taken in turns, and their ratios."""
    feed = Feed(source, fps=fps, count=round(seconds * fps * SATURATION / TURNS))
    wanted = [name for name in bundle.outputs if name in CONSUMED]
    least = least_program(bundle, engine)
    rates: dict[str, list[float]] = {}
    eager = None
    for turn in range(TURNS):
        with console.status(f'as fast as it takes, turn {turn + 1} of {TURNS}'):
            eager = replay_through(ours, feed, rate=UNBOUNDED, in_flight=IN_FLIGHT)
            one = {
                'node_fps': eager.fps,
                'least_fps': replay_through(least, feed, rate=UNBOUNDED, in_flight=IN_FLIGHT).fps,
            }
            for name, outputs in (('engine_fps', wanted), ('engine_whole_fps', bundle.outputs)):
                one[name] = engine_rate(bundle, engine, outputs, feed, eager.fps, seconds / TURNS)
        for name, rate in one.items():
            rates.setdefault(name, []).append(rate)
    assert eager is not None
    medians = {name: round(float(np.median(values)), 2) for name, values in rates.items()}
    return medians | {
        'turns': {name: [round(rate, 2) for rate in values] for name, values in rates.items()},
        'fed_as_fast_as_it_takes': _figures(eager),
    }


def _figures(result: LiveResult) -> dict[str, Any]:
    return {
        'fps': round(result.fps, 2),
        'p50_ms': percentiles(result.latencies_ms)['p50'],
        'p95_ms': percentiles(result.latencies_ms)['p95'],
        'frames_in': result.frames_in,
        'frames_out': result.frames_out,
        'dropped': result.dropped,
    }


def _jpeg_figures(result: LiveResult) -> dict[str, Any]:
    """Decompressing is the camera's choice and not the node's overhead."""
    rest = np.subtract(result.overhead_ms, result.decode_ms).tolist()
    return _figures(result) | {
        'decode_ms': percentiles(result.decode_ms),
        'overhead_ms': percentiles(rest),
    }


def _ratios(result: dict[str, Any]) -> dict[str, float]:
    """Return how much of the engine's rate is left, and how this node compares with plain ones."""
    ours = result['node']
    turns = {name: np.array(rates) for name, rates in result['turns'].items()}
    ratios = {
        f'{name}_of_{other}': float(np.median(turns[name] / turns[other]))
        for name, other in (
            ('node_fps', 'least_fps'),
            ('node_fps', 'engine_fps'),
            ('least_fps', 'engine_fps'),
            ('node_fps', 'engine_whole_fps'),
        )
    }
    for name in ('plain_torch', 'plain_onnxruntime'):
        if name in result and result[name]['fps'] > 0:
            ratios[f'fps_over_{name}'] = ours['fps'] / result[name]['fps']
            ratios[f'p95_of_{name}'] = ours['p95_ms'] / result[name]['p95_ms']
    return {name: round(value, 3) for name, value in ratios.items()}


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command('engine', hidden=True)
def engine_command(bundle: Path, engine: str, outputs: str, image: str, seconds: float) -> None:
    """Print the bare engine's inferences per second."""
    print(spin_engine(bundle, engine, outputs.split(','), image, seconds))


@app.callback(invoke_without_command=True)
def measure(
    context: typer.Context,
    json: Annotated[Path, typer.Option(help='Result.')] = Path('out/bench/node.json'),
    recording: Annotated[
        Path | None, typer.Option(help='Where the pictures come from; default: samples/room.')
    ] = None,
    split: Annotated[str | None, typer.Option(help='Split of a data set.')] = None,
    bundle: Annotated[str, typer.Option(help='Folder or name of the model bundle.')] = 'pvt_v2_b0',
    engine: Annotated[str, typer.Option(help='Inference engine of our node.')] = 'auto',
    seconds: Annotated[float, typer.Option(help='Of every measurement.')] = 15.0,
    fps: Annotated[float, typer.Option(help="The camera's rate.")] = 30.0,
    plain: Annotated[bool, typer.Option(help='Measure the plain nodes, too.')] = True,
) -> None:
    """Measure everything and write the result."""
    if context.invoked_subcommand:
        return
    console = Console()
    machine = describe_machine()
    loaded = ModelBundle.load(bundle)
    source = open_source(recording or shared_folder('samples') / 'room', split=split)
    ours = own_program(loaded, engine)

    def play(program: Program, rate: float = 1.0, **options: Any) -> LiveResult:
        """Play for the same time at any rate."""
        feed = Feed(source, fps=fps, count=round(seconds * fps * rate), **options)
        return replay_through(program, feed, rate=rate)

    result: dict[str, Any] = {
        'input': {'width': 640, 'height': 480, 'encoding': 'rgb8', 'fps': fps}
    }
    result |= _fastest(ours, loaded, engine, source, seconds, fps, console)
    with console.status(f'the node at {fps:g} Hz'):
        steady = play(ours)
        result['camera'] = _figures(steady)
        result['overhead_ms'] = percentiles(steady.overhead_ms)
        result['engine'] = f'{steady.engine} {steady.precision}'
        result['memory_mib'] = round(steady.memory_mib, 1)
        result['cpu_cores'] = round(steady.cpu_cores, 2)
    with console.status(f'the node with 1280x720 JPEG at {fps:g} Hz'):
        result['jpeg_1280x720'] = _jpeg_figures(play(ours, size=(1280, 720), jpeg=True))
    with console.status(f'the node at {SATURATION * fps:g} Hz'):
        result['node'] = _figures(play(ours, SATURATION))
    for runtime in ('torch', 'onnxruntime') if plain else ():
        with console.status(f'a plain node with {runtime} at {SATURATION * fps:g} Hz'):
            other = play(plain_program(loaded, runtime), SATURATION)
            result[f'plain_{runtime}'] = _figures(other)
    result['ratios'] = _ratios(result)
    result['bundle'] = loaded.name
    result['machine'] = machine
    write_result(json, result)
    _print(result, console)


def _print(result: dict[str, Any], console: Console) -> None:
    fast = f'{SATURATION * result["input"]["fps"]:g} Hz'
    rows = {
        f'node at {result["input"]["fps"]:g} Hz': 'camera',
        'node as fast as it takes': 'fed_as_fast_as_it_takes',
        f'node at {fast}': 'node',
        f'plain onnxruntime at {fast}': 'plain_onnxruntime',
        f'plain torch at {fast}': 'plain_torch',
    }
    table = Table('', 'fps', 'p50', 'p95', 'out of in', title='640x480 rgb8')
    for title, name in rows.items():
        if name in result:
            one = result[name]
            latency = [f'{one[key]:.1f} ms' if one[key] else '-' for key in ('p50_ms', 'p95_ms')]
            counts = f'{one["frames_out"]} of {one["frames_in"]}'
            table.add_row(title, f'{one["fps"]:.1f}', *latency, counts)
    console.print(table)
    overhead = result['overhead_ms']
    console.print(
        f'overhead {overhead["p50"]:.1f} ms (p50), {overhead["p99"]:.1f} ms (p99); '
        f'{result["node_fps"]:.1f} fps of {result["least_fps"]:.1f} of a node that only runs the '
        f'engine and {result["engine_fps"]:.1f} of the bare engine '
        f'({result["engine_whole_fps"]:.1f} with all outputs); '
        f'{result["memory_mib"]:.0f} MiB; {result["engine"]}'
    )
    jpeg = result['jpeg_1280x720']
    console.print(
        f'1280x720 JPEG: {jpeg["frames_out"]} of {jpeg["frames_in"]} at {jpeg["fps"]:.1f} fps, '
        f'overhead {jpeg["overhead_ms"]["p50"]:.1f} ms (p50), {jpeg["overhead_ms"]["p99"]:.1f} ms '
        f'(p99), decoding {jpeg["decode_ms"]["p50"]:.1f} ms (p50)'
    )
    console.print(result['ratios'])
    machine = result['machine']
    console.print(f'{machine["cpu"]}, {machine["cores"]} cores, load {machine["load"]} before')


if __name__ == '__main__':
    app()
