"""Points, obstacles, scan and floor of one camera, from its predictions."""

from __future__ import annotations

import array
import time
from collections.abc import Collection, Sequence

import numpy as np
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from sensor_msgs.msg import LaserScan, PointCloud2, PointField
from std_msgs.msg import Header

from mtl_perception.frames import CameraFrame, Prediction
from mtl_perception.geometry.cloud import POINT, thin_by_stride, thin_by_voxel
from mtl_perception.geometry.obstacles import OBSTACLE_POINT, ClassRoles, ObstacleConfig
from mtl_perception.geometry.pipeline import GeometryConfig, Scene, SceneGeometry
from mtl_perception.geometry.scale import ScaleObservation
from mtl_perception.msg import FloorPlane
from mtl_perception.orientation import turn_rotation
from mtl_perception.rectification import Lens
from mtl_perception.ros import qos
from mtl_perception.ros.camera import Camera
from mtl_perception.ros.conversions import to_nanoseconds
from mtl_perception.ros.outputs import Filled, picture
from mtl_perception.ros.parameters import Settings
from mtl_perception.ros.poses import TransformSource, pose_matrix
from mtl_perception.ros.references import DEPTH_IMAGE, ScaleReference

_KINDS = {
    'points': PointCloud2,
    'obstacles': PointCloud2,
    'scan': LaserScan,
    'floor': FloorPlane,
}

# Share of its deviation before any observation below which the scale is told to maps.
_SURE = 0.75

# Topics of others that the scale is applied to.
_SCALED_ELSEWHERE = frozenset({'detections_3d', 'depth/scaled'})

# Cosine between an axis of the picture and the vertical above which the axis is upright.
_STEEP = 0.8
_NEEDED = frozenset({'label', 'confidence', 'depth', 'normal'})

_FIELD_TYPES = {
    np.dtype('f4'): PointField.FLOAT32,
    np.dtype('u1'): PointField.UINT8,
}


class SceneOutputs:
    """Publishers of what is computed from depth; nothing is computed without a subscriber.

    Attributes:
        applied_scale: factor that makes the last frame's depth metric; None where none is applied.
        map_scale: the same, but None also where nothing has told it for long: in a map, two scales
            must not meet.
    """

    def __init__(
        self,
        node: Node,
        camera: Camera,
        prefix: str,
        available: Collection[str],
        class_names: Sequence[str],
        transforms: TransformSource,
        profile: QoSProfile,
    ) -> None:
        """Create the publishers.

        Args:
            node: that publishes.
            camera: whose predictions they carry.
            prefix: of all topics.
            available: outputs of the bundle's graph; without depth there are no topics.
            class_names: of the bundle, where 'floor' and 'ceiling' have a meaning.
            transforms: says where the camera is.
            profile: that is offered.
        """
        self.applied_scale: float | None = None
        self.map_scale: float | None = None
        self._node = node
        self._camera = camera
        self._available = frozenset(available) & _NEEDED
        self._transforms = transforms
        self._roles = ClassRoles.from_names(class_names)
        self._geometry = SceneGeometry(GeometryConfig(roles=self._roles))
        self._configured_for: tuple[object, ...] | None = None
        self._height_told = False
        self._place_problem = ''
        self._publishers: dict[str, Publisher] = {}
        if 'depth' in available:
            for topic, kind in _KINDS.items():
                self._publishers[topic] = node.create_publisher(
                    kind, prefix + topic, profile, event_callbacks=qos.no_publisher_events()
                )
        chosen = camera.settings
        self._reference: ScaleReference | None = None
        # A depth camera's depth is saved with frames, whatever the bundle knows.
        told_by = chosen.scale_reference
        if told_by == DEPTH_IMAGE or ('depth' in available and told_by != 'camera_height'):
            self._reference = ScaleReference(
                node, chosen.scale_reference, chosen.scale_reference_topic, transforms
            )
        self._points = _cloud_message(POINT)
        self._obstacles = _cloud_message(OBSTACLE_POINT)
        self._scan = LaserScan()
        self._floor = FloorPlane()

    def close(self) -> None:
        """Destroy the publishers and the subscription to the reference."""
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)
        self._publishers.clear()
        if self._reference is not None:
            self._reference.close()
            self._reference = None

    def refresh_reference(self) -> None:
        """Follow the publishers of the scale's reference; call it on the executor."""
        if self._reference is not None:
            self._reference.refresh()

    def sensed_depth(
        self, header: Header, picture: tuple[int, int], degrees: int, lens: Lens | None
    ) -> np.ndarray | None:
        """Return the depth camera's own depth of a picture; see `ScaleReference.sensed_depth`."""
        if self._reference is None:
            return None
        return self._reference.sensed_depth(header, picture, degrees, lens)

    @property
    def topics(self) -> list[str]:
        """Return the full names of all topics."""
        return [publisher.topic_name for publisher in self._publishers.values()]

    def wanted(self, enabled: Collection[str]) -> set[str]:
        """Return the topics that someone listens to."""
        return {
            topic
            for topic, publisher in self._publishers.items()
            if topic in enabled and publisher.get_subscription_count() > 0
        }

    def needed(self, wanted: Collection[str], settings: Settings) -> frozenset[str]:
        """Return the network's outputs that these topics need."""
        if any(topic in _KINDS for topic in wanted):
            return self._available
        return self._available if _needs_scale(wanted, settings) else frozenset()

    def fill(
        self,
        header: Header,
        frame: CameraFrame,
        prediction: Prediction,
        degrees: int,
        wanted: Collection[str],
        settings: Settings,
        lens: Lens | None = None,
    ) -> Filled:
        """Compute the wanted topics and write their messages.

        Args:
            header: of the input message.
            frame: the upright picture.
            prediction: of the upright picture; the floor is looked for where it is below.
            degrees: clockwise turn that made the picture upright.
            wanted: topics from `wanted`.
            settings: of the node.
            lens: that the picture was rectified with, before it was turned, if it was.
        """
        self.applied_scale = self.map_scale = None
        topics = {topic for topic in wanted if topic in _KINDS}
        asked = set(topics)
        if _needs_scale(wanted, settings):
            asked.add('floor')  # which says the scale
        elif 'depth/scaled' in wanted:
            self._camera.warn(
                'scaled depth',
                f'{self._camera.label}: no depth/scaled: it needs scale: apply, but scale is '
                f'{settings.scale}',
            )
        if not asked:
            return []
        if prediction.intrinsics is None or prediction.depth is None:
            silent = topics | ({'depth/scaled'} & set(wanted))
            if silent:
                self._camera.warn(
                    'scene',
                    f'{self._camera.label}: no {", ".join(sorted(silent))}: they need a '
                    'calibrated camera: publish camera_info or set focal_length_px',
                )
            return []
        self._configure(settings)
        height, width = prediction.depth.shape
        with_points = 'points' in topics
        in_place = degrees == 0 and settings.points_stride == 1 and settings.points_voxel == 0
        base_from_upright = self._base_from_upright(header.frame_id, settings, degrees)
        self._tell_of_height(base_from_upright, settings)
        self._tell_of_tilt(header.frame_id, base_from_upright)
        scene = self._geometry.update(
            prediction,
            picture(frame, height, width) if with_points else None,
            # Without stamps time passes as the node's own.
            time_s=to_nanoseconds(header.stamp) / 1e9 or time.monotonic(),
            outputs=asked,
            base_from_camera=base_from_upright,
            scale_reference=self._observe(
                header, prediction, settings, base_from_upright, degrees, lens
            ),
            use_height=self._reference is None,
            cloud_out=(
                _cloud_array(self._points, height, width, POINT)
                if with_points and in_place
                else None
            ),
        )
        if scene.scale_applied:
            self.applied_scale = float(scene.scale.scale)
            prior_std = self._geometry.config.scale_filter.prior_std
            if scene.scale.std < _SURE * prior_std * scene.scale.scale:
                self.map_scale = self.applied_scale
            elif 'depth/scaled' in wanted:
                self._camera.warn(
                    'scaled depth',
                    f'{self._camera.label}: no depth/scaled: what tells the scale, the floor or '
                    'the reference, was not seen well for a while',
                )
        elif settings.scale == 'apply' and self._scale_is_told(base_from_upright):
            self._camera.warn(
                'scale off',
                f'{self._camera.label}: scale: apply has no effect yet: what tells the scale, the '
                "floor or the reference, was not seen well enough; depth is the network's own, "
                'and there is no depth/scaled',
            )
        if scene.scale.warning:
            self._camera.warn('scale', f'{self._camera.label}: {scene.scale.warning}')
        # What the geometry sees is upright; what is published is in the camera's own frame.
        camera_from_upright = turn_rotation(-degrees)
        filled: Filled = []
        if 'floor' in topics:
            self._fill_floor(header, scene, camera_from_upright)
            filled.append((self._publishers['floor'], self._floor))
        if scene.scan_refusal:
            reason = self._place_problem or scene.scan_refusal
            self._camera.warn('scan', f'{self._camera.label}: {reason}')
        if scene.scan is not None:
            self._fill_scan(header, scene, settings)
            filled.append((self._publishers['scan'], self._scan))
        if scene.obstacles is not None:
            _turn_vectors(scene.obstacles, ('x', 'y'), degrees)
            _fill_cloud(self._obstacles, scene.obstacles[None])
            self._obstacles.is_dense = True
            self._obstacles.header = header
            filled.append((self._publishers['obstacles'], self._obstacles))
        if scene.cloud is not None:
            if not in_place:
                cloud = thin_by_stride(scene.cloud, settings.points_stride)
                _turn_vectors(cloud, ('x', 'y'), degrees)
                _turn_vectors(cloud, ('normal_x', 'normal_y'), degrees)
                cloud = np.rot90(cloud, degrees // 90)
                if settings.points_voxel > 0:
                    cloud = thin_by_voxel(cloud, settings.points_voxel)[None]
                _fill_cloud(self._points, cloud)
            self._points.is_dense = False
            self._points.header = header
            filled.append((self._publishers['points'], self._points))
        return filled

    def _observe(
        self,
        header: Header,
        prediction: Prediction,
        settings: Settings,
        base_from_upright: np.ndarray | None,
        degrees: int,
        lens: Lens | None,
    ) -> ScaleObservation | None:
        """Return what another sensor says about the scale, where one was chosen."""
        if self._reference is None or settings.scale == 'off':
            return None
        observation = self._reference.observe(
            header, prediction, settings.base_frame, base_from_upright, degrees, lens
        )
        if self._reference.problem:
            self._camera.warn(
                'reference', f'{self._camera.label}: no scale: {self._reference.problem}'
            )
        return observation

    def _configure(self, settings: Settings) -> None:
        """Take changed parameters over without losing the filtered scale and the last floor."""
        camera_height = self._camera.settings.camera_height
        tilt_std = self._camera.settings.camera_tilt_std
        chosen = (
            settings.scale,
            camera_height,
            tilt_std,
            settings.confidence_threshold,
            settings.max_range,
            settings.obstacle_max_height,
        )
        if chosen == self._configured_for:
            return
        self._geometry.config = GeometryConfig(
            roles=self._roles,
            scale=settings.scale,
            camera_height=camera_height or None,
            mount_std_deg=tilt_std,
            min_confidence=settings.confidence_threshold,
            max_depth=settings.max_range,
            obstacles=ObstacleConfig(
                max_range=settings.max_range, max_height=settings.obstacle_max_height
            ),
        )
        self._configured_for = chosen

    def _base_from_upright(
        self, frame_id: str, settings: Settings, degrees: int
    ) -> np.ndarray | None:
        pose = self._camera.settings.camera_pose
        if pose:
            base_from_camera, self._place_problem = pose_matrix(pose), ''
        else:
            base_from_camera, self._place_problem = self._transforms.lookup(
                settings.base_frame, frame_id
            )
        if base_from_camera is None or degrees == 0:
            return base_from_camera
        turn = np.eye(4)
        turn[:3, :3] = turn_rotation(-degrees)
        return base_from_camera @ turn

    def _scale_is_told(self, base_from_upright: np.ndarray | None) -> bool:
        """Tell whether something is there that could tell the scale."""
        known = self._geometry.known_height(base_from_upright)
        return self._reference is not None or known is not None

    def _tell_of_height(self, base_from_upright: np.ndarray | None, settings: Settings) -> None:
        """Say what height the scale follows, or warn that none, or no tilt, is known."""
        camera, base = self._camera, settings.base_frame
        if self._reference is not None:
            return
        if camera.settings.camera_height:
            if base_from_upright is None and settings.scale != 'off':
                camera.warn_once(
                    'mounting',
                    f'{camera.label}: the scale follows its height above the floor, but its tilt '
                    'is unknown, and a floor that is only seen is off by several degrees: set '
                    f'camera_pose, or publish the transform from {base!r}',
                )
            return
        if base_from_upright is None:
            if settings.scale != 'off':
                why = self._place_problem or f'its place in {base!r} is unknown'
                camera.warn(
                    'height',
                    f'{camera.label}: scale: {settings.scale} has no effect, because the height '
                    f'above the floor is unknown: {why}; set camera_height or camera_pose',
                )
            return
        height = float(base_from_upright[2, 3])
        if height <= 0:
            camera.warn(
                'height',
                f'{camera.label}: it is {abs(height):.2f} m below {base!r}, so its height above '
                'the floor is unknown: set base_frame to a frame on the floor (base_footprint), '
                'or camera_height',
            )
        elif settings.scale != 'off' and not self._height_told:
            self._height_told = True
            self._node.get_logger().info(
                f'{camera.label} is {height:.2f} m above {base!r}, which is taken as its height '
                'above the floor; set camera_height where that frame is not on the floor'
            )

    def _tell_of_tilt(self, frame_id: str, base_from_upright: np.ndarray | None) -> None:
        """Warn of a frame that is not optical, or of a picture that is not upright."""
        if base_from_upright is None:
            return
        right, down, ahead = base_from_upright[2, :3]
        if ahead > _STEEP:
            self._camera.warn_once(
                'tilt',
                f'{self._camera.label}: by its place on the robot, {frame_id!r} looks up: '
                'images need an optical frame (z forward, x right, y down; REP 103)',
            )
        elif abs(right) > _STEEP or down > _STEEP:
            self._camera.warn_once(
                'tilt',
                f'{self._camera.label}: by its place on the robot, its picture is not upright: '
                'set rotate to the clockwise turn that makes it so',
            )

    def _fill_floor(self, header: Header, scene: Scene, camera_from_upright: np.ndarray) -> None:
        message, estimate = self._floor, scene.floor
        plane = estimate.plane
        message.header = header
        message.found = plane is not None
        message.reason = estimate.reason
        nan = float('nan')
        if plane is None:
            message.normal.x = message.normal.y = message.normal.z = message.distance = nan
            message.covariance = np.full(16, nan)
            message.inliers, message.inlier_fraction, message.confidence = 0, 0.0, 0.0
        else:
            normal = camera_from_upright @ np.asarray(plane.normal)
            message.normal.x, message.normal.y, message.normal.z = normal.tolist()
            message.distance = float(plane.height)
            turn = np.eye(4)
            turn[:3, :3] = camera_from_upright
            message.covariance = (turn @ plane.covariance @ turn.T).ravel()
            message.inliers = int(plane.pixels)
            message.inlier_fraction = float(plane.inlier_fraction)
            message.confidence = float(plane.confidence)
        message.scale, message.scale_std = float(scene.scale.scale), float(scene.scale.std)
        message.scale_applied = bool(scene.scale_applied)

    def _fill_scan(self, header: Header, scene: Scene, settings: Settings) -> None:
        assert scene.scan is not None
        message, config = self._scan, scene.scan.config
        message.header.stamp = header.stamp
        message.header.frame_id = settings.base_frame
        message.angle_min, message.angle_max = config.angle_min, config.angle_max
        message.angle_increment = config.angle_increment
        message.range_min, message.range_max = config.range_min, config.range_max
        message.ranges = array.array('f', np.ascontiguousarray(scene.scan.ranges, np.float32))


def _needs_scale(wanted: Collection[str], settings: Settings) -> bool:
    """Tell whether the scale is to be applied to what others publish."""
    return settings.scale == 'apply' and not _SCALED_ELSEWHERE.isdisjoint(wanted)


def _cloud_message(dtype: np.dtype) -> PointCloud2:
    """Return a cloud without points whose fields are those of a structured dtype."""
    assert dtype.fields is not None and dtype.names is not None
    message = PointCloud2(point_step=dtype.itemsize, is_bigendian=False)
    message.fields = [
        PointField(
            name=name,
            offset=dtype.fields[name][1],
            datatype=_FIELD_TYPES[dtype.fields[name][0]],
            count=1,
        )
        for name in dtype.names
    ]
    return message


def _cloud_array(message: PointCloud2, height: int, width: int, dtype: np.dtype) -> np.ndarray:
    """Lay records [H, W] over the bytes of a kept message; new ones only when the size changes."""
    message.height, message.width = height, width
    message.row_step = width * message.point_step
    if len(message.data) != height * message.row_step:
        message.data = array.array('B', bytes(height * message.row_step))
    return np.frombuffer(message.data, np.uint8).view(dtype).reshape(height, width)


def _fill_cloud(message: PointCloud2, records: np.ndarray) -> None:
    """Copy records [H, W] into a kept message."""
    target = _cloud_array(message, *records.shape, records.dtype)
    # As bytes: numpy would copy records field by field.
    np.copyto(target.view(np.uint8), np.ascontiguousarray(records).view(np.uint8))


def _turn_vectors(records: np.ndarray, fields: tuple[str, str], degrees: int) -> None:
    """Turn vectors of the upright picture back into the frame of the camera itself."""
    if degrees == 0:
        return
    x, y = (records[field].copy() for field in fields)
    rotation = turn_rotation(-degrees)
    records[fields[0]] = rotation[0, 0] * x + rotation[0, 1] * y
    records[fields[1]] = rotation[1, 0] * x + rotation[1, 1] * y
