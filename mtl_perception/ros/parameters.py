"""The node's parameters: one typed definition with descriptions, ranges and refusals.

`config/perception.yaml` is this definition in ROS's own format; write it anew with
`python -m mtl_perception.ros.parameters > config/perception.yaml`.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal

import yaml
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidTopicNameException
from rclpy.validate_topic_name import validate_topic_name

LIVE = 'live'
CONFIGURE = 'configure'
START = 'start'
When = Literal['live', 'configure', 'start']

_EXAMPLES = {'cameras': '[front, rear]', 'camera_pose': '[0.2, 0.0, 0.35, 0.0, 0.1, 0.0]'}

_WHEN = {
    LIVE: 'Can change at any time.',
    CONFIGURE: 'Can change while the node is unconfigured.',
    START: 'Read only: set it when the node starts.',
}

OUTPUT_TOPICS = (
    'segmentation/mask',
    'segmentation/confidence',
    'segmentation/color',
    'segmentation/overlay',
    'segmentation/camera_info',
    'depth/image',
    'depth/scaled',
    'depth/color',
    'depth/camera_info',
    'normals/image',
    'normals/color',
    'normals/camera_info',
    'detections',
    'detections_3d',
    'classification',
    'points',
    'obstacles',
    'scan',
    'floor',
)
"""Outputs that the parameter `outputs` switches; status and diagnostics are always published."""


class ParameterError(ValueError):
    """A value that a parameter refuses, with the reason as one sentence."""


def _parameter(
    default: Any,
    description: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[Any, ...] = (),
    when: When = LIVE,
) -> Any:
    """Declare a field of a settings class as a parameter."""
    metadata = {
        'description': description,
        'minimum': minimum,
        'maximum': maximum,
        'choices': choices,
        'when': when,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class CameraSettings:
    """Parameters of one camera: `rotate` for all of them, `front.rotate` for the camera front."""

    transport: str = _parameter(
        'raw',
        'raw: sensor_msgs/Image; compressed: sensor_msgs/CompressedImage (jpeg, png) on the '
        'image topic + /compressed.',
        choices=('raw', 'compressed'),
        when=CONFIGURE,
    )
    camera_info_topic: str = _parameter(
        '',
        'Topic with the calibration; empty: the sibling camera_info of the image topic, or the '
        'remapped camera_info.',
        when=CONFIGURE,
    )
    focal_length_px: float = _parameter(
        0.0,
        'Focal length of the camera in pixels of its image, for cameras without camera_info; '
        '0: none. Depth is metric only with one of both.',
        minimum=0.0,
        maximum=100000.0,
    )
    rectify: bool = _parameter(
        False,
        'Remove lens distortion with the calibration before the network; the outputs then '
        'belong to the rectified picture.',
    )
    input_rectified: str = _parameter(
        'auto',
        'Whether the images are rectified already, so that P of camera_info describes them and '
        'not K and D. auto: when the last or last but one name of the topic has the word rect or '
        'rectified, as image_rect.',
        choices=('auto', 'true', 'false'),
    )
    mask: str = _parameter(
        '',
        "Picture file of the size or aspect of the camera's, black where the robot itself or its "
        'housing is in view: there the outputs know nothing (label 255, depth NaN); empty: none.',
        when=CONFIGURE,
    )
    rotate: int = _parameter(
        0,
        'Clockwise turn in degrees that makes the picture upright, for cameras that are mounted '
        'on their side or head. The picture is turned for the network only: all outputs keep '
        "the camera's own orientation.",
        choices=(0, 90, 180, 270),
    )
    camera_pose: tuple[float, ...] = _parameter(
        (),
        'Where the camera is on the robot: x, y, z in metres and roll, pitch, yaw in radians of '
        'its body (x forward, y left, z up; looking down is a positive pitch) in base_frame; '
        'empty: from TF, where tf2_ros is installed.',
    )
    camera_height: float = _parameter(
        0.0,
        'Height of the camera above the floor in metres, for scale; 0: from the pose, if known.',
        minimum=0.0,
        maximum=10.0,
    )
    camera_tilt_std: float = _parameter(
        2.0,
        "How far the camera's tilt strays from its pose while the robot moves, standard deviation "
        'in degrees; 1 or less for a stiff mount on hard floors. The less, the more the pose '
        'counts against what the picture says of the floor.',
        minimum=0.1,
        maximum=30.0,
    )
    scale_reference: str = _parameter(
        'camera_height',
        "What tells the scale of depth: camera_height (the camera's own, or its pose's), "
        'laser_scan (sensor_msgs/LaserScan) or depth_image (sensor_msgs/Image, 32FC1 or 16UC1, '
        'seen from this camera; may be sparse; save_frame saves it, too).',
        choices=('camera_height', 'laser_scan', 'depth_image'),
        when=CONFIGURE,
    )
    scale_reference_topic: str = _parameter(
        'scan', 'Topic of the laser scan or depth image.', when=CONFIGURE
    )

    def __post_init__(self) -> None:
        """Refuse a pose that is none, and topics that cannot be.

        Raises:
            ParameterError: not six finite numbers, or no topic's name.
        """
        pose = self.camera_pose
        if pose and (len(pose) != 6 or not all(math.isfinite(number) for number in pose)):
            raise ParameterError(
                f'camera_pose: {list(pose)} is no pose: give x, y, z, roll, pitch, yaw or nothing'
            )
        if self.scale_reference != 'camera_height' and not self.scale_reference_topic:
            raise ParameterError(
                f'scale_reference_topic is empty, but scale_reference is {self.scale_reference}: '
                'name its topic'
            )
        for name in ('camera_info_topic', 'scale_reference_topic'):
            topic = getattr(self, name)
            try:
                if topic:
                    validate_topic_name(topic)
            except InvalidTopicNameException as error:
                raise ParameterError(
                    f"{name}: {topic!r} is no topic's name: letters, digits, '_' and '/' are "
                    'expected'
                ) from error
            if strange := set(re.findall(r'{(.*?)}', topic)) - {'node', 'ns', 'namespace'}:
                raise ParameterError(
                    f'{name}: {topic!r} has {", ".join(sorted(strange))} in braces: only {{node}} '
                    'and {ns} stand for something'
                )


@dataclass(frozen=True)
class Settings:
    """Parameters of the node."""

    bundle: str = _parameter(
        'pvt_v2_b0', 'Model bundle: a folder or the name of a shipped one.', when=CONFIGURE
    )
    engine: str = _parameter(
        'auto',
        'Inference engine; auto takes TensorRT where a GPU works, else OpenVINO, else ONNX '
        'Runtime.',
        choices=('auto', 'tensorrt', 'tensorrt_rtx', 'openvino', 'onnxruntime'),
        when=CONFIGURE,
    )
    gpu_device: int = _parameter(
        0,
        'Number of the GPU for TensorRT, as CUDA counts those that CUDA_VISIBLE_DEVICES leaves. '
        'Engines that were built on another kind of GPU are not taken.',
        minimum=0,
        maximum=63,
        when=CONFIGURE,
    )
    precision: str = _parameter(
        'auto',
        'Number format of the inference; auto takes the fastest that the engine runs natively.',
        choices=('auto', 'float32', 'bfloat16', 'float16', 'int8'),
        when=CONFIGURE,
    )
    threads: int = _parameter(
        0,
        "CPU threads of the engine; 0: the engine's choice. Lower it to leave cores to "
        'navigation.',
        minimum=0,
        maximum=256,
        when=CONFIGURE,
    )
    input_size: str = _parameter(
        'bundle',
        "Size of the network's picture: bundle (as trained), auto (as many pixels, in the "
        "camera's aspect) or WIDTHxHEIGHT in multiples of 32.",
        when=CONFIGURE,
    )
    output_size: str = _parameter(
        'network',
        'Size of the outputs: network (small, fast) or camera (scaled up to the image).',
        choices=('network', 'camera'),
        when=CONFIGURE,
    )
    cameras: tuple[str, ...] = _parameter(
        (),
        'Names of several cameras: inputs are <name>/image and outputs ~/<name>/...; empty: one '
        'camera with input image and outputs ~/...',
        when=START,
    )
    autostart: bool = _parameter(
        True,
        'Configure and activate by itself; false waits for a lifecycle manager.',
        when=START,
    )
    batch_deadline: float = _parameter(
        0.01,
        'With several cameras: seconds that a frame waits for those of other live cameras, to '
        'share one inference.',
        minimum=0.0,
        maximum=3600.0,
    )
    max_rate: float = _parameter(
        0.0,
        'Frames per second and camera that are processed at most; 0: no limit.',
        minimum=0.0,
        maximum=1000.0,
    )
    max_age: float = _parameter(
        0.0,
        'Frames whose stamp is older than this many seconds (ROS clock) are dropped; 0: none.',
        minimum=0.0,
        maximum=3600.0,
    )
    stale_after: float = _parameter(
        2.0,
        'Seconds without a frame after which a camera is reported as STALE.',
        minimum=0.05,
        maximum=3600.0,
    )
    max_pixels: int = _parameter(
        16_000_000,
        'Pixels of the largest image that is accepted; larger ones are dropped unread.',
        minimum=1024,
        maximum=64_000_000,
    )
    input_reliability: str = _parameter(
        'auto',
        'Reliability asked of the cameras; auto: reliable when every publisher offers it, else '
        'best_effort, looked at again when publishers change.',
        choices=('auto', 'reliable', 'best_effort'),
        when=CONFIGURE,
    )
    input_depth: int = _parameter(
        5,
        'Queue depth of the image subscriptions. All images that wait are taken at once and the '
        'newest is processed: the queue adds no latency, it only lets the others be counted.',
        minimum=1,
        maximum=100,
        when=CONFIGURE,
    )
    output_reliability: str = _parameter(
        'reliable',
        'Reliability offered for the outputs.',
        choices=('reliable', 'best_effort'),
        when=CONFIGURE,
    )
    output_depth: int = _parameter(
        1,
        "Queue depth of the outputs' publishers.",
        minimum=1,
        maximum=100,
        when=CONFIGURE,
    )
    outputs: tuple[str, ...] = _parameter(
        OUTPUT_TOPICS,
        'Outputs that may be published; those that cost extra are only computed while someone '
        'subscribes.',
    )
    confidence_threshold: float = _parameter(
        0.0,
        'Pixels less sure than this get the label 255 (unknown) in segmentation/mask. Points and '
        'obstacles leave them out, too, after disagreeing normals have lowered the confidence.',
        minimum=0.0,
        maximum=1.0,
    )
    detection_threshold: float = _parameter(
        0.3,
        'Boxes less sure than this are neither published nor drawn into segmentation/overlay.',
        minimum=0.0,
        maximum=1.0,
    )
    classification_memory: float = _parameter(
        5.0,
        'Seconds of pictures that classification averages, the last ones counting most (a picture '
        'of this age counts 1/e); 0: each picture alone.',
        minimum=0.0,
        maximum=3600.0,
    )
    label_groups: str = _parameter(
        '',
        "YAML file that maps the bundle's classes to your own labels; empty: the bundle's "
        'classes.',
    )
    depth_encoding: str = _parameter(
        '32FC1',
        'Encoding of depth/image and depth/scaled: 32FC1 metres with NaN = invalid, or 16UC1 '
        'millimetres with 0 = invalid.',
        choices=('32FC1', '16UC1'),
    )
    color_min_depth: float = _parameter(
        0.3, 'Depth in metres at the near end of depth/color.', minimum=0.0, maximum=1000.0
    )
    color_max_depth: float = _parameter(
        8.0, 'Depth in metres at the far end of depth/color.', minimum=0.01, maximum=1000.0
    )
    overlay_alpha: float = _parameter(
        0.5,
        "Share of the labels' colours in segmentation/overlay.",
        minimum=0.0,
        maximum=1.0,
    )
    max_range: float = _parameter(
        6.0,
        'Depth in metres beyond which points, obstacles and scan are left out (NaN in points).',
        minimum=0.1,
        maximum=100.0,
    )
    obstacle_max_height: float = _parameter(
        2.0,
        'Metres above the floor below which a thing is an obstacle: the robot passes under what '
        'is higher.',
        minimum=0.05,
        maximum=10.0,
    )
    scale: str = _parameter(
        'off',
        'Correction of depth for points, obstacles, scan, floor, depth/scaled and detections_3d '
        'by the known camera height or another sensor (scale_reference): off, estimate '
        '(published in ~/floor) or apply.',
        choices=('off', 'estimate', 'apply'),
    )
    points_stride: int = _parameter(
        1, 'Every n-th row and column of ~/points is sent; 1: all of them.', minimum=1, maximum=32
    )
    points_voxel: float = _parameter(
        0.0,
        'Edge in metres of the cubes of which ~/points sends one point each, no longer in rows '
        'and columns; 0: all points.',
        minimum=0.0,
        maximum=1.0,
    )
    base_frame: str = _parameter(
        'base_link',
        'Frame of the scan: x forward, z up, its origin on the floor (base_footprint, where '
        'base_link is higher). The height of the camera in it sets the scale unless camera_height '
        'does.',
    )
    save_folder: str = _parameter(
        '',
        'Folder that the service save_frame may write to; empty: the service is refused.',
    )

    def __post_init__(self) -> None:
        """Refuse values that do not fit together.

        Raises:
            ParameterError: what does not fit, and what would.
        """
        for name in self.cameras:
            if not re.fullmatch(r'[a-z][a-z0-9_]*', name):
                raise ParameterError(
                    f'cameras: {name!r} is no name for topics: use small letters, digits and "_", '
                    'a letter first'
                )
        if len(set(self.cameras)) != len(self.cameras):
            raise ParameterError(
                f'cameras: {list(self.cameras)} names a camera twice: name each once'
            )
        unknown = sorted(set(self.outputs) - set(OUTPUT_TOPICS))
        if unknown:
            raise ParameterError(
                f'outputs: {", ".join(unknown)} is unknown; there are {", ".join(OUTPUT_TOPICS)}'
            )
        if self.color_min_depth >= self.color_max_depth:
            raise ParameterError(
                f'color_min_depth {self.color_min_depth} m is not below color_max_depth '
                f'{self.color_max_depth} m: set both, nearest first'
            )
        parse_size(self.input_size)


def parse_size(text: str) -> tuple[int, int] | str:
    """Return (height, width) of 'WIDTHxHEIGHT', or 'bundle' or 'auto' as they are.

    Raises:
        ParameterError: neither a word that is known nor a size in multiples of 32.
    """
    if text in ('bundle', 'auto'):
        return text
    match = re.fullmatch(r'(\d{2,4})x(\d{2,4})', text)
    if match:
        width, height = (int(number) for number in match.groups())
        if width % 32 == 0 and height % 32 == 0:
            return height, width
    raise ParameterError(
        f'input_size: {text!r} is no size: give bundle, auto or WIDTHxHEIGHT in multiples of 32, '
        'e.g. 512x288'
    )


def convert(name: str, parameter: Field[Any], value: Any) -> Any:
    """Return a value in the parameter's own type, checked against its range and choices.

    Args:
        name: of the parameter, for the message.
        parameter: field of `Settings` or `CameraSettings`.
        value: as ROS delivers it.

    Raises:
        ParameterError: the value has another type, lies outside or is no choice.
    """
    default = parameter.default
    choices = parameter.metadata['choices']
    if isinstance(value, bool):  # YAML reads an unquoted true or off as one
        words = ('true', 'on') if value else ('false', 'off')
        value = next((word for word in words if word in choices), value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if parameter.type == 'tuple[float, ...]':
        value = _numbers(name, value)
    elif isinstance(default, tuple):
        value = _names(name, value)
    if type(value) is not type(default):
        raise ParameterError(
            f'{name}: {value!r} is a {type(value).__name__}; expected a '
            f'{type(default).__name__} such as {default!r}'
        )
    if choices and value not in choices:
        raise ParameterError(
            f'{name}: {value!r} is none of {", ".join(str(choice) for choice in choices)}'
        )
    minimum, maximum = parameter.metadata['minimum'], parameter.metadata['maximum']
    if minimum is not None and not minimum <= value <= maximum:
        raise ParameterError(f'{name}: {value} lies outside {minimum} to {maximum}')
    return value


@dataclass(frozen=True)
class Declared:
    """One parameter as it is declared: its full name, its field and the class that holds it."""

    name: str
    field: Field[Any]
    camera: str | None

    @property
    def default(self) -> Any:
        """Return the default value as ROS stores it."""
        default = self.field.default
        return list(default) if isinstance(default, tuple) else default

    @property
    def when(self) -> When:
        """Return when the parameter may change."""
        return self.field.metadata['when']

    @property
    def descriptor(self) -> ParameterDescriptor:
        """Return what ROS tools show of the parameter and check themselves."""
        metadata, default = self.field.metadata, self.default
        constraints = [_WHEN[self.when]]
        if metadata['choices']:
            constraints.insert(0, 'One of ' + ', '.join(map(str, metadata['choices'])) + '.')
        descriptor = ParameterDescriptor(
            description=metadata['description'],
            additional_constraints=' '.join(constraints),
            read_only=self.when == START,
            # A float may be given as 5, a word as true, an empty list has no type: all of these
            # are converted, and refused with a sentence of ours where they do not fit.
            dynamic_typing=True,
        )
        if metadata['minimum'] is not None:
            low, high = metadata['minimum'], metadata['maximum']
            if isinstance(default, int):
                descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high))]
            else:
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=float(low), to_value=float(high))
                ]
        return descriptor


def declarations(cameras: Sequence[str]) -> list[Declared]:
    """Return every parameter of a node with these cameras (none: a single unnamed one)."""
    declared = [Declared(f.name, f, None) for f in fields(Settings)]
    declared += [Declared(f.name, f, '') for f in fields(CameraSettings)]
    for camera in cameras:
        declared += [Declared(f'{camera}.{f.name}', f, camera) for f in fields(CameraSettings)]
    return declared


def read(
    values: Mapping[str, Any], cameras: Sequence[str]
) -> tuple[Settings, dict[str, CameraSettings]]:
    """Return the settings of the node and of each camera ('' for a single unnamed one).

    Args:
        values: by full name, as ROS delivers them; absent ones keep their default. A camera's
            own value (`front.rotate`) goes before the value for all cameras (`rotate`).
        cameras: names from the parameter `cameras`.

    Raises:
        ParameterError: the first value that is refused.
    """
    own: dict[str, Any] = {}
    for_all: dict[str, Any] = {}
    for_one: dict[str, dict[str, Any]] = {camera: {} for camera in cameras}
    for parameter in declarations(cameras):
        if parameter.name not in values:
            continue
        value = convert(parameter.name, parameter.field, values[parameter.name])
        if parameter.camera is None:
            own[parameter.field.name] = value
        elif parameter.camera == '':
            for_all[parameter.field.name] = value
        else:
            for_one[parameter.camera][parameter.field.name] = value
    settings = Settings(**own)
    if not cameras:
        return settings, {'': CameraSettings(**for_all)}
    return settings, {
        camera: CameraSettings(**{**for_all, **for_one[camera]}) for camera in cameras
    }


def render_yaml() -> str:
    """Return the parameter file with all defaults and descriptions."""
    lines = [
        '# Parameters of the node, with their defaults. Written by',
        '# `python -m mtl_perception.ros.parameters > config/perception.yaml`.',
        "# With several cameras, a camera's own value goes before the one for all:",
        '#   cameras: [front, rear]',
        '#   rear.rotate: 180',
        '/**:',
        '  ros__parameters:',
    ]
    for number, parameter in enumerate(declarations([])):
        metadata = parameter.field.metadata
        text = metadata['description']
        if metadata['choices']:
            text += f' One of {", ".join(str(choice) for choice in metadata["choices"])}.'
        if metadata['minimum'] is not None:
            text += f' From {metadata["minimum"]:g} to {metadata["maximum"]:.10g}.'
        if parameter.when != LIVE:
            text += f' {_WHEN[parameter.when]}'
        if number:
            lines.append('')
        lines += textwrap.wrap(text, 93, initial_indent='    # ', subsequent_indent='    # ')
        lines += _yaml_value(parameter.name, parameter.default)
    return '\n'.join(lines) + '\n'


def _yaml_value(name: str, value: Any) -> list[str]:
    if value == []:  # an empty list has no type in ROS 2 and is refused there
        return [f'    # {name}: {_EXAMPLES[name]}']
    if isinstance(value, list):
        return [f'    {name}:', *(f'      - {entry}' for entry in value)]
    if isinstance(value, bool):
        return [f'    {name}: {str(value).lower()}']
    if isinstance(value, str):
        is_word = isinstance(yaml.safe_load(value), str)  # off and true are none to YAML
        return [f'    {name}: {value}' if is_word else f'    {name}: "{value}"']
    if isinstance(value, float) and math.isfinite(value):
        return [f'    {name}: {value!r}']
    return [f'    {name}: {value}']


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    try:
        return tuple(float(entry) for entry in (() if value is None else value))
    except (TypeError, ValueError):
        raise ParameterError(
            f'{name}: {value!r} is no list of numbers; expected e.g. [0.2, 0.0, 0.35]'
        ) from None


def _names(name: str, value: Any) -> tuple[str, ...]:
    # ROS 2 has no type for an empty list: it arrives as None or as an empty array of bytes.
    if value is None or isinstance(value, (str, bool, int, float)):
        entries = () if value is None else (None,)
    else:
        entries = tuple(value)
    if not all(isinstance(entry, str) for entry in entries):
        raise ParameterError(f'{name}: {value!r} is no list of names; expected e.g. [front, rear]')
    return tuple(entry for entry in entries if entry)


if __name__ == '__main__':
    print(render_yaml(), end='')
