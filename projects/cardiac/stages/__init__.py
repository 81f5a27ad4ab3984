"""The stages of the pipeline: the configuration of each, and a function that imports its training when it begins.

Torch and MONAI take seconds to import, and the pipeline's status, menu and help need neither.

Raises:
    ModuleNotFoundError: a package that a stage needs is not installed; raised at once, not hours into a pipeline.
"""

from importlib.util import find_spec

for _name in ("monai", "nibabel", "pandas", "scipy", "skimage"):
    if find_spec(_name) is None:
        raise ModuleNotFoundError(f"No module named {_name!r}", name=_name)
