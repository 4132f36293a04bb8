"""How far are synthetic images from real ones? Distances of radiomics and network features, as a table and a page.

  python launch/compare_sets.py --real=folders:/data/cbis --real_split=train "--real_patient_pattern=(P_\\d+)" \\
      --synthetic=folders:/data/mcgan --count=400
  python launch/compare_sets.py --real=coco:cem.json --synthetic=coco:painted.json --network=weights/lite0 --by_class

The reference for every distance is the distance between real images: in each of ten random draws, half of the real
images (split by patient) is compared with as many synthetic images, and with the other half. The measures are the
Frechet radiomics distances v0 and v1 of frd-score 1.0.1 (v1_log adds the Laplacians that it omits for images); with
--network, the Frechet distance (FID) and the kernel distance (KID) of the features of a network; the share of power at
the finest frequencies; and how well the features separate the sets. With --regions=boxes or masks the radiomics cover
only the lesions: all boxes of an image, or its file in the folder masks/ beside a COCO file. An image without lesions
is used whole.

Prints the table; writes comparison.json and report.html, with a map of the images, the features that differ most, and
pictures. --network is a model folder, written by launch/import_weights.py or by training a classifier; separate several
with commas. --inception is the weights file of pytorch-fid (pt_inception-2015-12-05-6726825d.pth), whose features the
published FID uses, or of torchvision's inception_v3. report.html contains names of images and pictures, so it is as
private as the images.
The flags of the sources begin with real_ and synthetic_.
"""

from __future__ import annotations

from pathlib import Path

import command_line
import source_flags
from absl import flags

from elk_jax.randomness import WORD

REAL = source_flags.define("real", "Real images", prefix="real_")
REAL_SPLIT = flags.DEFINE_string("real_split", "", "Which split of the real images; empty for all.")
SYNTHETIC = source_flags.define("synthetic", "Synthetic images", prefix="synthetic_")
SYNTHETIC_SPLIT = flags.DEFINE_string("synthetic_split", "", "Which split of the synthetic images; empty for all.")
FRD = flags.DEFINE_list("frd", ["v0", "v1"], "Versions of the Frechet radiomics distance: v0, v1, v1_log.")
NETWORK = flags.DEFINE_list("network", [], "Model folders of networks, for FID and KID.")
INCEPTION = flags.DEFINE_string("inception", None, "Weights of Inception-v3, for the published FID: FILE.pth.")
COUNT = flags.DEFINE_integer(
    "count", 0, "Images of each set in a comparison; 0: as many as possible, at most half of the real ones."
)
PAPER_LOG = flags.DEFINE_bool("paper_log", False, "FRD v1 as ln d, as the paper writes it; frd-score reports ln d².")
BY_CLASS = flags.DEFINE_bool("by_class", False, "Also compare each class separately.")
REGIONS = flags.DEFINE_enum(
    "regions",
    "images",
    ["images", "boxes", "masks"],
    "Region of the radiomics: whole images, the boxes of lesions, or masks/NAME.png beside the COCO file.",
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the random draws.", lower_bound=0, upper_bound=WORD - 1)
ON_ERROR = source_flags.define_on_error()
OUTPUT = flags.DEFINE_string("output", "comparison", "Folder for comparison.json and report.html.")

OWN = (FRD, COUNT, PAPER_LOG, BY_CLASS, REGIONS, SEED)


def main() -> None:
    sources = REAL.read(), SYNTHETIC.read()
    from elk_jax import fields, files, output_folders
    from elk_jax.distances import inception, network, sets
    from elk_jax.distances.compare import Settings, compare
    from elk_jax.distances.folder import write_comparison
    from elk_jax.distances.tables import print_comparison
    from elk_jax.progress import progress_bar
    from elk_jax.tasks.run import new_console

    settings = command_line.of_flags(lambda: fields.build(Settings, command_line.given(OWN)))
    output = output_folders.for_results(OUTPUT.value, output_folders.COMPARISON)
    files.check_writable(output)
    networks = network.load_all([Path(folder) for folder in NETWORK.value])
    if INCEPTION.value:
        networks.append(inception.load(Path(INCEPTION.value)))
    limits = 4 * settings.count, settings.count  # more than two sets of real ones, as patients stay whole
    real, synthetic = (
        sets.read(
            source,
            split.value,
            most=most,
            seed=settings.seed,
            regions=settings.regions,
            on_error=ON_ERROR.value,
            progress=progress_bar(f"  reading {which}"),
        )
        for source, split, most, which in zip(sources, (REAL_SPLIT, SYNTHETIC_SPLIT), limits, ("real", "synthetic"))
    )
    found = compare(real, synthetic, settings, networks, progress_bar)
    console = new_console()
    print_comparison(found, console)
    write_comparison(found, output)
    console.print(f"page: {output / 'report.html'}")


if __name__ == "__main__":
    command_line.run(main, __doc__ or "")
