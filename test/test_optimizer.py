"""Parameter groups of the optimizer, and its state as plain tensors."""

from __future__ import annotations

import pytest

torch = pytest.importorskip('torch', reason='the workshop needs requirements/training.txt')

from torch import nn  # noqa: E402

from mtl_training.checkpoints import CheckpointError  # noqa: E402
from mtl_training.config import OptimizerSettings  # noqa: E402
from mtl_training.ema import MovingAverage  # noqa: E402
from mtl_training.networks import NetworkConfig, build_network  # noqa: E402
from mtl_training.optimizer import (  # noqa: E402
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)


def groups_by_name(parts: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    of = {id(p): group for group in optimizer.param_groups for p in group['params']}
    return {name: of[id(p)] for name, p in parts.named_parameters()}


def test_layer_decay_slows_the_early_stages_and_vectors_are_not_decayed() -> None:
    network = build_network(NetworkConfig(decoder_channels=16))
    parts = nn.ModuleDict({'network': network})
    settings = OptimizerSettings(lr=1.0, weight_decay=0.1, layer_decay=0.5)
    optimizer = build_optimizer(parts, settings)
    groups = groups_by_name(parts, optimizer)
    assert len(groups) == sum(len(group['params']) for group in optimizer.param_groups)
    for name, parameter in parts.named_parameters():
        expected = 0.1 if parameter.ndim > 1 else 0.0
        assert groups[name]['weight_decay'] == expected, name
    stem = groups['network.encoder.backbone.stages.0.patch_embed.proj.weight']
    last = groups['network.encoder.backbone.stages.3.stages_3.downsample.proj.weight']
    head = groups['network.heads.depth.1.weight']
    assert (stem['lr_scale'], last['lr_scale'], head['lr_scale']) == (0.0625, 0.5, 1.0)
    set_learning_rate(optimizer, 0.2)
    assert (stem['lr'], head['lr']) == (pytest.approx(0.0125), 0.2)


def scales_of(config: NetworkConfig) -> dict[str, dict]:
    parts = nn.ModuleDict({'network': build_network(config)})
    settings = OptimizerSettings(lr=1.0, weight_decay=0.1, layer_decay=0.5, backbone_lr_scale=0.5)
    return groups_by_name(parts, build_optimizer(parts, settings))


@pytest.mark.parametrize('decoder', ['pyramid', 'bifpn'])
def test_blocks_of_a_backbone_of_one_stage_learn_at_their_own_rates(decoder: str) -> None:
    groups = scales_of(NetworkConfig(backbone='test_vit', decoder=decoder, decoder_channels=16))
    model = 'network.encoder.backbone.stages.0.features.model'
    of_blocks = [groups[f'{model}.blocks.{n}.norm1.weight']['lr_scale'] for n in range(6)]
    assert of_blocks == [0.5 * 0.5 ** (6 - n) for n in range(6)]
    assert groups[f'{model}.patch_embed.proj.weight']['lr_scale'] == 0.5 * 0.5**7
    assert groups[f'{model}.pos_embed']['weight_decay'] == 0.0


@pytest.mark.parametrize('sharing', ['cross_stitch', 'mtan'])
def test_what_is_new_beside_the_backbone_learns_at_the_full_rate(sharing: str) -> None:
    groups = scales_of(NetworkConfig(sharing=sharing, decoder_channels=16))
    for name, group in groups.items():
        beside = '.mixing.' in name or '.attention.' in name
        if beside:
            assert group['lr_scale'] == 1.0, name
        if '.mixing.' in name:
            assert group['weight_decay'] == 0.0
    last = [g['lr_scale'] for name, g in groups.items() if '.stages.3.' in name]
    assert last and set(last) == {0.25}


@pytest.mark.parametrize('name', ['adamw', 'adam'])
def test_state_survives_as_plain_tensors(name: str) -> None:
    settings = OptimizerSettings(name=name, lr=0.1)

    def two_steps(interrupted: bool) -> torch.Tensor:
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        optimizer = build_optimizer(layer, settings)
        for step in range(2):
            if step == 1 and interrupted:
                saved = {key: value.clone() for key, value in optimizer_tensors(optimizer).items()}
                optimizer = build_optimizer(layer, settings)
                load_optimizer_tensors(optimizer, saved)
            optimizer.zero_grad()
            layer(torch.ones(1, 3) * (step + 1)).square().sum().backward()
            optimizer.step()
        return layer.weight.detach()

    assert torch.equal(two_steps(False), two_steps(True))


def stage_and_head() -> nn.Module:
    torch.manual_seed(0)
    stages = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    encoder = nn.ModuleDict({'backbone': nn.ModuleDict({'stages': stages})})
    return nn.ModuleDict({'head': nn.Linear(3, 3), 'encoder': encoder})


def test_moments_follow_their_parameters_into_other_groups() -> None:
    parts = stage_and_head()
    before = build_optimizer(parts, OptimizerSettings(weight_decay=0.1))
    for index, parameter in enumerate(parts.parameters()):
        parameter.grad = torch.full_like(parameter, index + 1.0)
    before.step()
    saved = optimizer_tensors(before)
    assert 'encoder.backbone.stages.1.weight.exp_avg' in saved
    after = build_optimizer(
        parts, OptimizerSettings(weight_decay=0.0, backbone_lr_scale=0.1, layer_decay=0.5)
    )
    load_optimizer_tensors(after, saved)
    for name, parameter in parts.named_parameters():
        torch.testing.assert_close(
            after.state[parameter]['exp_avg'], before.state[parameter]['exp_avg'], msg=name
        )


def test_state_of_a_parameter_that_is_not_there_is_refused() -> None:
    optimizer = build_optimizer(nn.Linear(3, 2), OptimizerSettings())
    with pytest.raises(CheckpointError, match=r"state of 'tail\.weight', which is no parameter"):
        load_optimizer_tensors(optimizer, {'tail.weight.exp_avg': torch.zeros(2, 3)})


def test_moving_average_forgets_the_start_and_then_follows_slowly() -> None:
    layer = nn.Linear(1, 1, bias=False)
    average = MovingAverage(layer, decay=0.9)
    nn.init.constant_(layer.weight, 1.0)
    for step in range(1, 40):
        average.update(layer, step)
    assert average.network.weight.item() == pytest.approx(1.0, abs=0.01)
    nn.init.constant_(layer.weight, 2.0)
    average.update(layer, 1000)
    assert average.network.weight.item() == pytest.approx(1.1, abs=0.01)
    assert not average.network.weight.requires_grad


def test_statistics_of_norms_are_averaged_as_the_weights_are() -> None:
    norm = nn.BatchNorm2d(1)
    average = MovingAverage(norm, decay=0.9)
    norm.running_mean += 1
    norm.num_batches_tracked += 7
    average.update(norm, 1000)
    assert average.network.running_mean.item() == pytest.approx(0.1)
    assert average.network.num_batches_tracked == 7
