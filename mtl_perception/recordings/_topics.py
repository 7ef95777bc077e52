"""Which topics of a bag are cameras, and which hold truth."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mtl_perception.recordings._base import RecordingError
from mtl_perception.recordings._vision_msgs import CLASSIFICATION, DETECTIONS

IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED = 'sensor_msgs/msg/CompressedImage'
CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'
TF_TYPES = ('tf2_msgs/msg/TFMessage', 'tf/msg/tfMessage')
PICTURES = (IMAGE, COMPRESSED)
TRUTHS = ('label', 'depth', 'normal')
ANNOTATIONS = {'boxes': DETECTIONS, 'attributes': CLASSIFICATION}

_ROLE_WORDS = {
    'normal': {'normal', 'normals'},
    'label': {'label', 'labels', 'segmentation', 'semantic', 'semantics', 'mask'},
    'depth': {'depth', 'compresseddepth'},
}
_TRUTH_WORDS = {'gt', 'truth'}
_COLOURED_WORDS = {'color', 'colour', 'colored', 'overlay'}
_REGISTERED_WORDS = {'aligned', 'registered'}
_NO_CAMERA_WORDS = {'confidence', 'ir', 'infra', 'infra1', 'infra2', 'infrared', 'disparity'}
# Below the node's name and, where there are several, the camera's.
_OUTPUTS = (
    r'(segmentation/(mask|confidence|label_info|color|overlay|camera_info)'
    r'|depth/(image|color|camera_info)|normals/(image|color|camera_info)'
    r'|detections|detections_3d|detections/label_info|classification'
    r'|points|obstacles|floor|scan|status|transition_event)(/compressed)?'
)
_COMMON_WORDS = {'image', 'raw', 'rect', 'camera', 'compressed', 'compresseddepth', 'rgb', 'color'}


@dataclass(frozen=True)
class TopicChoice:
    """Topics given by the user, by their full names; those left out are found by type and name.

    `image` may name several cameras.
    """

    image: tuple[str, ...] = ()
    camera_info: str | None = None
    label: str | None = None
    depth: str | None = None
    normal: str | None = None
    boxes: str | None = None
    attributes: str | None = None


@dataclass(frozen=True)
class CameraTopics:
    """The topics that belong to one camera.

    Attributes:
        image: the pictures.
        info: their camera_info, or None.
        truths: 'label', 'depth', 'normal', 'boxes', 'attributes' -> topic.
    """

    image: str
    info: str | None
    truths: Mapping[str, str] = field(default_factory=dict)

    def source(self, role: str) -> str:
        """Return what kind of truth a topic holds: depth that isn't named truth is a sensor's."""
        truth = role != 'depth' or bool(_words(self.truths[role]) & _TRUTH_WORDS)
        return 'ground truth' if truth else 'RGB-D camera'

    def is_registered(self, role: str) -> bool:
        """Tell by its name whether a truth's pixels are those of the pictures."""
        return bool(_words(self.truths[role]) & (_TRUTH_WORDS | _REGISTERED_WORDS))


def find_cameras(
    found: Mapping[str, str], choice: TopicChoice
) -> tuple[list[CameraTopics], list[str]]:
    """Return the cameras of a bag with topics `found` (name -> type), and remarks.

    What a perception node has published is neither camera nor truth.
    """
    return _Finder(found, choice).cameras()


def _words(topic: str) -> set[str]:
    return set(re.split(r'[/_\-.]+', topic.lower())) - {''}


def _base(topic: str) -> str:
    """Return the name of the image a transport belongs to: /x/image for /x/image/compressed."""
    return re.sub(r'/(compressed|compressedDepth)$', '', topic)


def _role(topic: str) -> str:
    """Return 'image', 'label', 'depth', 'normal' or '' (nothing of use) for a picture topic."""
    if topic.endswith('/compressedDepth'):
        return 'depth'
    words = _words(topic)
    for role, names in _ROLE_WORDS.items():
        if words & names:
            # Depth in colours is for people; aligned_depth_to_color is depth.
            return '' if words & _COLOURED_WORDS and not words & _REGISTERED_WORDS else role
    return '' if words & (_NO_CAMERA_WORDS | _TRUTH_WORDS | {'overlay'}) else 'image'


def published_by_node(topics: Mapping[str, str]) -> set[str]:
    """Return which of the topics (name -> type) a perception node published, by name and type."""
    prefixes = {
        re.sub(r'/(segmentation/mask|status)$', '', topic)
        for topic, kind in topics.items()
        if topic.endswith('/segmentation/mask') or kind.endswith('/PerceptionStatus')
    }
    prefixes.discard('')  # a mask at the root is nobody's
    names = '|'.join([r'.*/perception(/\w+)?', *map(re.escape, sorted(prefixes))])
    return {topic for topic in topics if re.fullmatch(f'({names})/{_OUTPUTS}', topic)}


def _one_transport_each(topics: Iterable[str]) -> list[str]:
    """Of the transports of one image keep the most exact: raw, compressedDepth, compressed."""
    groups: dict[str, str] = {}
    for topic in sorted(topics, key=lambda t: (t != _base(t), t.endswith('/compressed'), t)):
        groups.setdefault(_base(topic), topic)
    return [groups[name] for name in sorted(groups)]


class _Finder:
    def __init__(self, found: Mapping[str, str], choice: TopicChoice) -> None:
        self.found, self.choice = found, choice
        self.own = own = published_by_node(found)
        self.by_role: dict[str, list[str]] = defaultdict(list)
        for topic, kind in sorted(found.items()):
            if topic not in own and kind in PICTURES:
                self.by_role[_role(topic)].append(topic)
        self.infos = [t for t, kind in sorted(found.items()) if kind == CAMERA_INFO]
        self.infos = [topic for topic in self.infos if topic not in own]
        self.remarks: list[str] = []

    def cameras(self) -> tuple[list[CameraTopics], list[str]]:
        images = self._usable(self.choice.image, PICTURES)
        # What is given as truth of a camera is not another camera.
        given = {getattr(self.choice, role) for role in TRUTHS}
        images = images or _one_transport_each(set(self.by_role['image']) - given)
        self._check_given(images)
        cameras = []
        for image in images:
            truths = {role: self._truth(image, role, len(images) == 1) for role in TRUTHS}
            truths |= {
                role: self._annotation(image, role, len(images) == 1) for role in ANNOTATIONS
            }
            truths = {role: topic for role, topic in truths.items() if topic}
            cameras.append(CameraTopics(image, self._info(image, len(images) == 1), truths))
        return cameras, list(dict.fromkeys(self.remarks))

    def _check_given(self, images: Sequence[str]) -> None:
        """Refuse what is given for one camera where there are several."""
        roles = ('camera_info', *TRUTHS, *ANNOTATIONS)
        given = [topic for role in roles if (topic := getattr(self.choice, role))]
        if given and len(images) > 1:
            raise RecordingError(
                f'{", ".join(given)} cannot belong to all of {", ".join(images)}: choose the '
                'camera with --image'
            )

    def _usable(self, names: Sequence[str], kinds: tuple[str, ...]) -> list[str]:
        usable = []
        for name in names:
            if name not in self.found:
                there = ', '.join(sorted(self.found)) or 'none'
                self.remarks.append(f'there is no topic {name}; there are {there}')
            elif self.found[name] not in kinds:
                self.remarks.append(f'{name} is {self.found[name]}, expected {" or ".join(kinds)}')
            else:
                usable.append(name)
        return usable

    def _info(self, image: str, alone: bool) -> str | None:
        if self.choice.camera_info:
            given = self._usable((self.choice.camera_info,), (CAMERA_INFO,))
            if given:
                return given[0]
        sibling = f'{_base(image).rpartition("/")[0]}/camera_info'
        if sibling in self.infos:
            return sibling
        if alone and len(self.infos) == 1:
            return self.infos[0]
        self.remarks.append(f'{image} has no camera_info: its depth is not calibrated')
        return None

    def _truth(self, image: str, role: str, alone: bool) -> str | None:
        given = getattr(self.choice, role)
        if given:
            usable = self._usable((given,), PICTURES)
            return usable[0] if usable else None
        return self._choose(image, role, _one_transport_each(set(self.by_role[role])), alone)

    def _annotation(self, image: str, role: str, alone: bool) -> str | None:
        """Return the topic of boxes or classes: a given one, or one that is named truth.

        Others are what some other network has found.
        """
        given, kind = getattr(self.choice, role), ANNOTATIONS[role]
        if given:
            usable = self._usable((given,), (kind,))
            return usable[0] if usable else None
        offered = [
            topic
            for topic, found in sorted(self.found.items())
            if found == kind and topic not in self.own and _words(topic) & _TRUTH_WORDS
        ]
        return self._choose(image, role, offered, alone)

    def _choose(self, image: str, role: str, there: list[str], alone: bool) -> str | None:
        """Return the topic among those there are that belongs to a camera."""
        offered = [topic for topic in there if _words(topic) & _TRUTH_WORDS] or there
        own = _words(_base(image)) - _COMMON_WORDS
        if not alone:
            # With several cameras only a name in common tells whose truth it is.
            offered = [topic for topic in offered if own & _words(topic)]
        # A sensor's depth is of use as far as it lies in the colour camera's frame.
        offered.sort(key=lambda t: (not _words(t) & _REGISTERED_WORDS, -len(own & _words(t)), t))
        if len(offered) > 1:
            self.remarks.append(f'{offered[0]} is taken as {role} of {image}, not {offered[1]}')
        if not offered and there:
            self.remarks.append(f'no {role} topic can be told to belong to {image}')
        return offered[0] if offered else None
