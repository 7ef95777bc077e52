"""Perceiver: a frame of any size and encoding in, a prediction in metres out. Knows no ROS."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Literal

import cv2
import numpy as np

from .bundle import ModelBundle
from .encodings import picture_size
from .engines import Engine
from .engines._interface import Size, check_size
from .frames import CameraFrame, Prediction
from .letterbox import Layout, Letterbox, Scratch, auto_size, fit

_NOTHING = {'label': 255, 'confidence': 0, 'depth': np.nan, 'normal': np.nan}
_MAPS = frozenset(_NOTHING)
_NO_TIME = {'prepare': 0.0, 'infer': 0.0, 'post': 0.0}
_BOXES = frozenset({'boxes', 'box_scores', 'box_labels'})


def correct_focal_length(arrays: Mapping[str, np.ndarray], s: float) -> None:
    """Bring depth and normals from the training camera to another focal length, in place.

    The training camera would have had to see this scene shrunk by s along the optical axis to
    get the same picture: depth is multiplied by s; normals, which transform inversely, have z
    divided by s.

    Args:
        arrays: float32 depth [H, W] and normal [H, W, 3], either or none.
        s: fx_camera / fx_training, both in pixels at the network's input.
    """
    if abs(s - 1) < 1e-4:
        return
    if 'depth' in arrays:
        depth = arrays['depth']
        np.multiply(depth, np.float32(s), out=depth)
    if 'normal' in arrays:
        normal = arrays['normal']
        normal[..., 2] *= np.float32(1 / s)
        _normalise(normal)


class Perceiver:
    """Run a bundle on camera frames.

    A frame is scaled by one factor and padded into the network's input, in place and without
    allocation; the outputs are cut to the picture, corrected for the camera's focal length and
    handed out as views of the engine's memory.

    Not thread-safe: one worker uses one Perceiver.
    """

    def __init__(
        self,
        engine: Engine,
        bundle: ModelBundle,
        *,
        input_size: Literal['bundle', 'auto'] | Size | None = None,
        output_size: Literal['network', 'camera'] = 'network',
        max_pixels: int | None = None,
    ) -> None:
        """Tie an engine to the geometry of a bundle.

        Args:
            engine: the bundle's graph, from `open_engine`.
            bundle: the verified bundle.
            input_size: of the network: 'bundle' (also None) the bundle's own, 'auto' the one that
                fits each camera's aspect ratio, or (height, width).
            output_size: 'network' gives outputs of the picture's size within the network's input
                (1280x720 -> 384x216), 'camera' resizes them to the camera's.
            max_pixels: bound for 'auto'; the bundle's own number of input pixels when None.

        Raises:
            ValueError: an unknown word for a size.
            EngineError: a size that the bundle does not allow.
        """
        if output_size not in ('network', 'camera'):
            raise ValueError(f"output_size is {output_size!r}: expected 'network' or 'camera'")
        if isinstance(input_size, str) and input_size not in ('bundle', 'auto'):
            raise ValueError(
                f"input_size is {input_size!r}: expected 'bundle', 'auto' or (height, width)"
            )
        self._engine = engine
        self._bundle = bundle
        self._output_size = output_size
        self._max_pixels = max_pixels or bundle.input_size[0] * bundle.input_size[1]
        if input_size == 'auto' and bundle.manifest.input.resizable:
            self._fixed_size: Size | None = None
        elif input_size is None or isinstance(input_size, str):
            self._fixed_size = bundle.input_size
        else:
            self._fixed_size = (int(input_size[0]), int(input_size[1]))
            check_size(bundle, self._fixed_size)
        self._layouts: dict[Size, Layout] = {}
        self._letterbox = Letterbox()
        self._scratch = Scratch()
        self._hidden: dict[Size, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def bundle(self) -> ModelBundle:
        """The bundle that runs."""
        return self._bundle

    @property
    def engine(self) -> Engine:
        """The engine that runs it."""
        return self._engine

    def layout(self, camera: Size) -> Layout:
        """Return where a camera's (height, width) picture lies in the network's input."""
        layout = self._layouts.get(camera)
        if layout is None:
            network = self._fixed_size or auto_size(camera, self._max_pixels)
            layout = self._layouts[camera] = fit(camera, network)
        return layout

    def expect(self, outputs: Collection[str], batch: int = 1) -> None:
        """Say which outputs will be wanted, so that the engine can prepare for them meanwhile.

        Args:
            outputs: as for `perceive`.
            batch: frames that will share a call.
        """
        if self._fixed_size is not None:
            self._engine.expect(batch, self._fixed_size, self._known(outputs))

    def perceive(self, frame: CameraFrame, outputs: Collection[str] | None = None) -> Prediction:
        """Run the network on one frame.

        Args:
            frame: picture of any size in any of `encodings.SUPPORTED_ENCODINGS` with colours.
            outputs: wanted fields ('label', 'confidence', 'depth', 'normal', 'boxes',
                'box_scores', 'box_labels', 'class_scores'); all when None. Boxes come with
                their scores and labels.

        Returns:
            The prediction; fields that were not wanted or that the bundle lacks are None. Its
            arrays may be views of kept memory: valid until the next call, copy what must last.

        Raises:
            EncodingError: the frame's pixels do not fit their encoding.
            EngineError: the runtime failed.
        """
        return self.perceive_batch([frame], outputs)[0]

    def perceive_batch(
        self, frames: Sequence[CameraFrame], outputs: Collection[str] | None = None
    ) -> list[Prediction]:
        """Run the network on several frames; those of equal network size share one call.

        Args:
            frames: pictures, as for `perceive`; sizes and encodings may differ.
            outputs: as for `perceive`.

        Returns:
            One prediction per frame, in order. `timings_ms` are those of the frame's call. Where
            nothing is wanted the network does not run.

        Raises:
            EncodingError: a frame's pixels do not fit their encoding; none is predicted then.
            EngineError: the runtime failed.
        """
        layouts = [self.layout(picture_size(f.pixels, f.encoding)) for f in frames]
        if outputs is not None and not self._known(outputs):
            return [
                replace(self._finish({}, frame, layout, 0), timings_ms=dict(_NO_TIME))
                for frame, layout in zip(frames, layouts, strict=True)
            ]
        groups: dict[Size, list[int]] = {}
        for index, layout in enumerate(layouts):
            groups.setdefault(layout.network, []).append(index)
        predictions: dict[int, Prediction] = {}
        for network, members in groups.items():
            started = perf_counter()
            images = self._engine.input_buffer(len(members), network)
            for slot, index in enumerate(members):
                self._letterbox.place(frames[index], layouts[index], images, slot)
            prepared = perf_counter()
            results = self._engine.infer(images, self._known(outputs))
            inferred = perf_counter()
            for slot, index in enumerate(members):
                arrays = {name: array[slot] for name, array in results.items()}
                predictions[index] = self._finish(arrays, frames[index], layouts[index], slot)
            timings_ms = {
                'prepare': (prepared - started) * 1e3,
                'infer': (inferred - prepared) * 1e3,
                'post': (perf_counter() - inferred) * 1e3,
            }
            for index in members:
                predictions[index].timings_ms = dict(timings_ms)
        return [predictions[index] for index in range(len(frames))]

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()

    def _known(self, outputs: Collection[str] | None) -> Collection[str]:
        """Return the wanted outputs that the bundle has; a box is nothing without its label."""
        available = self._bundle.outputs
        if outputs is None:
            return available
        wanted = set(outputs)
        if not wanted.isdisjoint(_BOXES):
            wanted |= _BOXES
        return [name for name in available if name in wanted]

    def _finish(
        self, arrays: dict[str, np.ndarray], frame: CameraFrame, layout: Layout, slot: int
    ) -> Prediction:
        """Cut the padding off, follow the camera's geometry, resize where asked for."""
        things = _things(arrays, layout)
        arrays = {name: layout.window(array) for name, array in arrays.items() if name in _MAPS}
        intrinsics = layout.intrinsics(frame.intrinsics) if frame.intrinsics else None
        calibrated = intrinsics is not None and self._bundle.manifest.depth is not None
        learnt = self._bundle.manifest.focal_length_px
        if intrinsics is not None and learnt is not None:
            correct_focal_length(arrays, intrinsics.fx / learnt)
        size = (layout.height, layout.width)
        if self._output_size == 'camera' and layout.camera != size:
            size = layout.camera
            if 'boxes' in things:
                scale = np.array([1 / layout.scale_x, 1 / layout.scale_y] * 2, np.float32)
                things['boxes'] *= scale
            arrays = {
                name: self._enlarge(name, array, layout, slot) for name, array in arrays.items()
            }
            intrinsics = frame.intrinsics
        if frame.valid is not None:
            self._hide(arrays, frame.valid, size)
        return Prediction(
            **arrays,
            **things,
            picture_size=size,
            intrinsics=intrinsics,
            depth_calibrated=calibrated,
        )

    def _hide(self, arrays: dict[str, np.ndarray], valid: np.ndarray, size: Size) -> None:
        """Say in place that nothing is known where the frame shows nothing."""
        kept = self._hidden.get(size)
        if kept is None or kept[0] is not valid:
            resized = cv2.resize(valid, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
            kept = self._hidden[size] = (valid, resized == 0)
        for name, array in arrays.items():
            array[kept[1]] = _NOTHING[name]

    def _enlarge(self, name: str, array: np.ndarray, layout: Layout, slot: int) -> np.ndarray:
        """Resize an output to the camera's picture."""
        height, width = layout.camera
        kept = self._scratch.array((name, slot), (height, width, *array.shape[2:]), array.dtype)
        nearest = name in ('label', 'confidence')
        # Labels must not be mixed; the same pixel's confidence goes with them. Depth and normals
        # are smooth upsamplings already in the network.
        method = cv2.INTER_NEAREST_EXACT if nearest else cv2.INTER_LINEAR
        resized = cv2.resize(array, (width, height), dst=kept, interpolation=method)
        if name == 'normal':
            _normalise(resized)
        return resized


def _things(arrays: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    """Return the outputs that are no maps: boxes of the picture without empty slots, scores."""
    things = {name: arrays[name] for name in ('class_scores',) if name in arrays}
    if 'boxes' in arrays:
        boxes = layout.cut_boxes(arrays['boxes'])
        # Also those go that lie on the padding altogether.
        kept = (arrays['box_labels'] >= 0) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        things['boxes'] = boxes[kept]
        things['box_scores'] = arrays['box_scores'][kept]
        things['box_labels'] = arrays['box_labels'][kept]
    return things


def _normalise(normal: np.ndarray) -> None:
    """Scale float32 [H, W, 3] vectors to unit length in place."""
    length = np.sqrt(np.einsum('hwc,hwc->hw', normal, normal))
    normal /= np.maximum(length, np.float32(1e-12))[..., None]
