"""Start the perception node for one camera, and RViz on request.

ros2 launch mtl_perception perception.launch.py image:=/camera/color/image_raw rviz:=true
"""

from __future__ import annotations

from collections.abc import Mapping

from launch import LaunchDescription
from launch.launch_description_entity import LaunchDescriptionEntity

from mtl_perception.ros.launching import NODE, describe, is_true, perception_node, rviz

ARGUMENTS = {
    'image': ('/camera/image', 'Image topic; with transport:=compressed without /compressed.'),
    'camera_info': ('', 'Calibration topic; empty: camera_info beside the image topic.'),
    **NODE,
    'rviz': ('false', 'Start RViz with config/perception.rviz.'),
}


def start(given: Mapping[str, str]) -> list[LaunchDescriptionEntity]:
    """Return the processes for the arguments given."""
    remappings = [('image', given['image'])]
    if given['camera_info']:
        remappings.append(('camera_info', given['camera_info']))
    processes: list[LaunchDescriptionEntity] = [perception_node(given, remappings)]
    if is_true(given['rviz']):
        processes.append(rviz(given))
    return processes


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and start the processes."""
    return describe(ARGUMENTS, start)
