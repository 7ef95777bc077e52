"""Play a recording through the perception node, with RViz beside it.

ros2 launch mtl_perception replay.launch.py bag:=/path/to/recording
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

from mtl_perception.ros.launching import NODE, describe, is_true
from mtl_perception.ros.sources import camera_topic, open_source

ARGUMENTS = {
    'bag': (None, 'Recording (rosbag2) or folder of pictures.'),
    'image': ('', "Image topic of the recording, without /compressed; empty: its first camera's."),
    'transport': ('', 'raw or compressed; empty: as recorded. Folders of pictures play either.'),
    'rate': ('1.0', '2 plays twice as fast.'),
    'loop': ('true', 'Start again at the end; false ends everything there.'),
    'bundle': ('', 'Model bundle; empty: as in the parameter file.'),
    'engine': ('', 'Inference engine; empty: as in the parameter file.'),
    'params_file': NODE['params_file'],
    'namespace': NODE['namespace'],
    'rviz': ('true', 'Start RViz with config/perception.rviz.'),
}

PASSED_ON = ('bundle', 'engine', 'params_file', 'namespace', 'rviz')


def start(given: Mapping[str, str]) -> list[LaunchDescriptionEntity]:
    """Return player, node and RViz for the arguments given.

    Raises:
        SourceError: the recording can't be read or has no such camera.
    """
    bag, transport = Path(given['bag']), given['transport']
    # Folders play as they are told to, recordings as they are.
    source = open_source(bag, transport='compressed' if transport == 'compressed' else 'raw')
    image, transport = camera_topic(source, given['image'], transport)
    passed_on = {name: given[name] for name in PASSED_ON}
    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(Path(__file__).parent / 'perception.launch.py')),
        launch_arguments=(passed_on | {'image': image, 'transport': transport}).items(),
    )
    # The node has to be there before the first frame; loading it takes some seconds.
    arguments = [str(bag), '--rate', given['rate'], '--wait', '60', '--transport', transport]
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
