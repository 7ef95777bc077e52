"""Worlds: same for the same seed, exact ground truth, resumable folders, bags to the contract."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mujoco', reason="the workshop's packages are absent")

from mtl_perception.datasets import PictureFolder, decode_depth, decode_normals
from mtl_perception.frames import Intrinsics
from mtl_training.worlds import NYU, RenderingUnavailableError, Sensor, View, World, camera_pose
from mtl_training.worlds.generate import (
    GenerationError,
    encode_depth,
    encode_normals,
    generate,
    visible_boxes,
)
from mtl_training.worlds.lights import Light
from mtl_training.worlds.parts import CLASSES, LABEL, Material, Part, rotation_z
from mtl_training.worlds.plan import ROOM_TYPES, make_plan
from mtl_training.worlds.probes import Probes
from mtl_training.worlds.raster import Rasteriser, build_spec
from mtl_training.worlds.recipes import PictureRecipe, RecipeError, load_recipe, names
from mtl_training.worlds.shading import Shader
from mtl_training.worlds.textures import TextureSet, read_bilinear
from mtl_training.worlds.trajectory import MAX_SPEED_MPS, MAX_TURN_RADPS, plan_drive

GREY = Material((0.5, 0.5, 0.5))
SMALL = Intrinsics(96, 72, 78.0, 78.0, 48.9, 35.1)


def silent(values: Iterable[int], total: int, what: str) -> Iterable[int]:
    return values


@pytest.fixture(scope='module')
def opengl() -> None:
    parts = [Part('box', (1, 1, 1), (0, 0, 0), GREY, 0)]
    try:
        Rasteriser(build_spec(parts).compile(), parts).close()
    except RenderingUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope='module')
def world(opengl: None) -> Iterator[World]:
    made = World(5_000_003, 'living_room')
    yield made
    made.close()


def render_parts(parts: list[Part], pose: np.ndarray, intrinsics: Intrinsics):
    """Return part, depth [H, W] and normals in the world's frame [H, W, 3]."""
    raster = Rasteriser(build_spec(parts).compile(), parts)
    part, depth = raster.draw(pose, intrinsics)
    rows, columns = np.nonzero(part >= 0)
    hits = raster.hits(part[rows, columns], depth[rows, columns], columns, rows, pose, intrinsics)
    normal = np.zeros((*part.shape, 3))
    normal[rows, columns] = hits.normal
    position = np.full((*part.shape, 3), np.nan)
    position[rows, columns] = hits.position
    raster.close()
    return part, depth, normal, position


def rays(pose: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
    """Return each pixel's ray in the world, scaled to a Z-depth of 1 m, [H, W, 3]."""
    v, u = np.mgrid[: intrinsics.height, : intrinsics.width]
    local = np.stack(
        [
            (u - intrinsics.cx) / intrinsics.fx,
            (v - intrinsics.cy) / intrinsics.fy,
            np.ones(u.shape),
        ],
        -1,
    )
    return local @ pose[:3, :3].T


# Geometry


def test_depth_and_normals_of_floor_and_wall_are_those_of_the_planes(opengl: None):
    parts = [
        Part('box', (6, 6, 0.05), (0, 0, -0.05), GREY, LABEL['floor']),
        Part('box', (0.05, 6, 2), (4.05, 0, 2), GREY, LABEL['wall']),
    ]
    pose = camera_pose(0, 0.3, 1.2, yaw=0.4, pitch=-0.3, roll=0.1)
    part, depth, normal, _ = render_parts(parts, pose, NYU)
    ray = rays(pose, NYU)
    floor, wall = part == 0, part == 1
    assert floor.mean() > 0.3
    assert wall.mean() > 0.2
    np.testing.assert_allclose(depth[floor], (-1.2 / ray[..., 2])[floor], rtol=1e-4)
    np.testing.assert_allclose(depth[wall], (4 / ray[..., 0])[wall], rtol=1e-4)
    np.testing.assert_allclose(normal[floor], [[0, 0, 1]] * floor.sum(), atol=1e-6)
    np.testing.assert_allclose(normal[wall], [[-1, 0, 0]] * wall.sum(), atol=1e-6)


def test_an_off_centre_principal_point_moves_the_picture(opengl: None):
    parts = [Part('box', (0.05, 0.1, 0.1), (2, 0, 1), GREY, 0)]
    pose = camera_pose(0, 0, 1, yaw=0, pitch=0)
    intrinsics = Intrinsics(96, 72, 90.0, 80.0, 30.0, 50.0)
    part, *_ = render_parts(parts, pose, intrinsics)
    rows, columns = np.nonzero(part == 0)
    # The front face spans 0.2 m at 1.95 m around the principal point.
    assert abs(columns.mean() - 30) <= 0.5
    assert abs(rows.mean() - 50) <= 0.5
    assert len(np.unique(columns)) == pytest.approx(90 * 0.2 / 1.95, abs=1)
    assert len(np.unique(rows)) == pytest.approx(80 * 0.2 / 1.95, abs=1)


@pytest.mark.parametrize('kind', ['rounded_box', 'cylinder', 'ellipsoid', 'cone'])
def test_normals_of_round_parts_agree_with_the_surface_seen(opengl: None, kind: str):
    size = {
        'rounded_box': (0.5, 0.3, 0.2),
        'cylinder': (0.4, 0.3, 0.0),
        'ellipsoid': (0.5, 0.4, 0.3),
        'cone': (0.5, 0.3, 0.3),
    }[kind]
    parts = [Part(kind, size, (2, 0, 0.4), GREY, 0, rotation_z(0.5), radius=0.1)]
    pose = camera_pose(0, 0, 1.2, yaw=0, pitch=-0.35)
    intrinsics = Intrinsics(320, 240, 400.0, 400.0, 159.5, 119.5)
    part, _, normal, position = render_parts(parts, pose, intrinsics)
    # Differences of neighbouring points span the surface: an independent normal.
    across, down = np.gradient(position, axis=1), np.gradient(position, axis=0)
    fitted = np.cross(down, across)
    fitted /= np.linalg.norm(fitted, axis=-1, keepdims=True)
    inner = np.isfinite(fitted).all(-1) & (part == 0)
    angle = np.degrees(np.arccos(np.clip((fitted * normal).sum(-1), -1, 1)))[inner]
    assert inner.sum() > 4000
    # The renderer's facets are flat, the given normals are those of the smooth solid.
    assert np.median(angle) < 5
    assert np.mean(angle < 20) > 0.95
    facing = -(normal * rays(pose, intrinsics)).sum(-1)[part == 0]
    assert (facing > 0).all()


def test_two_views_of_a_room_agree_after_reprojection(world: World):
    room = world.rooms[0]
    x, y = room.center
    first = camera_pose(x, y, 1.3, yaw=0.5, pitch=-0.1)
    second = camera_pose(x + 0.15, y - 0.1, 1.2, yaw=0.62, pitch=-0.15, roll=0.05)
    intrinsics = Intrinsics(240, 180, 190.0, 195.0, 121.3, 88.2)
    one = world.render(first, intrinsics, color=False)
    two = world.render(second, intrinsics, color=False)
    points = rays(first, intrinsics) * one.depth[..., None] + first[:3, 3]
    local = (points - second[:3, 3]) @ second[:3, :3]
    z = local[..., 2]
    u = np.round(local[..., 0] / z * intrinsics.fx + intrinsics.cx)
    v = np.round(local[..., 1] / z * intrinsics.fy + intrinsics.cy)
    seen = (z > 0.1) & (u >= 0) & (v >= 0) & (u < 240) & (v < 180)
    u, v = u[seen].astype(int), v[seen].astype(int)
    there = two.depth[v, u]
    same = np.abs(there - z[seen]) < 0.02 * z[seen] + 0.02
    assert seen.mean() > 0.5
    assert same.mean() > 0.85
    # What is not the same is hidden behind something nearer, but for pixels along edges.
    assert np.mean(there > z[seen] * 1.02 + 0.02) < 0.05
    labels = one.label[seen][same] == two.label[v, u][same]
    assert labels.mean() > 0.97
    turned = (
        (one.normal @ first[:3, :3].T)[seen][same],
        (two.normal @ second[:3, :3].T)[v, u][same],
    )
    assert np.mean((turned[0] * turned[1]).sum(-1) > 0.99) > 0.93


def test_normals_are_unit_and_face_the_camera(world: World):
    pose = camera_pose(*world.rooms[0].center, 1.2, yaw=2.0, pitch=-0.2)
    view = world.render(pose, SMALL, color=False)
    met = view.label != 255
    assert met.mean() > 0.99
    np.testing.assert_allclose(np.linalg.norm(view.normal[met], axis=-1), 1, atol=1e-5)
    v, u = np.mgrid[:72, :96]
    ray = np.stack([(u - SMALL.cx) / SMALL.fx, (v - SMALL.cy) / SMALL.fy, np.ones(u.shape)], -1)
    assert np.all((view.normal * ray).sum(-1)[met] < 0)


# Worlds


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(world: World):
    again, other = World(5_000_003, 'living_room'), World(5_000_004, 'living_room')
    pose = camera_pose(*world.rooms[0].center, 1.2, yaw=1.0, pitch=-0.2)
    views = [w.render(pose, SMALL) for w in (world, again)]
    assert [p.center for p in world.parts] == [p.center for p in again.parts]
    assert [p.center for p in world.parts] != [p.center for p in other.parts]
    np.testing.assert_array_equal(views[0].label, views[1].label)
    np.testing.assert_array_equal(views[0].depth, views[1].depth)
    np.testing.assert_array_equal(views[0].radiance, views[1].radiance)
    again.close()


def test_every_class_and_room_type_occurs_over_some_seeds():
    labels: set[int] = set()
    kinds: set[str] = set()
    for seed in range(5_000_000, 5_000_012):
        made = World(seed)
        labels |= {part.label for part in made.parts}
        kinds |= {room.kind for room in made.rooms}
    assert labels == set(range(len(CLASSES)))
    assert kinds == set(ROOM_TYPES)


@pytest.mark.parametrize('kind', ROOM_TYPES)
def test_each_kind_of_room_leaves_a_robot_room_to_move(kind: str):
    made = World(11, kind)
    clearance = made.clearance(0.03, 1.0)
    assert made.rooms[0].kind == kind
    assert clearance.max() > 0.3
    assert clearance[0, 0] == 0
    i, j = np.unravel_index(clearance.argmax(), clearance.shape)
    origin, _ = made.grid
    x, y = origin + (np.array([i, j]) + 0.5) * 0.05
    assert made.cell(x, y) == (i, j)
    assert made.room_at(x, y) is not None


def test_the_free_space_map_agrees_with_what_a_camera_from_above_sees(opengl: None):
    made = World(5_000_008, 'office')
    room = made.rooms[0]
    taken = made.obstacles(0.05, room.height - 0.8)
    looking_down = np.eye(4)
    looking_down[:3, :3] = np.array([[1, 0, 0], [0, -1, 0], [0, 0, -1]])
    looking_down[:3, 3] = (*room.center, room.height - 0.82)
    camera = Intrinsics(200, 200, 60.0, 60.0, 99.5, 99.5)
    view = made.render(looking_down, camera, color=False)
    points = rays(looking_down, camera) * view.depth[..., None] + looking_down[:3, 3]
    inside = (
        (points[..., 0] > room.x0 + 0.1) & (points[..., 0] < room.x1 - 0.1)
        & (points[..., 1] > room.y0 + 0.1) & (points[..., 1] < room.y1 - 0.1)
    )  # fmt: skip
    high = inside & (points[..., 2] > 0.08)
    cells = np.array([made.cell(x, y) for x, y in points[high][:, :2]])
    assert high.sum() > 300
    assert taken[cells[:, 0], cells[:, 1]].mean() > 0.98
    made.close()


def test_a_drive_keeps_clear_of_furniture_and_moves_gently(world: World):
    drives = [plan_drive(world, np.random.default_rng(k), frames=60, rate_hz=15) for k in range(8)]
    found = [drive for drive in drives if drive is not None]
    assert found
    clearance = world.clearance(0.02, 1.25)
    for drive in found:
        speed = np.hypot(np.diff(drive.x), np.diff(drive.y)) * 15
        assert speed.max() <= MAX_SPEED_MPS
        assert np.abs(np.diff(drive.yaw)).max() * 15 <= MAX_TURN_RADPS
        nearest = [clearance[world.cell(x, y)] for x, y in zip(drive.x, drive.y, strict=True)]
        assert min(nearest) > 0.2
        assert drive.pose(0)[2, 3] == 1.0


@pytest.mark.parametrize('kind', ROOM_TYPES)
def test_the_first_room_is_of_the_kind_asked_for(kind: str):
    plans = [make_plan(np.random.default_rng(seed), kind) for seed in range(40)]
    assert {rooms[0].kind for rooms in plans} == {kind}
    # Neighbours occur whatever the first room is, and each can be walked to.
    assert max(len(rooms) for rooms in plans) >= 2
    for rooms in plans:
        doors = [{o.what for holes in room.openings.values() for o in holes} for room in rooms]
        assert all('passage' in kinds or 'door' in kinds for kinds in doors)
        assert len(rooms) == 1 or all('passage' in kinds for kinds in doors)


# Light


def test_a_box_throws_a_shadow_and_lamps_light_what_they_see(opengl: None):
    parts = [
        Part('box', (3, 3, 0.05), (0, 0, -0.05), GREY, LABEL['floor']),
        Part('box', (0.3, 0.3, 0.02), (0, 0, 1), GREY, LABEL['table']),
    ]
    raster = Rasteriser(build_spec(parts).compile(), parts)
    textures = TextureSet()
    lamp = Light('lamp', np.array([0, 0, 2.5]), np.full(3, 5.0))
    shader = Shader(raster, parts, textures, [lamp], seed=0)
    points = np.array([[0, 0, 0], [1.2, 0, 0], [2.4, 0, 0]], np.float32)
    up = np.array([[0, 0, 1]] * 3, np.float32)
    irradiance, _ = shader.direct(points, up)
    assert irradiance[0, 0] == 0
    # Lambert's cosine and the inverse square of the distance.
    expected = 5 / np.pi * 2.5 / (1.2**2 + 2.5**2) ** 1.5
    assert irradiance[1, 0] == pytest.approx(expected, rel=0.03)
    assert irradiance[1, 0] > irradiance[2, 0] > 0
    raster.close()


def test_probes_bring_a_red_walls_light_to_what_faces_it():
    rng = np.random.default_rng(0)
    wall = np.column_stack([np.zeros(4000), rng.uniform(0, 3, 4000), rng.uniform(0, 3, 4000)])
    probes = Probes(np.array([-0.5, -0.5, -0.5]), np.array([3.5, 3.5, 3.5]),
                    wall.astype(np.float32), np.full(4000, 9 / 4000))  # fmt: skip
    probes.fill(np.tile(np.array([1.0, 0.1, 0.1]), (4000, 1)))
    at = np.array([[1.0, 1.5, 1.5]] * 2, np.float32)
    facing, averted = probes.light(at, np.array([[-1, 0, 0], [1, 0, 0]], np.float32))
    assert facing[0] > 0.2
    assert facing[0] > 4 * averted[0]
    assert facing[0] == pytest.approx(10 * facing[1], rel=0.05)


def test_textures_are_read_between_their_pixels_and_repeat():
    picture = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    values = read_bilinear(picture, np.array([0.0, 1.5]), np.array([0.0, 1.0]))
    np.testing.assert_allclose(values.ravel(), [0, 5.5])
    textures = TextureSet()
    tile = np.random.default_rng(0).random((256, 256, 3), np.float32)
    index = textures.add(tile)
    here = np.array([0.3, 1.3, -0.7], np.float32)
    colors = textures.sample(np.full(3, index), here, here, np.full(3, 1 / 256))
    np.testing.assert_allclose(colors[1:], [colors[0]] * 2, atol=0.02)
    coarse = textures.sample(np.array([index]), here[:1], here[:1], np.array([1.0]))
    np.testing.assert_allclose(coarse[0], tile.mean((0, 1)), atol=0.05)


def test_more_light_gives_a_brighter_picture_and_the_sensor_is_repeatable():
    light = np.random.default_rng(0).random((48, 64, 3)).astype(np.float32)
    sensor = Sensor(noise=0.01)
    dark = sensor.develop(light, np.random.default_rng(1), exposure=0.2)
    bright = sensor.develop(light, np.random.default_rng(1), exposure=0.8)
    again = sensor.develop(light, np.random.default_rng(1), exposure=0.2)
    assert bright.mean() > dark.mean() + 30
    np.testing.assert_array_equal(dark, again)
    # Left to itself, the exposure makes up for the light.
    automatic = [
        sensor.develop(light * factor, np.random.default_rng(1)).mean() for factor in (1, 3)
    ]
    assert automatic[0] == pytest.approx(automatic[1], abs=6)


# Files


def test_stored_depth_and_normals_come_back():
    depth = np.array([[0.5, 2.3456, np.nan, 7.0]], np.float32)
    read = decode_depth(encode_depth(depth))
    np.testing.assert_allclose(read[0, [0, 1, 3]], depth[0, [0, 1, 3]], atol=5e-4)
    assert read[0, 2] == 0
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((4, 5, 3)).astype(np.float32)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    normal[0, 0] = 0
    stored = encode_normals(normal)
    assert not stored[0, 0].any()
    np.testing.assert_allclose(decode_normals(stored), normal, atol=0.01)


def test_boxes_enclose_each_things_pixels():
    instance = np.full((40, 50), -1, np.int32)
    label = np.full((40, 50), LABEL['wall'], np.uint8)
    instance[10:20, 5:25], label[10:20, 5:25] = 0, LABEL['bed']
    instance[30:33, 30:33] = 1
    view = View(None, label, np.ones((40, 50)), np.zeros((40, 50, 3)), instance)
    boxes = visible_boxes(view, ['bed', 'cup'])
    # The cup's nine pixels are too few to be found.
    assert boxes == [
        {'name': 'bed', 'label': 'bed', 'box': [5, 10, 25, 20], 'pixels': 200, 'instance': 0}
    ]


@pytest.mark.slow
def test_a_stopped_generation_goes_on_and_gives_the_same_files(opengl: None, tmp_path: Path):
    recipe = PictureRecipe(frames=3, views=2, seed=5_000_100, min_things=3)
    first = generate(tmp_path, recipe, processes=1, progress=silent)
    folder = tmp_path / 'train'
    assert first == {'worlds': 2, 'frames': 3, 'made': 2}
    kept = {path: path.read_bytes() for path in folder.rglob('*.*') if path.is_file()}
    (folder / 'scenes' / '00001.json').unlink()
    (folder / 'rgb' / '00001_0.jpg').unlink()
    assert generate(tmp_path, recipe, processes=1, progress=silent)['made'] == 1
    assert generate(tmp_path, recipe, processes=1, progress=silent)['made'] == 0
    assert {path: path.read_bytes() for path in folder.rglob('*.*') if path.is_file()} == kept

    pictures = PictureFolder(tmp_path, 'train')
    pictures.check()
    frame = pictures.read(0)
    assert (len(pictures), frame.rgb.shape) == (3, (288, 384, 3))
    assert frame.normals_source == 'file'
    assert frame.pose is not None
    scene = json.loads((folder / 'scenes' / '00000.json').read_text())
    entry = scene['frames']['00000_0']
    assert entry['room'] in ROOM_TYPES
    assert len(entry['boxes']) >= 3
    assert {box['label'] for box in entry['boxes']} <= set(CLASSES)

    with pytest.raises(GenerationError, match='another recipe'):
        generate(tmp_path, recipe.model_copy(update={'seed': 1}), processes=1, progress=silent)
    (folder / 'recipe.json').unlink()
    kept.pop(folder / 'recipe.json')
    with pytest.raises(GenerationError, match=r'no recipe\.json'):
        generate(tmp_path, recipe, processes=1, progress=silent)
    assert {path: path.read_bytes() for path in folder.rglob('*.*') if path.is_file()} == kept
    shutil.rmtree(folder)


# Recipes


def test_shipped_recipes_are_valid_and_the_test_is_never_trained_on():
    recipes = {name: load_recipe(name) for name in names()}
    assert {'flat', 'room', 'sheet', 'test', 'train', 'validation'} == set(recipes)
    pictures = [recipe for recipe in recipes.values() if isinstance(recipe, PictureRecipe)]
    ranges = sorted((recipe.seed, recipe.seed + recipe.worlds) for recipe in pictures)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))
    assert recipes['test'].all_classes
    assert recipes['test'].min_things >= 5


def test_a_bad_recipe_is_refused_in_words(tmp_path: Path):
    with pytest.raises(RecipeError, match='choose one of'):
        load_recipe('nosuch')
    with pytest.raises(RecipeError, match='not key=value'):
        load_recipe('train', ['frames'])
    with pytest.raises(RecipeError, match='frames'):
        load_recipe('train', ['frames=-3'])
    (tmp_path / 'mine.yaml').write_text('kind: pictures\nframes: 5\nfrmaes: 6\n')
    with pytest.raises(RecipeError, match='frmaes'):
        load_recipe(str(tmp_path / 'mine.yaml'))
    assert load_recipe('train', ['frames=5', 'split=mine']).split == 'mine'


# The sample


def test_the_sample_bag_keeps_its_contract(room_bag: Path):
    import cv2
    from rosbags.highlevel import AnyReader

    pictures, expected = {}, {
        '/camera/image/compressed': 'sensor_msgs/msg/CompressedImage',
        '/camera/camera_info': 'sensor_msgs/msg/CameraInfo',
        '/ground_truth/label/compressed': 'sensor_msgs/msg/CompressedImage',
        '/ground_truth/depth/compressedDepth': 'sensor_msgs/msg/CompressedImage',
        '/ground_truth/normals/compressed': 'sensor_msgs/msg/CompressedImage',
        '/tf': 'tf2_msgs/msg/TFMessage',
    }  # fmt: skip
    stamps: dict[str, list[int]] = {topic: [] for topic in expected}
    with AnyReader([room_bag]) as bag:
        assert {link.topic: link.msgtype for link in bag.connections} == expected
        for link, stamp, data in bag.messages():
            message = bag.deserialize(data, link.msgtype)
            header = message.transforms[0].header if link.topic == '/tf' else message.header
            assert header.stamp.sec * 10**9 + header.stamp.nanosec == stamp
            if link.topic != '/tf':
                assert header.frame_id == 'camera_optical_frame'
            stamps[link.topic].append(stamp)
            pictures.setdefault(link.topic, message)
    first = stamps['/tf']
    assert 80 <= len(first) <= 120
    assert all(times == first for times in stamps.values())
    assert set(np.round(np.diff(first) / 1e9, 3)) in ({0.067}, {0.033}, {0.066, 0.067})
    assert sum(path.stat().st_size for path in room_bag.iterdir()) <= 20_000_000

    info = pictures['/camera/camera_info']
    assert (info.width, info.height) == (640, 480)
    assert info.k[0] > 0

    def decoded(topic: str, skip: int = 0) -> np.ndarray:
        return cv2.imdecode(pictures[topic].data[skip:], cv2.IMREAD_UNCHANGED)

    image = decoded('/camera/image/compressed')
    label = decoded('/ground_truth/label/compressed')
    depth = decoded('/ground_truth/depth/compressedDepth', skip=12)
    normal = decode_normals(decoded('/ground_truth/normals/compressed')[..., ::-1])
    assert image.shape == normal.shape == (480, 640, 3)
    assert label.shape == depth.shape == (480, 640)
    assert (label.dtype, depth.dtype) == (np.uint8, np.uint16)
    assert set(np.unique(label)) <= {*range(13), 255}
    # A floor seen by a camera that looks a little down.
    floor = normal[label == LABEL['floor']]
    assert len(floor) > 10_000
    assert np.median(floor[:, 1]) < -0.95
    children = [t.child_frame_id for t in pictures['/tf'].transforms]
    assert children == ['base_link', 'camera_optical_frame']
