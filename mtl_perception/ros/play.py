"""The program `play`: a player in a process of its own, with progress and a clean end."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path

import rclpy
from rclpy.signals import SignalHandlerOptions
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from mtl_perception.ros.environment import choose_fastdds_profile, find_package_prefix
from mtl_perception.ros.player import Player, PlayOptions, PlayResult, PublishedPicture
from mtl_perception.ros.sources import (
    CalibratedSource,
    Source,
    SourceError,
    open_source,
    parse_k,
    read_camera_info,
)

LATE_MS = 500.0


def play(
    path: Path,
    options: PlayOptions,
    *,
    split: str | None = None,
    fps: float = 30.0,
    transport: str = 'raw',
    limit: int = 0,
    topics: Collection[str] = (),
    all_topics: bool = False,
    camera_info: Path | None = None,
    k: str | None = None,
    quiet: bool = False,
) -> PlayResult:
    """Play a recording or folder until its end or until Ctrl-C.

    Args:
        path: the recording or folder.
        options: how to play.
        split: of a data set.
        fps: of folders.
        transport: of folders, 'raw' or 'compressed'.
        limit: pictures of the first camera to play; 0 plays all.
        topics: play only these; empty: all but what a perception node published.
        all_topics: play what a perception node published, too.
        camera_info: a calibration file that replaces the recorded calibration.
        k: 'fx,fy,cx,cy', the same in four numbers.
        quiet: print nothing but errors.

    Raises:
        SourceError: one sentence about what can't be played.
    """
    console = Console(stderr=True, quiet=quiet, soft_wrap=True)
    source = open_source(
        path,
        split=split,
        fps=fps,
        transport=transport,
        limit=limit,
        start_s=options.start_s,
        topics=topics,
        all_topics=all_topics,
    )
    if camera_info is not None and k is not None:
        raise SourceError('a camera_info file and K were both given: give one of them')
    if camera_info is not None:
        source = CalibratedSource(source, read_camera_info(camera_info))
    elif k is not None:
        source = CalibratedSource(source, parse_k(k))
    find_package_prefix()
    choose_fastdds_profile()
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        with _stop_on_signals() as stop:
            node = rclpy.create_node('player', start_parameter_services=False, enable_rosout=False)
            result = _play(node, source, options, stop, console)
            node.destroy_node()
    finally:
        rclpy.try_shutdown()
    return result


def _play(
    node: rclpy.node.Node,
    source: Source,
    options: PlayOptions,
    stop: threading.Event,
    console: Console,
) -> PlayResult:
    with _progress(source, options, console) as advance:
        player = Player(node, source, options, on_picture=advance)
        for sentence in _left_out(source):
            console.print(sentence, style='yellow', highlight=False)
        for topic, kind in sorted(player.topics.items()):
            console.print(f'publishing {topic}  [dim]{kind}[/dim]', highlight=False)
        result = player.play(stop)
        player.close()
    end = 'played' if result.completed else 'stopped after'
    console.print(
        f'{end} {result.pictures} pictures ({result.messages} messages) in '
        f'{result.duration_s:.1f} s',
        highlight=False,
    )
    if result.latest_ms > LATE_MS:
        console.print(
            f'up to {result.latest_ms / 1e3:.1f} s behind the asked rate: this machine is too '
            'busy for it, choose a lower --rate',
            style='yellow',
            highlight=False,
        )
    return result


def _left_out(source: Source) -> list[str]:
    """Return a sentence for each reason why topics are not played."""
    topics_of: dict[str, list[str]] = defaultdict(list)
    for topic, reason in source.left_out.items():
        topics_of[reason].append(topic)
    return [f'left out {", ".join(topics)}: {reason}' for reason, topics in topics_of.items()]


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Set the event on the first SIGINT or SIGTERM; ignore further ones while shutting down."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _progress(source: Source, options: PlayOptions, console: Console):
    """Yield the function that moves the bar; the bar is drawn only on a terminal."""
    if console.quiet or not sys.stderr.isatty():
        yield None
        return
    columns = (
        TextColumn('{task.fields[pictures]} pictures'),
        BarColumn(),
        TextColumn('{task.completed:.1f} of {task.total:.1f} s'),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        total = source.duration_ns * 1e-9
        task = progress.add_task('playing', total=total, completed=options.start_s, pictures=0)
        count = 0

        def advance(picture: PublishedPicture) -> None:
            nonlocal count
            count += 1
            place = (picture.time_ns - source.start_ns) * 1e-9
            progress.update(task, completed=place, pictures=count)

        yield advance
