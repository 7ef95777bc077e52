"""Furniture, each piece in its own frame: front at -y, back at +y, floor at z = 0."""

from mtl_training.worlds.furniture.bathroom import bathtub, toilet, vanity
from mtl_training.worlds.furniture.bedroom import bed, dresser, nightstand, wardrobe
from mtl_training.worlds.furniture.kitchen import fridge, island, kitchen_row
from mtl_training.worlds.furniture.media import floor_lamp, old_television, television, tv_stand
from mtl_training.worlds.furniture.seating import (
    armchair,
    bench,
    chair,
    office_chair,
    ottoman,
    sofa,
    stool,
)
from mtl_training.worlds.furniture.storage import bookcase, cabinet, piano
from mtl_training.worlds.furniture.tables import coffee_table, desk, table

__all__ = [
    'armchair',
    'bathtub',
    'bed',
    'bench',
    'bookcase',
    'cabinet',
    'chair',
    'coffee_table',
    'desk',
    'dresser',
    'floor_lamp',
    'fridge',
    'island',
    'kitchen_row',
    'nightstand',
    'office_chair',
    'old_television',
    'ottoman',
    'piano',
    'sofa',
    'stool',
    'table',
    'television',
    'toilet',
    'tv_stand',
    'vanity',
    'wardrobe',
]
