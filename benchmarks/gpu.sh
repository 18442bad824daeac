#!/usr/bin/env bash
# Everything that wants a GPU and is still missing, in order of worth, within MINUTES.
#
#     benchmarks/gpu.sh PACK OUT [MINUTES] [--jobs NAME,…] [--lanes 3] [--weights]
#
# PACK is a pack (`tinlab data pack`), OUT a folder that later calls go on from. benchmarks/gpu.py says what is
# run and in which order. It needs no network. PYTHON names another Python than python3.
#
# On a machine that has torch for CUDA, timm and torchvision and reaches nothing:
#   1. Where there is a network, fetch wheels for that machine's Python of what it lacks (pydantic,
#      pydantic-core, annotated-types, typing-inspection, simplejpeg, deflate, captum, platformdirs) into
#      .whl/ beside pyproject.toml: pip download --no-deps --only-binary=:all: --python-version …
#   2. Bring the source tree with .whl/ there. This script installs the wheels into a folder of its own and
#      leaves the machine's Python as it is. Where the tree travels without its history, say which commit it
#      is, for the rows: TINLAB_COMMIT=$(git rev-parse --short=12 HEAD).
#   3. Bring the images as compressed files, which are a sixth of a pack, in parts where
#      a copy may not be larger than so much; put them together there, and pack once on that machine:
#      PYTHONPATH=src:SITE python3 -m tinlab data pack IMAGES PACK (SITE: what this script prints).
#   4. Call this script with the minutes that a call may take, again and again with the same OUT, which stays
#      on that machine; after each call bring back OUT/table.txt, OUT/results.csv and OUT/curves/.
#   5. Where the images came home, copy the rows into results/ and let `tinlab results` write the pages.
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
site=${TINLAB_SITE:-${TMPDIR:-/tmp}/tinlab-site}
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}"
if [ -d "$site" ]; then # of an earlier call
    export PYTHONPATH="$PYTHONPATH:$site"
fi
if ! "$python" -c 'import pydantic, simplejpeg' 2>/dev/null && compgen -G "$root/.whl/*.whl" >/dev/null; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --disable-pip-version-check --target "$site" "$root"/.whl/*.whl
    export PYTHONPATH="$root/src:$site${PYTHONPATH:+:$PYTHONPATH}"
    echo "wheels: $site" >&2
fi
exec "$python" "$root/benchmarks/gpu.py" "$@"
