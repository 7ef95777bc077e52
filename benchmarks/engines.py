"""Measure the inference engines and precisions that this machine has, one process each.

python benchmarks/engines.py --bundle pvt_v2_b0 --json out/bench/engines.json
"""

from __future__ import annotations

import json as jsonlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from machine import describe_machine, write_result
from rich.console import Console
from rich.table import Table

from mtl_perception.bundle import ModelBundle
from mtl_perception.engines import EngineError, open_engine

CASES = (
    ('openvino', 'bfloat16'),
    ('openvino', 'float32'),
    ('onnxruntime', 'float32'),
    ('tensorrt', 'float16'),
    ('tensorrt', 'float32'),
)
WARM_UP = 5


def time_engine(bundle: str, engine: str, precision: str, seconds: float) -> dict[str, Any]:
    """Return start-up time, rate, latency percentiles and memory of this process."""
    loaded = ModelBundle.load(bundle)
    began = time.perf_counter()
    opened = open_engine(loaded, engine, precision=precision)
    picture = opened.input_buffer(1, loaded.input_size)
    picture[:] = np.random.default_rng(0).integers(0, 256, picture.shape, np.uint8)
    opened.infer(picture)
    start_s = time.perf_counter() - began
    for _ in range(WARM_UP):
        opened.infer(picture)
    durations = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        before = time.perf_counter()
        opened.infer(picture)
        durations.append((time.perf_counter() - before) * 1e3)
    p50, p95 = np.percentile(durations, (50, 95))
    return {
        'engine': opened.name,
        'precision': opened.precision,
        'device': opened.device,
        'fps': round(1e3 * len(durations) / sum(durations), 2),
        'p50_ms': round(float(p50), 2),
        'p95_ms': round(float(p95), 2),
        'start_s': round(start_s, 2),
        'memory_mib': round(psutil.Process().memory_info().rss / 2**20, 1),
    }


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command('one', hidden=True)
def one(bundle: str, engine: str, precision: str, seconds: float) -> None:
    """Print the figures of one engine, or why it can't run."""
    try:
        figures = time_engine(bundle, engine, precision, seconds)
    except EngineError as error:
        figures = {'engine': engine, 'precision': precision, 'unavailable': str(error)}
    print(jsonlib.dumps(figures))


@app.callback(invoke_without_command=True)
def measure(
    context: typer.Context,
    bundle: Annotated[str, typer.Option(help='Folder or name of the model bundle.')] = 'pvt_v2_b0',
    seconds: Annotated[float, typer.Option(help='Of every measurement.')] = 10.0,
    json: Annotated[Path, typer.Option(help='Result.')] = Path('out/bench/engines.json'),
) -> None:
    """Measure everything and write the result."""
    if context.invoked_subcommand:
        return
    console = Console()
    machine = describe_machine()
    loaded = ModelBundle.load(bundle)
    engines = []
    for engine, precision in CASES:
        with console.status(f'{engine} {precision}'):
            engines.append(_measure_apart(str(loaded.path), engine, precision, seconds))
    height, width = loaded.input_size
    result = {
        'bundle': loaded.name,
        'input': {'width': width, 'height': height},
        'engines': engines,
        'machine': machine,
    }
    write_result(json, result)
    _print(result, console)


def _measure_apart(bundle: str, engine: str, precision: str, seconds: float) -> dict[str, Any]:
    """Measure in a process of its own, so that memory and threads are one engine's."""
    command = [sys.executable, __file__, 'one', bundle, engine, precision, str(seconds)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300 + seconds)
    if process.returncode != 0:
        reason = (process.stderr.strip().splitlines() or ['no message'])[-1]
        return {'engine': engine, 'precision': precision, 'unavailable': reason}
    return jsonlib.loads(process.stdout.splitlines()[-1])


def _print(result: dict[str, Any], console: Console) -> None:
    size = f'{result["input"]["width"]}x{result["input"]["height"]}'
    measured = [one for one in result['engines'] if 'fps' in one]
    fastest = max((one['fps'] for one in measured), default=1.0)
    table = Table(
        'engine', 'precision', 'fps', 'of the best', 'p50', 'p95', 'start', 'memory',
        title=f'{result["bundle"]} at {size}',
    )  # fmt: skip
    for one in measured:
        table.add_row(
            one['engine'],
            one['precision'],
            f'{one["fps"]:.1f}',
            f'{one["fps"] / fastest:.0%}',
            f'{one["p50_ms"]:.1f} ms',
            f'{one["p95_ms"]:.1f} ms',
            f'{one["start_s"]:.1f} s',
            f'{one["memory_mib"]:.0f} MiB',
        )
    console.print(table)
    for one in result['engines']:
        if 'unavailable' in one:
            console.print(f'{one["engine"]} {one["precision"]}: {one["unavailable"]}')
    machine = result['machine']
    console.print(f'{machine["cpu"]}, {machine["cores"]} cores, load {machine["load"]} before')


if __name__ == '__main__':
    app()
