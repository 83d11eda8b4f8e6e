"""Where the time of a training goes: by layer, by phase of a step and by rank; as a table and as a timeline."""

from .profile import Profile as Profile
from .profile import RankProfile as RankProfile
from .profiler import Profiler as Profiler
