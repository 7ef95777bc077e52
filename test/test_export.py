"""An exported bundle computes what the network computes, on every runtime."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the workshop needs requirements/training.txt')
onnx = pytest.importorskip('onnx')

from onnx import TensorProto, numpy_helper  # noqa: E402
from training_parts import tiny_config, write_pictures  # noqa: E402

from mtl_perception.bundle import ModelBundle  # noqa: E402
from mtl_perception.engines import open_engine  # noqa: E402
from mtl_training import export, lineage  # noqa: E402
from mtl_training.bundle_weights import load_bundle_weights, trained_network  # noqa: E402
from mtl_training.calibration import expected_calibration_error  # noqa: E402
from mtl_training.checkpoints import CheckpointError  # noqa: E402
from mtl_training.config import load_config  # noqa: E402
from mtl_training.evaluate import evaluate_bundle  # noqa: E402
from mtl_training.export import (  # noqa: E402
    DeployedNetwork,
    ExportError,
    Parity,
    compare_outputs,
    export_bundle,
    measure_parity,
    parity_pictures,
    refuse_disagreement,
    store_half_weights,
    with_half_weights,
)
from mtl_training.networks import NetworkConfig, build_network  # noqa: E402
from mtl_training.run_state import build_stored_network, load_network  # noqa: E402
from mtl_training.trainer import train  # noqa: E402

SIZE = (64, 96)


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that has learnt something: random networks decide pixels by rounding."""
    root = tmp_path_factory.mktemp('export')
    data = write_pictures(root / 'data', count=8, size=(48, 64))
    config = tiny_config(
        data,
        root / 'cache',
        schedule={'steps': 30, 'warmup_steps': 3, 'evaluations': 1},
        ema_decay=0.8,
    )
    train(config, root / 'run')
    return root / 'run'


@pytest.fixture(scope='module')
def bundle(run: Path) -> ModelBundle:
    return export_bundle(run / 'last.json', run.parent / 'tiny', size=SIZE)


@pytest.fixture(scope='module')
def images() -> np.ndarray:
    """Return smooth pictures, as cameras give them."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (2, 8, 12, 3)).astype(np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
def test_engines_agree_with_torch(
    run: Path, bundle: ModelBundle, images: np.ndarray, engine: str
) -> None:
    if engine == 'openvino':
        pytest.importorskip('openvino')
    network, _ = load_network(run / 'last.json')
    temperature = bundle.manifest.training.recipe['calibration']['temperature']
    deployed = DeployedNetwork(with_half_weights(network), temperature).eval()
    with torch.inference_mode():
        outputs = [tensor.numpy() for tensor in deployed(torch.from_numpy(images))]
    reference = dict(zip(deployed.names, outputs, strict=True))
    runner = open_engine(bundle, engine, precision='float32', batch=2)
    found = {name: array.copy() for name, array in runner.infer(images).items()}
    runner.close()
    for name, array in reference.items():
        assert found[name].shape == array.shape and found[name].dtype == array.dtype
    parity = compare_outputs(reference, found)
    assert parity.label > 0.995
    assert parity.depth < 0.01
    assert parity.normal_deg < 0.5
    assert np.abs(found['confidence'].astype(int) - reference['confidence']).max() <= 2


def test_bundle_says_what_it_is(bundle: ModelBundle, run: Path) -> None:
    manifest = bundle.manifest
    assert manifest.tasks == ('segmentation', 'depth', 'normals')
    assert manifest.depth.focal_length_px == 60.0
    (learnt,) = manifest.training.data
    assert (learnt.frames, learnt.through) == (6, '')
    assert manifest.training.recipe['steps_done'] == 30
    network, _ = load_network(run / 'last.json')
    assert manifest.network.parameters == sum(p.numel() for p in network.parameters())
    assert str(run) not in json.dumps(manifest.model_dump(mode='json')), 'no paths of this machine'


def test_the_recipe_names_no_path_of_a_source_that_only_judges(run: Path) -> None:
    config = tiny_config(run.parent / 'data', run.parent / 'cache')
    judge = config.data.sources[0].model_copy(update={'name': 'judge'})
    held_out = config.data.judges[0].model_copy(update={'source': judge})
    data = config.data.model_copy(update={'held_out': held_out})
    config = config.model_copy(update={'data': data})
    spec = export._training(config, run / 'last.json', None, Parity())
    assert spec.recipe['data']['held_out']['source']['name'] == 'judge'
    assert str(run.parent) not in json.dumps(spec.recipe)


def test_weights_are_stored_as_float16(bundle: ModelBundle) -> None:
    model = onnx.load(bundle.model_path)
    assert model.opset_import[0].version >= 17
    kinds = {}
    for tensor in model.graph.initializer:
        kinds[tensor.data_type] = kinds.get(tensor.data_type, 0) + len(tensor.raw_data)
    assert kinds[TensorProto.FLOAT16] > 50 * kinds.get(TensorProto.FLOAT, 0)
    assert bundle.model_path.stat().st_size < 2.3 * bundle.manifest.network.parameters


def test_picture_is_cast_before_it_is_permuted(bundle: ModelBundle) -> None:
    model = onnx.load(bundle.model_path)
    first = [node.op_type for node in model.graph.node if 'image' in node.input]
    assert 'Cast' in first and 'Transpose' not in first


def test_other_sizes_and_batches_run(bundle: ModelBundle) -> None:
    assert bundle.manifest.input.resizable
    runner = open_engine(bundle, 'onnxruntime', precision='float32')
    outputs = runner.infer(np.zeros((3, 96, 160, 3), np.uint8))
    assert outputs['normal'].shape == (3, 96, 160, 3)
    runner.close()


@pytest.mark.parametrize('size', [(96, 64), (128, 160)])
def test_parity_is_measured_at_the_exported_size(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    seen = []

    def watched(reference: dict, model: Path, images: np.ndarray) -> Parity:
        seen.append(images.shape)
        return measure_parity(reference, model, images)

    monkeypatch.setattr(export, 'measure_parity', watched)
    # After thirty steps, rounding decides too much in pictures of a size never trained on.
    monkeypatch.setattr(export, 'refuse_disagreement', lambda parity: None)
    made = export_bundle(run / 'last.json', tmp_path / 'bundle', size=size)
    assert made.input_size == size and seen == [(2, *size, 3)]


def test_parity_is_with_the_weights_as_they_were_trained(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(network: torch.nn.Module) -> torch.nn.Module:
        for parameter in network.parameters():
            parameter.data = (parameter.data * 4).round() / 4
        return network

    monkeypatch.setattr(export, 'with_half_weights', spoilt)
    with pytest.raises(ExportError, match='does not survive float16 weights'):
        export_bundle(run / 'last.json', tmp_path / 'bundle', size=SIZE)


@pytest.mark.parametrize(('name', 'figure'), [('depth', 'depth'), ('normal', 'normal_deg')])
def test_one_value_that_is_no_number_is_a_disagreement(name: str, figure: str) -> None:
    reference = {
        'depth': np.full((1, 2, 2), 2.0),
        'normal': np.full((1, 2, 2, 3), (0, 0, -1.0)),
    }
    found = {key: array.copy() for key, array in reference.items()}
    assert getattr(compare_outputs(reference, found), figure) == 0
    found[name][0, 0, 0] = np.nan
    assert getattr(compare_outputs(reference, found), figure) == np.inf


def test_parity_takes_pictures_of_several_sizes() -> None:
    class Pictures(list):
        def read(self, index: int) -> SimpleNamespace:
            return SimpleNamespace(image=self[index])

    sizes = [(48, 64), (64, 96), (100, 30)]
    images = parity_pictures(Pictures(np.full((*s, 3), 255, np.uint8) for s in sizes), (64, 96))
    assert images.shape == (3, 64, 96, 3)
    assert (images[1] == 255).all() and (images[:, 32, 48] == 255).all()


def test_absent_tasks_have_no_outputs() -> None:
    network = build_network(
        NetworkConfig(backbone='pvt_v2_b0', decoder_channels=16, tasks=('depth',))
    )
    deployed = DeployedNetwork(network).eval()
    with torch.inference_mode():
        outputs = deployed(torch.zeros((1, *SIZE, 3), dtype=torch.uint8))
    assert deployed.names == ['depth']
    assert [tuple(output.shape) for output in outputs] == [(1, *SIZE)]


def test_evaluating_a_bundle_gives_the_contracts_figures(bundle: ModelBundle, run: Path) -> None:
    data = run.parent / 'data'
    before = sorted(data.rglob('*'))
    figures = evaluate_bundle(bundle, data, 'train', engine='onnxruntime')
    assert figures['frames'] == 8 and figures['normals']['source'] == 'derived-11'
    assert 0 <= figures['segmentation']['miou'] <= 1
    assert figures['depth']['abs_err'] > 0
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert sorted(data.rglob('*')) == before, 'nothing is written into the data'


def test_weights_beyond_float16_are_refused() -> None:
    weight = numpy_helper.from_array(np.array([1.0, 7e4], np.float32), 'w')
    graph = onnx.helper.make_graph([], 'g', [], [], [weight])
    with pytest.raises(ExportError, match='beyond float16'):
        store_half_weights(onnx.helper.make_model(graph))


@pytest.mark.parametrize(
    'parity',
    [
        Parity(0.99, 0.0, 0.0),
        Parity(1.0, 0.02, 0.0),
        Parity(None, float('nan'), None),
        Parity(1.0, 0.0, 1.5),
        Parity(None, None, float('nan')),
    ],
)
def test_graphs_that_disagree_are_refused(parity: Parity) -> None:
    with pytest.raises(ExportError, match='torch and ONNX'):
        refuse_disagreement(parity)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    logits = torch.log(torch.tensor([[0.8, 0.2]])).repeat(10, 1)
    labels = torch.tensor([0] * 8 + [1] * 2)
    assert expected_calibration_error(logits, labels) == pytest.approx(0, abs=1e-6)
    labels = torch.tensor([0] * 5 + [1] * 5)
    assert expected_calibration_error(logits, labels) == pytest.approx(0.3, abs=1e-6)


def test_a_bundles_weights_come_back_ready_to_learn(
    bundle: ModelBundle, images: np.ndarray
) -> None:
    """The network computes what the bundle computes, with the batch's own statistics too."""
    check_weights_come_back(bundle, images)


def test_attention_grows_on_a_trained_pyramid_and_comes_back_from_its_bundle(
    run: Path, images: np.ndarray, tmp_path: Path
) -> None:
    config = tiny_config(
        run.parent / 'data',
        run.parent / 'cache',
        network={'decoder': 'attentive_pyramid', 'decoder_channels': 16},
        schedule={'steps': 8, 'warmup_steps': 0, 'evaluations': 1},
        ema_decay=0.5,
    )
    train(config, tmp_path / 'next', start_from=run / 'last.json')
    grown, _ = load_network(tmp_path / 'next' / 'last.json')
    assert grown.fusions['shared'].attention.out.weight.abs().max() > 0
    bundle = export_bundle(tmp_path / 'next' / 'last.json', tmp_path / 'grown', size=SIZE)
    check_weights_come_back(bundle, images)


def check_weights_come_back(bundle: ModelBundle, images: np.ndarray) -> None:
    network = build_stored_network(*trained_network(bundle))
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2)
    load_bundle_weights(network, bundle, [pictures])
    engine = open_engine(bundle, 'onnxruntime', precision='float32', batch=2)
    expected = {name: array.copy() for name, array in engine.infer(images).items()}
    engine.close()
    for training in (False, True):
        deployed = DeployedNetwork(network).train(training)
        with torch.inference_mode():
            found = [tensor.numpy() for tensor in deployed(torch.from_numpy(images))]
        parity = compare_outputs(expected, dict(zip(deployed.names, found, strict=True)))
        assert parity.label > 0.998 and parity.depth < 1e-3 and parity.normal_deg < 0.1, training


def test_a_training_can_start_from_a_bundle(
    run: Path, bundle: ModelBundle, tmp_path: Path
) -> None:
    """Only what a normalisation scales away may differ from the checkpoint's weights."""
    config = tiny_config(
        run.parent / 'data',
        run.parent / 'cache',
        schedule={'steps': 1, 'warmup_steps': 0, 'evaluations': 1},
        optimizer={'lr': 1e-12, 'weight_decay': 0.0},
    )
    train(config, tmp_path / 'next', start_from=bundle.path)
    begun, _ = load_network(tmp_path / 'next' / 'last.json')
    exported, _ = load_network(run / 'last.json')
    fused = {'fusions', 'heads'}  # convolutions with a normalisation are here alone
    for (name, a), b in zip(exported.named_parameters(), begun.parameters(), strict=True):
        if name.partition('.')[0] not in fused:
            assert torch.allclose(a, b, rtol=2e-3, atol=1e-4), name


def test_a_network_names_what_it_owes_to_its_start_and_its_teacher(
    run: Path, bundle: ModelBundle
) -> None:
    config = load_config('fine_tune', ['distillation={teacher: efficientnet_lite0, outputs: 1.0}'])
    for start in (bundle.path, run / 'last.json'):
        specs = lineage.learnt_from(config, [17], start)
        assert [(spec.name, spec.frames, spec.through) for spec in specs[:2]] == [
            ('mine', 17, ''),
            ('boxes', 6, f'start {"run" if start.suffix else bundle.name}'),
        ]
        taught = {spec.name: spec.through for spec in specs[2:]}
        assert taught['nyuv2'] == 'teacher efficientnet_lite0'
        assert taught['imagenet'].endswith(', pre-training of tf_efficientnet_lite0')
        assert 'NYU Depth V2' in lineage.remark(specs)


def test_a_training_in_parts_is_one_step_of_the_way() -> None:
    config = load_config('pvt_v2_b0_taught')
    found = lineage.learnt_from(config, [1, 1], Path('pvt_v2_b0'))
    assert {spec.name: spec.through for spec in found}['worlds'] == 'start pvt_v2_b0'
    assert all(spec.through.count('start') <= 1 for spec in found)


def test_weights_of_imagenet_are_named_unless_the_start_replaces_them(bundle: ModelBundle) -> None:
    config = load_config('efficientnet_lite0')
    frames = [1] * len(config.data.sources)
    for start, names in ((None, ['imagenet']), (bundle.path, [])):
        learnt = lineage.learnt_from(config, frames, start)
        assert [spec.name for spec in learnt if 'pre-training' in spec.through] == names


def test_the_shipped_bundle_is_a_start_for_fine_tuning(tmp_path: Path) -> None:
    """What the README says of one's own pictures: a step on some moves the shipped weights."""
    write_pictures(tmp_path / 'mine', count=6)
    overrides = [
        f'data.cache={tmp_path / "cache"}',
        f'data.sources=[{{name: mine, path: {tmp_path / "mine"}, height: 64, width: 96}}]',
        'data.held_out={source: mine, blocks: 1, frames_per_block: 2}',
        'schedule={steps: 1, warmup_steps: 0, evaluations: 1, stages: [{height: 64, width: 96}]}',
        'batch_size=2',
        'workers=0',
    ]
    config = load_config('fine_tune', overrides)
    train(config, tmp_path / 'run', start_from=Path('efficientnet_lite0'))
    network, _ = load_network(tmp_path / 'run' / 'last.json')
    bundle = ModelBundle.load('efficientnet_lite0')
    shipped = build_stored_network(*trained_network(bundle))
    load_bundle_weights(shipped, bundle, [torch.zeros(2, 3, 64, 96)])
    for name in ('heads.depth.1.weight', 'heads.segmentation.1.weight'):
        before, after = shipped.get_parameter(name), network.get_parameter(name)
        assert 0 < (after - before).abs().max() < 1e-3


def test_a_bundle_without_its_recipe_is_no_start(tiny_bundle: ModelBundle, run: Path) -> None:
    config = tiny_config(run.parent / 'data', run.parent / 'cache')
    with pytest.raises(CheckpointError, match='does not say how its network is built'):
        train(config, run.parent / 'refused', start_from=tiny_bundle.path)
