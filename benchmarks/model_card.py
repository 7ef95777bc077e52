"""Write a bundle's model card from its manifest and measured figures."""

from __future__ import annotations

from typing import Any

from mtl_perception.bundle import ModelBundle

WEAK_IOU = 0.25
REMARKS = {
    'nyuv2_288x384:devtest': 'NYUv2 devtest, 323 pictures of real rooms, as JPEG; its depth has '
    '39 mm steps',
    'worlds:test': 'rendered rooms never trained on, exact truth',
}
LIMITS = (
    'Thirteen classes of things in rooms. There is no class for persons, animals or doors; they '
    'come out as whatever looks most alike.',
    'Glass and mirrors: depth is that of what is seen through or in them.',
    'Depth needs the focal length (camera_info). Without it, it is scaled wrongly by an unknown '
    'factor.',
    'Outdoors, fisheye pictures and night vision were never seen in training.',
    'Not a safety device: nothing that moves near people may rely on it alone.',
)


def write_card(bundle: ModelBundle, result: dict[str, Any]) -> str:
    """Return the card as Markdown.

    Args:
        bundle: what it is about.
        result: of benchmarks/models.py.
    """
    data = ' '.join(f'--data {source}' for source in result['data'])
    manifest = bundle.manifest
    figures = result['bundles'][bundle.name]
    network, machine = manifest.network, result['machine']
    height, width = bundle.input_size
    lines = [f'# {bundle.name}', '', f'{manifest.description.rstrip(".")}.', '']
    lines += _table(
        ('', ''),
        [
            ('network', f'{network.backbone}, {network.decoder} decoder'),
            ('size', f'{network.parameters / 1e6:.2f} M parameters, {network.gmacs:.2f} GMACs'),
            ('input', f'{width}x{height} RGB' + _focal(bundle)),
            ('tasks', ', '.join(manifest.tasks)),
            ('engine time', _speed(result['speed'][bundle.name], machine)),
        ],
    )
    lines += ['', '## Data and licence', '']
    lines += _table(
        ('learnt from', 'frames', 'licence', 'through'),
        [
            (data.name, data.frames or '', data.licence, data.through or 'its last training')
            for data in manifest.training.data
        ],
    )
    lines += ['', '## Figures', '']
    lines += [
        "Float32, LibMTL's definitions, made by",
        '',
        f'    python benchmarks/models.py {data}',
        '',
    ]
    lines += _quality(figures)
    for key, document in figures['quality'].items():
        lines += _by_class(key, document) + _by_distance(key, document)
        lines += _boxes(key, document) + _attributes(key, document)
    lines += _confidence(figures) + _focal_lengths(figures)
    lines += ['## Known failures', '']
    lines += [f'- {sentence}' for sentence in (*_weak_classes(figures), *LIMITS)]
    return '\n'.join(lines) + '\n'


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    cells = [head, ('---',) * len(head), *rows]
    return ['| ' + ' | '.join(str(cell) for cell in row) + ' |' for row in cells]


def _focal(bundle: ModelBundle) -> str:
    depth = bundle.manifest.depth
    if depth is None or depth.focal_length_px is None:
        return ''
    return f', as of a camera of {depth.focal_length_px:g} px'


def _speed(speed: dict[str, Any], machine: dict[str, Any]) -> str:
    return (
        f'{speed["p50_ms"]} ms median, {speed["p95_ms"]} ms p95 ({speed["engine"]} '
        f'{speed["precision"]}, {machine["cores"]} cores of {machine["cpu"]})'
    )


def _quality(figures: dict[str, Any]) -> list[str]:
    rows = []
    for key, document in figures['quality'].items():
        own = figures['own_precision'][key]
        for title, values in (('float32', document), (own['engine']['precision'], own)):
            rows.append((f'{REMARKS.get(key, key)}; {title}', *_headline(values)))
    head = ('data', 'mIoU', 'pixAcc', 'abs m', 'rel', 'normals mean / median')
    return [*_table(head, rows), '']


def _headline(document: dict[str, Any]) -> tuple[str, ...]:
    """Return mIoU, pixAcc, abs, rel and normals of one `evaluate` document as table cells."""
    segmentation, depth = document.get('segmentation'), document.get('depth')
    normals = document.get('normals')
    return (
        f'{segmentation["miou"]:.4f}' if segmentation else '',
        f'{segmentation["pixacc"]:.4f}' if segmentation else '',
        f'{depth["abs_err"]:.4f}' if depth else '',
        f'{depth["rel_err"]:.4f}' if depth else '',
        _normals(normals) if normals else '',
    )


def _normals(figures: dict[str, Any]) -> str:
    fit = '' if figures['source'] == 'file' else f' ({figures["source"]})'
    return f'{figures["mean"]:.1f} / {figures["median"]:.1f}{fit}'


def _by_class(key: str, document: dict[str, Any]) -> list[str]:
    if 'segmentation' not in document:
        return []
    rows = [
        (
            name,
            _number(iou, 3),
            _number(document['by_class'][name].get('rel_err'), 3),
            _number(document['by_class'][name].get('normals_mean'), 1),
        )
        for name, iou in document['segmentation']['iou'].items()
    ]
    return [f'{key} by class:', '', *_table(('class', 'IoU', 'depth rel', 'normals'), rows), '']


def _by_distance(key: str, document: dict[str, Any]) -> list[str]:
    rows = [
        (
            f'{band["from_m"]:g} to {band["to_m"]:g} m'
            if band['to_m']
            else f'{band["from_m"]:g} m on',
            _number(band.get('pixacc'), 3),
            _number(band.get('abs_err'), 3),
            _number(band.get('rel_err'), 3),
            _number(band.get('normals_mean'), 1),
        )
        for band in document.get('by_distance', ())
    ]
    if not rows:
        return []
    head = ('true distance', 'pixAcc', 'abs m', 'rel', 'normals')
    return [f'{key} by distance:', '', *_table(head, rows), '']


def _boxes(key: str, document: dict[str, Any]) -> list[str]:
    found = document.get('detection')
    if not found or found['ap50'] is None:
        return []
    rows = [
        (name, entry['boxes'], _number(entry['ap50'], 3), _number(entry['ap'], 3))
        for name, entry in found['per_class'].items()
    ]
    rows.append(('all', found['boxes'], _number(found['ap50'], 3), _number(found['ap'], 3)))
    return [f'{key}, boxes:', '', *_table(('class', 'boxes', 'AP50', 'AP'), rows), '']


def _attributes(key: str, document: dict[str, Any]) -> list[str]:
    lines = []
    told = document.get('classification') or {'attributes': {}}
    for attribute, report in told['attributes'].items():
        if report['accuracy'] is None:
            continue
        rows = [
            (name, entry['support'], _number(entry['precision'], 3), _number(entry['recall'], 3))
            for name, entry in report['classes'].items()
        ]
        title = f'{key}, {attribute}: accuracy {report["accuracy"]:.3f}'
        head = ('class', 'frames', 'precision', 'recall')
        lines += [title, '', *_table(head, rows), '']
    return lines


def _number(value: float | None, digits: int) -> str:
    return 'absent' if value is None else f'{value:.{digits}f}'


def _confidence(figures: dict[str, Any]) -> list[str]:
    errors = [
        f'{100 * document["calibration"]["ece"]:.1f} % on {key}'
        for key, document in figures['quality'].items()
        if document.get('calibration')
    ]
    if not errors:
        return []
    return [
        '## Confidence',
        '',
        'The softmax maximum after temperature scaling on held-out training frames. Expected '
        f'calibration error: {", ".join(errors)}.',
        '',
    ]


def _focal_lengths(figures: dict[str, Any]) -> list[str]:
    measured = figures.get('focal_lengths')
    if not measured:
        return []
    rows = [
        (f'{focal} px', f'{measured["median"][focal]:.3f}', f'{relative:.3f}')
        for focal, relative in measured['relative'].items()
    ]
    head = ('focal length at 384x288', 'median predicted / true', "divided by the bundle's own")
    return [
        '## Other cameras',
        '',
        f'The same {measured["rooms"]} rendered rooms from the same places:',
        '',
        *_table(head, rows),
        '',
    ]


def _weak_classes(figures: dict[str, Any]) -> list[str]:
    sentences = []
    for key, document in figures['quality'].items():
        if 'segmentation' not in document:
            continue
        weak = [
            f'{name} ({iou:.2f})'
            for name, iou in sorted(
                document['segmentation']['iou'].items(), key=lambda item: item[1] or 0
            )
            if iou is not None and iou < WEAK_IOU
        ]
        if weak:
            sentences.append(f'Often missed on {key} (IoU): {", ".join(weak)}.')
    return sentences
