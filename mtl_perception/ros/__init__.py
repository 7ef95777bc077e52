"""Everything that speaks ROS 2; the only folder that imports rclpy or messages."""

from mtl_perception.ros.environment import find_package_prefix

find_package_prefix()
