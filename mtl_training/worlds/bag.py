"""Writes a drive through a world as a rosbag2 recording with ground truth."""

from __future__ import annotations

import math
import shutil
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from mtl_perception.frames import Intrinsics
from mtl_training.worlds.camera import Sensor
from mtl_training.worlds.generate import encode_depth, encode_normals
from mtl_training.worlds.recipes import BagRecipe, RecipeError
from mtl_training.worlds.trajectory import Drive, plan_drive
from mtl_training.worlds.world import World

OPTICAL_FRAME, BASE_FRAME, WORLD_FRAME = 'camera_optical_frame', 'base_link', 'map'
START_NS = 1_760_000_000_000_000_000
TOPICS = {
    '/camera/image/compressed': 'sensor_msgs/msg/CompressedImage',
    '/camera/camera_info': 'sensor_msgs/msg/CameraInfo',
    '/ground_truth/label/compressed': 'sensor_msgs/msg/CompressedImage',
    '/ground_truth/depth/compressedDepth': 'sensor_msgs/msg/CompressedImage',
    '/ground_truth/normals/compressed': 'sensor_msgs/msg/CompressedImage',
    '/tf': 'tf2_msgs/msg/TFMessage',
}
Progress = Callable[[Iterable[int], int, str], Iterable[int]]


def quaternion(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """Return x, y, z, w of a rotation matrix."""
    import mujoco

    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, np.ascontiguousarray(rotation, np.float64).ravel())
    w, x, y, z = quat
    return float(x), float(y), float(z), float(w)


class _Messages:
    """Makes messages of one typestore."""

    def __init__(self) -> None:
        self.store = get_typestore(Stores.ROS2_KILTED)

    def header(self, stamp_ns: int, frame_id: str):
        types = self.store.types
        time = types['builtin_interfaces/msg/Time'](
            sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9
        )
        return types['std_msgs/msg/Header'](stamp=time, frame_id=frame_id)

    def compressed(self, stamp_ns: int, kind: str, data: bytes):
        return self.store.types['sensor_msgs/msg/CompressedImage'](
            header=self.header(stamp_ns, OPTICAL_FRAME),
            format=kind,
            data=np.frombuffer(data, np.uint8),
        )

    def camera_info(self, stamp_ns: int, intrinsics: Intrinsics):
        types = self.store.types
        k = intrinsics.matrix
        return types['sensor_msgs/msg/CameraInfo'](
            header=self.header(stamp_ns, OPTICAL_FRAME),
            height=intrinsics.height,
            width=intrinsics.width,
            distortion_model='plumb_bob',
            d=np.zeros(5),
            k=k.ravel(),
            r=np.eye(3).ravel(),
            p=np.column_stack([k, np.zeros(3)]).ravel(),
            binning_x=0,
            binning_y=0,
            roi=types['sensor_msgs/msg/RegionOfInterest'](
                x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
            ),
        )

    def transforms(self, stamp_ns: int, poses: list[tuple[str, str, np.ndarray]]):
        types = self.store.types
        stamped = []
        for parent, child, pose in poses:
            x, y, z, w = quaternion(pose[:3, :3])
            stamped.append(
                types['geometry_msgs/msg/TransformStamped'](
                    header=self.header(stamp_ns, parent),
                    child_frame_id=child,
                    transform=types['geometry_msgs/msg/Transform'](
                        translation=types['geometry_msgs/msg/Vector3'](*map(float, pose[:3, 3])),
                        rotation=types['geometry_msgs/msg/Quaternion'](x, y, z, w),
                    ),
                )
            )
        return types['tf2_msgs/msg/TFMessage'](transforms=stamped)


def _encode(suffix: str, image: np.ndarray, options: list[int]) -> bytes:
    done, data = cv2.imencode(suffix, np.ascontiguousarray(image), options)
    if not done:
        raise OSError(f'OpenCV cannot write a {image.shape} {image.dtype} picture as {suffix}')
    return data.tobytes()


def write_bag(
    path: Path,
    world: World,
    drive: Drive,
    intrinsics: Intrinsics,
    sensor: Sensor,
    *,
    progress: Progress,
) -> int:
    """Write pictures, camera, ground truth and poses of a drive; return the bytes written.

    The exposure follows the light slowly, as a camera's does.

    Args:
        path: of the bag's folder; one that exists is replaced.
        progress: wraps the frames (iterable, total, description).
    """
    messages = _Messages()
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(world.seed)
    png = [cv2.IMWRITE_PNG_COMPRESSION, 9]
    exposure: float | None = None
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as bag:
        links = {
            topic: bag.add_connection(topic, kind, typestore=messages.store)
            for topic, kind in TOPICS.items()
        }
        for frame in progress(range(len(drive)), len(drive), f'Frames of {path.name}'):
            stamp = START_NS + round(frame * 1e9 / drive.rate_hz)
            pose = drive.pose(frame)
            view = world.render(pose, intrinsics)
            assert view.radiance is not None
            wanted = sensor.measure(view.radiance)
            exposure = wanted if exposure is None else exposure * (wanted / exposure) ** 0.1
            picture = sensor.develop(view.radiance, rng, exposure)
            base = np.eye(4)
            c, s = np.cos(drive.yaw[frame]), np.sin(drive.yaw[frame])
            base[:2, :2] = [[c, -s], [s, c]]
            base[:2, 3] = drive.x[frame], drive.y[frame]
            depth = _encode('.png', encode_depth(view.depth), png)
            # compressed_depth_image_transport's header: format, and two unused floats.
            depth = struct.pack('<iff', 0, 0.0, 0.0) + depth
            jpeg = _encode('.jpg', picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, sensor.quality])
            content = {
                '/camera/image/compressed': messages.compressed(stamp, 'rgb8; jpeg compressed '
                                                                'bgr8', jpeg),
                '/camera/camera_info': messages.camera_info(stamp, intrinsics),
                '/ground_truth/label/compressed': messages.compressed(
                    stamp, 'mono8; png compressed', _encode('.png', view.label, png)
                ),
                '/ground_truth/depth/compressedDepth': messages.compressed(
                    stamp, '16UC1; compressedDepth png', depth
                ),
                '/ground_truth/normals/compressed': messages.compressed(
                    stamp, 'rgb8; png compressed bgr8',
                    _encode('.png', encode_normals(view.normal)[..., ::-1], png),
                ),
                '/tf': messages.transforms(
                    stamp,
                    [
                        (WORLD_FRAME, BASE_FRAME, base),
                        (BASE_FRAME, OPTICAL_FRAME, np.linalg.inv(base) @ pose),
                    ],
                ),
            }  # fmt: skip
            for topic, message in content.items():
                data = messages.store.serialize_cdr(message, TOPICS[topic])
                bag.write(links[topic], stamp, data)
    return sum(file.stat().st_size for file in path.iterdir())


def record(path: Path, recipe: BagRecipe, *, progress: Progress) -> dict[str, int]:
    """Make the world and the drive of a recipe and write the bag.

    Returns:
        Numbers of 'frames' and 'bytes'.

    Raises:
        RecipeError: the world is too cramped for that drive.
    """
    world = World(recipe.seed, recipe.room)
    drive = plan_drive(
        world,
        np.random.default_rng([recipe.seed, recipe.drive]),
        frames=recipe.frames,
        rate_hz=recipe.rate_hz,
        height=recipe.camera_height_m,
        pitch=math.radians(recipe.pitch_deg),
        roam=recipe.roam,
    )
    if drive is None:
        raise RecipeError(
            f'world {recipe.seed} ({recipe.room}) has no smooth way for drive {recipe.drive}: '
            'choose another seed or drive'
        )
    intrinsics = Intrinsics(
        recipe.width,
        recipe.height,
        recipe.focal_length_px,
        recipe.focal_length_px,
        recipe.width / 2 - 0.5,
        recipe.height / 2 - 0.5,
    )
    sensor = Sensor(noise=0.006, blur_px=0.5, contrast=1.1, quality=recipe.quality)
    written = write_bag(path, world, drive, intrinsics, sensor, progress=progress)
    world.close()
    return {'frames': len(drive), 'bytes': written}
