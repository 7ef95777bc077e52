#!/usr/bin/env bash
# Build msg/ and srv/ into a virtual environment: $VIRTUAL_ENV, or .venv of this repository.
# Afterwards `import mtl_perception.msg` works there, while mtl_perception itself stays the
# repository's source. Does nothing when neither the messages nor the ROS packages changed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VIRTUAL_ENV:-$root/.venv}
python=$venv/bin/python
if [[ ! -x $python ]]; then
    echo "build_messages: $python does not exist; run scripts/setup.sh first" >&2
    exit 1
fi
# Another environment's Python may have left this mark, and would keep ours from finding its ROS.
unset _ROS_WHEELS_BOOTSTRAP_COMPLETE
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

from_wheels=false
if [[ -d $venv/share/rosidl_default_generators ]]; then
    from_wheels=true
elif [[ -z ${AMENT_PREFIX_PATH:-} ]]; then
    echo "build_messages: no ROS 2 found: install requirements/ros.txt into $venv" \
        "or source /opt/ros/<distro>/setup.bash" >&2
    exit 1
fi

stamp=$venv/share/mtl_perception/messages.sha256
digest=$({
    cat "$root"/{msg/*.msg,srv/*.srv} "$root/CMakeLists.txt" "$root/package.xml" "${BASH_SOURCE[0]}"
    "$python" --version
    if $from_wheels; then
        (cd "$site" && echo ros_*.dist-info numpy-*.dist-info)
    else
        echo "${ROS_DISTRO:-} $AMENT_PREFIX_PATH"
    fi
} | sha256sum | cut -d' ' -f1)
if [[ -f $stamp && $(<"$stamp") == "$digest" && -d $site/mtl_perception/msg ]]; then
    exit 0
fi

for tool in c++ make; do
    if ! command -v "$tool" >/dev/null; then
        echo "build_messages: $tool is missing: sudo apt install g++ make" >&2
        exit 1
    fi
done

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
export PATH=$venv/bin:$PATH
# CMake refuses to export include paths that lie inside the source, as $root/.venv does.
mkdir "$build/source"
cp -r "$root"/{msg,srv,CMakeLists.txt,package.xml} "$build/source/"
options=(
    -S "$build/source" -B "$build/build"
    -DCMAKE_BUILD_TYPE=Release
    -DCMAKE_INSTALL_PREFIX="$build/install"
    -DPython3_EXECUTABLE="$python"
    -DPython3_FIND_VIRTUALENV=ONLY
    -DBUILD_TESTING=OFF
    -DMESSAGES_ONLY=ON
)
if command -v ninja >/dev/null; then
    options+=(-G Ninja)
fi
if $from_wheels; then
    # The wheels' CMake files name the Python and numpy of the machine that built them.
    "$python" - "$venv" <<'PYTHON'
import re
import sys
import sysconfig
from pathlib import Path

import numpy

ours = f'{sysconfig.get_path("include")};{numpy.get_include()}'
pattern = re.compile(r'(?<=")[^";]*/include/python3\.\d+;[^";]*/numpy/(?:_core|core)/include(?=")')
for path in Path(sys.argv[1]).glob('share/*/cmake/export_*__rosidl_generator_pyExport.cmake'):
    text = path.read_text()
    fixed = pattern.sub(lambda match: ours, text)
    if fixed != text:
        path.write_text(fixed)
PYTHON
    export AMENT_PREFIX_PATH=$venv
    export LD_LIBRARY_PATH=$venv/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    options+=(-DCMAKE_PREFIX_PATH="$venv")
fi

log=$build/log
if ! { cmake "${options[@]}" && cmake --build "$build/build" && cmake --install "$build/build"; } \
    >"$log" 2>&1; then
    cat "$log" >&2
    echo 'build_messages: the messages do not build; the reason stands above' >&2
    exit 1
fi

# Copied by hand for two reasons: an __init__.py or egg-info at site-packages would hide the
# repository's package from Python and from pip, and a failed build must leave nothing behind.
generated=$(dirname "$(find "$build/install" -type d -path '*/mtl_perception/msg' \
    -path '*python*' -print -quit)")
mkdir -p "$site/mtl_perception" "$venv/share" "$venv/lib" "$venv/include"
rm -rf "$site/mtl_perception"/{msg,srv,*.so,__init__.py,__pycache__} "$stamp"
cp -r "$generated"/{msg,srv,*.so} "$site/mtl_perception/"
cp "$build"/install/lib/*.so "$venv/lib/"
cp -r "$build"/install/share/. "$venv/share/"
cp -r "$build"/install/include/. "$venv/include/"
echo "$digest" >"$stamp"
