"""The data doctor: what is wrong with preference files, in numbers and with places, before anything is trained on them.

`examine` reads files and gives a `DoctorReport`; `examine_recipe` does it for the files of a recipe. No torch, nothing random.
"""

from dmoerm.data.doctor.corpus import Context
from dmoerm.data.doctor.examine import examine, examine_recipe
from dmoerm.data.doctor.finding import DoctorReport, Finding, NotChecked
from dmoerm.data.doctor.page import brief_text, verdict

__all__ = ["Context", "DoctorReport", "Finding", "NotChecked", "brief_text", "examine", "examine_recipe", "verdict"]
