"""What all engines share: their error, the check of what comes in, and the kept plans."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Generic, TypeVar

import numpy as np

from ..bundle import ModelBundle

Size = tuple[int, int]
"""(height, width) in pixels."""

Shape = tuple[int, int, int]
"""(batch, height, width)."""

Plan = TypeVar('Plan')

KEPT_PLANS = 8
"""Shapes that stay prepared: cameras of different sizes, and batches of up to as many cameras."""


class EngineError(RuntimeError):
    """A runtime that is missing, refuses the graph, or failed."""


class UnpreparedSizeError(EngineError):
    """The engine was built ahead of time, and not for pictures of this size or number."""


class Plans(Generic[Plan]):
    """Keep what a runtime prepared for each shape, the longest unused one is dropped."""

    def __init__(
        self,
        bundle: ModelBundle,
        make: Callable[[Shape], Plan],
        drop: Callable[[Plan], None] = lambda plan: None,
    ) -> None:
        self._bundle = bundle
        self._make = make
        self._drop = drop
        self._kept: OrderedDict[Shape, Plan] = OrderedDict()

    def get(self, shape: Shape) -> Plan:
        """Return the plan for a shape, made when it is new.

        Raises:
            EngineError: the bundle does not allow the size.
        """
        plan = self._kept.get(shape)
        if plan is None:
            check_size(self._bundle, shape[1:])
            plan = self._kept[shape] = self._make(shape)
            if len(self._kept) > KEPT_PLANS:
                self._drop(self._kept.popitem(last=False)[1])
        else:
            self._kept.move_to_end(shape)
        return plan

    def clear(self) -> None:
        """Drop all plans."""
        while self._kept:
            self._drop(self._kept.popitem()[1])


def check_size(bundle: ModelBundle, size: Size) -> None:
    """Refuse network sizes that the bundle's graph does not compute.

    Raises:
        EngineError: the bundle has one size only, or the size is no multiple of 32.
    """
    if size == bundle.input_size:
        return
    height, width = size
    own_height, own_width = bundle.input_size
    if not bundle.manifest.input.resizable:
        raise EngineError(
            f'bundle {bundle.name} computes {own_height}x{own_width} (height x width) only, '
            f'{height}x{width} was asked for: use its own size'
        )
    if height < 32 or width < 32 or height % 32 or width % 32:
        raise EngineError(
            f'network size {height}x{width} (height x width) does not fit the backbone: '
            'expected multiples of 32'
        )


def output_form(bundle: ModelBundle, name: str, shape: Shape) -> tuple[tuple[int, ...], np.dtype]:
    """Return the array shape and type that the contract gives an output.

    Args:
        bundle: whose graph computes it.
        name: of the output.
        shape: (batch, height, width) of the network's picture.
    """
    match name:
        case 'label' | 'confidence':
            return shape, np.dtype(np.uint8)
        case 'depth':
            return shape, np.dtype(np.float32)
        case 'normal':
            return (*shape, 3), np.dtype(np.float32)
    detection, classification = bundle.manifest.detection, bundle.manifest.classification
    if name == 'class_scores' and classification is not None:
        return (shape[0], classification.num_scores), np.dtype(np.float32)
    if detection is not None:
        slots = (shape[0], detection.max_boxes)
        match name:
            case 'boxes':
                return (*slots, 4), np.dtype(np.float32)
            case 'box_scores':
                return slots, np.dtype(np.float32)
            case 'box_labels':
                return slots, np.dtype(np.int32)
    raise EngineError(f'the bundle {bundle.name} has no output {name!r}')


def check_outputs(bundle: ModelBundle, shape: Shape, outputs: Mapping[str, np.ndarray]) -> None:
    """Refuse outputs that are not as the contract has them.

    Raises:
        EngineError: which output has another shape or type.
    """
    for name, array in outputs.items():
        expected, dtype = output_form(bundle, name, shape)
        if array.shape != expected or array.dtype != dtype:
            raise EngineError(
                f'output {name} of {bundle.name} is {array.dtype} {list(array.shape)}: expected '
                f'{dtype} {list(expected)} at {shape[1]}x{shape[2]}; export the bundle again'
            )


def image_shape(image: np.ndarray) -> Shape:
    """Return (batch, height, width) of a network input.

    Raises:
        EngineError: it is not uint8 [N, H, W, 3].
    """
    if image.dtype != np.uint8 or image.ndim != 4 or image.shape[3] != 3 or not image.size:
        raise EngineError(
            f'the network image is {image.dtype} {list(image.shape)}: expected uint8 [N, H, W, 3]'
        )
    return image.shape[0], image.shape[1], image.shape[2]


def wanted_outputs(available: Collection[str], outputs: Collection[str] | None) -> Collection[str]:
    """Return the names to compute.

    Raises:
        EngineError: a name that the graph does not have.
    """
    if outputs is None:
        return available
    unknown = [name for name in outputs if name not in available]
    if unknown:
        raise EngineError(
            f'outputs {unknown} were asked for but the bundle computes {list(available)}'
        )
    return outputs
