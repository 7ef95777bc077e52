"""A bundle comes back as it was written; anything else is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import convert_model_to_external_data
from pydantic import ValidationError
from tiny_graph import tiny_manifest, tiny_model
from tiny_things import things_manifest, write_things_bundle

from mtl_perception.bundle import (
    AttributeSpec,
    BundleError,
    BundleManifest,
    DepthSpec,
    MetricsSpec,
    ModelBundle,
    nyu13_classes,
    ranked_classes,
)


@pytest.fixture
def bundle(tiny_bundle: ModelBundle, tmp_path: Path) -> Path:
    """Return a bundle's folder that a test may damage."""
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / 'copy'))


def edit(folder: Path, **changes: object) -> None:
    """Change entries of bundle.json."""
    path = folder / 'bundle.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def files_of(folder: Path) -> dict[str, str]:
    return json.loads((folder / 'bundle.json').read_text())['files']


def test_a_bundle_comes_back_as_it_was_written(tmp_path: Path) -> None:
    onnx.save(tiny_model(), tmp_path / 'graph.onnx')

    written = ModelBundle.write(tmp_path / 'b', tiny_manifest(), tmp_path / 'graph.onnx')
    read = ModelBundle.load(tmp_path / 'b')

    assert read.manifest == written.manifest
    assert read.manifest.model_copy(update={'files': {}}) == tiny_manifest()
    assert read.model_path.read_bytes() == (tmp_path / 'graph.onnx').read_bytes()
    assert read.input_size == (48, 64)
    assert [spec.name for spec in read.classes][4] == 'floor'
    assert read.outputs == ('label', 'confidence', 'depth', 'normal')


def test_writing_again_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    onnx.save(tiny_model(), tmp_path / 'graph.onnx')
    for description in ('first', 'second'):
        manifest = tiny_manifest().model_copy(update={'description': description})
        ModelBundle.write(tmp_path / 'b', manifest, tmp_path / 'graph.onnx')

    assert ModelBundle.load(tmp_path / 'b').manifest.description == 'second'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['b', 'graph.onnx']


def test_writing_over_something_else_is_refused(tmp_path: Path) -> None:
    onnx.save(tiny_model(), tmp_path / 'graph.onnx')
    (tmp_path / 'thesis').mkdir()
    (tmp_path / 'thesis' / 'chapter.txt').write_text('precious')

    with pytest.raises(BundleError, match='exists and is no bundle'):
        ModelBundle.write(tmp_path / 'thesis', tiny_manifest(), tmp_path / 'graph.onnx')

    assert (tmp_path / 'thesis' / 'chapter.txt').read_text() == 'precious'


def test_a_shipped_bundle_is_found_by_its_name(
    tiny_bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_bundle.path, tmp_path / 'share' / 'mtl_perception' / 'models' / 'tiny')
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))

    assert ModelBundle.load('tiny').name == 'tiny'


def test_an_unknown_name_lists_what_there_is(
    tiny_bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_bundle.path, tmp_path / 'share' / 'mtl_perception' / 'models' / 'tiny')
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))

    with pytest.raises(BundleError, match=r"no bundle 'huge': .*\btiny\b"):
        ModelBundle.load('huge')


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r'holds no bundle\.json'):
        ModelBundle.load(tmp_path)


def test_a_cut_off_manifest_is_refused(bundle: Path) -> None:
    text = (bundle / 'bundle.json').read_text()
    (bundle / 'bundle.json').write_text(text[: len(text) // 2])

    with pytest.raises(BundleError, match=r"bundle.json can't be read .*again"):
        ModelBundle.load(bundle)


@pytest.mark.parametrize('format', [2, 0, '1', None, True, 1.5])
def test_unknown_formats_are_refused(bundle: Path, format: object) -> None:
    edit(bundle, format=format)

    with pytest.raises(BundleError, match='this version reads format 1'):
        ModelBundle.load(bundle)


@pytest.mark.parametrize(
    'changes',
    [
        {'tasks': ['segmentation', 'sound']},
        {'tasks': ['depth']},
        {'depth': None},
        {'input': {'height': 0, 'width': 64, 'resizable': True}},
        {'surprise': 1},
        {'segmentation': {'classes': [{'name': 'bed', 'color': [0, 0, 256]}]}},
    ],
)
def test_invalid_descriptions_are_refused(bundle: Path, changes: dict) -> None:
    edit(bundle, **changes)

    with pytest.raises(BundleError, match='is no valid bundle description') as refusal:
        ModelBundle.load(bundle)

    assert '\n' not in str(refusal.value)


def test_a_missing_file_is_refused(bundle: Path) -> None:
    (bundle / 'model.onnx').unlink()

    with pytest.raises(BundleError, match=r'model.onnx is missing'):
        ModelBundle.load(bundle)


def test_a_cut_off_graph_is_refused(bundle: Path) -> None:
    content = (bundle / 'model.onnx').read_bytes()
    (bundle / 'model.onnx').write_bytes(content[:-10])

    with pytest.raises(BundleError, match='cut off or changed'):
        ModelBundle.load(bundle)


def test_a_manifest_without_the_graph_is_refused(bundle: Path) -> None:
    edit(bundle, files={})

    with pytest.raises(BundleError, match=r'lists no model\.onnx'):
        ModelBundle.load(bundle)


@pytest.mark.parametrize('name', ['../secret.txt', '/etc/hostname.txt', 'a/../../secret.txt'])
def test_paths_out_of_the_bundle_are_refused(bundle: Path, name: str) -> None:
    (bundle.parent / 'secret.txt').write_text('x')
    edit(bundle, files={**files_of(bundle), name: '0' * 64})

    with pytest.raises(BundleError, match='leads out of the bundle'):
        ModelBundle.load(bundle)


def test_links_out_of_the_bundle_are_refused(bundle: Path) -> None:
    (bundle / 'model.onnx').rename(bundle.parent / 'elsewhere.onnx')
    (bundle / 'model.onnx').symlink_to(bundle.parent / 'elsewhere.onnx')

    with pytest.raises(BundleError, match='link that leads out of the bundle'):
        ModelBundle.load(bundle)


def test_pickles_are_refused_by_their_name(bundle: Path) -> None:
    (bundle / 'weights.pkl').write_bytes(pickle.dumps([1]))
    edit(bundle, files={**files_of(bundle), 'weights.pkl': '0' * 64})

    with pytest.raises(BundleError, match='pickles may run code'):
        ModelBundle.load(bundle)


@pytest.mark.parametrize('content', [pickle.dumps({'w': 1}), b'PK\x03\x04torch archive'])
def test_pickles_under_another_name_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / 'fake.onnx').write_bytes(content)

    with pytest.raises(BundleError, match='pickle or archive'):
        ModelBundle.write(tmp_path / 'b', tiny_manifest(), tmp_path / 'fake.onnx')

    assert not (tmp_path / 'b').exists()


def test_weights_in_further_files_are_refused(tmp_path: Path) -> None:
    model = tiny_model()
    convert_model_to_external_data(model, location='../weights.bin', size_threshold=0)
    (tmp_path / 'graph.onnx').write_bytes(model.SerializeToString())

    with pytest.raises(BundleError, match='keeps weights in other files'):
        ModelBundle.write(tmp_path / 'b', tiny_manifest(), tmp_path / 'graph.onnx')


def test_the_nyu_classes_are_thirteen_with_distinct_colours() -> None:
    classes = nyu13_classes()

    assert ' '.join(spec.name for spec in classes) == (
        'bed books ceiling chair floor furniture objects picture sofa table tv wall window'
    )
    assert len({spec.color for spec in classes}) == 13


def test_classes_are_ranked_within_their_attribute() -> None:
    attributes = [
        AttributeSpec(name='room', kind='single', classes=('kitchen', 'office', 'bathroom')),
        AttributeSpec(name='seen', kind='multi', classes=('lit', 'dark')),
    ]
    ranked = ranked_classes(attributes, np.array([0.2, 0.7, 0.1, 0.4, 0.9], np.float32))
    assert [name for name, _ in ranked] == [
        'room/office', 'room/kitchen', 'room/bathroom', 'seen/dark', 'seen/lit',
    ]  # fmt: skip
    assert [score for _, score in ranked] == pytest.approx([0.7, 0.2, 0.1, 0.9, 0.4])


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'detection': None}, "section 'detection' is absent"),
        ({'tasks': ('detection',), 'segmentation': None}, "section 'classification' is present"),
        (
            {'classification': {'attributes': [{'name': 'A b', 'kind': 'multi', 'classes': 'x'}]}},
            'String should match pattern',
        ),
        (
            {
                'classification': {
                    'attributes': [{'name': 'a', 'kind': 'multi', 'classes': ['x', 'x']}]
                }
            },
            'empty or occur twice',
        ),
    ],
)
def test_boxes_and_classes_must_be_described(change: dict[str, Any], reason: str) -> None:
    whole = things_manifest(('segmentation', 'detection', 'classification')).model_dump()
    with pytest.raises(ValidationError, match=reason):
        BundleManifest.model_validate(whole | change)


def test_bundles_of_boxes_and_classes_are_read_as_written(tmp_path: Path) -> None:
    bundle = write_things_bundle(tmp_path / 'things')
    assert bundle.outputs[-4:] == ('boxes', 'box_scores', 'box_labels', 'class_scores')
    assert [spec.name for spec in bundle.box_classes] == ['lamp', 'cup']
    assert bundle.manifest.classification.slices == {'room': slice(0, 3), 'seen': slice(3, 5)}
    assert ModelBundle.load('pvt_v2_b0').box_classes == []


def test_newer_figures_replace_those_on_the_same_data(
    tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    own = ModelBundle.write(tmp_path / 'own', tiny_bundle.manifest, tiny_bundle.model_path)

    def figures(data: str, miou: float) -> MetricsSpec:
        return MetricsSpec(data=data, frames=3, command='c', figures={'miou': miou})

    (own.path / 'README.md').write_text('the card')
    own = own.state([figures('a/test', 0.1), figures('b/test', 0.2)])
    own = own.state([figures('a/test', 0.3)])
    stated = {spec.data: spec.figures['miou'] for spec in own.manifest.metrics}
    assert stated['a/test'] == 0.3
    assert stated['b/test'] == 0.2
    assert own.model_sha256 == tiny_bundle.model_sha256
    assert ModelBundle.load(own.path).manifest == own.manifest
    names = {'README.md', 'bundle.json', 'model.onnx'}
    assert {path.name for path in own.path.iterdir()} == names


def test_a_bundle_that_cannot_be_replaced_stays(
    tiny_bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ModelBundle.write(tmp_path / 'own', tiny_bundle.manifest, tiny_bundle.model_path)
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == 'new':
            raise PermissionError('no')
        return rename(path, target)

    monkeypatch.setattr(Path, 'rename', fail)
    with pytest.raises(PermissionError):
        ModelBundle.write(own.path, tiny_bundle.manifest, tiny_bundle.model_path)
    assert ModelBundle.load(own.path).manifest == own.manifest


@pytest.mark.parametrize(('least', 'most'), [(10.0, 0.1), (0.1, float('inf')), (1.0, 1.0)])
def test_a_range_of_depth_is_one(least: float, most: float) -> None:
    with pytest.raises(ValidationError):
        DepthSpec(min=least, max=most, focal_length_px=300.0)
