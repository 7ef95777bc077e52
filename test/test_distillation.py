"""Distillation: losses by hand, teachers in torch and in bundles, and a training run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the workshop needs requirements/training.txt')

from training_parts import tiny_config, write_pictures  # noqa: E402

from mtl_perception.bundle import ModelBundle  # noqa: E402
from mtl_perception.engines import open_engine  # noqa: E402
from mtl_training.balancing import build_balancer  # noqa: E402
from mtl_training.distillation import (  # noqa: E402
    BundleTeacher,
    Distillation,
    DistillationError,
    NetworkTeacher,
    load_teacher,
)
from mtl_training.networks import (  # noqa: E402
    MultiTaskNetwork,
    NetworkConfig,
    build_network,
)
from mtl_training.trainer import train  # noqa: E402


def network(seed: int = 0, **config: object) -> MultiTaskNetwork:
    torch.manual_seed(seed)
    values = {'backbone': 'test_efficientnet', 'decoder_channels': 16} | config
    return build_network(NetworkConfig(**values))


def pictures(height: int = 32, width: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=generator)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn() -> None:
    student = network().eval()
    images = pictures()
    losses = Distillation(student, NetworkTeacher(network()))(images, student(images))
    assert losses.keys() == {'segmentation', 'depth', 'normals'}
    for loss in losses.values():
        assert loss.item() == pytest.approx(0, abs=1e-5)


def test_outputs_losses_are_the_formulas() -> None:
    student, teacher = network(0).eval(), network(1).eval()
    images = pictures()
    with torch.no_grad():
        given, wanted = student(images), teacher(images)
    losses = Distillation(student, NetworkTeacher(teacher), outputs=3.0, temperature=4.0)(
        images, given
    )
    soft = torch.nn.functional.kl_div(
        (given['segmentation'] / 4).log_softmax(1),
        (wanted['segmentation'] / 4).softmax(1),
        reduction='none',
    )
    divergence = 16 * soft.sum(dim=1).mean()
    assert losses['segmentation'].item() == pytest.approx(3 * divergence.item(), rel=1e-4)
    depth = (given['depth'] / wanted['depth']).log().abs().mean()
    assert losses['depth'].item() == pytest.approx(3 * depth.item(), rel=1e-4)
    cosine = (given['normals'] * wanted['normals']).sum(dim=1).mean()
    assert losses['normals'].item() == pytest.approx(3 * (1 - cosine.item()), rel=1e-4)


@pytest.mark.parametrize(
    'teacher',
    [
        {'backbone': 'test_resnet', 'decoder': 'deeplab'},
        {'backbone': 'test_vit', 'decoder': 'segformer', 'sharing': 'mtan'},
    ],
)
def test_features_of_any_teacher_reach_the_students_shared_part(teacher: dict) -> None:
    student = network().train()
    distillation = Distillation(
        student, NetworkTeacher(network(1, **teacher)), outputs=0.0, features=1.0
    )
    images = pictures()
    losses = distillation(images, student(images))
    assert all(0 < loss.item() < 2 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in student.shared_parameters())
    assert all(p.grad.abs().sum() > 0 for p in distillation.parameters())
    # Features alone say nothing to the heads.
    assert all(p.grad is None for p in student.task_parameters('depth'))


def test_a_student_comes_closer_to_its_teacher() -> None:
    student, teacher = network(0), network(1)
    distillation = Distillation(student, NetworkTeacher(teacher), outputs=1.0, features=0.5)
    optimizer = torch.optim.Adam([*student.parameters(), *distillation.parameters()], 3e-3)
    images = pictures()
    history = []
    for _ in range(25):
        loss = sum(distillation(images, student(images)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0]
    assert all(p.grad is None for p in teacher.parameters())


def test_a_teacher_of_one_task_teaches_that_task() -> None:
    student = network()
    losses = Distillation(student, NetworkTeacher(network(1, tasks=('depth',))))(
        pictures(), student(pictures())
    )
    assert losses.keys() == {'depth'}


def test_only_the_projections_go_into_checkpoints() -> None:
    distillation = Distillation(network(), NetworkTeacher(network(1)), features=1.0)
    assert all(key.startswith('projections.') for key in distillation.state_dict())


def test_gradient_balancing_trains_the_projections_too() -> None:
    student = network()
    distillation = Distillation(student, NetworkTeacher(network(1)), features=1.0)
    balancer = build_balancer('pcgrad', student.tasks)
    balancer.attach(student, [distillation])
    balancer.backward(distillation(pictures(), student(pictures())), student)
    assert all(p.grad is not None for p in distillation.parameters())


def test_a_bundle_teaches_by_labels_weighted_with_their_confidence(
    tiny_bundle: ModelBundle,
) -> None:
    height, width = tiny_bundle.input_size
    teacher = BundleTeacher(tiny_bundle, engine='onnxruntime')
    classes = len(tiny_bundle.classes)
    student = network(tasks=tiny_bundle.manifest.tasks, num_classes=classes).eval()
    images = pictures(height, width)
    wanted, features = teacher.outputs(images)
    assert features == {}
    with torch.no_grad():
        given = student(images)
        losses = Distillation(student, teacher)(images, given)
    log_probability = given['segmentation'].log_softmax(dim=1).numpy()
    label, confidence = wanted['label'].numpy(), wanted['confidence'].numpy()
    chosen = np.take_along_axis(log_probability, label[:, None], axis=1)[:, 0]
    expected = -(chosen * confidence).sum() / confidence.sum()
    assert losses['segmentation'].item() == pytest.approx(expected, rel=1e-4)
    assert wanted['depth'].shape == (2, 1, height, width)
    assert wanted['normals'].shape == (2, 3, height, width)


def test_a_bundle_teaches_on_the_gpu_of_its_process(
    tiny_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def on_the_cpu(*arguments: object, **options: object) -> object:
        asked.update(options)
        return open_engine(*arguments, **options)

    monkeypatch.setattr('mtl_training.distillation.open_engine', on_the_cpu)
    monkeypatch.setenv('LOCAL_RANK', '1')
    BundleTeacher(tiny_bundle, engine='onnxruntime').outputs(pictures(*tiny_bundle.input_size))
    assert asked['gpu_device'] == 1


def test_a_teacher_that_does_not_fit_is_refused(tiny_bundle: ModelBundle) -> None:
    with pytest.raises(DistillationError, match='common task'):
        Distillation(network(tasks=('depth',)), NetworkTeacher(network(tasks=('normals',))))
    with pytest.raises(DistillationError, match='same classes'):
        Distillation(network(num_classes=7), NetworkTeacher(network()))
    with pytest.raises(DistillationError, match='positive temperature'):
        Distillation(network(), NetworkTeacher(network()), temperature=0.0)
    with pytest.raises(DistillationError, match='one of them positive'):
        Distillation(network(), NetworkTeacher(network()), outputs=0.0)
    bundle = BundleTeacher(tiny_bundle)
    student = network(num_classes=len(tiny_bundle.classes))
    with pytest.raises(DistillationError, match='shows no features'):
        Distillation(student, bundle, features=1.0)


def test_a_teacher_of_another_camera_or_order_of_classes_is_refused(
    tiny_bundle: ModelBundle,
) -> None:
    names = [spec.name for spec in tiny_bundle.classes]
    focal_length = tiny_bundle.manifest.depth.focal_length_px
    teacher = BundleTeacher(tiny_bundle)
    teacher.refuse_another_view(names, focal_length)
    teacher.refuse_another_view([], focal_length)
    with pytest.raises(DistillationError, match='in the same order'):
        teacher.refuse_another_view(names[::-1], focal_length)
    with pytest.raises(DistillationError, match='choose a teacher of the same focal length'):
        teacher.refuse_another_view(names, 2 * focal_length)
    of_depth = NetworkTeacher(network(tasks=('depth',)), names, focal_length)
    of_depth.refuse_another_view(names[::-1], focal_length)
    labels_alone = NetworkTeacher(network(tasks=('segmentation',)), focal_length_px=520.0)
    labels_alone.refuse_another_view(names, 311.0)


def test_one_block_of_yaml_distils_a_run(tmp_path: Path) -> None:
    data, cache = write_pictures(tmp_path / 'data'), tmp_path / 'cache'
    train(tiny_config(data, cache), tmp_path / 'teacher')
    teacher = tmp_path / 'teacher' / 'last.json'
    assert isinstance(load_teacher(teacher), NetworkTeacher)
    block = {'teacher': str(teacher), 'outputs': 1.0, 'features': 0.5}
    other = tiny_config(data, cache, distillation=block, focal_length=400.0)
    with pytest.raises(DistillationError, match='same focal length'):
        train(other, tmp_path / 'other')
    plain = tiny_config(data, cache)
    taught = tiny_config(data, cache, distillation=block)
    for name, config in (('plain', plain), ('taught', taught)):
        train(config, tmp_path / name)

    def first_losses(name: str) -> dict[str, float]:
        return json.loads((tmp_path / name / 'losses.jsonl').read_text().splitlines()[0])

    for task in plain.tasks:
        assert first_losses('taught')[task] > first_losses('plain')[task]
