r"""What a network's output means, and what its variances are."""

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
LEARNED_VARIANCE_TYPES = ("learned", "learned_range")
VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", *LEARNED_VARIANCE_TYPES)
DECODER_RULES = {
    "fixed": "the posterior variance of the next step",
    "learned": "the network's log-variance",
    "learned_range": "between the posterior variance of the next step and the step's own beta, as the network says",
    "calibrated": "as measured, with decoding from the lowest timestep that is scored",
    "single": "the step's own beta (a single step has no next one)",
}
