"""Plays a recording through the real node, in its own process, and sees what a robot would see."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import rclpy

from mtl_perception.bundle import ModelBundle
from mtl_perception.ros.collector import Collector, LiveFrame, LiveResult, percentiles
from mtl_perception.ros.player import Player, PlayOptions, PlayResult, PublishedPicture
from mtl_perception.ros.program import LiveError, Program, RunningNode, own_ros, run_program
from mtl_perception.ros.sources import COMPRESSED_IMAGE, Source, SourceError, open_source

__all__ = [
    'LiveError',
    'LiveFrame',
    'LiveResult',
    'Program',
    'own_ros',
    'percentiles',
    'perception_program',
    'replay_live',
    'replay_through',
]

OUTPUTS = {
    'segmentation': {'label': '/perception/segmentation/mask'},
    'depth': {'depth': '/perception/depth/image'},
    'normals': {'normal': '/perception/normals/image'},
}
# What shows a frame's boxes where there is nothing denser.
OVERLAY = {'overlay': '/perception/segmentation/overlay'}
STATUS = '/perception/status'
START_S = 120.0
# The last pictures are waited for until nothing has come for so long.
FINISH_S = 3.0
ANSWER_S = 30.0


def perception_program(
    bundle: ModelBundle, parameters: Mapping[str, object] | None = None
) -> Program:
    """Return this package's own node with a bundle.

    Raises:
        LiveError: the bundle computes nothing that the node shows as a picture.
    """
    outputs: dict[str, str] = {}
    for task in bundle.manifest.tasks:
        outputs |= OUTPUTS.get(task, {})
    if not outputs and 'detection' in bundle.manifest.tasks:
        outputs = OVERLAY
    if not outputs:
        raise LiveError(
            f'{bundle.name} computes {", ".join(bundle.manifest.tasks)} only, of which the node '
            'publishes no pictures: evaluate it without --live'
        )
    return Program(
        arguments=('-m', 'mtl_perception.cli', 'run'),
        parameters={'bundle': str(bundle.path), **(parameters or {})},
        outputs=outputs,
        status=STATUS,
    )


def replay_live(
    path: Path,
    bundle: str | Path,
    *,
    split: str | None = None,
    limit: int = 0,
    fps: float = 30.0,
    images: Sequence[str] = (),
    rate: float = 1.0,
    in_step: bool = False,
    parameters: Mapping[str, object] | None = None,
    on_frame: Callable[[LiveFrame], None] | None = None,
    on_picture: Callable[[PublishedPicture], None] | None = None,
) -> LiveResult:
    """Play a recording or folder once through a node of its own, in a private ROS domain.

    Args:
        path: what to play; of several cameras the first one is used.
        bundle: folder or name of the model bundle.
        split: of a data set.
        limit: pictures of the first camera to play; 0 plays all.
        fps: of folders.
        images: of bags, the cameras of which the first one is used; empty: found by type and name.
        rate: speed; 1 is as recorded.
        in_step: play a picture only when the fate of those before it is known, so that even a slow
            machine drops none; `rate` is then a limit.
        parameters: of the node, besides `bundle` and `transport`.
        on_frame: called with every picture's outputs, from a thread of this function.
        on_picture: called for every picture that is played, from another one.

    Raises:
        SourceError: there is nothing to play.
        BundleError: the bundle can't be used.
        LiveError: the node did not start, or ended.
    """
    source = open_source(Path(path), split=split, limit=limit, fps=fps, images=images)
    loaded = ModelBundle.load(bundle)
    program = perception_program(loaded, parameters)
    result = replay_through(
        program, source, rate=rate, in_step=in_step, on_frame=on_frame, on_picture=on_picture
    )
    result.bundle = loaded.name
    return result


def replay_through(
    program: Program,
    source: Source,
    *,
    rate: float = 1.0,
    in_step: bool = False,
    in_flight: int = 0,
    on_frame: Callable[[LiveFrame], None] | None = None,
    on_picture: Callable[[PublishedPicture], None] | None = None,
    on_start: Callable[[int], None] | None = None,
) -> LiveResult:
    """Play a source once through any node; see `replay_live`.

    Args:
        program: the node.
        source: what to play.
        rate: speed.
        in_step: see `replay_live`; the same as one picture in flight.
        in_flight: play a picture only while fewer than so many others are under way: with two of
            them a node always has the next one at hand and hardly drops any. 0: play in time.
        on_frame: called with every picture's outputs.
        on_picture: called for every picture that is played.
        on_start: called with the node's process id.
    """
    camera = next(topic for topic in source.topics if topic.name == source.cameras[0])
    compressed = camera.type == COMPRESSED_IMAGE
    image = camera.name.removesuffix('/compressed') if compressed else camera.name
    parameters = {**program.parameters, 'transport': 'compressed' if compressed else 'raw'}
    with (
        own_ros() as (environment, context),
        run_program(program.arguments, image, parameters, environment) as process,
        Collector(context, program, on_frame) as collector,
    ):
        if on_start is not None:
            on_start(process.pid)

        def played(picture: PublishedPicture) -> None:
            if picture.topic == camera.name:
                collector.expect(picture)
            if on_picture is not None:
                on_picture(picture)

        node = rclpy.create_node('player', context=context, start_parameter_services=False)
        options = PlayOptions(rate=rate, stamp='now', wait_for=(camera.name,))
        allowed = 1 if in_step else in_flight
        gate = (lambda: collector.wait(ANSWER_S, allowed - 1)) if allowed else None
        player = Player(node, source, options, on_picture=played, gate=gate)
        _play(player, process, collector)
        player.close()
        node.destroy_node()
        return collector.result(rate)


def _play(player: Player, process: RunningNode, collector: Collector) -> None:
    """Play to the end and wait for the last outputs."""
    stop = threading.Event()
    outcome: list[PlayResult | Exception] = []

    def run() -> None:
        try:
            player.wait_for_subscribers(START_S, stop)
        except SourceError as error:
            outcome.append(LiveError(f'{error}; the node said: {process.said()}'))
            return
        try:
            outcome.append(player.play(stop))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, name='player', daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            process.check()
            thread.join(0.1)
    finally:
        stop.set()
        thread.join()
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    collector.wait(FINISH_S)
    process.check()
