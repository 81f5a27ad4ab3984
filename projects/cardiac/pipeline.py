"""The cardiac system as a pipeline: preparation, motion, registration, infarct. Not for clinical use.

>>> mltrain pipeline cardiac --preset quick --mode resume
"""

import mltrain
from projects.cardiac.settings import CONFIG_FILE
from projects.cardiac.stages import infarct, motion, preparation, registration

# The outputs are the last weights, not the best, so the held-out patients choose nothing.
PIPELINE = mltrain.Pipeline(
    "cardiac",
    [
        mltrain.Stage("preparation", preparation.Config, make=preparation.prepare),
        mltrain.Stage(
            "motion", motion.Config, build=motion.build, needs={"prepared": "preparation"}, hands_on="latest"
        ),
        mltrain.Stage(
            "registration",
            registration.Config,
            build=registration.build,
            needs={"prepared": "preparation"},
            hands_on="latest",
        ),
        mltrain.Stage(
            "infarct",
            infarct.Config,
            build=infarct.build,
            needs={"prepared": "preparation", "motion_weights": "motion", "registration_weights": "registration"},
            hands_on="latest",
        ),
    ],
    config_file=CONFIG_FILE,
)
