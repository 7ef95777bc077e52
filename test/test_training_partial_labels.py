"""Data sets that know different things: their vocabularies, their mixture, and what is learnt."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the workshop needs requirements/training.txt')

from training_parts import tiny_config, write_pictures, write_scenes  # noqa: E402

from mtl_perception.bundle import AttributeSpec, ClassSpec  # noqa: E402
from mtl_perception.datasets import (  # noqa: E402
    ROOMS,
    THINGS,
    LabelledFrame,
    assumed_intrinsics,
)
from mtl_training.balancing import BALANCERS, build_balancer  # noqa: E402
from mtl_training.config import ConfigError, TrainingConfig, parse_config  # noqa: E402
from mtl_training.data import open_data  # noqa: E402
from mtl_training.datasets import (  # noqa: E402
    BatchRequest,
    DatasetError,
    Mixture,
    PreparedArrays,
    prepare,
)
from mtl_training.datasets.sources import refuse_strange_names  # noqa: E402
from mtl_training.datasets.vocabulary import Translation, Vocabulary  # noqa: E402
from mtl_training.networks import NetworkConfig, build_network  # noqa: E402
from mtl_training.processes import Processes  # noqa: E402
from mtl_training.tasks import build_task  # noqa: E402
from mtl_training.trainer import train  # noqa: E402

ALL = ['segmentation', 'depth', 'normals', 'detection', 'classification']
SKY = AttributeSpec(name='sky', kind='single', classes=('clear', 'rain', 'snow'))
PARTS = {0: ['segmentation'], 1: ['depth'], 2: ['detection']}


class Streets:
    """Six pictures of another data set: boxes of its own classes, and the sky of some."""

    name = 'streets'
    box_classes = ('rider', 'couch', 'tv')
    attributes = (SKY,)

    def __init__(self) -> None:
        self.ids = [str(k) for k in range(6)]

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> LabelledFrame:
        """Return a frame without pixel labels or depth, every second one without boxes."""
        rgb = np.full((40, 80, 3), 20 * index, np.uint8)
        labelled = index % 2 == 0
        return LabelledFrame(
            id=self.ids[index],
            rgb=rgb,
            label=None,
            depth=None,
            normal=None,
            intrinsics=assumed_intrinsics(80, 40),
            normals_source='none',
            boxes=np.array([[0, 0, 40, 40], [10, 4, 60, 36], [8, 8, 16, 16]], np.float32)
            if labelled
            else None,
            box_labels=np.array([0, 1, -1]) if labelled else None,
            attributes={'sky': 1} if index < 3 else {},
        )

    def check(self) -> None:
        """Find everything whole."""

    def fingerprint(self) -> str:
        """Return a constant."""
        return 'streets'


def test_arrays_keep_what_a_data_set_knows_and_take_no_room_for_the_rest(tmp_path: Path) -> None:
    arrays = prepare(Streets(), 'train', tmp_path, size=(48, 64), processes=0)
    assert set(arrays.truths) == {'boxes', 'attributes'}
    assert not (arrays.folder / 'depth.npy').exists()
    frame = arrays.read(0)
    np.testing.assert_allclose(frame.boxes[1], [8, 3.2, 48, 28.8])
    assert frame.box_labels.tolist() == [0, 1, -1]
    assert frame.boxes_known.all() and frame.attributes.tolist() == [0, 1, 0]
    assert (frame.label == 255).all() and not frame.depth.any() and not frame.normal.any()
    unseen = arrays.read(5)
    assert len(unseen.boxes) == 0 and not unseen.boxes_known.any()
    assert unseen.attributes.tolist() == [-1, -1, -1]


def test_names_are_translated_and_what_has_none_is_counted(tmp_path: Path) -> None:
    arrays = prepare(Streets(), 'train', tmp_path, size=(48, 64), processes=0)
    ours = Vocabulary(box_classes=('chair', 'sofa', 'tv'), attributes=(SKY,))
    spoken = arrays.speaking(ours, {'couch': 'sofa'})
    frame = pickle.loads(pickle.dumps(spoken)).read(2)
    assert frame.box_labels.tolist() == [1, -1]
    np.testing.assert_allclose(frame.boxes[0], [8, 3.2, 48, 28.8])
    # Nobody looked for chairs: none are known to be absent.
    assert frame.boxes_known.tolist() == [False, True, True]
    assert spoken.left_out() == '3 boxes of classes that are not trained: rider 3'
    assert arrays.speaking(ours, tasks=['classification']).read(2).boxes_known.any() == False  # noqa: E712
    with pytest.raises(DatasetError, match="rename names \\['sofa'\\]"):
        arrays.speaking(ours, {'sofa': 'couch'})


def test_pixels_and_attributes_are_translated_by_name() -> None:
    theirs = Vocabulary(classes=('wall', 'carpet', 'sky'), num_classes=3, attributes=(SKY,))
    weather = AttributeSpec(name='weather', kind='single', classes=('rain', 'clear'))
    ours = Vocabulary(classes=('floor', 'wall'), num_classes=2, attributes=(weather,))
    translation = Translation(theirs, ours, {'carpet': 'floor', 'sky': 'weather'})
    assert translation.labels[[0, 1, 2, 255]].tolist() == [1, 0, 255, 255]
    assert translation.unused['classes'] == ['sky']
    assert translation.attributes(np.array([1, 0, 0], np.int8)).tolist() == [0, 1]
    # Snow has no place in our answers: the picture's weather is unknown, not "neither".
    assert translation.attributes(np.array([0, 0, 1], np.int8)).tolist() == [-1, -1]
    assert translation.unused['attributes'] == ['sky snow']
    assert Translation(theirs, Vocabulary()).unused['attributes'] == ['sky']
    with pytest.raises(DatasetError, match='3 classes of pixels, the network 2'):
        Translation(Vocabulary(num_classes=3), Vocabulary(num_classes=2))


@pytest.mark.parametrize(
    ('boxes', 'labels', 'said'),
    [
        ([[10, 4, 5, 36]], [0], 'x0 < x1'),
        ([[10, 4, 90, 36]], [0], 'in a picture of 80x40'),
        ([[10, 4, 30, 36]], [3], r'\[3\]: 0\.\.2, -1 for a region'),
        ([[10, 4, 30, 36]], [-6], r'-5\.\.-3 for one of a class'),
        ([[10, 4, 30, 36]], [-2], r'\[-2\]: 0\.\.2'),
        ([[10, 4, 30, 36]], [0, 1], '1 boxes and 2 labels'),
    ],
)
def test_impossible_boxes_are_refused_by_frame(
    boxes: list[list[float]], labels: list[int], said: str, tmp_path: Path
) -> None:
    class Broken(Streets):
        def read(self, index: int) -> LabelledFrame:
            frame = vars(super().read(index))
            wrong = {'boxes': np.array(boxes, np.float32), 'box_labels': np.array(labels)}
            return LabelledFrame(**(frame | (wrong if index == 4 else {})))

    with pytest.raises(DatasetError, match=said) as caught:
        prepare(Broken(), 'train', tmp_path, size=(48, 64), processes=0)
    assert 'frame 4' in str(caught.value)


def three_parts(tmp_path: Path, count: int = 12, **changes: object) -> TrainingConfig:
    """Return a run on one folder that is cut into three parts, which teach one task each."""
    data = write_scenes(write_pictures(tmp_path / 'data', count=count))
    sources = [
        {
            'name': tasks[0],
            'path': str(data),
            'height': 64,
            'width': 96,
            'part': [number, 3],
            'tasks': tasks,
            'weight': 1.0 + number,
        }
        for number, tasks in PARTS.items()
    ]
    held_out = [
        {'source': tasks[0], 'blocks': 1, 'frames_per_block': 1} for tasks in PARTS.values()
    ]
    parts = {
        'tasks': ['segmentation', 'depth', 'detection'],
        'data': {
            'cache': str(tmp_path / 'cache'),
            'sources': sources,
            'held_out': held_out,
            'focal_length_px': 60.0,
        },
    }
    values = tiny_config(data, tmp_path / 'cache').model_dump() | parts | changes
    return parse_config(values, 'test')


def test_a_batch_mixes_parts_and_every_frame_teaches_its_own_task(tmp_path: Path) -> None:
    config = three_parts(tmp_path)
    data = open_data(config)
    assert [len(subset) for subset in data.train] == [3, 3, 3]
    assert len(data.held_out) == 3
    weights = [source.weight for source in config.data.sources]
    mixture = Mixture(data.train, weights, 12, 60.0, config.augmentation, seed=0)
    batch = mixture[BatchRequest(0, 64, 96)]
    origins = [name.partition(':')[0] for name in batch['ids']]
    assert [origins.count(tasks[0]) for tasks in PARTS.values()] == [2, 4, 6]
    for index, origin in enumerate(origins):
        taught = {
            'segmentation': bool((batch['label'][index] != 255).any()),
            'depth': bool((batch['depth'][index] > 0).any()),
            'detection': bool(batch['boxes_known'][index].any()),
        }
        assert taught == {task: task == origin for task in taught}
        assert not batch['normal'][index].any()
        assert (batch['attributes'][index] == -1).all()


def test_a_task_without_any_truth_is_named_before_training(tmp_path: Path) -> None:
    config = three_parts(tmp_path)
    with pytest.raises(DatasetError, match=r'data\.sources .* has truth for normals'):
        open_data(config.model_copy(update={'tasks': ['segmentation', 'normals']}))
    data = config.data.model_copy(update={'held_out': config.data.judges[:2]})
    with pytest.raises(DatasetError, match=r'data\.held_out .* has truth for detection'):
        open_data(config.model_copy(update={'data': data}))
    plain = write_pictures(tmp_path / 'plain')
    with pytest.raises(DatasetError, match='has truth for detection, classification'):
        open_data(tiny_config(plain, tmp_path / 'cache', tasks=ALL))


def test_a_source_of_its_own_judges_with_all_its_frames_and_trains_nothing(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / 'data')
    write_pictures(tmp_path / 'data', 'validation', count=3, seed=7)
    size = {'height': 64, 'width': 96}
    judge = {'name': 'validation', 'path': str(data), 'split': 'validation', **size}
    values = tiny_config(data, tmp_path / 'cache').model_dump()
    values['data']['held_out'] = {'source': judge}
    config = parse_config(values, 'test')
    opened = open_data(parse_config(config.model_dump(), 'a checkpoint'))
    assert [(part.name, len(part)) for part in opened.train] == [('boxes', 8)]
    assert opened.held_out.name == 'validation' and len(opened.held_out) == 3
    result = train(config, tmp_path / 'run')
    assert result['last']['segmentation']['miou'] is not None
    for wrong, said in (
        (judge | {'name': 'boxes'}, 'name of a source that trains'),
        ('validation', 'or give the settings of a source of its own'),
    ):
        values['data']['held_out'] = {'source': wrong}
        with pytest.raises(ConfigError, match=said):
            parse_config(values, 'test')
    values['data']['held_out'] = {'source': judge | {'split': 'train'}}
    with pytest.raises(DatasetError, match='8 pictures train in one data set and judge in'):
        open_data(parse_config(values, 'test'))


@pytest.mark.parametrize(
    ('words', 'tasks', 'said'),
    [
        (
            Vocabulary(box_classes=('car', 'person')),
            ['detection'],
            r'source streets has the classes of boxes rider, couch, tv, and none of them is one '
            r"of the network's \(car, person\): .* network\.box_classes",
        ),
        (
            Vocabulary(attributes=(AttributeSpec(name='sky', kind='single', classes=('fog',)),)),
            ['classification'],
            r'attributes sky \(clear, rain, snow\), .* \(sky \(fog\)\): .* without classification',
        ),
    ],
)
def test_a_source_that_shares_no_name_with_the_network_is_refused(
    words: Vocabulary, tasks: list[str], said: str, tmp_path: Path
) -> None:
    arrays = prepare(Streets(), 'train', tmp_path, size=(48, 64), processes=0)
    with pytest.raises(DatasetError, match=said):
        refuse_strange_names({'streets': arrays.speaking(words)}, tasks)
    refuse_strange_names({'streets': arrays.speaking(words)}, ['depth'])
    refuse_strange_names({'streets': arrays.speaking(words, tasks=['depth'])}, tasks)
    refuse_strange_names({'streets': arrays}, tasks)


def test_a_training_asks_whether_its_sources_speak_its_names(tmp_path: Path) -> None:
    config = three_parts(tmp_path, network={'backbone': 'pvt_v2_b0', 'box_classes': ['car']})
    with pytest.raises(DatasetError, match=r'source detection has the classes of boxes bed, '):
        open_data(config)


class Streetscape(Streets):
    """The same pictures with labels of the pixels: 0 is the first class, 1 the second."""

    def __init__(self, name: str, *classes: str) -> None:
        super().__init__()
        self.name = name
        self.classes = [ClassSpec(name=name, color=(0, 0, 0)) for name in classes]

    def read(self, index: int) -> LabelledFrame:
        """Return a frame whose pixels are all of the second class."""
        return dataclasses.replace(super().read(index), label=np.ones((40, 80), np.uint8))

    def fingerprint(self) -> str:
        """Return the names."""
        return str(self.classes)


def test_ids_of_pixels_that_mean_different_classes_are_refused(tmp_path: Path) -> None:
    def opened(classes: tuple[str, ...]) -> dict[str, PreparedArrays]:
        words = Vocabulary(classes, len(classes) or 3)
        readers = (
            Streetscape('one', 'road', 'wall'),
            Streetscape('two', 'road', 'sky', 'wall'),
            Streetscape('same', 'road', 'sky'),
        )
        return {
            reader.name: prepare(reader, 'train', tmp_path, processes=0).speaking(words)
            for reader in readers
        }

    nameless = opened(())
    with pytest.raises(
        DatasetError, match=r'of one \(road, wall\) and of two \(road, sky, wall\)'
    ):
        refuse_strange_names(nameless, ['segmentation'])
    refuse_strange_names(nameless, ['depth'])
    refuse_strange_names({name: nameless[name] for name in ('two', 'same')}, ['segmentation'])
    named = opened(('wall', 'road'))
    refuse_strange_names(named, ['segmentation'])
    assert (named['one'].read(0).label == 0).mean() > 0.5
    assert '; classes of pixels that are not trained: sky; ' in named['two'].left_out()
    with pytest.raises(DatasetError, match=r'classes of pixels road, wall, .* \(bed, chair\)'):
        refuse_strange_names(opened(('bed', 'chair')), ['segmentation'])


def test_pixels_without_names_are_not_taken_for_the_networks(tmp_path: Path) -> None:
    def opened(classes: tuple[str, ...]) -> dict[str, PreparedArrays]:
        words = Vocabulary(('road', 'wall', 'sky'), 3)
        streets = prepare(Streetscape('streets', 'wall', 'sky'), 'train', tmp_path, processes=0)
        rooms = prepare(Streetscape('rooms'), 'train', tmp_path, processes=0, num_classes=3)
        return {
            'streets': streets.speaking(words),
            'rooms': rooms.speaking(words, classes=classes),
        }

    with pytest.raises(DatasetError, match=r'pixels of rooms have no names, those of streets'):
        refuse_strange_names(opened(()), ['segmentation'])
    refuse_strange_names(opened(()), ['depth'])
    sets = opened(('floor', 'wall', 'bed'))
    refuse_strange_names(sets, ['segmentation'])
    assert set(np.unique(sets['rooms'].read(0).label)) == {1, 255}
    with pytest.raises(DatasetError, match='names its own classes'):
        sets['streets'].speaking(Vocabulary(('road',), 1), classes=('floor', 'wall'))


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    values = three_parts(tmp_path).model_dump()
    for change, said in (
        ({'network': {'num_classes': 2, 'classes': ['a', 'b', 'c']}}, '3 classes are named'),
        ({'network': {'box_classes': ['a', 'a']}}, 'repeat'),
        ({'network': {'attributes': []}}, 'at least 1'),
        ({'tasks': ['pose']}, 'tasks'),
    ):
        with pytest.raises(ConfigError, match=said):
            parse_config(values | change, 'test')
    values['data']['sources'][0]['part'] = [3, 3]
    with pytest.raises(ConfigError, match='part'):
        parse_config(values, 'test')


def five_task_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(NetworkConfig('test_efficientnet_gn', decoder_channels=16, tasks=ALL))


def five_task_losses(
    network: torch.nn.Module, known: list[str]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the losses of a batch that has truth for some tasks, and which those are."""
    random = torch.Generator().manual_seed(1)
    size = (2, 32, 64)
    label = torch.randint(0, 13, size, generator=random)
    normal = torch.nn.functional.normalize(torch.randn(2, 3, 32, 64, generator=random), dim=1)
    boxes = torch.tensor([[[4.0, 4, 30, 28]], [[20.0, 2, 60, 30]]])
    attributes = torch.zeros(2, len(ROOMS), dtype=torch.int8)
    attributes[:, 2] = 1
    whole = {
        'label': label,
        'depth': 1 + torch.rand(size, generator=random),
        'normal': normal,
        'boxes': boxes,
        'box_labels': torch.tensor([[1], [4]]),
        'boxes_known': torch.ones(2, len(THINGS), dtype=torch.bool),
        'attributes': attributes,
    }
    nothing = {
        'segmentation': {'label': torch.full(size, 255)},
        'depth': {'depth': torch.zeros(size)},
        'normals': {'normal': torch.zeros(2, 3, 32, 64)},
        'detection': {
            'box_labels': torch.full((2, 1), -2),
            'boxes_known': torch.zeros(2, len(THINGS), dtype=torch.bool),
        },
        'classification': {'attributes': torch.full_like(attributes, -1)},
    }
    batch = dict(whole)
    for task in ALL:
        if task not in known:
            batch |= nothing[task]
    options = {
        'classification': {
            'attributes': (AttributeSpec(name='room', kind='single', classes=ROOMS),)
        }
    }
    tasks = {task: build_task(task, options.get(task)) for task in ALL}
    image = torch.randint(0, 255, (2, 3, 32, 64), generator=random)
    present = Processes().present(tasks, batch)
    outputs = network(image)
    return {task: tasks[task].loss(outputs, batch) for task in present}, present


def options_of(method: str) -> dict[str, object]:
    if method == 'constants':
        return {'weights': dict.fromkeys(ALL, 0.5)}
    return {'warmup_steps': 1} if method == 'stch' else {'period': 1} if method == 'dwa' else {}


@pytest.mark.parametrize('method', BALANCERS)
def test_every_method_balances_what_a_batch_has_and_leaves_the_rest_alone(method: str) -> None:
    network = five_task_network()
    balancer = build_balancer(method, ALL, **options_of(method))
    balancer.attach(network)
    known = [ALL, ['segmentation', 'detection'], ['classification'], ['depth', 'detection'], ALL]
    for wanted in known:
        network.zero_grad(set_to_none=True)
        losses, present = five_task_losses(network, wanted)
        assert present == [task for task in ALL if task in wanted]
        weights = balancer.backward(losses, network)
        assert list(weights) == present
        assert all(np.isfinite(weight) for weight in weights.values())
        for task in ALL:
            taught = [p.grad is not None and bool(p.grad.any()) for p in head(network, task)]
            assert all(taught) if task in wanted else not any(taught), task
        shared = [p for p in network.shared_parameters() if p.grad is not None]
        assert shared and all(p.grad.isfinite().all() for p in shared)
        if balancer.needs_losses_after_step:
            balancer.after_step({task: loss.detach() * 0.9 for task, loss in losses.items()})
    state = balancer.state_dict()
    assert all(value.isfinite().all() for value in state.values())


def head(network: torch.nn.Module, task: str) -> list[torch.nn.Parameter]:
    """Return the parameters of a head's last layer."""
    return [p for name, p in network.heads[task].named_parameters() if p.dim() > 1][-1:]


@pytest.mark.parametrize('method', ['upgrad', 'pcgrad', 'nash_mtl', 'gradvac', 'gls'])
def test_absent_tasks_change_nothing_for_the_others(method: str) -> None:
    wanted = ['segmentation', 'detection']
    gradients = []
    for tasks in (ALL, wanted):
        network = five_task_network()
        balancer = build_balancer(method, tasks)
        balancer.attach(network)
        balancer.backward(five_task_losses(network, wanted)[0], network)
        gradients.append(
            torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        )
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_features_are_no_place_for_a_head_that_does_not_read_them() -> None:
    balancer = build_balancer('mgda', ALL, at='features')
    with pytest.raises(ValueError, match='classification does not read the map'):
        balancer.attach(five_task_network())


@pytest.mark.parametrize(
    ('method', 'options'), [('upgrad', {'at': 'features'}), ('famo', {}), ('dwa', {'period': 2})]
)
def test_three_single_task_parts_train_one_network_and_are_measured_together(
    method: str, options: dict[str, object], tmp_path: Path
) -> None:
    config = three_parts(
        tmp_path,
        network={'backbone': 'test_efficientnet_gn', 'decoder_channels': 16},
        balancing={'method': method, 'options': options},
        schedule={
            'steps': 5,
            'warmup_steps': 1,
            'evaluations': 1,
            'stages': [{'height': 32, 'width': 64}],
        },
    )
    result = train(config, tmp_path / 'run')
    last = result['last']
    assert result['steps'] == 5
    assert last['segmentation']['miou'] is not None
    assert last['depth']['abs_err'] is not None
    assert last['detection']['boxes'] == 1
    assert 0 <= last['score'] <= 1
    lines = (tmp_path / 'run' / 'losses.jsonl').read_text().splitlines()
    # Two frames a step come from at most two of the parts.
    assert all(len(set(json.loads(line)) & set(config.tasks)) <= 2 for line in lines)
    assert {task for line in lines for task in json.loads(line)} >= {'segmentation', 'detection'}
