"""Quality of service: what to ask of a camera so that its images arrive."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

try:
    from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
except ImportError:  # Humble's name for it
    from rclpy.qos_event import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSProfile,
    ReliabilityPolicy,
)
from rclpy.subscription import Subscription
from rclpy.topic_endpoint_info import TopicEndpointInfo

RELIABILITIES = {
    'reliable': ReliabilityPolicy.RELIABLE,
    'best_effort': ReliabilityPolicy.BEST_EFFORT,
}


def input_reliability(setting: str, publishers: Sequence[TopicEndpointInfo]) -> ReliabilityPolicy:
    """Return the reliability to ask for.

    A best-effort reader of an ordinary reliable camera loses most large images where the camera's
    process has no Fast DDS profile, and a reliable reader gets nothing from a best-effort camera.

    Args:
        setting: 'reliable', 'best_effort' or 'auto': reliable when every publisher offers it.
        publishers: of the topic, as the graph knows them; none yet: best effort, which fits all.
    """
    if setting != 'auto':
        return RELIABILITIES[setting]
    offered = [info.qos_profile.reliability for info in publishers]
    if offered and all(policy == ReliabilityPolicy.RELIABLE for policy in offered):
        return ReliabilityPolicy.RELIABLE
    return ReliabilityPolicy.BEST_EFFORT


def profile(reliability: ReliabilityPolicy, depth: int, *, latched: bool = False) -> QoSProfile:
    """Return a profile that keeps the last `depth` messages, for late readers too if latched."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=reliability,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


def incompatible_publishers(node: Node, topic: str, asked: QoSProfile) -> list[str]:
    """Name the nodes whose publishers of `topic` cannot serve a reader that asks for `asked`."""
    offers = node.get_publishers_info_by_topic(topic)
    return _mismatches((info, info.qos_profile, asked) for info in offers)


def incompatible_subscribers(node: Node, topic: str, offered: QoSProfile) -> list[str]:
    """Name the nodes whose subscriptions to `topic` cannot be served by `offered`."""
    readers = node.get_subscriptions_info_by_topic(topic)
    return _mismatches((info, offered, info.qos_profile) for info in readers)


def _mismatches(pairs: Iterable[tuple[TopicEndpointInfo, QoSProfile, QoSProfile]]) -> list[str]:
    """Describe the pairs (endpoint, offered, asked) between which DDS passes nothing."""
    found = []
    for info, offered, asked in pairs:
        reasons = []
        if (
            asked.reliability == ReliabilityPolicy.RELIABLE
            and offered.reliability == ReliabilityPolicy.BEST_EFFORT
        ):
            reasons.append('best_effort is offered, reliable is asked for')
        if (
            asked.durability == DurabilityPolicy.TRANSIENT_LOCAL
            and offered.durability == DurabilityPolicy.VOLATILE
        ):
            reasons.append('volatile is offered, transient_local is asked for')
        if reasons:
            name = f'{info.node_namespace.rstrip("/")}/{info.node_name}'
            found.append(f'{name} ({"; ".join(reasons)})')
    return sorted(found)


def no_events() -> SubscriptionEventCallbacks:
    """Return callbacks that watch nothing: a watched event wakes the executor for each message."""
    return SubscriptionEventCallbacks(use_default_callbacks=False)


def loss_events() -> SubscriptionEventCallbacks:
    """Return callbacks with which `count_lost` can ask for messages lost in transport."""
    return SubscriptionEventCallbacks(message_lost=_ignore, use_default_callbacks=False)


def count_lost(subscription: Subscription) -> int | None:
    """Return how many messages were lost in transport so far; None when the middleware is silent.

    Args:
        subscription: made with `loss_events`, in a group that the executor does not wait on.
    """
    for handler in subscription.event_handlers:
        handler._ready_to_take_data = True  # nobody has waited for the event
        event = handler.take_data()
        if event is not None:
            return event.total_count
    return None


def no_publisher_events() -> PublisherEventCallbacks:
    """Return callbacks that watch nothing; the graph is asked for mismatches instead."""
    return PublisherEventCallbacks(use_default_callbacks=False)


def _ignore(event: object) -> None:
    """Stand for the callback that a watched event must have."""
