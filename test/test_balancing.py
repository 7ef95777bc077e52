"""Balancing: closed forms, LibMTL's formulas written anew, torchjd, state, processes."""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip('torch', reason='the workshop needs requirements/training.txt')

import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402
import torchjd.scalarization as scalar  # noqa: E402

from mtl_training.balancing import (  # noqa: E402
    BALANCERS,
    Balancer,
    BalancingError,
    GradientBalancer,
    LossBalancer,
    build_balancer,
)
from mtl_training.networks import (  # noqa: E402
    DENSE_TASKS,
    MultiTaskNetwork,
    NetworkConfig,
    build_network,
)

GRADIENT_METHODS = [name for name, kind in BALANCERS.items() if issubclass(kind, GradientBalancer)]
LOSS_METHODS = [name for name, kind in BALANCERS.items() if issubclass(kind, LossBalancer)]
# The combined gradient of these is a sum with weights that are never negative.
CONIC = ['mgda', 'cagrad', 'pcgrad', 'nash_mtl', 'upgrad', 'db_mtl', 'gradnorm']
OPTIONS: dict[str, dict[str, Any]] = {
    'constants': {'weights': {'segmentation': 1.0, 'depth': 2.0, 'normals': 0.5}},
    'db_mtl': {'beta': 0.0},
}

# The same examples in every run: some methods are only as exact as their solver.
steady = settings(deadline=None, max_examples=12, derandomize=True)
positive_losses = st.lists(st.floats(0.05, 20.0), min_size=3, max_size=3)


def balancer_of(name: str, **options: Any) -> Balancer:
    return build_balancer(name, DENSE_TASKS, **(OPTIONS.get(name, {}) | options))


def weigh(balancer: LossBalancer, values: list[float]) -> np.ndarray:
    return balancer.weigh(torch.tensor(values)).numpy()


def tiny_network() -> MultiTaskNetwork:
    """Return a small network without batch statistics: its gradients depend on nothing else."""
    torch.manual_seed(0)
    config = NetworkConfig('test_efficientnet_gn', decoder_channels=8, decoder_norm='group')
    return build_network(config)


def losses_of(network: MultiTaskNetwork, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, 3, 32, 64), dtype=torch.uint8, generator=generator)
    outputs = network(images)
    return {
        'segmentation': outputs['segmentation'].logsumexp(dim=1).mean(),
        'depth': outputs['depth'].log().square().mean() + 0.1,
        'normals': (1.2 - outputs['normals'][:, 2]).mean(),
    }


def gradients_of(network: MultiTaskNetwork) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters()])


def combine(name: str, matrix: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    balancer = balancer_of(name, **options)
    return balancer.combine(matrix, torch.ones(len(matrix)))


def jacobians(opposition: float = 2.0, ratio: float = 10.0) -> st.SearchStrategy[torch.Tensor]:
    """Gradients of three tasks: in general position, opposed, and of very different length."""

    def build(seed: int, scales: list[float], opposed: float) -> torch.Tensor:
        matrix = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed))
        matrix[1] = matrix[1] - opposed * matrix[0]
        return matrix * torch.tensor(scales).unsqueeze(1)

    scales = st.lists(st.floats(1 / ratio, ratio), min_size=3, max_size=3)
    return st.builds(build, st.integers(0, 9999), scales, st.floats(0, opposition))


# Methods by losses alone


@steady
@given(values=positive_losses)
def test_equal_and_constants(values: list[float]) -> None:
    assert (weigh(balancer_of('equal'), values) == 1).all()
    assert weigh(balancer_of('constants'), values).tolist() == [1.0, 2.0, 0.5]


def test_constants_of_absent_tasks_do_nothing() -> None:
    balancer = build_balancer('constants', DENSE_TASKS[1:], **OPTIONS['constants'])
    assert weigh(balancer, [1.0, 1.0]).tolist() == [2.0, 0.5]


@steady
@given(values=positive_losses, start=st.floats(-2, 2))
def test_uncertainty_weighting_is_libmtls_formula(values: list[float], start: float) -> None:
    """LibMTL: sum(L / (2 exp(s)) + s / 2)."""
    balancer = balancer_of('uw', start=start)
    found = weigh(balancer, values)
    np.testing.assert_allclose(found, np.full(3, 1 / (2 * math.exp(start))), rtol=1e-5)
    expected = -np.array(values) / (2 * math.exp(start)) + 0.5
    np.testing.assert_allclose(balancer.log_variance.grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('name', 'theirs', 'parameter'),
    [
        ('uw', lambda: scalar.UW(3), 'log_var'),
        ('imtl_l', lambda: scalar.IMTLL(3), 'log_scale'),
        ('gls', scalar.GeometricMean, None),
    ],
)
@steady
@given(values=positive_losses)
def test_weights_are_the_derivatives_of_torchjds_combined_loss(
    name: str, theirs: Any, parameter: str | None, values: list[float]
) -> None:
    reference = theirs()
    leaf = torch.tensor(values, requires_grad=True)
    reference(leaf).backward()
    ours = balancer_of(name, **({'start': 0.0} if name == 'uw' else {}))
    np.testing.assert_allclose(weigh(ours, values), leaf.grad, rtol=1e-4)
    if parameter is not None:
        (own,) = ours.parameters()
        torch.testing.assert_close(own.grad, getattr(reference, parameter).grad)


def test_dwa_is_libmtls_formula_over_periods() -> None:
    random = np.random.default_rng(0)
    history = random.uniform(0.2, 3.0, (12, 3))
    balancer = balancer_of('dwa', temperature=2.0, period=3)
    reference = scalar.DWA(temperature=2.0)
    for step, values in enumerate(history):
        if step and step % 3 == 0:
            reference.step()
        leaf = torch.tensor(values, dtype=torch.float32, requires_grad=True)
        reference(leaf).backward()
        found = weigh(balancer, values.tolist())
        np.testing.assert_allclose(found, leaf.grad, rtol=1e-5)
        if step >= 6:
            epoch = step // 3
            last = history[3 * (epoch - 1) : 3 * epoch].mean(axis=0)
            before = history[3 * (epoch - 2) : 3 * (epoch - 1)].mean(axis=0)
            exponent = np.exp(last / before / 2.0)
            np.testing.assert_allclose(found, 3 * exponent / exponent.sum(), rtol=1e-5)


@steady
@given(values=positive_losses)
def test_gls_is_the_geometric_means_derivative(values: list[float]) -> None:
    mean = float(np.prod(values) ** (1 / 3))
    np.testing.assert_allclose(
        weigh(balancer_of('gls'), values), mean / (3 * np.array(values)), rtol=1e-4
    )


def test_rlw_draws_a_softmax_of_normals_that_seed_and_step_fix() -> None:
    first, again, other = (balancer_of('rlw', seed=seed) for seed in (1, 1, 2))
    draws = [weigh(first, [1.0] * 3) for _ in range(400)]
    np.testing.assert_allclose(np.sum(draws, axis=1), 1, rtol=1e-5)
    assert [weigh(again, [5.0] * 3).tolist() for _ in range(400)] == [d.tolist() for d in draws]
    assert weigh(other, [1.0] * 3).tolist() != draws[0].tolist()
    # log ratios of softmax weights are differences of two standard normal draws
    ratios = np.log(np.array(draws)[:, 0] / np.array(draws)[:, 1])
    assert abs(ratios.mean()) < 0.25
    assert 1.25 < ratios.std() < 1.6


def test_stch_is_libmtls_formula() -> None:
    random = np.random.default_rng(1)
    warm = random.uniform(0.2, 3.0, (4, 3))
    balancer = balancer_of('stch', mu=0.5, warmup_steps=4)
    for values in warm:
        np.testing.assert_allclose(weigh(balancer, values.tolist()), 1 / values, rtol=1e-5)
    nadir = warm.mean(axis=0)
    values = random.uniform(0.2, 3.0, 3)

    def combined(losses: np.ndarray) -> float:
        return 3 * 0.5 * math.log(np.exp(np.log(losses / nadir) / 0.5).sum())

    step = 1e-5
    numeric = [
        (combined(values + step * unit) - combined(values - step * unit)) / (2 * step)
        for unit in np.eye(3)
    ]
    np.testing.assert_allclose(weigh(balancer, values.tolist()), numeric, rtol=1e-4)


def test_famo_follows_the_official_optimizer() -> None:
    random = np.random.default_rng(2)
    ours, theirs = balancer_of('famo'), scalar.FAMO(3)
    for _ in range(15):
        values = random.uniform(0.3, 3.0, 3).tolist()
        after = random.uniform(0.3, 3.0, 3).tolist()
        leaf = torch.tensor(values, requires_grad=True)
        theirs(leaf).backward()
        np.testing.assert_allclose(weigh(ours, values), leaf.grad, rtol=1e-4)
        theirs.update(torch.tensor(after))
        ours.after_step(dict(zip(DENSE_TASKS, torch.tensor(after), strict=True)))
    torch.testing.assert_close(ours.logits, theirs._w.detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('name', ['gls', 'stch', 'famo', 'gradnorm', 'db_mtl'])
def test_logarithms_refuse_losses_that_are_not_positive(name: str) -> None:
    network = tiny_network()
    losses = losses_of(network)
    losses['normals'] = losses['normals'] - 10
    with pytest.raises(BalancingError, match='choose losses that are positive'):
        balancer_of(name).backward(losses, network)


# Methods by gradients


@steady
@given(matrix=jacobians())
def test_mgda_finds_the_shortest_convex_combination(matrix: torch.Tensor) -> None:
    combined, weights = combine('mgda', matrix, epsilon=1e-6, max_iters=2000)
    assert weights.sum().item() == pytest.approx(1, abs=1e-4)
    grid = [
        torch.tensor([a, b, 20 - a - b]) / 20
        for a, b in itertools.product(range(21), repeat=2)
        if a + b <= 20
    ]
    shortest = min((w @ matrix).norm() for w in grid)
    assert combined.norm() <= shortest + 0.02 * matrix.norm()


@steady
@given(matrix=jacobians())
def test_upgrad_conflicts_with_no_task(matrix: torch.Tensor) -> None:
    combined, _ = combine('upgrad', matrix)
    # torchjd's projection is regularised: a conflict of a hundredth of the lengths may stay.
    assert (matrix @ combined >= -0.02 * matrix.norm() * combined.norm()).all()


@steady
@given(matrix=jacobians())
def test_imtl_g_projects_equally_on_all_directions(matrix: torch.Tensor) -> None:
    combined, weights = combine('imtl_g', matrix)
    assume(weights.abs().max() < 20)
    projections = (matrix / matrix.norm(dim=1, keepdim=True)) @ combined
    torch.testing.assert_close(
        projections, projections.mean().expand(3), atol=1e-2 * matrix.norm().item(), rtol=0.02
    )


@steady
@given(matrix=jacobians(opposition=0.0, ratio=2.0))
def test_nash_mtl_solves_the_bargaining_equation(matrix: torch.Tensor) -> None:
    """G a = 1 / a for the Gramian G, up to the method's normalisation."""
    gramian = matrix @ matrix.T / (matrix @ matrix.T).norm()
    # The solver starts from equal weights, and stays there where their sum opposes a task.
    assume((gramian.sum(dim=1) > 0.02).all())
    _, weights = combine('nash_mtl', matrix, max_norm=0.0)
    product = (gramian @ weights) * weights
    assert (weights > 0).all()
    torch.testing.assert_close(product / product.mean(), torch.ones(3), atol=0.15, rtol=0)


@steady
@given(matrix=jacobians())
def test_aligned_mtl_weighs_principal_components_equally(matrix: torch.Tensor) -> None:
    """The balanced gradients B g are orthogonal with the smallest singular value as length."""
    _, weights = combine('aligned_mtl', matrix)
    left, singular, _ = np.linalg.svd(matrix.numpy().astype(np.float64), full_matrices=False)
    assume(singular[-1] > 0.05 * singular[0])
    expected = singular[-1] * left @ np.diag(1 / singular) @ left.T @ np.full(3, 1 / 3)
    np.testing.assert_allclose(weights, expected, rtol=2e-2, atol=2e-3)


@steady
@given(matrix=jacobians(), c=st.sampled_from([0.2, 0.4, 0.8]))
def test_cagrad_stays_in_its_ball_and_helps_the_worst_task(matrix: torch.Tensor, c: float) -> None:
    combined, _ = combine('cagrad', matrix, c=c)
    mean = matrix.mean(dim=0)
    assert (combined - mean).norm() <= c * mean.norm() * 1.02 + 1e-4
    assert (matrix @ combined).min() >= (matrix @ mean).min() - 1e-3 * matrix.norm() ** 2


@steady
@given(matrix=jacobians())
def test_pcgrad_of_two_tasks_is_yus_projection(matrix: torch.Tensor) -> None:
    first, second = matrix[:2]
    dot = first @ second
    expected = first + second
    if dot < 0:
        expected = expected - dot / (second @ second) * second - dot / (first @ first) * first
    balancer = build_balancer('pcgrad', DENSE_TASKS[:2])
    combined, _ = balancer.combine(matrix[:2], torch.ones(2))
    torch.testing.assert_close(combined, expected, atol=1e-3, rtol=1e-3)


@steady
@given(matrix=jacobians())
def test_graddrop_keeps_one_sign_per_coordinate(matrix: torch.Tensor) -> None:
    combined, _ = combine('graddrop', matrix)
    positive, negative = matrix.clamp(min=0).sum(dim=0), matrix.clamp(max=0).sum(dim=0)
    closest = torch.minimum((combined - positive).abs(), (combined - negative).abs())
    assert closest.max() < 1e-4


@steady
@given(matrix=jacobians())
def test_gradvac_leaves_gradients_that_agree_alone(matrix: torch.Tensor) -> None:
    agreeing = matrix.abs()
    combined, weights = combine('gradvac', agreeing)
    torch.testing.assert_close(weights, torch.ones(3))
    torch.testing.assert_close(combined, agreeing.sum(dim=0))


@steady
@given(matrix=jacobians(), beta=st.sampled_from([0.0, 0.9]))
def test_db_mtl_brings_gradients_to_the_largest_norm(matrix: torch.Tensor, beta: float) -> None:
    """LibMTL's update, written in numpy."""
    balancer = balancer_of('db_mtl', beta=beta)
    if beta:
        balancer.register_buffer('smoothed', torch.zeros_like(matrix))
    buffer = np.zeros(matrix.shape)
    for scale in (1.0, 0.5):
        now = (scale * matrix).numpy()
        combined, _ = balancer.combine(scale * matrix, torch.ones(3))
        buffer = now + beta * (buffer - now)
        norms = np.linalg.norm(buffer, axis=1)
        expected = (norms.max() / (norms + 1e-8)) @ buffer
        np.testing.assert_allclose(combined, expected, rtol=1e-3, atol=1e-4)


@steady
@given(matrix=jacobians(), before=positive_losses, now=positive_losses)
def test_gradnorm_learns_by_libmtls_formula(
    matrix: torch.Tensor, before: list[float], now: list[float]
) -> None:
    """The gradient of sum |w g - mean(w g) r^1.5| by differences, with constant target."""
    balancer = balancer_of('gradnorm')
    balancer.combine(matrix, torch.tensor(before))
    balancer.logits.grad = None
    with torch.no_grad():
        balancer.logits.copy_(torch.tensor([0.3, -0.2, 0.1]))
    combined, weights = balancer.combine(matrix, torch.tensor(now))

    def share(logits: np.ndarray) -> np.ndarray:
        return 3 * np.exp(logits) / np.exp(logits).sum()

    logits = np.array([0.3, -0.2, 0.1])
    norms = matrix.double().norm(dim=1).numpy()
    rate = np.array(now) / np.array(before)
    target = (share(logits) * norms).mean() * (rate / rate.mean()) ** 1.5
    np.testing.assert_allclose(weights, share(logits), rtol=1e-5)
    np.testing.assert_allclose(combined, share(logits) @ matrix.numpy(), rtol=1e-3, atol=1e-4)
    assume((np.abs(share(logits) * norms - target) > 1e-3 * norms.max()).all())
    step = 1e-6
    numeric = [
        np.abs(share(logits + step * unit) * norms - target).sum() / (2 * step)
        - np.abs(share(logits - step * unit) * norms - target).sum() / (2 * step)
        for unit in np.eye(3)
    ]
    np.testing.assert_allclose(balancer.logits.grad, numeric, rtol=1e-2, atol=1e-3 * norms.max())


@pytest.mark.parametrize('name', CONIC)
@steady
@given(matrix=jacobians())
def test_conic_methods_never_turn_a_task_around(name: str, matrix: torch.Tensor) -> None:
    _, weights = combine(name, matrix)
    assert (weights >= -1e-5).all()


# What all methods keep


@pytest.mark.parametrize('name', BALANCERS)
def test_every_method_fills_all_gradients(name: str) -> None:
    network = tiny_network()
    balancer = balancer_of(name)
    balancer.attach(network)
    weights = balancer.backward(losses_of(network), network)
    assert set(weights) == set(DENSE_TASKS)
    assert gradients_of(network).isfinite().all()
    assert all(math.isfinite(value) for value in weights.values())


@pytest.mark.parametrize('name', sorted(set(BALANCERS) - {'graddrop'}))
def test_shared_parameters_get_the_weighted_sum_that_is_logged(name: str) -> None:
    network = tiny_network()
    balancer = balancer_of(name)
    weights = balancer.backward(losses_of(network), network)
    found = torch.cat([p.grad.flatten() for p in network.shared_parameters()])
    network.zero_grad()
    losses = losses_of(network)
    if name == 'db_mtl':
        losses = {task: loss.log() for task, loss in losses.items()}
    sum(weights[task] * losses[task] for task in DENSE_TASKS).backward()
    expected = torch.cat([p.grad.flatten() for p in network.shared_parameters()])
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, atol=1e-3 * scale, rtol=1e-3)


@pytest.mark.parametrize('name', GRADIENT_METHODS)
def test_features_stand_in_for_parameters(name: str) -> None:
    """One pass through the shared part, and heads still get their own loss's gradient."""
    network = tiny_network()
    balancer = balancer_of(name, at='features')
    balancer.attach(network)
    weights = balancer.backward(losses_of(network), network)
    assert gradients_of(network).isfinite().all()
    assert max(weights.values()) > 0
    found = [p.grad.clone() for p in network.task_parameters('depth')]
    shared = torch.cat([p.grad.flatten() for p in network.shared_parameters()])
    network.zero_grad()
    losses = losses_of(network)
    if name == 'db_mtl':
        losses = {task: loss.log() for task, loss in losses.items()}
    losses['depth'].backward(retain_graph=True)
    for parameter, gradient in zip(network.task_parameters('depth'), found, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-5, rtol=1e-4)
    if name != 'graddrop':
        network.zero_grad()
        sum(weights[task] * losses[task] for task in DENSE_TASKS).backward()
        expected = torch.cat([p.grad.flatten() for p in network.shared_parameters()])
        scale = expected.abs().max().item()
        torch.testing.assert_close(shared, expected, atol=1e-3 * scale, rtol=1e-3)


@pytest.mark.parametrize(
    'name', ['mgda', 'pcgrad', 'cagrad', 'gradvac', 'imtl_g', 'aligned_mtl', 'upgrad']
)
def test_small_gradients_are_weighed_like_large_ones(name: str) -> None:
    gradients = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    gradients[1] -= 1.5 * gradients[0]  # a conflict
    values = torch.ones(3)
    _, expected = balancer_of(name).combine(gradients, values)
    _, found = balancer_of(name).combine(1e-5 * gradients, values)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_another_seed_draws_otherwise() -> None:
    gradients = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    gradients[1] -= 1.5 * gradients[0]
    gradients[2] -= gradients[0]

    def draw(seed: int) -> list[list[float]]:
        balancer = build_balancer('graddrop', DENSE_TASKS, seed=seed)
        return [balancer.combine(gradients, torch.ones(3))[0].tolist() for _ in range(3)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


@pytest.mark.parametrize('name', BALANCERS)
def test_gradients_add_up_over_calls(name: str) -> None:
    network = tiny_network()
    first, second = balancer_of(name), balancer_of(name)
    first.backward(losses_of(network), network)
    once = gradients_of(network)
    second.backward(losses_of(network), network)
    torch.testing.assert_close(gradients_of(network), 2 * once, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize('name', BALANCERS)
def test_a_restored_balancer_goes_on_as_if_never_stopped(name: str) -> None:
    options = {'beta': 0.9} if name == 'db_mtl' else {'period': 2} if name == 'dwa' else {}
    network = tiny_network()
    balancer = balancer_of(name, **options)
    balancer.attach(network)

    def step(method: Balancer, seed: int) -> dict[str, float]:
        network.zero_grad()
        weights = method.backward(losses_of(network, seed), network)
        if method.needs_losses_after_step:
            method.after_step(losses_of(network, seed + 50))
        return weights

    for seed in range(5):
        step(balancer, seed)
    restored = balancer_of(name, **options)
    restored.attach(network)
    state = {key: value.clone() for key, value in balancer.state_dict().items()}
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    restored.load_state_dict(state)
    for seed in range(5, 8):
        assert step(restored, seed) == pytest.approx(step(balancer, seed), rel=1e-6)


def test_one_task_needs_no_balancing() -> None:
    assert type(build_balancer('cagrad', ('depth',))) is BALANCERS['equal']


def _balance_in_process(rank: int, folder: str, names: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', f'file://{folder}/meet', rank=rank, world_size=2)
    results = {}
    for name in names:
        network = tiny_network()
        balancer = balancer_of(name)
        weights = balancer.backward(losses_of(network, seed=rank), network)
        gradients = gradients_of(network)
        if not balancer.reduces_gradients:
            dist.all_reduce(gradients)
            gradients /= 2
        results[name] = (weights, gradients)
    torch.save(results, f'{folder}/{rank}.pt')
    dist.destroy_process_group()


def test_two_processes_balance_as_one_with_both_batches(tmp_path: Path) -> None:
    names = ('uw', 'pcgrad', 'db_mtl')
    mp.spawn(_balance_in_process, (str(tmp_path), names), nprocs=2)
    results = [torch.load(tmp_path / f'{rank}.pt', weights_only=True) for rank in range(2)]
    for name in names:
        network = tiny_network()
        batches = [losses_of(network, seed) for seed in range(2)]
        together = {task: (batches[0][task] + batches[1][task]) / 2 for task in DENSE_TASKS}
        weights = balancer_of(name).backward(together, network)
        for result in results:
            found, gradients = result[name]
            assert found == pytest.approx(weights, rel=1e-3)
            torch.testing.assert_close(gradients, gradients_of(network), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ('name', 'package'), [('cagrad', 'cvxpy'), ('nash_mtl', 'ecos'), ('upgrad', 'quadprog')]
)
def test_a_missing_solver_is_an_error(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        'torchjd._mixins.find_spec', lambda name: None if name == package else find(name)
    )
    with pytest.raises(BalancingError, match=r'requirements/training\.txt'):
        balancer_of(name)


@pytest.mark.parametrize(
    ('name', 'options', 'said'),
    [
        ('luck', {}, 'equal, constants, uw'),
        ('uw', {'speed': 1}, 'options of the balancing method uw'),
        ('constants', {'weights': {'depth': 1.0}}, 'for each of'),
        ('constants', {'weights': dict.fromkeys((*DENSE_TASKS, 'pose'), 1.0)}, 'for each of'),
        ('constants', {'weights': dict.fromkeys(DENSE_TASKS, -1.0)}, 'not negative'),
        ('dwa', {'temperature': 0.0}, 'positive'),
        ('stch', {'mu': 0.0}, 'positive mu'),
        ('mgda', {'at': 'heads'}, 'parameters or features'),
        ('db_mtl', {'beta': 0.5, 'at': 'features'}, 'set beta to 0'),
        ('cagrad', {'c': -1.0}, 'options of the balancing method cagrad'),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(BalancingError, match=said):
        build_balancer(name, DENSE_TASKS, **options)


def test_a_loss_of_no_task_is_named_and_so_are_none_at_all() -> None:
    network = tiny_network()
    losses = losses_of(network)
    with pytest.raises(BalancingError, match='losses of segmentation, depth, normals, pose'):
        balancer_of('equal').backward({**losses, 'pose': losses['depth']}, network)
    with pytest.raises(BalancingError, match='losses of no task'):
        balancer_of('equal').backward({}, network)


def test_features_need_hard_sharing() -> None:
    network = build_network(NetworkConfig('test_efficientnet_gn', sharing='mtan'))
    with pytest.raises(BalancingError, match='set at to parameters'):
        balancer_of('mgda', at='features').attach(network)
