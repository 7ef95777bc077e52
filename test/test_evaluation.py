"""Evaluation of recordings: figures, faults, fleets and recorded predictions."""

from __future__ import annotations

import json
import os
import signal
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import numpy as np
import onnx
import pytest
from bag_writing import (
    IMAGE,
    LABEL,
    PERIOD_NS,
    SIZE,
    START_NS,
    K,
    bag_sink,
    scene,
    write_bag,
)
from onnx import numpy_helper
from tiny_graph import tiny_manifest, tiny_model
from typer.testing import CliRunner

from mtl_perception.bundle import ModelBundle
from mtl_perception.cli import app
from mtl_perception.encodings import to_rgb
from mtl_perception.engines.onnxruntime import OnnxRuntimeEngine
from mtl_perception.evaluation.fleet import (
    Job,
    Outcome,
    evaluate_fleet,
    make_jobs,
    run_in_processes,
    work,
)
from mtl_perception.evaluation.gallery import Gallery, choose
from mtl_perception.evaluation.histograms import LogHistogram
from mtl_perception.evaluation.pipeline import Background
from mtl_perception.evaluation.results import SCHEMA_PATH, calibration, figures
from mtl_perception.evaluation.run import Settings, combine, evaluate_recording
from mtl_perception.evaluation.scoring import Scorer
from mtl_perception.evaluation.shards import Shard
from mtl_perception.evaluation.temporal import Seen, TemporalConsistency
from mtl_perception.frames import CameraFrame, Intrinsics, Prediction
from mtl_perception.geometry.normals import normals_from_depth
from mtl_perception.metrics import MultiTaskMetrics
from mtl_perception.orientation import turn_image, turn_intrinsics, turn_normals
from mtl_perception.recordings import RecordedFrame, TopicChoice, Truth, open_recording
from mtl_perception.recordings._storage import Bag

CAMERA = Intrinsics(width=64, height=48, fx=K[0], fy=K[4], cx=K[2], cy=K[5])
SCHEMA = json.loads(SCHEMA_PATH.read_text())

Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture
def settings(tiny_bundle: ModelBundle) -> Settings:
    return Settings(str(tiny_bundle.path), engine='onnxruntime', threads=1)


@pytest.fixture
def run(tiny_bundle: ModelBundle) -> Callable[..., Any]:
    """Return a function that calls the command with the tiny bundle."""

    def call(*arguments: str | Path) -> Any:
        command = ['evaluate', *map(str, arguments), '--bundle', str(tiny_bundle.path)]
        command += ['--engine', 'onnxruntime', '--threads', '1']
        return CliRunner().invoke(app, command)

    return call


@pytest.fixture
def evaluate(run: Callable[..., Any], tmp_path: Path) -> Evaluate:
    """Return a function that evaluates and returns the JSON document, checked by its schema."""

    def call(*arguments: str | Path) -> dict[str, Any]:
        target = tmp_path / 'results.json'
        result = run(*arguments, '--json', target, '--quiet')
        assert result.exit_code == 0, result.output
        document = json.loads(target.read_text())
        jsonschema.validate(document, SCHEMA)
        return document

    return call


def timeless(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != 'times'}


def perfect(index: int = 0) -> Prediction:
    """Return a prediction that equals the scene's truth."""
    shown = scene(index)
    return Prediction(
        label=shown.label.copy(),
        confidence=np.full(SIZE, 255, np.uint8),
        depth=(shown.depth_mm / 1000).astype(np.float32),
        normal=shown.normal.copy(),
        intrinsics=CAMERA,
    )


def labelled(index: int = 0) -> RecordedFrame:
    shown = scene(index)
    metres = (shown.depth_mm / 1000).astype(np.float32)
    truth = {'label': shown.label, 'depth': metres, 'normal': shown.normal}
    return RecordedFrame(
        id=str(index),
        camera='camera',
        frame=CameraFrame(shown.rgb, 'rgb8', CAMERA),
        truth={name: Truth(array, lambda pixels: pixels) for name, array in truth.items()},
    )


# Figures.


def test_the_figures_are_those_of_the_metrics_on_every_frame(
    evaluate: Evaluate, settings: Settings, tmp_path: Path
) -> None:
    bag = write_bag(tmp_path / 'bag', frames=6)
    document = evaluate(bag)
    perceiver = settings.open()
    names = [spec.name for spec in perceiver.bundle.classes]
    direct = MultiTaskMetrics(('segmentation', 'depth', 'normals'), names, 'ground truth')
    for frame in open_recording(bag).frames():
        p = perceiver.perceive(frame.frame)
        truth = {name: t.at(*SIZE) for name, t in frame.truth.items()}
        direct.update({'label': p.label, 'depth': p.depth, 'normal': p.normal}, truth)
    expected = direct.compute()
    assert document['frames'] == expected['frames'] == 6
    for task in ('segmentation', 'depth', 'normals'):
        for name, value in expected[task].items():
            exact = value if isinstance(value, dict | str) else pytest.approx(value, abs=1e-9)
            assert document[task][name] == exact, (task, name)


def test_real_pictures_give_the_same_figures_as_folder_and_as_bag(
    nyuv2: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    ids = sorted(path.stem for path in (nyuv2 / 'devtest' / 'rgb').iterdir())[:3]
    recording = open_recording(nyuv2)
    frames = [frame for frame, _ in zip(recording.frames(), ids, strict=False)]
    with bag_sink(tmp_path / 'bag') as sink:
        for index, frame in enumerate(frames):
            stamp = START_NS + index * PERIOD_NS
            camera = frame.frame.intrinsics
            k = tuple(camera.matrix.ravel())
            sink.camera_info('/camera/camera_info', stamp, k, (camera.height, camera.width))
            sink.png(f'{IMAGE}/compressed', frame.frame.pixels, stamp)
            sink.png(LABEL, frame.truth['label'].at(288, 384), stamp)
            sink.image('/ground_truth/depth', frame.truth['depth'].at(288, 384), '32FC1', stamp)
    folder = evaluate(nyuv2, '--split', 'devtest', '--limit', '3')
    bag = evaluate(tmp_path / 'bag')
    assert folder['normals']['source'] == bag['normals']['source'] == 'derived-11'
    for task in ('segmentation', 'depth', 'normals'):
        assert folder[task] == bag[task]
        assert next(iter(folder[task].values())) is not None


def test_two_runs_give_the_same_bytes_apart_from_times(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    bag = write_bag(tmp_path / 'bag')
    texts = []
    for name in ('a.json', 'b.json'):
        assert run(bag, '--json', tmp_path / name, '--quiet').exit_code == 0
        lines = (tmp_path / name).read_text().splitlines()
        start = lines.index(' "times": {')
        end = lines.index(' "per_frame": [')
        texts.append(lines[:start] + lines[end:])
    assert texts[0] == texts[1]
    assert len(texts[0]) > 100


def test_json_goes_to_stdout_alone(run: Callable[..., Any], tmp_path: Path) -> None:
    result = run(write_bag(tmp_path / 'bag'), '--json', '-')
    assert json.loads(result.stdout)['frames'] == 5


def test_figures_of_two_engines_are_refused(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer = OnnxRuntimeEngine.infer

    def give_way(engine: OnnxRuntimeEngine, *arguments: Any) -> dict[str, np.ndarray]:
        engine.name, engine.remark = 'another', 'the GPU failed'
        return infer(engine, *arguments)

    monkeypatch.setattr(OnnxRuntimeEngine, 'infer', give_way)
    result = run(write_bag(tmp_path / 'bag'), '--engine', 'onnxruntime')
    assert result.exit_code == 2
    assert 'the engine changed while' in result.output and 'the GPU failed' in result.output


def test_a_perfect_prediction_has_perfect_figures(tiny_bundle: ModelBundle) -> None:
    scorer = Scorer(tiny_bundle, {'normal': 'ground truth'})
    record = scorer.add(labelled(), perfect())
    document = figures(scorer.score)
    assert document['segmentation']['miou'] == document['segmentation']['pixacc'] == 1
    assert document['depth']['abs_err'] == 0
    assert document['depth']['delta1'] == 1
    assert document['normals']['mean'] == 0
    assert document['calibration']['ece'] == 0
    assert document['scale_aligned_depth']['scale']['p50'] == pytest.approx(1, rel=0.01)
    assert record['depth']['rel_err'] == 0


def test_a_wrong_scale_alone_vanishes_in_scale_aligned_depth(tiny_bundle: ModelBundle) -> None:
    scorer = Scorer(tiny_bundle, {})
    prediction = perfect()
    scorer.add(labelled(), replace(prediction, depth=prediction.depth * 2))
    document = figures(scorer.score)
    assert document['depth']['rel_err'] == pytest.approx(1, abs=1e-6)
    assert document['scale_aligned_depth']['rel_err'] == pytest.approx(0, abs=1e-6)
    assert document['scale_aligned_depth']['scale']['p50'] == pytest.approx(0.5, rel=0.01)


def test_classes_bands_and_regions_add_up_to_the_whole(evaluate: Evaluate, tmp_path: Path) -> None:
    document = evaluate(write_bag(tmp_path / 'bag', frames=8))
    # Of every second row and column; the scene's blocks have even sides, so that this quarter
    # stands for the whole but for the few single pixels without truth.
    quarter = document['depth']['pixels'] / 4
    for parts in (document['by_distance'], document['by_region']):
        pixels = sum(part['pixels']['depth'] for part in parts)
        assert pixels == pytest.approx(quarter, rel=0.001)
        mean = sum((part['abs_err'] or 0) * part['pixels']['depth'] for part in parts) / pixels
        assert mean == pytest.approx(document['depth']['abs_err'], rel=0.01)
    counts = {n: c['pixels']['segmentation'] for n, c in document['by_class'].items()}
    rows = dict(
        zip(document['confusion']['classes'], document['confusion']['matrix'], strict=True)
    )
    for name, count in counts.items():
        assert count == pytest.approx(sum(rows[name]) / 4, rel=0.01), name
    hits = sum(c['pixacc'] * counts[n] for n, c in document['by_class'].items())
    accuracy = document['segmentation']['pixacc']
    assert hits / sum(counts.values()) == pytest.approx(accuracy, rel=0.02)
    bands = [b for b in document['by_distance'] if b['pixels']['depth']]
    assert {(b['from_m'], b['to_m']) for b in bands} == {(2.0, 3.0)}


def test_an_error_in_one_corner_is_found_in_its_region(tiny_bundle: ModelBundle) -> None:
    scorer = Scorer(tiny_bundle, {})
    prediction = perfect()
    prediction.depth[:8, :8] += 1
    scorer.add(labelled(), prediction)
    regions = figures(scorer.score)['by_region']
    assert [region['abs_err'] > 0 for region in regions] == [True] + [False] * 8


def test_calibration_equals_a_case_computed_by_hand() -> None:
    confidence = np.zeros((3, 256), np.int64)
    # 10 pixels at confidence 0.2, 5 right; 30 at 1.0, all right: gaps 0.3 and 0.
    confidence[1, 51], confidence[2, 51] = 10, 5
    confidence[1, 255], confidence[2, 255] = 30, 30
    found = calibration(confidence)
    assert found['ece'] == pytest.approx(0.3 * 10 / 40)
    assert found['mce'] == pytest.approx(0.3)
    assert calibration(np.zeros((3, 256), np.int64))['ece'] is None


def test_normals_without_their_own_truth_are_derived_from_true_depth(
    tiny_bundle: ModelBundle,
) -> None:
    frame = labelled()
    frame = replace(frame, truth={'depth': frame.truth['depth']})
    scorer = Scorer(tiny_bundle, {'normal': 'derived-11'})
    derived = normals_from_depth(frame.truth['depth'].at(*SIZE), CAMERA)
    scorer.add(frame, replace(perfect(), normal=derived))
    normals = figures(scorer.score)['normals']
    assert normals['mean'] == pytest.approx(0, abs=0.1)
    assert normals['source'] == 'derived-11'


def test_normals_are_not_derived_with_a_guessed_focal_length(tiny_bundle: ModelBundle) -> None:
    frame, prediction = labelled(), replace(perfect(), intrinsics=None)
    truth = {name: one for name, one in frame.truth.items() if name != 'normal'}
    scorer = Scorer(tiny_bundle, {})
    record = scorer.add(replace(frame, truth=truth), prediction)
    assert 'depth' in record['counts']
    assert 'normals' not in record['counts']
    assert record['without_truth'].get('normals_agreement') is None


def test_percentiles_of_a_histogram_are_close_to_exact_ones() -> None:
    values = np.random.default_rng(0).lognormal(3, 1, 5000)
    whole, part = LogHistogram(), LogHistogram()
    whole.add(values[:2000])
    part.add(values[2000:])
    whole.merge(part)
    for name, value in whole.summary().items():
        exact = np.percentile(values, int(name[1:]), method='inverted_cdf')
        assert value == pytest.approx(exact, rel=0.006)
    assert LogHistogram().summary() == {'p50': None, 'p95': None, 'p99': None}


# Figures without truth.


def wall(pose_x: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pose, depth and labels of a striped wall 2 m ahead, seen from (pose_x, 0, 0)."""
    pose = np.eye(4)
    pose[0, 3] = pose_x
    x = (np.arange(64) - K[2]) / K[0] * 2 + pose_x
    label = np.broadcast_to((np.floor(x / 0.4) % 3).astype(np.uint8), SIZE)
    return pose, np.full(SIZE, 2.0, np.float32), label.copy()


def seen(index: int, pose_x: float, flip: bool = False, stretch: float = 1.0) -> Seen:
    pose, depth, label = wall(pose_x)
    label = (label + 1) % 3 if flip else label
    return Seen(START_NS + index * PERIOD_NS, CAMERA, pose, label, depth * stretch, None)


def test_a_moving_camera_sees_the_same_wall_consistently() -> None:
    temporal = TemporalConsistency()
    assert temporal.add(seen(0, 0.0)) is None
    compared = temporal.add(seen(1, 0.2))
    assert compared.method == 'poses'
    assert compared.compared > 0.8 * compared.pixels
    assert compared.same_label / compared.labelled > 0.95
    assert compared.log_depth == pytest.approx(0, abs=1e-3)


def test_flickering_labels_and_depth_are_found() -> None:
    temporal = TemporalConsistency()
    temporal.add(seen(0, 0.0))
    compared = temporal.add(seen(1, 0.0, flip=True, stretch=1.1))
    assert compared.same_label == 0
    assert compared.log_depth / compared.compared == pytest.approx(np.log(1.1), rel=1e-3)


def test_where_a_frame_shows_nothing_there_is_no_label_to_keep() -> None:
    temporal, (pose, depth, label) = TemporalConsistency(), wall(0.0)
    label[:, :16] = 255
    for index in range(2):
        compared = temporal.add(
            Seen(START_NS + index * PERIOD_NS, CAMERA, pose, label, depth, None)
        )
    assert compared.compared == compared.pixels
    assert compared.same_label == compared.labelled == 0.75 * compared.pixels


def test_a_change_of_resolution_is_not_compared() -> None:
    temporal, rng = TemporalConsistency(), np.random.default_rng(0)
    for index, size in enumerate([(48, 64), (36, 64), (36, 64)]):
        depth, label = np.full(size, 2.0, np.float32), np.zeros(size, np.uint8)
        grey = rng.integers(0, 255, size, np.uint8)
        compared = temporal.add(Seen(START_NS + index * PERIOD_NS, None, None, label, depth, grey))
        assert (compared is not None) == (index == 2)


def test_a_long_gap_or_a_jump_back_is_not_compared() -> None:
    temporal = TemporalConsistency()
    temporal.add(seen(0, 0.0))
    assert temporal.add(seen(20, 0.0)) is None
    assert temporal.add(seen(3, 0.0)) is None


def test_without_poses_optical_flow_follows_the_picture() -> None:
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 255, (120, 200), np.uint8), (7, 7), 0)
    stripes = np.broadcast_to((np.arange(200) // 10 % 2).astype(np.uint8), (120, 200))
    temporal = TemporalConsistency()
    for index in range(2):
        window = np.s_[10:106, 10 + 3 * index : 138 + 3 * index]
        frame = Seen(
            START_NS + index,
            None,
            None,
            stripes[window],
            None,
            np.ascontiguousarray(texture[window]),
        )
        compared = temporal.add(frame)
    assert compared.method == 'optical flow'
    assert compared.same_label / compared.labelled > 0.9
    assert compared.compared > 0.5 * compared.pixels


def test_unsure_pixels_are_counted_without_truth(tiny_bundle: ModelBundle) -> None:
    scorer = Scorer(tiny_bundle, {})
    prediction = perfect()
    prediction.confidence[: SIZE[0] // 4] = 100
    scorer.add(replace(labelled(), truth={}), prediction)
    document = figures(scorer.score)
    assert document['without_truth']['unsure'] == pytest.approx(0.25)
    assert document['segmentation']['miou'] is None
    assert document['depth']['abs_err'] is None


def test_normals_that_contradict_the_predicted_depth_are_found(tiny_bundle: ModelBundle) -> None:
    scorer = Scorer(tiny_bundle, {})
    prediction = perfect()
    prediction.normal[:] = (0, -1, 0)
    scorer.add(replace(labelled(), truth={}), prediction)
    agreement = figures(scorer.score)['without_truth']['normals_agreement']
    assert agreement['median'] == pytest.approx(90, abs=0.1)


def test_predictions_without_a_number_in_them_give_no_nan(tiny_bundle: ModelBundle) -> None:
    scorer = Scorer(tiny_bundle, {})
    prediction = perfect()
    prediction.depth[:] = np.nan
    prediction.normal[:] = 0
    record = scorer.add(labelled(), prediction)
    document = figures(scorer.score)
    json.dumps([record, document], allow_nan=False)
    assert document['depth']['missing'] == SIZE[0] * SIZE[1] - 1
    assert document['depth']['abs_err'] is None
    assert document['normals']['mean'] == 180


def test_a_bag_without_truth_is_evaluated(evaluate: Evaluate, tmp_path: Path) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        for index in range(4):
            sink.frame(index, truth=False)
    document = evaluate(tmp_path / 'bag')
    assert document['frames'] == 4
    assert document['segmentation']['miou'] is None
    assert 0 < document['without_truth']['unsure'] < 1
    assert document['without_truth']['temporal']['optical flow']['frames'] == 3


# Faults.


def cut_in_half(bag: Path) -> None:
    file = next(bag.glob('*.mcap'))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def forget_metadata(bag: Path) -> None:
    (bag / 'metadata.yaml').unlink()


@pytest.mark.parametrize(
    ('storage', 'damage', 'remark'),
    [
        ('mcap', cut_in_half, 'damaged'),
        ('mcap', forget_metadata, 'no metadata.yaml'),
        ('sqlite3', forget_metadata, 'no metadata.yaml'),
    ],
)
def test_what_is_left_of_a_damaged_bag_is_evaluated_and_the_damage_named(
    evaluate: Evaluate,
    tmp_path: Path,
    storage: str,
    damage: Callable[[Path], None],
    remark: str,
) -> None:
    bag = write_bag(tmp_path / 'bag', frames=30, storage=storage)
    damage(bag)
    document = evaluate(bag)
    assert 10 < document['frames'] <= 30
    assert document['segmentation']['pixacc'] is not None
    assert any(remark in text for text in document['recordings'][0]['remarks'])


def test_a_missing_topic_is_named_and_the_rest_evaluated(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    document = evaluate(write_bag(tmp_path / 'bag'), '--label', '/nowhere')
    assert document['segmentation']['miou'] is None
    assert document['depth']['abs_err'] is not None
    assert 'no topic /nowhere' in document['recordings'][0]['remarks'][0]


def test_half_the_truth_missing_is_counted(evaluate: Evaluate, tmp_path: Path) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        for index in range(10):
            sink.frame(index, truth=index % 2 == 0)
    document = evaluate(tmp_path / 'bag')
    assert document['frames'] == 10
    assert document['depth']['pixels'] == 5 * (SIZE[0] * SIZE[1] - 1)
    assert set(document['recordings'][0]['skipped'].values()) == {5}


def test_truth_of_twice_the_size_is_used(evaluate: Evaluate, tmp_path: Path) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        sink.frame(0, truth=False)
        sink.png(LABEL, cv2.resize(scene(0).label, (128, 96), interpolation=0), START_NS)
    with bag_sink(tmp_path / 'same') as sink:
        sink.frame(0)
    large, same = evaluate(tmp_path / 'bag'), evaluate(tmp_path / 'same')
    assert large['segmentation'] == same['segmentation']


@pytest.mark.parametrize('degrees', [90, 180, 270])
def test_a_camera_on_its_side_is_as_good_as_an_upright_one(
    settings: Settings, tmp_path: Path, degrees: int
) -> None:
    model = tiny_model()
    bias = next(array for array in model.graph.initializer if array.name == 'lean_bias')
    # To the right in any picture, so that it matters which way up that is.
    bias.CopyFrom(numpy_helper.from_array(np.array([0.5, 0, -1], np.float32), bias.name))
    onnx.save(model, tmp_path / 'model.onnx')
    bundle = ModelBundle.write(tmp_path / 'leaning', tiny_manifest(), tmp_path / 'model.onnx')
    settings = replace(settings, bundle=str(bundle.path))
    perceiver = settings.open()

    def evaluated(turned: int, rotate: int) -> list[float]:
        camera, path = turn_intrinsics(CAMERA, turned), tmp_path / f'{turned} {rotate}'
        with bag_sink(path) as sink:
            for index in range(3):
                stamp, shown = START_NS + index * PERIOD_NS, scene(index)
                right = np.full((*SIZE, 3), (0.6, 0, -0.8), np.float32)
                k, size = tuple(camera.matrix.ravel()), (camera.height, camera.width)
                sink.camera_info('/camera/camera_info', stamp, k, size)
                for topic, pixels, encoding in (
                    (IMAGE, turn_image(shown.rgb, turned), 'rgb8'),
                    ('/ground_truth/label', turn_image(shown.label, turned), 'mono8'),
                    ('/ground_truth/depth', turn_image(shown.depth_mm, turned), '16UC1'),
                    ('/ground_truth/normals', turn_normals(right, turned), '32FC3'),
                ):
                    sink.image(topic, pixels, encoding, stamp)
        how = replace(settings, rotate=rotate)
        shard = evaluate_recording(path, how, perceiver, tmp_path / f'{turned} {rotate}.shard')
        results = combine([shard], bundle).results
        figures = (('segmentation', 'miou'), ('depth', 'abs_err'), ('normals', 'mean'))
        return [results[task][name] for task, name in figures]

    upright = evaluated(0, 0)
    assert evaluated(-degrees, degrees) == pytest.approx(upright, rel=1e-4)
    assert abs(evaluated(-degrees, 0)[-1] - upright[-1]) > 5


def test_two_cameras_have_their_own_figures_and_common_ones(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        for index in range(4):
            stamp = START_NS + index * PERIOD_NS
            for name in ('front', 'rear'):
                shown = scene(index)
                sink.image(f'/{name}/image', shown.rgb, 'rgb8', stamp)
                sink.image(f'/ground_truth/{name}/label', shown.label, 'mono8', stamp)
    document = evaluate(tmp_path / 'bag')
    assert document['frames'] == 8
    assert set(document['cameras']) == {'/front/image', '/rear/image'}
    front, rear = document['cameras'].values()
    assert front['frames'] == 4
    assert front['segmentation'] == rear['segmentation'] == document['segmentation']


def test_each_camera_shows_its_own_pictures_in_the_gallery(
    settings: Settings, tmp_path: Path
) -> None:
    grey = {'front': 60, 'rear': 200}
    with bag_sink(tmp_path / 'bag') as sink:
        for index in range(4):
            for name, level in grey.items():
                rgb = np.full_like(scene(index).rgb, level)
                sink.image(f'/{name}/image', rgb, 'rgb8', START_NS + index * PERIOD_NS)
    perceiver = settings.open()
    shard = evaluate_recording(tmp_path / 'bag', settings, perceiver, tmp_path / 'shard')
    shown = [frame for _, frame in combine([shard], perceiver.bundle).gallery()]
    cameras = [frame.id.split('/')[1] for frame in shown]
    assert set(cameras) == set(grey)
    for name, frame in zip(cameras, shown, strict=True):
        seen = cv2.imdecode(np.frombuffer(frame.pictures['camera'], np.uint8), cv2.IMREAD_COLOR)
        assert seen.mean() == pytest.approx(grey[name], abs=2)


@pytest.mark.parametrize('content', [b'', b'no bag'])
def test_a_file_of_which_nothing_can_be_read_is_one_sentence(
    run: Callable[..., Any], tmp_path: Path, content: bytes
) -> None:
    (tmp_path / 'bad.mcap').write_bytes(content)
    result = run(tmp_path / 'bad.mcap', '--quiet')
    assert result.exit_code == 2
    assert result.stderr.startswith('evaluate: nothing can be read from')
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_bag_of_broken_pictures_is_an_error_that_says_why(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        sink.compressed(f'{IMAGE}/compressed', b'broken', 'jpeg', START_NS)
    result = run(tmp_path / 'bag', '--quiet')
    assert result.exit_code == 2
    assert 'no frame of' in result.stderr
    assert '1 x /camera/image/compressed: pictures that cannot be decoded' in result.stderr


def test_a_missing_path_or_bundle_is_one_sentence(run: Callable[..., Any], tmp_path: Path) -> None:
    assert 'does not exist' in run(tmp_path / 'nothing').stderr
    bag = write_bag(tmp_path / 'bag')
    command = ['evaluate', str(bag), '--bundle', str(tmp_path / 'no-bundle')]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert result.stderr.startswith('evaluate: ')


def test_an_error_in_the_background_comes_out_where_it_is_waited_for() -> None:
    def items() -> Any:
        yield 1
        raise RuntimeError('the disk is gone')

    taken = []
    with pytest.raises(RuntimeError, match='the disk is gone'):
        for item in Background(items()):
            taken.append(item)
    assert taken == [1]


def test_leaving_early_ends_the_background_thread() -> None:
    background = Background(iter(range(10**9)), depth=2)
    for item in background:
        if item == 5:
            break
    background._thread.join(timeout=10)
    assert not background._thread.is_alive()


class Endless:
    """A recording of as many frames as wanted, none of them kept."""

    name, path = 'endless', Path('endless')
    sources = dict.fromkeys(('label', 'depth', 'normal'), 'ground truth')

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self.topics: dict[str, str] = {}
        self.skipped: Counter[str] = Counter()
        self.remarks: list[str] = []

    def __len__(self) -> int:
        return self._frames

    def frames(self) -> Iterator[RecordedFrame]:
        for index in range(self._frames):
            frame = labelled(index % 7)
            stamp = START_NS + index * PERIOD_NS
            camera = replace(frame.frame, stamp_ns=stamp, pixels=frame.frame.pixels.copy())
            yield replace(frame, id=str(stamp), frame=camera)


def test_memory_does_not_grow_with_the_number_of_frames(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Angles are held back in one bounded portion, which these few frames would only fill.
    monkeypatch.setattr('mtl_perception.metrics._ANGLES_HELD', 0)
    held: dict[int, int] = {}

    def watch(done: int, total: int) -> None:
        if done in (40, 140):
            held[done] = tracemalloc.get_traced_memory()[0]

    settings = replace(settings, gallery=False)
    perceiver = settings.open()
    tracemalloc.start()
    try:
        evaluate_recording(Endless(140), settings, perceiver, tmp_path / 'shard', progress=watch)
    finally:
        tracemalloc.stop()
    # One picture of each of the frames between alone would be 0.9 MB.
    assert held[140] - held[40] < 300_000


# Conditions.


def test_a_condition_that_holds_exits_with_1(run: Callable[..., Any], tmp_path: Path) -> None:
    bag = write_bag(tmp_path / 'bag')
    assert run(bag, '--quiet', '--fail-if', 'segmentation.miou < 0').exit_code == 0
    result = run(bag, '--quiet', '--fail-if', 'segmentation.miou < 0.9')
    assert result.exit_code == 1
    assert 'segmentation.miou < 0.9' in result.stderr


def test_a_condition_that_is_none_is_refused_before_anything_runs(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    result = run(tmp_path / 'nothing', '--fail-if', 'miou gets worse')
    assert result.exit_code == 2
    assert "expected 'segmentation.miou < -0.01'" in result.stderr


# Recorded predictions.


def test_recorded_predictions_open_again_and_give_the_same_figures(
    evaluate: Evaluate, settings: Settings, tmp_path: Path
) -> None:
    bag = write_bag(tmp_path / 'bag')
    first = evaluate(bag, '--record', tmp_path / 'predicted.mcap')
    second = evaluate(tmp_path / 'predicted.mcap')
    for task in ('segmentation', 'depth', 'normals'):
        assert second[task] == first[task]
    perceiver = settings.open()
    expected = [perceiver.perceive(f.frame).label.copy() for f in open_recording(bag).frames()]
    topics = TopicChoice(image=('/perception/segmentation/mask',))
    masks = open_recording(tmp_path / 'predicted.mcap', topics=topics)
    stored = [to_rgb(f.frame.pixels, 'mono8')[..., 0] for f in masks.frames()]
    assert np.array_equal(stored, expected)


def test_recorded_predictions_have_the_nodes_topics(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate(write_bag(tmp_path / 'bag'), '--record', tmp_path / 'predicted.mcap')
    with Bag(tmp_path / 'predicted.mcap') as bag:
        for topic, kind in {
            '/perception/segmentation/mask': 'sensor_msgs/msg/Image',
            '/perception/segmentation/camera_info': 'sensor_msgs/msg/CameraInfo',
            '/perception/segmentation/label_info': 'vision_msgs/msg/LabelInfo',
            '/perception/depth/image': 'sensor_msgs/msg/Image',
            '/perception/normals/image': 'sensor_msgs/msg/Image',
            f'{IMAGE}/compressed': 'sensor_msgs/msg/CompressedImage',
            LABEL: 'sensor_msgs/msg/CompressedImage',
        }.items():
            assert bag.topics[topic] == kind
            assert bag.counts[topic] == (1 if 'label_info' in topic else 5)


def test_recording_over_a_file_is_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / 'there.mcap').write_bytes(b'precious')
    result = run(write_bag(tmp_path / 'bag'), '--record', tmp_path / 'there.mcap')
    assert result.exit_code == 2
    assert 'exists' in result.stderr
    assert (tmp_path / 'there.mcap').read_bytes() == b'precious'


# Fleets.


def write_fleet(root: Path) -> Path:
    """Write three good bags of two kinds, one below another folder, and a broken one."""
    for name, frames, storage in (
        ('monday/a', 3, 'mcap'),
        ('monday/b', 4, 'sqlite3'),
        ('tuesday', 5, 'mcap'),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_bag(root / name, frames=frames, storage=storage)
    (root / 'broken.mcap').write_bytes(b'no bag')
    return root


def test_a_folder_of_bags_gives_one_result_and_names_what_failed(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    document = evaluate(write_fleet(tmp_path / 'fleet'))
    assert document['frames'] == 12
    assert [r['name'] for r in document['recordings']] == ['monday/a', 'monday/b', 'tuesday']
    assert len(document['failed']) == 1
    assert 'broken.mcap' in document['failed'][0]['path']
    assert {frame['recording'] for frame in document['per_frame']} == {
        'monday/a', 'monday/b', 'tuesday',
    }  # fmt: skip


def test_processes_give_the_same_result_as_one_after_the_other(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    fleet = write_fleet(tmp_path / 'fleet')
    assert timeless(evaluate(fleet, '--workers', '2')) == timeless(evaluate(fleet))


def test_a_defect_in_one_recording_leaves_the_others(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = write_fleet(tmp_path / 'fleet')
    jobs = make_jobs([fleet / 'monday' / 'a', fleet / 'tuesday'], fleet, tmp_path / 'results')
    add = Scorer.add

    def fail_on_monday(scorer: Scorer, frame: RecordedFrame, prediction: Prediction) -> Any:
        if not failed:
            failed.append(frame.id)
            cv2.resize(np.zeros((1, 1)), (0, 0))
        return add(scorer, frame, prediction)

    failed: list[str] = []
    monkeypatch.setattr(Scorer, 'add', fail_on_monday)
    first, second = (work(job, settings) for job in jobs)
    assert first.reason.startswith('error: OpenCV')
    assert (second.reason, second.frames > 0) == (None, True)


def die_the_first_time(job: Job, settings: Settings) -> Outcome:
    """Kill the own process at the second job, once."""
    mark = job.target.parent / 'died'
    if job.name == 'monday/b' and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return work(job, settings)


def test_the_recordings_of_a_killed_worker_are_done_again(
    settings: Settings, tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    fleet = write_fleet(tmp_path / 'fleet')
    paths = [fleet / 'monday' / 'a', fleet / 'monday' / 'b', fleet / 'tuesday']
    jobs = make_jobs(paths, fleet, tmp_path / 'killed')
    (tmp_path / 'killed').mkdir()
    outcomes = list(run_in_processes(jobs, settings, 2, die_the_first_time))
    assert (tmp_path / 'killed' / 'died').exists()
    assert sorted(o.job.name for o in outcomes) == ['monday/a', 'monday/b', 'tuesday']
    assert all(outcome.reason is None for outcome in outcomes)
    alone = make_jobs(paths, fleet, tmp_path / 'alone')
    shards, _ = evaluate_fleet(alone, settings)
    killed = combine([Shard(job.target) for job in jobs], tiny_bundle).results
    assert timeless(killed) == timeless(combine(shards, tiny_bundle).results)


def test_a_stopped_run_goes_on_and_other_settings_start_anew(
    settings: Settings, tmp_path: Path
) -> None:
    fleet = write_fleet(tmp_path / 'fleet')
    paths = [fleet / 'monday' / 'a', fleet / 'tuesday']
    jobs = make_jobs(paths, fleet, tmp_path / 'results')
    done: list[str] = []

    def note(outcome: Outcome) -> None:
        done.append(outcome.job.name)

    evaluate_fleet(jobs[:1], settings, progress=note)
    evaluate_fleet(jobs, settings, progress=note)
    assert done == ['monday/a', 'tuesday']
    evaluate_fleet(jobs, replace(settings, limit=2), progress=note)
    assert done == ['monday/a', 'tuesday'] * 2
    jobs[0].target.write_bytes(b'half a file')
    evaluate_fleet(jobs, replace(settings, limit=2), progress=note)
    assert done[4:] == ['monday/a']


# The gallery.


def test_the_gallery_keeps_best_and_worst_and_stays_small(tiny_bundle: ModelBundle) -> None:
    gallery = Gallery(tiny_bundle, 'bag')
    order = np.random.default_rng(0).permutation(200)
    for index in order:
        record = {'segmentation': {'pixacc': index / 200}}
        gallery.add(replace(labelled(), id=str(index)), perfect(), record)
    kept = gallery.chosen()
    assert len(kept) < 40
    shown = {title: [] for title in ('best', 'median', 'worst')}
    for title, place in choose(kept):
        shown[title].append(int(kept[place].id))
    assert shown['best'] == [199, 198]
    assert shown['worst'] == [0, 1]
    assert all(60 < index < 140 for index in shown['median'])
    assert set(kept[0].pictures) == {
        'camera', 'segmentation', 'segmentation truth', 'depth', 'depth truth', 'normals',
        'normals truth',
    }  # fmt: skip
