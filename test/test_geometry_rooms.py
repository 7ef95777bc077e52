"""The geometry in furnished rooms: rendered ones with exact truth, and real ones of NYUv2."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault('MUJOCO_GL', 'egl')
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / 'benchmarks'))

import geometry as benchmark

from mtl_perception.datasets import PictureFolder
from mtl_perception.frames import Prediction
from mtl_perception.geometry.pipeline import GeometryConfig, SceneGeometry


def test_perfect_inputs_give_floor_scale_and_obstacles_in_unseen_worlds():
    cases = list(benchmark.robot_cases(2, 3, color=False))
    figures = benchmark.measure_worlds(cases, benchmark.from_truth, scales=True)
    assert figures['frames'] == 6
    assert figures['floors_not_found'] == 0
    assert figures['floor_angle_deg_median'] < 2
    assert figures['floor_height_m_median'] < 0.03
    assert figures['scale_error_median'] < 0.05
    assert figures['obstacle_things'] > 5
    assert figures['obstacle_pixel_recall'] >= 0.95
    assert figures['false_obstacle_share_of_floor'] <= 0.005


def test_real_floors_are_found_at_the_height_of_a_person(nyuv2):
    """Their depth is quantised to 39 mm and their labels are drawn by hand."""
    folder = PictureFolder(nyuv2, 'train')
    heights, missed = [], 0
    for index in range(0, len(folder), 40):
        frame = folder.read(index)
        if (frame.label == benchmark.FLOOR).mean() < 0.05:
            continue
        truth = Prediction(
            label=frame.label, depth=frame.depth, normal=frame.normal, intrinsics=frame.intrinsics
        )
        geometry = SceneGeometry(GeometryConfig(roles=benchmark.ROLES))
        scene = geometry.update(truth, outputs={'floor'})
        if scene.floor.plane is None:
            missed += 1
            assert scene.floor.reason
        else:
            heights.append(scene.floor.plane.height)
    assert len(heights) >= 5
    assert missed <= 0.2 * len(heights)
    assert 1.0 < np.median(heights) < 1.7
    assert np.std(heights) < 0.5


def test_a_case_knows_its_place_above_the_floor():
    case = next(benchmark.robot_cases(1, 1, color=False))
    base = case.base_from_camera
    assert base[2, 3] == case.height
    np.testing.assert_allclose(base[:3, :3] @ base[:3, :3].T, np.eye(3), atol=1e-9)
    assert base[0, 2] > 0
    assert base[1, 2] == pytest.approx(0, abs=1e-9)
