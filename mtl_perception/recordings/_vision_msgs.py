"""Boxes and classes as vision_msgs, whose definitions rosbags does not bring along.

The definitions are those of vision_msgs 4, which ROS 2 has from Humble on (Apache License 2.0,
https://github.com/ros-perception/vision_msgs).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from rosbags.typesys import get_types_from_msg
from rosbags.typesys.store import Typestore

DETECTIONS = 'vision_msgs/msg/Detection2DArray'
CLASSIFICATION = 'vision_msgs/msg/Classification'

_DEFINITIONS = {
    'VisionClass': 'uint16 class_id\nstring class_name',
    'LabelInfo': 'std_msgs/Header header\nvision_msgs/VisionClass[] class_map\nfloat32 threshold',
    'Point2D': 'float64 x\nfloat64 y',
    'Pose2D': 'vision_msgs/Point2D position\nfloat64 theta',
    'BoundingBox2D': 'vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y',
    'ObjectHypothesis': 'string class_id\nfloat64 score',
    'ObjectHypothesisWithPose': (
        'vision_msgs/ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose'
    ),
    'Detection2D': (
        'std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\n'
        'vision_msgs/BoundingBox2D bbox\nstring id'
    ),
    'Detection2DArray': 'std_msgs/Header header\nvision_msgs/Detection2D[] detections',
    'Classification': 'std_msgs/Header header\nvision_msgs/ObjectHypothesis[] results',
}


def register(store: Typestore) -> None:
    """Teach a store of ROS 2 types the messages of this module."""
    types: dict[str, Any] = {}
    for name, text in _DEFINITIONS.items():
        types.update(get_types_from_msg(text, f'vision_msgs/msg/{name}'))
    store.register(types)


def make_detections(
    store: Typestore, header: Any, boxes: np.ndarray, names: list[str], scores: np.ndarray
) -> Any:
    """Return a Detection2DArray.

    Args:
        store: that knows these messages.
        header: of the message and of each detection.
        boxes: [M, 4], x0 y0 x1 y1 in pixels of the camera's picture.
        names: of the classes.
        scores: [M].
    """
    types = store.types
    of = {name: types[f'vision_msgs/msg/{name}'] for name in _DEFINITIONS}
    point, quaternion = types['geometry_msgs/msg/Point'], types['geometry_msgs/msg/Quaternion']
    nowhere = types['geometry_msgs/msg/PoseWithCovariance'](
        pose=types['geometry_msgs/msg/Pose'](
            position=point(x=0.0, y=0.0, z=0.0), orientation=quaternion(x=0.0, y=0.0, z=0.0, w=1.0)
        ),
        covariance=np.zeros(36),
    )
    detections = []
    for (x0, y0, x1, y1), name, score in zip(boxes.tolist(), names, scores, strict=True):
        middle = of['Point2D'](x=(x0 + x1) / 2, y=(y0 + y1) / 2)
        box = of['BoundingBox2D'](
            center=of['Pose2D'](position=middle, theta=0.0), size_x=x1 - x0, size_y=y1 - y0
        )
        result = of['ObjectHypothesisWithPose'](
            hypothesis=of['ObjectHypothesis'](class_id=name, score=float(score)), pose=nowhere
        )
        detections.append(of['Detection2D'](header=header, results=[result], bbox=box, id=''))
    return of['Detection2DArray'](header=header, detections=detections)


def make_classification(store: Typestore, header: Any, results: list[tuple[str, float]]) -> Any:
    """Return a Classification of (class_id, score)."""
    hypothesis = store.types['vision_msgs/msg/ObjectHypothesis']
    return store.types[CLASSIFICATION](
        header=header, results=[hypothesis(class_id=name, score=score) for name, score in results]
    )
