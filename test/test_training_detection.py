"""Boxes and attributes of pictures: targets, losses, heads, export, and learning them at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the workshop needs requirements/training.txt')

from torchvision.ops import generalized_box_iou  # noqa: E402
from training_parts import STILL, tiny_config, write_pictures, write_scenes  # noqa: E402

from mtl_perception.bundle import AttributeSpec, ModelBundle  # noqa: E402
from mtl_perception.datasets import ROOMS, THINGS, PictureFolder, region_of  # noqa: E402
from mtl_training.config import TASKS  # noqa: E402
from mtl_training.datasets import FrameSubset, prepare  # noqa: E402
from mtl_training.evaluate import evaluate_bundle, measure_network  # noqa: E402
from mtl_training.export import (  # noqa: E402
    DeployedNetwork,
    ExportError,
    Parity,
    compare_outputs,
    export_bundle,
    export_graph,
    refuse_disagreement,
    with_half_weights,
)
from mtl_training.networks import NetworkConfig, build_network  # noqa: E402
from mtl_training.networks.heads import class_scores, decode_boxes  # noqa: E402
from mtl_training.run_state import load_network  # noqa: E402
from mtl_training.tasks import TaskError, build_task, generalised_iou  # noqa: E402
from mtl_training.trainer import train  # noqa: E402

TINY = 'test_efficientnet_gn'
# NYUv2's in its pictures of 64x48 pixels, brought to 85x64.
FOCAL_LENGTH = 311.31 / 6 * 4 / 3
WEATHER = AttributeSpec(name='weather', kind='single', classes=('clear', 'rain', 'snow'))
SEEN = AttributeSpec(name='seen', kind='multi', classes=('bridge', 'tunnel'))


def batch_of(
    boxes: list[list[tuple[float, ...]]], labels: list[list[int]], classes: int = 3
) -> dict[str, torch.Tensor]:
    """Return the targets of pictures whose classes are all known, padded with empty slots."""
    most = max(len(own) for own in boxes)
    padded = torch.zeros(len(boxes), most, 4)
    slots = torch.full((len(boxes), most), -2)
    for index, (own, names) in enumerate(zip(boxes, labels, strict=True)):
        if own:
            padded[index, : len(own)] = torch.tensor(own)
            slots[index, : len(own)] = torch.tensor(names)
    known = torch.ones(len(boxes), classes, dtype=torch.bool)
    return {'boxes': padded, 'box_labels': slots, 'boxes_known': known}


def ideal_output(
    batch: dict[str, torch.Tensor], size: tuple[int, int], classes: int = 3
) -> torch.Tensor:
    """Return what a perfect network would give: a peak in each centre's cell."""
    height, width = size[0] // 4, size[1] // 4
    output = torch.full((len(batch['boxes']), classes + 4, height, width), -20.0)
    output[:, -4:] = 1.0
    for picture, (boxes, labels) in enumerate(
        zip(batch['boxes'], batch['box_labels'], strict=True)
    ):
        for (x0, y0, x1, y1), label in zip(boxes.tolist(), labels.tolist(), strict=True):
            if label < 0:
                continue
            column, row = int((x0 + x1) / 8), int((y0 + y1) / 8)
            x, y = 4 * column + 2, 4 * row + 2
            output[picture, label, row, column] = 8.0
            output[picture, -4:, row, column] = torch.tensor([x - x0, y - y0, x1 - x, y1 - y])
    return output


def test_boxes_come_out_of_a_perfect_heat_map_as_they_went_in() -> None:
    batch = batch_of([[(3, 5, 41, 30), (20, 8, 60, 60)], [(0, 0, 64, 48)]], [[0, 2], [1]])
    boxes, scores, labels = decode_boxes(ideal_output(batch, (64, 96)), 5)
    assert boxes.shape == (2, 5, 4)
    assert labels.dtype == torch.int32
    assert sorted(labels[0].tolist()) == [-1, -1, -1, 0, 2]
    assert labels[1].tolist() == [1, -1, -1, -1, -1]
    assert (scores.diff(dim=1) <= 0).all()
    assert (scores[labels < 0] == 0).all() and (boxes[labels < 0] == 0).all()
    for picture, slot in ((0, 0), (0, 1), (1, 0)):
        truth = batch['boxes'][picture][batch['box_labels'][picture] == labels[picture, slot]]
        torch.testing.assert_close(boxes[picture, slot], truth[0])


def test_only_the_highest_of_neighbouring_cells_is_a_box_and_classes_do_not_compete() -> None:
    output = torch.full((1, 2 + 4, 8, 8), -20.0)
    output[:, -4:] = 6.0
    output[0, 0, 3, 3], output[0, 0, 3, 4], output[0, 1, 3, 4] = 3.0, 2.0, 1.0
    boxes, scores, labels = decode_boxes(output, 4)
    assert labels[0].tolist() == [0, 1, -1, -1]
    torch.testing.assert_close(boxes[0, 0], torch.tensor([8.0, 8.0, 20.0, 20.0]))
    assert scores[0, 0] == pytest.approx(1 / (1 + np.exp(-3.0)), rel=1e-5)


def test_a_second_peak_of_a_thing_loses_what_the_surer_one_covers() -> None:
    batch = batch_of([[(8, 8, 40, 40)]], [[1]])
    output = ideal_output(batch, (64, 96), classes=3)
    # Seen from the cell at (34, 26): the same box, so all of it is covered.
    output[0, 1, 6, 8] = 4.0
    output[0, -4:, 6, 8] = torch.tensor([34.0 - 8, 26.0 - 8, 40.0 - 34, 40.0 - 26])
    # Another class at the same place, and a thing of the same class beside it: half of it shared.
    output[0, 2, 2, 5] = 3.0
    output[0, -4:, 2, 5] = torch.tensor([22.0 - 8, 10.0 - 8, 40.0 - 22, 40.0 - 10])
    output[0, 1, 12, 20] = 2.0
    output[0, -4:, 12, 20] = torch.tensor([82.0 - 24, 50.0 - 8, 56.0 - 82, 40.0 - 50])
    boxes, scores, labels = decode_boxes(output, 6)
    sigmoid = torch.tensor([8.0, 3.0, 2.0]).sigmoid()
    assert labels[0].tolist() == [1, 2, 1, -1, -1, -1]
    torch.testing.assert_close(boxes[0, 2], torch.tensor([24.0, 8.0, 56.0, 40.0]))
    # 16 of the 48 columns that the two cover together are shared.
    torch.testing.assert_close(scores[0, :3], sigmoid * torch.tensor([1, 1, 2 / 3]))


def test_boxes_end_at_the_picture() -> None:
    output = torch.full((1, 1 + 4, 8, 12), -20.0)
    output[:, -4:] = 500.0
    output[0, 0, 0, 0] = 5.0
    boxes, _, _ = decode_boxes(output, 1)
    assert boxes[0, 0].tolist() == [0.0, 0.0, 48.0, 32.0]


def test_generalised_iou_is_torchvisions() -> None:
    random = torch.Generator().manual_seed(0)
    low = 50 * torch.rand(40, 2, generator=random)
    boxes = torch.cat([low, low + 1 + 30 * torch.rand(40, 2, generator=random)], dim=1)
    others = boxes.roll(1, dims=0)
    expected = generalized_box_iou(boxes, others).diagonal()
    torch.testing.assert_close(generalised_iou(boxes, others), expected)
    assert (generalised_iou(boxes, boxes) > 1 - 1e-5).all()


def test_the_loss_of_a_perfect_output_is_small_and_that_of_a_moved_one_is_not() -> None:
    batch = batch_of([[(8, 8, 40, 40)], []], [[1], []])
    task = build_task('detection', {'num_classes': 3})
    perfect = ideal_output(batch, (64, 64))
    moved = perfect.roll(3, dims=-1)
    assert task.loss(moved, batch) > 5 > task.loss(perfect, batch) >= 0


def test_a_picture_without_things_still_teaches_that_nothing_is_there() -> None:
    batch = batch_of([[]], [[]])
    output = torch.zeros(1, 7, 8, 8, requires_grad=True)
    task = build_task('detection', {'num_classes': 3})
    assert task.present(batch)
    task.loss(output, batch).backward()
    assert (output.grad[:, :3] > 0).all()
    assert (output.grad[:, 3:] == 0).all()


def test_what_nobody_labelled_gets_no_gradient() -> None:
    batch = batch_of([[(8, 8, 24, 24)], [(8, 8, 24, 24)]], [[0], [2]])
    batch['boxes_known'] = torch.tensor([[True, False, True], [False, False, True]])
    output = torch.zeros(2, 7, 8, 8, requires_grad=True)
    build_task('detection', {'num_classes': 3}).loss(output, batch).backward()
    gradient = output.grad[:, :3].abs().sum(dim=(2, 3))
    assert ((gradient > 0) == batch['boxes_known']).all()


def test_regions_of_things_that_are_not_told_apart_hold_no_negatives() -> None:
    batch = batch_of([[(0, 0, 16, 32)]], [[-1]])
    output = torch.zeros(1, 7, 8, 8, requires_grad=True)
    task = build_task('detection', {'num_classes': 3})
    task.loss(output, batch).backward()
    assert (output.grad[..., :4] == 0).all()
    assert (output.grad[:, :3, :, 4:] > 0).all()
    assert task.valid_count(batch) == 0


def test_a_crowd_of_one_class_holds_negatives_of_the_others() -> None:
    batch = batch_of([[(0, 0, 16, 32)]], [[region_of(1)]])
    output = torch.zeros(1, 7, 8, 8, requires_grad=True)
    task = build_task('detection', {'num_classes': 3})
    task.loss(output, batch).backward()
    assert (output.grad[:, 1, :, :4] == 0).all()
    assert (output.grad[:, [0, 2]] > 0).all() and (output.grad[:, 1, :, 4:] > 0).all()
    assert task.valid_count(batch) == 0


def test_single_and_multi_attributes_have_the_losses_of_the_textbook() -> None:
    task = build_task('classification', {'attributes': (WEATHER, SEEN)})
    logits = torch.tensor([[1.0, 2.0, -1.0, 0.5, -0.5], [0.0, 3.0, 1.0, 2.0, 1.0]])
    targets = torch.tensor([[0, 1, 0, 1, -1], [-1, -1, -1, 0, 1]], dtype=torch.int8)
    batch = {'attributes': targets}
    assert task.valid(batch).tolist() == [[True, True], [False, True]]
    weather = torch.nn.functional.cross_entropy(logits[:1, :3], torch.tensor([1]))
    binary = torch.nn.functional.binary_cross_entropy_with_logits
    seen = binary(logits[0, 3:4], torch.ones(1)) + binary(logits[1, 3:], torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(task.loss(logits, batch), (weather + seen) / 3)
    scores = class_scores(logits, (WEATHER, SEEN))
    torch.testing.assert_close(scores[:, :3].sum(dim=1), torch.ones(2))
    torch.testing.assert_close(scores[:, 3:], logits[:, 3:].sigmoid())
    with pytest.raises(TaskError, match='no attributes'):
        build_task('classification')


@pytest.mark.parametrize(
    ('backbone', 'decoder', 'sharing'),
    [
        ('pvt_v2_b0', 'pyramid', 'hard'),
        ('regnety_002', 'bifpn', 'hard'),
        (TINY, 'deeplab', 'hard'),
        (TINY, 'segformer', 'mtan'),
        (TINY, 'bifpn', 'cross_stitch'),
        ('test_vit', 'bifpn', 'hard'),
    ],
)
def test_every_backbone_decoder_and_sharing_gives_boxes_at_stride_four(
    backbone: str, decoder: str, sharing: str
) -> None:
    size = (160, 160) if backbone == 'test_vit' else (64, 96)
    config = NetworkConfig(
        backbone, decoder=decoder, decoder_channels=16, sharing=sharing, tasks=TASKS
    )
    network = build_network(config)
    outputs = network(torch.zeros((2, 3, *size), dtype=torch.uint8))
    assert outputs['detection'].shape == (2, 14, size[0] // 4, size[1] // 4)
    assert outputs['classification'].shape == (2, 6)
    assert outputs['segmentation'].shape == (2, 13, *size)
    assert (outputs['detection'][:, -4:] > 0).all()
    sum(output.sum() for output in outputs.values()).backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None]
    assert not [name for name in idle if 'fusions' in name or 'heads' in name]
    own = {id(p) for p in network.task_parameters('detection')}
    assert own.isdisjoint(id(p) for p in network.shared_parameters())


def test_networks_of_one_of_the_new_tasks_alone_stand() -> None:
    picture = torch.zeros((1, 3, 64, 64), dtype=torch.uint8)
    for task in ('detection', 'classification'):
        network = build_network(NetworkConfig(TINY, decoder_channels=16, tasks=(task,))).eval()
        assert list(network(picture)) == [task]


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
def test_the_graph_finds_torchs_boxes_at_any_size(engine: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = NetworkConfig(
        TINY, decoder_channels=16, tasks=TASKS, max_boxes=20, attributes=(WEATHER, SEEN)
    )
    network = build_network(config).eval()
    # A start from random weights sees nothing anywhere; this one sees things of every score.
    torch.nn.init.normal_(network.heads['detection'].heat[-1].weight, std=20.0)
    torch.nn.init.constant_(network.heads['detection'].heat[-1].bias, 0.0)
    with_half_weights(network)
    path = tmp_path / 'model.onnx'
    assert export_graph(network, path, (64, 96))
    deployed = DeployedNetwork(network).eval()
    assert deployed.names[-4:] == ['boxes', 'box_scores', 'box_labels', 'class_scores']
    random = np.random.default_rng(0)
    for shape in ((2, 64, 96, 3), (1, 96, 64, 3)):
        images = random.integers(0, 255, shape, dtype=np.uint8)
        with torch.inference_mode():
            expected = [tensor.numpy() for tensor in deployed(torch.from_numpy(images))]
        reference = dict(zip(deployed.names, expected, strict=True))
        found = run_graph(engine, path, images)
        assert (reference['box_scores'] > 0.1).sum() >= 10
        parity = compare_outputs(reference, found)
        assert parity.boxes == 1.0
        assert parity.class_scores < 1e-3
        filled = reference['box_scores'] > 0.1
        np.testing.assert_allclose(
            found['box_scores'][filled], reference['box_scores'][filled], atol=1e-3
        )
        for name in ('boxes', 'box_scores', 'class_scores'):
            assert found[name].dtype == np.float32
        assert found['box_labels'].dtype == np.int32


def run_graph(engine: str, path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """Run an ONNX graph in one of the robot's runtimes, in float32."""
    if engine == 'onnxruntime':
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {'image': images}), strict=True))
    import openvino

    options = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': 1}
    compiled = openvino.Core().compile_model(str(path), 'CPU', options)
    result = compiled(images)
    return {output.get_any_name(): result[output] for output in compiled.outputs}


def test_lost_boxes_and_other_scores_are_refused_at_export() -> None:
    refuse_disagreement(Parity(boxes=1.0, class_scores=0.0))
    with pytest.raises(ExportError, match=r'90\.0 % of the boxes'):
        refuse_disagreement(Parity(boxes=0.9))
    with pytest.raises(ExportError, match='scores of classes differ'):
        refuse_disagreement(Parity(class_scores=0.3))


def test_a_few_frames_are_learnt_exported_and_measured_as_boxes_and_rooms(tmp_path: Path) -> None:
    data = write_scenes(write_pictures(tmp_path / 'data', count=6, seed=2))
    config = tiny_config(
        data,
        tmp_path / 'cache',
        held_out=1,
        focal_length=FOCAL_LENGTH,
        tasks=['depth', 'detection', 'classification'],
        network={'backbone': TINY, 'decoder_channels': 32},
        augmentation=STILL,
        schedule={
            'steps': 200,
            'warmup_steps': 10,
            'evaluations': 1,
            'stages': [{'height': 64, 'width': 96}],
        },
        optimizer={'lr': 4e-3, 'weight_decay': 0.0, 'clip_norm': 5.0},
        batch_size=5,
        ema_decay=None,
    )
    result = train(config, tmp_path / 'run')
    assert set(result['last']) >= {'detection', 'classification', 'depth'}
    network, _ = load_network(tmp_path / 'run' / 'last.json')
    arrays = prepare(data, 'train', tmp_path / 'cache', size=(64, 96), annotations=True)
    learnt = FrameSubset('boxes', arrays, (0, 1, 3, 4, 5))
    figures = measure_network(network, learnt, config)
    assert figures['detection']['ap50'] > 0.9
    assert figures['classification']['accuracy'] == 1.0

    bundle = export_bundle(tmp_path / 'run' / 'last.json', tmp_path / 'bundle', size=(64, 96))
    manifest = ModelBundle.load(bundle.path).manifest
    assert manifest.tasks == ('depth', 'detection', 'classification')
    assert [spec.name for spec in manifest.detection.classes] == list(THINGS)
    assert manifest.detection.max_boxes == 100
    assert manifest.classification.attributes[0].classes == ROOMS
    assert manifest.training.recipe['export_parity']['boxes'] == 1.0
    shipped = evaluate_bundle(bundle, data, 'train', threads=1)
    # Through the robot's own path; the frame that was held out is among them.
    assert shipped['detection']['ap50'] > 0.6
    assert shipped['classification']['accuracy'] >= 5 / 6 - 1e-6
    assert shipped['depth']['abs_err'] is not None


def test_folders_give_boxes_and_rooms_of_generated_worlds(tmp_path: Path) -> None:
    data = write_scenes(write_pictures(tmp_path / 'data', count=2))
    frame = PictureFolder(data, 'train', want=('boxes', 'attributes', 'label')).read(1)
    mask = frame.label < 11
    x0, y0, x1, y1 = frame.boxes[0].astype(int)
    assert mask[y0:y1, x0:x1].all() and mask.sum() == (x1 - x0) * (y1 - y0)
    assert frame.attributes == {'room': ROOMS.index('kitchen')}
    assert PictureFolder(data, 'train').read(1).boxes is None
