"""The GPU engine's own code on a GPU made of host memory (see fake_gpu).

What this proves: buffers, copies, graphs, profiles, threads, errors and what is freed. What it
can't prove: that a real GPU does the same; docs/tensorrt.md lists that.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import FakeDriver, FakeEngine, fake_tensorrt
from tiny_graph import SIZE

from mtl_perception.bundle import ModelBundle
from mtl_perception.engines import EngineError, open_engine
from mtl_perception.engines.cache import (
    DEFAULT_TARGET,
    REWRITING,
    CachedEngine,
    EngineCache,
    EngineKey,
)
from mtl_perception.engines.cuda import Cuda, CudaError, GpuUnavailableError, OutOfMemoryError
from mtl_perception.engines.guarded import GuardedEngine
from mtl_perception.engines.prepared import open_prepared
from mtl_perception.engines.tensorrt import TensorRtEngine
from mtl_perception.engines.tensorrt_api import TensorRt
from mtl_perception.frames import CameraFrame
from mtl_perception.perceiver import Perceiver


def picture(seed: int = 0, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, *SIZE, 3), np.uint8)


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def open_gpu(
    tiny_bundle: ModelBundle, driver: FakeDriver
) -> Callable[..., tuple[TensorRtEngine, list[FakeEngine]]]:
    def opened(**options: object) -> tuple[TensorRtEngine, list[FakeEngine]]:
        own = {name: options.pop(name) for name in ('cuda_graph',) if name in options}
        api, engines = fake_tensorrt(driver, tiny_bundle.model_path, **options)
        cuda = Cuda(driver)
        gpu = cuda.find_gpu()
        engine = TensorRtEngine(tiny_bundle, b'', api, cuda, gpu, precision='float32', **own)
        return engine, engines

    return opened


@pytest.fixture
def expected(tiny_bundle: ModelBundle) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    engine = open_engine(tiny_bundle, 'onnxruntime', threads=1)
    return lambda image: {name: array.copy() for name, array in engine.infer(image).items()}


@pytest.mark.parametrize('cuda_graph', [True, False])
@pytest.mark.parametrize('batch', [1, 2])
def test_frames_go_through(open_gpu, expected, driver, cuda_graph: bool, batch: int) -> None:
    engine, _ = open_gpu(cuda_graph=cuda_graph)

    for seed in range(3):
        image = picture(seed, batch)
        for name, array in expected(image).items():
            np.testing.assert_array_equal(engine.infer(image)[name], array)

    assert ('cuGraphLaunch' in driver.calls) == cuda_graph
    assert engine.device == 'Imaginary GPU (compute capability 8.6)'


def test_a_frame_allocates_nothing_and_copies_only_what_is_wanted(open_gpu, driver) -> None:
    engine, _ = open_gpu()
    image = engine.input_buffer(1, SIZE)
    image[:] = picture()
    before = dict(driver.allocated), set(driver.registered)
    driver.calls.clear()

    result = engine.infer(image, {'depth'})

    assert list(result) == ['depth']
    assert (driver.allocated, driver.registered) == before
    assert driver.calls == [
        'cuCtxSetCurrent',
        'cuGraphLaunch',
        'cuMemcpyDtoHAsync',
        'cuStreamSynchronize',
    ]


def test_any_thread_may_run_it(open_gpu, driver, expected) -> None:
    engine, _ = open_gpu()
    image = picture()
    results = []

    worker = threading.Thread(target=lambda: results.append(engine.infer(image)['label'].copy()))
    worker.start()
    worker.join(10)

    np.testing.assert_array_equal(results[0], expected(image)['label'])


def test_a_graph_that_cannot_be_captured_is_done_without(
    open_gpu, driver, expected, caplog: pytest.LogCaptureFixture
) -> None:
    driver.fail['cuGraphInstantiate'] = 'CUDA_ERROR_NOT_SUPPORTED'
    with caplog.at_level(logging.INFO):
        engine, _ = open_gpu()
        image = picture()
        depth = engine.infer(image)['depth']

    np.testing.assert_array_equal(depth, expected(image)['depth'])
    assert 'no CUDA graph' in caplog.text and 'CUDA_ERROR_NOT_SUPPORTED' in caplog.text


def test_memory_that_cannot_be_pinned_serves_as_it_is(open_gpu, driver, expected) -> None:
    driver.fail['cuMemHostRegister'] = 'CUDA_ERROR_NOT_SUPPORTED'
    engine, _ = open_gpu()
    image = picture()

    np.testing.assert_array_equal(engine.infer(image)['depth'], expected(image)['depth'])
    engine.close()

    assert 'cuMemHostUnregister' not in driver.calls and not driver.allocated


def test_profiles_are_chosen_by_size_and_batch(open_gpu) -> None:
    engine, _ = open_gpu(sizes=((48, 64), (64, 96)), batch=(1, 1, 2))

    assert engine.infer(np.zeros((2, 64, 96, 3), np.uint8))['label'].shape == (2, 64, 96)
    with pytest.raises(EngineError, match=r'built for 48x64 in batches of 1..2, 64x96.*--size'):
        engine.input_buffer(1, (32, 32))
    with pytest.raises(EngineError, match=r'batch of 3 was asked for: .*--batch 1:1:3'):
        engine.input_buffer(3, (48, 64))


def test_closing_gives_everything_back(open_gpu, driver) -> None:
    engine, _ = open_gpu(sizes=((48, 64), (64, 96)))
    engine.infer(picture())
    engine.infer(np.zeros((1, 64, 96, 3), np.uint8))
    assert driver.allocated and driver.registered

    engine.close()

    assert not driver.allocated and not driver.registered and not driver._graphs
    assert driver.contexts == driver.streams == 0


def test_an_engine_of_another_version_is_refused_with_tensorrts_words(open_gpu, driver) -> None:
    with pytest.raises(EngineError, match=r'the version does not match.*engine build'):
        open_gpu(loads=False)

    assert driver.contexts == driver.streams == 0


def test_out_of_memory_says_how_much_was_needed(open_gpu, driver) -> None:
    engine, _ = open_gpu(out_of_memory=True)
    with pytest.raises(OutOfMemoryError, match='1024 of 1024 MiB free, 3072 MiB more are needed'):
        engine.infer(picture())

    driver.fail['cuMemAlloc'] = 'CUDA_ERROR_OUT_OF_MEMORY'
    engine, _ = open_gpu()
    with pytest.raises(OutOfMemoryError, match='MiB more are needed'):
        engine.infer(picture())
    assert not driver.allocated and not driver.registered


@pytest.mark.parametrize(
    ('options', 'reason'),
    [
        ({'count': 0}, 'GPU 0 was asked for, the driver sees 0'),
        ({'version': 11080}, r'made for CUDA 11.8, 12.0 or newer is needed: update the driver'),
        ({'capability': (6, 1)}, r'compute capability 6.1, TensorRT needs 7.5'),
    ],
)
def test_gpus_that_do_not_serve_are_refused_with_the_reason(options: dict, reason: str) -> None:
    with pytest.raises(GpuUnavailableError, match=reason):
        Cuda(FakeDriver(**options)).find_gpu()


@pytest.mark.parametrize(
    ('code', 'reason'),
    [
        ('CUDA_ERROR_NO_DEVICE', 'finds no GPU'),
        ('CUDA_ERROR_SYSTEM_DRIVER_MISMATCH', 'reboot after the driver update'),
        ('CUDA_ERROR_UNKNOWN', 'does not start .CUDA_ERROR_UNKNOWN.: check nvidia-smi'),
    ],
)
def test_a_driver_that_does_not_start_is_refused_with_the_reason(code: str, reason: str) -> None:
    driver = FakeDriver()
    driver.fail['cuInit'] = code

    with pytest.raises(GpuUnavailableError, match=reason):
        Cuda(driver)


def guarded(tiny_bundle: ModelBundle, open_gpu: Callable) -> tuple[GuardedEngine, list]:
    generations: list = []

    def open_one() -> TensorRtEngine:
        engine, engines = open_gpu()
        generations.append(engines[-1])
        return engine

    cpu = lambda: open_engine(tiny_bundle, 'onnxruntime', threads=1)  # noqa: E731
    return GuardedEngine(open_one, cpu), generations


def test_after_an_error_the_engine_is_opened_anew_and_no_frame_is_lost(
    tiny_bundle: ModelBundle, open_gpu, driver, expected
) -> None:
    engine, generations = guarded(tiny_bundle, open_gpu)
    image = picture()
    kept = engine.infer(image)['depth']
    before = kept.copy()
    engine.infer(image)
    driver.fail['cuGraphLaunch'] = 'CUDA_ERROR_ILLEGAL_ADDRESS'
    # Opening anew repairs the GPU.
    engine._open_gpu = _then(driver.fail.clear, engine._open_gpu)

    result = engine.infer(image)

    np.testing.assert_array_equal(result['depth'], expected(image)['depth'])
    np.testing.assert_array_equal(kept, before)
    assert driver.resets == 1 and len(driver.allocated) == 5
    assert len(generations) == 2 and engine.errors == 1 and engine.name == 'tensorrt'
    assert 'CUDA_ERROR_ILLEGAL_ADDRESS' in engine.remark


def _then(first: Callable, second: Callable) -> Callable:
    def both() -> object:
        first()
        return second()

    return both


def test_three_errors_in_a_row_hand_over_to_the_cpu(
    tiny_bundle: ModelBundle, open_gpu, driver, expected
) -> None:
    engine, _ = guarded(tiny_bundle, open_gpu)
    perceiver = Perceiver(engine, tiny_bundle)
    image = picture()
    frame = CameraFrame(image[0], 'rgb8')
    perceiver.perceive(frame)
    driver.fail['cuStreamSynchronize'] = 'CUDA_ERROR_LAUNCH_FAILED'

    prediction = perceiver.perceive(frame)

    np.testing.assert_array_equal(prediction.label, expected(image)['label'][0])
    assert engine.name == 'onnxruntime' and engine.errors == 3
    assert '3 GPU errors in a row' in engine.remark and 'onnxruntime' in engine.remark
    assert not driver.allocated and driver.contexts == 0
    calls = len(driver.calls)
    perceiver.perceive(frame)
    assert len(driver.calls) == calls


def test_errors_with_good_frames_between_them_do_not_add_up(
    tiny_bundle: ModelBundle, open_gpu, driver
) -> None:
    engine, _ = guarded(tiny_bundle, open_gpu)
    engine._open_gpu = _then(driver.fail.clear, engine._open_gpu)
    for _ in range(5):
        engine.infer(picture())
        driver.fail['cuGraphLaunch'] = 'CUDA_ERROR_LAUNCH_FAILED'
        engine.infer(picture())

    assert engine.errors == 5 and engine.name == 'tensorrt'


def test_wrong_requests_are_no_gpu_errors(tiny_bundle: ModelBundle, open_gpu) -> None:
    engine, generations = guarded(tiny_bundle, open_gpu)

    with pytest.raises(EngineError, match='the bundle computes') as refusal:
        engine.infer(picture(), {'sound'})

    assert not isinstance(refusal.value, CudaError)
    assert len(generations) == 1 and engine.errors == 0


def key_for(bundle: ModelBundle, **changes: object) -> EngineKey:
    parts: dict = {
        'bundle': bundle.name,
        'model_sha256': bundle.model_sha256,
        'runtime': 'tensorrt',
        'runtime_version': '10.9.0',
        'device': 'Imaginary GPU (compute capability 8.6)',
        'precision': 'float16',
        'sizes': (SIZE,),
        'batch': (1, 1, 2),
        'flags': (('rewriting', str(REWRITING)),),
    }
    return EngineKey(**{**parts, **changes})


def open_from(
    cache: Path,
    bundle: ModelBundle,
    driver: FakeDriver,
    api: TensorRt | None = None,
    **options: object,
) -> GuardedEngine:
    api = api or fake_tensorrt(driver, bundle.model_path)[0]
    return open_prepared(
        bundle,
        lambda: open_engine(bundle, 'onnxruntime'),
        cache=EngineCache(cache),
        cuda=Cuda(driver),
        api=api,
        **options,
    )


def keep(cache: Path, key: EngineKey, precision: str = 'float16') -> None:
    EngineCache(cache).build(key, lambda: CachedEngine(b'x', {'precision': precision}))


def test_a_prepared_engine_is_opened(
    tiny_bundle: ModelBundle, tmp_path: Path, driver: FakeDriver
) -> None:
    keep(tmp_path, key_for(tiny_bundle, precision='float32'), 'float32')
    keep(tmp_path, key_for(tiny_bundle))

    engine = open_from(tmp_path, tiny_bundle, driver)

    assert (engine.name, engine.precision) == ('tensorrt', 'float16')
    assert open_from(tmp_path, tiny_bundle, driver, precision='float32').precision == 'float32'


@pytest.mark.parametrize(
    'device', ['compute capability 8.6, 8.9', 'the default compute capabilities']
)
def test_portable_engines_serve_their_gpus(
    tiny_bundle: ModelBundle, tmp_path: Path, driver: FakeDriver, device: str
) -> None:
    keep(tmp_path, key_for(tiny_bundle, device=device))

    assert open_from(tmp_path, tiny_bundle, driver).name == 'tensorrt'


@pytest.mark.parametrize(
    ('changes', 'options', 'reason'),
    [
        ({'model_sha256': '0' * 64}, {}, r'built from another model\.onnx'),
        (
            {'runtime_version': '10.3.0'},
            {},
            r'built by tensorrt 10\.3\.0, tensorrt 10\.9\.0 is here',
        ),
        ({'device': 'Other GPU (compute capability 8.6)'}, {}, 'was built on Other GPU'),
        ({'device': 'compute capability 8.9, 12.0'}, {}, r'this GPU has 8\.6'),
        ({}, {'precision': 'int8'}, 'is float16, int8 was asked for'),
        ({}, {'size': (64, 64)}, 'is not for pictures of 64x64'),
        ({}, {'batch': 4}, 'is for batches of up to 2'),
        ({'flags': (('rewriting', '1'),)}, {}, 'was built by another version of this package'),
    ],
)
def test_an_engine_that_does_not_fit_is_refused_with_reason_and_fix(
    tiny_bundle: ModelBundle,
    tmp_path: Path,
    driver: FakeDriver,
    changes: dict,
    options: dict,
    reason: str,
) -> None:
    keep(tmp_path, key_for(tiny_bundle, **changes))

    with pytest.raises(
        EngineError,
        match=reason
        + r'.*run `mtl-perception engine build --bundle .*tiny --size \d+x\d+ --batch 1:',
    ):
        open_from(tmp_path, tiny_bundle, driver, **options)


def test_an_empty_cache_names_the_command(
    tiny_bundle: ModelBundle, tmp_path: Path, driver: FakeDriver
) -> None:
    with pytest.raises(EngineError, match=r'no TensorRT engine of tiny is in .*engine build'):
        open_from(tmp_path, tiny_bundle, driver)


def test_the_command_builds_what_was_asked_for(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    driver = FakeDriver(count=2)
    api, _ = fake_tensorrt(driver, tiny_bundle.model_path, name='tensorrt_rtx')

    with pytest.raises(EngineError, match='engine build') as refusal:
        open_from(tmp_path, tiny_bundle, driver, api, precision='float32', batch=3, device=1)

    command = re.search('`mtl-perception engine (build .*)`', str(refusal.value))[1]
    height, width = SIZE
    assert command.endswith(
        f'--size {height}x{width} --batch 1:3:3 --precision fp32 --runtime tensorrt_rtx '
        '--gpu-device 1'
    )


def test_a_precision_that_no_engine_has_is_refused_as_such(
    tiny_bundle: ModelBundle, tmp_path: Path, driver: FakeDriver
) -> None:
    with pytest.raises(EngineError, match='compute in float32, float16, int8, bfloat16 was asked'):
        open_from(tmp_path, tiny_bundle, driver, precision='bfloat16')


def test_an_engine_that_does_not_load_makes_room_for_the_next(
    tiny_bundle: ModelBundle, tmp_path: Path, driver: FakeDriver
) -> None:
    keep(tmp_path, key_for(tiny_bundle, precision='int8'), 'int8')
    good = {'precision': 'float16'}
    EngineCache(tmp_path).build(key_for(tiny_bundle), lambda: CachedEngine(b'wrong', good))
    api, _ = fake_tensorrt(driver, tiny_bundle.model_path)
    load = api.module.Runtime.deserialize_cuda_engine
    api.module.Runtime.deserialize_cuda_engine = lambda runtime, blob: (
        None if blob == b'wrong' else load(runtime, blob)
    )

    engine = open_from(tmp_path, tiny_bundle, driver, api)

    assert engine.precision == 'int8' and not engine.remark


def test_what_the_gpu_lacks_from_the_start_is_refused(
    tiny_bundle: ModelBundle, tmp_path: Path, driver: FakeDriver
) -> None:
    keep(tmp_path, key_for(tiny_bundle))
    driver.fail['cuMemAlloc'] = 'CUDA_ERROR_OUT_OF_MEMORY'

    with pytest.raises(OutOfMemoryError, match='MiB more are needed'):
        open_from(tmp_path, tiny_bundle, driver)
    assert not driver.allocated and driver.contexts == 0 and driver.resets == 0


def test_a_lack_of_memory_hands_over_at_once(tiny_bundle: ModelBundle, open_gpu, driver) -> None:
    engine, generations = guarded(tiny_bundle, open_gpu)
    engine.infer(picture())
    driver.fail['cuMemAlloc'] = 'CUDA_ERROR_OUT_OF_MEMORY'

    engine.infer(picture(batch=2))

    assert engine.name == 'onnxruntime' and engine.errors == len(generations) == 1
    assert 'MiB more are needed' in engine.remark


@pytest.mark.parametrize('follow', [True, False])
def test_pictures_of_another_size_may_hand_over_to_the_cpu(
    tiny_bundle: ModelBundle, tmp_path: Path, driver: FakeDriver, follow: bool
) -> None:
    keep(tmp_path, key_for(tiny_bundle))
    engine = open_from(tmp_path, tiny_bundle, driver, follow_sizes=follow)
    other = np.zeros((1, SIZE[0] + 32 - SIZE[0] % 32, 96, 3), np.uint8)
    assert tiny_bundle.manifest.input.resizable

    if follow:
        assert engine.infer(other)['label'].shape == other.shape[:3]
        assert engine.name == 'onnxruntime' and 'was asked for: build it' in engine.remark
    else:
        with pytest.raises(EngineError, match=r'the engine was built for .* was asked for'):
            engine.infer(other)
        assert engine.name == 'tensorrt' and not engine.remark


def test_a_release_that_fails_does_not_prevent_the_reset(open_gpu, driver) -> None:
    engine, _ = open_gpu()
    engine.infer(picture())
    driver.fail['cuGraphLaunch'] = 'CUDA_ERROR_ILLEGAL_ADDRESS'
    with pytest.raises(CudaError):
        engine.infer(picture())
    driver.fail['cuDevicePrimaryCtxRelease'] = 'CUDA_ERROR_ILLEGAL_ADDRESS'

    engine.close()

    assert driver.resets == 1


def test_a_context_that_is_not_made_for_want_of_memory_is_told_so(open_gpu, driver) -> None:
    engine, engines = open_gpu(out_of_memory=True)
    engines[-1].device_memory_size_v2 = 1 << 20

    with pytest.raises(EngineError, match='makes no execution context') as refusal:
        engine.infer(picture())

    assert not isinstance(refusal.value, OutOfMemoryError)


def open_rtx(cache: Path, bundle: ModelBundle, driver: FakeDriver) -> GuardedEngine:
    api, _ = fake_tensorrt(driver, bundle.model_path, name='tensorrt_rtx')
    keep(cache, key_for(bundle, runtime='tensorrt_rtx'))
    engine = open_from(cache, bundle, driver, api)
    engine.infer(picture())
    return engine


def kernel_files(cache: Path) -> list[Path]:
    return sorted(cache.glob('*.kernels'))


def test_kernels_are_compiled_once_and_kept_beside_the_engine(
    tiny_bundle: ModelBundle, tmp_path: Path, driver: FakeDriver, expected
) -> None:
    open_rtx(tmp_path, tiny_bundle, driver).close()
    (path,) = kernel_files(tmp_path)
    written = path.stat().st_mtime_ns
    second = FakeDriver()

    engine = open_rtx(tmp_path, tiny_bundle, second)

    assert driver.kernels_compiled == 1 and second.kernels_compiled == 0
    assert path.stat().st_mtime_ns == written
    (engine_file,) = tmp_path.glob('*.engine')
    assert path.name.startswith(engine_file.stem)
    np.testing.assert_array_equal(engine.infer(picture())['depth'], expected(picture())['depth'])
    engine.infer(picture(batch=2))
    assert second.kernels_compiled == 1 and path.stat().st_mtime_ns != written
    assert {p.suffix for p in tmp_path.iterdir()} <= {'.engine', '.kernels', '.lock'}


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        (lambda content: content[:60], 'the file is damaged'),
        (lambda content: content[:-3] + b'xyz', 'the file is damaged'),
        (lambda content: b'', 'the file is damaged'),
        (lambda content: content.replace(b'"12.6"', b'"12.4"'), 'they belong to another driver'),
        (lambda content: content.replace(b'Imaginary', b'Imaginery'), 'to another gpu'),
    ],
)
def test_kernels_that_cannot_be_used_are_discarded_with_a_reason(
    tiny_bundle: ModelBundle,
    tmp_path: Path,
    driver: FakeDriver,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[bytes], bytes],
    reason: str,
) -> None:
    open_rtx(tmp_path, tiny_bundle, driver).close()
    (path,) = kernel_files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(change(whole))

    with caplog.at_level(logging.INFO):
        open_rtx(tmp_path, tiny_bundle, driver).close()

    assert f'the kernels in {path} are discarded: ' in caplog.text and reason in caplog.text
    assert driver.kernels_compiled == 2
    assert path.read_bytes() == whole


def test_kernels_that_tensorrt_refuses_are_discarded(
    tiny_bundle: ModelBundle, tmp_path: Path, driver: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    open_rtx(tmp_path, tiny_bundle, driver).close()
    # The same driver by its CUDA version, another one by its build.
    other = FakeDriver(version=12061)

    with caplog.at_level(logging.INFO):
        open_rtx(tmp_path, tiny_bundle, other).close()

    assert 'tensorrt_rtx 10.9.0 does not take them' in caplog.text
    assert other.kernels_compiled == 1


def test_a_read_only_folder_keeps_no_kernels(
    tiny_bundle: ModelBundle, tmp_path: Path, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError('read-only')

    monkeypatch.setattr('mtl_perception.engines.kernels.write_file', refuse)
    engine = open_rtx(tmp_path, tiny_bundle, driver)

    assert engine.infer(picture())['depth'].shape == (1, *SIZE)
    assert kernel_files(tmp_path) == []


def test_kernels_go_with_their_engine(
    tiny_bundle: ModelBundle, tmp_path: Path, driver: FakeDriver
) -> None:
    open_rtx(tmp_path, tiny_bundle, driver).close()

    keep(tmp_path, key_for(tiny_bundle, runtime='tensorrt_rtx', runtime_version='11.0'))

    assert kernel_files(tmp_path) == []


def test_tensorrt_itself_keeps_no_kernels(
    tiny_bundle: ModelBundle, tmp_path: Path, driver: FakeDriver
) -> None:
    keep(tmp_path, key_for(tiny_bundle))

    open_from(tmp_path, tiny_bundle, driver).infer(picture())

    assert kernel_files(tmp_path) == []


def test_the_gpu_can_be_chosen(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    driver = FakeDriver(count=2)
    keep(tmp_path, key_for(tiny_bundle, device='Imaginary GPU 1 (compute capability 8.6)'))

    engine = open_from(tmp_path, tiny_bundle, driver, device=1)

    assert engine.device == 'Imaginary GPU 1 (compute capability 8.6)' and driver.device == 1
    with pytest.raises(EngineError, match=r'was built on Imaginary GPU 1 .*, this is Imaginary'):
        open_from(tmp_path, tiny_bundle, driver, device=0)
    for wrong in (2, -1):
        with pytest.raises(GpuUnavailableError, match=r'driver sees 2: set gpu_device to 0 to 1'):
            open_from(tmp_path, tiny_bundle, driver, device=wrong)


@pytest.mark.parametrize('target', ['compute capability ampere+', DEFAULT_TARGET])
@pytest.mark.parametrize(
    ('capability', 'fits'), [((7, 5), False), ((8, 0), True), ((12, 0), True)]
)
def test_engines_for_ampere_and_newer_know_their_gpus(
    tiny_bundle: ModelBundle,
    tmp_path: Path,
    capability: tuple[int, int],
    fits: bool,
    target: str,
) -> None:
    keep(tmp_path, key_for(tiny_bundle, device=target))
    driver = FakeDriver(capability=capability)

    if fits:
        assert open_from(tmp_path, tiny_bundle, driver).name == 'tensorrt'
    else:
        with pytest.raises(EngineError, match=f'is for {re.escape(target)}, this GPU has 7.5'):
            open_from(tmp_path, tiny_bundle, driver)


def test_diagnostics_warn_of_what_the_gpu_did() -> None:
    diagnostics = pytest.importorskip('mtl_perception.ros.diagnostics')
    from diagnostic_msgs.msg import DiagnosticStatus

    from mtl_perception.ros.statistics import ProcessLoad

    identity = diagnostics.Identity(bundle='tiny', engine='tensorrt', precision='float16')

    well = diagnostics.engine_status('perception', 'active', identity, ProcessLoad())
    hurt = diagnostics.engine_status('perception', 'active', identity, ProcessLoad(), 'it failed')

    assert well.level == DiagnosticStatus.OK
    assert hurt.level == DiagnosticStatus.WARN and hurt.message.endswith('it failed')
