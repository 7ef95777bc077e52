"""What the launch files share; the only module here that imports ROS's launch system."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from mtl_perception.ros.environment import choose_fastdds_profile
from mtl_perception.shared import shared_folder

Arguments = Mapping[str, tuple[str | None, str]]
"""Default (None: must be given) and description by name."""

NODE: Arguments = {
    'transport': ('', 'raw or compressed; empty: as in the parameter file.'),
    'bundle': ('', 'Model bundle: a folder or a shipped name; empty: as in the parameter file.'),
    'engine': (
        '',
        'auto, tensorrt, tensorrt_rtx, openvino or onnxruntime; empty: as in the parameter file.',
    ),
    'namespace': ('', 'Namespace of the node.'),
    'params_file': ('', 'Parameter file; empty: config/perception.yaml of this package.'),
    'use_sim_time': (
        '',
        'true uses /clock, as with recordings and simulators; empty: as in the parameter file.',
    ),
    'autostart': (
        '',
        'false waits for a lifecycle manager such as that of Nav2; empty: as in the parameter '
        'file.',
    ),
    'log_level': ('info', 'debug, info, warn or error.'),
}
"""Arguments of every launch file that starts the node."""

Start = Callable[[Mapping[str, str]], list[LaunchDescriptionEntity]]


def describe(arguments: Arguments, start: Start) -> LaunchDescription:
    """Declare arguments; what `start` returns for the values given is launched."""

    def run(context: LaunchContext) -> list[LaunchDescriptionEntity]:
        return start({name: LaunchConfiguration(name).perform(context) for name in arguments})

    declared = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in arguments.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=run)])


def perception_node(
    given: Mapping[str, str],
    remappings: Iterable[tuple[str, str]],
    parameters: Mapping[str, object] | None = None,
) -> Node:
    """Return the node for the arguments `NODE`.

    Args:
        given: value of each argument.
        remappings: pairs of topics.
        parameters: that go before the parameter file.
    """
    # The node does the same for itself; all else that is started beside it needs it as well.
    choose_fastdds_profile()
    own: dict[str, object] = {
        name: given[name] for name in ('transport', 'bundle', 'engine') if given[name]
    }
    own |= {name: is_true(given[name]) for name in ('use_sim_time', 'autostart') if given[name]}
    own |= parameters or {}
    file = given['params_file'] or str(shared_folder('config') / 'perception.yaml')
    return Node(
        package='mtl_perception',
        executable='perception_node',
        namespace=given['namespace'],
        parameters=[file, own] if own else [file],
        remappings=list(remappings),
        arguments=['--ros-args', '--log-level', given['log_level']],
        output='screen',
        emulate_tty=True,
    )


def rviz(given: Mapping[str, str]) -> Node:
    """Return RViz with the package's view, of the node in the namespace given."""
    view = shared_folder('config') / 'perception.rviz'
    topics = sorted(set(re.findall(r'/perception/\S+', view.read_text(encoding='utf-8'))))
    namespace = given['namespace'].strip('/')
    return Node(
        package='rviz2',
        executable='rviz2',
        arguments=['-d', str(view)],
        remappings=[(topic, f'/{namespace}{topic}') for topic in topics] if namespace else [],
        parameters=[{'use_sim_time': is_true(given['use_sim_time'])}],
    )


def is_true(word: str) -> bool:
    """Tell whether an argument says yes."""
    return word.lower() == 'true'
