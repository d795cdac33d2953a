"""What calibration measured of a GPU and its variants, as a folder of tables; and where else profiles come from.

profile.py         Profile: load, save, ask
latency.py         how long a batch takes
tables.py          the folder: its manifest, its Parquet tables, their columns
checks.py          what must hold of a profile
changes.py         what if the profile were different: changes that an experiment makes
importing.py       public data sets as profiles
ratings.py         those of human ratings
rating_profile.py  a profile built from ratings, with latencies borrowed from another
"""

from argus_sim.profile.latency import Latency, latency_row
from argus_sim.profile.profile import Profile, shipped_profiles
from argus_sim.profile.tables import Manifest, ServiceDistribution

__all__ = ["Latency", "Manifest", "Profile", "ServiceDistribution", "latency_row", "shipped_profiles"]
