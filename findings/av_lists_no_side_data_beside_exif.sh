#!/usr/bin/env bash
# Expected: `frame.side_data` lists what a frame carries; of a kind that it does not know it says so, or leaves it out.
# Seen: PyAV 18.1.0 names fewer kinds than the FFmpeg in its wheels. A frame with EXIF, which FFmpeg now takes from .jpg
# and .png, has one of number 31, and then any use of `side_data` raises ValueError: the display matrix beside it cannot
# be read. `frame.rotation` still can, but it has the angle without the mirror: of tags 2, 4, 5, 7 it says another turn.
# Hurts: whoever turns pictures as they are to be shown by the matrix. A photograph of a telephone ends the program.
# Do: catch ValueError and take `rotation` for videos, which are not mirrored; take EXIF of images from Pillow.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet av==18.1.0 pillow==13.0.0 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import sys

import av
from PIL import Image

print(f"av {av.__version__}, libavutil {'.'.join(map(str, av.library_versions['libavutil']))}")
raised = 0
for tag in range(1, 9):
    exif = Image.Exif()
    exif[274] = tag
    Image.new("RGB", (32, 16)).save("a.jpg", exif=exif)
    with av.open("a.jpg") as file:
        (frame,) = file.decode(video=0)
    try:
        seen = f"{len(frame.side_data)} kinds of side data"
    except ValueError as error:
        raised += 1
        seen = f"ValueError: {error}"
    print(f"EXIF orientation {tag}: rotation {frame.rotation:4}, {seen}")
if not raised:
    sys.exit("PyAV now lists the side data of frames with EXIF.")
PYTHON
