"""Results as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from mtl_perception.bundle import ClassSpec
from mtl_perception.evaluation import charts
from mtl_perception.evaluation.charts import Value
from mtl_perception.evaluation.compare import Comparison
from mtl_perception.evaluation.gallery import Shown
from mtl_perception.evaluation.results import EXPLAINED, atomic
from mtl_perception.evaluation.tables import left_out, number

_TEMPLATES = Path(__file__).parent / 'templates'
_POINTS = 400

# Time lines: title, y label, (name, task, figure).
_TIME_LINES: tuple[tuple[str, str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        'Segmentation over time',
        'share',
        (('pixel accuracy', 'segmentation', 'pixacc'), ('mIoU', 'segmentation', 'miou')),
    ),
    (
        'Depth over time',
        'relative error',
        (('as predicted', 'depth', 'rel_err'), ('scaled by median', 'depth', 'aligned_rel_err')),
    ),
    (
        'Normals over time',
        'degrees',
        (('mean', 'normals', 'mean'), ('median', 'normals', 'median')),
    ),
    (
        'Boxes over time',
        'share',
        (('precision', 'detection', 'precision'), ('recall', 'detection', 'recall')),
    ),
    (
        'Without truth: unsure pixels and labels kept to the next frame',
        'share',
        (('unsure', 'without_truth', 'unsure'), ('same label', 'without_truth', 'same_label')),
    ),
    ('Time for a frame', 'ms', (('inference', 'times', 'infer'),)),
)


@dataclass(frozen=True)
class Figure:
    """A chart or table of the page and the rows behind it.

    Attributes:
        key: unique within the page.
        title: above it.
        body: SVG or HTML.
        rows: for the CSV file, headings first.
        note: what it says, in a sentence.
    """

    key: str
    title: str
    body: Markup
    rows: list[list[Any]]
    note: str = ''


def write_report(
    results: Mapping[str, Any],
    path: Path,
    *,
    frames: Iterable[Mapping[str, Any]] = (),
    gallery: Sequence[tuple[str, Shown]] = (),
    classes: Sequence[ClassSpec] = (),
    box_classes: Sequence[ClassSpec] = (),
) -> None:
    """Write the report of an evaluation.

    Args:
        results: as `mtl-perception evaluate --json` writes them; a section 'live' with
            {'frames_in', 'frames_out', 'dropped', 'fps', 'latency_ms': {'p50', 'p95', 'p99'}} is
            shown where there is one.
        path: of the HTML file; written at once.
        frames: records of the frames, in order, for the time lines.
        gallery: titles ('best', ...) and frames.
        classes: names and colours, for the legend.
        box_classes: those of the boxes, for their curves.
    """
    figures = [
        *_time_lines(frames, int(results['frames'])),
        *_distance(results),
        *_classes(results),
        *_confusion(results),
        *_boxes(results, {spec.name: spec.color for spec in box_classes}),
        *_attributes(results),
        *_reliability(results),
        *_regions(results),
    ]
    page = _environment().get_template('report.html.j2')
    text = page.render(
        title=', '.join(recording['name'] for recording in results['recordings'][:3]),
        results=results,
        cards=_cards(results),
        figures=figures,
        gallery=[_shown(title, shown) for title, shown in gallery],
        classes=classes,
        left_out=left_out(results),
        explained=EXPLAINED,
    )
    with atomic(path) as file:
        file.write(text)


def write_comparison(
    names: Sequence[str],
    documents: Sequence[Mapping[str, Any]],
    comparisons: Sequence[Comparison],
    path: Path,
) -> None:
    """Write comparisons of the first results with each of the others, side by side."""
    blocks = []
    for index, (name, comparison) in enumerate(zip(names[1:], comparisons, strict=True)):
        rows = [
            (d, charts.interval(d.change, d.low, d.high, d.verdict))
            for d in comparison.differences
        ]
        csv = [['figure', names[0], name, 'change', 'low', 'high', 'verdict']] + [
            [d.name, d.first, d.second, d.change, d.low, d.high, d.verdict]
            for d in comparison.differences
        ]
        blocks.append(
            {'name': name, 'comparison': comparison, 'rows': rows, 'key': f'c{index}', 'csv': csv}
        )
    text = (
        _environment()
        .get_template('comparison.html.j2')
        .render(names=names, blocks=blocks, figures=_class_comparison(names, documents))
    )
    with atomic(path) as file:
        file.write(text)


def _class_comparison(
    names: Sequence[str], documents: Sequence[Mapping[str, Any]]
) -> list[Figure]:
    ious = [(document.get('segmentation') or {}).get('iou') or {} for document in documents]
    classes = [name for name in ious[0] if all(name in iou for iou in ious)]
    if not classes:
        return []
    series = [(n, [iou[c] for c in classes]) for n, iou in zip(names, ious, strict=True)]
    rows = [['class', *names]] + [[c, *(iou[c] for iou in ious)] for c in classes]
    return [Figure('classes', 'IoU by class', charts.bars(classes, series, 'IoU'), rows)]


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters['number'] = number
    environment.filters['script_json'] = _script_json
    return environment


def _script_json(value: Any) -> Markup:
    """Return JSON that cannot end the script element it stands in."""
    return Markup(json.dumps(value, allow_nan=False).replace('<', '\\u003c'))


def _cards(results: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (title, [(name, value)]) of the summary."""
    cards: list[tuple[str, list[tuple[str, str]]]] = []
    live = results.get('live')
    if live:
        latency = ' / '.join(number(live['latency_ms'].get(p), 3) for p in ('p50', 'p95', 'p99'))
        cards.append(
            (
                'On the robot',
                [
                    ('frames in / out', f'{live["frames_in"]} / {live["frames_out"]}'),
                    ('dropped', str(live['dropped'])),
                    ('frames/s', number(live.get('fps'), 3)),
                    ('latency, ms (p50 / p95 / p99)', latency),
                ],
            )
        )
    names = {
        'segmentation': {'miou': 'mIoU', 'pixacc': 'pixel accuracy', 'classes': 'classes seen'},
        'depth': {'abs_err': 'abs. error, m', 'rel_err': 'rel. error', 'delta1': 'δ < 1.25'},
        'normals': {'mean': 'mean, °', 'median': 'median, °', '11.25': 'below 11.25°'},
        'detection': {'ap': 'AP', 'ap50': 'AP50', 'recall': 'recall', 'precision': 'precision'},
        'classification': {'accuracy': 'accuracy'},
    }
    for task, wanted in names.items():
        figures = results.get(task)
        if figures:
            values = [(text, number(figures.get(key), 3)) for key, text in wanted.items()]
            cards.append((task.capitalize(), values))
    other = [('frames', str(results['frames']))]
    calibration = results.get('calibration') or {}
    if calibration:
        other.append(('calibration error (ECE)', number(calibration['ece'], 3)))
    without = results.get('without_truth') or {}
    if without.get('unsure') is not None:
        other.append(('unsure pixels', number(without['unsure'], 3)))
    if 'times' in results:
        other.append(('frames/s', number(results['times']['frames_per_second'], 3)))
    cards.append(('Whole', other))
    return cards


def _time_lines(frames: Iterable[Mapping[str, Any]], count: int) -> list[Figure]:
    """Return the time lines, averaged so that a line has at most some hundred points."""
    step = max(1, -(-count // _POINTS))
    wanted = [key for _, _, series in _TIME_LINES for _, *key in series]
    points: list[list[Value]] = []
    bucket: list[list[float]] = [[] for _ in wanted]
    filled = 0
    for index, frame in enumerate(frames, start=1):
        for values, (task, figure) in zip(bucket, wanted, strict=True):
            value = frame.get(task, {}).get(figure)
            if value is not None:
                values.append(value)
        filled += 1
        if filled == step or index == count:
            points.append([sum(v) / len(v) if v else None for v in bucket])
            bucket, filled = [[] for _ in wanted], 0
    figures = []
    xs = [float(index * step) for index in range(len(points))]
    column = 0
    for number_, (title, label, series) in enumerate(_TIME_LINES):
        columns = {
            name: [point[column + offset] for point in points]
            for offset, (name, _, _) in enumerate(series)
        }
        column += len(series)
        known = {n: ys for n, ys in columns.items() if any(y is not None for y in ys)}
        if len(points) < 2 or not known:
            continue
        rows: list[list[Any]] = [['frame', *known]]
        rows += [[int(x), *values] for x, *values in zip(xs, *known.values(), strict=True)]
        note = f'Each point is the mean of {step} frames.' if step > 1 else ''
        body = charts.lines(xs, list(known.items()), 'frame', label)
        figures.append(Figure(f'time{number_}', title, body, rows, note))
    return figures


def _distance(results: Mapping[str, Any]) -> list[Figure]:
    bands = [b for b in results.get('by_distance', ()) if any(b['pixels'].values())]
    if not bands:
        return []
    names = [
        f'{b["from_m"]:g}–{b["to_m"]:g} m' if b['to_m'] else f'> {b["from_m"]:g} m' for b in bands
    ]
    figures = []
    for key, title, label, wanted in (
        ('rel', 'Depth against distance', 'relative error', [('relative error', 'rel_err')]),
        ('acc', 'Segmentation against distance', 'share', [('pixel accuracy', 'pixacc')]),
        ('deg', 'Normals against distance', 'degrees', [('mean angle', 'normals_mean')]),
    ):
        series = [(name, [b[figure] for b in bands]) for name, figure in wanted]
        if all(value is None for _, values in series for value in values):
            continue
        rows: list[list[Any]] = [['distance', *(n for n, _ in series), 'pixels']]
        rows += [
            [n, *(values[i] for _, values in series), sum(bands[i]['pixels'].values())]
            for i, n in enumerate(names)
        ]
        figures.append(Figure(f'distance-{key}', title, charts.bars(names, series, label), rows))
    return figures


def _classes(results: Mapping[str, Any]) -> list[Figure]:
    iou = (results.get('segmentation') or {}).get('iou') or {}
    figures = []
    if any(value is not None for value in iou.values()):
        names = list(iou)
        body = charts.bars(names, [('IoU', [iou[n] for n in names])], 'IoU')
        rows: list[list[Any]] = [['class', 'iou'], *([n, iou[n]] for n in names)]
        figures.append(Figure('iou', 'IoU by class', body, rows))
    by_class = results.get('by_class') or {}
    if any(c['rel_err'] is not None for c in by_class.values()):
        names = list(by_class)
        values = [by_class[n]['rel_err'] for n in names]
        body = charts.bars(names, [('relative error', values)], 'relative error')
        rows = [['class', *next(iter(by_class.values()))]]
        rows += [[n, *by_class[n].values()] for n in names]
        rows = [[json.dumps(v) if isinstance(v, dict) else v for v in row] for row in rows]
        figures.append(Figure('class-depth', 'Depth error by true class', body, rows))
    return figures


def _confusion(results: Mapping[str, Any]) -> list[Figure]:
    confusion = results.get('confusion') or {}
    matrix = confusion.get('matrix') or []
    if not any(any(row) for row in matrix):
        return []
    columns = confusion['columns']
    # The column of refusals only where there are some.
    used = [i for i in range(len(columns)) if i < len(matrix) or any(row[i] for row in matrix)]
    return [
        _confusion_figure(
            'confusion',
            'Confusion matrix',
            confusion['classes'],
            [columns[i] for i in used],
            [[row[i] for i in used] for row in matrix],
            'pixels',
        )
    ]


def _confusion_figure(
    key: str,
    title: str,
    names: Sequence[str],
    columns: Sequence[str],
    matrix: Sequence[Sequence[int]],
    unit: str,
) -> Figure:
    """Return a table whose rows are truth and whose columns are what was predicted."""
    head = ''.join(f'<th><span>{escape(column)}</span></th>' for column in columns)
    lines = []
    for name, row in zip(names, matrix, strict=True):
        total = sum(row)
        cells = ''.join(
            f'<td style="--v:{value / total if total else 0:.3f}" '
            f'title="{escape(name)} seen as {escape(column)}: {value} {unit}">'
            f'{round(100 * value / total) if total else "–"}</td>'
            for column, value in zip(columns, row, strict=True)
        )
        lines.append(f'<tr><th>{escape(name)}</th>{cells}</tr>')
    narrow = min(34, 8 + 3 * len(columns))
    body = Markup(
        f'<div class="scroll"><table class="heat confusion" style="min-width: {narrow}rem">'
        f'<tr><th></th>{head}</tr>' + ''.join(lines) + '</table></div>'
    )
    rows: list[list[Any]] = [['truth', *columns]]
    rows += [[name, *row] for name, row in zip(names, matrix, strict=True)]
    note = 'Rows are the truth, columns what was predicted, in per cent of the row.'
    return Figure(key, title, body, rows, note)


def _boxes(results: Mapping[str, Any], colors: Mapping[str, Sequence[int]]) -> list[Figure]:
    """Return precision against recall and the average precision of each class."""
    detection = results.get('detection') or {}
    curves = (detection.get('curves') or {}).get('precision') or {}
    if not curves:
        return []
    recall = detection['curves']['recall']
    body = charts.curves(
        recall,
        [(name, ys, colors.get(name, (128, 128, 128))) for name, ys in curves.items()],
        'recall',
        'precision',
    )
    rows: list[list[Any]] = [['recall', *curves]]
    rows += [list(row) for row in zip(recall, *curves.values(), strict=True)]
    at = detection['at']
    note = (
        f'Boxes that meet a true one by an IoU of {detection["curves"]["iou"]:g}. With scores of '
        f'{at["score"]:g} or more: precision {number(detection["precision"], 3)}, recall '
        f'{number(detection["recall"], 3)}.'
    )
    names = [name for name, c in detection['per_class'].items() if c['ap'] is not None]
    classes = {name: detection['per_class'][name] for name in names}
    series = [
        (text, [c[k] for c in classes.values()]) for text, k in (('AP', 'ap'), ('AP50', 'ap50'))
    ]
    table: list[list[Any]] = [['class', 'ap', 'ap50', 'true boxes', 'detections']]
    table += [[n, c['ap'], c['ap50'], c['boxes'], c['detections']] for n, c in classes.items()]
    return [
        Figure('curves', 'Boxes: precision against recall', body, rows, note),
        Figure('ap', 'Average precision by class', charts.bars(names, series, 'AP'), table),
    ]


def _attributes(results: Mapping[str, Any]) -> list[Figure]:
    """Return for each attribute of the pictures how its classes are confused, or told."""
    figures = []
    attributes = (results.get('classification') or {}).get('attributes') or {}
    for name, report in attributes.items():
        if not report['decisions']:
            continue
        classes = report['classes']
        if report['kind'] == 'single':
            figure = _confusion_figure(
                f'attribute-{name}', f'Pictures: {name}', list(classes), list(classes),
                report['confusion'], 'pictures',
            )  # fmt: skip
        else:
            keys = ('precision', 'recall', 'f1')
            series = [(key, [c[key] for c in classes.values()]) for key in keys]
            body = charts.bars(list(classes), series, 'share')
            rows: list[list[Any]] = [['class', *keys, 'support']]
            rows += [[n, *(c[k] for k in keys), c['support']] for n, c in classes.items()]
            figure = Figure(f'attribute-{name}', f'Pictures: {name}', body, rows)
        figures.append(figure)
    return figures


def _reliability(results: Mapping[str, Any]) -> list[Figure]:
    calibration = results.get('calibration') or {}
    if calibration.get('ece') is None:
        return []
    bins = calibration['bins']
    rows: list[list[Any]] = [list(bins[0]), *([*b.values()] for b in bins)]
    note = (
        f'A calibrated network lies on the diagonal. ECE {number(calibration["ece"], 3)}, largest '
        f'gap {number(calibration["mce"], 3)}; stronger bars hold more pixels.'
    )
    body = charts.reliability(bins)
    return [Figure('reliability', 'Is the confidence right?', body, rows, note)]


def _regions(results: Mapping[str, Any]) -> list[Figure]:
    regions = results.get('by_region') or []
    tables, rows = [], [['row', 'column', 'pixacc', 'rel_err', 'normals_mean']]
    rows += [
        [r['row'], r['column'], r['pixacc'], r['rel_err'], r['normals_mean']] for r in regions
    ]
    for title, figure in (
        ('pixel accuracy', 'pixacc'),
        ('relative depth error', 'rel_err'),
        ('normals, mean °', 'normals_mean'),
    ):
        values = [region[figure] for region in regions]
        known = [value for value in values if value is not None]
        if not known:
            continue
        spread = (max(known) - min(known)) or 1.0
        cells = [
            f'<td style="--v:{((v - min(known)) / spread if v is not None else 0):.2f}">'
            f'{number(v, 3)}</td>'
            for v in values
        ]
        lines = ''.join(f'<tr>{"".join(cells[i : i + 3])}</tr>' for i in range(0, len(cells), 3))
        tables.append(f'<div><b>{title}</b><table class="heat region">{lines}</table></div>')
    if not tables:
        return []
    body = Markup(f'<div class="regions">{"".join(tables)}</div>')
    note = 'Where in the picture: its ninths, from top left to bottom right.'
    return [Figure('regions', 'By region of the picture', body, rows, note)]


def _shown(title: str, shown: Shown) -> dict[str, Any]:
    """Return a frame of the gallery, its pictures as data: addresses."""
    order = [
        name
        for task in ('segmentation', 'depth', 'normals', 'boxes')
        for name in (task, f'{task} truth')
        if name in shown.pictures
    ]
    sources = {
        name: 'data:image/jpeg;base64,' + base64.b64encode(jpeg).decode()
        for name, jpeg in shown.pictures.items()
    }
    facts = [
        f'{text} {number(shown.figures[task].get(figure), 3)}'
        for task, figure, text in (
            ('segmentation', 'pixacc', 'pixel accuracy'),
            ('depth', 'rel_err', 'rel. depth error'),
            ('normals', 'mean', 'normals °'),
            ('detection', 'f1', 'boxes F1'),
            ('classification', 'accuracy', 'class accuracy'),
            ('without_truth', 'unsure', 'unsure'),
        )
        if shown.figures.get(task, {}).get(figure) is not None
    ]
    return {
        'title': title,
        'name': f'{shown.recording}: {shown.id}',
        'facts': ', '.join(facts),
        'camera': sources['camera'],
        'views': [(name, sources[name]) for name in order],
    }
