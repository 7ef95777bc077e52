"""Monocular segmentation, depth and surface normals for indoor robots: the robot side."""

import pkgutil

# The ROS messages are generated into `mtl_perception.msg` at the installation prefix, apart from
# this source folder; both are one package.
__path__ = pkgutil.extend_path(__path__, __name__)

__version__ = '0.1.0'
