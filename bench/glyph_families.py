"""Trains every model family on glyphs and measures its samples: `python -m bench.glyph_families OUT [ARCH ...]`.

Runs `fastgan train --amp --arch ARCH` into OUT/ARCH for each family (or those named), evaluates 1,000 samples
as glyph_quality.py does, prints a line each, and writes OUT/families.json and the last grid of each as OUT/ARCH.png. A
finished run is evaluated without training it again.

Exits with status 1 unless every family passes: 80 % of conditional samples are of the requested class, unconditional
samples cover all ten classes, and samples of a class differ at least 70 % as much as real ones.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from bench import glyph_quality, measure
from fastgan import models
from fastgan.runs.checkpoint import load_generator, read_header

AS_ASKED = 0.8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("arch", nargs="*", default=list(models.ARCHITECTURES))
    arguments = parser.parse_args()
    out, judge, all_good = arguments.out, None, True
    out.mkdir(parents=True, exist_ok=True)
    path = out / "families.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for arch in arguments.arch:
        run = out / arch
        figures = results.get(arch, {})
        if not (run / "checkpoint.safetensors").exists():
            command = ["-m", "fastgan.train", "--amp", "--arch", arch]
            start = time.monotonic()
            subprocess.run([sys.executable, *command, "--out", str(run)], check=True)
            figures = {"command": " ".join(["python", *command]), "seconds": time.monotonic() - start}
        header = read_header(run)
        generator, config = load_generator(run)
        model = header.model
        judge = judge or glyph_quality.Judge(model.resolution, model.channels, config.data.classes)
        figures |= judge.figures(generator, model.num_classes > 0)
        figures |= {"images": header.images, "parameters_g": sum(p.numel() for p in generator.parameters())}
        figures["good"] = glyph_quality.is_good(figures, AS_ASKED)
        results[arch] = figures
        path.write_text(json.dumps(results | {"machine": measure.machine()}, indent=1) + "\n")
        shutil.copy(max(run.glob("grid-*.png")), out / f"{arch}.png")
        share = figures.get("samples_as_asked") or min(figures["share_by_class"])
        label = "as asked" if figures["conditional"] else "rarest class"
        all_good &= figures["good"]
        print(
            f"{arch:10} {figures.get('seconds', 0):5.0f} s  {header.images:7,} images  {label} {share:.1%}  "
            f"variety {glyph_quality.variety(figures):.2f}  distance to training {glyph_quality.novelty(figures):.2f}  "
            f"{'good' if figures['good'] else 'not good enough'}",
            flush=True,
        )
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
