"""Numbers that others published or recorded, each with its source; :mod:`calibration.published` uses them."""

from __future__ import annotations

from typing import Final

# ---- sources

ARTEFACT: Final = "Argus authors' artefact (2024), github.com/skejriwal44/Argus_T2I at 8d79ded"
DIFFSERVE: Final = "DiffServe (MLSys 2025, arXiv 2411.15381), github.com/qizhengyang98/DiffServe at 7f2e4d7"
KATZ: Final = "Katz logs, github.com/modelscope/Katz at 3552744, logs/*/sdxl_pipeline.log"
GENTD26: Final = (
    "GenTD26 (Lin et al., SoCC 2025), github.com/alibaba/clusterdata at 7a6c496, cluster-trace-v2026-GenAI"
)
DISTILL_SD: Final = "github.com/segmind/distill-sd README (parameters of Small-SD and Tiny-SD)"
BK_SDM: Final = "BK-SDM model card (arXiv 2305.15798), github.com/Nota-NetsPresso/BK-SDM"
SPO: Final = "SPO (arXiv 2406.04314): PickScore of SDXL 21.95, of SD 1.5 20.53"
SIM: Final = "Score Implicit Matching (arXiv 2410.16794): PickScores of distilled models"

# ---- numbers

#: Coefficient of variation of a service time: SDXL, 50 steps, no ControlNet or LoRA, full and with 10 and 20
#: steps skipped (Katz logs, configurations diffusers-0c-0l and nirvana-0c-0l-skip10/20). Standard deviation
#: of a request's time over its configuration's mean, 87 requests, each configuration's first request
#: (warm-up) left out. Logged to 0.01 s of about 2 s, so it is a rough number; it says that a diffusion step
#: takes what it takes.
SERVICE_CV: Final = 0.0016

BASE_S: Final = 4.2  # artefact, solver_milp_oda.py: 60 / 14.29 images a minute
STEPS: Final = 50
BATCH_GAIN: Final = 1.65  # artefact, the same file: a bare factor on all throughputs
#: steps skipped -> mean quality relative to no skipping; artefact, the same file
AC_QUALITY: Final = {5: 0.97046, 10: 0.95808, 15: 0.94378, 20: 0.93235, 25: 0.9152}

#: U-Net parameters, billions: SDXL's architecture counted, the others from segmind/distill-sd's README. Small-SD
#: is BK-SDM-Base's architecture, which the artefact's file of 2.32 GB in float32 confirms; Tiny-SD BK-SDM-Tiny's.
UNET_B: Final = {"sdxl": 2.567, "sd15": 0.860, "small-sd": 0.579, "tiny-sd": 0.323}
#: Images a minute of one GPU at Clipper-HT's plateau, before the batching gain: 326 / 8 / 1.65
TINY_PER_MINUTE: Final = 24.7
TINY_QUALITY: Final = 0.898  # Clipper-HT's plateau of relative quality
SD15_QUALITY: Final = 0.935  # 20.53 / 21.95
#: CLIP scores (ViT-g/14, COCO-30k) of SD 1.4, and of BK-SDM-Base and -Tiny for Small-SD and Tiny-SD
BK_CLIP: Final = (0.2958, 0.2878, 0.2653)

#: model -> (seconds to load, bytes on disk); artefact, motiv_time.ipynb, mean of five runs
ARTEFACT_LOADS: Final = {
    "sdxl": (46.98, 5_140_000_000),
    "sd15": (21.70, 3_440_000_000),
    "small-sd": (15.05, 2_320_000_000),
    "tiny-sd": (11.78, 630_000_000),
}

#: Similarity of a prompt's nearest cached neighbour, as (share of prompts below, value): quantiles and the
#: shares at NIRVANA's thresholds of the artefact's log of 20,000 queries
#: (cache_logs/log_prompts_sample.csv).
SIMILARITY_CDF: Final = (
    (0.0, 0.2358),
    (0.01, 0.5033),
    (0.05, 0.5725),
    (0.10, 0.6040),
    (0.2249, 0.65),
    (0.25, 0.6567),
    (0.50, 0.7117),
    (0.6508, 0.75),
    (0.75, 0.7843),
    (0.8636, 0.85),
    (0.90, 0.8883),
    (0.9093, 0.90),
    (0.9412, 0.95),
    (0.95, 0.9645),
    (0.9755, 1.0),
    (1.0, 1.0),
)

#: variant -> (steps, side in pixels, {batch size: seconds}); DiffServe, profiling/*.csv (A100-80G)
DIFFSERVE_LATENCY: Final[dict[str, tuple[int, int, dict[int, float]]]] = {
    "sdxl": (50, 1024, {1: 6.10, 2: 10.65, 4: 20.92, 8: 40.23, 16: 79.11}),
    "sd15": (50, 512, {1: 1.78, 2: 2.16, 4: 3.68, 8: 6.79, 16: 12.88, 32: 25.35}),
    "sdxl-lightning": (2, 1024, {1: 0.55, 2: 0.98, 4: 1.85, 8: 3.58, 16: 7.10}),
    "sd-turbo": (1, 512, {1: 0.10, 2: 0.15, 4: 0.22, 8: 0.41, 16: 0.77, 32: 1.56}),
    "sdxs": (1, 512, {1: 0.05, 2: 0.06, 4: 0.08, 8: 0.13, 16: 0.24, 32: 0.48}),
}
#: One step of an adversarially distilled SDXL over SDXL: PickScore .228 / .229 (SIM's table)
ONE_STEP: Final = 0.228 / 0.229
DIFFSERVE_QUALITY: Final = {
    "sd15": SD15_QUALITY,
    "sdxl-lightning": 0.226 / 0.229,
    "sd-turbo": SD15_QUALITY * ONE_STEP,
    "sdxs": TINY_QUALITY * ONE_STEP,
}

#: Seconds: the (i + 1/2)/99 quantiles of the 7,531 base-model loads of GenTD26 (mean 21.99, median 22.72)
GENTD26_LOADS_S: Final = (
    1.47, 1.59, 1.76, 1.99, 2.18, 2.39, 2.5, 2.54, 2.58, 2.62, 2.65, 2.67, 2.7, 2.73, 2.75, 2.78, 2.81, 2.84,
    2.87, 2.9, 2.95, 2.99, 3.04, 3.08, 3.13, 3.19, 3.27, 3.35, 3.45, 3.6, 3.91, 4.31, 4.87, 5.65, 7.37, 10.07,
    17.24, 19.19, 19.68, 20.01, 20.39, 20.64, 20.91, 21.14, 21.42, 21.68, 21.96, 22.23, 22.48, 22.72, 22.95,
    23.24, 23.57, 23.86, 24.23, 24.58, 25.02, 25.59, 26.2, 26.96, 28.13, 29.69, 31.01, 32.17, 33.14, 33.83,
    34.38, 34.76, 35.13, 35.45, 35.78, 36.13, 36.4, 36.67, 37.0, 37.3, 37.59, 37.87, 38.09, 38.42, 38.66,
    39.02, 39.33, 39.63, 39.98, 40.38, 40.79, 41.26, 41.68, 42.17, 42.68, 43.34, 44.03, 44.89, 45.83, 46.96,
    48.64, 50.32, 53.76,
)  # fmt: skip
