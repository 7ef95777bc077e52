"""Office-31: 31 kinds of things from an office in three domains.

Saenko et al., Adapting Visual Category Models to New Domains (ECCV 2010):
`{domain}/images/{class}/*.jpg`, the same classes in each domain.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtl_perception.bundle import AttributeSpec
from mtl_training.datasets.image_folder import ClassFolders, shuffled
from mtl_training.datasets.reader import Part, files_in

OFFICIAL = {'amazon': 2817, 'dslr': 498, 'webcam': 795}
# The domains come without splits; these are the shares that LibMTL uses.
SHARES = {'train': (0.0, 0.6), 'val': (0.6, 0.8), 'test': (0.8, 1.0)}
OBJECTS = (
    'back_pack', 'bike', 'bike_helmet', 'bookcase', 'bottle', 'calculator', 'desk_chair',
    'desk_lamp', 'desktop_computer', 'file_cabinet', 'headphones', 'keyboard', 'laptop_computer',
    'letter_tray', 'mobile_phone', 'monitor', 'mouse', 'mug', 'paper_notebook', 'pen', 'phone',
    'printer', 'projector', 'punchers', 'ring_binder', 'ruler', 'scissors', 'speaker', 'stapler',
    'tape_dispenser', 'trash_can',
)  # fmt: skip


class Office31(ClassFolders):
    """One domain of Office-31, with its 31 classes as `object` and the domain as `domain`.

    A split is a domain (`amazon`, `dslr`, `webcam`), or a share of it (`amazon_train` 60 %,
    `amazon_val` 20 %, `amazon_test` 20 % of every class, by the hash of the file's name): the
    publishers give no split.
    """

    format = 'office31'
    default_folder = 'office31'
    source = 'people.eecs.berkeley.edu/~jhoffman/domainadapt: domain_adaptation_images.tar.gz'
    licence = 'not stated by its publishers; pictures of the amazon domain are from amazon.com'
    splits = tuple(
        f'{domain}{share}'
        for domain in OFFICIAL
        for share in ('', *(f'_{name}' for name in SHARES))
    )
    attributes = (
        AttributeSpec(name='object', kind='single', classes=OBJECTS),
        AttributeSpec(name='domain', kind='single', classes=tuple(OFFICIAL)),
    )

    def __init__(self, root: str | Path, split: str) -> None:
        super().__init__(root, split)
        self.domain, _, share = split.partition('_')
        self.folder = self.root / self.domain / 'images'
        self._index_pictures(OBJECTS)
        if share:
            self.ids = self._share(*SHARES[share])

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Say whether a folder has this layout."""
        return any((root / domain / 'images').is_dir() for domain in OFFICIAL)

    @classmethod
    def parts(cls, root: Path, split: str, **options: Any) -> list[Part]:
        """Return the layout of one domain with what is there of it."""
        domain = split.partition('_')[0]
        folder = root / domain / 'images'
        found = sum(len(files_in(folder / name)) for name in OBJECTS)
        path = f'{domain}/images'
        holds = '31 folders of classes with pictures'
        return [Part(path, holds, found, OFFICIAL[domain], required=True)]

    def _share(self, start: float, end: float) -> list[str]:
        chosen: list[str] = []
        for name in OBJECTS:
            own = [frame_id for frame_id in self.ids if frame_id.startswith(f'{name}/')]
            chosen += own[round(start * len(own)) : round(end * len(own))]
        return sorted(chosen, key=shuffled)

    def _attributes_of(self, frame_id: str) -> dict[str, Any]:
        domain = list(OFFICIAL).index(self.domain)
        return {'object': self._class_of[frame_id], 'domain': domain}
