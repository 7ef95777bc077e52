"""Losses: against second implementations in numpy, masks, gradients and half precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip('torch', reason='the workshop needs requirements/training.txt')

from mtl_training.tasks import Depth, Normals, Segmentation, TaskError, build_task  # noqa: E402

HEIGHT, WIDTH, CLASSES = 6, 8, 5
ALL_LOSSES = {
    'segmentation': ('cross_entropy', 'dice', 'lovasz'),
    'depth': ('l1', 'log_l1', 'silog', 'gradient'),
    'normals': ('cosine', 'angular', 'angular_vmf'),
}
EACH_LOSS = [(task, loss) for task, losses in ALL_LOSSES.items() for loss in losses]


def make_batch(seed: int, invalid: float = 0.3) -> dict[str, torch.Tensor]:
    random = np.random.default_rng(seed)
    label = random.integers(0, CLASSES, (2, HEIGHT, WIDTH))
    depth = random.uniform(0.5, 5, (2, HEIGHT, WIDTH)).astype(np.float32)
    normal = random.normal(size=(2, 3, HEIGHT, WIDTH)).astype(np.float32)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    label[random.random(label.shape) < invalid] = 255
    depth[random.random(depth.shape) < invalid] = 0
    normal *= random.random((2, 1, HEIGHT, WIDTH)) >= invalid
    arrays = {'label': label.astype(np.int64), 'depth': depth, 'normal': normal}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def make_outputs(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    normals = torch.randn(2, 3, HEIGHT, WIDTH, generator=generator)
    return {
        'segmentation': torch.randn(2, CLASSES, HEIGHT, WIDTH, generator=generator),
        'depth': 0.3 + 5 * torch.rand(2, 1, HEIGHT, WIDTH, generator=generator),
        'normals': torch.nn.functional.normalize(normals, dim=1),
        'normals_kappa': 0.1 + 3 * torch.rand(2, 1, HEIGHT, WIDTH, generator=generator),
    }


def task_with(name: str, loss: str) -> Segmentation | Depth | Normals:
    options = {'losses': {loss: 1.0}}
    if name == 'segmentation':
        options['num_classes'] = CLASSES
    return build_task(name, options)


def libmtl(name: str, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> float:
    """Compute LibMTL's loss of a task, written anew."""
    if name == 'segmentation':
        logits = outputs['segmentation'].astype(np.float64)
        log_probability = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        total, count = 0.0, 0
        for n, y, x in np.ndindex(batch['label'].shape):
            if batch['label'][n, y, x] != 255:
                total -= log_probability[n, batch['label'][n, y, x], y, x]
                count += 1
        return total / count
    if name == 'depth':
        valid = batch['depth'] > 0
        return np.abs(outputs['depth'][:, 0] - batch['depth'])[valid].sum() / valid.sum()
    valid = (batch['normal'] != 0).any(axis=1)
    return 1 - (outputs['normals'] * batch['normal']).sum(axis=1)[valid].sum() / valid.sum()


@pytest.mark.parametrize('name', ALL_LOSSES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), invalid=st.sampled_from([0.0, 0.4, 0.9]))
def test_the_plain_losses_are_libmtls(name: str, seed: int, invalid: float) -> None:
    batch, outputs = make_batch(seed, invalid), make_outputs(seed)
    task = build_task(name, {'num_classes': CLASSES} if name == 'segmentation' else None)
    assume(task.valid_count(batch) > 0)
    expected = libmtl(
        name,
        {key: value.numpy() for key, value in outputs.items()},
        {key: value.numpy() for key, value in batch.items()},
    )
    assert task.loss(outputs, batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(('name', 'loss'), EACH_LOSS)
def test_pixels_without_a_target_get_no_gradient(name: str, loss: str) -> None:
    batch, outputs = make_batch(3), make_outputs(4)
    task = task_with(name, loss)
    keys = (name, 'normals_kappa') if loss == 'angular_vmf' else (name,)
    for key in keys:
        outputs[key].requires_grad_()
    task.loss(outputs, batch).backward()
    valid = task.valid(batch)
    assert 0 < valid.sum() < valid.numel()
    for key in keys:
        gradient = outputs[key].grad.permute(0, 2, 3, 1)
        assert (gradient[~valid] == 0).all()
        assert gradient[valid].abs().sum() > 0
        assert gradient.isfinite().all()


@pytest.mark.parametrize(('name', 'loss'), EACH_LOSS)
def test_a_batch_without_targets_costs_nothing(name: str, loss: str) -> None:
    outputs = make_outputs(1)
    batch = {
        'label': torch.full((2, HEIGHT, WIDTH), 255),
        'depth': torch.zeros(2, HEIGHT, WIDTH),
        'normal': torch.zeros(2, 3, HEIGHT, WIDTH),
    }
    outputs[name].requires_grad_()
    value = task_with(name, loss).loss(outputs, batch)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-3)
    assert (outputs[name].grad == 0).all()


@pytest.mark.parametrize(('name', 'loss'), EACH_LOSS)
def test_targets_that_are_not_finite_do_not_spread(name: str, loss: str) -> None:
    batch, outputs = make_batch(3), make_outputs(4)
    clean = task_with(name, loss).loss(outputs, batch)
    batch['depth'][batch['depth'] == 0] = float('nan')
    invalid = (batch['normal'] == 0).all(dim=1, keepdim=True).expand_as(batch['normal'])
    batch['normal'][invalid] = float('inf')
    outputs[name].requires_grad_()
    value = task_with(name, loss).loss(outputs, batch)
    value.backward()
    assert value.item() == pytest.approx(clean.item(), rel=1e-6)
    assert outputs[name].grad.isfinite().all()


@pytest.mark.parametrize(('name', 'loss'), EACH_LOSS)
def test_losses_are_float32_inside_autocast(name: str, loss: str) -> None:
    batch, outputs = make_batch(5), make_outputs(6)
    task = task_with(name, loss)
    exact = task.loss(outputs, batch)
    with torch.autocast('cpu', torch.bfloat16):
        inside = task.loss(outputs, batch)
        rough = task.loss({key: x.bfloat16() for key, x in outputs.items()}, batch)
    assert inside.dtype == torch.float32
    assert inside.item() == exact.item()
    assert rough.item() == pytest.approx(exact.item(), rel=0.05, abs=0.02)


@pytest.mark.parametrize(
    ('name', 'loss'),
    [
        ('segmentation', 'cross_entropy'),
        ('depth', 'l1'),
        ('normals', 'cosine'),
        ('normals', 'angular'),
    ],
)
def test_a_global_count_makes_the_mean_over_processes_the_mean_over_pixels(
    name: str, loss: str
) -> None:
    batch, outputs = make_batch(7), make_outputs(8)
    task = task_with(name, loss)
    together = task.loss(outputs, batch)
    per_process = task.valid_count(batch) / 2
    parts = [
        task.loss(
            {key: x[i : i + 1] for key, x in outputs.items()},
            {key: x[i : i + 1] for key, x in batch.items()},
            per_process,
        )
        for i in range(2)
    ]
    assert (sum(parts) / 2).item() == pytest.approx(together.item(), rel=1e-5)


@pytest.mark.parametrize(('name', 'loss'), EACH_LOSS)
def test_a_right_answer_beats_a_wrong_one(name: str, loss: str) -> None:
    batch = make_batch(9, invalid=0.2)
    one_hot = torch.nn.functional.one_hot(batch['label'].clamp(max=CLASSES - 1), CLASSES)
    right = make_outputs(9) | {
        'segmentation': 20.0 * one_hot.permute(0, 3, 1, 2),
        'depth': batch['depth'].clamp(min=0.5).unsqueeze(1),
        'normals': batch['normal'].clone(),
    }
    task = task_with(name, loss)
    wrong = right | {name: make_outputs(10)[name]}
    assert task.loss(right, batch) < task.loss(wrong, batch)
    if loss != 'angular_vmf':
        assert task.loss(right, batch).item() == pytest.approx(0, abs=1e-3)


def test_class_weights_are_a_weighted_mean() -> None:
    batch, outputs = make_batch(11), make_outputs(12)
    weights = [0.5, 1.0, 2.0, 3.0, 0.1]
    task = Segmentation(CLASSES, class_weights=weights)
    expected = torch.nn.functional.cross_entropy(
        outputs['segmentation'], batch['label'], torch.tensor(weights), ignore_index=255
    )
    assert task.loss(outputs, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_dice_of_hard_answers_is_the_overlap() -> None:
    label = torch.tensor([[[0, 0, 1, 255]]])
    answer = torch.tensor([[[0, 1, 1, 0]]])
    logits = 100.0 * torch.nn.functional.one_hot(answer, 3).permute(0, 3, 1, 2)
    # Classes 0 and 1 occur, each with an overlap of 1 of 2 and 1 pixels: dice 2/3.
    loss = Segmentation(3, {'dice': 1.0}).loss({'segmentation': logits}, {'label': label})
    assert loss.item() == pytest.approx(1 - 2 / 3, abs=1e-5)


def test_lovasz_of_hard_answers_is_one_minus_iou() -> None:
    label = torch.tensor([[[0, 0, 1, 1, 1, 255]]])
    answer = torch.tensor([[[0, 1, 1, 1, 0, 2]]])
    logits = 100.0 * torch.nn.functional.one_hot(answer, 3).permute(0, 3, 1, 2)
    loss = Segmentation(3, {'lovasz': 1.0}).loss({'segmentation': logits}, {'label': label})
    # IoU of class 0: 1 of 3; of class 1: 2 of 4.
    assert loss.item() == pytest.approx(1 - (1 / 3 + 1 / 2) / 2, abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), forgiven=st.sampled_from([0.0, 0.5, 0.85, 1.0]))
def test_silog_is_eigens_formula(seed: int, forgiven: float) -> None:
    batch, outputs = make_batch(seed), make_outputs(seed)
    valid = batch['depth'] > 0
    error = (outputs['depth'][:, 0][valid].log() - batch['depth'][valid].log()).double()
    expected = (error.square().mean() - forgiven * error.mean().square()).sqrt().item()
    value = Depth({'silog': 1.0}, silog_variance=forgiven).loss(outputs, batch).item()
    assert value == pytest.approx(expected, rel=1e-3, abs=2e-4)


@settings(max_examples=10, deadline=None)
@given(scale=st.floats(0.3, 3.0))
def test_the_gradient_term_does_not_see_scale(scale: float) -> None:
    batch = make_batch(13)
    truth = batch['depth'].clamp(min=0.5).unsqueeze(1)
    task = Depth({'gradient': 1.0})
    assert task.loss({'depth': scale * truth}, batch).item() == pytest.approx(0, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(angle=st.floats(0.0, 180.0))
def test_the_angle_is_exact_from_equal_to_opposite(angle: float) -> None:
    radians = math.radians(angle)
    normal = torch.zeros(1, 3, 1, 1)
    normal[0, 0], normal[0, 2] = math.sin(radians), -math.cos(radians)
    normal.requires_grad_()
    truth = torch.tensor([0.0, 0.0, -1.0]).view(1, 3, 1, 1)
    value = Normals({'angular': 1.0}).loss({'normals': normal}, {'normal': truth})
    value.backward()
    assert value.item() == pytest.approx(radians, abs=1e-5)
    assert normal.grad.isfinite().all()


def test_the_von_mises_fisher_density_sums_to_one() -> None:
    """exp(-loss) is a density over the sphere but for the factor 1 / (2 pi)."""
    kappa = 2.5
    angles = torch.linspace(0, math.pi, 20_001, dtype=torch.float64)
    normals = torch.stack([angles.sin(), 0 * angles, -angles.cos()]).float().view(3, -1, 1)
    truth = torch.tensor([0.0, 0.0, -1.0]).view(1, 3, 1, 1)
    task = Normals({'angular_vmf': 1.0})
    density = [
        math.exp(
            -task.loss(
                {
                    'normals': normals[None, :, i : i + 1],
                    'normals_kappa': torch.full((1, 1, 1, 1), kappa),
                },
                {'normal': truth},
            ).item()
        )
        for i in range(0, 20_001, 100)
    ]
    total = np.trapezoid(np.array(density) * angles[::100].sin().numpy(), angles[::100].numpy())
    assert total == pytest.approx(1.0, abs=1e-3)


def test_losses_add_up_by_their_weights() -> None:
    batch, outputs = make_batch(15), make_outputs(16)
    mixed = Depth({'l1': 0.5, 'silog': 2.0}).loss(outputs, batch)
    single = {loss: task_with('depth', loss).loss(outputs, batch) for loss in ('l1', 'silog')}
    assert mixed.item() == pytest.approx((0.5 * single['l1'] + 2 * single['silog']).item())


@pytest.mark.parametrize(
    ('name', 'config', 'said'),
    [
        ('pose', None, 'segmentation, depth, normals'),
        ('depth', {'losses': {'l3': 1.0}}, 'gradient, l1, log_l1, silog'),
        ('depth', {'losses': {}}, 'at least one'),
        ('normals', {'speed': 3}, 'options of the task normals'),
        ('segmentation', {'num_classes': 3, 'class_weights': [1.0]}, 'one per class, 3'),
    ],
)
def test_wrong_options_are_refused(name: str, config: dict | None, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        build_task(name, config)


def test_von_mises_fisher_without_confidence_is_refused() -> None:
    outputs = make_outputs(1)
    del outputs['normals_kappa']
    with pytest.raises(TaskError, match='normals_confidence'):
        Normals({'angular_vmf': 1.0}).loss(outputs, make_batch(1))
