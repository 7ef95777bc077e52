"""Multi-task networks: backbones, decoders and ways to share parameters."""

from mtl_training.networks.backbones import Backbone, BackboneError, build_backbone
from mtl_training.networks.cost import count_macs, count_parameters, network_costs
from mtl_training.networks.decoders import DECODERS
from mtl_training.networks.multitask import (
    DENSE_TASKS,
    TASKS,
    MultiTaskNetwork,
    NetworkConfig,
    NetworkError,
    build_network,
)
from mtl_training.networks.sharing import SHARING

__all__ = [
    'DECODERS',
    'DENSE_TASKS',
    'SHARING',
    'TASKS',
    'Backbone',
    'BackboneError',
    'MultiTaskNetwork',
    'NetworkConfig',
    'NetworkError',
    'build_backbone',
    'build_network',
    'count_macs',
    'count_parameters',
    'network_costs',
]
