"""What tests of the importers share: files by hand, and where the recorded ones are."""

from __future__ import annotations

import numpy as np
import pandas as pd

#: A file of GenTD26 by the name of its time column and four times.
REQUESTS = "{0},predict_type\n{1},TXT_2_IMG\n{2},IMG_2_IMG\n{3},TXT_2_IMG\n{4},INPAINTING\n"
#: Format -> recorded file, below the folder of traces.
FILES = {
    "gentd26-requests": "gentd26_t2i_requests.csv",
    "gentd26-gateway": "gentd26_gateway_qps.csv",
    "azure-llm-2023": "azure_llm_2023_conv.csv",
    "nab-twitter-volume": "nab_twitter_volume_5min.csv",
}


def counted_per_minute(times: pd.Series, minutes: int) -> list[int]:
    return (times // 60).value_counts().reindex(range(minutes), fill_value=0).tolist()


def rng() -> np.random.Generator:
    return np.random.default_rng(11)
