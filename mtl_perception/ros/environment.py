"""What a process needs before it can speak ROS 2, where no setup script has prepared it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mtl_perception.shared import shared_folder

_VARIABLE = 'FASTDDS_DEFAULT_PROFILES_FILE'
_OLDER_VARIABLE = 'FASTRTPS_DEFAULT_PROFILES_FILE'


def find_package_prefix() -> None:
    """Let ROS find the packages of this virtual environment; leaves a sourced setup in front."""
    own = Path(sys.prefix)
    if not (own / 'share' / 'ament_index' / 'resource_index').is_dir():
        return
    prefixes = [p for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    if str(own) not in prefixes:
        os.environ['AMENT_PREFIX_PATH'] = os.pathsep.join([*prefixes, str(own)])


def fastdds_variable() -> str:
    """Return the variable that names a Fast DDS profile in the ROS distribution at hand."""
    older = os.environ.get('ROS_DISTRO', '') in ('humble', 'iron', 'jazzy')
    return _OLDER_VARIABLE if older else _VARIABLE


def chosen_fastdds_profile() -> tuple[str, Path] | None:
    """Return the variable that names a Fast DDS profile in this process, and what it names."""
    for variable in (_VARIABLE, _OLDER_VARIABLE):
        if chosen := os.environ.get(variable):
            return variable, Path(chosen)
    return None


def choose_fastdds_profile() -> Path | None:
    """Use a shipped Fast DDS profile in this process unless the user has chosen a middleware.

    Without one, Fast DDS loses nearly every best-effort image of 0.9 MB. Call it before the first
    context is initialised.

    Returns:
        The profile: for this machine alone where ROS_AUTOMATIC_DISCOVERY_RANGE says so, else for
        listeners on other machines, too. None where a profile or another middleware was already
        chosen; a chosen profile that is not there is told on standard error.
    """
    if os.environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp') != 'rmw_fastrtps_cpp':
        return None
    if chosen := chosen_fastdds_profile():
        variable, profile = chosen
        if not profile.is_file():
            print(
                f'{variable} names {profile}, which is not there: Fast DDS will lose large '
                'images; name a file, or unset it to have one chosen',
                file=sys.stderr,
            )
        return None
    local = os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE') == 'LOCALHOST'
    profile = shared_folder('config') / f'fastdds_{"local" if local else "network"}.xml'
    os.environ[fastdds_variable()] = str(profile)
    return profile
