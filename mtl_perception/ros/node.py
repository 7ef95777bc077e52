"""The managed node: newest frames in, predictions out, nothing silent."""

from __future__ import annotations

import difflib
import functools
import gc
import logging
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.context import Context
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.subscription import Subscription
from rclpy.task import Future
from std_srvs.srv import SetBool

from mtl_perception.allocator import keep_freed_memory
from mtl_perception.bundle import BundleError, ModelBundle
from mtl_perception.engines import EngineError, open_engine
from mtl_perception.engines._interface import KEPT_PLANS
from mtl_perception.perceiver import Perceiver
from mtl_perception.ros import environment, qos
from mtl_perception.ros.camera import Camera, MaskError
from mtl_perception.ros.diagnostics import Identity, camera_status, engine_status
from mtl_perception.ros.labels import LabelGroupsError, LabelSpace
from mtl_perception.ros.parameters import (
    CONFIGURE,
    CameraSettings,
    ParameterError,
    Settings,
    declarations,
    parse_size,
    read,
)
from mtl_perception.ros.poses import TransformSource
from mtl_perception.ros.processor import Channel, Processor, SaveRequest
from mtl_perception.ros.receiver import Receiver
from mtl_perception.ros.saving import SavingError, target_folder
from mtl_perception.ros.statistics import ProcessLoad
from mtl_perception.ros.webcam import CameraError, Webcam
from mtl_perception.ros.worker import Worker
from mtl_perception.srv import SaveFrame

_DIAGNOSTICS_PERIOD_S = 1.0
_GRAPH_PERIOD_S = 0.2
_SAVE_TIMEOUT_S = 5.0
# What engines and bundles log goes to the node's log, from INFO on.
_LIBRARY_LOG = logging.getLogger('mtl_perception')

_Transition = Callable[['PerceptionNode', LifecycleState], TransitionCallbackReturn]


def _transition(method: _Transition) -> _Transition:
    """Log an unexpected error of a transition, which rclpy turns into ERROR without a word."""

    @functools.wraps(method)
    def guarded(self: PerceptionNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return method(self, state)
        except Exception as error:
            self.get_logger().error(f'{method.__name__}: {type(error).__name__}: {error}')
            self.get_logger().debug(traceback.format_exc())
            return TransitionCallbackReturn.ERROR

    return guarded


class PerceptionNode(LifecycleNode):
    """Perceives rooms in the images of one or several cameras.

    One thread receives, one perceives, one sends; the executor is free for everything else. The
    node's topics, parameters and services are described in docs/integration.md.
    """

    def __init__(
        self,
        *,
        parameters: Mapping[str, Any] | None = None,
        namespace: str | None = None,
        context: Context | None = None,
        cli_args: Sequence[str] | None = None,
        use_global_arguments: bool = True,
    ) -> None:
        """Declare parameters and services; nothing is loaded before `configure`.

        Args:
            parameters: values that go before the defaults, by full name.
            namespace: of the node.
            context: of ROS; the default one when None.
            cli_args: ROS arguments for this node alone, e.g. remappings.
            use_global_arguments: whether the process' ROS arguments count, too.

        Raises:
            ParameterError: a value that is refused.
        """
        self._cameras: list[Camera] = []
        self._channels: list[Channel] = []
        self._worker: Worker | None = None
        self._processor: Processor | None = None
        self._perceiver: Perceiver | None = None
        self._labels = LabelSpace.of_bundle([])
        self._identity = Identity()
        self._state = 'unconfigured'
        self._incompatible_readers: dict[str, list[str]] = {}
        self._transforms = TransformSource(self)
        # Parameters of single cameras that nobody has set: they follow those for all cameras.
        self._inherited: set[str] = set()
        self._is_inheriting = False
        super().__init__(
            'perception',
            namespace=namespace,
            context=context,
            cli_args=cli_args,
            use_global_arguments=use_global_arguments,
            parameter_overrides=[
                Parameter(name, value=value) for name, value in (parameters or {}).items()
            ],
        )
        try:
            self._settings, camera_settings = self._declare_parameters()
        except (ParameterError, ParameterException):
            super().destroy_node()
            raise
        self._process_load = ProcessLoad()
        self._cameras = [Camera(self, name, self._wake) for name in camera_settings]
        for camera in self._cameras:
            camera.update(self._settings, camera_settings[camera.name])
        self._receiver = Receiver(self, self._watched, self._receive)
        self._log_bridge = _LogBridge(self.get_logger())
        _LIBRARY_LOG.addHandler(self._log_bridge)
        _LIBRARY_LOG.setLevel(logging.INFO)
        self.add_on_set_parameters_callback(self._on_parameters)
        self.create_service(SetBool, '~/set_enabled', self._on_set_enabled)
        # Of its own, for it waits for a frame, which the default group would hold back.
        self._saving = ReentrantCallbackGroup()
        self.create_service(
            SaveFrame, '~/save_frame', self._on_save_frame, callback_group=self._saving
        )
        self._diagnostics = self.create_publisher(
            DiagnosticArray, '/diagnostics', 10, event_callbacks=qos.no_publisher_events()
        )
        # Simulated time may stand still, which is when diagnostics matter.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(_DIAGNOSTICS_PERIOD_S, self._publish_diagnostics, clock=steady)
        self.create_timer(_GRAPH_PERIOD_S, self._follow_graph, clock=steady)

    @property
    def cameras(self) -> list[Camera]:
        """Return the cameras."""
        return self._cameras

    @property
    def state(self) -> str:
        """Return the lifecycle state: unconfigured, inactive, active or finalized."""
        return self._state

    @property
    def identity(self) -> Identity:
        """Return what computes the predictions; empty while unconfigured."""
        return self._identity

    @property
    def autostart(self) -> bool:
        """Tell whether the node is to configure and activate itself."""
        return self._settings.autostart

    def start(self) -> bool:
        """Configure and activate; tell whether both succeeded (the log says why not)."""
        return (
            self.trigger_configure() == TransitionCallbackReturn.SUCCESS
            and self.trigger_activate() == TransitionCallbackReturn.SUCCESS
        )

    def destroy_node(self) -> None:
        """Stop the worker, free the engine and leave the graph."""
        self._stop()
        self._release()
        _LIBRARY_LOG.removeHandler(self._log_bridge)
        super().destroy_node()

    # Lifecycle

    @_transition
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the bundle, open and warm the engine, create publishers.

        FAILURE leaves the node unconfigured: correct the parameters and configure again.
        """
        try:
            self._load_bundle()
        except (BundleError, EngineError, LabelGroupsError, MaskError, ParameterError) as error:
            self.get_logger().error(str(error))
            self._release()
            return TransitionCallbackReturn.FAILURE
        self._state = 'inactive'
        identity = self._identity
        self.get_logger().info(
            f'{identity.bundle} on {identity.engine} ({identity.device}, {identity.precision})'
        )
        return TransitionCallbackReturn.SUCCESS

    @_transition
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and start the worker."""
        assert self._perceiver is not None
        self._processor = Processor(
            self, self._perceiver, self._channels, lambda: self._settings, lambda: self._labels
        )
        self._worker = Worker(
            self._cameras, self._processor.process, lambda: self._settings.batch_deadline
        )
        self._worker.start()
        for camera in self._cameras:
            camera.open(self._settings)
        self._receiver.start()
        self._publish_label_info()
        self._state = 'active'
        topics = [camera.topics for camera in self._cameras]
        self.get_logger().info('listening to ' + ', '.join(t.image for t in topics if t))
        return super().on_activate(state)

    @_transition
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and stop the worker; bundle and engine stay.

        A last /diagnostics tells what became of every frame.
        """
        self._stop()
        self._publish_diagnostics()
        self._state = 'inactive'
        return super().on_deactivate(state)

    @_transition
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the engine and remove the publishers."""
        self._release()
        self._state = 'unconfigured'
        return TransitionCallbackReturn.SUCCESS

    @_transition
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and free everything for good."""
        self._stop()
        self._release()
        self._state = 'finalized'
        return TransitionCallbackReturn.SUCCESS

    @_transition
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything, so that the node can be configured again."""
        self._stop()
        self._release()
        self._state = 'unconfigured'
        return TransitionCallbackReturn.SUCCESS

    def _load_bundle(self) -> None:
        settings = self._settings
        for camera in self._cameras:
            camera.load_mask()
        bundle = ModelBundle.load(settings.bundle)
        self._labels = self._label_space(settings, bundle)
        size = parse_size(settings.input_size)
        engine = open_engine(
            bundle,
            settings.engine,
            precision=settings.precision,
            threads=settings.threads,
            size=None if isinstance(size, str) else size,
            batch=len(self._cameras),
            gpu_device=settings.gpu_device,
        )
        self._perceiver = Perceiver(
            engine, bundle, input_size=size, output_size=settings.output_size
        )
        warm_size = bundle.input_size if isinstance(size, str) else size
        for batch in range(1, min(len(self._cameras), KEPT_PLANS) + 1):
            engine.infer(engine.input_buffer(batch, warm_size))
        self._identity = Identity(
            bundle=bundle.name,
            bundle_sha256=bundle.model_sha256,
            licence_remark=bundle.manifest.training.licence_remark,
            engine=engine.name,
            device=engine.device,
            precision=engine.precision,
        )
        profile = qos.profile(
            qos.RELIABILITIES[settings.output_reliability], settings.output_depth
        )
        # One by one: where one fails, those before it are still to be closed.
        for camera in self._cameras:
            self._channels.append(Channel(self, camera, bundle, self._transforms, profile))

    @staticmethod
    def _label_space(settings: Settings, bundle: ModelBundle) -> LabelSpace:
        if settings.label_groups:
            return LabelSpace.load(settings.label_groups, bundle.classes)
        return LabelSpace.of_bundle(bundle.classes)

    def _stop(self) -> None:
        self._receiver.stop()
        # Before the cameras forget their topics, which the frame at work may ask for.
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
        for camera in self._cameras:
            camera.close()
        if self._processor is not None:
            self._processor.close()
            self._processor = None

    def _release(self) -> None:
        for channel in self._channels:
            channel.close()
        self._channels = []
        self._transforms.close()
        if self._perceiver is not None:
            self._perceiver.close()
            self._perceiver = None
        self._identity = Identity()

    # Parameters and services

    def _declare_parameters(self) -> tuple[Settings, dict[str, CameraSettings]]:
        first = next(d for d in declarations([]) if d.name == 'cameras')
        names = self.declare_parameter(first.name, first.default, first.descriptor).value
        cameras = list(read({'cameras': names}, [])[0].cameras)
        values: dict[str, Any] = {'cameras': names}
        self._declared = {d.name: d for d in declarations(cameras)}
        for declared in self._declared.values():
            if declared.name == first.name:
                continue
            default = declared.default
            if declared.camera and declared.name not in self._parameter_overrides:
                self._inherited.add(declared.name)
                default = values[declared.field.name]
            values[declared.name] = self.declare_parameter(
                declared.name, default, declared.descriptor
            ).value
        self._warn_of_unknown_parameters()
        return read(values, cameras)

    def _warn_of_unknown_parameters(self) -> None:
        """Name values that were given to no parameter: a slip would pass as the default."""
        known = [*self._declared, 'use_sim_time']
        for name in self._parameter_overrides:
            if self.has_parameter(name) or name.startswith('qos_overrides.'):
                continue
            alike = difflib.get_close_matches(name, known, 1)
            hint = f': is {alike[0]} meant?' if alike else '; see config/perception.yaml'
            self.get_logger().warning(f'there is no parameter {name}, its value is ignored{hint}')

    def _on_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        """Check changes as a whole and take them over, or say why not."""
        ours = [change for change in changes if change.name in self._declared]
        if not ours:
            return SetParametersResult(successful=True)
        cameras = list(self._settings.cameras)
        values = {name: self.get_parameter(name).value for name in self._declared}
        values.update((change.name, change.value) for change in ours)
        for change in ours:
            if self._declared[change.name].when == CONFIGURE and self._state != 'unconfigured':
                return SetParametersResult(
                    successful=False,
                    reason=f'{change.name} can change only while the node is unconfigured, it is '
                    f'{self._state}: deactivate and clean it up first',
                )
        inherited = set(self._inherited)
        if not self._is_inheriting:
            inherited -= {change.name for change in ours}
        for name in inherited:
            values[name] = values[self._declared[name].field.name]
        try:
            settings, camera_settings = read(values, cameras)
            if self._perceiver is not None:
                self._labels = self._label_space(settings, self._perceiver.bundle)
        except (ParameterError, LabelGroupsError) as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._inherited = inherited
        self._settings = settings
        for camera in self._cameras:
            camera.update(settings, camera_settings[camera.name])
        self._publish_label_info()
        return SetParametersResult(successful=True)

    def _show_inherited(self) -> None:
        """Let the parameters of single cameras show what they take from those for all cameras."""
        stale = [
            Parameter(name, value=self.get_parameter(common).value)
            for name in sorted(self._inherited)
            if self.get_parameter(name).value
            != self.get_parameter(common := self._declared[name].field.name).value
        ]
        if stale:
            self._is_inheriting = True
            self.set_parameters(stale)
            self._is_inheriting = False

    def _publish_label_info(self) -> None:
        for channel in self._channels:
            if self._labels.classes:
                channel.label_info.publish(
                    self._labels.classes, self._settings.confidence_threshold
                )
            channel.things.publish_label_info(self._settings.detection_threshold)

    def _on_set_enabled(
        self, request: SetBool.Request, response: SetBool.Response
    ) -> SetBool.Response:
        for camera in self._cameras:
            camera.enabled = request.data
        response.success = True
        response.message = 'perception is on' if request.data else 'perception is off'
        return response

    async def _on_save_frame(
        self, request: SaveFrame.Request, response: SaveFrame.Response
    ) -> SaveFrame.Response:
        try:
            path = await self._save_next_frame(request.camera, request.name)
        except SavingError as error:
            response.message = str(error)
            return response
        response.success, response.path = True, str(path)
        response.message = f'saved {path} and its predictions beside it'
        return response

    async def _save_next_frame(self, camera: str, name: str) -> Path:
        channel = next((c for c in self._channels if c.camera.name == camera), None)
        if not camera and len(self._channels) == 1:
            channel = self._channels[0]
        if self._state != 'active':
            raise SavingError(f'the node is {self._state}: activate it first')
        if channel is None:
            names = ', '.join(repr(c.camera.name) for c in self._channels)
            raise SavingError(f'there is no camera {camera!r}: give one of {names}')
        if channel.save_request is not None:
            raise SavingError('another frame of this camera is being saved: try again')
        saved: Future = Future(executor=self.executor)
        folder = target_folder(self._settings.save_folder, name)
        channel.save_request = asked = SaveRequest(folder, saved.set_result)

        def give_up() -> None:
            # Else a frame is being written, and answers itself.
            if channel.save_request is asked:
                channel.save_request = None
                saved.set_result(SavingError('no frame came that far: see /diagnostics'))

        timer = self.create_timer(
            _SAVE_TIMEOUT_S,
            give_up,
            callback_group=self._saving,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        try:
            result = await saved
        finally:
            self.destroy_timer(timer)
        if isinstance(result, SavingError):
            raise result
        return result

    # The receiver's thread

    def _watched(self) -> list[Subscription]:
        return [one for camera in self._cameras for one in camera.subscriptions]

    def _receive(self, subscription: Subscription) -> None:
        for camera in self._cameras:
            camera.receive(subscription)

    # The executor's timers

    def _wake(self) -> None:
        worker = self._worker
        if worker is not None:
            worker.wake()

    def _follow_graph(self) -> None:
        changed = [camera.refresh_subscriptions() for camera in self._cameras]
        if any(changed):
            self._receiver.refresh()
        if self._processor is not None:
            self._processor.expect()
        for channel in self._channels:
            channel.scenes.refresh_reference()
        self._transforms.listen()
        self._show_inherited()

    def _publish_diagnostics(self) -> None:
        now_ns = time.monotonic_ns()
        name = self.get_name()
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        identity, remark = self._identity, ''
        if self._perceiver is not None:  # whose engine may have given way to another
            engine = self._perceiver.engine
            identity = replace(
                identity, engine=engine.name, device=engine.device, precision=engine.precision
            )
            remark = engine.remark
        message.status.append(
            engine_status(name, self._state, identity, self._process_load, remark)
        )
        if self._state == 'active':
            for channel in self._channels:
                readers = self._find_incompatible_readers(channel)
                message.status.append(camera_status(name, channel.camera, now_ns, readers))
        self._diagnostics.publish(message)

    def _find_incompatible_readers(self, channel: Channel) -> dict[str, list[str]]:
        settings = self._settings
        offered = qos.profile(
            qos.RELIABILITIES[settings.output_reliability], settings.output_depth
        )
        found = {}
        for topic in channel.topics:
            nodes = qos.incompatible_subscribers(self, topic, offered)
            if nodes and self._incompatible_readers.get(topic) != nodes:
                self.get_logger().warning(
                    f'{self.get_fully_qualified_name()} cannot serve {topic} to '
                    f'{"; ".join(nodes)}: set output_reliability or change that subscription'
                )
            self._incompatible_readers[topic] = nodes
            if nodes:
                found[topic] = nodes
        return found


class _LogBridge(logging.Handler):
    """Passes what the engines log on to the node's log."""

    def __init__(self, logger: RcutilsLogger) -> None:
        super().__init__(logging.INFO)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record with the severity nearest to its own."""
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        else:
            self._logger.info(text)


@dataclass(frozen=True)
class WebcamOptions:
    """A camera of this machine for a first try.

    Attributes:
        device: its number ('0' is /dev/video0), a video file or a URL.
        topic: to publish its pictures on.
    """

    device: str
    topic: str = '/camera/image'

    def open(self, node: PerceptionNode) -> Webcam:
        """Open the camera and publish it with `node`.

        Raises:
            CameraError: it does not exist or cannot be opened.
        """
        return Webcam(node, self.device, topic=self.topic)


def main(args: Sequence[str] | None = None, webcam: WebcamOptions | None = None) -> int:
    """Run the node until it is interrupted.

    Args:
        args: ROS arguments; those of the process when None.
        webcam: publish this camera, too, and listen to it; a video file ends the node at its end.

    Returns:
        The process' exit status: 0 after an orderly end, 1 when the node could not start.
    """
    keep_freed_memory()
    environment.choose_fastdds_profile()
    rclpy.init(args=None if args is None else ['mtl_perception', *args])
    executor = SingleThreadedExecutor()
    node: PerceptionNode | None = None
    camera: Webcam | None = None
    try:
        remap = ['--ros-args', '-r', f'image:={webcam.topic}'] if webcam else None
        node = PerceptionNode(cli_args=remap)
        executor.add_node(node)
        if webcam is not None:
            camera = webcam.open(node)
        if node.autostart and not node.start():
            return 1 if rclpy.ok() else 0  # interrupted while it started
        # What was loaded stays: the collector need not look at it again during a frame.
        gc.collect()
        gc.freeze()
        if camera is None:
            executor.spin()
        else:
            camera.start()
            while camera.is_live:
                executor.spin_once(timeout_sec=_DIAGNOSTICS_PERIOD_S)
        return 0
    except (ParameterError, ParameterException, CameraError) as error:
        print(f'perception: {error}', file=sys.stderr)
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        return 0
    finally:
        # A second Ctrl-C must not break off the orderly end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if camera is not None:
            camera.close()
        if node is not None:
            executor.remove_node(node)
            node.destroy_node()
        rclpy.try_shutdown()


if __name__ == '__main__':
    sys.exit(main())
