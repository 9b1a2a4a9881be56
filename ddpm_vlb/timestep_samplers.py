r"""Which timesteps a training batch looks at, and the weights that keep its loss unbiased.

The bound is a sum over T timesteps; a step of training estimates it from the few that a batch has room for. Example i of
batch s gets a quantile :math:`u \in [0, 1)`, and from it a timestep t of probability :math:`p_t` and the weight
:math:`1 / (T p_t)`, so that :math:`E[w\, T L_t] = \sum_t L_t` whatever p is.

*Uniform* draws each quantile on its own. *Stratified* spreads them over the batch, :math:`u_i = (v + i/B) \bmod 1` with one v
per batch: each is uniform, together they cover all timesteps (Appendix I.1, Kingma et al. 2021). *Importance* takes
stratified quantiles through the inverse distribution function of :math:`p_t \propto \sqrt{E[L_t^2]}`, which minimises the
variance of the weighted loss; the expectation is over the last losses seen at t, and t is uniform until there are enough of
them at every t (Section 3.3, Nichol & Dhariwal 2021).

Quantiles are keyed by (seed, step, position in the global batch): how a batch is cut into processes and accumulated parts
changes nothing.
"""

from collections.abc import Sequence

import torch

from .noise import keyed_uniform, mix


class UniformSampler:
    r"""Timesteps drawn uniformly, each on its own.

    Args:
        num_timesteps: number of timesteps T.

    Raises:
        ValueError: `num_timesteps` below 1.
    """

    def __init__(self, num_timesteps: int):
        if num_timesteps < 1:
            raise ValueError(f"`num_timesteps` must be at least 1, got {num_timesteps!r}.")
        self.num_timesteps = num_timesteps

    def sample(self, seed: int, step: int, positions: Sequence[int], batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        r"""Timesteps and weights for some examples of one batch.

        Args:
            seed: of the run.
            step: number of the batch.
            positions: the examples' places in the whole batch, each in [0, `batch_size`).
            batch_size: examples in the whole batch, over all processes and accumulated parts.

        Returns:
            Timesteps (int64) and weights (float64, mean 1), each of shape `(len(positions),)`, on the CPU.
        """
        return self._invert(self._quantiles(mix(seed, step), positions, batch_size))

    def update(self, timesteps: torch.Tensor, losses: torch.Tensor) -> None:
        r"""Tell the unweighted losses of the whole batch, each of shape `(B,)`; only importance sampling learns from them."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        r"""What was learned, for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        r"""Take up what `state_dict` returned."""

    def _quantiles(self, key: int, positions: Sequence[int], batch_size: int) -> torch.Tensor:
        return torch.tensor([keyed_uniform(mix(key, position)) for position in positions], dtype=torch.float64)

    def _invert(self, quantiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # A product that rounds up to T still belongs to the last step.
        timesteps = (quantiles * self.num_timesteps).long().clamp_max(self.num_timesteps - 1)
        return timesteps, torch.ones_like(quantiles)


class StratifiedSampler(UniformSampler):
    r"""Timesteps that are uniform each, and spread evenly over the batch."""

    def _quantiles(self, key: int, positions: Sequence[int], batch_size: int) -> torch.Tensor:
        places = torch.tensor(list(positions), dtype=torch.float64)
        return (keyed_uniform(key) + places / batch_size) % 1.0


class ImportanceSampler(StratifiedSampler):
    r"""Timesteps in proportion to the root mean square of their recent losses.

    Args:
        num_timesteps: number of timesteps T.
        history_per_timestep: losses remembered per timestep; sampling is uniform until all are there.
        uniform_probability: share of uniform sampling mixed in, which bounds every weight.
    """

    def __init__(self, num_timesteps: int, history_per_timestep: int = 10, uniform_probability: float = 1e-3):
        super().__init__(num_timesteps)
        if history_per_timestep < 1:
            raise ValueError(f"`history_per_timestep` must be at least 1, got {history_per_timestep!r}.")
        if not 0 < uniform_probability <= 1:
            raise ValueError(f"`uniform_probability` must lie in (0, 1], got {uniform_probability!r}.")
        self.uniform_probability = uniform_probability
        self._losses = torch.zeros(num_timesteps, history_per_timestep, dtype=torch.float64)
        self._counts = torch.zeros(num_timesteps, dtype=torch.int64)

    @property
    def probabilities(self) -> torch.Tensor:
        r""":math:`p_t`, shape `(T,)`, float64."""
        uniform = torch.full((self.num_timesteps,), 1.0 / self.num_timesteps, dtype=torch.float64)
        root_mean_square = self._losses.square().mean(dim=1).sqrt()
        if bool((self._counts < self._losses.shape[1]).any()) or not root_mean_square.sum() > 0:
            return uniform
        by_loss = root_mean_square / root_mean_square.sum()
        return (1 - self.uniform_probability) * by_loss + self.uniform_probability * uniform

    def update(self, timesteps: torch.Tensor, losses: torch.Tensor) -> None:
        remembered, counts = self._losses.numpy(), self._counts.numpy()  # the same memory, and quicker one by one
        for timestep, loss in zip(timesteps.tolist(), losses.tolist()):
            remembered[timestep, counts[timestep] % remembered.shape[1]] = loss
            counts[timestep] += 1

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"losses": self._losses.clone(), "counts": self._counts.clone()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        if state["losses"].shape != self._losses.shape:
            raise ValueError(
                f"`state` must hold losses of shape {tuple(self._losses.shape)}, got {tuple(state['losses'].shape)}."
            )
        self._losses, self._counts = state["losses"].clone(), state["counts"].clone()

    def _invert(self, quantiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        probabilities = self.probabilities
        cumulative = torch.cumsum(probabilities, dim=0)
        timesteps = torch.searchsorted(cumulative, quantiles * cumulative[-1], right=True)
        timesteps = timesteps.clamp_max(self.num_timesteps - 1)
        return timesteps, 1.0 / (self.num_timesteps * probabilities[timesteps])


TIMESTEP_SAMPLERS = {"uniform": UniformSampler, "stratified": StratifiedSampler, "importance": ImportanceSampler}
