#!/usr/bin/env bash
# Makes the virtual environment: `scripts/setup.sh runtime` (the node, no torch), `gpu` (the same
# with a TensorRT, where the system's Python has none) or `full` (runtime, TensorRT-RTX, workshop
# and tests). Does nothing when it is up to date.
set -euo pipefail

level=${1:-runtime}
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${VENV:-$root/.venv}
case $level in runtime | gpu | full) ;; *)
    echo "setup: unknown level '$level': use 'runtime', 'gpu' or 'full'" >&2
    exit 2 ;;
esac

say() { printf '\033[1m%s\033[0m\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# A ROS 2 counts as sourced when its setup script has named the distribution and Python sees rclpy.
sourced_ros=
if [[ -n ${ROS_DISTRO:-} && -n ${AMENT_PREFIX_PATH:-} && $AMENT_PREFIX_PATH != "$venv" ]]; then
    sourced_ros=$ROS_DISTRO
fi

install() { # with pip, whose remarks on its own settings say nothing about the project
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" 2> >(grep -v 'is ignored: it is neither' >&2)
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

find_python() {
    local candidates=(python3 python3.11 python3.12) wanted='3.11 3.12'
    if [[ -n $sourced_ros ]]; then # its packages are compiled for the system's own Python
        candidates=(/usr/bin/python3 python3) wanted='3.10 3.11 3.12'
        [[ $level == full ]] && wanted='3.11 3.12' # what the workshop needs
    fi
    [[ -n ${PYTHON:-} ]] && candidates=("$PYTHON")
    local candidate version
    for candidate in "${candidates[@]}"; do
        version=$(version_of "$candidate") || continue
        [[ " $wanted " == *" $version "* ]] || continue
        [[ -z $sourced_ros ]] || "$candidate" -c 'import rclpy' 2>/dev/null || continue
        echo "$candidate"
        return
    done
    local found
    found=$(version_of "${PYTHON:-python3}" || echo none)
    if [[ -n $sourced_ros ]]; then
        local help="install ros-$sourced_ros-rclpy"
        [[ $level == full && $found == 3.10 ]] && help='train in a clone on another machine'
        fail "ROS 2 $sourced_ros is sourced but no Python of ${wanted// /, } imports its rclpy (found Python $found): $help, or use the wheels by another clone in a shell without ROS"
    fi
    fail "Python 3.11 or 3.12 is needed (found Python $found): install it and run again with PYTHON=/path/to/python3.11"
}

packages() { # the Debian packages of level 'full' that a program or a library stands for
    local missing=()
    for library in libEGL.so.1:libegl1 libGL.so.1:libgl1 libEGL_mesa.so.0:libegl-mesa0; do
        ldconfig -p 2>/dev/null | grep -q "${library%%:*}" || missing+=("${library##*:}")
    done
    [[ -e /usr/lib/x86_64-linux-gnu/dri/swrast_dri.so || -e /usr/lib/aarch64-linux-gnu/dri/swrast_dri.so ]] ||
        missing+=(libgl1-mesa-dri)
    command -v chromium >/dev/null || command -v google-chrome >/dev/null || missing+=(chromium)
    echo "${missing[@]}"
}

python=$(find_python)
command -v g++ >/dev/null || fail 'no C++ compiler, which the ROS messages need: install g++ (sudo apt-get install g++)'
command -v make >/dev/null || fail 'no make: install it (sudo apt-get install make)'
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python has no venv module: install it (sudo apt-get install python3-venv)"

files=()
if [[ -n $sourced_ros ]]; then
    files+=(runtime-sourced-ros)
else
    files+=(runtime ros)
fi
[[ $level == full ]] && files+=(training tensorrt test)
arguments=()
for file in "${files[@]}"; do arguments+=(-r "$root/requirements/$file.txt"); done
[[ -z $sourced_ros ]] && arguments+=(-c "$root/requirements/constraints.txt")

stamp=$venv/.setup-$level
fingerprint=$({
    "$python" -VV
    echo "${sourced_ros:-wheels}"
    for file in "${files[@]}"; do cat "$root/requirements/$file.txt"; done
    cat "$root/requirements/constraints.txt" "$root/setup.py"
} | sha256sum | cut -d' ' -f1)

if [[ $level == full ]]; then
    missing=$(packages)
    if [[ -n $missing ]]; then
        if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
            say "Installing system packages: $missing"
            apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null ||
                fail "apt-get could not install: $missing"
        else
            echo "setup: not root, so these system packages were left out and the tests that need them (rendering, reports in a browser) will skip: sudo apt-get install $missing" >&2
        fi
    fi
fi

if [[ $(cat "$stamp" 2>/dev/null) != "$fingerprint" ]]; then
    # A first installation runs for minutes before it finds that the disk is full.
    if [[ ! -e $venv ]]; then
        if [[ $level == full ]]; then needed_gb=8; else needed_gb=1; fi
        free_kb=$(df -Pk "$(dirname "$venv")" 2>/dev/null | awk 'NR == 2 {print $4}') || true
        [[ -z $free_kb ]] || ((free_kb >= needed_gb * 1000000)) ||
            fail "the disk of $venv has $((free_kb / 1000)) MB free but level '$level' takes $needed_gb GB: make room, or name a folder on another disk with VENV=/path"
    fi
    # Packages of one ROS 2 beside messages that another one made do not fit.
    ros=${sourced_ros:-wheels}
    if [[ ! -x $venv/bin/python || $(version_of "$venv/bin/python") != $(version_of "$python") ||
        $(cat "$venv/.ros" 2>/dev/null || echo "$ros") != "$ros" ]]; then
        say "Making ${venv#"$root"/} with $("$python" -V)${sourced_ros:+ and ROS 2 $sourced_ros}"
        rm -rf "$venv"
        "$python" -m venv ${sourced_ros:+--system-site-packages} "$venv"
    fi
    echo "$ros" >"$venv/.ros"
    say "Installing ${files[*]} (the first time takes some minutes)"
    install "${arguments[@]}" ||
        fail "pip could not install requirements/{$(IFS=,; echo "${files[*]}")}.txt: see its message above; with no network, point pip at a mirror and run again"
    install --no-deps --no-build-isolation \
        --config-settings editable_mode=compat -e "$root" || fail 'the package itself could not be installed: see above'
    # A Jetson's TensorRT comes with JetPack, and with it goes its own CUDA's cuda-python.
    if [[ $level == gpu ]] && ! "$venv/bin/python" -c 'import tensorrt' 2>/dev/null; then
        install -r "$root/requirements/tensorrt.txt" ||
            fail 'pip could not install requirements/tensorrt.txt: see its message above, and docs/tensorrt.md for what your machine needs'
    fi
    echo "$fingerprint" >"$stamp"
fi

VIRTUAL_ENV=$venv "$root/scripts/build_messages.sh"
