"""The conversion methods: one file each, one line here; the laws are tested over all of them."""

from pmsm.methods.base import Method
from pmsm.methods.pmsm import PMSM
from pmsm.methods.qcfs import QCFS
from pmsm.methods.stbif import STBIF

METHODS: dict[str, type[Method]] = {"pmsm": PMSM, "qcfs": QCFS, "stbif": STBIF}
