"""The receiving thread: takes images and calibrations without the executor's detours."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack

from rclpy.callback_groups import CallbackGroup
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.subscription import Subscription

_JOIN_TIMEOUT_S = 10.0
# The thread is woken where anything changes; a wake-up that got lost must not stop it for good.
_WAIT_NS = 500_000_000
_QUIET_S = 10.0


class LeftToReceiver(CallbackGroup):
    """Marks what the executor leaves alone."""

    def can_execute(self, entity: object) -> bool:
        """Tell the executor not to wait for this."""
        return False

    def beginning_execution(self, entity: object) -> bool:
        """Tell the executor not to begin with this."""
        return False

    def ending_execution(self, entity: object) -> None:
        """Take no note of what never began."""


class Receiver:
    """Waits for the messages of some subscriptions in a thread of its own.

    For each message, an executor builds its wait set anew from all entities of its nodes, which
    takes longer than to take an image.
    """

    def __init__(
        self,
        node: Node,
        watched: Callable[[], Iterable[Subscription]],
        take: Callable[[Subscription], None],
    ) -> None:
        """Prepare the thread.

        Args:
            node: whose subscriptions they are.
            watched: returns the subscriptions, all in a group `LeftToReceiver`; looked up at the
                start and after each `refresh`.
            take: is called in the thread with a subscription that has messages; takes all of them.
        """
        self._node = node
        self._context = node.context
        self._watched = watched
        self._take = take
        self._running = False
        self._outdated = False
        self._thread: threading.Thread | None = None
        self._wake = node.create_guard_condition(lambda: None, LeftToReceiver())

    def start(self) -> None:
        """Start the thread."""
        self._running = True
        self._thread = threading.Thread(target=self._run, name='receiver', daemon=True)
        self._thread.start()

    def refresh(self) -> None:
        """Say that there are other subscriptions now."""
        self._outdated = True
        self._wake.trigger()

    def stop(self) -> None:
        """End the thread after the message that it is at."""
        self._running = False
        if self._thread is not None:
            self._wake.trigger()
            self._thread.join(_JOIN_TIMEOUT_S)
            if self._thread.is_alive():
                raise RuntimeError('the receiving thread does not end: restart the node')
            self._thread = None

    def _run(self) -> None:
        while self._running and self._context.ok():
            self._outdated = False
            with ExitStack() as held:
                subscriptions = []
                for subscription in self._watched():
                    try:
                        held.enter_context(subscription.handle)
                    except rclpy_implementation.InvalidHandle:  # withdrawn a moment ago
                        continue
                    subscriptions.append(subscription)
                self._wait_on(subscriptions)

    def _wait_on(self, subscriptions: list[Subscription]) -> None:
        """Take messages until there are other subscriptions to wait on."""
        wait_set = rclpy_implementation.WaitSet(
            len(subscriptions), 1, 0, 0, 0, 0, self._context.handle
        )
        while self._running and not self._outdated and self._context.ok():
            wait_set.clear_entities()
            wait_set.add_guard_condition(self._wake.handle)
            for subscription in subscriptions:
                wait_set.add_subscription(subscription.handle)
            wait_set.wait(_WAIT_NS)
            ready = wait_set.get_ready_entities('subscription')
            for subscription in subscriptions:
                if subscription.handle.pointer in ready:
                    self._take_from(subscription)

    def _take_from(self, subscription: Subscription) -> None:
        try:
            self._take(subscription)
        except Exception as error:  # one message that can't be taken must not end the thread
            self._node.get_logger().error(
                f'{subscription.topic_name}: {type(error).__name__}: {error}',
                throttle_duration_sec=_QUIET_S,
            )
