"""Compare the training step with a plain loop, and the reader with the step, in one run.

python benchmarks/training.py --json out/bench/training.json

The plain loop computes in float32 with contiguous pictures; ours in bfloat16 with the channels
last, as `mtl-training train` does; a third loop is ours with torch's own depthwise convolutions
(`mtl_training/networks/depthwise.py`). All take the same batches and the same losses, by turns, so
that other work on the machine meets all. Reading must take less than a step, or it would be the
bottleneck: a worker process makes batches while the step runs.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from machine import describe_machine, write_result
from rich.console import Console

from mtl_training.config import TrainingConfig, load_config
from mtl_training.datasets import BatchRequest, FrameSubset, Mixture, prepare
from mtl_training.datasets.mixtures import Batch
from mtl_training.device import autocast
from mtl_training.networks import build_network
from mtl_training.networks.depthwise import QUICK
from mtl_training.run_state import network_config
from mtl_training.tasks import Task, build_task

FRAMES = 16


def write_noise(root: Path, height: int, width: int) -> None:
    """Write pictures whose reading costs what real ones cost."""
    random = np.random.default_rng(0)
    for folder in ('rgb', 'depth', 'label13'):
        (root / 'train' / folder).mkdir(parents=True)
    for index in range(FRAMES):
        small = random.integers(0, 255, (9, 12, 3), np.uint8)
        pictures = {
            'rgb': cv2.resize(small, (width, height)),
            'depth': cv2.resize(small[..., 0], (width, height)).astype(np.uint16) * 20 + 800,
            'label13': random.integers(0, 13, (height, width), np.uint8),
        }
        for folder, picture in pictures.items():
            cv2.imwrite(str(root / 'train' / folder / f'{index:04d}.png'), picture)


class Loop:
    """One way of training: precision, memory layout, and whose depthwise convolutions."""

    def __init__(
        self,
        config: TrainingConfig,
        tasks: dict[str, Task],
        precision: str,
        layout: torch.memory_format,
        *,
        stock_depthwise: bool = False,
    ) -> None:
        settings = config.network.model_copy(update={'pretrained': False})
        torch.manual_seed(0)
        self.network = build_network(network_config(settings, config.tasks))
        if stock_depthwise:
            stock = {quick: plain for plain, quick in QUICK.items()}
            for module in self.network.modules():
                module.__class__ = stock.get(type(module), type(module))
        self.network.to(memory_format=layout).train()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4)
        self.precision, self.layout, self.tasks = precision, layout, tasks
        self.durations_s: list[float] = []

    def step(self, batch: Batch) -> None:
        """Train on one batch and note the time."""
        image = batch['image'].contiguous(memory_format=self.layout)
        start = time.perf_counter()
        with autocast(self.precision, image.device):
            outputs = self.network(image)
        sum(task.loss(outputs, batch) for task in self.tasks.values()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.durations_s.append(time.perf_counter() - start)


def measure(name: str, height: int, width: int, batch_size: int, steps: int) -> dict[str, Any]:
    """Return medians in milliseconds and their ratios."""
    config = load_config(name)
    tasks = {name: build_task(name, config.losses.get(name)) for name in config.tasks}
    with tempfile.TemporaryDirectory() as scratch:
        write_noise(Path(scratch) / 'data', height, width)
        arrays = prepare(
            Path(scratch) / 'data', 'train', Path(scratch) / 'cache', size=(height, width)
        )
        subset = FrameSubset('noise', arrays, tuple(range(FRAMES)))
        focal_length = config.data.focal_length_px
        mixture = Mixture([subset], [1.0], batch_size, focal_length, config.augmentation, seed=0)
        loops = {
            'plain': Loop(config, tasks, 'float32', torch.contiguous_format),
            'ours': Loop(config, tasks, 'bfloat16', torch.channels_last),
            'stock_depthwise': Loop(
                config, tasks, 'bfloat16', torch.channels_last, stock_depthwise=True
            ),
        }
        reading_s = []
        for step in range(steps + 1):
            start = time.perf_counter()
            batch = mixture[BatchRequest(step, height, width)]
            reading_s.append(time.perf_counter() - start)
            for loop in loops.values():
                loop.step(batch)
    plain, ours, stock = (
        1000 * statistics.median(loop.durations_s[1:]) for loop in loops.values()
    )
    reading = 1000 * statistics.median(reading_s[1:])
    return {
        'network': config.name,
        'plain_ms': round(plain, 1),
        'ours_ms': round(ours, 1),
        'speedup': round(plain / ours, 2),
        'stock_depthwise_ms': round(stock, 1),
        'reading_ms': round(reading, 1),
        'reading_share_of_step': round(reading / ours, 3),
        'batch': [batch_size, height, width],
        'threads': torch.get_num_threads(),
    }


def main(
    network: Annotated[
        str, typer.Option(help='Configuration whose network is trained.')
    ] = 'pvt_v2_b0',
    json: Annotated[Path, typer.Option(help='Where the figures go.')] = Path(
        'out/bench/training.json'
    ),
    steps: Annotated[int, typer.Option(min=1, help='Timed steps of each loop.')] = 8,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    height: Annotated[int, typer.Option(min=64)] = 288,
    width: Annotated[int, typer.Option(min=64)] = 384,
) -> None:
    """Time a training step in each of the ways."""
    figures = measure(network, height, width, batch_size, steps)
    console = Console()
    console.print(
        f'{figures["network"]}, batch {batch_size} at {height}x{width}: '
        f'plain {figures["plain_ms"]} ms a step, ours {figures["ours_ms"]} ms, '
        f'{figures["speedup"]} times as fast '
        f"({figures['stock_depthwise_ms']} ms with torch's depthwise convolutions); "
        f'reading a batch {figures["reading_ms"]} ms in another process'
    )
    write_result(json, {**figures, 'machine': describe_machine()})


if __name__ == '__main__':
    typer.run(main)
