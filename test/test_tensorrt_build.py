"""Real TensorRT-RTX builds without a GPU; a walk through the source for unknown names."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest
from fake_gpu import FakeDriver
from onnx import helper
from tiny_graph import SIZE, normalising_model, tiny_manifest, tiny_model

import mtl_perception.engines
from mtl_perception.bundle import ModelBundle
from mtl_perception.engine_cli import read_pictures
from mtl_perception.engines import EngineError, open_engine
from mtl_perception.engines.builder import BuildOptions, build_engine
from mtl_perception.engines.cache import EngineCache
from mtl_perception.engines.cuda import Cuda
from mtl_perception.engines.gate import Finding, GateReport, Limits
from mtl_perception.engines.precision import load_graph, to_half
from mtl_perception.engines.prepare import prepare_engine, rewrite
from mtl_perception.engines.tensorrt_api import (
    RUNTIMES,
    TensorRt,
    load_tensorrt,
    target_capabilities,
)

tensorrt_rtx = pytest.importorskip(
    'tensorrt_rtx',
    reason='tensorrt_rtx is not installed: pip install -r requirements/tensorrt.txt',
)
ROOT = Path(__file__).resolve().parent.parent
CAPABILITIES = ('8.6', '8.9', '12.0')
SHIPPED = sorted(path.parent.name for path in (ROOT / 'models').glob('*/bundle.json'))


@pytest.fixture(scope='module')
def api() -> TensorRt:
    return load_tensorrt('tensorrt_rtx')


def pictures(count: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (count, 6, 8, 3)).astype(np.float32)
    return [cv2.resize(small, SIZE[::-1]).clip(0, 255).astype(np.uint8) for small in coarse]


@pytest.mark.parametrize('precision', ['float32', 'float16'])
@pytest.mark.parametrize('name', SHIPPED)
def test_shipped_bundles_build_for_three_generations(
    api: TensorRt, name: str, precision: str, capsys: pytest.CaptureFixture
) -> None:
    bundle = ModelBundle.load(ROOT / 'models' / name)
    model = load_graph(str(bundle.model_path))
    if precision == 'float16':
        model = to_half(model).model

    blob, _ = build_engine(
        api, model, BuildOptions((bundle.input_size,), (1, 1, 4), capabilities=CAPABILITIES)
    )

    with capsys.disabled():
        print(
            f'\n{name} {precision}: {len(model.graph.node)} nodes, {len(blob) / 1e6:.1f} MB ',
            end='',
        )
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    assert len(blob) > weights / 2


@pytest.mark.slow
@pytest.mark.parametrize('name', SHIPPED)
def test_shipped_bundles_pass_the_gate_in_half(name: str, room_bag: Path) -> None:
    # Small pictures: every single result is rounded to half, and onnx.reference is slow.
    rewritten = rewrite(
        ModelBundle.load(ROOT / 'models' / name), 'float16', read_pictures(room_bag, (96, 128), 2)
    )

    assert rewritten.precision == 'float16', rewritten.remarks
    assert all(report.passed for report in rewritten.reports[-2:])
    assert {report.method for report in rewritten.reports} >= {'onnx.reference at 96x128'}


@pytest.mark.slow
@pytest.mark.parametrize('precision', ['float32', 'float16'])
def test_untrained_networks_build_for_three_generations(
    api: TensorRt, untrained: Path, precision: str, capsys: pytest.CaptureFixture
) -> None:
    model = load_graph(str(untrained))
    if precision == 'float16':
        model = to_half(model).model

    blob, _ = build_engine(api, model, BuildOptions(((288, 384),), capabilities=CAPABILITIES))

    with capsys.disabled():
        print(
            f'\n{untrained.stem} {precision}: {len(model.graph.node)} nodes, '
            f'{len(blob) / 1e6:.1f} MB ',
            end='',
        )
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    assert len(blob) > weights / 2


# In a process of its own: nobody has PyTorch and TensorRT in one, and their libraries disagree.
EXPORT = """
import sys, torch
from mtl_training.export import DeployedNetwork
from mtl_training.networks import NetworkConfig, build_network

config = NetworkConfig(backbone=sys.argv[1], pretrained=False)
network = DeployedNetwork(build_network(config)).eval()
torch.onnx.export(
    network,
    (torch.zeros((1, 288, 384, 3), dtype=torch.uint8),),
    sys.argv[2],
    dynamo=False,
    opset_version=17,
    input_names=['image'],
    output_names=network.names,
)
"""


@pytest.fixture(scope='module', params=['pvt_v2_b2', 'tf_efficientnet_lite0'])
def untrained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the graph of a network with random weights."""
    if importlib.util.find_spec('torch') is None:
        pytest.skip('torch is not installed: pip install -r requirements/training.txt')
    path = tmp_path_factory.mktemp('untrained') / f'{request.param}.onnx'
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-W', 'ignore', '-c', EXPORT, request.param, str(path)]
    exported = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert exported.returncode == 0, exported.stderr
    return path


@pytest.mark.parametrize('model', [tiny_model(), normalising_model()])
def test_small_graphs_build_with_several_sizes_and_batches(
    api: TensorRt, model: onnx.ModelProto
) -> None:
    seen: list[tuple[str, int, int]] = []

    blob, _ = build_engine(
        api,
        to_half(load_graph(model)).model,
        BuildOptions((SIZE, (64, 64)), (1, 2, 4), CAPABILITIES, workspace_mib=64),
        report=lambda *progress: seen.append(progress) or True,
    )

    assert len(blob) > 10_000
    assert ('Building engine' in {phase for phase, _, _ in seen}) and len(seen) > 10
    assert all(0 <= step <= steps for _, step, steps in seen)


def test_an_unsupported_operator_is_named(api: TensorRt) -> None:
    model = tiny_model()
    strange = helper.make_node('Frobnicate', ['grey'], ['odd'], name='strange', domain='mine')
    model.graph.node.insert(11, strange)
    model.opset_import.append(helper.make_opsetid('mine', 1))
    for node in model.graph.node:
        if node.op_type == 'LpNormalization':
            node.input[0] = 'odd'

    with pytest.raises(EngineError, match=r'operator Frobnicate \(strange\)'):
        build_engine(api, model, BuildOptions((SIZE,)))


def test_a_size_that_the_graph_does_not_have_is_refused(api: TensorRt) -> None:
    model = tiny_model()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = SIZE[0]

    with pytest.raises(EngineError, match=r'built no engine: .*Dimension mismatch'):
        build_engine(api, model, BuildOptions(((64, 64),)))


def test_a_build_can_be_cancelled(api: TensorRt) -> None:
    with pytest.raises(EngineError, match='cancel'):
        build_engine(api, tiny_model(), BuildOptions((SIZE,)), report=lambda *progress: False)


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        ({'batch': (2, 1, 4)}, 'expected MIN:OPT:MAX'),
        ({'batch': (0, 1, 1)}, 'expected MIN:OPT:MAX'),
        ({'batch': (4, 4, 4)}, 'with MIN 1'),
        ({'sizes': ()}, 'no picture size'),
        ({'workspace_mib': 0}, 'expected 1 or more'),
    ],
)
def test_wrong_options_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(EngineError, match=sentence):
        BuildOptions(**{'sizes': (SIZE,), **options})


def test_unknown_capabilities_list_the_known_ones(api: TensorRt) -> None:
    with pytest.raises(EngineError, match=r'does not build for 6\.1: expected some of .*8\.6'):
        build_engine(api, tiny_model(), BuildOptions((SIZE,), capabilities=('8.6', '6.1')))


def bundle_of(model: onnx.ModelProto, folder: Path) -> ModelBundle:
    onnx.save(model, folder / 'graph.onnx')
    return ModelBundle.write(folder / 'tiny', tiny_manifest(), folder / 'graph.onnx')


def test_a_prepared_engine_is_gated_built_once_and_found_again(
    api: TensorRt, tmp_path: Path
) -> None:
    bundle = bundle_of(normalising_model(), tmp_path)
    cache = EngineCache(tmp_path / 'cache')
    options = BuildOptions((SIZE,), capabilities=CAPABILITIES)

    first = prepare_engine(bundle, api, options, 'float16', pictures(), cache=cache)
    second = prepare_engine(bundle, api, options, 'float16', pictures(), cache=cache)

    assert first.notes['precision'] == 'float16' and first.notes['gate'][0]['passed']
    assert not first.notes['gated_on_gpu']
    assert first.origin.startswith('built: no engine of tiny')
    assert second.path == first.path and second.origin.startswith('found in')
    assert second.notes == first.notes


def test_what_else_decides_an_engine_belongs_to_its_key(
    api: TensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of(normalising_model(), tmp_path)
    cache = EngineCache(tmp_path / 'cache')
    options = BuildOptions((SIZE,), capabilities=('8.6',))

    def origin(**changes: object) -> str:
        arguments: dict = {'pictures': pictures(), **changes}
        return prepare_engine(bundle, api, options, 'float16', cache=cache, **arguments).origin

    assert origin().startswith('built')
    assert origin().startswith('found')
    assert re.match('built: .*frames was ', origin(pictures=pictures(3)))
    assert re.match('built: .*limits was ', origin(limits=Limits(label_agreement=0.9)))
    monkeypatch.setattr('mtl_perception.engines.prepare.REWRITING', -1)
    assert re.match('built: .*rewriting was ', origin())


def test_an_engine_that_is_wrong_in_float32_is_refused(
    api: TensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = Cuda(FakeDriver())
    wrong = GateReport('float32', 'a GPU', 1, (Finding('depth', 'difference', 1.0, 0.1, False),))
    monkeypatch.setattr('mtl_perception.engines.prepare._gate_on_gpu', lambda *_: wrong)

    with pytest.raises(EngineError, match=r'wrongly on Imaginary GPU .* even in float32 .depth'):
        prepare_engine(
            bundle_of(normalising_model(), tmp_path),
            api,
            BuildOptions((SIZE,), capabilities=('8.6',)),
            'float32',
            pictures(),
            cache=EngineCache(tmp_path / 'cache'),
            gpu=cuda.find_gpu(),
            cuda=cuda,
        )
    assert not list((tmp_path / 'cache').glob('*.engine'))


def test_sizes_are_checked_before_anything_is_built(
    api: TensorRt, tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=r'network size 33x33 .* expected multiples of 32'):
        prepare_engine(
            tiny_bundle,
            api,
            BuildOptions((SIZE, (33, 33))),
            'float16',
            pictures(),
            cache=EngineCache(tmp_path),
            report=lambda *_: pytest.fail('a build has begun'),
        )


def test_float32_is_not_rounded_and_the_gpu_at_hand_is_the_target(
    api: TensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple] = []

    def note(api: TensorRt, config: object, capabilities: tuple, *, on_gpu: bool) -> None:
        asked.append((config.get_flag(tensorrt_rtx.BuilderFlag.TF32), capabilities, on_gpu))
        target_capabilities(api, config, ('8.6',), on_gpu=False)

    monkeypatch.setattr('mtl_perception.engines.builder.target_capabilities', note)
    build_engine(api, tiny_model(), BuildOptions((SIZE,)), on_gpu=True)
    assert asked == [(False, (), True)]

    targets: list[tuple] = []
    config = SimpleNamespace(set_compute_capability=lambda *target: targets.append(target))
    target_capabilities(api, config, (), on_gpu=True)
    assert targets == [(tensorrt_rtx.ComputeCapability.CURRENT, 0)]
    assert config.num_compute_capabilities == 1


def test_a_precision_that_fails_the_gate_gives_way(api: TensorRt, tmp_path: Path) -> None:
    bundle = bundle_of(normalising_model(), tmp_path)

    prepared = prepare_engine(
        bundle,
        api,
        BuildOptions((SIZE,), capabilities=('8.6',)),
        'float16',
        pictures(),
        cache=EngineCache(tmp_path / 'cache'),
        limits=Limits(label_agreement=1.1),
    )

    assert prepared.notes['precision'] == 'float32' and prepared.notes['asked_for'] == 'float16'
    assert not prepared.notes['gate'][0]['passed']
    assert 'stays float32' in prepared.notes['remarks'][-1]


@pytest.mark.parametrize(('gpu', 'build_only'), [((7, 5), False), ((8, 6), True)])
def test_an_engine_for_other_machines_is_never_loaded(
    api: TensorRt, tmp_path: Path, gpu: tuple[int, int], build_only: bool
) -> None:
    driver = FakeDriver(capability=gpu)
    cuda = Cuda(driver)

    prepared = prepare_engine(
        bundle_of(normalising_model(), tmp_path),
        api,
        BuildOptions((SIZE,), capabilities=('8.6', '8.9')),
        'float16',
        pictures(),
        cache=EngineCache(tmp_path / 'cache'),
        gpu=cuda.find_gpu(),
        cuda=cuda,
        build_only=build_only,
    )

    assert prepared.notes['precision'] == 'float16' and not prepared.notes['gated_on_gpu']
    assert 'cuDevicePrimaryCtxRetain' not in driver.calls


def test_lower_precision_without_frames_is_refused(
    api: TensorRt, tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match='give --frames BAG_OR_FOLDER'):
        prepare_engine(
            tiny_bundle, api, BuildOptions((SIZE,)), 'float16', [], cache=EngineCache(tmp_path)
        )


def test_tensorrt_itself_does_not_build_without_a_gpu(tiny_bundle: ModelBundle) -> None:
    full = TensorRt('tensorrt', tensorrt_rtx, '10.9.0')

    with pytest.raises(EngineError, match='there is none: build on the robot, or use --runtime'):
        prepare_engine(tiny_bundle, full, BuildOptions((SIZE,)), 'float32', [])


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(EngineError, match="runtime 'cuda' is unknown: expected auto, tensorrt"):
        load_tensorrt('cuda')


def has_gpu() -> bool:
    return any(Path('/dev').glob('nvidia[0-9]*'))


@pytest.mark.skipif(has_gpu(), reason='this machine has an NVIDIA GPU')
def test_without_a_gpu_auto_says_why_in_one_line_and_tensorrt_refuses(
    tiny_bundle: ModelBundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level('INFO', 'mtl_perception'):
        engine = open_engine(tiny_bundle, 'auto', threads=1)

    reasons = [line for line in caplog.messages if line.startswith('TensorRT is not taken')]
    assert engine.name == 'openvino'
    assert len(reasons) == 1 and '\n' not in reasons[0] and 'install' in reasons[0]
    for name in ('tensorrt', 'tensorrt_rtx'):
        with pytest.raises(EngineError, match=r'TensorRT was asked for, but .*: install'):
            open_engine(tiny_bundle, name)


def test_a_missing_library_is_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RUNTIMES:
        monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(EngineError, match=r"can't be used \(tensorrt: .*tensorrt_rtx: .*install"):
        load_tensorrt()


def test_a_tensorrt_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'tensorrt', SimpleNamespace(__version__='8.6.2'))

    with pytest.raises(EngineError, match=r'tensorrt is 8\.6\.2, 10 or newer is needed.*JetPack'):
        load_tensorrt('tensorrt')
    monkeypatch.setitem(sys.modules, 'tensorrt', SimpleNamespace())
    with pytest.raises(EngineError, match='what is imported as tensorrt is no TensorRT'):
        load_tensorrt('tensorrt')
    assert load_tensorrt('auto').name == 'tensorrt_rtx'


def test_a_missing_cuda_python_is_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('ctypes.CDLL', lambda name: None)
    monkeypatch.setitem(sys.modules, 'cuda.bindings', None)

    with pytest.raises(EngineError, match=r"cuda-python can't be imported .*: install require"):
        Cuda()


# Variables of the sources below, by name, and the class of TensorRT that they hold.
HOLDERS = {
    'builder': 'Builder',
    'network': 'INetworkDefinition',
    'config': 'IBuilderConfig',
    'parser': 'OnnxParser',
    'profile': 'IOptimizationProfile',
    'error': 'ParserError',
    'cache': 'ITimingCache',
    'engine': 'ICudaEngine',
    '_engine': 'ICudaEngine',
    'context': 'IExecutionContext',
    '_context': 'IExecutionContext',
    '_runtime': 'Runtime',
    '_runtime_config': 'IRuntimeConfig',
    '_runtime_cache': 'IRuntimeCache',
}
SOURCES = ('builder.py', 'tensorrt.py', 'tensorrt_api.py', 'cuda.py')


def names_used(source: str) -> Iterator[tuple[str, str]]:
    """Yield (owner, attribute) for everything that a source takes from TensorRT or CUDA."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            parts = ast.unparse(node).split('.')
            for root in ('trt', 'driver', 'attribute'):
                if root in parts[:-1]:
                    yield root, '.'.join(parts[parts.index(root) + 1 :])
            owner = node.value
            name = getattr(owner, 'attr', getattr(owner, 'id', ''))
            if name in HOLDERS:
                yield HOLDERS[name], node.attr
        is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if is_call and node.func.attr == 'call' and isinstance(node.args[0], ast.Constant):
            yield 'driver', node.args[0].value


def missing_names(source: str) -> list[str]:
    """Return what a source uses and the real packages don't have."""
    import cuda.bindings.driver as driver

    missing = []
    for owner, path in names_used(source):
        root: object = getattr(tensorrt_rtx, owner, None)
        if owner == 'trt':
            root = tensorrt_rtx
        elif owner == 'driver':
            root = driver
        elif owner == 'attribute':
            root = driver.CUdevice_attribute
        for name in path.split('.'):
            # The names of an enumeration are its own; further attributes belong to Python.
            if name in ('__version__', '__members__', 'items'):
                break
            if not hasattr(root, name):
                missing.append(f'{owner}.{path}')
                break
            root = getattr(root, name)
    return missing


@pytest.mark.parametrize('name', SOURCES)
def test_every_name_of_tensorrt_and_cuda_exists(name: str) -> None:
    source = (Path(mtl_perception.engines.__file__).parent / name).read_text()

    assert missing_names(source) == []
    assert len(set(names_used(source))) >= 8


@pytest.mark.parametrize(
    ('right', 'wrong'),
    [
        ('self._context.execute_async_v3(', 'self._context.execute_async_v4('),
        ("'cuMemcpyHtoDAsync'", "'cuMemcpyHtoDAsink'"),
        ('trt.nptype', 'trt.nptypo'),
        ('CU_STREAM_NON_BLOCKING', 'CU_STREAM_NEVER_BLOCKING'),
        ('_runtime_config.create_runtime_cache', '_runtime_config.create_kernel_cache'),
        ('_runtime_cache.deserialize', '_runtime_cache.deserialise'),
        ('Strategy.EAGER', 'Strategy.EAGERLY'),
    ],
)
def test_the_walk_finds_a_typo(right: str, wrong: str) -> None:
    folder = Path(mtl_perception.engines.__file__).parent
    source = '\n'.join((folder / name).read_text() for name in ('tensorrt.py', 'tensorrt_api.py'))
    source = source.replace('from __future__ import annotations', '')
    assert right in source

    assert missing_names(source.replace(right, wrong))


def test_no_other_source_touches_tensorrt() -> None:
    folder = Path(mtl_perception.__file__).parent
    for path in folder.rglob('*.py'):
        if path.parent.name == 'engines' and path.name in SOURCES:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & set(RUNTIMES), path
