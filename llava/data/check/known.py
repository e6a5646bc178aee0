"""Published data sets as data: what their files are called, how much is in them, and where they come from.

Numbers of records and rows: the data sets' cards and XTuner's logs (2,181 updates of 256, 5,198 of 128). Folders and
links: LLaVA's README and XTuner's ``dataset_prepare.md``. Checksums and links of the TSV files: VLMEvalKit
(``vlmeval/dataset/image_mcq.py``). Rows of the RefCOCO files: counted in MiniGPT-4's ``eval_data``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Records:
    """A published file of conversations."""

    count: int
    cure: str
    folders: tuple[str, ...] = ()
    """Where its pictures are, below the image folder; empty: in folders of no published name."""


@dataclass(frozen=True)
class Pictures:
    """A folder of pictures below the image folder."""

    archive: str
    """Name of the published archive."""
    link: str
    unpack: str
    """Where the archive is unpacked, below the image folder."""
    note: str = ""


@dataclass(frozen=True)
class Tsv:
    """A benchmark's TSV file."""

    md5: str
    rows: int | None = None
    """Circular copies counted; None: not published."""
    questions: int | None = None

    def link(self, name: str) -> str:
        """Where the file is published."""
        return f"https://opencompass.openxlab.space/utils/VLMEval/{name}.tsv"


_GENOME: Final = "https://cs.stanford.edu/people/rak248/VG_100K_2"
PICTURES: Final = {
    "coco/train2017": Pictures("train2017.zip", "http://images.cocodataset.org/zips/train2017.zip", "coco"),
    "gqa/images": Pictures("images.zip", "https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip", "gqa"),
    "ocr_vqa/images": Pictures(
        "",
        "https://drive.google.com/drive/folders/1_GYPY5UkUy7HIcR0zq3ZCFgeZN7BAfm_ (loadDataset.py downloads them)",
        "ocr_vqa",
        "some links are dead for good; data.max_bad_images says how many pictures training may miss",
    ),
    "textvqa/train_images": Pictures(
        "train_val_images.zip", "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip", "textvqa"
    ),
    "vg/VG_100K": Pictures("images.zip", f"{_GENOME}/images.zip", "vg"),
    "vg/VG_100K_2": Pictures("images2.zip", f"{_GENOME}/images2.zip", "vg"),
}
RECORDS: Final = {
    "blip_laion_cc_sbu_558k.json": Records(
        558_128, "hf download liuhaotian/LLaVA-Pretrain --repo-type dataset; images.zip belongs in images/"
    ),
    "llava_v1_5_mix665k.json": Records(
        665_298,
        "hf download liuhaotian/LLaVA-Instruct-150K llava_v1_5_mix665k.json --repo-type dataset",
        tuple(PICTURES),
    ),
}
TSV: Final = {
    "MMBench_DEV_EN": Tsv("b6caf1133a01c6bb705cf753bb527ed8", 4_329, 1_164),
    "MMBench_TEST_EN": Tsv("6939fadb0ce626fefc0bdc9c64efc528", 6_666, 1_784),
    "MMBench_DEV_CN": Tsv("08b8fc3324a5ed74155350f57be69fbd", 4_329, 1_164),
    "MMBench_TEST_CN": Tsv("7e1239baf0ee4c8b513e19705a0f317e", 6_666, 1_784),
    "CCBench": Tsv("f5dde47f24dc5a6fb6e595b409b466ac", 2_040, 510),
    "MMBench_DEV_EN_V11": Tsv("30c05be8f2f347a50be25aa067248184"),
    "MMBench_TEST_EN_V11": Tsv("26f0f15381a21720255091d3e0316ce6"),
    "MMBench_DEV_CN_V11": Tsv("593f9b5f6bea453d870a798b34ae4f37"),
    "MMBench_TEST_CN_V11": Tsv("74bbe4556dac745613c7cbe5ad787050"),
}
REFCOCO: Final = {
    "refcoco_val": 10_834,
    "refcoco_testA": 5_657,
    "refcoco_testB": 5_095,
    "refcoco+_val": 10_758,
    "refcoco+_testA": 5_726,
    "refcoco+_testB": 4_889,
    "refcocog_val": 4_896,
    "refcocog_test": 9_602,
}
REFCOCO_CURE: Final = "eval_data/ of github.com/Vision-CAIR/MiniGPT-4 holds the files"
