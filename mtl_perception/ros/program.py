"""A node in a process of its own, in a ROS domain of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import rclpy

from mtl_perception.ros.domain import private_domain
from mtl_perception.ros.environment import choose_fastdds_profile, find_package_prefix

STOP_S = 10.0


class LiveError(RuntimeError):
    """The node could not be started or ended early; the message says why."""


@dataclass(frozen=True)
class Program:
    """A node to play to: how to start it and where its outputs come.

    Attributes:
        arguments: of the Python interpreter; `-r image:=TOPIC` is added after `--ros-args`.
        parameters: ROS parameters.
        outputs: array name ('label', 'depth', 'normal') -> topic; all of them make a frame.
        status: topic with its PerceptionStatus, or None for a node without one.
    """

    arguments: tuple[str, ...]
    parameters: Mapping[str, object]
    outputs: Mapping[str, str]
    status: str | None = None


@contextlib.contextmanager
def own_ros() -> Iterator[tuple[dict[str, str], rclpy.Context]]:
    """Yield the environment for child processes and a context, both in a domain of their own."""
    before = dict(os.environ)
    with private_domain() as domain:
        find_package_prefix()
        os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
        choose_fastdds_profile()
        environment = {**os.environ, 'ROS_DOMAIN_ID': str(domain)}
        # The wheels' bootstrap has to run anew in every process.
        environment.pop('_ROS_WHEELS_BOOTSTRAP_COMPLETE', None)
        context = rclpy.Context()
        rclpy.init(args=[], context=context, domain_id=domain)
        try:
            yield environment, context
        finally:
            rclpy.try_shutdown(context=context)
            os.environ.clear()
            os.environ.update(before)


class RunningNode:
    """The node's process and what it has printed."""

    def __init__(self, process: subprocess.Popen, log: Path) -> None:
        self.pid = process.pid
        self._process = process
        self._log = log

    def check(self) -> None:
        """Raise LiveError when the node has ended."""
        if self._process.poll() is not None:
            raise LiveError(f'the node ended with code {self._process.returncode}: {self.said()}')

    def said(self) -> str:
        """Return the last lines that the node printed."""
        lines = [line for line in self._log.read_text(errors='replace').splitlines() if line]
        return ' | '.join(lines[-3:]) or 'it printed nothing'


@contextlib.contextmanager
def run_program(
    arguments: Sequence[str],
    image: str,
    parameters: Mapping[str, object],
    environment: dict[str, str],
) -> Iterator[RunningNode]:
    """Run the node on an image topic; end it as Ctrl-C would."""
    command = [sys.executable, *arguments, '--ros-args', '-r', f'image:={image}']
    for name, value in parameters.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        command += ['-p', f'{name}:={text}']
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / 'node.log'
        with log.open('w') as sink:
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=sink,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches this process alone, which then ends the node in order.
                start_new_session=True,
            )
        try:
            yield RunningNode(process, log)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
