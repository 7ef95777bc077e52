"""Start one perception node for several cameras; they share one engine.

    ros2 launch mtl_perception cameras.launch.py \
        cameras:=front,rear images:=/front/color/image_raw,/rear/color/image_raw
"""

from __future__ import annotations

from collections.abc import Mapping

from launch import LaunchDescription
from launch.launch_description_entity import LaunchDescriptionEntity

from mtl_perception.ros.launching import NODE, describe, perception_node

ARGUMENTS = {
    'cameras': ('front,rear', 'Names of the cameras, with commas between them.'),
    'images': ('', 'Their image topics in the same order; empty: <name>/image.'),
    'camera_infos': ('', 'Their calibration topics; empty: camera_info beside each image topic.'),
    **NODE,
}


def start(given: Mapping[str, str]) -> list[LaunchDescriptionEntity]:
    """Return the node for the arguments given.

    Raises:
        ValueError: not as many topics as cameras.
    """
    cameras = [name for name in given['cameras'].split(',') if name]
    remappings = []
    for argument, topic in (('images', 'image'), ('camera_infos', 'camera_info')):
        topics = [name for name in given[argument].split(',') if name]
        if topics and len(topics) != len(cameras):
            raise ValueError(
                f'{argument} names {len(topics)} topics but there are {len(cameras)} cameras: '
                'give one for each, or none'
            )
        remappings += [(f'{camera}/{topic}', to) for camera, to in zip(cameras, topics)]  # noqa: B905
    return [perception_node(given, remappings, {'cameras': cameras})]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and start the node."""
    return describe(ARGUMENTS, start)
