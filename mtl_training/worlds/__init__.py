"""Procedural furnished rooms in MuJoCo with exact ground truth.

A `World` is one flat, the same for the same seed. It has a MuJoCo model (`world.model`, and
`world.spec` for adding a robot), maps of its free space, and a camera:

    world = World(seed=5_000_123, kind='living_room')
    clearance = world.clearance(low_m=0.03, high_m=0.6)   # metres to the nearest obstacle
    i, j = world.cell(x, y)                               # cell of a place on the floor
    pose = camera_pose(x, y, z=0.5, yaw=0.3, pitch=-0.2)  # optical frame to world
    view = world.render(pose, intrinsics)                 # radiance, label, depth, normal
    rgb = Sensor().develop(view.radiance, np.random.default_rng(0))
    world.close()

`render(..., color=False)` gives label, depth and normals alone and is about six times faster.
Poses turn the optical frame (x right, y down, z forward) into the world's (z up, floor at 0).
Importing this package needs no OpenGL; the first `render` does.
"""

from mtl_training.worlds.camera import NYU, Sensor, camera_pose, sample_pose
from mtl_training.worlds.raster import RenderingUnavailableError
from mtl_training.worlds.world import CELL_M, View, World

__all__ = [
    'CELL_M',
    'NYU',
    'RenderingUnavailableError',
    'Sensor',
    'View',
    'World',
    'camera_pose',
    'sample_pose',
]
