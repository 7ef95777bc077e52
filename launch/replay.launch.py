"""Play a recording through the perception node, with RViz beside it.

ros2 launch mtl_perception replay.launch.py bag:=/path/to/recording image:=/camera/image
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from launch import LaunchDescription
from launch.actions import (
    EmitEvent,
    ExecuteProcess,
    IncludeLaunchDescription,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.substitutions import ExecutableInPackage

from mtl_perception.ros.launching import describe, is_true

ARGUMENTS = {
    'bag': (None, 'Recording (rosbag2) or folder of pictures.'),
    'image': ('/camera/image', 'Image topic of the recording; folders play to /camera/image.'),
    'transport': ('compressed', 'raw or compressed, as the recording has it; folders play both.'),
    'rate': ('1.0', '2 plays twice as fast.'),
    'loop': ('true', 'Start again at the end; false ends everything there.'),
    'bundle': ('', 'Model bundle; empty: as in the parameter file.'),
    'engine': ('', 'Inference engine; empty: as in the parameter file.'),
    'rviz': ('true', 'Start RViz with config/perception.rviz.'),
}


def start(given: Mapping[str, str]) -> list[LaunchDescriptionEntity]:
    """Return player, node and RViz for the arguments given."""
    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(Path(__file__).parent / 'perception.launch.py')),
        launch_arguments={
            name: given[name] for name in ('image', 'transport', 'bundle', 'engine', 'rviz')
        }.items(),
    )
    # The node has to be there before the first frame; loading it takes some seconds.
    arguments = [given['bag'], '--rate', given['rate'], '--wait', '60']
    if given['transport']:
        arguments += ['--transport', given['transport']]
    if is_true(given['loop']):
        arguments.append('--loop')
    # Not a Node action, which would add ROS arguments: the player is an ordinary program.
    player = ExecuteProcess(
        cmd=[ExecutableInPackage('play', 'mtl_perception'), *arguments], output='screen'
    )
    end = RegisterEventHandler(
        OnProcessExit(target_action=player, on_exit=[EmitEvent(event=Shutdown())])
    )
    return [node, player, end]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and start everything."""
    return describe(ARGUMENTS, start)
