"""/diagnostics: each camera's health, what became of its frames, and what computes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from mtl_perception.ros.camera import Camera, Health
from mtl_perception.ros.statistics import STAGES, FrameCounts, ProcessLoad

_LEVELS = {
    Health.OK: DiagnosticStatus.OK,
    Health.NO_INPUT: DiagnosticStatus.ERROR,
    Health.STALE: DiagnosticStatus.STALE,
    Health.BAD_ENCODING: DiagnosticStatus.ERROR,
    Health.UNCALIBRATED: DiagnosticStatus.WARN,
    Health.OVERLOADED: DiagnosticStatus.WARN,
    Health.FAILING: DiagnosticStatus.ERROR,
}

_RECEIVED = 'frames received'
_PUBLISHED = 'frames published'
_DROPPED = 'frames dropped: '


@dataclass(frozen=True)
class Identity:
    """What computes the predictions, in words; all empty while the node is unconfigured."""

    bundle: str = ''
    bundle_sha256: str = ''
    licence_remark: str = ''
    engine: str = ''
    device: str = ''
    precision: str = ''


def camera_status(
    node_name: str, camera: Camera, now_ns: int, incompatible_readers: Mapping[str, Sequence[str]]
) -> DiagnosticStatus:
    """Describe one camera of an active node.

    Args:
        node_name: for the status' name.
        camera: to describe.
        now_ns: monotonic time.
        incompatible_readers: output topic -> nodes whose subscriptions it cannot serve.
    """
    health, sentence = camera.health(now_ns)
    level, title = _LEVELS[health], health.name
    if not camera.enabled:
        level, title = DiagnosticStatus.OK, 'DISABLED'
        sentence = 'switched off by the service set_enabled'
    counts = camera.counter.snapshot()
    topics = camera.topics
    values = {
        'health': title,
        'image topic': topics.image if topics else '',
        'camera_info topic': topics.camera_info if topics else '',
        'image reliability': _reliability(camera),
        'received rate (Hz)': f'{camera.received_rate.hertz(now_ns):.1f}',
        'published rate (Hz)': f'{camera.published_rate.hertz(now_ns):.1f}',
        _RECEIVED: str(counts.received),
        _PUBLISHED: str(counts.published),
        **{f'{_DROPPED}{reason}': str(n) for reason, n in sorted(counts.dropped.items())},
        'images lost in transport': str(camera.lost_in_transport),
    }
    durations = camera.durations.percentiles()
    for stage in (*STAGES, 'latency'):
        if stage in durations:
            p50, p95, p99 = durations[stage]
            values[f'{stage} p50/p95/p99 (ms)'] = f'{p50:.2f} / {p95:.2f} / {p99:.2f}'
    if camera.incompatible_publishers:
        values['incompatible publishers'] = '; '.join(camera.incompatible_publishers)
        level = max(level, DiagnosticStatus.WARN)
    for topic, nodes in incompatible_readers.items():
        values[f'incompatible subscribers of {topic}'] = '; '.join(nodes)
        level = max(level, DiagnosticStatus.WARN)
    return _status(f'{node_name}: {camera.label}', level, f'{title}: {sentence}', values)


def camera_counts(status: DiagnosticStatus) -> FrameCounts | None:
    """Return what a status made by `camera_status` says about frames; None for other statuses."""
    values = {entry.key: entry.value for entry in status.values}
    if _RECEIVED not in values:
        return None
    return FrameCounts(
        received=int(values[_RECEIVED]),
        published=int(values[_PUBLISHED]),
        dropped={
            key.removeprefix(_DROPPED): int(value)
            for key, value in values.items()
            if key.startswith(_DROPPED)
        },
    )


def engine_status(
    node_name: str, state: str, identity: Identity, load: ProcessLoad, remark: str = ''
) -> DiagnosticStatus:
    """Describe the node itself.

    Args:
        node_name: for the status' name.
        state: of the lifecycle.
        identity: of bundle and engine.
        load: of the process.
        remark: of the engine, when it survived an error or another one took over: a warning.
    """
    values = {
        'lifecycle state': state,
        'bundle': identity.bundle,
        'bundle sha256': identity.bundle_sha256,
        'bundle licence remark': identity.licence_remark,
        'engine': identity.engine,
        'device': identity.device,
        'precision': identity.precision,
        'CPU (cores)': f'{load.cpu_cores():.2f}',
        'memory (MiB)': f'{load.memory_mib():.0f}',
    }
    if identity.engine:
        message = f'{state}: {identity.bundle} on {identity.engine} ({identity.precision})'
    else:
        message = f'{state}: no bundle is loaded'
    level = DiagnosticStatus.OK
    if remark:
        level, message = DiagnosticStatus.WARN, f'{message}; {remark}'
    return _status(f'{node_name}: engine', level, message, values)


def _reliability(camera: Camera) -> str:
    profile = camera.image_qos
    return profile.reliability.name.lower() if profile else ''


def _status(name: str, level: bytes, message: str, values: Mapping[str, str]) -> DiagnosticStatus:
    return DiagnosticStatus(
        name=name,
        level=level,
        message=message,
        hardware_id='',
        values=[KeyValue(key=key, value=value) for key, value in values.items()],
    )
