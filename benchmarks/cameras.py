"""Several cameras through the real node over DDS, every picture accounted for."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import Image

from mtl_perception.bundle import ModelBundle
from mtl_perception.msg import PerceptionStatus
from mtl_perception.ros.collector import EVERYTHING, percentiles
from mtl_perception.ros.diagnostics import camera_counts
from mtl_perception.ros.live import START_S, own_ros, perception_program
from mtl_perception.ros.player import Player, PlayOptions
from mtl_perception.ros.program import RunningNode, run_program
from mtl_perception.ros.sources import Source, SourceError, sibling
from mtl_perception.ros.statistics import FrameCounts

CONSUMED = ('segmentation/mask', 'depth/image')
# Diagnostics come once a second and tell the fate of the last pictures.
_SETTLE_S = 10.0


@dataclass
class CameraResult:
    """What became of one camera's pictures.

    Attributes:
        name: of the camera.
        sent: pictures played.
        counts: received, published and dropped by reason, as the node tells them.
        engine: as the node names it.
        latencies_ms: from stamp to publication, of every status that arrived.
    """

    name: str
    sent: int = 0
    counts: FrameCounts = field(default_factory=FrameCounts)
    engine: str = ''
    latencies_ms: list[float] = field(default_factory=list)

    @property
    def is_settled(self) -> bool:
        """Tell whether the fate of every picture is known."""
        return self.counts.received >= self.sent and self.counts.under_way == 0

    def summary(self) -> dict[str, Any]:
        """Return the figures as they go into JSON."""
        return {
            'sent': self.sent,
            'received': self.counts.received,
            'published': self.counts.published,
            'dropped': dict(self.counts.dropped),
            'latency_ms': percentiles(self.latencies_ms),
        }


def replay_cameras(
    bundle: ModelBundle,
    source: Source,
    names: Sequence[str],
    parameters: Mapping[str, object] | None = None,
) -> list[CameraResult]:
    """Play a source once as each of several cameras, at the same time, through one node.

    Args:
        bundle: that the node runs.
        source: one camera with raw images, and its camera_info.
        names: of the cameras.
        parameters: of the node.

    Raises:
        LiveError: the node did not start, or ended.
        SourceError: it did not subscribe.
    """
    program = perception_program(
        bundle, {**(parameters or {}), 'cameras': f'[{", ".join(names)}]'}
    )
    results = [CameraResult(name) for name in names]
    with (
        own_ros() as (environment, context),
        run_program(program.arguments, 'unused', program.parameters, environment) as process,
    ):
        node = rclpy.create_node('cameras', context=context, start_parameter_services=False)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        _listen(node, results)
        listener = threading.Thread(target=executor.spin, daemon=True)
        listener.start()
        try:
            _play(node, source, results, process)
            until = time.monotonic() + _SETTLE_S
            while time.monotonic() < until and not all(one.is_settled for one in results):
                process.check()
                time.sleep(0.05)
        finally:
            executor.shutdown()
            listener.join()
            node.destroy_node()
    return results


def _listen(node: Node, results: Sequence[CameraResult]) -> None:
    """Take labels, depth and statuses of all cameras, and the node's diagnostics."""

    def take_status(status: PerceptionStatus, result: CameraResult) -> None:
        result.engine = status.engine
        result.latencies_ms.append(status.latency_ms)

    def take_diagnostics(message: DiagnosticArray) -> None:
        for status in message.status:
            counts = camera_counts(status)
            for result in results:
                if counts is not None and status.name == f'perception: camera {result.name}':
                    result.counts = counts

    for result in results:
        node.create_subscription(
            PerceptionStatus,
            f'/perception/{result.name}/status',
            lambda status, own=result: take_status(status, own),
            EVERYTHING,
        )
        # What nobody listens to is not computed.
        for topic in CONSUMED:
            name = f'/perception/{result.name}/{topic}'
            node.create_subscription(Image, name, lambda _: None, EVERYTHING, raw=True)
    node.create_subscription(DiagnosticArray, '/diagnostics', take_diagnostics, EVERYTHING)


def _play(
    node: Node, source: Source, results: Sequence[CameraResult], process: RunningNode
) -> None:
    """Play to all cameras at once and take note of how many pictures went out."""
    image = source.cameras[0]
    info = sibling(image, 'camera_info')
    players = []
    for result in results:
        remap = {image: f'/{result.name}/image', info: f'/{result.name}/camera_info'}
        players.append(Player(node, source, PlayOptions(stamp='now', remap=remap)))
    stop = threading.Event()
    try:
        try:
            for player in players:
                player.wait_for_subscribers(START_S, stop)
        except SourceError:
            process.check()
            raise

        def run(player: Player, result: CameraResult) -> None:
            result.sent = player.play(stop).pictures

        threads = [
            threading.Thread(target=run, args=pair, daemon=True)
            for pair in zip(players, results, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                process.check()
                thread.join(0.1)
    finally:
        stop.set()
        for player in players:
            player.close()
