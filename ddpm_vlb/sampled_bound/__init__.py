r"""The bound of a data set from few evaluations: the estimator."""
